r"""The adder operation on bytes: activations and filters on one grid, whole-number sums.

.. math::
    q(v) = \mathrm{clamp}(\mathrm{round}(v / s) + z, 0, 255), \qquad
    Y(n, o, p) \approx -s \sum_k |q(X(n, k, p)) - q(F(o, k))|

Both sides of a difference must lie on the same grid, so a layer has one step s and one zero point z, which
cancels. Padding is a pixel of value 0, that is of byte z.

Three operators, computed by the kernels in ``csrc/`` when they can be built and by the ``*_reference`` functions
when they cannot:

=========================  ============================================================================
``addernet::int8_forward``   the sums
``addernet::int8_layer``     the sums, then batch norm, residual, ReLU and the next layer's grid in one pass
``addernet::int8_quantize``  q
=========================  ============================================================================

Not in the paper, which computes in float32. How grids are chosen is in :mod:`addernet.quantization`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf import native
from papershelf.errors import UserError
from torch import Tensor

from addernet.adder import adder2d_reference

_kernels = native.Kernels(
    "addernet_int8", Path(__file__).parent / "csrc", cpu=["int8.cpp", "int8_cpu.cpp"], cuda=["int8.cu"]
)
LANE = OUTPUTS = 8  # kLane and kOutputs of csrc/int8_math.h
MOST_TAPS = (2**31 - 1) // 255  # whose sum still fits 32 bits


@dataclass(frozen=True)
class Grid:
    """The values that bytes stand for: ``step * (byte - zero_point)``.

    Attributes:
        step: distance of neighbouring values, above 0.
        zero_point: the byte of value 0, from 0 to 255.
    """

    step: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (0 < self.step < float("inf") and 0 <= self.zero_point <= 255):
            raise UserError(f"a grid needs a step above 0 and a zero point from 0 to 255, got {self}")

    @staticmethod
    def between(low: float, high: float) -> Grid:
        """The grid that spans ``[low, high]`` and has 0 on it; a range without 0 is extended to it."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 255 or 1.0
        return Grid(step, round(-low / step))

    @property
    def low(self) -> float:
        """The least value."""
        return -self.step * self.zero_point

    @property
    def high(self) -> float:
        """The largest value."""
        return self.step * (255 - self.zero_point)

    def values(self, bytes_: Tensor) -> Tensor:
        """What bytes stand for, float32."""
        return (bytes_.float() - self.zero_point) * self.step


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """The bytes nearest to ``x``, saturating; NaN becomes 0.

    Args:
        x: ``[N, C, H, W]`` floating point, any strides.
        grid: the values to choose from.

    Returns:
        ``[N, C, H, W]`` uint8, channels last.
    """
    return torch.ops.addernet.int8_quantize(x.float(), 1 / grid.step, grid.zero_point)


def adder2d_int8(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Sums of absolute differences of bytes.

    Args:
        x: ``[N, C, H, W]`` uint8, any strides; channels last is fastest.
        weight: ``[O, C / groups, kh, kw]`` uint8, on x's grid.
        zero_point: the byte that padding consists of, from 0 to 255.
        stride: (vertical, horizontal), in pixels, as in ``F.conv2d``.
        padding: likewise.
        dilation: likewise.
        groups: as in ``F.conv2d``.

    Returns:
        ``[N, O, Ho, Wo]`` int32 from 0 on, channels last: times ``-step``, the adder layer's output.

    Raises:
        UserError: shapes or dtypes do not fit.
    """
    return torch.ops.addernet.int8_forward(x, weight, zero_point, stride, padding, dilation, groups)


def pack(weight: Tensor, groups: int = 1) -> Tensor:
    """Filters as the kernels read them: eight output channels interleaved, eight input channels at a time.

    Args:
        weight: ``[O, C / groups, kh, kw]`` uint8.
        groups: of channels.

    Returns:
        ``[groups, blocks, kh, kw, lanes, 8, 8]`` uint8: output channel and input channel come last; zeros
        where their numbers are no multiples of eight.
    """
    o, c, kh, kw = weight.shape
    filters = F.pad(
        weight.view(groups, o // groups, c, kh, kw), (0, 0, 0, 0, 0, -c % LANE, 0, -(o // groups) % OUTPUTS)
    )
    filters = filters.unflatten(2, (-1, LANE)).unflatten(1, (-1, OUTPUTS))  # [groups, blocks, 8, lanes, 8, kh, kw]
    return filters.permute(0, 1, 5, 6, 3, 2, 4).contiguous()


def unpack(filters: Tensor, out_channels: int, in_channels: int) -> Tensor:
    """What was packed, for as many channels: ``[O, C / groups, kh, kw]``."""
    groups = filters.shape[0]
    weight = filters.permute(0, 1, 5, 4, 6, 2, 3).flatten(3, 4).flatten(1, 2)
    return weight[:, : out_channels // groups, : in_channels // groups].flatten(0, 1)


def adder2d_int8_reference(x: Tensor, weight: Tensor, zero_point: int, *window) -> Tensor:
    """What :func:`adder2d_int8` must compute, in plain PyTorch: doubles hold its sums exactly."""
    sums = -adder2d_reference(x.double() - zero_point, weight.double() - zero_point, *window)
    return sums.round().to(torch.int32, memory_format=torch.channels_last)


def quantize_reference(x: Tensor, inverse_step: float, zero_point: int) -> Tensor:
    """What :func:`quantize` must compute, in plain PyTorch."""
    # A tensor's product with a Python number is taken in float32, as in the kernels.
    bytes_ = ((x * inverse_step).round() + zero_point).nan_to_num(0, 255, 0).clamp(0, 255)
    return bytes_.to(torch.uint8, memory_format=torch.channels_last)


def layer_reference(
    x: Tensor,
    filters: Tensor,
    zero_point: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: Tensor,
    offset: Tensor,
    residual: Tensor | None,
    relu: bool,
    want_float: bool,
    next_inverse_step: float,
    next_zero_point: int,
) -> tuple[Tensor, Tensor]:
    """What ``addernet::int8_layer`` must compute, in plain PyTorch.

    ``scale * sums + offset``, plus the residual, then ReLU where wanted; given as float32, on the next layer's
    grid, or both. A step of 0 means no grid; what is not wanted is a tensor without elements.
    """
    weight = unpack(filters, len(scale), x.shape[1])
    sums = adder2d_int8_reference(x, weight, zero_point, stride, padding, dilation, groups)
    y = sums * scale[:, None, None] + offset[:, None, None]
    if residual is not None:
        y = y + residual
    if relu:
        y = y.relu()
    y = y.contiguous(memory_format=torch.channels_last)
    bytes_ = quantize_reference(y, next_inverse_step, next_zero_point) if next_inverse_step > 0 else x.new_empty(0)
    return (y if want_float else y.new_empty(0)), bytes_


# The operators: schema, shapes for torch.compile, checks, and what computes them without kernels. csrc/
# registers those called *_kernel, which take packed filters.
_WINDOW = "int[] stride, int[] padding, int[] dilation, int groups"
_EPILOGUE = (
    "Tensor scale, Tensor offset, Tensor? residual, bool relu, bool want_float, float next_inverse_step, "
    "int next_zero_point"
)
for _name in ("int8_layer", "int8_layer_kernel"):
    torch.library.define(
        f"addernet::{_name}", f"(Tensor x, Tensor filters, int zero_point, {_WINDOW}, {_EPILOGUE}) -> (Tensor, Tensor)"
    )
for _name in ("int8_quantize", "int8_quantize_kernel"):
    torch.library.define(f"addernet::{_name}", "(Tensor x, float inverse_step, int zero_point) -> Tensor")
torch.library.define("addernet::int8_forward", f"(Tensor x, Tensor weight, int zero_point, {_WINDOW}) -> Tensor")
torch.library.define(
    "addernet::int8_forward_kernel",
    f"(Tensor x, Tensor filters, int out_channels, int zero_point, {_WINDOW}) -> Tensor",
)


@torch.library.impl("addernet::int8_forward", ["cpu", "cuda"])
def _forward(x: Tensor, weight: Tensor, zero_point: int, stride, padding, dilation, groups: int) -> Tensor:
    _check(x, weight, zero_point, stride, padding, dilation, groups)
    if _kernels.load(x.device):
        size = len(weight), zero_point, stride, padding, dilation, groups
        return torch.ops.addernet.int8_forward_kernel(x, pack(weight, groups), *size)
    return adder2d_int8_reference(x, weight, zero_point, stride, padding, dilation, groups)


@torch.library.impl("addernet::int8_layer", ["cpu", "cuda"])
def _layer(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    return (torch.ops.addernet.int8_layer_kernel if _kernels.load(x.device) else layer_reference)(x, *args)


@torch.library.impl("addernet::int8_quantize", ["cpu", "cuda"])
def _quantize(x: Tensor, inverse_step: float, zero_point: int) -> Tensor:
    kernel = torch.ops.addernet.int8_quantize_kernel if _kernels.load(x.device) else quantize_reference
    return kernel(x, inverse_step, zero_point)


@torch.library.register_fake("addernet::int8_forward")
def _(x: Tensor, weight: Tensor, zero_point: int, stride, padding, dilation, groups: int) -> Tensor:
    return _new_output(x, len(weight), weight.shape[2:], stride, padding, dilation, torch.int32)


@torch.library.register_fake("addernet::int8_layer")
def _(
    x, filters, zero_point, stride, padding, dilation, groups,
    scale, offset, residual, relu, want_float, next_inverse_step, next_zero_point,
):  # fmt: skip
    shape = len(scale), filters.shape[2:4], stride, padding, dilation
    return (
        _new_output(x, *shape, torch.float32) if want_float else scale.new_empty(0),
        _new_output(x, *shape, torch.uint8) if next_inverse_step > 0 else x.new_empty(0),
    )


@torch.library.register_fake("addernet::int8_quantize")
def _(x: Tensor, inverse_step: float, zero_point: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8, memory_format=torch.channels_last)


def _new_output(x: Tensor, channels: int, kernel, stride, padding, dilation, dtype: torch.dtype) -> Tensor:
    height, width = _output_size(x, kernel, stride, padding, dilation)
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _output_size(x: Tensor, kernel, stride, padding, dilation) -> list[int]:
    return [
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, pad, step, taps, jump in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]


def _check(x: Tensor, weight: Tensor, zero_point: int, stride, padding, dilation, groups: int) -> None:
    if x.ndim != 4 or weight.ndim != 4 or 0 in weight.shape or {x.dtype, weight.dtype} != {torch.uint8}:
        raise UserError(
            f"x must be uint8 [N, C, H, W] and weight uint8 [O, C / groups, kh, kw], got {x.dtype} {list(x.shape)} "
            f"and {weight.dtype} {list(weight.shape)}"
        )
    if groups < 1 or len(weight) % groups or x.shape[1] != weight.shape[1] * groups:
        raise UserError(
            f"x {list(x.shape)} and weight {list(weight.shape)} do not fit with groups={groups}: x must have "
            f"{weight.shape[1] * max(groups, 1)} channels, and the filters divide evenly among the groups"
        )
    if not 0 <= zero_point <= 255:
        raise UserError(f"the zero point must be a byte, 0 to 255, got {zero_point}")
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != 2 or min(value) < least:
            raise UserError(f"{name} must be two numbers from {least} on, got {value}")
    if min(_output_size(x, weight.shape[2:], stride, padding, dilation)) < 1:
        raise UserError(f"x {list(x.shape)} with padding {padding} is smaller than filters of {list(weight.shape[2:])}")
    if weight[0].numel() > MOST_TAPS:
        raise UserError(f"a filter may have {MOST_TAPS} numbers, so that sums fit 32 bits; got {weight[0].numel()}")
