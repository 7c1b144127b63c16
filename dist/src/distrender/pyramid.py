"""Coarse to fine (DIST, section 3.2): one ray marches for a block of pixels first, then its children go on from there.

A coarse ray stands for the cone of its pixels' rays. With delta the largest distance between its direction and one of
theirs, a pixel's ray at depth s is at most |s - t| + s delta from the coarse one's point at depth t, so that a sample
f there vouches for all of them from (t - f) / (1 - delta) to (t + f) / (1 + delta). Longer steps (``ratio``) are kept
where what their samples vouch for joins up, and taken back where it does not. Children go on from there, and those do
not march at all whose way through the ball is vouched for.

So nothing is lost, silhouettes included, wherever |f| is at most the distance to the surface: true distances and what
CSG makes of them. On a field that overstates distances, as networks do in places, a child may start behind something
as thin as the overstatement; ``clamp`` bounds it. What is *not* conservative even for true distances are the
finest level's steps, if ``ratio`` is above 1, as without a pyramid.

Not in the paper: the cone (the paper hands the coarse depth on), blocks of any size, and the parent's slope df/dt,
with which a child that finishes with secants takes its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender import gradients
from distrender.cameras import Camera
from distrender.marching import SDF, March, MarchOptions, ball_interval, query, query_mixed
from distrender.tracing import Hit, approach, as_hit, march_rays

AGGRESSIVE = MarchOptions()
# Not in the paper: what asks fewest questions of a true distance function. The clamp believes every distance in the
# ball; cones get as many steps as they are worth, so that only a last few are left to the pixels' own rays. For a
# trained network make the last number 200: on maurock's decoders 28 lose up to two thirds of the hits, 200 a percent.
FEWEST = MarchOptions(ratio=1.0, clamp=2.0, finish="secant")
FEWEST_LEVELS, FEWEST_STEPS = (8, 4, 2, 1), (10, 6, 6, 28)
WORTH = 1.0  # a cone goes on while its next step is longer than so many of its radii: then it saves more than it asks


@dataclass
class _Cones:
    """Where cones ``[V, h, w]`` stand."""

    safe: Tensor  # depth up to which all their rays are known to be free
    t: Tensor  # depth to query next
    slope: Tensor  # df/dt between the last two samples, NaN where there were not two
    min_sdf: Tensor  # the sample of smallest magnitude, inf where there was none
    min_depth: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        return self.safe, self.t, self.slope, self.min_sdf, self.min_depth


def trace_image(
    sdf: SDF,
    camera: Camera,
    options: MarchOptions = AGGRESSIVE,
    *,
    levels: Sequence[int] = (4, 2, 1),
    steps: Sequence[int] = (3, 3, 44),
    gradient: Literal["implicit", "paper", "none"] = "implicit",
    chunk: int = gradients.CHUNK,
) -> Hit:
    """Trace every pixel of a camera's views, coarse to fine: a :class:`Hit` of ``[V, H, W]``.

    A ray that its cone proved to miss is never queried: its ``min_sdf`` is the smallest of the cone's samples, few and
    not on the ray itself. For the gradients of silhouettes set ``options.closest``, which finds the ray's own minimum.

    Args:
        sdf: points ``[N, 3]`` to signed distances ``[N]``, negative inside.
        camera: V views.
        options: how to march; ``steps`` of it is not used.
        levels: sides of the blocks in pixels, each a multiple of the next, the last 1 (section 3.2: 4, 2, 1).
        steps: queries at most on a ray of each level (section 4.1: 3, 3 and what remains of 50).
        gradient: as for :func:`distrender.tracing.sphere_trace`.
        chunk: likewise.

    Raises:
        UserError: the levels do not fit each other or the steps, or the field's result is no ``[N]``.
    """
    _check(levels, steps, gradient)
    origins, directions = camera.rays()
    shape = origins.shape[:-1]
    queries, cones = 0, None
    with torch.no_grad():
        for n, (side, most) in enumerate(zip(levels[:-1], steps[:-1], strict=True)):
            inherited = None if cones is None else _children(cones, camera.size, levels[n - 1], side)
            cones, asked = _march_cones(sdf, camera, side, inherited, replace(options, steps=most))
            queries += asked
        o, d = origins.detach().reshape(-1, 3), directions.detach().reshape(-1, 3)
        march = _march_pixels(
            sdf, o, d, cones and _children(cones, camera.size, levels[-2], 1), replace(options, steps=steps[-1])
        )
        march.queries += queries
    return as_hit(
        sdf, origins.reshape(-1, 3), directions.reshape(-1, 3), march, shape, options, gradient=gradient, chunk=chunk
    )


def _children(cones: _Cones, size: tuple[int, int], side: int, finer: int) -> _Cones:
    """What each block of side ``finer`` inherits from the block of side ``side`` that it lies in."""
    device = cones.safe.device
    y = torch.arange(-(-size[0] // finer), device=device) * finer // side
    x = torch.arange(-(-size[1] // finer), device=device) * finer // side
    return _Cones(*(field[:, y[:, None], x] for field in cones.fields()))


def _march_pixels(sdf: SDF, o: Tensor, d: Tensor, cones: _Cones | None, options: MarchOptions) -> March:
    """March the pixels' own rays ``[N, 3]`` from where their cones got to."""
    near, far = ball_interval(o, d, options.bound)
    if cones is None:
        march = march_rays(sdf, o, d, near, options)
    else:
        safe, t, slope, min_sdf, min_depth = (field.reshape(-1) for field in cones.fields())
        start = torch.where(safe < far, torch.maximum(near, t), torch.inf)
        march = march_rays(sdf, o, d, start, options, slope)
        proved = (near < far) & ~march.min_sdf.isfinite()
        march.min_depth = torch.where(proved, min_depth.maximum(near).minimum(far), march.min_depth)
        march.min_sdf = torch.where(proved, min_sdf, march.min_sdf)
        if options.closest:
            rays = proved.nonzero()[:, 0]
            march.min_sdf[rays] = query(sdf, o[rays] + march.min_depth[rays, None] * d[rays])
            march.queries += len(rays)
    approach(sdf, o, d, march, options)
    return march


def _march_cones(
    sdf: SDF, camera: Camera, side: int, inherited: _Cones | None, options: MarchOptions
) -> tuple[_Cones, int]:
    """March one ray for every block of ``side`` x ``side`` pixels as far as it serves them all; count the queries."""
    origins, directions, delta = _block_rays(camera, side)
    shape = origins.shape[:-1]
    o, d, delta = origins.reshape(-1, 3), directions.reshape(-1, 3), delta.reshape(-1)
    # The ball as the block sees it: none of its rays enters it before, or leaves it after, this one.
    furthest = o.norm(dim=-1).amax() + options.bound
    near, far = ball_interval(o, d, options.bound + float(furthest * delta.amax()))
    unknown = torch.full_like(near, torch.nan)
    if inherited is None:
        cones = _Cones(near, near, unknown, torch.full_like(near, torch.inf), near)
    else:
        cones = _Cones(*(field.reshape(-1) for field in inherited.fields()))
    cones = _Cones(near.maximum(cones.safe), near.maximum(cones.t), *(field.clone() for field in cones.fields()[2:]))
    rays = (cones.safe < far).nonzero()[:, 0]
    t, last_t, last_f = cones.t[rays], unknown[rays], unknown[rays]
    large = torch.ones_like(rays, dtype=torch.bool)  # whether the last value was: the next may be approximate
    queries = 0
    for _ in range(options.steps):
        if len(rays) == 0:
            break
        f, asked = query_mixed(sdf, o[rays] + t[:, None] * d[rays], large, options)
        queries += asked
        better = f.abs() < cones.min_sdf[rays].abs()
        cones.min_sdf[rays[better]], cones.min_depth[rays[better]] = f[better], t[better]
        slope = (f - last_f) / (t - last_t)
        cones.slope[rays] = torch.where(slope.isnan(), cones.slope[rays], slope)
        believed = f.clamp(-options.clamp, options.clamp)
        width, safe = delta[rays], cones.safe[rays]
        joined = (t - believed) / (1 - width) <= safe * (1 + 1e-6)  # rounding must not part what touches
        end = (t + believed) / (1 + width)
        on = torch.where(joined, end - t > WORTH * width * t, t > safe)
        cones.safe[rays] = safe = torch.where(joined, end.maximum(safe), safe)
        following = torch.where(joined & on, t + options.ratio * believed if options.ratio > 1 else end, safe)
        cones.t[rays] = following
        on &= safe < far[rays]
        rays, t, last_t, last_f = rays[on], following[on], t[on], f[on]
        large = last_f.abs() >= options.approximate_above
    return _Cones(*(field.reshape(shape) for field in cones.fields())), queries


def _block_rays(camera: Camera, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rays ``[V, h, w, 3]`` through the blocks' middles, and how far their pixels' directions differ ``[V, h, w]``."""
    corner = camera.pixels()[::side, ::side] - 0.5
    middle = corner + side / 2
    origins, directions = camera.rays_through(middle)
    delta = torch.zeros_like(directions[..., 0])
    for down in (-1, 1):
        for right in (-1, 1):
            offset = middle.new_tensor([right, down]) * (side - 1) / 2
            delta = delta.maximum((camera.rays_through(middle + offset)[1] - directions).norm(dim=-1))
    return origins, directions, delta


def _check(levels: Sequence[int], steps: Sequence[int], gradient: str) -> None:
    fitting = all(coarse > fine > 0 and coarse % fine == 0 for coarse, fine in pairwise(levels))
    if not levels or levels[-1] != 1 or not fitting:
        raise UserError(f"levels must each be a multiple of the next and end in 1, as 4, 2, 1, got {tuple(levels)}")
    if len(steps) != len(levels) or min(steps) < 1:
        raise UserError(f"steps must be a number from 1 on for each of {len(levels)} levels, got {tuple(steps)}")
    if gradient not in ("implicit", "paper", "none"):
        raise UserError(f"gradient must be implicit, paper or none, got {gradient!r}")
