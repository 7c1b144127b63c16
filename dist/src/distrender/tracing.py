"""Sphere tracing (DIST, section 3.2): where rays meet the zero set of a signed distance function.

A ray starts where it enters the ball that holds the scene and steps by what the field says,

    t <- t + ratio * clamp(f(o + t d), -clamp, clamp),

until |f| falls below a threshold or the ray leaves the ball. The paper's tricks, each a field of
:class:`MarchOptions`: only rays that are still on their way are queried (``dynamic``), and steps are longer than the
distance (``ratio`` 1.5, "aggressive"). Coarse to fine is :mod:`distrender.pyramid`.

The marching is not recorded by autograd (``t`` is a constant to it); :mod:`distrender.gradients` gives the results
their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender import gradients
from distrender.marching import (
    CROSSED,
    HIT,
    MISSED,
    SDF,
    March,
    MarchOptions,
    approximation,
    ball_interval,
    march_reference,
    query,
)

PAPER = MarchOptions()


@dataclass(frozen=True, eq=False)
class Hit:
    """Where rays ``[...]`` met the surface.

    Attributes:
        depth: ``[...]``, distance from the origin along the unit direction, inf where the ray missed.
        mask: ``[...]`` bool, whether the ray hit.
        point: ``[..., 3]``, zero where missed.
        min_sdf: ``[...]``, the signed value of smallest magnitude on the ray, for silhouettes. On a ray past the
            ball, where the field is never queried, the distance from the ball. What is larger than
            ``approximate_above`` may be approximate, unless ``closest`` is set.
        min_point: ``[..., 3]``, where that was.
        queries: how many points the field was asked for.
        missed: how many rays saw both signs of the field without converging.
    """

    depth: Tensor
    mask: Tensor
    point: Tensor
    min_sdf: Tensor
    min_point: Tensor
    queries: int
    missed: int
    find_normals: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def normal(self) -> Tensor:
        """``[..., 3]``, the field's unit gradient at the hit, zero where missed; computed when first asked for."""
        return self.find_normals()


def sphere_trace(
    sdf: SDF,
    origins: Tensor,
    directions: Tensor,
    options: MarchOptions = PAPER,
    *,
    gradient: Literal["implicit", "paper", "none"] = "implicit",
    start: Tensor | None = None,
    chunk: int = gradients.CHUNK,
) -> Hit:
    """Follow rays to the surface of a signed distance function.

    ``depth``, ``point`` and ``min_sdf`` are differentiable in all leaf tensors that the field depends on, in the
    origins and in the directions, and so is ``normal`` where the field can be differentiated twice.

    Args:
        sdf: points ``[N, 3]`` to signed distances ``[N]``, negative inside; each point on its own.
        origins: ``[..., 3]``, float32 or float64.
        directions: ``[..., 3]``, of unit length.
        options: how to march.
        gradient: "implicit", the exact derivative of the depth; "paper", section 3.3's sum over samples; "none".
        start: ``[...]``, depths to start from if beyond the ball's rim; inf for a ray known to miss.
        chunk: rays queried again at a time in the backward pass, which bounds its memory.

    Raises:
        UserError: shapes, dtypes or devices do not fit, or the field's result is no ``[N]``.
    """
    _check(origins, directions, start, gradient)
    shape = origins.shape[:-1]
    o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    first = None if start is None else start.detach().reshape(-1).to(o.dtype)
    with torch.no_grad():
        march = trace_rays(sdf, o.detach(), d.detach(), first, options)
    return as_hit(sdf, o, d, march, shape, options, gradient=gradient, chunk=chunk)


def as_hit(
    sdf: SDF,
    origins: Tensor,
    directions: Tensor,
    march: March,
    shape: tuple[int, ...],
    options: MarchOptions,
    *,
    gradient: str,
    chunk: int,
) -> Hit:
    """What marching found on rays ``[N, 3]``, with gradients and in the rays' own shape."""
    if gradient == "none":
        origins, directions = origins.detach(), directions.detach()
    mask = march.state == HIT
    depth = torch.where(mask, march.depth, torch.inf)
    near, far = ball_interval(origins.detach(), directions.detach(), options.bound)
    past = near == far
    beyond = (origins + near[:, None] * directions).norm(dim=-1) - options.bound
    min_sdf = torch.where(past, beyond.clamp(min=0), march.min_sdf)
    leaves: list[Tensor] = []
    if gradient != "none" and torch.is_grad_enabled():
        leaves = gradients.leaves_of(sdf, origins)
        again = gradients.Requery(sdf, origins, directions, leaves, chunk)
        if gradient == "implicit":
            depth = again.implicit_depth(depth, mask)
        else:
            samples = march.min_depth[:, None] if march.samples is None else march.samples
            depth = again.paper_depth(depth, mask, samples, options.ratio)
        asked = ~past & min_sdf.isfinite()
        smallest = torch.zeros_like(asked) if march.within is None else asked & (march.within > 0)
        min_sdf = again.values(min_sdf, march.min_depth, asked & ~smallest)
        if march.within is not None:
            min_sdf = again.minima(min_sdf, march.min_depth, march.within, smallest)
    reached = torch.where(mask, depth, 0)[:, None]
    point = torch.where(mask[:, None], origins + reached * directions, 0)

    def find_normals() -> Tensor:
        with torch.set_grad_enabled(gradient != "none" and torch.is_grad_enabled()):
            return gradients.normals(sdf, point, mask, leaves, chunk).reshape(*shape, 3)

    return Hit(
        depth=depth.reshape(shape),
        mask=mask.reshape(shape),
        point=point.reshape(*shape, 3),
        min_sdf=min_sdf.reshape(shape),
        min_point=(origins + march.min_depth[:, None] * directions).reshape(*shape, 3),
        queries=march.queries,
        missed=int((march.state == CROSSED).sum()),
        find_normals=find_normals,
    )


def trace_rays(sdf: SDF, origins: Tensor, directions: Tensor, start: Tensor | None, options: MarchOptions) -> March:
    """March rays ``[N, 3]`` from the ball's rim or from ``start`` ``[N]``."""
    near, _ = ball_interval(origins, directions, options.bound)
    start = near if start is None else torch.maximum(near, start)
    march = march_rays(sdf, origins, directions, start, options)
    approach(sdf, origins, directions, march, options)
    return march


def approach(sdf: SDF, origins: Tensor, directions: Tensor, march: March, options: MarchOptions) -> None:
    """Move the smallest samples of rays that missed towards the minimum of |f| along the ray (``closest``).

    Along a line past a point f^2 is a parabola, and past anything smooth nearly so.
    """
    far = ball_interval(origins, directions, options.bound)[1]
    rays = ((march.state == MISSED) & march.min_sdf.isfinite()).nonzero()[:, 0]
    o, d, t, f = origins[rays], directions[rays], march.min_depth[rays], march.min_sdf[rays]
    if options.closest and approximation(sdf, options):  # some of the samples are approximate
        f = query(sdf, o + t[:, None] * d)
        march.queries += len(rays)
    apart = f.abs() / 2  # samples lie about |f| apart
    for _ in range(options.closest if len(rays) else 0):
        ends = [(t - apart).clamp(min=0), (t + apart).minimum(far[rays])]
        before, after = (query(sdf, o + end[:, None] * d) for end in ends)
        curvature = before.square() + after.square() - 2 * f.square()
        vertex = (before.square() - after.square()) / (2 * curvature)  # in units of `apart`
        further = torch.where(curvature > 0, vertex.clamp(-8, 8), (before.abs() > after.abs()) * 4.0 - 2)
        there = (t + apart * further).clamp(min=0).minimum(far[rays])
        value = query(sdf, o + there[:, None] * d)
        # The best of all, so that a field with creases, whose square is no parabola, is closed in on as well.
        tried, values = torch.stack([t, *ends, there]), torch.stack([f, before, after, value])
        best = values.abs().nan_to_num(torch.inf).argmin(0, keepdim=True)
        t, f = tried.gather(0, best)[0], values.gather(0, best)[0]
        # Looked at more closely where the minimum is enclosed, and not where it may lie beyond an end.
        enclosed = (best[0] == 0) | ((best[0] == 3) & (further.abs() < 1))
        within, apart = apart, torch.where(enclosed, apart / 4, apart)
        march.queries += 3 * len(rays)
    march.min_depth[rays], march.min_sdf[rays] = t, f
    if options.closest:
        march.within = torch.zeros_like(march.min_sdf)
        march.within[rays] = within if len(rays) else 0.0


def march_rays(
    sdf: SDF,
    origins: Tensor,
    directions: Tensor,
    start: Tensor,
    options: MarchOptions,
    slope: Tensor | None = None,
) -> March:
    """What :func:`march_reference` does, by a kernel where one serves the field."""
    from distrender import marching_kernels, tracing_kernels  # which take their rules from this module

    found = tracing_kernels.march(sdf, origins, directions, start, options, slope)
    if found:
        return March(*found)
    march = marching_kernels.march(sdf, origins, directions, start, options, slope)
    return march or march_reference(sdf, origins, directions, start, options, slope)


def _check(origins: Tensor, directions: Tensor, start: Tensor | None, gradient: str) -> None:
    if origins.shape != directions.shape or origins.ndim < 1 or origins.shape[-1] != 3:
        raise UserError(
            f"origins and directions must both be [..., 3], got {list(origins.shape)} and {list(directions.shape)}"
        )
    if origins.dtype not in (torch.float32, torch.float64) or directions.dtype != origins.dtype:
        raise UserError(
            f"origins and directions must both be float32 or float64, got {origins.dtype} and {directions.dtype}"
        )
    if directions.device != origins.device:
        raise UserError(f"origins are on {origins.device}, directions on {directions.device}")
    if start is not None and (start.shape != origins.shape[:-1] or start.device != origins.device):
        raise UserError(
            f"start must be {list(origins.shape[:-1])} on {origins.device}, got {list(start.shape)} on {start.device}"
        )
    if gradient not in ("implicit", "paper", "none"):
        raise UserError(f"gradient must be implicit, paper or none, got {gradient!r}")
