"""``rife compare`` on real files, read back frame by frame."""

import json
import math
import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.images import write_image
from rife.canvas import fit, label, upright
from rife.cli_study import compare_command
from rife.compare import wiped
from rife.reader import VideoReader
from rife.video import VideoSource
from video_clips import frames_of, make_clip, packets_of, random_frame, smooth_frame


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        result = CliRunner().invoke(compare_command, [*map(str, args), "--json"])
        assert result.exit_code == code, result.output
        assert not list(tmp_path.rglob(".part-*"))
        return json.loads(result.stdout) if code == 0 else result.stderr.strip().splitlines()[-1]

    return call


def grey_clip(path, levels, rate, size=(64, 48), **options):
    """A lossless clip of even frames, the luma of each being its level."""
    frames = []
    for level in levels:
        frame = av.VideoFrame(*size, "yuv420p")
        for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
            plane.update(np.full((plane.height, plane.line_size), value, np.uint8))
        frames.append(frame)
    return make_clip(path, frames, codec="ffv1", rate=Fraction(rate), size=size, **options)


def luma(path):
    """Each frame's luma codes."""
    return [np.array(d.frame.to_ndarray()[: d.frame.height]) for d in frames_of(path)]


NO_LABELS = ["--labels", "", ""]


def test_frames_are_joined_by_time(run, tmp_path):
    a = grey_clip(tmp_path / "a.mkv", range(40, 80, 10), 10)  # 0.4 s
    b = grey_clip(tmp_path / "b.mkv", range(100, 200, 10), 25)  # 0.4 s
    made = run(a, b, *NO_LABELS)
    assert made["output"].endswith("a_vs_b.mkv")
    assert (made["frames"], made["fps"], made["width"], made["height"]) == (10, "25", 128, 48)
    frames = luma(tmp_path / "a_vs_b.mkv")
    assert len(frames) == 10
    for k, frame in enumerate(frames):
        assert frame.shape == (48, 128)
        assert (frame[:, :60] == 40 + 10 * math.floor(k / 25 * 10)).all()
        assert (frame[:, 68:] == 100 + 10 * k).all()


def test_the_shorter_one_stays_on_its_last_frame(run, tmp_path):
    a = grey_clip(tmp_path / "a.mkv", [50, 60], 10)
    b = grey_clip(tmp_path / "b.mkv", [100, 110, 120, 130], 10)
    run(a, b, *NO_LABELS, "-o", "ab.mkv")
    run(b, a, *NO_LABELS, "-o", "ba.mkv")
    assert [f[0, 0] for f in luma(tmp_path / "ab.mkv")] == [50, 60, 60, 60]
    assert [f[0, -1] for f in luma(tmp_path / "ba.mkv")] == [50, 60, 60, 60]


def test_the_sound_is_that_of_the_first(run, tmp_path):
    a = make_clip(tmp_path / "a.mp4", 8, audio="aac", metadata={"title": "First"})
    b = make_clip(tmp_path / "b.mp4", 8, audio="aac", audio_start=512)
    run(a, b, "-o", "c.mp4", "--preset", "ultrafast")
    assert packets_of(tmp_path / "c.mp4", "audio") == packets_of(a, "audio")
    with av.open(str(tmp_path / "c.mp4")) as out:
        assert len(out.streams.audio) == 1
        assert out.metadata["title"] == "First"


def test_labels_change_their_corner_only(run, tmp_path):
    a = make_clip(
        tmp_path / "a.mkv", [smooth_frame("yuv420p", 128, 96, k) for k in range(2)], codec="ffv1", size=(128, 96)
    )
    b = make_clip(
        tmp_path / "b.mkv", [smooth_frame("yuv420p", 128, 96, 9) for k in range(2)], codec="ffv1", size=(128, 96)
    )
    run(a, b, *NO_LABELS, "-o", "plain.mkv")
    run(a, b, "-o", "named.mkv")
    for plain, named in zip(luma(tmp_path / "plain.mkv"), luma(tmp_path / "named.mkv"), strict=True):
        changed = plain != named
        assert not changed[16:].any()
        assert changed[:14, :38].mean() > 0.9  # the darkened box
        assert changed[:14, 128:166].mean() > 0.9
        assert named[:14, :38].max() > 200  # and white letters on it


def test_labels_hold_any_alphabet():
    grey = torch.full((3, 60, 200), 0.5)
    pictures = [label(grey, text) for text in ("Über", "Uber", "日本", "?")]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4
    right = label(grey, "x", right=True)
    assert torch.equal(right[:, :, :150], grey[:, :, :150])
    assert not torch.equal(right[:, :, 180:], grey[:, :, 180:])


def test_sizes_are_fitted(run, tmp_path):
    a = grey_clip(tmp_path / "a.mkv", [50, 50], 25, size=(64, 48))
    b = grey_clip(tmp_path / "b.mkv", [200, 200], 25, size=(160, 90))
    made = run(a, b, *NO_LABELS, "-o", "c.mkv")
    assert (made["width"], made["height"]) == (120 + 160, 90)
    frame = luma(tmp_path / "c.mkv")[0]
    assert (frame[:, :116] == 50).all()
    assert (frame[:, 124:] == 200).all()
    made = run(a, b, *NO_LABELS, "--height", 46, "--wipe", "-o", "w.mkv")
    assert (made["width"], made["height"]) == (62, 46)


def test_fitting_keeps_the_shape():
    wide = fit(torch.ones(3, 20, 80), 40, 40)
    assert wide.shape == (3, 40, 40)
    rows = wide[0].mean(1)
    assert rows[:15].eq(0).all()
    assert rows[15:25].eq(1).all()
    assert rows[25:].eq(0).all()


def test_a_wipe_shows_both_sides_of_a_moving_line(run, tmp_path):
    a = grey_clip(tmp_path / "a.mkv", [50] * 20, 10)
    b = grey_clip(tmp_path / "b.mkv", [200] * 20, 10)
    run(a, b, *NO_LABELS, "--wipe", "--period", 2, "-o", "w.mkv")
    frames = luma(tmp_path / "w.mkv")
    for k, frame in enumerate(frames):
        x = round(64 * (1 - math.cos(math.pi * k / 10)) / 2)
        assert (frame[:, : max(0, x - 2)] == 50).all()
        assert (frame[:, x + 2 :] == 200).all()
        assert (frame[:, max(0, x - 1) : x + 1] == 235).all()  # white


def test_a_wipe_at_its_ends():
    left, right = torch.zeros(3, 4, 10), torch.full((3, 4, 10), 0.5)
    assert (wiped(left, right, 0.0)[:, :, 1:] == 0.5).all()
    assert (wiped(left, right, 1.0)[:, :, :9] == 0).all()


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_turned_videos_are_shown_upright_as_ffmpeg_does(run, tmp_path, rotation):
    picture = random_frame("yuv420p", 8, 6).reformat(64, 48)  # coarse noise: has no symmetry
    a = make_clip(tmp_path / "a.mp4", [picture], rotation=rotation, options={"crf": "1"})
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(a), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    size = (64, 48) if rotation % 180 else (48, 64)
    oracle = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8).reshape(size)
    source = VideoSource(a)
    shown = upright(source.rgb(frames_of(a)[0].frame), source.info)
    source.close()
    assert np.abs(shown.mean(0).numpy() * 255 - oracle).mean() < 40
    assert np.corrcoef(shown.mean(0).flatten(), oracle.flatten())[0, 1] > 0.7
    run(a, a, "-o", "c.mp4", *NO_LABELS)
    with VideoReader(tmp_path / "c.mp4") as reader:
        assert reader.info.rotation == 0
        assert (reader.info.height, reader.info.width) == (size[0], 2 * size[1])


def test_pixels_are_made_square(run, tmp_path):
    a = make_clip(tmp_path / "a.mp4", 2, aspect=Fraction(3, 2))
    made = run(a, a, "-o", "c.mp4")
    assert (made["width"], made["height"]) == (2 * 96, 48)
    with VideoReader(tmp_path / "c.mp4") as reader:
        assert reader.info.sample_aspect_ratio in (None, 1)


def test_ten_bits_and_tags_of_the_first_are_kept(run, tmp_path):
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 16}
    a = make_clip(tmp_path / "a.mp4", 4, codec="libx265", pix_fmt="yuv420p10le", tags=tags)
    b = make_clip(tmp_path / "b.mp4", 2)
    run(a, b, "-o", "c.mp4")
    with VideoReader(tmp_path / "c.mp4") as reader:
        assert reader.info.pix_fmt == "yuv420p10le"
        assert (reader.info.color.matrix, reader.info.color.tags.transfer) == ("bt2020", 16)


def test_folders_of_images(run, tmp_path):
    for name, level in (("one", 60), ("two", 180)):
        (tmp_path / name).mkdir()
        for n in range(3):
            write_image(tmp_path / name / f"{n}.png", np.full((48, 64, 3), level, np.uint8))
    made = run("one", "two", "--input-fps", 12, "--codec", "ffv1", *NO_LABELS)
    assert (made["output"], made["frames"], made["fps"]) == ("one_vs_two.mkv", 3, "12")
    rgb = frames_of(tmp_path / "one_vs_two.mkv")[0].frame.to_ndarray(format="rgb24")
    assert (rgb[:, :64] == 60).all()
    assert (rgb[:, 64:] == 180).all()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.mp4", "missing.mp4"], "no such file"),
        (["a.mp4", "b.mp4", "-o", "a.mp4"], "is the input itself"),
        (["a.mp4", "b.mp4", "-o", "b.mp4"], "is the input itself"),
        (["a.mp4", "b.mp4", "-o", "taken.mp4"], "pass -y"),
        (["a.mp4", "b.mp4", "-o", "frames"], "must name a video"),
        (["a.mp4", "b.mp4", "--input-fps", "10", "-o", "c.webm", "--codec", "h264"], "webm does not hold h264"),
        (["-", "b.mp4"], "standard input"),
    ],
)
def test_refusals(run, tmp_path, args, said):
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, 2)
    (tmp_path / "taken.mp4").write_text("precious")
    before = sorted(p.name for p in tmp_path.iterdir())
    line = run(*args, code=1)
    assert line.startswith("Error: ")
    assert said in line
    assert sorted(p.name for p in tmp_path.iterdir()) == before
