"""Chroma resampling for subsampled YUV: bilinear up, and the least-squares inverse of that down.

A subsampled chroma plane is read as a piecewise linear surface through its samples, at the places
where the stream says they lie (H.273, figures 8 to 11): upsampling is a linear map ``U``. Going back
takes ``D = (U^T U)^-1 U^T``, the plane whose upsampling lies nearest to the given one. ``D U = I``, so a
frame that goes to RGB and back is unchanged, and an interpolated frame gets chroma of exactly the
sharpness that the frames beside it have; a box filter would soften new frames only, which flickers.

``U^T U`` is tridiagonal, its inverse decays by 3 or more a sample: away from the borders ``D`` is a
short filter, the same for every sample. It is applied as a few small matrix products.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SITINGS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_BLOCK = 32  # output samples per matrix product; more than twice the reach of D's tails


def upsample(chroma: Tensor, size: tuple[int, int], subsampling: tuple[int, int], siting: str) -> Tensor:
    """Chroma at luma resolution by bilinear interpolation, borders repeated.

    Args:
        chroma: ``[C, h, w]`` with ``h = ceil(H / 2**sy)`` and ``w = ceil(W / 2**sx)``.
        size: ``(H, W)`` of the luma plane.
        subsampling: ``(sx, sy)``, log2 of the factors.
        siting: where chroma samples lie, one of :data:`SITINGS`.

    Returns:
        ``[C, H, W]``.
    """
    factors, (off_x, off_y) = _geometry(subsampling, siting)
    chroma = _up(chroma, -2, factors[1], off_y, size[0])
    return _up(chroma, -1, factors[0], off_x, size[1])


def downsample(plane: Tensor, subsampling: tuple[int, int], siting: str, bits: int) -> Tensor:
    """The chroma plane whose :func:`upsample` lies nearest to ``plane`` in the least-squares sense.

    Args:
        plane: ``[C, H, W]`` float32.
        subsampling: as for :func:`upsample`.
        siting: as for :func:`upsample`.
        bits: depth that the result is stored with; filter tails far below half a code are left out.

    Returns:
        ``[C, h, w]``.
    """
    factors, (off_x, off_y) = _geometry(subsampling, siting)
    # The axis with the shorter filter first, since the first pass sees twice the samples.
    axes = sorted([(-1, factors[0], off_x), (-2, factors[1], off_y)], key=lambda axis: axis[2] == (axis[1] - 1) / 2)
    for dim, factor, offset in axes:
        plane = _down(plane, dim, factor, offset, bits)
    return plane


def _geometry(subsampling: tuple[int, int], siting: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Factors, and the position of chroma sample 0 on the luma grid, horizontally and vertically."""
    fx, fy = (1 << s for s in subsampling)
    off_x = 0.0 if siting.endswith("left") else (fx - 1) / 2
    off_y = {"t": 0.0, "b": fy - 1.0}.get(siting[0], (fy - 1) / 2)
    return (fx, fy), (off_x, off_y)


def _up(x: Tensor, dim: int, factor: int, offset: float, size: int) -> Tensor:
    """U along one axis: luma sample ``factor * i + p`` lies at ``i + (p - offset) / factor`` between chroma samples."""
    if factor == 1:
        return x
    n = x.shape[dim]
    padded = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, n - 1, 1)], dim)
    shape = list(x.shape)
    shape.insert(x.ndim + dim + 1, factor)  # the phases, interleaved by the flatten below
    out = x.new_empty(shape)
    for p in range(factor):
        position = (p - offset) / factor
        first = math.floor(position)
        lo, hi = padded.narrow(dim, 1 + first, n), padded.narrow(dim, 2 + first, n)
        torch.lerp(lo, hi, position - first, out=out.select(dim, p))
    return out.flatten(dim - 1, dim).narrow(dim, 0, size)


def _down(x: Tensor, dim: int, factor: int, offset: float, bits: int) -> Tensor:
    """D along one axis."""
    if factor == 1:
        return x
    n = -(-x.shape[dim] // factor)
    shape = list(x.shape)
    shape[dim] = n
    out = x.new_empty(shape)
    for start, source, weights in _inverse(x.shape[dim], factor, offset, bits, x.device):
        rows, taps = weights.shape
        if dim == -1:
            torch.mm(
                x.reshape(-1, x.shape[-1])[:, source : source + taps],
                weights.T,
                out=out.view(-1, n)[:, start : start + rows],
            )
        else:
            for plane, result in zip(x, out, strict=True):
                torch.mm(weights, plane[source : source + taps], out=result[start : start + rows])
    return out


@lru_cache(maxsize=64)
def _inverse(size: int, factor: int, offset: float, bits: int, device: torch.device) -> list[tuple[int, int, Tensor]]:
    """D for ``size`` luma samples as blocks ``(first output, first input, weights [outputs, inputs])``."""
    n = -(-size // factor)
    if n <= 3 * _BLOCK:
        return [(0, 0, _pseudo_inverse(size, factor, offset).float().to(device))]
    # A short line with the same end as the long one: its thirds are the start, the middle and the end of D.
    short = size - factor * (n - 3 * _BLOCK)
    d = _pseudo_inverse(short, factor, offset)
    middle = d[_BLOCK + _BLOCK // 2].abs()
    reach = (middle > 2.0 ** -(bits + 6)).nonzero()
    centre = factor * (_BLOCK + _BLOCK // 2)
    halo = int(max(centre - reach.min(), reach.max() - centre)) + 1
    ends = [(0, factor * _BLOCK + halo), (factor * _BLOCK - halo, 2 * factor * _BLOCK + halo)]
    ends.append((2 * factor * _BLOCK - halo, short))
    parts = []
    for third, (first, last) in enumerate(ends):
        weights = d[third * _BLOCK : (third + 1) * _BLOCK, first:last]
        # What was cut off is made up for, so that a constant stays that constant.
        weights = weights / weights.sum(1, keepdim=True)
        parts.append((first - third * factor * _BLOCK, weights.float().to(device)))
    starts = [0, *range(_BLOCK, n - 2 * _BLOCK, _BLOCK), n - 2 * _BLOCK, n - _BLOCK]
    which = [0, *[1] * (len(starts) - 2), 2]
    return [(start, factor * start + parts[k][0], parts[k][1]) for start, k in zip(starts, which, strict=True)]


def _pseudo_inverse(size: int, factor: int, offset: float) -> Tensor:
    """(U^T U)^-1 U^T in float64, ``[ceil(size / factor), size]``."""
    u = _up(torch.eye(-(-size // factor), dtype=torch.float64), -1, factor, offset, size).T
    return torch.linalg.solve(u.T @ u, u.T)
