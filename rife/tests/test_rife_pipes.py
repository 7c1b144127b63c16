"""Pipes in and out, and outputs that have no room: real processes, real descriptors."""

from __future__ import annotations

import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import pytest
from click.testing import CliRunner
from rife.cli import interp
from rife.color import to_rgb
from video_clips import frames_of, make_clip, md5, random_frame

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
ENOUGH = 120  # seconds that a process may take on a busy machine


@pytest.fixture
def command(averaging):
    base = [sys.executable, "-m", "rife", "interp", "--weights", str(averaging), "--device", "cpu", "--threads", "1"]
    return lambda *args: [*base, *map(str, args)]


def test_y4m_from_ffmpeg_and_to_ffmpeg(tmp_path, command):
    noise = [random_frame("yuv422p", 50, 38, seed) for seed in range(5)]
    kept = [md5(frame) for frame in noise]
    clip = make_clip(tmp_path / "in.mkv", noise, codec="ffv1", pix_fmt="yuv422p", size=(50, 38))
    decode = [FFMPEG, "-v", "error", "-i", clip, "-f", "yuv4mpegpipe", "-"]
    encode = [FFMPEG, "-v", "error", "-i", "-", "-c:v", "ffv1", tmp_path / "out.mkv"]
    with (
        subprocess.Popen(decode, stdout=subprocess.PIPE) as first,
        subprocess.Popen(
            command("-", "--fps", "2x", "-o", "-"), stdin=first.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as ours,
        subprocess.Popen(encode, stdin=ours.stdout) as last,
    ):
        first.stdout.close()
        ours.stdout.close()
        said = ours.stderr.read().decode()
        assert [last.wait(ENOUGH), ours.wait(), first.wait()] == [0, 0, 0], said
    assert "-: 10 frames (5 original" in said  # the summary must not go into the video
    frames = frames_of(tmp_path / "out.mkv")
    assert [frame.time for frame in frames] == [Fraction(k, 50) for k in range(10)]
    assert [md5(frame.frame) for frame in frames[::2]] == kept
    middle = (to_rgb(frames[0].frame) + to_rgb(frames[2].frame)) / 2
    assert (to_rgb(frames[1].frame) - middle).abs().max() < 2.5 / 219


def test_json_goes_to_stderr_beside_a_video_on_stdout(tmp_path, command):
    make_clip(tmp_path / "in.mp4", 3)
    done = subprocess.run(
        command("in.mp4", "-o", "-", "--json"), cwd=tmp_path, capture_output=True, check=True, timeout=ENOUGH
    )
    assert done.stdout.startswith(b"YUV4MPEG2 W64 H48 F50:1")
    assert done.stdout.count(b"FRAME\n") == 6
    assert b'"frames_out": 6' in done.stderr


def test_any_container_that_can_be_streamed_comes_in(tmp_path, command):
    clip = make_clip(tmp_path / "in.mkv", 5, audio="aac")
    with clip.open("rb") as stdin:
        subprocess.run(
            command("-", "--fps", 50, "-o", "out.mkv"),
            cwd=tmp_path,
            stdin=stdin,
            capture_output=True,
            check=True,
            timeout=ENOUGH,
        )
    assert len(frames_of(tmp_path / "out.mkv")) == 10


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path, command):
    make_clip(tmp_path / "in.mp4", 50)
    with subprocess.Popen(
        command("in.mp4", "-o", "-"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ours:
        assert ours.stdout.read(9) == b"YUV4MPEG2"
        ours.stdout.close()
        assert ours.stderr.read() == b""
    assert ours.returncode == 1


def test_a_full_device_is_said_in_one_line(tmp_path, command):
    make_clip(tmp_path / "in.mp4", 50)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("in.mp4", "-o", "-"), cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False, timeout=ENOUGH
        )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("Error: cannot write standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def limited(averaging, tmp_path, monkeypatch):
    """Runs ``rife-interp`` in a fork whose files may have so many bytes only; returns exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", 60)
    arguments = ["in.mp4", "--weights", str(averaging), "--device", "cpu", "--threads", "1"]
    assert CliRunner().invoke(interp, [*arguments, "-o", "whole.mkv"]).exit_code == 0  # builds what is to be built

    def call(limit, *args):
        code = (
            "import resource; from rife.cli import interp; import rife.job\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))\n"
            f"interp({[*arguments, *args]})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=ENOUGH)
        return done.returncode, done.stderr

    return call


@pytest.mark.parametrize(
    ("share", "args", "left"),
    [
        (0.5, ["-o", "out.mkv"], []),
        (0.99, ["-o", "out.mkv"], []),
        (0.99, ["-o", "out.mp4"], []),
        (0.01, ["-o", "out"], []),
        (0.2, ["-o", "out.mp4", "--resume"], [".out.mp4.resume"]),
        (0.01, ["-o", "out.mp4", "--resume"], [".out.mp4.resume"]),
    ],
)
def test_no_room_is_said_in_one_line_and_nothing_is_left(limited, tmp_path, share, args, left):
    code, said = limited(int(share * Path("whole.mkv").stat().st_size), *args)
    assert code == 1
    assert said.startswith("Error: cannot write ")
    assert "File too large" in said
    assert len(said.splitlines()) == 1
    assert ".part-" not in said
    assert sorted(p.name for p in Path().iterdir()) == [*left, "in.mp4", "whole.mkv"]
