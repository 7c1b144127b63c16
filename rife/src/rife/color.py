"""YUV to RGB and back: one path for every frame, exact for the frames that are only passed through.

ITU-T H.273 (8.3): the matrix from the stream's tags (BT.601, 709, 2020, ...), its range, its bit depth
and the place of its chroma samples (:mod:`rife.chroma`). swscale is never asked: it forgets the matrix
and truncates. ``from_rgb(to_rgb(frame))`` returns the frame's own codes, so a new frame differs from
the frames beside it by its content and by nothing else.

Assumed where a stream does not say: BT.709 from 720 lines up and BT.601 below (as players do), limited
range for YUV, full range for grey and RGB, chroma at the left for 4:2:0, 4:2:2 and 4:1:1. A matrix that
is not linear or not known (constant luminance, ICtCp, YCgCo) is treated as an unspecified one: the
network then sees slightly other colours, and codes still come back as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import av
import numpy as np
import torch
from papershelf.errors import UserError
from torch import Tensor

from rife import chroma

# H.273 matrix_coefficients -> name; name -> (Kr, Kb).
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}
UNSPECIFIED, LIMITED, FULL = 0, 1, 2  # FFmpeg's AVColorRange


@dataclass(frozen=True)
class Tags:
    """Colour tags by their H.273 numbers (2: unspecified); ``range`` is 0 unspecified, 1 limited, 2 full."""

    matrix: int = 2
    range: int = UNSPECIFIED
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True)
class ColorSpec:
    """How the codes of a frame are to be read.

    Attributes:
        pix_fmt: FFmpeg's name of the storage.
        matrix: ``bt601``, ``bt709``, ``bt2020``, ``fcc``, ``smpte240m``, ``gray`` or ``rgb``.
        full_range: codes use the whole range of their bits.
        bits: depth of a code.
        siting: where chroma samples lie, one of :data:`rife.chroma.SITINGS`.
        subsampling: log2 of the horizontal and vertical chroma factors.
        alpha: there is an alpha plane.
        tags: the stream's own tags, unspecified ones included, to be written on.
    """

    pix_fmt: str
    matrix: str
    full_range: bool
    bits: int
    siting: str = "left"
    subsampling: tuple[int, int] = (0, 0)
    alpha: bool = False
    tags: Tags = Tags()

    @classmethod
    def of(cls, frame: av.VideoFrame, siting: str | None = None) -> ColorSpec:
        """The spec of a decoded frame; PyAV does not say where chroma lies, so ``siting`` may."""
        tags = Tags(frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        return cls.from_tags(frame.format.name, tags, frame.height, siting)

    @classmethod
    def from_tags(cls, pix_fmt: str, tags: Tags, height: int, siting: str | None = None) -> ColorSpec:
        """The spec for a pixel format and a stream's tags, the unspecified ones filled in."""
        fmt = av.VideoFormat(pix_fmt, 16, 16)
        components = fmt.components
        if fmt.is_rgb or fmt.has_palette or pix_fmt.startswith("bayer"):
            matrix = "rgb"
        elif len(components) < 3:
            matrix = "gray"
        else:
            matrix = _MATRICES.get(tags.matrix, "bt709" if height >= 720 else "bt601")
        if tags.range == UNSPECIFIED:
            full = matrix in ("rgb", "gray") or pix_fmt.startswith("yuvj")
        else:
            full = tags.range == FULL
        sub = tuple((16 // size).bit_length() - 1 for size in (fmt.chroma_width(), fmt.chroma_height()))
        if siting is None:  # JPEG's own convention is the centre; 4:1:0 comes from codecs of that age
            siting = "center" if pix_fmt.startswith("yuvj") or sub == (2, 2) else "left"
        alpha = len(components) in (2, 4) or fmt.has_palette
        return cls(pix_fmt, matrix, full, max(c.bits for c in components), siting, sub, alpha, tags)

    def stored_as(self, pix_fmt: str, height: int) -> ColorSpec:
        """The spec of the same picture in another pixel format.

        Matrix, range and tags stay where the new format can express them. RGB becomes limited-range
        YUV of the matrix that would be assumed for ``height`` lines, and is tagged so.
        """
        new = ColorSpec.from_tags(pix_fmt, self.tags, height, self.siting)
        if new.matrix == "rgb":
            kept = self.matrix == "rgb"
            full, tags = self.full_range or not kept, self.tags if kept else replace(self.tags, matrix=0, range=FULL)
            return replace(new, full_range=full, tags=tags)
        matrix = new.matrix if "gray" in (new.matrix, self.matrix) or self.matrix == "rgb" else self.matrix
        full = self.full_range and (self.matrix != "rgb" or matrix == "gray" or pix_fmt.startswith("yuvj"))
        tags = replace(self.tags, range=FULL) if full else self.tags
        if matrix != self.matrix and matrix != "gray":
            tags = replace(tags, matrix={"bt709": 1, "bt2020": 9}.get(matrix, 6), range=FULL if full else LIMITED)
        return replace(new, matrix=matrix, full_range=full, tags=tags)


def to_rgb(frame: av.VideoFrame, spec: ColorSpec | None = None, device: torch.device | str = "cpu") -> Tensor:
    """RGB of a decoded frame (alpha left out), converted on ``device``.

    Returns:
        ``[3, H, W]`` float32; black is 0 and white 1, codes beyond them go beyond (super-whites survive).

    Raises:
        UserError: the pixel format has no meaning as YUV, grey or RGB codes.
    """
    frame, spec = _readable(frame, spec)
    first, *others = (_load(frame, spec, k, device) for k in range(1 if spec.matrix == "gray" else 3))
    offset, scale = _levels(spec)
    first.sub_(offset).mul_(1 / scale)
    if spec.matrix == "gray":
        return first.expand(3, -1, -1).contiguous()
    if spec.matrix == "rgb":
        return torch.stack([first, *(c.sub_(offset).mul_(1 / scale) for c in others)])
    c_offset, c_scale = _chroma_levels(spec)
    cbcr = torch.stack(others).sub_(c_offset).mul_(1 / c_scale)
    cb, cr = chroma.upsample(cbcr, (frame.height, frame.width), spec.subsampling, spec.siting)
    kr, kb = _WEIGHTS[spec.matrix]
    kg = 1 - kr - kb
    out = first.new_empty(3, frame.height, frame.width)
    torch.add(first, cr, alpha=2 * (1 - kr), out=out[0])
    torch.add(first, cb, alpha=-2 * (1 - kb) * kb / kg, out=out[1]).add_(cr, alpha=-2 * (1 - kr) * kr / kg)
    torch.add(first, cb, alpha=2 * (1 - kb), out=out[2])
    return out


def alpha_of(frame: av.VideoFrame) -> Tensor | None:
    """The alpha plane ``[1, H, W]``, 0 clear to 1 opaque, or None where the format has none."""
    frame, spec = _readable(frame, None)
    if not spec.alpha:
        return None
    return _load(frame, spec, len(_layout(spec.pix_fmt)) - 1, "cpu").mul_(1 / (2**spec.bits - 1))[None]


def from_rgb(rgb: Tensor, like: av.VideoFrame | ColorSpec, alpha: Tensor | None = None) -> av.VideoFrame:
    """A frame stored as ``like``: same pixel format, range, matrix and siting.

    Codes are rounded and kept within what the storage holds, not within the nominal range.

    Args:
        rgb: ``[3, H, W]`` float32, nominal range [0, 1], any device.
        like: the frame or spec to imitate. A format that :func:`working_format` replaces is replaced here too.
        alpha: ``[1, H, W]`` in [0, 1]; opaque where ``like`` has alpha and this is None.
    """
    spec = like if isinstance(like, ColorSpec) else ColorSpec.of(like)
    height, width = rgb.shape[-2:]
    if _layout(spec.pix_fmt) is None:
        spec = spec.stored_as(working_format(spec.pix_fmt), height)
    frame = av.VideoFrame(width, height, spec.pix_fmt)
    _tag(frame, spec.tags)
    offset, scale = _levels(spec)
    if spec.matrix == "rgb":
        planes = [plane * scale + offset for plane in rgb]
    else:
        kr, kb = _WEIGHTS.get(spec.matrix, _WEIGHTS["bt709"])
        y = (rgb[0] * kr).add_(rgb[1], alpha=1 - kr - kb).add_(rgb[2], alpha=kb)
        planes = []
        if spec.matrix != "gray":
            c_offset, c_scale = _chroma_levels(spec)
            difference = torch.stack([rgb[2] - y, rgb[0] - y])
            cb, cr = chroma.downsample(difference, spec.subsampling, spec.siting, spec.bits)
            planes = [
                cb.mul_(c_scale / (2 * (1 - kb))).add_(c_offset),
                cr.mul_(c_scale / (2 * (1 - kr))).add_(c_offset),
            ]
        planes.insert(0, y.mul_(scale).add_(offset))
    if spec.alpha:
        peak = 2**spec.bits - 1
        planes.append(rgb.new_full((height, width), peak) if alpha is None else alpha[0] * peak)
    for k, plane in enumerate(planes):
        _store(frame, spec, k, plane)
    return frame


def convert(frame: av.VideoFrame, spec: ColorSpec, source: ColorSpec | None = None) -> av.VideoFrame:
    """``frame`` as ``spec`` wants it.

    Itself where it is so already; its codes rearranged where the two differ in layout alone (nv12 and
    yuv420p, say); through RGB otherwise.
    """
    if frame.format.name == spec.pix_fmt:
        return frame
    readable, source = _readable(frame, source)
    same_codes = ("matrix", "full_range", "bits", "subsampling", "alpha")
    if any(getattr(source, name) != getattr(spec, name) for name in same_codes):
        out = from_rgb(to_rgb(readable, source), spec, alpha_of(readable) if spec.alpha else None)
    else:
        out = av.VideoFrame(frame.width, frame.height, spec.pix_fmt)
        _tag(out, spec.tags)
        for k in range(len(_layout(spec.pix_fmt))):
            _view(out, spec, k)[...] = (_view(readable, source, k) >> _shift(source)) << _shift(spec)
    return out


def working_format(pix_fmt: str) -> str:
    """The pixel format this module works in for ``pix_fmt``: itself, or the nearest that loses nothing.

    Big-endian storage becomes little-endian, palettes RGBA, bit-packed RGB ``rgb24`` or ``gbrp10le``,
    packed YUV its planar form; float RGB becomes 16-bit (the one case that rounds).

    Raises:
        UserError: Bayer mosaics, XYZ and frames in hardware memory have no such format.
    """
    if _layout(pix_fmt) is not None:
        return pix_fmt
    fmt = av.VideoFormat(pix_fmt, 16, 16)
    little = pix_fmt.removesuffix("be") + "le"
    if fmt.is_big_endian and little in av.video.format.names and _layout(little):
        return little
    components = fmt.components
    bits = max((c.bits for c in components), default=0)
    if not components or pix_fmt.startswith(("bayer", "xyz")):
        raise UserError(f"pixel format {pix_fmt} is not supported: convert the video to YUV or RGB first")
    if fmt.has_palette:
        return "rgba"
    if pix_fmt.startswith("mono"):
        return "gray"
    if fmt.is_rgb:
        if bits <= 8:
            return "rgba" if len(components) == 4 else "rgb24"
        return ("gbrap" if len(components) == 4 else "gbrp") + (
            "10le" if bits == 10 else "12le" if bits == 12 else "16le"
        )
    if len(components) < 3:
        return "gray16le" if len(components) == 1 else "ya16le"
    sampling = {(8, 8): "420", (8, 16): "422", (16, 16): "444", (16, 8): "440", (4, 16): "411"}
    name = "yuva" if len(components) == 4 else "yuv"
    name += sampling.get((fmt.chroma_width(), fmt.chroma_height()), "444") + "p" + ("" if bits <= 8 else f"{bits}le")
    return name if name in av.video.format.names else name.replace(f"{bits}le", "16le")


@dataclass(frozen=True)
class _Component:
    """Where a component's codes lie: every ``step``-th element of a row from ``offset``."""

    plane: int
    offset: int = 0
    step: int = 1
    chroma: bool = False


# Component order in memory of formats with one plane; the others follow from their descriptor.
_PACKED = {
    "rgb24": "RGB", "bgr24": "BGR", "rgba": "RGBA", "bgra": "BGRA", "argb": "ARGB", "abgr": "ABGR",
    "rgb0": "RGB0", "bgr0": "BGR0", "0rgb": "0RGB", "0bgr": "0BGR",
    "rgb48le": "RGB", "bgr48le": "BGR", "rgba64le": "RGBA", "bgra64le": "BGRA", "ya8": "YA", "ya16le": "YA",
}  # fmt: skip
_SEMI_PLANAR = ("nv12", "nv21", "nv16", "nv24", "nv42", "nv20le")
_SEMI_PLANAR += tuple(f"p{sampling}{bits}le" for sampling in "024" for bits in (10, 12, 16))
_PACKED_YUV = {"yuyv422": (0, 1, 3), "uyvy422": (1, 0, 2), "yvyu422": (0, 3, 1)}
_PACKED_YUV |= dict.fromkeys(("y210le", "y212le", "y216le"), (0, 1, 3))  # swscale misreads these now and then
# Formats that keep their codes in the upper bits of a word.
_LOW_BITS = {"p010le": 6, "p210le": 6, "p410le": 6, "y210le": 6, "p012le": 4, "p212le": 4, "p412le": 4, "y212le": 4}


@lru_cache(maxsize=256)
def _layout(pix_fmt: str) -> tuple[_Component, ...] | None:
    """Components in the order Y, U, V or R, G, B, then alpha; None where rows are not arrays of codes."""
    fmt = av.VideoFormat(pix_fmt, 16, 16)
    if pix_fmt in _PACKED:
        order = _PACKED[pix_fmt]
        return tuple(_Component(0, order.index(c), len(order)) for c in "RGBYA" if c in order)
    if pix_fmt in _SEMI_PLANAR:
        u, v = (1, 0) if pix_fmt in ("nv21", "nv42") else (0, 1)
        return _Component(0), _Component(1, u, 2, chroma=True), _Component(1, v, 2, chroma=True)
    if pix_fmt in _PACKED_YUV:
        y, u, v = _PACKED_YUV[pix_fmt]
        return _Component(0, y, 2), _Component(0, u, 4, chroma=True), _Component(0, v, 4, chroma=True)
    components = fmt.components
    planar = pix_fmt.startswith(("yuv", "gbr", "gray")) and len({c.plane for c in components}) == len(components)
    odd = fmt.is_big_endian or "msb" in pix_fmt or pix_fmt.endswith(("f16le", "f32le"))
    if not planar or odd or any(c.bits > 16 for c in components):
        return None
    return tuple(_Component(c.plane, chroma=k in (1, 2) and not fmt.is_rgb) for k, c in enumerate(components))


def _readable(frame: av.VideoFrame, spec: ColorSpec | None) -> tuple[av.VideoFrame, ColorSpec]:
    """The frame and its spec, in a format whose rows are arrays of codes."""
    spec = spec or ColorSpec.of(frame)
    working = working_format(frame.format.name)
    if working != frame.format.name:
        frame = frame.reformat(format=working)
    return frame, spec if spec.pix_fmt == working else spec.stored_as(working, frame.height)


def _view(frame: av.VideoFrame, spec: ColorSpec, k: int) -> np.ndarray:
    """Component ``k`` of the frame as a writable array ``[h, w]`` over the frame's own memory."""
    component = _layout(spec.pix_fmt)[k]
    plane = frame.planes[component.plane]
    sx, sy = spec.subsampling if component.chroma else (0, 0)
    width, height = -(-frame.width >> sx), -(-frame.height >> sy)
    dtype = np.uint8 if spec.bits <= 8 else np.uint16
    rows = np.frombuffer(plane, dtype).reshape(height, -1)
    if plane.line_size < 0:  # stored bottom up
        rows = rows[::-1]
    return rows[:, component.offset :: component.step][:, :width]


def _shift(spec: ColorSpec) -> int:
    return _LOW_BITS.get(spec.pix_fmt, 0)


def _load(frame: av.VideoFrame, spec: ColorSpec, k: int, device: torch.device | str) -> Tensor:
    codes = _view(frame, spec, k)
    if codes.strides[0] < 0:
        codes = codes.copy()
    plane = torch.from_numpy(codes).to(device).to(torch.float32)
    return plane.mul_(2.0 ** -_shift(spec)) if _shift(spec) else plane


def _store(frame: av.VideoFrame, spec: ColorSpec, k: int, plane: Tensor) -> None:
    codes = plane.round().clamp_(0, 2**spec.bits - 1)
    if _shift(spec):
        codes.mul_(2 ** _shift(spec))
    if codes.is_cuda:  # narrow before the transfer
        codes = codes.to(torch.uint8 if spec.bits <= 8 else torch.int32).cpu()
    torch.from_numpy(_view(frame, spec, k)).copy_(codes)


def _levels(spec: ColorSpec) -> tuple[float, float]:
    """Offset and extent of luma or RGB codes (H.273, eq. 20 to 28)."""
    if spec.full_range:
        return 0.0, 2.0**spec.bits - 1
    return 16 * 2.0 ** (spec.bits - 8), 219 * 2.0 ** (spec.bits - 8)


def _chroma_levels(spec: ColorSpec) -> tuple[float, float]:
    return 2.0 ** (spec.bits - 1), 2.0**spec.bits - 1 if spec.full_range else 224 * 2.0 ** (spec.bits - 8)


def _tag(frame: av.VideoFrame, tags: Tags) -> None:
    frame.colorspace, frame.color_range = tags.matrix, tags.range
    frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
