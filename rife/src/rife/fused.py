r"""What happens between IFNet's convolutions at inference, each step in one pass over memory.

The plain network (:mod:`rife.model`) warps both frames at full size for every block, shrinks all planes,
joins them, enlarges the block's answer and adds it. Here a block's input is computed at its own size
right away (bilinear shrinking by a power of two reads four pixels of each cell, so only those are warped),
its answer is enlarged while it is added, and the last blend reads the estimate as it stands.

=====================  ==============================================================================
``assemble``           a block's input from frames and estimate at 1/scale
``add_upsampled``      estimate += enlarge(answer), flow in pixels of the full size
``blend_pair``         eq. (1), and the refinement's residual
``activate``           PReLU in place, with bias and residuals
=====================  ==============================================================================

Frames are ``[H, W, 4]`` float32 (R, G, B, 0), the estimate ``[T, H, W, 5]`` float32 (flow towards both
frames, mask logit), one for each time t; features are ``[T, C, h, w]`` channels_last in float32,
bfloat16 or float16. There is no gradient: training uses the plain network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from papershelf import native
from torch import Tensor

PLANES = ("img0", "img1", "warped0", "warped1", "t", "mask", "flow")  # their codes, see fused_math.h
STATE = 5  # channels of the estimate
FEATURES = (torch.float32, torch.bfloat16, torch.float16)

_kernels = native.Kernels(
    "rife_fused", Path(__file__).parent / "csrc", cpu=["fused.cpp", "fused_cpu.cpp"], cuda=["fused.cu"]
)


def available(device: torch.device | str) -> bool:
    """Whether the kernels for ``device`` are there, after building them if need be."""
    return _kernels.load(device)


def pad_frame(frame: Tensor, height: int, width: int) -> Tensor:
    """``[3, H, W]`` as ``[height, width, 4]`` float32, zeros at the right and the bottom."""
    out = frame.new_zeros(height, width, 4, dtype=torch.float32)
    out[: frame.shape[1], : frame.shape[2], :3] = frame.permute(1, 2, 0)
    return out


def assemble(
    img0: Tensor,
    img1: Tensor,
    state: Tensor | None,
    t: Tensor,
    planes: Sequence[str],
    scale: int,
    dtype: torch.dtype,
    channels: int = 0,
) -> Tensor:
    """A block's input at 1/``scale``.

    Args:
        img0: ``[H, W, 4]``; H and W multiples of ``scale``.
        img1: likewise.
        state: ``[T, H, W, 5]``; None before the first block, which knows of frames and time only.
        t: ``[T]``.
        planes: names of :data:`PLANES` in the order of the block's channels.
        scale: a power of two, 1 or more.
        dtype: of the result.
        channels: C of the result at least; zeros follow the planes, since tensor cores like multiples of 8.

    Returns:
        ``[T, C, H/scale, W/scale]`` channels_last.
    """
    _check_float(img0=img0, img1=img1, state=state, t=t)
    if dtype not in FEATURES:
        raise TypeError(f"features must be float16, bfloat16 or float32, got {dtype}")
    codes = [PLANES.index(name) for name in planes]
    return torch.ops.rife_fused.assemble(img0, img1, state, t, codes, scale, channels, dtype)


def add_upsampled(state: Tensor, change: Tensor, factor: int, *, shuffle: bool = False) -> None:
    """Add a block's answer to the estimate, in place.

    Args:
        state: ``[T, H, W, 5]``.
        change: ``[T, C, h, w]`` channels_last, the first five channels being flow and mask.
        factor: how many times larger the estimate is; the flow's values grow by it.
        shuffle: ``change`` is as it was before a pixel shuffle by 2, with 4 C channels at half the size.
    """
    _check_float(state=state)
    _check_features(change=change)
    size = [side * factor * (1 + shuffle) for side in change.shape[2:]]
    if size != list(state.shape[1:3]) or change.shape[1] < STATE * (4 if shuffle else 1):
        raise ValueError(f"change {list(change.shape)} times {factor} does not fit state {list(state.shape)}")
    torch.ops.rife_fused.add_upsampled(state, change, factor, shuffle)


def blend_pair(img0: Tensor, img1: Tensor, state: Tensor, residual: Tensor | None, height: int, width: int) -> Tensor:
    """Eq. (1), plus ``2 sigmoid(residual) - 1`` where there is one; the padding cut off.

    Args:
        img0: ``[H, W, 4]``.
        img1: likewise.
        state: ``[T, H, W, 5]``.
        residual: ``[T, 3, H, W]`` channels_last, the refinement's logits, or None.
        height: of the result, at most H.
        width: likewise.

    Returns:
        ``[T, 3, height, width]`` float32, not clamped.
    """
    _check_float(img0=img0, img1=img1, state=state)
    _check_features(residual=residual)
    if height > state.shape[1] or width > state.shape[2]:
        raise ValueError(f"{height} x {width} is more than there is: {list(state.shape)}")
    return torch.ops.rife_fused.blend_pair(img0, img1, state, residual, height, width)


def activate(
    x: Tensor, bias: Tensor | None, slope: Tensor, *, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """``prelu(x + bias + before) + after``, in place.

    Args:
        x: ``[T, C, h, w]`` channels_last.
        bias: ``[C]`` float32, or None.
        slope: ``[C]`` float32; what negative values are multiplied by.
        before: like ``x``, or None.
        after: like ``x``, or None.
    """
    _check_float(bias=bias, slope=slope)
    _check_features(x=x, before=before, after=after)
    for other in (before, after):
        if other is not None and (other.shape, other.dtype) != (x.shape, x.dtype):
            raise ValueError(f"before and after must be like x, {x.dtype} {list(x.shape)}")
    torch.ops.rife_fused.activate(x, bias, slope, before, after)
    return x


# Checked here and not in C++ alone: a C++ exception ends the whole process with PyTorch 2.11.
def _check_float(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_contiguous()):
            raise TypeError(f"{name} must be contiguous float32, got {tensor.dtype} with strides {tensor.stride()}")


def _check_features(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in FEATURES or not tensor.is_contiguous(memory_format=torch.channels_last):
            raise TypeError(f"{name} must be channels_last float16, bfloat16 or float32, got {tensor.dtype}")


torch.library.define(
    "rife_fused::assemble",
    "(Tensor img0, Tensor img1, Tensor? state, Tensor t, int[] planes, int scale, int channels,"
    " ScalarType dtype) -> Tensor",
)
torch.library.define("rife_fused::add_upsampled", "(Tensor(a!) state, Tensor change, int factor, bool shuffle) -> ()")
torch.library.define(
    "rife_fused::blend_pair",
    "(Tensor img0, Tensor img1, Tensor state, Tensor? residual, int height, int width) -> Tensor",
)
torch.library.define(
    "rife_fused::activate", "(Tensor(a!) x, Tensor? bias, Tensor slope, Tensor? before, Tensor? after) -> ()"
)


@torch.library.register_fake("rife_fused::assemble")
def _(img0, img1, state, t, planes, scale, channels, dtype):
    channels = max(channels, sum({"t": 1, "mask": 1, "flow": 4}.get(PLANES[code], 3) for code in planes))
    shape = (t.shape[0], channels, img0.shape[0] // scale, img0.shape[1] // scale)
    return img0.new_empty(shape, dtype=dtype).to(memory_format=torch.channels_last)


@torch.library.register_fake("rife_fused::add_upsampled")
def _(state, change, factor, shuffle):
    return None


@torch.library.register_fake("rife_fused::blend_pair")
def _(img0, img1, state, residual, height, width):
    return img0.new_empty(state.shape[0], 3, height, width)


@torch.library.register_fake("rife_fused::activate")
def _(x, bias, slope, before, after):
    return None
