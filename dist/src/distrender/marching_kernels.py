"""The march of any field, a step of all rays at a time: the field's values come from outside, the rest is one operator.

For analytic shapes and grids the whole loop is a kernel (:mod:`distrender.tracing_kernels`). A network is asked for
many points at once instead; between two such questions ``distrender::march_step`` takes the values in, moves every
ray by the rules of ``csrc/trace_math.h``, and packs those that go on: one pass, no masks, no history.
"""

from __future__ import annotations

from pathlib import Path

import torch
from papershelf import native
from torch import Tensor

from distrender.marching import SDF, March, MarchOptions, approximation, ball_interval, query

_kernels = native.Kernels(
    "distrender_march", Path(__file__).parent / "csrc", cpu=["march.cpp", "march_cpu.cpp"], cuda=["march.cu"]
)
FINISHES = ("none", "secant", "bisect")  # numbered as in csrc/trace.h
SLACK = 1e-6  # times the bound: how far before the ball's rim a ray may go back, as in march_reference
ROWS = ("t", "last_t", "last_f", "out_t", "out_f", "in_t", "in_f", "tries", "queries", "depth", "min_sdf", "min_depth")
BEGINNING = {"tries": 0.0, "queries": 0.0, "depth": torch.inf, "min_sdf": torch.inf}  # others: unknown

torch.library.define(
    "distrender::march_step",
    "(Tensor(a!) walks, Tensor(b!) state, Tensor origins, Tensor directions, Tensor slope, Tensor near, Tensor far, "
    "Tensor rays, Tensor values, SymInt exact, float approximate_above, int steps, float ratio, float clamp, "
    "float threshold, int finish, float finish_below, float slack) -> (Tensor rays, Tensor points, Tensor counts)",
)


@torch.library.register_fake("distrender::march_step")
def _(walks: Tensor, state: Tensor, origins: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    rays = rest[4]
    return torch.empty_like(rays), origins.new_empty(len(rays), 3), rays.new_empty(2)


def march(
    sdf: SDF,
    origins: Tensor,
    directions: Tensor,
    start: Tensor,
    options: MarchOptions,
    slope: Tensor | None = None,
) -> March | None:
    """What :func:`distrender.marching.march_reference` does, or None where there is no kernel for it.

    Only marching with ``dynamic`` and one sample is served: the other way is there to count what it costs, and several
    samples are for the paper's gradient. Arguments as there, float32 or float64.
    """
    if not options.dynamic or options.samples > 1 or not _kernels.load(origins.device):
        return None
    near, far = ball_interval(origins, directions, options.bound)
    n, rough = len(start), approximation(sdf, options)
    walks = torch.full((len(ROWS), n), torch.nan, dtype=origins.dtype, device=origins.device)
    for name, value in BEGINNING.items():
        walks[ROWS.index(name)] = value
    walks[ROWS.index("t")], walks[ROWS.index("min_depth")] = start, near
    state = torch.zeros(n, dtype=torch.int8, device=origins.device)
    expected = torch.full_like(near, torch.nan) if slope is None else slope.to(origins.dtype).contiguous()
    constants = (origins.contiguous(), directions.contiguous(), expected, near, far)
    rules = (
        torch.inf if rough is None else options.approximate_above,
        options.steps,
        options.ratio,
        options.clamp,
        options.threshold,
        FINISHES.index(options.finish),
        options.finish_below,
        options.bound * SLACK,
    )
    rays = (start < far).nonzero()[:, 0].to(torch.int32)
    points = origins[rays] + start[rays, None] * directions[rays]
    exact, queries = (len(rays) if rough is None else 0), 0
    while len(rays):
        parts = [query(sdf, points[:exact])] if exact else []
        if exact < len(rays):
            parts.append(query(rough, points[exact:]))
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        queries += len(rays)
        rays, points, counts = torch.ops.distrender.march_step(walks, state, *constants, rays, values, exact, *rules)
        exact, others = counts.tolist()
        rays, points = rays[: exact + others], points[: exact + others]
    found = (walks[ROWS.index(name)] for name in ("depth", "min_sdf", "min_depth"))
    return March(*found, state, queries)
