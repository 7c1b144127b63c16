"""The march of any field, a step of all rays at a time: the field's values come from outside, the rest is one operator.

For analytic shapes and grids the whole loop is a kernel (:mod:`distrender.tracing_kernels`). A network is asked for
many points at once instead; between two such questions ``distrender::march_step`` takes the values in, moves every
ray by the rules of ``csrc/trace_math.h``, and packs those that go on: one pass, no masks, no history.

On a GPU the march through a decoder is one operator after all, ``distrender::march_decoder``: blocks that evaluate the
network keep their rays until these end (``csrc/march_decoder.cu``). There a ray that once came below
``approximate_above`` is asked for exactly from then on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from papershelf import native
from torch import Tensor

from distrender import decoder_kernels
from distrender.decoder import CodedSDF
from distrender.marching import SDF, March, MarchOptions, approximation, ball_interval, query

_kernels = native.Kernels(
    "distrender_march",
    Path(__file__).parent / "csrc",
    cpu=["march.cpp", "march_cpu.cpp", "march_decoder.cpp"],
    cuda=["march.cu", "march_decoder.cu"],
)
FINISHES = ("none", "secant", "bisect")  # numbered as in csrc/trace.h
SLACK = 1e-6  # times the bound: how far before the ball's rim a ray may go back, as in march_reference
ROWS = ("t", "last_t", "last_f", "out_t", "out_f", "in_t", "in_f", "tries", "queries", "depth", "min_sdf", "min_depth")
BEGINNING = {"tries": 0.0, "queries": 0.0, "depth": torch.inf, "min_sdf": torch.inf}  # others: unknown

_MARCH = (
    "Tensor(a!) walks, Tensor(b!) state, Tensor origins, Tensor directions, Tensor slope, Tensor near, Tensor far, "
    "Tensor rays"
)
_RULES = (
    "float approximate_above, int steps, float ratio, float clamp, float threshold, int finish, float finish_below, "
    "float slack"
)
torch.library.define(
    "distrender::march_step",
    f"({_MARCH}, Tensor values, SymInt exact, {_RULES}) -> (Tensor rays, Tensor points, Tensor counts)",
)
# The result's first number counts the approximate values that were too small to be taken in.
torch.library.define(
    "distrender::march_decoder",
    f"({_MARCH}, Tensor heads, Tensor weights, Tensor rough_weights, SymInt[] sizes, SymInt tanh, {_RULES}) -> Tensor",
)


@torch.library.register_fake("distrender::march_step")
def _(walks: Tensor, state: Tensor, origins: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    rays = rest[4]
    return torch.empty_like(rays), origins.new_empty(len(rays), 3), rays.new_empty(2)


@torch.library.register_fake("distrender::march_decoder")
def _(walks: Tensor, state: Tensor, *rest: Tensor) -> Tensor:
    rays = rest[5]
    return rays.new_empty(len(rays) + 3)


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
    if _is_for_one_kernel(sdf, origins):
        coded, half = sdf.decoder.packed(torch.float32), rough and sdf.decoder.packed(torch.float16)
        network = (
            coded.heads(sdf.latent),
            coded.weights,
            half.weights if half else coded.weights.new_empty(0, dtype=torch.float16),
            coded.sizes,
            coded.config.final_tanh,
        )
        dropped = torch.ops.distrender.march_decoder(walks, state, *constants, rays, *network, *rules)[0]
        return _result(walks, state, int(walks[ROWS.index("queries")].sum(dtype=torch.float64) + dropped))
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
    return _result(walks, state, queries)


def _result(walks: Tensor, state: Tensor, queries: int) -> March:
    return March(*(walks[ROWS.index(name)] for name in ("depth", "min_sdf", "min_depth")), state, queries)


def _is_for_one_kernel(sdf: SDF, origins: Tensor) -> bool:
    """Whether the field is a decoder on a GPU, and calling it does no more than its forward."""
    if type(sdf) is not CodedSDF or not native.runs_cuda_code(origins.device):
        return False
    hooked = sdf._forward_hooks or sdf._forward_pre_hooks
    return not hooked and decoder_kernels.serves(sdf.decoder.config, origins, sdf.latent, sdf.decoder.lin0.weight)
