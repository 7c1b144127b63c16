"""From a source to a sink: decoding, inference and encoding in three threads joined by bounded queues.

The decoding thread turns frames into RGB, the calling thread walks the timeline pair by pair and makes
the new frames, the encoding thread turns those back and writes. A queue holds a few frames at
most, so memory does not grow with the length of the video. Audio and the like pass through as packets.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rife.decisions import Decider, DecisionOptions, Pair, as_record
from rife.overlays import OverlayTracker, lock_overlay
from rife.reader import Copied
from rife.timeline import Slot, Timeline, slowed

if TYPE_CHECKING:
    import av
    import numpy as np

    from rife.interpolator import Interpolator
    from rife.report import Report

QUEUE = 8  # items between two threads, at most
QUEUE_BYTES = 256 << 20  # of frames between two threads, as far as two of them take less


@dataclass(frozen=True)
class Picture:
    """A source frame, as it was decoded and as the networks see it."""

    frame: av.VideoFrame | np.ndarray
    rgb: Tensor  # [3, H, W]
    alpha: Tensor | None  # [1, H, W], where the format has one
    time: Fraction  # seconds, on the output's clock
    duration: Fraction
    number: int  # in the source, from 0
    source_time: Fraction  # seconds, on the source's clock


class Shown(Protocol):
    """What a source says of one frame."""

    frame: av.VideoFrame | np.ndarray
    time: Fraction
    duration: Fraction


class Source(Protocol):
    """Where frames come from: :class:`rife.video.VideoSource`, :class:`rife.sequence.ImageSource`."""

    width: int
    height: int

    def events(self) -> Iterator[Shown | Copied]: ...
    def rgb(self, frame: object) -> Tensor: ...
    def alpha(self, frame: object) -> Tensor | None: ...


class Sink(Protocol):
    """Where frames go: :class:`rife.video.VideoSink`, :class:`rife.sequence.ImageSink`.

    Frames come in order; those that it does not want, since they are there already, are counted only.
    """

    def wants(self, index: int) -> bool: ...
    def write_original(self, index: int, frame: object, rgb: Tensor, alpha: Tensor | None) -> None: ...
    def write_new(self, index: int, rgb: Tensor, alpha: Tensor | None) -> None: ...
    def copy(self, item: Copied) -> None: ...


@dataclass(frozen=True)
class _Original:
    index: int
    picture: Picture


@dataclass(frozen=True)
class _New:
    index: int
    rgb: Tensor
    alpha: Tensor | None


class Stopped(Exception):
    """The run was interrupted; every frame made up to there has been written."""


def run(
    source: Source,
    sink: Sink,
    interpolator: Interpolator,
    timeline: Timeline,
    report: Report,
    *,
    decisions: DecisionOptions,
    slowmo: Fraction = Fraction(1),
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Interpolate all of ``source`` into ``sink`` and fill ``report``; ``on_frame`` follows each output frame.

    Raises:
        Stopped: on Ctrl-C, after all frames made by then have been written.
        UserError: from the source or the sink, whichever thread it happened in.
    """
    renderer = _Renderer(interpolator, timeline, decisions, report, sink.wants)
    stop = threading.Event()
    room = max(2, min(QUEUE, QUEUE_BYTES // (12 * source.width * source.height)))  # 3 channels of 4 bytes
    decoded, finished = _Channel(stop, room), _Channel(stop, room)
    with ThreadPoolExecutor(2, "rife") as pool:
        decoding = pool.submit(_decode, source, decoded, timeline.start, slowmo, report)
        encoding = pool.submit(_encode, sink, finished, report, on_frame)
        try:
            for item in renderer.items(decoded):
                finished.put(item)
            finished.end()
            encoding.result()
            decoding.result()
        except KeyboardInterrupt:
            decoded.abandon()
            finished.end()
            encoding.result()
            raise Stopped from None
        except _Abandoned:
            # The other side of a queue has gone: its own error is the one to show.
            for side in (encoding, decoding):
                side.result()
            raise
        finally:
            stop.set()


def _decode(source: Source, out: _Channel, start: Fraction, slowmo: Fraction, report: Report) -> None:
    torch.set_num_threads(1)  # of this thread: two teams of threads would wait for each other
    events, number = source.events(), 0
    try:
        while True:
            with report.timed("decode"):
                event = next(events, None)
                if event is not None and not isinstance(event, Copied):
                    time = slowed(event.time, start, slowmo)
                    rgb, alpha = source.rgb(event.frame), source.alpha(event.frame)
                    event = Picture(event.frame, rgb, alpha, time, event.duration * slowmo, number, event.time)
                    number += 1
            if event is None:
                return
            out.put(event)
    except _Abandoned:
        pass
    finally:
        out.end()


def _encode(sink: Sink, items: _Channel, report: Report, on_frame: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # of this thread, as above
    try:
        for item in items:
            with report.timed("encode"):
                if isinstance(item, _Original):
                    picture = item.picture
                    sink.write_original(item.index, picture.frame, picture.rgb, picture.alpha)
                elif isinstance(item, _New):
                    sink.write_new(item.index, item.rgb, item.alpha)
                else:
                    sink.copy(item)
                    continue
            report.frames_out += 1
            on_frame()
    finally:
        items.abandon()


class _Renderer:
    """Walks the timeline pair by pair."""

    def __init__(
        self,
        interpolator: Interpolator,
        timeline: Timeline,
        decisions: DecisionOptions,
        report: Report,
        wants: Callable[[int], bool],
    ) -> None:
        self.interpolator, self.timeline, self.report, self.wants = interpolator, timeline, report, wants
        self.decider = Decider(decisions)
        self.at_cuts = decisions.cut
        self.overlays = OverlayTracker() if decisions.lock_overlays else None

    def items(self, events: _Channel) -> Iterator[_Original | _New | Copied]:
        """The output frames in order, and in between the packets to copy."""
        last = None
        for event in events:
            if isinstance(event, Copied):
                yield event
                continue
            last = event
            self.report.frames_in += 1
            with self.report.timed("decide"):
                pairs = self.decider.push(event)
            for pair in pairs:
                yield from self._between(pair)
        for pair in self.decider.finish():
            yield from self._between(pair)
        self.report.repeated_drawings = self.decider.dropped
        if last is not None:
            end = last.time + last.duration
            self.report.source_seconds = end - self.timeline.start
            yield from self._shown(last, self.timeline.held(last.time, end))

    def _between(self, pair: Pair) -> Iterator[_Original | _New]:
        a, b = pair.left, pair.right
        slots = self.timeline.between(a.time, b.time)
        laid_over = self.overlays.mask(a.rgb, b.rgb) if self.overlays else None
        if pair.apart:
            self.report.cuts.append(as_record(pair))
        if pair.kind == "equal":
            self.report.duplicates += 1
        if pair.kind == "equal" or (pair.apart and self.at_cuts == "hold"):
            yield from self._shown(a, slots)
            return
        new = [slot for slot in slots if slot.alpha]
        yield from self._shown(a, slots[: len(slots) - len(new)])
        if pair.apart and self.at_cuts == "nearest":
            nearer_b = [slot.alpha >= Fraction(1, 2) for slot in new]
            yield from self._shown(a, [slot for slot, later in zip(new, nearer_b, strict=True) if not later])
            yield from self._shown(b, [slot for slot, later in zip(new, nearer_b, strict=True) if later])
            return
        self.report.interpolated += len(new)
        wanted = [self.wants(slot.index) for slot in new]
        if not any(wanted):
            return
        # All or none: the last bits of a frame depend on how many are made at once.
        alphas = [slot.alpha for slot in new]
        with self.report.timed("infer"):
            if pair.apart:
                frames = torch.stack([torch.lerp(a.rgb, b.rgb, float(t)) for t in alphas])
            else:
                frames = self.interpolator.between(a.rgb, b.rgb, alphas).cpu()
                if laid_over is not None:
                    frames = lock_overlay(frames, a.rgb, b.rgb, alphas, laid_over)
        for slot, rgb in itertools.compress(zip(new, frames, strict=True), wanted):
            # Transparency moves too little to deserve a flow: it is mixed.
            alpha = None if a.alpha is None else torch.lerp(a.alpha, b.alpha, float(slot.alpha))
            yield _New(slot.index, rgb, alpha)

    def _shown(self, picture: Picture, slots: list[Slot]) -> Iterator[_Original]:
        for slot in slots:
            self.report.originals += slot.time == picture.time
            self.report.held += slot.time != picture.time
            if self.wants(slot.index):
                yield _Original(slot.index, picture)


class _Abandoned(Exception):
    """Nobody reads, or nobody will write, the other end of a channel."""


class _Channel:
    """A bounded queue between two threads that either end can leave without the other waiting for ever."""

    _END = object()

    def __init__(self, stop: threading.Event, room: int) -> None:
        self._items: queue.Queue = queue.Queue(room)
        self._stop, self._gone = stop, threading.Event()

    def put(self, item: object) -> None:
        while not (self._stop.is_set() or self._gone.is_set()):
            try:
                return self._items.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise _Abandoned

    def end(self) -> None:
        """No more items will come."""
        with contextlib.suppress(_Abandoned):
            self.put(self._END)

    def abandon(self) -> None:
        """No more items will be taken."""
        self._gone.set()

    def __iter__(self) -> Iterator:
        while not self._stop.is_set():
            try:
                item = self._items.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is self._END:
                return
            yield item
