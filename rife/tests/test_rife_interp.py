"""The whole command on real files, with a network whose answer is known: the mean of the two frames."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.images import read_image, write_image
from rife.cli import interp
from rife.color import to_rgb
from video_clips import frames_of, make_clip, md5, packets_of, planes, random_frame, smooth_frame


@pytest.fixture
def run(averaging, tmp_path, monkeypatch):
    """Runs ``rife-interp`` in an empty folder; returns the report, or the error's output and exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        result = CliRunner().invoke(interp, [*map(str, args), "--weights", str(averaging), "--device", "cpu", "--json"])
        assert result.exit_code == code, result.output
        assert not list(tmp_path.rglob(".part-*"))  # nothing half-written stays behind
        return json.loads(result.stdout) if code == 0 else result.stderr.strip()

    return call


def test_sixty_frames_a_second_with_sound(run, tmp_path):
    source = make_clip(tmp_path / "in.mp4", 10, audio="aac", metadata={"title": "Täst"})
    report = run(source, "--fps", 60)
    output = tmp_path / "in_60fps.mp4"
    frames = frames_of(output)
    assert len(frames) == report["frames_out"] == 24  # 0.4 s
    assert [frame.time for frame in frames] == [Fraction(k, 60) for k in range(24)]
    assert packets_of(output, "audio") == packets_of(source, "audio")
    assert report["originals"] == 2  # 0 s and 0.2 s are the only instants that both rates share
    assert report["held"] == 2  # the last frame, until 0.4 s
    assert abs(Fraction(report["drift_seconds"])) < Fraction(1, 60)
    with av.open(str(output)) as out:
        assert out.metadata["title"] == "Täst"


def test_originals_enter_the_encoder_bit_for_bit(run, tmp_path):
    noise = [random_frame("yuv420p", 64, 48, seed) for seed in range(4)]
    kept = [md5(frame) for frame in noise]
    source = make_clip(tmp_path / "in.mkv", noise, codec="ffv1")
    run(source, "--fps", "2x", "--codec", "ffv1", "-o", "out.mkv")
    frames = frames_of(tmp_path / "out.mkv")
    assert [md5(frame.frame) for frame in frames[::2]] == kept
    for a, new, b in zip(frames[::2], frames[1::2], frames[2::2], strict=False):
        mean = (to_rgb(a.frame) + to_rgb(b.frame)) / 2
        torch.testing.assert_close(to_rgb(new.frame), mean, atol=2.5 / 219, rtol=0)  # 8-bit codes, rounded


def test_grey_keeps_its_level(run, tmp_path):
    """Original and new frames of a slow ramp differ by what the ramp rises, and by nothing else."""
    ramp = []
    for k in range(6):
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, level in zip(frame.planes, (40 + 2 * k, 128, 128), strict=True):
            plane.update(np.full((plane.height, plane.line_size), level, np.uint8))
        ramp.append(frame)
    run(make_clip(tmp_path / "in.mkv", ramp, codec="ffv1"), "--fps", "2x", "-o", "out.mkv")
    levels = [frame.frame.to_ndarray()[:48].mean() for frame in frames_of(tmp_path / "out.mkv")]
    assert np.abs(np.array(levels[:11]) - (40 + np.arange(11))).max() < 0.1


def test_variable_rate(run, tmp_path):
    pts = [0, 10, 40, 50, 90]  # ticks of 1/250 s: 0, 0.04, 0.16, 0.2, 0.36
    report = run(make_clip(tmp_path / "in.mp4", 5, pts=pts, options={"bf": "0"}), "--fps", 25, "-o", "out.mp4")
    assert [frame.time for frame in frames_of(tmp_path / "out.mp4")] == [Fraction(k, 25) for k in range(10)]
    assert report["originals"] == 5
    assert report["interpolated"] == 5


def test_fewer_frames(run, tmp_path):
    report = run(make_clip(tmp_path / "in.mp4", 25, rate=Fraction(50)), "--fps", 24, "-o", "out.mp4")
    assert report["frames_out"] == 12


def test_slow_motion_leaves_the_sound_out(run, tmp_path):
    source = make_clip(tmp_path / "in.mp4", 5, audio="aac")
    report = run(source, "--slowmo", 4, "--fps", 25, "-o", "slow.mp4")
    assert report["frames_out"] == 20
    assert any("sound" in warning for warning in report["warnings"])
    with av.open(str(tmp_path / "slow.mp4")) as slow:
        assert [s.type for s in slow.streams] == ["video"]


def test_equal_frames_need_no_network(run, tmp_path):
    still = [smooth_frame("yuv420p", 64, 48, 0) for _ in range(4)]
    report = run(make_clip(tmp_path / "in.mkv", still, codec="ffv1"), "--fps", "2x")
    assert (report["duplicates"], report["interpolated"]) == (3, 0)
    assert len({md5(frame.frame) for frame in frames_of(tmp_path / "in_50fps.mkv")}) == 1


# ------------------------------------------------------------------------------------ image folders


def write_images(folder, suffix, dtype, count=3, channels=3, size=(40, 56)):
    folder.mkdir()
    rng = np.random.default_rng(0)
    peak = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    images = [(rng.random((*size, channels)) * peak).astype(dtype) for _ in range(count)]
    for n, image in enumerate(images):
        write_image(folder / f"frame{9 + n}{suffix}", image)  # 9, 10, 11: not in the order of letters
    return images


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"),
    [(".png", "uint8", 3), (".png", "uint16", 3), (".png", "uint8", 1), (".tif", "uint16", 4), (".exr", "float32", 3)],
)
def test_image_folders_keep_their_depth(run, tmp_path, suffix, dtype, channels):
    images = write_images(tmp_path / "shot 1", suffix, dtype, channels=channels)
    report = run(tmp_path / "shot 1", "--input-fps", 24, "--fps", 48)
    out = [read_image(p) for p in sorted((tmp_path / "shot 1_48fps").iterdir())]
    assert len(out) == report["frames_out"] == 6
    for original, copy in zip(images, out[::2], strict=True):
        np.testing.assert_array_equal(original, copy)
    assert {(image.dtype.name, image.shape) for image in out} == {(dtype, images[0].shape)}
    if dtype != "float32":
        mean = (images[0].astype(float) + images[1]) / 2
        np.testing.assert_allclose(out[1], mean, atol=1)


def test_transparent_images_keep_their_alpha(run, tmp_path):
    images = write_images(tmp_path / "in", ".png", "uint8", channels=4)
    run(tmp_path / "in", "-o", tmp_path / "out")
    middle = read_image(sorted((tmp_path / "out").iterdir())[1])
    np.testing.assert_allclose(middle[..., 3], (images[0][..., 3].astype(float) + images[1][..., 3]) / 2, atol=1)


def test_images_to_video_and_back(run, tmp_path):
    images = write_images(tmp_path / "in", ".png", "uint8")
    report = run(tmp_path / "in", "--input-fps", 10, "--fps", 20, "--codec", "ffv1", "-o", "film.mkv")
    assert report["output"]["codec"] == "ffv1"
    run("film.mkv", "--fps", 20, "-o", tmp_path / "back")
    back = [read_image(p) for p in sorted((tmp_path / "back").iterdir())]
    for original, copy in zip(images, back[::2], strict=True):
        np.testing.assert_array_equal(original, copy)


def test_images_that_differ_are_refused_by_name(run, tmp_path):
    write_images(tmp_path / "in", ".png", "uint8")
    write_image(tmp_path / "in" / "frame12.png", np.zeros((8, 8, 3), np.uint8))
    assert "frame12.png is 8x8x3 uint8" in run(tmp_path / "in", code=1)
    assert not (tmp_path / "in_48fps").exists()


# ------------------------------------------------------------------------------------- odd inputs


@pytest.mark.parametrize("frames", [1, 2])
def test_one_and_two_frames(run, tmp_path, frames):
    run(make_clip(tmp_path / "in.mp4", frames), "--fps", 100, "-o", "out.mp4")
    assert len(frames_of(tmp_path / "out.mp4")) == 4 * frames


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("hevc", "mkv"), ("av1", "mkv"), ("vp9", "webm")])
def test_odd_sizes(run, tmp_path, codec, suffix):
    source = make_clip(tmp_path / "in.mkv", 3, codec="ffv1", size=(75, 67))
    run(source, "--fps", 50, "--codec", codec, "-o", f"out.{suffix}")
    frame = frames_of(tmp_path / f"out.{suffix}")[0].frame
    assert (frame.width, frame.height) == (75, 67)


def test_rotation_stays(run, tmp_path):
    run(make_clip(tmp_path / "in.mp4", 3, rotation=90), "--fps", 50, "-o", "out.mp4")
    with av.open(str(tmp_path / "in.mp4")) as a, av.open(str(tmp_path / "out.mp4")) as b:
        first, second = next(a.decode(video=0)), next(b.decode(video=0))
        assert first.rotation == second.rotation != 0


def test_a_negative_start_stays_in_step_with_the_sound(run, tmp_path):
    source = make_clip(tmp_path / "in.mkv", 6, pts=[-20, -10, 0, 10, 20, 30], audio="aac")
    start = frames_of(source)[0].time
    run(source, "--fps", 50, "-o", "out.mkv")
    assert frames_of(tmp_path / "out.mkv")[0].time == start
    assert packets_of(tmp_path / "out.mkv", "audio") == packets_of(source, "audio")


def test_a_corrupt_tail_is_said_and_the_rest_is_kept(run, tmp_path):
    source = make_clip(tmp_path / "in.mkv", 30, codec="libx264", options={"g": "5", "bf": "0"})
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    report = run(source, "--fps", 50, "-o", "out.mkv")
    assert 20 < len(frames_of(tmp_path / "out.mkv")) < 60
    assert report["warnings"]


def test_names_with_spaces_and_umlauts(run, tmp_path):
    folder = tmp_path / "Über uns: 100% échantillon"
    folder.mkdir()
    run(make_clip(folder / "日本 – clip #1.mp4", 3), "--fps", 50)
    assert frames_of(folder / "日本 – clip #1_50fps.mp4")


# -------------------------------------------------------------------------------------- refusals


def one_line(message):
    lines = message.splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def test_what_is_not_a_video_is_refused_in_one_line(run, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    assert "no such file" in one_line(run("missing.mp4", code=1))
    assert "notes.txt" in one_line(run("notes.txt", "-o", "out.mp4", code=1))
    assert "empty.mp4 is empty" in one_line(run("empty.mp4", code=1))
    assert "holds no images" in one_line(run("nothing", code=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.mp4", "notes.txt", "nothing"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "in.mp4"], "is the input itself"),
        (["-o", "taken.mp4"], "pass -y"),
        (["-o", "out.avi"], ".avi is not a video file"),
        (["-o", "no/where/out.mp4"], "there is no folder"),
        (["-o", "full"], "full is not empty"),
        (["--input-fps", "24"], "for folders of images"),
        (["-o", "out.webm", "--codec", "h264"], "webm does not hold h264"),
        (["-o", "out.mkv", "--codec", "ffv1", "--crf", "20"], "takes no crf"),
        (["-o", "out.mp4", "--pix-fmt", "nonsense"], "nonsense"),
        (["--preset", "warp9"], "preset"),
    ],
)
def test_refusals_name_the_flag_or_file(run, tmp_path, options, said):
    make_clip(tmp_path / "in.mp4", 2)
    (tmp_path / "taken.mp4").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.png").touch()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert said in one_line(run("in.mp4", *options, code=1))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }


def test_overwriting_when_asked(run, tmp_path):
    make_clip(tmp_path / "in.mp4", 2)
    (tmp_path / "taken.mp4").write_text("old")
    run("in.mp4", "-y", "-o", "taken.mp4")
    assert frames_of(tmp_path / "taken.mp4")


def test_dry_run_writes_nothing(run, tmp_path):
    make_clip(tmp_path / "in.mp4", 10)
    plan = run("in.mp4", "--fps", 60, "--dry-run")
    assert plan["frames_expected"] == 24
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_usage_errors_exit_with_2(run, tmp_path):
    make_clip(tmp_path / "in.mp4", 2)
    assert "--mode" in run("in.mp4", "--mode", "magic", code=2)
    assert "expected a frame rate" in one_line(run("in.mp4", "--fps", "quick", code=2))
    assert "at most 1000" in one_line(run("in.mp4", "--fps", "5000", code=2))
    assert "factor above 0" in one_line(run("in.mp4", "--slowmo", "0", code=2))


# ------------------------------------------------------------------------------- cuts, repetitions


@pytest.fixture
def two_shots(tmp_path):
    """Six frames of a soft pattern, then six of noise with other colours."""
    noise = random_frame("yuv420p", 96, 64, 5)
    shots = [smooth_frame("yuv420p", 96, 64, k) for k in range(6)]
    for _ in range(6):
        frame = av.VideoFrame(96, 64, "yuv420p")
        for plane, noisy in zip(planes(frame), planes(noise), strict=True):
            plane[...] = noisy // 4 + 10
        shots.append(frame)
    return make_clip(tmp_path / "in.mkv", shots, codec="ffv1", size=(96, 64))


def test_a_cut_is_held_and_reported(run, tmp_path, two_shots):
    report = run(two_shots, "--fps", 100, "--codec", "ffv1", "-o", "out.mkv")
    assert [(cut["kind"], cut["frame"], cut["seconds"]) for cut in report["cuts"]] == [("cut", 6, 0.24)]
    frames = [md5(frame.frame) for frame in frames_of(tmp_path / "out.mkv")]
    assert len(set(frames[20:24])) == 1  # the last frame of the first shot stands
    assert frames[17] != frames[16]  # the pair before is interpolated


@pytest.mark.parametrize(("how", "equal_to_left"), [("nearest", [True, False, False]), ("blend", [False] * 3)])
def test_other_ways_over_a_cut(run, tmp_path, two_shots, how, equal_to_left):
    run(two_shots, "--fps", 100, "--codec", "ffv1", "--cut", how, "-o", "out.mkv")
    frames = [md5(frame.frame) for frame in frames_of(tmp_path / "out.mkv")]
    assert [frame == frames[20] for frame in frames[21:24]] == equal_to_left
    if how == "nearest":
        assert frames[22] == frames[23] == frames[24]


def test_no_cuts_wanted_and_cuts_from_a_list(run, tmp_path, two_shots):
    assert run(two_shots, "--fps", 50, "--cut", "off", "-o", "off.mkv")["cuts"] == []
    (tmp_path / "cuts.txt").write_text("frame 3\n0.2  # of frame 5\n")
    report = run(two_shots, "--fps", 50, "--cut-list", "cuts.txt", "-o", "list.mkv")
    assert [cut["frame"] for cut in report["cuts"]] == [3, 5]
    (tmp_path / "cuts.txt").write_text("soon\n")
    assert "cuts.txt, line 1" in one_line(run(two_shots, "--cut-list", "cuts.txt", "-o", "bad.mkv", code=1))


def test_animation_on_twos_moves_from_drawing_to_drawing(run, tmp_path):
    drawings = [smooth_frame("yuv420p", 96, 64, 3 * (k // 2)) for k in range(12)]
    source = make_clip(tmp_path / "in.mkv", drawings, codec="ffv1", size=(96, 64))
    plain = run(source, "--fps", 25, "--codec", "ffv1", "--cut", "off", "-o", "plain.mkv")
    assert plain["interpolated"] == 0
    report = run(source, "--fps", 25, "--codec", "ffv1", "--cut", "off", "--dedup", "-o", "dedup.mkv")
    frames = [md5(frame.frame) for frame in frames_of(tmp_path / "dedup.mkv")]
    assert len(frames) == report["frames_out"] == plain["frames_out"] == 12
    assert report["repeated_drawings"] == 5  # the last drawing stays as it is: nothing comes after it
    assert frames[::2] == [md5(frame) for frame in drawings[::2]]
    assert len(set(frames)) == 11


def test_the_threshold_in_the_help_is_the_detectors():
    from rife import cli, cuts

    assert cli.CUT_THRESHOLD == cuts.THRESHOLD


def test_overlays_stay_where_they_are(run, tmp_path):
    """A bright bar stands still over a pattern that moves; the averaging network leaves it alone anyway."""
    frames = []
    for k in range(8):
        frame = smooth_frame("yuv420p", 96, 64, 2 * k)
        planes(frame)[0][10:20, 20:70] = 235
        frames.append(frame)
    source = make_clip(tmp_path / "in.mkv", frames, codec="ffv1", size=(96, 64))
    report = run(source, "--fps", 50, "--codec", "ffv1", "--lock-overlays", "-o", "out.mkv")
    assert report["interpolated"] == 7
    assert all((planes(made.frame)[0][12:18, 24:66] == 235).all() for made in frames_of(tmp_path / "out.mkv"))
