"""Video files as a source of frames, and as a sink for them: reader, colour, encoder and muxer joined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from papershelf.files import atomic_path
from torch import Tensor

from rife import color
from rife.encoder import EncodeOptions, VideoEncoder, choose_encoder
from rife.muxer import Muxer, container_of
from rife.pipeline import Stopped
from rife.reader import Copied, Decoded, VideoReader
from rife.report import Report
from rife.sequence import ImageSource

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".y4m")


class VideoSource:
    """The frames of a video file, and the packets of its other streams.

    Raises:
        UserError: there is no such file, or no video in it.
    """

    image_suffix = ".png"

    def __init__(self, path: Path | str) -> None:
        self.reader = VideoReader(path)
        info = self.info = self.reader.info
        self.width, self.height = info.width, info.height
        self.rate = usual_rate(info.nominal_rate, info.average_rate)
        self.start, self.duration = info.start, info.duration
        self.problems = self.reader.problems
        self.dtype = np.dtype(np.uint8 if info.color.bits <= 8 else np.uint16)
        self.channels = 4 if info.color.alpha else 3

    def events(self) -> Iterator[Decoded | Copied]:
        return self.reader.events()

    def rgb(self, frame: av.VideoFrame) -> Tensor:
        return color.to_rgb(frame, self.info.color)

    def alpha(self, frame: av.VideoFrame) -> Tensor | None:
        return color.alpha_of(frame) if self.info.color.alpha else None

    def described(self) -> dict:
        """For the report."""
        info = self.info
        size = {"width": info.width, "height": info.height, "pix_fmt": info.pix_fmt, "codec": info.codec}
        return {"kind": "video", "fps": self.rate, "duration": info.duration, "frames": info.frames, **size}

    def close(self) -> None:
        self.reader.close()


class Target(Protocol):
    """Where frames that are ready for the encoder go: :class:`WholeFile`, or segments of one."""

    def wants(self, index: int) -> bool: ...
    def encode(self, index: int, frame: av.VideoFrame) -> None: ...
    def copy(self, item: Copied) -> None: ...


class VideoSink:
    """Brings frames into the form that the encoder takes."""

    def __init__(self, spec: color.ColorSpec, target: Target) -> None:
        self.spec, self.target = spec, target
        self.wants, self.copy = target.wants, target.copy

    def write_original(self, index: int, frame: object, rgb: Tensor, alpha: Tensor | None) -> None:
        """A decoded frame enters the encoder as it is; the encoder converts one that is stored otherwise."""
        ready = frame if isinstance(frame, av.VideoFrame) else color.from_rgb(rgb, self.spec, alpha)
        self.target.encode(index, ready)

    def write_new(self, index: int, rgb: Tensor, alpha: Tensor | None) -> None:
        self.target.encode(index, color.from_rgb(rgb, self.spec, alpha))


class WholeFile:
    """Encodes all frames and writes them, with the source's other packets in between."""

    def __init__(self, encoder: VideoEncoder, muxer: Muxer) -> None:
        self.encoder, self.muxer = encoder, muxer

    def wants(self, index: int) -> bool:
        return True

    def encode(self, index: int, frame: av.VideoFrame) -> None:
        self._mux(self.encoder.encode(frame, index))

    def copy(self, item: Copied) -> None:
        self.muxer.mux_copied(item.packet, item.stream_index)

    def finish(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        self._mux(self.encoder.flush())
        self.muxer.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self.muxer.mux_video(packet)


@contextmanager
def video_sink(
    output: Path,
    source: VideoSource | ImageSource,
    fps: Fraction,
    options: EncodeOptions,
    slowmo: Fraction,
    report: Report,
    *,
    sound: bool = True,
) -> Iterator[VideoSink]:
    """A sink whose video becomes ``output`` when it is whole.

    Raises:
        UserError: the encoder or the container refuses something, or the file cannot be written.
        KeyboardInterrupt: for :class:`~rife.pipeline.Stopped`; the playable part is ``output.partial.EXT``.
    """
    choice = choose_encoder(options, source.info, container_of(output))
    with _begun(output) as part:
        encoder = VideoEncoder(choice, source.info, fps)
        muxer = Muxer(part, encoder, source.reader, audio=sound, stretch=slowmo, name=output)
        report.output |= {"codec": choice.codec, "encoder": choice.encoder, "pix_fmt": choice.spec.pix_fmt}
        file = WholeFile(encoder, muxer)
        try:
            yield VideoSink(choice.spec, file)
            file.finish()
        except Stopped:
            file.finish()
            if not part.is_file():
                raise KeyboardInterrupt("Stopped.") from None
            partial = partial_name(output)
            part.replace(partial)
            raise KeyboardInterrupt(f"Stopped; the video so far is playable: {partial}") from None
        finally:
            encoder.close()
    report.warnings += [*choice.notes, *muxer.notes()]


def partial_name(output: Path) -> Path:
    """Where the playable part of an interrupted video is left."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


@contextmanager
def _begun(output: Path) -> Iterator[Path]:
    """The path to write to: a temporary one, or standard output as it is."""
    if str(output) == "-":
        yield output
        return
    with atomic_path(output) as part:
        yield part


def usual_rate(nominal: Fraction | None, average: Fraction | None) -> Fraction | None:
    """The rate that ``2x`` doubles: the stream's nominal one, unless that is a mere tick of its clock.

    A variable-rate recording of a telephone says a nominal 90000 and an average of 29.8.
    """
    if nominal and average and nominal > 2 * average:
        return average
    return nominal or average
