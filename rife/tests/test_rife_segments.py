"""Segments and the processes that share them: who makes what, and that it does not show in the result."""

from __future__ import annotations

import json
import os
import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.errors import UserError
from papershelf.images import write_image
from rife.cli import interp
from rife.encoder import EncodeOptions, choose_encoder
from rife.job import Options, plan
from rife.reader import VideoReader
from rife.segments import SegmentedVideo, WorkFolder, stored_packets, work_folder
from video_clips import frames_of, make_clip, packets_of

from rife import workers


@pytest.fixture
def run(averaging, tmp_path, monkeypatch):
    """Runs ``rife-interp`` in an empty folder; returns the report, or the error's one line."""
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        result = CliRunner().invoke(interp, [*map(str, args), "--weights", str(averaging), "--threads", "1", "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr.strip()

    return call


def bytes_of(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


@pytest.mark.parametrize("output", ["out.mp4", "out"])
def test_two_workers_make_what_one_makes(run, tmp_path, output):
    make_clip(tmp_path / "in.mp4", 300, audio="aac")  # 12 s: three segments
    one = run("in.mp4", "--fps", 30, "--device", "cpu", "--resume", "-o", "one_" + output)
    two = run("in.mp4", "--fps", 30, "--device", "cpu,cpu", "-o", "two_" + output)
    assert bytes_of(tmp_path / ("one_" + output)) == bytes_of(tmp_path / ("two_" + output))
    for key in ("frames_in", "frames_out", "originals", "interpolated", "held", "resumed", "drift_seconds"):
        assert one[key] == two[key]
    assert not list(tmp_path.glob(".*"))


def test_a_worker_on_a_gpu_encodes_as_the_whole_job_does(tmp_path, monkeypatch):
    monkeypatch.setattr("rife.job.device_named", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    make_clip(tmp_path / "in.mp4", 2)
    whole = plan(Options(tmp_path / "in.mp4", device="cuda:0,cuda:1", crf=20))
    part = plan(workers.options_for(whole, "cuda:1"))
    alone = plan(Options(tmp_path / "in.mp4", device="cuda:1", crf=20))
    assert part.encode == whole.encode != alone.encode
    for job in (whole, part, alone):
        job.source.close()


def test_a_killed_worker_is_said(run, tmp_path, monkeypatch):
    make_clip(tmp_path / "in.mp4", 3)
    monkeypatch.setattr(workers, "_work", _be_killed)
    assert "ended by SIGKILL" in run("in.mp4", "--device", "cpu,cpu", "-o", "out.mp4", code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def _be_killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_workers_refusal_is_the_commands(run, tmp_path):
    (tmp_path / "frames").mkdir()
    for k, size in enumerate([(48, 64), (48, 96)]):
        write_image(tmp_path / "frames" / f"{k}.png", np.zeros((*size, 3), np.uint8))
    assert "all images must be alike" in run("frames", "--device", "cpu,cpu", "-o", "out.mp4", code=1)


def test_a_segment_belongs_to_the_first_that_asks(tmp_path):
    first, second = WorkFolder(tmp_path, 10), WorkFolder(tmp_path, 10)
    first.packets(2).touch()  # done before
    assert [first.takes(k) for k in (0, 9, 10)] == [True, True, True]
    assert [second.takes(k) for k in (0, 9, 19, 29, 30)] == [False, False, False, False, True]
    assert [first.takes(k) for k in (5, 25, 35)] == [True, False, False]


def test_traces_of_the_dead_are_cleared_and_the_whole_is_kept(tmp_path):
    path = tmp_path / "work"
    with work_folder(path, 10, {"a": 1}) as folder:
        folder.packets(0).touch()
        assert folder.takes(10)
        (path / ".part-000001").touch()
        (folder.images / ".part-x-00000000.png").touch()
    with work_folder(path, 10, {"a": 1}) as folder:
        assert folder.takes(10)
        assert not folder.takes(0)
        assert not list(path.rglob(".part-*"))


def test_another_origin_is_refused_and_named(tmp_path):
    with work_folder(tmp_path / "work", 10, {"--crf": 17}):
        pass
    with (
        pytest.raises(UserError, match=r"--crf was 17 when the work began, and is 20.*delete"),
        work_folder(tmp_path / "work", 10, {"--crf": 20}),
    ):
        pass


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9", "prores", "ffv1"])
def test_joined_segments_decode_as_one_video(tmp_path, run, codec, monkeypatch):
    monkeypatch.setattr("rife.segmented.SECONDS", Fraction(1, 5))
    make_clip(tmp_path / "in.mkv", 12, codec="ffv1", audio="flac")
    run("in.mkv", "--device", "cpu", "--resume", "--codec", codec, "-o", "out.mkv")
    frames = frames_of(tmp_path / "out.mkv")
    assert [frame.time for frame in frames] == [Fraction(k, 50) for k in range(24)]
    assert packets_of(tmp_path / "out.mkv", "audio") == packets_of(tmp_path / "in.mkv", "audio")


def test_packets_come_back_as_the_encoder_gave_them(tmp_path):
    source = frames_of(make_clip(tmp_path / "in.mkv", 25))
    with VideoReader(tmp_path / "in.mkv") as reader:
        info = reader.info
    choice = choose_encoder(EncodeOptions(), info, "mp4")
    (tmp_path / "work").mkdir()
    target = SegmentedVideo(WorkFolder(tmp_path / "work", 10), choice, info, Fraction(25))
    for k, frame in enumerate(source):
        target.encode(k, frame.frame)
    target.finish()
    packets = list(stored_packets(target.folder, 3))
    assert sorted(p.pts for p in packets) == list(range(25))
    assert [p.dts for p in packets] == sorted(p.dts for p in packets)
    assert [p.pts for p in packets if p.is_keyframe] == [0, 10, 20]


@pytest.mark.parametrize("devices", ["foo", "cpu,", "cuda:x", "cpu cpu"])
def test_devices_that_do_not_exist_are_refused(run, tmp_path, devices):
    make_clip(tmp_path / "in.mp4", 2)
    assert run("in.mp4", "--device", devices, code=1).startswith(f"Error: --device {devices}: expected auto")
