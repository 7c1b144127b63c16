"""GIF and WebP previews, read back by Pillow."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from click.testing import CliRunner
from papershelf.images import write_image
from PIL import Image
from rife.cli import interp
from video_clips import make_clip


@pytest.fixture
def run(averaging, tmp_path, monkeypatch):
    """Runs ``rife-interp`` in an empty folder; returns the report, or the error's one line."""
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        result = CliRunner().invoke(interp, [*map(str, args), "--weights", str(averaging), "--device", "cpu", "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr.strip()

    return call


def pictures(path) -> tuple[list[np.ndarray], list[int]]:
    """RGB frames and their delays in milliseconds."""
    with Image.open(path) as file:
        frames, delays = [], []
        for k in range(file.n_frames):
            file.seek(k)
            frames.append(np.array(file.convert("RGB")))
            delays.append(file.info["duration"])
        assert file.info["loop"] == 0  # for ever
    return frames, delays


def coloured(size=(64, 48), count=5) -> list[av.VideoFrame]:
    """Frames of one saturated colour each, as BT.709 codes in limited range."""
    frames = []
    for codes in [(63, 102, 240), (173, 42, 26), (32, 240, 118), (219, 16, 138), (126, 128, 128)][:count]:
        frame = av.VideoFrame(*size, "yuv420p")
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full((plane.height, plane.line_size), code, np.uint8))
        frames.append(frame)
    return frames


RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (128, 128, 128)]


@pytest.mark.parametrize(("suffix", "most"), [("gif", 8), ("webp", 6)])
def test_colours_are_those_of_the_video(run, tmp_path, suffix, most):
    make_clip(tmp_path / "in.mkv", coloured(), codec="ffv1", tags={"colorspace": 1, "color_range": 1})
    report = run("in.mkv", "--fps", "2x", "--cut", "off", "-o", f"out.{suffix}")
    frames, _ = pictures(tmp_path / f"out.{suffix}")
    assert report["frames_out"] == 10
    for frame, want in zip(frames[::2], RGB, strict=False):
        assert np.abs(frame.astype(int) - want).max() <= most
    mean = (np.array(RGB[0]) + RGB[1]) / 2
    assert np.abs(frames[1] - mean).max() <= most


@pytest.mark.parametrize(
    ("suffix", "fps", "delays"),
    [("gif", "40", {20, 30}), ("gif", "24000/1001", {40, 50}), ("webp", "12.5", {80}), ("webp", "24", {41, 42})],
)
def test_the_duration_is_right_at_any_rate(run, tmp_path, suffix, fps, delays):
    make_clip(tmp_path / "in.mp4", 25)
    report = run("in.mp4", "--fps", fps, "-o", f"out.{suffix}")
    _, found = pictures(tmp_path / f"out.{suffix}")
    assert set(found) <= delays
    assert abs(sum(found) - 1000 * report["frames_out"] / Fraction(fps)) <= (10 if suffix == "gif" else 1)
    assert len(found) == report["frames_out"]


def test_webp_shows_nothing_twice(run, tmp_path):
    """What hardly changes is shown for longer instead, and the duration is right none the less."""
    make_clip(tmp_path / "in.mp4", 25)
    run("in.mp4", "--fps", 60, "-o", "out.webp")
    delays = pictures(tmp_path / "out.webp")[1]
    assert len(delays) < 60
    assert abs(sum(delays) - 1000) <= 2


def test_gif_is_held_to_what_viewers_show(run, tmp_path):
    make_clip(tmp_path / "in.mp4", 25, audio="aac")
    report = run("in.mp4", "--fps", 60, "-o", "out.gif")
    assert report["output"]["fps"] == "50"
    assert set(pictures(tmp_path / "out.gif")[1]) == {20}
    assert any("50 frames a second" in warning for warning in report["warnings"])
    assert any("no sound" in warning for warning in report["warnings"])


def test_size_aspect_and_rotation(run, tmp_path):
    """A bright left edge, turned by 90 degrees, lies where FFmpeg's own player would show it."""
    frames = []
    for _ in range(2):
        frame = av.VideoFrame(160, 80, "yuv420p")
        for plane, level in zip(frame.planes, (16, 128, 128), strict=True):
            plane.update(np.full((plane.height, plane.line_size), level, np.uint8))
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(80, -1)
        luma[:, :40] = 235 - 20 * len(frames)
        frames.append(frame)
    make_clip(tmp_path / "in.mp4", frames, size=(160, 80), rotation=90, aspect=Fraction(3, 2), options={"qp": "0"})
    report = run("in.mp4", "-o", "out.webp", "--preview-size", 120)
    shown = pictures(tmp_path / "out.webp")[0][0]
    assert shown.shape == (120, 40, 3)  # 240x80 square pixels, upright, halved
    assert any("40x120" in warning for warning in report["warnings"])
    top, bottom = shown[:25].mean(), shown[-25:].mean()
    with av.open(str(tmp_path / "in.mp4")) as clip:
        counter_clockwise = next(clip.decode(video=0)).rotation
    assert (bottom > 200 > 50 > top) == (counter_clockwise == 90)
    assert {top > 200, bottom > 200} == {True, False}


def test_transparency_stays_in_webp(run, tmp_path):
    (tmp_path / "in").mkdir()
    image = np.full((20, 30, 4), 200, np.uint8)
    image[:, :15, 3] = 0
    for k in range(2):
        image[0, 20] = k
        write_image(tmp_path / "in" / f"{k}.png", image)
    run("in", "-o", "out.webp")
    with Image.open(tmp_path / "out.webp") as file:
        alpha = np.array(file.convert("RGBA"))[..., 3]
    assert (alpha[5, 2], alpha[5, 25]) == (0, 200)


@pytest.mark.parametrize("option", [["--codec", "h264"], ["--crf", 20], ["--resume"]])
def test_what_a_preview_cannot_do_is_refused(run, tmp_path, option):
    make_clip(tmp_path / "in.mp4", 2)
    said = run("in.mp4", "-o", "out.gif", *option, code=1)
    assert said.startswith("Error: ")
    assert option[0] in said
    assert "preview" in said


def test_ctrl_c_leaves_a_preview(tmp_path, averaging):
    make_clip(tmp_path / "in.mp4", 2000)
    command = [sys.executable, "-m", "rife", "interp", "in.mp4", "--fps", "50", "--weights", str(averaging)]
    command += ["--device", "cpu", "--threads", "1", "-v", "-o", "out.gif"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not list(tmp_path.glob(".part-*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.partial.gif"]
    assert pictures(tmp_path / "out.partial.gif")[0]
