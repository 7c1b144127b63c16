"""Animated GIF and WebP for pages and chats: small, silent, upright, and as long as the video.

A GIF shows 256 colours; FFmpeg's palettegen and paletteuse choose those of the whole clip, so that no frame
changes them. Its clock ticks in 1/100 s and viewers show nothing faster than 50 frames a second, so
delays vary by a tick where the rate asks for it and the total stays right. WebP has no such limits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.filter import Graph
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

from rife.pipeline import Stopped
from rife.reader import VideoInfo
from rife.report import Report
from rife.sequence import ImageSource
from rife.video import VideoSource, partial_name

PREVIEW_SUFFIXES = (".gif", ".webp")
FASTEST_GIF = Fraction(50)  # frames a second; viewers take a shorter delay for none, and make it 1/10 s
# An ordered pattern stands still where error diffusion would crawl from frame to frame.
_DITHER = "dither=bayer:bayer_scale=3:diff_mode=rectangle"
_HDR_TRANSFERS = (16, 18)  # PQ and HLG


def preview_size(info: VideoInfo, longest: int) -> tuple[int, int]:
    """Width and height of a preview: upright, of square pixels, no side above ``longest``, never enlarged."""
    width, height = info.width * float(info.sample_aspect_ratio or 1), float(info.height)
    if info.rotation % 180:
        width, height = height, width
    shrink = min(1.0, longest / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


class Webp:
    """An animated WebP; FFmpeg's encoder keeps the compressed frames and gives one packet at the end."""

    clock = 1000  # ticks a second

    def __init__(self, path: Path, width: int, height: int, fps: Fraction) -> None:
        self.container = av.open(f"file:{path}", "w", format="webp", container_options={"loop": "0"})
        self.stream = self.container.add_stream(
            "libwebp_anim", rate=self.clock, width=width, height=height, pix_fmt="bgra", options={"loop": "0"}
        )

    def add(self, frame: av.VideoFrame) -> None:
        """Take the next frame, bgra."""
        self.container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        """Write the file."""
        self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Let the file go."""
        self.container.close()


class Gif:
    """An animated GIF, in two passes: until all frames have been seen for the palette, they wait on disk."""

    clock = 100

    def __init__(self, path: Path, width: int, height: int, fps: Fraction) -> None:
        self.path, self.shape = path, (height, width, 4)
        self.last_delay = round(self.clock / fps)
        self.waiting = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed by close)
        self.times: list[tuple[int, int]] = []
        self.colors = Graph()
        self.colors.link_nodes(self._input(self.colors), self.colors.add("palettegen"), self.colors.add("buffersink"))
        self.colors.configure()

    def add(self, frame: av.VideoFrame) -> None:
        """Take the next frame, bgra."""
        self.waiting.write(frame.to_ndarray().tobytes())
        self.times.append((frame.pts, frame.duration))
        self.colors.push(frame)

    def finish(self) -> None:
        """Write the file."""
        self.colors.push(None)
        palette = self.colors.pull()
        palette.pts, palette.time_base = 0, Fraction(1, self.clock)
        graph = Graph()
        frames = self._input(graph)
        colors = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format.name, time_base=palette.time_base
        )
        use, result = graph.add("paletteuse", _DITHER), graph.add("buffersink")
        frames.link_to(use, 0, 0)
        colors.link_to(use, 0, 1)
        use.link_to(result)
        graph.configure()
        colors.push(palette)
        colors.push(None)
        # The muxer learns a delay from the frame after; the last one is told.
        options = {"final_delay": str(self.last_delay)}
        with av.open(f"file:{self.path}", "w", format="gif", container_options=options) as container:
            height, width, _ = self.shape
            stream = container.add_stream("gif", rate=self.clock, width=width, height=height, pix_fmt="pal8")
            self.waiting.seek(0)
            for start, duration in self.times:
                samples = np.frombuffer(self.waiting.read(width * height * 4), np.uint8).reshape(self.shape)
                frames.push(_frame(samples, start, duration, self.clock))
                for ready in _ready(result):
                    container.mux(stream.encode(ready))
            frames.push(None)
            for ready in _ready(result):
                container.mux(stream.encode(ready))
            container.mux(stream.encode(None))

    def close(self) -> None:
        """Let the waiting frames go."""
        self.waiting.close()

    def _input(self, graph: Graph) -> av.filter.FilterContext:
        height, width, _ = self.shape
        return graph.add_buffer(width=width, height=height, format="bgra", time_base=Fraction(1, self.clock))


class PreviewSink:
    """Turns frames into a preview's pictures.

    Args:
        preview: the file being made.
        info: the source.
        width: of the preview.
        height: likewise.
        fps: output frames a second.
    """

    def __init__(self, preview: Gif | Webp, info: VideoInfo, width: int, height: int, fps: Fraction) -> None:
        self.preview, self.info, self.size, self.fps = preview, info, (height, width), fps

    def wants(self, index: int) -> bool:
        return True

    def write_original(self, index: int, frame: object, rgb: Tensor, alpha: Tensor | None) -> None:
        self.write_new(index, rgb, alpha)

    def write_new(self, index: int, rgb: Tensor, alpha: Tensor | None) -> None:
        alpha = torch.ones_like(rgb[:1]) if alpha is None else alpha
        picture = torch.cat([rgb.flip(0), alpha])[None].cpu()  # blue first
        picture = torch.rot90(picture, self.info.rotation // 90, (2, 3))
        if picture.shape[-2:] != self.size:
            picture = F.interpolate(picture, self.size, mode="bilinear", antialias=True)
        samples = (picture[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        clock = self.preview.clock
        start, end = (round(clock * k / self.fps) for k in (index, index + 1))
        self.preview.add(_frame(samples, start, end - start, clock))

    def copy(self, item: object) -> None:
        """Previews have no place for sound or subtitles."""


@contextmanager
def preview_sink(
    output: Path, source: VideoSource | ImageSource, fps: Fraction, longest: int, report: Report
) -> Iterator[PreviewSink]:
    """A sink whose frames become the preview ``output`` when it is whole.

    Raises:
        UserError: the file cannot be written.
        KeyboardInterrupt: for :class:`~rife.pipeline.Stopped`; what there is lies in ``output.partial.EXT``.
    """
    info = source.info
    width, height = preview_size(info, longest)
    kind = Gif if output.suffix.lower() == ".gif" else Webp
    with atomic_path(output) as part:
        try:
            preview = kind(part, width, height, fps)
            try:
                yield PreviewSink(preview, info, width, height, fps)
                preview.finish()
            except Stopped:
                preview.finish()
                part.replace(partial_name(output))
                raise KeyboardInterrupt(f"Stopped; what there is so far: {partial_name(output)}") from None
            finally:
                preview.close()
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror or error}; choose a place with room") from error
    report.output |= {"codec": output.suffix[1:].lower(), "width": width, "height": height}
    if (width, height) != (info.width, info.height):
        report.warnings.append(f"the preview is {width}x{height}; --preview-size sets another size")
    if source.reader and source.reader.container.streams.audio:
        report.warnings.append("a preview has no sound: it is left out")
    if info.color.tags.transfer in _HDR_TRANSFERS:
        report.warnings.append("HDR colours are not tone-mapped in a preview, and look pale")


def _frame(samples: np.ndarray, start: int, duration: int, clock: int) -> av.VideoFrame:
    """[H, W, 4] uint8, blue first, as a frame shown from tick ``start`` on."""
    frame = av.VideoFrame.from_ndarray(samples, format="bgra")  # copied byte for byte: no matrix is involved
    frame.pts, frame.duration, frame.time_base = start, duration, Fraction(1, clock)
    return frame


def _ready(sink: av.filter.FilterContext) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        frame.pict_type = 0
        yield frame
