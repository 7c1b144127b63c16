"""The marching loop as one operator, for fields that kernels can compute: shapes put together, and grids.

:func:`march` does what :func:`distrender.tracing.march_reference` does, ray by ray instead of step by step: nothing is
written between the steps, and a ray that has ended makes room for the next. The rules stand in ``csrc/trace_math.h``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from papershelf import native
from torch import Tensor, nn

from distrender import tracing
from distrender.analytic import AnalyticSDF
from distrender.grid import CompactGrid, GridSDF

if TYPE_CHECKING:
    from distrender.tracing import MarchOptions

_kernels = native.Kernels(
    "distrender", Path(__file__).parent / "csrc", cpu=["trace.cpp", "trace_cpu.cpp"], cuda=["trace.cu"]
)
FINISHES = ("none", "secant", "bisect")  # numbered as in csrc/trace.h
SLOTS, DEPTH, INSTRUCTIONS, CONSTANTS = 8, 8, 256, 1024  # what a tape may need; csrc/trace.h has the same numbers
SLACK = 1e-6  # times the bound: how far before the ball's rim a ray may go back, as in march_reference
LARGEST_GRID = 2**31 - 1  # samples, counted in 32 bits


def march(
    sdf: object,
    origins: Tensor,
    directions: Tensor,
    start: Tensor,
    options: MarchOptions,
    slope: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int] | None:
    """March rays by a kernel, without gradients, or say that there is none for them.

    Args:
        sdf: an :class:`AnalyticSDF`, a :class:`GridSDF` or a :class:`CompactGrid`; for others there is no kernel.
        origins: ``[N, 3]``, float32 or float64 like the field's numbers, or for a compact grid either.
        directions: ``[N, 3]``, unit.
        start: ``[N]``, depths of the first queries.
        options: how to march. Only marching with ``dynamic`` and one sample is served: the other way is there to count
            what it costs, and several samples are for the paper's gradient.
        slope: ``[N]``, df/dt to expect at the start, NaN where unknown.

    Returns:
        Depth ``[N]`` (inf where missed), signed value of smallest magnitude ``[N]`` (inf where the field was never
        asked), its depth ``[N]``, state ``[N]`` int8 (0 missed, 1 hit, 2 saw both signs without converging), and how
        many queries there were. None where no kernel serves the field, the rays or the options.
    """
    if (
        type(sdf) not in (AnalyticSDF, GridSDF, CompactGrid)
        or _is_hooked(sdf)
        or not options.dynamic
        or options.samples > 1
    ):
        return None
    compact = isinstance(sdf, CompactGrid)
    numbers = sdf.bricks if compact else sdf.values
    if numbers.dtype != (torch.float16 if compact else origins.dtype) or numbers.device != origins.device:
        return None
    fits = _tape_fits(sdf) if isinstance(sdf, AnalyticSDF) else numbers.numel() <= LARGEST_GRID
    if not fits or not _kernels.load(origins.device):
        return None
    with torch.no_grad():
        near, far = tracing.ball_interval(origins, directions, options.bound)
        expected = torch.full_like(near, torch.nan) if slope is None else slope
        rays = [tensor.to(origins.dtype).contiguous() for tensor in (origins, directions, start, expected, near, far)]
        rules = (
            options.steps,
            options.ratio,
            options.clamp,
            options.threshold,
            FINISHES.index(options.finish),
            options.finish_below,
            options.bound * SLACK,
        )
        if isinstance(sdf, AnalyticSDF):
            *found, queries = torch.ops.distrender.trace_analytic(*rays, sdf.tape, sdf.constants(), *rules)
        elif compact:
            *found, queries = torch.ops.distrender.trace_bricks(*rays, numbers, *sdf.size, sdf.low, sdf.high, *rules)
        else:
            *found, queries = torch.ops.distrender.trace_grid(*rays, numbers.contiguous(), sdf.low, sdf.high, *rules)
        return *found, int(queries.sum())


def _is_hooked(sdf: nn.Module) -> bool:
    """Whether calling the field does more than its forward, as counting queries in a hook: kernels pass hooks by."""
    return bool(sdf._forward_hooks or sdf._forward_pre_hooks)


def _tape_fits(sdf: AnalyticSDF) -> bool:
    constants = sdf.constants()
    return (
        sdf.slots <= SLOTS and sdf.depth <= DEPTH and len(sdf.tape) <= INSTRUCTIONS and constants.numel() <= CONSTANTS
    )


# The operators themselves: schema, and shapes for torch.compile. csrc/ adds CPU and CUDA kernels. There is no gradient:
# marching has none (gradients.py asks the field again).
_RAYS = "Tensor origins, Tensor directions, Tensor start, Tensor slope, Tensor near, Tensor far"
_RULES = "int steps, float ratio, float clamp, float threshold, int finish, float finish_below, float slack"
_RESULTS = "(Tensor depth, Tensor min_sdf, Tensor min_depth, Tensor state, Tensor queries)"
torch.library.define("distrender::trace_analytic", f"({_RAYS}, Tensor tape, Tensor constants, {_RULES}) -> {_RESULTS}")
torch.library.define(
    "distrender::trace_grid", f"({_RAYS}, Tensor values, float low, float high, {_RULES}) -> {_RESULTS}"
)
torch.library.define(
    "distrender::trace_bricks",
    f"({_RAYS}, Tensor bricks, int d, int h, int w, float low, float high, {_RULES}) -> {_RESULTS}",
)


@torch.library.register_fake("distrender::trace_analytic")
@torch.library.register_fake("distrender::trace_grid")
@torch.library.register_fake("distrender::trace_bricks")
def _(origins: Tensor, *_: object) -> tuple[Tensor, ...]:
    n = origins.shape[:1]
    numbers = (origins.new_empty(n) for _ in range(3))
    return *numbers, origins.new_empty(n, dtype=torch.int8), origins.new_empty(n, dtype=torch.int32)
