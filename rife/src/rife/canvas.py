"""Pictures made of pictures: turned upright, fitted to a size, labelled, joined, and written as a video.

All are RGB ``[3, H, W]`` float32, nominal range [0, 1]; the input's range beyond it survives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rife.color import ColorSpec, Tags
from rife.encoder import EncodeOptions
from rife.reader import VideoInfo, VideoReader
from rife.report import Report
from rife.video import VideoSink, video_sink

LABEL_HEIGHT = 20  # a label's box takes one part in so many of the picture's height ...
SMALLEST_LABEL = 14  # ... but this many pixels at least
SHADE = 0.35  # what a label's box leaves of the picture's light


@dataclass(frozen=True)
class Canvas:
    """What the writing of a video needs to know of its source; the other streams are the reader's."""

    info: VideoInfo
    reader: VideoReader | None


def upright_size(info: VideoInfo) -> tuple[int, int]:
    """Height and width of the picture as a player shows it: pixels made square, turned upright."""
    height, width = info.height, max(1, round(info.width * (info.sample_aspect_ratio or 1)))
    return (width, height) if info.rotation % 180 else (height, width)


def upright(rgb: Tensor, info: VideoInfo) -> Tensor:
    """A decoded picture as a player shows it."""
    turns = round(info.rotation / 90) % 4
    height, width = upright_size(info)
    return fit(torch.rot90(rgb, turns, (1, 2)), height, width)


def fit(rgb: Tensor, height: int, width: int) -> Tensor:
    """The picture scaled into a box, its shape kept but for a rounding; what it does not fill is black."""
    h, w = rgb.shape[1:]
    if (h, w) == (height, width):
        return rgb
    scale = min(height / h, width / w)
    size = (height, width) if abs(height * w - width * h) <= max(h, w) else (round(h * scale), round(w * scale))
    size = (max(1, size[0]), max(1, size[1]))
    scaled = F.interpolate(rgb[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    return F.pad(scaled, (left, width - size[1] - left, top, height - size[0] - top))


def label(rgb: Tensor, text: str, *, right: bool = False) -> Tensor:
    """The picture with white words on a darkened box in its upper left or right corner."""
    if not text:
        return rgb
    letters = _letters(text, max(SMALLEST_LABEL, rgb.shape[1] // LABEL_HEIGHT))[: rgb.shape[1], : rgb.shape[2]]
    height, width = letters.shape
    rgb = rgb.clone()
    corner = rgb[:, :height, -width:] if right else rgb[:, :height, :width]
    corner.mul_(SHADE).lerp_(torch.ones(()), letters.to(rgb))
    return rgb


@lru_cache(maxsize=32)
def _letters(text: str, height: int) -> Tensor:
    """How white each pixel of a label's box is: ``[height, w]`` in [0, 1]."""
    import cv2  # late: 0.1 s

    size = round(height * 0.7)
    font = cv2.FontFace("sans")  # OpenCV's own, with all alphabets
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size)
    box = np.zeros((height, width + height), np.uint8)
    cv2.putText(box, text, (height // 2, round(height * 0.72)), (255,), font, size)
    return torch.from_numpy(box).float() / 255


def even(size: float) -> int:
    """The nearest even number of pixels, as 4:2:0 video wants; 2 at least."""
    return max(2, 2 * round(size / 2))


def canvas_info(info: VideoInfo, height: int, width: int, *, own_colors: bool) -> VideoInfo:
    """The source's facts for a video of composed pictures: upright, square pixels.

    Args:
        info: the source.
        height: of the pictures.
        width: likewise.
        own_colors: pictures are in the source's colours (matrix, range, HDR); plain 8-bit 4:2:0 otherwise.
    """
    plain = {"width": width, "height": height, "sample_aspect_ratio": None, "display_matrix": None, "rotation": 0}
    if not own_colors:
        spec = ColorSpec.from_tags("rgb24", Tags(), height).stored_as("yuv420p", height)
        return replace(info, **plain, color=spec, hdr=None, codec="rawvideo")
    if info.color.matrix in ("rgb", "gray"):  # which a second picture may not be
        pix_fmt = "rgb24" if info.color.bits <= 8 else "rgb48le"
        return replace(info, **plain, color=ColorSpec.from_tags(pix_fmt, Tags(), height), codec="rawvideo")
    return replace(info, **plain)


@contextmanager
def canvas_video(
    output: Path, canvas: Canvas, fps: Fraction, options: EncodeOptions
) -> Iterator[tuple[VideoSink, Report]]:
    """A sink for composed pictures, whose video becomes ``output`` when it is whole; see ``video_sink``."""
    report = Report(output={"path": str(output), "fps": fps})
    with video_sink(output, canvas, fps, options, Fraction(1), report) as sink:
        yield sink, report
