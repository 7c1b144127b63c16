"""A run in segments: made by this process or by one for each device, joined at the end.

``--resume`` works like this, and so do several devices. See :mod:`rife.segments` for what lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from papershelf.devices import device_named
from papershelf.files import atomic_path

from rife import workers
from rife.encoder import EncoderChoice, VideoEncoder, choose_encoder
from rife.muxer import Muxer, container_of
from rife.origin import origin_of
from rife.pipeline import Sink, Stopped
from rife.reader import Copied, VideoReader
from rife.segments import SECONDS, SegmentedVideo, WorkFolder, remove, stored_packets, work_folder, write_whole
from rife.sequence import ImageSink
from rife.tiling import SHARE, free_memory
from rife.timeline import slowed
from rife.video import VideoSink, partial_name

if TYPE_CHECKING:
    from fractions import Fraction

    from rife.job import Job
    from rife.report import Report


def run(job: Job, report: Report) -> None:
    """Make the output of ``job`` in segments, going on with what an earlier run left.

    Raises:
        UserError: the work folder is of another input or other options, or something cannot be written.
        KeyboardInterrupt: on Ctrl-C; its text says where what was done by then lies.
    """
    frames = segment_frames(job)
    choice = encoder_choice(job)
    path = job.output.with_name(f".{job.output.name}.resume")
    with work_folder(path, frames, origin_of(job, choice, frames)) as folder:
        try:
            job = _with_memory_of_the_start(job, folder)
            with job.progress(folder.frames_kept()) as bar:
                if len(job.devices) > 1:
                    workers.run(job, folder.path, report, bar.update)
                else:
                    make(job, folder, report, bar.update)
            total = report.originals + report.interpolated + report.held
            report.resumed, report.frames_out = total - report.frames_out, total
            _finish(job, choice, folder, total, report)
        except (Stopped, KeyboardInterrupt):
            raise KeyboardInterrupt(_what_is_left(job, choice, folder)) from None
        except BaseException:
            if not job.options.resume:
                remove(path)
            raise
        remove(path)


def segment_frames(job: Job) -> int:
    """Frames of a segment."""
    return max(1, round(SECONDS * job.timeline.fps))


def encoder_choice(job: Job) -> EncoderChoice | None:
    """The encoder of a job; None where it writes images."""
    return choose_encoder(job.encode, job.source.info, container_of(job.output)) if job.kind == "video" else None


def make(job: Job, folder: WorkFolder, report: Report, on_frame: Callable[[], object]) -> None:
    """Make the segments that are missing and that no other process is at."""
    # cuDNN may take sums in another order from run to run otherwise.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    with _sink(job, folder) as sink:
        job.render(sink, report, on_frame)


def _with_memory_of_the_start(job: Job, folder: WorkFolder) -> Job:
    """The job with the memory that was free when the work began: the last bits depend on tiles and batches."""
    if job.options.memory is not None:
        return job
    if not folder.memory.exists():
        free = min(free_memory(device_named(name)) for name in job.devices)
        write_whole(folder.memory, str(SHARE * free / len(job.devices) / 1e9))
    return replace(job, options=replace(job.options, memory=float(folder.memory.read_text())))


@contextmanager
def _sink(job: Job, folder: WorkFolder) -> Iterator[Sink]:
    choice = encoder_choice(job)
    if choice is None:
        yield ImageSink(folder.images, job.image_suffix, job.source.dtype, job.source.channels, folder.takes)
        return
    segments = SegmentedVideo(folder, choice, job.source.info, job.timeline.fps)
    try:
        yield VideoSink(choice.spec, segments)
        segments.finish()
    finally:
        segments.close()


def _finish(job: Job, choice: EncoderChoice | None, folder: WorkFolder, total: int, report: Report) -> None:
    """Turn the work folder, which holds all ``total`` frames, into the output."""
    if choice is None:
        if job.output.exists():
            job.output.rmdir()  # it is empty, see check_free
        folder.images.rename(job.output)
        return
    report.output |= {"codec": choice.codec, "encoder": choice.encoder, "pix_fmt": choice.spec.pix_fmt}
    with atomic_path(job.output) as part:
        report.warnings += [*choice.notes, *_join(job, choice, folder, -(-total // folder.frames), part)]


def _join(
    job: Job, choice: EncoderChoice, folder: WorkFolder, segments: int, path: Path, *, whole: bool = True
) -> list[str]:
    """Write the first ``segments`` as a video with the source's other streams; returns what was left out.

    Where they are not the ``whole``, the other streams end with them.
    """
    encoder = VideoEncoder(choice, job.source.info, job.timeline.fps)  # encodes nothing: the muxer asks for its form
    reader = VideoReader(job.options.input) if job.source.reader else None
    start, tick = job.timeline.start, encoder.time_base
    try:
        muxer = Muxer(path, encoder, reader, audio=job.sound, stretch=job.slowmo, name=job.output)
        others = reader.copied() if reader else iter(())
        other = next(others, None)
        for packet in stored_packets(folder, segments):
            while other is not None and slowed(_time(other), start, job.slowmo) <= start + packet.dts * tick:
                muxer.mux_copied(other.packet, other.stream_index)
                other = next(others, None)
            muxer.mux_video(packet)
        while whole and other is not None:
            muxer.mux_copied(other.packet, other.stream_index)
            other = next(others, None)
        muxer.close()
    finally:
        encoder.close()
        if reader:
            reader.close()
    return muxer.notes()


def _time(item: Copied) -> Fraction:
    ticks = item.packet.pts if item.packet.dts is None else item.packet.dts
    return (ticks or 0) * item.packet.time_base


def _what_is_left(job: Job, choice: EncoderChoice | None, folder: WorkFolder) -> str:
    """Leave a playable file of what is done; returns the message about it."""
    words = ["Stopped"]
    if choice and (done := folder.done()):
        partial = partial_name(job.output)
        with atomic_path(partial) as part:
            _join(job, choice, folder, done, part, whole=False)
        words.append(f"the video so far is playable: {partial}")
    if job.options.resume:
        words.append("the same command goes on from here")
    else:
        remove(folder.path)
    return "; ".join(words)
