"""Reading a video: frames with exact times, and every other stream's packets as they are.

Times are rationals in seconds, straight from the presentation time stamps. Containers that round them
(Matroska and WebM to 1 ms, FLV too) are put back on the grid of the stream's rate where each stamp lies
within one tick of it: otherwise no output time of a 29.97 fps film would ever hit an original frame.
Whatever is wrong with a file is mended where the frames tell how, and counted in ``problems``.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Discard, Disposition
from papershelf.errors import UserError

from rife import side_data
from rife.color import ColorSpec


@dataclass(frozen=True)
class Decoded:
    """A frame of the video.

    Attributes:
        frame: as the decoder gave it.
        time: when it is shown, in seconds; strictly increasing over a video.
        duration: how long the file says it lasts, in seconds (matters for the last frame).
    """

    frame: av.VideoFrame
    time: Fraction
    duration: Fraction


@dataclass(frozen=True)
class Copied:
    """A packet of another stream, to be written as it is."""

    packet: av.Packet
    stream_index: int


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once its first frame is decoded.

    Attributes:
        name: the file's name, for messages.
        container: FFmpeg's name of the format.
        codec: name of the codec (``h264``).
        width, height: of the coded picture, before rotation and aspect.
        color: how codes are to be read, with the stream's own tags.
        time_base: tick of the file's time stamps, in seconds.
        start: time of the first frame, in seconds; may be negative.
        duration: seconds from the first frame to the end of the last, where the file says it.
        frames: how many, exact or estimated; None where unknown.
        average_rate: frames a second over the whole file, or None.
        nominal_rate: the rate whose grid holds the time stamps, or None.
        sample_aspect_ratio: width to height of a pixel, or None where the file does not say.
        display_matrix: rotation and flips that a player applies, or None.
        rotation: degrees counter-clockwise of that matrix.
        hdr: static HDR metadata, or None.
        interlaced: frames hold two fields of different times.
        bit_rate: of the video stream in bits a second, or None.
    """

    name: str
    container: str
    codec: str
    width: int
    height: int
    color: ColorSpec
    time_base: Fraction
    start: Fraction
    duration: Fraction | None
    frames: int | None
    average_rate: Fraction | None
    nominal_rate: Fraction | None
    sample_aspect_ratio: Fraction | None
    display_matrix: tuple[int, ...] | None
    rotation: int
    hdr: side_data.Hdr10 | None
    interlaced: bool
    bit_rate: int | None

    @property
    def pix_fmt(self) -> str:
        return self.color.pix_fmt


class VideoReader:
    """Opens a video and yields its frames and the packets of its other streams, in file order.

    Args:
        path: any file FFmpeg reads, or ``-`` for standard input.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Raises:
        UserError: there is no such file, or no video that can be decoded in it.
    """

    def __init__(self, path: Path | str, threads: int = 0):
        self.name = "standard input" if str(path) == "-" else str(path)
        self.problems: Counter[str] = Counter()
        self.container = self._open(path)
        try:
            self.video = self._choose_stream()
            self.copied_streams = [
                s for s in self.container.streams if s is not self.video and s.discard != Discard.all
            ]
            self.video.thread_type = "AUTO"
            self.video.thread_count = threads
            self._rate: Fraction | None = None
            self._head: list[Decoded | Copied] = []
            self._rest = self._read()
            self.info = self._look()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; frames and packets already taken stay valid."""
        self._rest.close()
        self.container.close()

    def events(self) -> Iterator[Decoded | Copied]:
        """Frames and packets from the beginning; once only.

        Raises:
            UserError: the picture's size or pixel format changes on the way.
        """
        head, self._head = self._head, []
        return itertools.chain(head, self._rest)

    def copied(self) -> Iterator[Copied]:
        """The other streams' packets from the beginning, without decoding the video; instead of :meth:`events`."""
        head, self._head = self._head, []
        yield from (event for event in head if isinstance(event, Copied))
        if self.copied_streams:
            yield from (Copied(p, p.stream_index) for p in self._packets(self.copied_streams) if _counts(p))

    def cover(self, stream_index: int) -> bytes | None:
        """The file of a cover picture; these come before the first frame."""
        return self._covers.get(stream_index)

    def _open(self, path: Path | str) -> av.container.InputContainer:
        # Tags that are no UTF-8 come back as the same bytes.
        options = {"metadata_errors": "surrogateescape"}
        if str(path) == "-":
            if sys.stdin.isatty():
                raise UserError("standard input is a terminal; pipe a video into it, such as ffmpeg's y4m")
            source: object = sys.stdin.buffer
            options["buffer_size"] = 1 << 20
        else:
            path = Path(path)
            if path.is_dir():
                raise UserError(f"{path} is a folder; expected a video file")
            if path.exists() and path.is_file() and path.stat().st_size == 0:
                raise UserError(f"{path} is empty; expected a video file")
            source = str(path.absolute())  # FFmpeg would read "a:b.mp4" as a protocol
        try:
            return av.open(source, **options)
        except av.error.FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except (av.FFmpegError, OSError) as error:
            raise UserError(
                f"{self.name} cannot be read as a video ({_reason(error)}); expected a file that FFmpeg plays"
            ) from error

    def _choose_stream(self) -> av.VideoStream:
        films = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not films:
            kinds = sorted({s.type for s in self.container.streams}) or ["nothing"]
            raise UserError(f"{self.name} has no video stream (it holds {', '.join(kinds)}); expected a video")
        # A default stream wins over others, the larger picture over the smaller.
        best = max(films, key=lambda s: (bool(s.disposition & Disposition.default), (s.width or 0) * (s.height or 0)))
        if best.codec_context is None:
            raise UserError(f"{self.name}: its video codec is unknown to FFmpeg; convert the video first")
        return best

    def _look(self) -> VideoInfo:
        """Decode up to the first frame, which says what the header may not."""
        for event in self._rest:
            self._head.append(event)
            if isinstance(event, Decoded):
                break
        else:
            webp = self.video.codec_context.codec.canonical_name == "webp"
            why = "FFmpeg reads no animated WebP, make it a GIF" if webp else "the file is damaged or has no pictures"
            raise UserError(f"{self.name}: not one frame could be decoded; {why}")
        covers = {s.index for s in self.copied_streams if s.disposition & Disposition.attached_pic}
        others = (e for e in self._head if isinstance(e, Copied) and e.stream_index in covers)
        self._covers = {e.stream_index: bytes(e.packet) for e in others}
        stream, frame, start = self.video, event.frame, event.time
        duration = stream.duration and stream.duration * stream.time_base
        if not duration and self.container.duration:
            end = Fraction(self.container.duration + (self.container.start_time or 0), av.time_base)
            duration = max(end - start, Fraction(0)) or None
        frames = stream.frames or None
        if frames is None and duration and stream.average_rate:
            frames = max(1, round(duration * stream.average_rate))
        return VideoInfo(
            name=self.name,
            container=self.container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=frame.width,
            height=frame.height,
            color=ColorSpec.of(frame, side_data.chroma_siting(frame)),
            time_base=stream.time_base,
            start=start,
            duration=duration or None,
            frames=frames,
            average_rate=stream.average_rate or None,
            nominal_rate=stream.base_rate or None,
            sample_aspect_ratio=stream.sample_aspect_ratio or None,
            display_matrix=side_data.display_matrix(frame),
            rotation=frame.rotation,
            hdr=side_data.hdr10(frame),
            interlaced=frame.interlaced_frame or stream.codec_context.field_order > 1,
            bit_rate=stream.codec_context.bit_rate,
        )

    def _read(self) -> Iterator[Decoded | Copied]:
        clock = _Clock(self.video, self.problems)
        shape = None
        for packet in self._packets([self.video, *self.copied_streams]):
            if packet.stream is not self.video:
                if _counts(packet):
                    yield Copied(packet, packet.stream_index)
                continue
            for frame in self._decode(packet):
                form = (frame.width, frame.height, frame.format.name)
                if shape is not None and form != shape:
                    then, now = (f"{w}x{h} {pix_fmt}" for w, h, pix_fmt in (shape, form))
                    raise UserError(
                        f"{self.name}: the picture changes from {then} to {now} at "
                        f"{float(clock.last or 0):.2f} s; split the video there"
                    )
                shape = form
                placed = clock.place(frame)
                if placed is not None:
                    yield placed

    def _packets(self, streams: list[av.stream.Stream]) -> Iterator[av.Packet]:
        """All packets of these streams; where the file breaks off, an empty one that drains the decoder."""
        try:
            yield from self.container.demux(streams)
        except (av.FFmpegError, OSError):
            self.problems["file breaks off early"] += 1
            drain = av.Packet()
            drain.stream, drain.time_base = self.video, self.video.time_base
            yield drain

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        try:
            frames = packet.decode()
        except av.error.EOFError:  # already drained
            return []
        except av.FFmpegError:
            self.problems["damaged packets skipped"] += 1
            return []
        if packet.is_corrupt or any(f.is_corrupt for f in frames):
            self.problems["frames with decoding errors"] += 1
        return frames


class _Clock:
    """Gives each frame its time; see the module's docstring for the grid."""

    def __init__(self, stream: av.VideoStream, problems: Counter[str]):
        self.stream, self.problems = stream, problems
        self.first: Fraction | None = None
        self.last: Fraction | None = None
        rate = stream.base_rate or stream.average_rate
        tick = stream.time_base
        self.usual = 1 / (stream.average_rate or rate) if stream.average_rate or rate else None
        # A grid only where ticks are fine enough to tell frames apart, and too coarse to hold them exactly.
        rounded = rate and tick * rate < Fraction(1, 4) and (1 / (rate * tick)).denominator > 1
        self.rate = rate if rounded else None
        self.gap: Fraction | None = None

    def place(self, frame: av.VideoFrame) -> Decoded | None:
        tick = frame.time_base or self.stream.time_base
        duration = frame.duration * tick if frame.duration else self.usual or self.gap
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is not None:
            time = self._on_grid(stamp * tick, tick)
        else:
            self.problems["frames without a time stamp"] += 1
            time = Fraction(0) if self.last is None else self.last + (self.gap or self.usual or Fraction(1, 25))
        if self.last is not None:
            if time <= self.last:
                self.problems["frames with a repeated or earlier time dropped"] += 1
                return None
            self.gap = time - self.last
        else:
            self.first = time
        self.last = time
        if self.rate and duration and abs(duration - 1 / self.rate) <= tick:
            duration = 1 / self.rate
        return Decoded(frame, time, duration or Fraction(1, 25))

    def _on_grid(self, time: Fraction, tick: Fraction) -> Fraction:
        if self.rate is None or self.first is None:
            return time
        grid = self.first + round((time - self.first) * self.rate) / self.rate
        return grid if abs(grid - time) <= tick and grid > self.last else time


def _counts(packet: av.Packet) -> bool:
    """Whether it holds anything: the empty packets at the end only flush decoders."""
    return bool(packet.size) or packet.pts is not None


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
