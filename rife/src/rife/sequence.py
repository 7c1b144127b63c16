"""Folders of numbered images as a source of frames, and as a sink for them.

Images keep their depth: 8-bit files give 8-bit files, 16-bit ones 16-bit, EXR and float TIFF float32.
Originals are written as the arrays that were read.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.images import READABLE, WRITABLE, read_image, write_image
from torch import Tensor

from rife.color import ColorSpec, Tags
from rife.pipeline import Stopped
from rife.reader import VideoInfo

DISPLAY_GAMMA = 2.2  # networks know display-referred pictures, float images are linear light
PEAK = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class ImageFrame:
    """One image of a folder: its samples as stored, and its place in time (seconds)."""

    frame: np.ndarray  # [H, W, C] uint8, uint16 or float32
    time: Fraction
    duration: Fraction


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A sort key under which frame2.png comes before frame10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; UserError where there are none."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in READABLE and not p.name.startswith(".")]
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(READABLE)}); expected a folder of frames")
    return sorted(files, key=natural_order)


def array_to_rgb(array: np.ndarray) -> Tensor:
    """``[H, W, C]`` as the networks see it: ``[3, H, W]`` float32, nominal range [0, 1]; alpha left out.

    Float images are taken as linear light and go through a display gamma; negatives keep their sign.
    """
    samples = torch.from_numpy(np.ascontiguousarray(array[..., :3])).permute(2, 0, 1)
    rgb = samples.float() / PEAK[array.dtype] if array.dtype in PEAK else _signed_power(samples, 1 / DISPLAY_GAMMA)
    return rgb.expand(3, -1, -1).contiguous()


def array_alpha(array: np.ndarray) -> Tensor | None:
    """``[1, H, W]`` in [0, 1], or None for an image without alpha."""
    if array.shape[2] != 4:
        return None
    alpha = torch.from_numpy(np.ascontiguousarray(array[..., 3:])).permute(2, 0, 1).float()
    return alpha / PEAK.get(array.dtype, 1)


def array_from_rgb(rgb: Tensor, alpha: Tensor | None, dtype: np.dtype, channels: int) -> np.ndarray:
    """The inverse of :func:`array_to_rgb`: rounded, and limited to what ``dtype`` holds.

    Args:
        rgb: ``[3, H, W]``.
        alpha: ``[1, H, W]``, or None for opaque; used where ``channels`` is 4.
        dtype: uint8, uint16 or float32.
        channels: 1 (grey: the mean of equal channels), 3 or 4.
    """
    dtype = np.dtype(dtype)
    planes = rgb.cpu().mean(0, keepdim=True) if channels == 1 else rgb.cpu()
    if dtype not in PEAK:
        planes = _signed_power(planes, DISPLAY_GAMMA)
    if channels == 4:
        planes = torch.cat([planes, torch.ones_like(planes[:1]) if alpha is None else alpha.cpu()])
    if dtype in PEAK:
        planes = (planes * PEAK[dtype]).round().clamp(0, PEAK[dtype])
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy().astype(dtype))


def _signed_power(x: Tensor, exponent: float) -> Tensor:
    return x.sign() * x.abs() ** exponent


class ImageSource:
    """The images of a folder, shown at ``rate`` from 0 s on.

    Raises:
        UserError: there are no images, or one cannot be read or differs in size, channels or depth.
    """

    reader = None  # no other streams

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self.folder, self.rate = folder, rate
        self.files = list_images(folder)
        first = read_image(self.files[0])
        self.height, self.width, self.channels = first.shape
        self.dtype = first.dtype
        suffix = self.files[0].suffix.lower()
        self.image_suffix = suffix if suffix in WRITABLE else ".png"
        self.start = Fraction(0)
        self.duration = len(self.files) / rate
        self.info = self._as_video()
        self.problems: dict[str, int] = {}

    def _as_video(self) -> VideoInfo:
        """What an encoder needs to know: full-range RGB or grey of the images' depth."""
        deep = self.dtype != np.uint8
        pix_fmt = {1: ("gray", "gray16le"), 3: ("rgb24", "rgb48le"), 4: ("rgba", "rgba64le")}[self.channels][deep]
        return VideoInfo(
            name=str(self.folder),
            container="image2",
            codec=self.image_suffix[1:],
            width=self.width,
            height=self.height,
            color=ColorSpec.from_tags(pix_fmt, Tags(), self.height),
            time_base=1 / self.rate,
            start=self.start,
            duration=self.duration,
            frames=len(self.files),
            average_rate=self.rate,
            nominal_rate=self.rate,
            sample_aspect_ratio=None,
            display_matrix=None,
            rotation=0,
            hdr=None,
            interlaced=False,
            bit_rate=None,
        )

    def events(self) -> Iterator[ImageFrame]:
        for n, file in enumerate(self.files):
            array = read_image(file)
            if array.shape != (self.height, self.width, self.channels) or array.dtype != self.dtype:
                raise UserError(
                    f"{file} is {_described(array)}, but {self.files[0].name} is "
                    f"{self.width}x{self.height}x{self.channels} {self.dtype}; all images must be alike"
                )
            yield ImageFrame(array, n / self.rate, 1 / self.rate)

    def rgb(self, frame: np.ndarray) -> Tensor:
        return array_to_rgb(frame)

    def alpha(self, frame: np.ndarray) -> Tensor | None:
        return array_alpha(frame)

    def described(self) -> dict:
        """For the report."""
        size = {"width": self.width, "height": self.height, "channels": self.channels, "depth": str(self.dtype)}
        return {"kind": "images", "fps": self.rate, "duration": self.duration, "frames": len(self.files), **size}

    def close(self) -> None:
        """Nothing is held open."""


class ImageSink:
    """Writes frames as ``folder/00000000.png`` and so on.

    Args:
        folder: an existing folder.
        suffix: ``.png``, ``.jpg``, ``.tif`` or ``.exr``.
        dtype: of the samples; what the suffix cannot hold is brought to what it can.
        channels: 1, 3 or 4, likewise.
        takes: which frames are for this sink to write; those that are there already are not written again.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str,
        dtype: np.dtype,
        channels: int,
        takes: Callable[[int], bool] = lambda index: True,
    ) -> None:
        self.folder, self.suffix, self._takes = folder, suffix, takes
        self.dtype, self.channels = fitting(suffix, np.dtype(dtype), channels)

    def wants(self, index: int) -> bool:
        return self._takes(index) and not self._path(index).exists()

    def write_original(self, index: int, frame: object, rgb: Tensor, alpha: Tensor | None) -> None:
        alike = isinstance(frame, np.ndarray) and frame.dtype == self.dtype and frame.shape[2] == self.channels
        self._write(index, frame if alike else array_from_rgb(rgb, alpha, self.dtype, self.channels))

    def write_new(self, index: int, rgb: Tensor, alpha: Tensor | None) -> None:
        self._write(index, array_from_rgb(rgb, alpha, self.dtype, self.channels))

    def copy(self, item: object) -> None:
        """Images have no place for sound or subtitles."""

    def _write(self, index: int, array: np.ndarray) -> None:
        try:
            write_image(self._path(index), array)
        except OSError as error:
            raise UserError(
                f"cannot write frame {index}: {error.strerror}; make room, or choose another place"
            ) from error

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:08d}{self.suffix}"


@contextmanager
def image_sink(folder: Path, suffix: str, dtype: np.dtype, channels: int) -> Iterator[ImageSink]:
    """A sink whose images become ``folder`` when all of them are there.

    Raises:
        UserError: the folder is in use, or cannot be made.
        KeyboardInterrupt: for :class:`~rife.pipeline.Stopped`; what there is lies in ``folder.partial``.
    """
    check_free(folder)
    part = folder.with_name(f".part-{secrets.token_hex(4)}-{folder.name}")
    try:
        part.mkdir()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another place") from error
    try:
        yield ImageSink(part, suffix, dtype, channels)
        if folder.exists():
            folder.rmdir()  # it is empty, see check_free
        part.rename(folder)
    except Stopped:
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        part.rename(partial)
        raise KeyboardInterrupt(f"Stopped; the frames made so far are in {partial}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fitting(suffix: str, dtype: np.dtype, channels: int) -> tuple[np.dtype, int]:
    """The depth and channels nearest to those given that files of this suffix hold."""
    if suffix in (".jpg", ".jpeg"):
        return np.dtype(np.uint8), min(channels, 3)
    if suffix == ".exr":
        return np.dtype(np.float32), channels
    if suffix == ".png" and dtype == np.float32:
        return np.dtype(np.uint16), channels
    return dtype, channels


def check_free(folder: Path) -> None:
    """UserError unless ``folder`` can become a new folder of frames."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder for the frames")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the frames")


def _described(array: np.ndarray) -> str:
    height, width, channels = array.shape
    return f"{width}x{height}x{channels} {array.dtype}"
