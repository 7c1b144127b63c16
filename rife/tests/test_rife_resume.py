"""Runs that were killed go on to the same bytes; what does not fit together is refused."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from papershelf.errors import UserError
from rife.cli import interp
from rife.interpolator import Interpolator
from rife.video import VideoSource
from video_clips import frames_of, make_clip, packets_of

from rife import segmented

# Loads everything once; each line of arguments is then run by a fork, which is quick to start and to kill.
STARTER = """
import json, os, sys
from fractions import Fraction
from rife import segmented
from rife.cli import interp
segmented.SECONDS = Fraction(1, 5)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open("said.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        interp(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Starter:
    def __init__(self, folder: Path) -> None:
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", STARTER], cwd=folder, preexec_fn=heeding, **pipes)

    def start(self, *args: object) -> int:
        self.process.stdin.write(json.dumps([str(a) for a in args]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        return int(self.process.stdout.readline())

    def run(self, *args: object) -> int:
        self.start(*args)
        return self.wait()


@pytest.fixture
def starter(tmp_path):
    made = Starter(tmp_path)
    yield made
    made.process.stdin.close()
    made.process.wait()
    made.process.stdout.close()


@pytest.fixture
def run(averaging, tmp_path, monkeypatch):
    """Runs ``rife-interp`` in an empty folder; returns the report, or the error's one line."""
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        result = CliRunner().invoke(interp, [*map(str, args), "--weights", str(averaging), "--device", "cpu", "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr.strip()

    return call


def digest(path: Path) -> list[tuple[str, bytes]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name if path.is_dir() else "", file.read_bytes()) for file in files]


LONG = pytest.mark.slow


@pytest.mark.parametrize(
    ("output", "kills"), [("out.mkv", 2), pytest.param("out.mp4", 10, marks=LONG), pytest.param("out", 3, marks=LONG)]
)
def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path, averaging, starter, output, kills):
    make_clip(tmp_path / "in.mkv", 50, audio="aac", chapters=True)
    command = ["in.mkv", "--fps", 60, "--weights", averaging, "--device", "cpu", "--threads", 1, "--resume", "--json"]
    for name in ("warm_", "whole_"):  # the first run may have kernels to build
        began = time.perf_counter()
        assert starter.run(*command, "-o", name + output) == 0
        usual = time.perf_counter() - began
    want = digest(tmp_path / ("whole_" + output))
    rng = random.Random(20)
    killed = ended = 0
    while killed < kills:
        child = starter.start(*command, "-o", output)
        time.sleep(rng.uniform(0, usual))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        code = starter.wait()
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if (tmp_path / output).exists():  # begin again
            ended += 1
            assert digest((tmp_path / output).rename(tmp_path / f"{ended}_{output}")) == want
    assert starter.run(*command, "-o", output) == 0
    assert digest(tmp_path / output) == want
    assert not list(tmp_path.glob(".*"))  # neither work folder nor half-written files


@pytest.fixture
def calls(monkeypatch):
    """Counts pairs that networks see; raises where ``calls.limit`` is reached."""

    class Calls:
        count, limit = 0, 10**9

    plain = Interpolator.between

    def between(*args, **kwargs):
        if Calls.count >= Calls.limit:
            raise UserError("no room left")
        Calls.count += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(Interpolator, "between", between)
    return Calls


@pytest.fixture
def interrupted(run, tmp_path, monkeypatch, calls):
    """The work folder of a run that ended in its 13th pair of frames; a segment has 5 of them."""
    monkeypatch.setattr(segmented, "SECONDS", Fraction(1, 5))
    make_clip(tmp_path / "in.mp4", 20)
    calls.limit = 12
    assert "no room left" in run("in.mp4", "--resume", "-o", "out.mp4", code=1)
    calls.count, calls.limit = 0, 10**9
    return tmp_path / ".out.mp4.resume"


def test_only_what_is_missing_is_made(run, interrupted, calls):
    assert len(list(interrupted.glob("*.packets"))) == 2
    report = run("in.mp4", "--resume", "-o", "out.mp4")
    assert calls.count == 9  # 19 pairs, of which 10 are in the two segments
    assert (report["resumed"], report["frames_out"]) == (20, 40)
    assert (report["originals"], report["interpolated"], report["held"]) == (20, 19, 1)


def test_tiles_and_batches_are_those_of_the_start(run, interrupted, monkeypatch):
    seen = []
    plain = Interpolator.from_file
    monkeypatch.setattr(Interpolator, "from_file", lambda *a, **how: seen.append(how["memory"]) or plain(*a, **how))
    monkeypatch.setattr(segmented, "free_memory", lambda _: 10**6)
    at_start = float((interrupted / "memory").read_text())
    run("in.mp4", "--resume", "-o", "out.mp4")
    assert seen == [int(at_start * 1e9)]
    run("in.mp4", "--resume", "-o", "other.mp4")
    assert seen[1] == 500_000


def test_without_resume_nothing_is_left_behind(run, tmp_path, calls):
    make_clip(tmp_path / "in.mp4", 20)
    calls.limit = 12
    assert "no room left" in run("in.mp4", "-o", "out.mp4", code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_one_run_at_a_time(run, interrupted):
    with (interrupted / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is working" in run("in.mp4", "--resume", "-o", "out.mp4", code=1)


def test_ctrl_c_leaves_a_playable_file_and_the_work(tmp_path, averaging, starter):
    make_clip(tmp_path / "in.mp4", 400, audio="aac")
    command = ["in.mp4", "--fps", 240, "--weights", averaging, "--device", "cpu", "--resume", "-o", "out.mp4"]
    child = starter.start(*command)
    while len(list(tmp_path.glob(".out.mp4.resume/*.packets"))) < 2:
        time.sleep(0.02)
    os.kill(child, signal.SIGINT)
    assert starter.wait() == 130
    frames = len(frames_of(tmp_path / "out.partial.mp4"))
    assert frames >= 2 * 48
    assert frames % 48 == 0
    assert packets_of(tmp_path / "out.partial.mp4", "audio")
    assert len(list(tmp_path.glob(".out.mp4.resume/*.packets"))) == frames // 48


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-", "-o", "out.mp4"], "standard input"),
        (["in.mp4", "-o", "-"], "y4m"),
        (["in.mp4", "-o", "out.y4m"], "y4m"),
    ],
)
def test_what_cannot_be_resumed_is_refused(run, tmp_path, monkeypatch, args, said):
    make_clip(tmp_path / "in.mp4", 2)
    if args[0] == "-":
        monkeypatch.setattr("rife.job.open_source", lambda *_: VideoSource(tmp_path / "in.mp4"))
    assert said in run(*args, "--resume", code=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: make_clip(folder / "in.mp4", 21), "the input was in.mp4"),
        (["--crf", 30], "--crf was None when the work began, and is 30.0"),
        (["--fps", 75], "--fps was 2x when the work began, and is 75"),
        (["--scale", 0.5], "--scale was"),
    ],
)
def test_a_changed_input_or_option_is_named(run, tmp_path, interrupted, change, said):
    if callable(change):
        change(tmp_path)
        change = []
    message = run("in.mp4", "--resume", "-o", "out.mp4", *change, code=1)
    assert message.startswith("Error: ")
    assert len(message.splitlines()) == 1
    assert said in message
    assert ".out.mp4.resume" in message
    shutil.rmtree(tmp_path / ".out.mp4.resume")  # the remedy that it names
    assert run("in.mp4", "--resume", "-o", "out.mp4", *change)["resumed"] == 0
