"""From a source to a sink: decoding, inference and encoding in three threads joined by bounded queues.

The decoding thread turns frames into RGB, the calling thread walks the timeline pair by pair and makes
the new frames, the encoding thread turns those back and writes. A queue holds :data:`QUEUE` items at
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

from rife.reader import Copied
from rife.timeline import Slot, Timeline, slowed

if TYPE_CHECKING:
    import av
    import numpy as np

    from rife.interpolator import Interpolator
    from rife.report import Report

QUEUE = 8  # items between two threads


@dataclass(frozen=True)
class Picture:
    """A source frame, as it was decoded and as the networks see it."""

    frame: av.VideoFrame | np.ndarray
    rgb: Tensor  # [3, H, W]
    alpha: Tensor | None  # [1, H, W], where the format has one
    time: Fraction  # seconds, on the output's clock
    duration: Fraction


class Shown(Protocol):
    """What a source says of one frame."""

    frame: av.VideoFrame | np.ndarray
    time: Fraction
    duration: Fraction


class Source(Protocol):
    """Where frames come from: :class:`rife.video.VideoSource`, :class:`rife.sequence.ImageSource`."""

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
    slowmo: Fraction = Fraction(1),
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Interpolate all of ``source`` into ``sink`` and fill ``report``; ``on_frame`` follows each output frame.

    Raises:
        Stopped: on Ctrl-C, after all frames made by then have been written.
        UserError: from the source or the sink, whichever thread it happened in.
    """
    stop = threading.Event()
    decoded, finished = _Channel(stop), _Channel(stop)
    with ThreadPoolExecutor(2, "rife") as pool:
        decoding = pool.submit(_decode, source, decoded, timeline.start, slowmo, report)
        encoding = pool.submit(_encode, sink, finished, report, on_frame)
        try:
            for item in _render(decoded, interpolator, timeline, report, sink.wants):
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
    events = source.events()
    try:
        while True:
            with report.timed("decode"):
                event = next(events, None)
                if event is not None and not isinstance(event, Copied):
                    time = slowed(event.time, start, slowmo)
                    rgb, alpha = source.rgb(event.frame), source.alpha(event.frame)
                    event = Picture(event.frame, rgb, alpha, time, event.duration * slowmo)
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


def _render(
    events: _Channel, interpolator: Interpolator, timeline: Timeline, report: Report, wants: Callable[[int], bool]
) -> Iterator[_Original | _New | Copied]:
    """The output frames in order, and in between the packets to copy."""
    left = None
    for event in events:
        if isinstance(event, Copied):
            yield event
            continue
        report.frames_in += 1
        if left is not None:
            yield from _between(left, event, timeline.between(left.time, event.time), interpolator, report, wants)
        left = event
    if left is not None:
        end = left.time + left.duration
        report.source_seconds = end - timeline.start
        yield from _shown(left, timeline.held(left.time, end), report, wants)


def _between(
    a: Picture,
    b: Picture,
    slots: list[Slot],
    interpolator: Interpolator,
    report: Report,
    wants: Callable[[int], bool],
) -> Iterator[_Original | _New]:
    if torch.equal(a.rgb, b.rgb):  # nothing moves: a network would only add its error
        report.duplicates += 1
        yield from _shown(a, slots, report, wants)
        return
    new = [slot for slot in slots if slot.alpha]
    yield from _shown(a, slots[: len(slots) - len(new)], report, wants)
    report.interpolated += len(new)
    wanted = [wants(slot.index) for slot in new]
    if not any(wanted):
        return
    # All or none: the last bits of a frame depend on how many are made at once.
    with report.timed("infer"):
        frames = interpolator.between(a.rgb, b.rgb, [slot.alpha for slot in new]).cpu()
    for slot, rgb in itertools.compress(zip(new, frames, strict=True), wanted):
        # Transparency moves too little to deserve a flow: it is mixed.
        alpha = None if a.alpha is None else torch.lerp(a.alpha, b.alpha, float(slot.alpha))
        yield _New(slot.index, rgb, alpha)


def _shown(picture: Picture, slots: list[Slot], report: Report, wants: Callable[[int], bool]) -> Iterator[_Original]:
    for slot in slots:
        report.originals += slot.time == picture.time
        report.held += slot.time != picture.time
        if wants(slot.index):
            yield _Original(slot.index, picture)


class _Abandoned(Exception):
    """Nobody reads, or nobody will write, the other end of a channel."""


class _Channel:
    """A bounded queue between two threads that either end can leave without the other waiting for ever."""

    _END = object()

    def __init__(self, stop: threading.Event) -> None:
        self._items: queue.Queue = queue.Queue(QUEUE)
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
