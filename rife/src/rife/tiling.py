"""Large frames in overlapping tiles, so that the networks keep to a memory budget.

Tiles overlap by enough for motion across their borders to be seen from both, and are mixed there by
weights that run from 0 to 1: no seam. A motion longer than the overlap is seen by neither tile whole,
which is why frames that fit the budget are never cut.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

OVERLAP = 256  # pixels that neighbouring tiles share
SHARE = 0.5  # of the free memory that the networks may take by themselves


@dataclass(frozen=True)
class Span:
    """A tile's extent along one axis, and how much of it its neighbours share."""

    begin: int
    end: int
    before: int  # shared with the tile before
    after: int

    def weights(self) -> Tensor:
        """1 in the middle, rising and falling over what is shared; those of neighbours add up to 1."""
        weights = torch.ones(self.end - self.begin)
        for shared, end in ((self.before, False), (self.after, True)):
            ramp = (torch.arange(shared) + 0.5) / max(1, shared)
            if end:
                weights[len(weights) - shared :] = ramp.flip(0)
            else:
                weights[:shared] = ramp
        return weights


def spans(size: int, parts: int, overlap: int) -> list[Span]:
    """``size`` pixels in ``parts`` spans of nearly one length, neighbours sharing ``overlap``."""
    length = math.ceil((size + (parts - 1) * overlap) / parts)
    begins = [round(k * (size - length) / max(1, parts - 1)) for k in range(parts)]
    ends = [begin + length for begin in begins]
    shared = [0, *(end - begin for end, begin in zip(ends, begins[1:], strict=False)), 0]
    return [Span(*span) for span in zip(begins, ends, shared[:-1], shared[1:], strict=True)]


def tiles(height: int, width: int, pixels: int, overlap: int = OVERLAP) -> list[tuple[Span, Span]]:
    """The fewest tiles (rows, columns) of at most ``pixels`` each, as square as can be.

    A tile is never smaller than twice the overlap, however small the budget.
    """
    most = [max(1, (side - overlap) // overlap) for side in (height, width)]
    grids = product(range(1, most[0] + 1), range(1, most[1] + 1))

    def tile(grid: tuple[int, int]) -> tuple[int, int]:
        return tuple(math.ceil((side + (n - 1) * overlap) / n) for side, n in zip((height, width), grid, strict=True))

    def cost(grid: tuple[int, int]) -> tuple:
        h, w = tile(grid)
        return max(0, h * w - pixels), grid[0] * grid[1], abs(math.log(h / w))

    rows, columns = min(grids, key=cost)
    return list(product(spans(height, rows, overlap), spans(width, columns, overlap)))


def tiled(
    between: Callable[[Tensor, Tensor, Sequence], Tensor],
    a: Tensor,
    b: Tensor,
    alphas: Sequence,
    grid: Sequence[tuple[Span, Span]],
) -> Tensor:
    """``between(a, b, alphas)``, tile by tile.

    Args:
        between: ``[3, h, w]`` twice and T times to ``[T, 3, h, w]``.
        a: ``[3, H, W]``.
        b: likewise.
        alphas: T times.
        grid: from :func:`tiles`.

    Returns:
        ``[T, 3, H, W]`` on the device of ``a``.
    """
    out = a.new_zeros(len(alphas), *a.shape)
    for rows, columns in grid:
        place = (..., slice(rows.begin, rows.end), slice(columns.begin, columns.end))
        weights = rows.weights()[:, None] * columns.weights()
        out[place] += between(a[place], b[place], alphas).to(a.device) * weights.to(a.device)
    return out


def free_memory(device: torch.device) -> int:
    """Bytes that could be taken on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
