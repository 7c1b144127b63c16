"""``rife eval`` on tiny data sets in each layout, with a network whose answer is known: the mean."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner
from papershelf.images import write_image
from rife.benchmarks import open_data_set
from rife.cli_study import evaluate_command
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from video_clips import frames_of, make_clip, random_frame

SIZE = (24, 32)


@pytest.fixture
def run(averaging):
    """Runs ``rife eval``; returns its JSON, or the error's last line and exit code."""

    def call(*args, code=0, as_json=True):
        options = ["--weights", str(averaging), "--device", "cpu", *["--json"] * as_json]
        result = CliRunner().invoke(evaluate_command, [*map(str, args), *options])
        assert result.exit_code == code, result.output
        if code:
            return result.stderr.strip().splitlines()[-1]
        return json.loads(result.stdout) if as_json else result.stdout

    return call


def pictures(count, seed=0, size=SIZE):
    """Even codes, so that the mean of two is a code and there is nothing to round."""
    rng = np.random.default_rng(seed)
    return [2 * rng.integers(0, 128, (*size, 3), dtype=np.uint8) for _ in range(count)]


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)


def mean(a, b):
    return ((a.astype(int) + b) // 2).astype(np.uint8)


def decibels(a, truth, b):
    return peak_signal_noise_ratio(truth, mean(a, b), data_range=255)


def similarity(a, truth, b):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(truth, mean(a, b), data_range=255, channel_axis=2, **options)


def vimeo(root, count=3):
    rows = []
    for k in range(count):
        images = pictures(3, k)
        for n, image in enumerate(images, 1):
            write(root / f"sequences/00001/{k + 1:04d}/im{n}.png", image)
        rows.append(images)
    (root / "tri_testlist.txt").write_text("".join(f"00001/{k + 1:04d}\n" for k in range(count)) + "\n")
    return rows


def test_vimeo90k(run, tmp_path):
    rows = vimeo(tmp_path)
    report = run(tmp_path)
    assert report["data"] == "Vimeo90K"
    assert [frame["name"] for frame in report["frames"]] == ["00001/0001", "00001/0002", "00001/0003"]
    for frame, row in zip(report["frames"], rows, strict=True):
        assert frame["measures"]["psnr"] == pytest.approx(decibels(*row), abs=1e-6)
        assert frame["measures"]["ssim"] == pytest.approx(similarity(*row), abs=1e-6)
        assert frame["averaging_psnr"] == pytest.approx(decibels(*row), abs=1e-6)
    means = report["means"]
    assert list(means) == ["mean"]
    assert means["mean"]["frames"] == 3
    assert means["mean"]["psnr"] == pytest.approx(np.mean([decibels(*row) for row in rows]))
    assert report["published"] == {"mean": {"psnr": 35.62, "ssim": 0.978}}


def test_the_table_shows_the_papers_figures(run, tmp_path):
    rows = vimeo(tmp_path)
    text = run(tmp_path, "--each", as_json=False)
    lines = text.splitlines()
    assert re.search(r"paper's PSNR dB +paper's SSIM$", lines[1])
    assert lines[2].startswith("00001/0001 at 0.5")
    psnr = f"{np.mean([decibels(*row) for row in rows]):.2f}"
    assert re.match(rf"mean +3 +{re.escape(psnr)} .* 35\.62 +0\.9780$", lines[5])
    assert len(run(tmp_path, as_json=False).splitlines()) == len(lines) - 3


def test_ucf101(run, tmp_path):
    row = pictures(3)
    for folder in ("2", "10"):
        for name, image in zip(("frame_00", "frame_01_gt", "frame_02"), row, strict=True):
            write(tmp_path / folder / f"{name}.png", image)
    report = run(tmp_path)
    assert report["data"] == "UCF101"
    assert [frame["name"] for frame in report["frames"]] == ["2", "10"]
    assert report["means"]["mean"]["psnr"] == pytest.approx(decibels(*row))
    assert report["published"]["mean"]["psnr"] == 35.28


@pytest.fixture
def snu_film(tmp_path):
    rows = {"hard": pictures(3, 1), "easy": pictures(3, 2)}
    for part, images in rows.items():
        names = [f"test/GOPRO_test/{part}/{n:06d}.png" for n in (1, 3, 5)]
        for name, image in zip(names, images, strict=True):
            write(tmp_path / name, image)
        (tmp_path / f"test-{part}.txt").write_text(" ".join(f"data/SNU-FILM/{name}" for name in names) + "\n")
    return tmp_path, rows


def test_snu_film_has_its_parts_in_the_usual_order(run, snu_film):
    root, rows = snu_film
    report = run(root)
    assert list(report["means"]) == ["easy", "hard", "mean"]
    for part in ("easy", "hard"):
        assert report["means"][part]["psnr"] == pytest.approx(decibels(*rows[part]))
    assert report["published"] == {"easy": {"psnr": 40.06}, "hard": {"psnr": 30.10}}
    both = [report["means"][part]["psnr"] for part in ("easy", "hard")]
    assert report["means"]["mean"]["psnr"] == pytest.approx(np.mean(both))


def test_one_list_of_snu_film(run, snu_film):
    root, rows = snu_film
    (root / "eval_modes").mkdir()
    moved = (root / "test-hard.txt").rename(root / "eval_modes" / "test-hard.txt")
    report = run(moved)
    assert list(report["means"]) == ["hard", "mean"]
    assert report["means"]["hard"]["psnr"] == pytest.approx(decibels(*rows["hard"]))


def test_a_list_that_is_none(run, tmp_path):
    (tmp_path / "test-easy.txt").write_text("a.png b.png\n")
    assert "three paths a line" in run(tmp_path, code=1)


def test_middlebury_measures_the_interpolation_error(run, tmp_path):
    row = pictures(3)
    write(tmp_path / "other-data/Beanbags/frame10.png", row[0])
    write(tmp_path / "other-data/Beanbags/frame11.png", row[2])
    write(tmp_path / "other-gt-interp/Beanbags/frame10i11.png", row[1])
    report = run(tmp_path)
    expected = np.abs(mean(row[0], row[2]).astype(float) - row[1]).mean()
    assert report["frames"][0]["measures"]["ie"] == pytest.approx(expected)
    assert report["published"] == {"mean": {"ie": 1.956}}
    (tmp_path / "other-data").rename(tmp_path / "elsewhere")
    assert "no other-data" in run(tmp_path, code=1)


def test_xvfi_restores_seven_frames_of_thirty_three(run, tmp_path):
    images = pictures(33, size=(16, 16))
    for n, image in enumerate(images):
        write(tmp_path / f"test/Type2/TEST05_x/{n:04d}.png", image)
    report = run(tmp_path)
    assert [frame["time"] for frame in report["frames"]] == [k / 8 for k in range(1, 8)]
    expected = [decibels(images[0], images[4 * k], images[32]) for k in range(1, 8)]
    assert [frame["measures"]["psnr"] for frame in report["frames"]] == pytest.approx(expected)
    (tmp_path / "test/Type2/TEST05_x/0032.png").unlink()
    assert "holds 32 images" in run(tmp_path, code=1)


def grey_yuv(levels, width=32, height=24):
    """Frames of 4:2:0 with no colour: limited-range luma and 128s."""
    luma = [np.full((height, width), level, np.uint8) for level in levels]
    return b"".join(y.tobytes() + np.full(height * width // 2, 128, np.uint8).tobytes() for y in luma)


def test_hd_clips_measure_the_luma(run, tmp_path):
    folder = tmp_path / "HD720p_GT"
    folder.mkdir()
    levels = [100, 104, 126, 90, 60]
    (folder / "park_32x24_50.yuv").write_bytes(grey_yuv(levels))
    report = run(tmp_path)
    grey = [round((level - 16) * 255 / 219) for level in levels]
    assert list(report["means"]) == ["park_32x24_50", "mean"]
    for frame, k in zip(report["frames"], (1, 3), strict=True):
        error = grey[k] - (grey[k - 1] + grey[k + 1]) / 2
        # An odd sum is rounded to either side.
        near = [20 * np.log10(255 / abs(error + off)) for off in (-0.5, 0, 0.5)]
        assert min(abs(frame["measures"]["luma_psnr"] - value) for value in near) < 1e-6
    assert report["published"] == {"mean": {"luma_psnr": 32.14}}
    assert len(run(folder / "park_32x24_50.yuv", "--drop", 4)["frames"]) == 3


def test_hd_luma_weighs_the_colours(run, tmp_path):
    row = pictures(3)
    for n, image in enumerate(row):
        write(tmp_path / f"HD544p_GT/alley/{n}.png", image)
    value = run(tmp_path)["frames"][0]["measures"]["luma_psnr"]
    error = (mean(row[0], row[2]).astype(float) - row[1]) @ [0.299, 0.587, 0.114]
    assert value == pytest.approx(10 * np.log10(255**2 / (error**2).mean()))


def test_a_yuv_file_must_say_its_size(run, tmp_path):
    (tmp_path / "clip.yuv").write_bytes(grey_yuv([1, 2, 3]))
    assert "does not say its size" in run(tmp_path / "clip.yuv", code=1)
    (tmp_path / "clip_30x24.yuv").write_bytes(grey_yuv([1, 2, 3]))
    assert "no whole number of 30x24 frames" in run(tmp_path / "clip_30x24.yuv", code=1)


def test_a_folder_of_frames_by_dropping(run, tmp_path):
    images = pictures(8)
    for n, image in enumerate(images):
        write(tmp_path / f"in/f{n}.png", image)
    report = run(tmp_path / "in")
    assert [frame["name"] for frame in report["frames"]] == ["0-2", "2-4", "4-6"]
    expected = [decibels(images[k - 1], images[k], images[k + 1]) for k in (1, 3, 5)]
    assert [frame["measures"]["psnr"] for frame in report["frames"]] == pytest.approx(expected)
    report = run(tmp_path / "in", "--drop", 3, "--limit", 1)
    assert [frame["time"] for frame in report["frames"]] == pytest.approx([1 / 3, 2 / 3])
    expected = [decibels(images[0], images[k], images[3]) for k in (1, 2)]
    assert [frame["measures"]["psnr"] for frame in report["frames"]] == pytest.approx(expected)


def test_a_video_of_variable_rate_keeps_its_times(run, tmp_path):
    noise = [random_frame("gray", 32, 24, seed) for seed in range(5)]
    codes = [frame.to_ndarray() for frame in noise]
    clip = make_clip(tmp_path / "in.mkv", noise, codec="ffv1", pix_fmt="gray", size=(32, 24), pts=[0, 30, 40, 50, 80])
    assert frames_of(clip)[1].time == Fraction(30, 250)
    trials = list(open_data_set(clip).trials())
    assert [float(t.truths[0][0]) for t in trials] == [0.75, 0.25]
    np.testing.assert_array_equal(trials[1].truths[0][1][0], codes[3])
    report = run(clip)
    for frame, k in zip(report["frames"], (1, 3), strict=True):
        error = (codes[k - 1].astype(float) + codes[k + 1]) / 2 - codes[k]
        # Half of the means end in .5 and are rounded: a quarter code squared of noise.
        assert frame["measures"]["psnr"] == pytest.approx(10 * np.log10(255**2 / (error**2).mean()), abs=0.01)


def test_equal_frames_count_as_100_db(run, tmp_path):
    still = pictures(1)[0]
    for n in range(3):
        write(tmp_path / f"{n}.png", still)
    frame = run(tmp_path)["frames"][0]
    assert frame["measures"] == {"psnr": 100.0, "ssim": pytest.approx(1.0)}


def test_limit_is_per_part(snu_film):
    root, _ = snu_film
    for part in ("easy", "hard"):
        listed = root / f"test-{part}.txt"
        listed.write_text(listed.read_text() * 3)
    assert open_data_set(root).count == 6
    limited = open_data_set(root, limit=1)
    assert limited.count == 2
    assert [trial.part for trial in limited.trials()] == ["easy", "hard"]


def test_what_is_missing_is_named_before_any_work(run, tmp_path):
    vimeo(tmp_path)
    (tmp_path / "sequences/00001/0003/im2.png").unlink()
    assert "0003/im2.png is missing, and 0 more" in run(tmp_path, code=1)
    assert len(run(tmp_path, "--limit", 2)["frames"]) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "no such file or folder"),
        (["empty"], "no layout known here"),
        (["notes.txt"], "notes.txt"),
        (["vimeo", "--drop", "2"], "leave --drop out"),
        (["short"], "2 frames are too few"),
        (["vimeo", "--mode", "best", "--ensemble"], None),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    vimeo(tmp_path / "vimeo")
    for n, image in enumerate(pictures(2)):
        write(tmp_path / f"short/{n}.png", image)
    if said is None:  # --ensemble goes with --weights, which are given
        assert run(*args)["networks"].endswith("ensemble")
        return
    line = run(*args, code=1)
    assert line.startswith("Error: ")
    assert said in line


def test_frames_of_different_sizes_are_refused(run, tmp_path):
    vimeo(tmp_path, 1)
    write(tmp_path / "sequences/00001/0001/im2.png", pictures(1, size=(8, 8))[0])
    assert "differ in size" in run(tmp_path, code=1)
