"""Writing a video file: the encoded video, and everything else of the source as it was.

Audio, subtitles, data, attachments and cover pictures are copied packet by packet; metadata, chapters,
dispositions, rotation, pixel aspect and colour tags go along. The video's ticks are exact in MP4 and MOV;
Matroska and WebM know milliseconds only, and carry the exact rate beside them.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition
from papershelf.errors import UserError

from rife import subtitles
from rife.encoder import VideoEncoder
from rife.reader import VideoReader
from rife.slow_sound import SlowSound

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".y4m": "yuv4mpegpipe"}
# What describes the old file or its encoder and is untrue of the new one (Matroska writes in capitals).
_STALE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "bps", "number_of_frames"}
_STALE |= {"number_of_bytes", "vendor_id"}
_NO_ASPECT = ("av1", "vp9", "prores", "ffv1")
_MAX_TIMESCALE = 2**31 - 1  # MP4 keeps it in 32 bits


def container_of(path: Path | str) -> str:
    """FFmpeg's name of the format for an output path; ``-`` is y4m on standard output.

    Raises:
        UserError: the suffix is none of .mp4, .m4v, .mov, .mkv, .webm, .y4m.
    """
    if str(path) == "-":
        return "yuv4mpegpipe"
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        what = f"the suffix {suffix}" if suffix else "no suffix"
        raise UserError(f"{path} has {what}; an output video ends in {', '.join(CONTAINERS)}")
    return CONTAINERS[suffix]


class Muxer:
    """Writes one output file. All methods belong to one thread.

    Args:
        path: where to write (a temporary name will do); ``-`` is standard output.
        encoder: whose packets :meth:`mux_video` will get.
        reader: the source whose other streams, tags and chapters are kept; None writes the video alone.
        container: FFmpeg's name of the format; None takes it from ``path``.
        start: time of the video's tick 0, in seconds; None takes the source's.
        audio: keep audio streams.
        stretch: factor by which the video got longer; chapters and copied packets follow it, and sound is
            stretched.
        name: of the file, in messages; None takes ``path``.

    Attributes:
        left_out: a sentence for each stream that the container cannot hold, or holds in another form.
        problems: packets that could not be written as they were, by kind.

    Raises:
        UserError: the container cannot hold an audio stream, or the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        encoder: VideoEncoder,
        reader: VideoReader | None = None,
        *,
        container: str | None = None,
        start: Fraction | None = None,
        audio: bool = True,
        stretch: Fraction = Fraction(1),
        name: Path | str | None = None,
    ):
        self.name, self.stretch = "standard output" if str(path) == "-" else str(name or path), stretch
        self.format = container or container_of(path)
        self.left_out: list[str] = []
        self.problems: Counter[str] = Counter()
        self._tick = encoder.time_base
        self._source_start = reader.info.start if reader else Fraction(0)
        # MP4 hides what lies before zero, so a video that starts there is moved, and all else with it.
        self._start = max(self._source_start if start is None else start, Fraction(0))
        self._time_base, self._offset = _exact_base(encoder.time_base, self._start)
        self._copies: dict[int, av.stream.Stream] = {}
        self._sounds: dict[int, SlowSound] = {}  # audio that is stretched
        self._texts: dict[int, tuple[str, str]] = {}  # subtitles that change their form: before, after
        self._ends: dict[int, int] = {}
        place = "pipe:1" if str(path) == "-" else f"file:{path}"
        source_tags = reader.container.metadata if reader else {}
        self.container = av.open(
            place,
            "w",
            format=self.format,
            container_options=_options(self.format, source_tags, self._starts(reader)),
            metadata_errors="surrogateescape",
        )
        if reader is None or self.format == "yuv4mpegpipe":
            if reader is not None and reader.copied_streams:
                kinds = ", ".join(sorted({s.type for s in reader.copied_streams}))
                self.left_out.append(f"y4m holds pictures only: {kinds} left out")
            self.video = self._add_video(encoder)
            self._begin()
            return
        dropped = 0
        for stream in reader.container.streams:
            if stream is reader.video:
                self.video = self._add_video(encoder)
                self.video.metadata.update(_kept(stream.metadata, 1 / self._tick))
                self.video.disposition = stream.disposition
            elif stream.type == "audio" and not audio:
                dropped += 1
            elif stream.type == "audio" and stretch != 1:
                self._add_stretched(stream)
            elif stream in reader.copied_streams:
                self._add_copy(stream, reader)
        if dropped:
            self.left_out.append("the sound is left out; --slowmo-audio stretch keeps it, at its pitch")
        self.container.metadata.update(_kept(source_tags, 1 / self._tick))
        chapters = reader.container.chapters()
        for chapter in chapters:
            chapter["start"], chapter["end"] = (self._later(chapter[k], chapter["time_base"]) for k in ("start", "end"))
        self.container.set_chapters(chapters)
        self._begin()

    def mux_video(self, packet: av.Packet) -> None:
        """Write a packet of the encoder."""
        ticks = self._tick / self._time_base
        packet.pts, packet.duration = round(packet.pts * ticks) + self._offset, round(packet.duration * ticks)
        if packet.dts is not None:
            packet.dts = round(packet.dts * ticks) + self._offset
        packet.time_base = self._time_base
        packet.stream = self.video
        self._write(packet)

    def mux_copied(self, packet: av.Packet, stream_index: int) -> None:
        """Write a packet of the source's stream ``stream_index``; one of a stream left out is dropped."""
        if sound := self._sounds.get(stream_index):
            ticks = packet.dts if packet.pts is None else packet.pts
            for ready in sound.packets(packet, self._later(ticks or 0, packet.time_base) * packet.time_base):
                self._write(ready)
            return
        stream = self._copies.get(stream_index)
        if stream is None:
            return
        if stream_index in self._texts:
            packet = _with_payload(packet, subtitles.converted(bytes(packet), *self._texts[stream_index]))
            if packet is None:
                return
        if packet.pts is None and packet.dts is None:
            packet.pts = packet.dts = self._ends.get(stream_index, 0)
        elif packet.dts is None:
            packet.dts = packet.pts
        self._ends[stream_index] = packet.dts + (packet.duration or 0)
        if self.stretch != 1 or self._start != self._source_start:
            packet.dts = self._later(packet.dts, packet.time_base)
            packet.pts = None if packet.pts is None else self._later(packet.pts, packet.time_base)
            packet.duration = round((packet.duration or 0) * self.stretch)
        packet.stream = stream
        try:
            self._write(packet)
        except av.error.ArgumentError:  # time stamps that run backwards in the source
            self.problems[f"{stream.type} packets with unusable times dropped"] += 1

    def close(self) -> None:
        """Write what the format keeps for the end; the file is playable from here on."""
        for sound in self._sounds.values():
            for packet in sound.rest():
                self._write(packet)
        try:
            self.container.close()
        except OSError as error:
            raise self._cannot_write(error) from error

    def notes(self) -> list[str]:
        """What the output lacks of the source, a sentence each."""
        return [*self.left_out, *(f"{count} {what}" for what, count in self.problems.items())]

    def _starts(self, reader: VideoReader | None) -> list[Fraction]:
        """Where the output's streams begin, as far as it is known before the first packet."""
        known = [s for s in reader.copied_streams if s.start_time is not None] if reader else []
        copied = [self._later(s.start_time, s.time_base) * s.time_base for s in known]
        return [self._start, *(start for start in copied if start > 0)]

    def _add_video(self, encoder: VideoEncoder) -> av.VideoStream:
        stream = self.container.add_stream_from_template(encoder.stream, opaque=True)
        stream.time_base = self._time_base
        stream.disposition = Disposition.default
        if encoder.choice.codec == "hevc" and self.format in ("mp4", "mov"):
            stream.codec_context.codec_tag = "hvc1"  # Apple's players do not take hev1
        # PyAV cannot set the aspect that Matroska writes; these codecs carry it in the stream itself.
        aspect = encoder.info.sample_aspect_ratio
        if self.format in ("matroska", "webm") and aspect not in (None, 1) and encoder.choice.codec in _NO_ASPECT:
            self.left_out.append(
                f"{self.format} loses the pixel aspect {aspect} with {encoder.choice.codec}; .mp4 keeps it"
            )
        if encoder.info.display_matrix:
            stream.set_display_matrix(encoder.info.display_matrix)
        return stream

    def _add_copy(self, source: av.stream.Stream, reader: VideoReader) -> None:
        if source.type == "data" and "timecode" in source.metadata:
            return  # written anew from the video's tag of that name
        cover = reader.cover(source.index) if source.disposition & Disposition.attached_pic else None
        if cover and self.format == "matroska":  # which keeps pictures as files
            kind = source.codec_context.codec.canonical_name.replace("mjpeg", "jpeg")
            self.container.add_attachment(source.metadata.get("filename", f"cover.{kind}"), f"image/{kind}", cover)
            return
        if not _holds(self.format, source) or (cover and self.format == "mov"):
            if source.type == "subtitle" and self._add_converted(source):
                return
            elsewhere = ""
            if self.format != "matroska" and (cover or _holds("matroska", source)):
                elsewhere = "; an output named .mkv holds it"
            what = _described(source)
            if source.type == "audio":
                raise UserError(f"{self.format} cannot hold {what}{elsewhere or '; drop the audio'}")
            self.left_out.append(f"{self.format} cannot hold {what}, which is left out{elsewhere}")
            return
        stream = self.container.add_stream_from_template(source)
        stream.metadata.update(_kept(source.metadata))
        stream.disposition = source.disposition
        self._copies[source.index] = stream

    def _add_stretched(self, source: av.AudioStream) -> None:
        sound = self._sounds[source.index] = SlowSound(source, self.container, self.format, self.stretch)
        sound.stream.metadata.update(_kept(source.metadata))
        sound.stream.disposition = source.disposition
        self.left_out.append(f"{_described(source)} is stretched, and encoded as {sound.codec}")

    def _add_converted(self, source: av.stream.Stream) -> bool:
        """Whether a subtitle stream could be added in the form of text that this container holds."""
        before = source.codec_context.codec.canonical_name if source.codec_context else ""
        after = subtitles.form_for(self.format, before)
        if after is None:
            return False
        stream = subtitles.add_text_stream(self.container, after, source)
        stream.metadata.update(_kept(source.metadata))
        stream.disposition = source.disposition
        self._copies[source.index] = stream
        self._texts[source.index] = before, after
        self.left_out.append(f"{_described(source)} becomes {after}; the words stay, colours and fonts do not")
        return True

    def _later(self, ticks: int, tick: Fraction) -> int:
        """A source time on the output's clock, which is stretched from the video's start on."""
        return round((self._start + (ticks * tick - self._source_start) * self.stretch) / tick)

    def _begin(self) -> None:
        try:
            self.container.start_encoding()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _write(self, packet: av.Packet) -> None:
        try:
            self.container.mux(packet)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> OSError | UserError:
        if isinstance(error, BrokenPipeError):
            return error  # the reader has had enough: no fault
        return UserError(f"cannot write {self.name}: {error.strerror or error}; choose a place with room and rights")


def _exact_base(tick: Fraction, start: Fraction) -> tuple[Fraction, int]:
    """A time base that holds both multiples of ``tick`` and ``start`` exactly, and ``start`` in it.

    Where no 32-bit time scale can, ``start`` is rounded to a microsecond or better.
    """
    scale = tick.denominator
    if (start / tick).denominator == 1:
        return tick, int(start / tick)
    fine = math.lcm(scale, start.denominator)
    if fine > _MAX_TIMESCALE:
        fine = scale * max(1, min(-(-1_000_000 // scale), _MAX_TIMESCALE // scale))
    return Fraction(1, fine), round(start * fine)


def _options(container: str, tags: dict[str, str], starts: list[Fraction]) -> dict[str, str]:
    if container in ("mp4", "mov"):
        # Phones keep place and camera under keys that only this way of writing has room for.
        own_keys = any(key.startswith("com.") for key in tags)
        options = {"movflags": "+faststart" + ("+use_metadata_tags" if own_keys else "")}
        # Late starts are written in ticks of the whole file, milliseconds unless told otherwise.
        scale = math.lcm(1000, *(start.denominator for start in starts))
        if scale > 1000:
            options["movie_timescale"] = str(scale if scale <= _MAX_TIMESCALE else 1_000_000)
        return options
    if container in ("matroska", "webm"):
        return {"default_mode": "passthrough", "fflags": "+bitexact"}  # no random identifiers: same input, same bytes
    return {"strict": "-1"}  # y4m of more than 8 bits is an extension, which all readers of it know


def _kept(tags: dict[str, str], rate: Fraction | None = None) -> dict[str, str]:
    kept = {k: v for k, v in tags.items() if k.lower() not in _STALE and not k.lower().startswith("_statistics")}
    for key in kept.keys() & {"timecode", "TIMECODE"}:
        if rate and rate % Fraction(30000, 1001):  # drop-frame counting exists at 29.97 and its multiples only
            kept[key] = kept[key].replace(";", ":")
    return kept


def _holds(container: str, stream: av.stream.Stream) -> bool:
    """Whether a file of this format can be begun with such a stream."""
    trial = av.open(io.BytesIO(), "w", format=container)
    try:
        trial.add_stream_from_template(stream)
        trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    finally:
        with contextlib.suppress(av.FFmpegError):  # some formats cannot end without a packet
            trial.close()
    return True


def _with_payload(packet: av.Packet, payload: bytes | None) -> av.Packet | None:
    if payload is None:
        return None
    new = av.Packet(payload)
    new.pts, new.dts, new.duration, new.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    new.is_keyframe = True
    return new


def _described(stream: av.stream.Stream) -> str:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context else "no codec known"
    parts = [codec, *([stream.language] if stream.language else [])]
    title = stream.metadata.get("title") or stream.metadata.get("filename")
    return f"{stream.type} stream {stream.index} ({', '.join(parts)}{f', {title!r}' if title else ''})"
