"""Several devices on one job: a process for each, and each takes the next segment that nobody has.

Every process decodes the whole source and decides on every pair of frames, so all agree on what is a cut
or a duplicate; only the networks' and the encoders' work is divided. Processes and not threads, since
the parts in Python would wait for each other.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from papershelf.errors import UserError

from rife.segments import WorkFolder

if TYPE_CHECKING:
    from rife.job import Job, Options
    from rife.report import Report

# What a worker cannot know, or knows of its own part only.
_NOT_SHARED = {"input", "output", "settings", "frames_out", "seconds", "wall_seconds"}


def run(job: Job, folder: Path, report: Report, on_frame: Callable[[], object]) -> None:
    """Make all segments of ``job`` that are missing in ``folder``, on all its devices at once.

    Args:
        job: the job.
        folder: its work folder.
        report: gets the counts, and the seconds of all workers together.
        on_frame: called after each frame of any worker.

    Raises:
        UserError: of a worker, or that a worker was killed.
        KeyboardInterrupt: on Ctrl-C; segments that are whole stay.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    workers = {}
    try:
        for device in job.devices:
            ours, theirs = context.Pipe(duplex=False)
            arguments = (options_for(job, device), folder, theirs)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            workers[ours] = (device, worker)
        waiting = dict(workers)
        while waiting:
            for pipe in wait(list(waiting)):
                if (result := _received(pipe, *waiting[pipe], on_frame)) is not None:
                    _add(result, report, job)
                    del waiting[pipe]
    finally:
        for _, worker in workers.values():
            worker.terminate()
            worker.join()


def options_for(job: Job, device: str) -> Options:
    """What the process for one device is told: the whole job's options, and a fair share of the processor."""
    threads = job.options.threads or max(1, torch.get_num_threads() // len(job.devices))
    # One device alone would encode as a run without segments does.
    return replace(job.options, device=device, output=job.output, threads=threads, resume=True)


def _received(
    pipe: Connection, device: str, worker: multiprocessing.Process, on_frame: Callable[[], object]
) -> tuple | None:
    """A worker's report if this is its last message."""
    try:
        message = pipe.recv()
    except EOFError:
        worker.join()
        if worker.exitcode < 0:
            name = signal.Signals(-worker.exitcode).name
            raise UserError(
                f"the process for {device} was ended by {name}: out of memory? try fewer devices at once"
            ) from None
        raise RuntimeError(f"the process for {device} failed; its traceback is above") from None
    if message is None:
        on_frame()
        return None
    if isinstance(message, str):
        raise UserError(message)
    return message


def _add(result: tuple[dict, dict], report: Report, job: Job) -> None:
    shared, own = result
    for name, value in shared.items():  # all workers say the same
        setattr(report, name, value)
    report.frames_out += own["frames_out"]
    for stage, seconds in own["seconds"].items():
        report.seconds[stage] = report.seconds.get(stage, 0.0) + seconds
    job.source.problems.update(own["problems"])


def _work(options: Options, folder: Path, pipe: Connection) -> None:
    """The life of one process. Messages: None for a frame, words for the user's error, at the end the report."""
    from rife import segmented
    from rife.job import plan

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    try:
        job = plan(options)
        report = job.new_report()
        frames = segmented.segment_frames(job)
        segmented.make(job, WorkFolder(folder, frames), report, lambda: pipe.send(None))
        job.source.close()
        shared = {f.name: getattr(report, f.name) for f in fields(report) if f.name not in _NOT_SHARED}
        problems = dict(job.source.problems)
        pipe.send((shared, {"frames_out": report.frames_out, "seconds": report.seconds, "problems": problems}))
    except UserError as error:
        pipe.send(str(error))
    except BrokenPipeError:
        return  # the first process is no more
