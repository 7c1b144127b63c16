"""Gradients of what rays found (DIST, section 3.3), by querying the field again where the march ended.

The marching itself is not recorded. With f(o + t d; z) = 0 at the hit, the implicit function theorem gives

    dt/dz = -(df/dz) / (grad f . d),    dt/do = -(grad f) / (grad f . d),    dt/dd = t dt/do,

for whatever z the field depends on. That is exact and the default. The paper's practical gradient instead adds up
``ratio * df/dz`` over the samples of smallest |f| on the ray; it equals the exact one where grad f . d = -1 and the
number of samples times the ratio is 1.

Nothing is stored between the forward and the backward pass: backward queries ``chunk`` points at a time, again and
with gradient, so that its memory does not grow with the picture. What a field depends on is read off the graph of one
query of one point (which no query count includes): the gradients arrive in *leaf* tensors, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16384  # points: 8 layers of 512 in float32 keep 16 kB a point; measured, 410 MB in all, for normals 490
GRAZING = 1e-2  # |cosine| of ray and normal below which it counts as this: dt/dz has no bound at a silhouette


def leaves_of(sdf: Callable[[Tensor], Tensor], origins: Tensor) -> list[Tensor]:
    """The leaf tensors that need a gradient and that the field ``[N, 3] -> [N]`` depends on."""
    with torch.enable_grad():
        value = sdf(torch.zeros(1, 3, dtype=origins.dtype, device=origins.device))
    leaves, seen, stack = [], set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad
            leaves.append(node.variable)
        stack.extend(following for following, _ in node.next_functions)
    return leaves


@dataclass
class Requery:
    """A field to query again on rays ``[N, 3]``, and what it depends on."""

    sdf: Callable[[Tensor], Tensor]
    origins: Tensor
    directions: Tensor
    leaves: list[Tensor]
    chunk: int

    def _at(self, rays: Tensor, depth: Tensor, result: Tensor, factor: float | None) -> Tensor:
        """``result`` ``[M]`` at ``depth`` ``[M]`` on ``rays`` ``[M]``, with gradients ``factor`` * df (None: dt)."""
        if not (self.leaves or self.origins.requires_grad or self.directions.requires_grad):
            return result
        origins, directions = self.origins[rays], self.directions[rays]
        return _Requery.apply(self, factor, depth, result, origins, directions, *self.leaves)

    def implicit_depth(self, depth: Tensor, mask: Tensor) -> Tensor:
        """``depth`` ``[N]`` with the exact gradient where ``mask``, none elsewhere."""
        rays = mask.nonzero()[:, 0]
        return depth.index_put((rays,), self._at(rays, depth[rays], depth[rays], None))

    def paper_depth(self, depth: Tensor, mask: Tensor, samples: Tensor, ratio: float) -> Tensor:
        """``depth`` ``[N]`` with the gradient of ``sum_k ratio * f(x_k)``, x_k at depths ``samples`` ``[N, K]``."""
        rays, which = (mask[:, None] & ~samples.isnan()).nonzero().unbind(1)
        at = samples[rays, which]
        return depth.index_put((rays,), self._at(rays, at, torch.zeros_like(at), ratio), accumulate=True)

    def values(self, values: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
        """``values`` ``[N]``, the field's at ``depth`` ``[N]``, with its gradient where ``mask``.

        At the depth of a minimum along the ray, which moves without changing the value in first order, that is the
        gradient of the minimum itself.
        """
        rays = mask.nonzero()[:, 0]
        return values.index_put((rays,), self._at(rays, depth[rays], values[rays], 1.0))

    def minima(self, values: Tensor, depth: Tensor, within: Tensor, mask: Tensor) -> Tensor:
        """``values`` ``[N]``, minima of |f| along the rays, with their gradient also where the field has a crease.

        A minimum of a network with ReLU, or of a grid, lies in a crease as a rule: it moves with the crease, and the
        gradient of the value depends on the side. With slopes s- and s+ along the ray on either side the minimum's is
        the mean of both sides' gradients in which these slopes cancel, with weights s+ and -s-. Where the field is
        smooth that is the gradient between them. Without it derivatives by a network's code were off by 10%.

        Args:
            values: ``[N]``.
            depth: ``[N]``, where they were found.
            within: ``[N]``, how far from there the minimum itself lies at most.
            mask: ``[N]`` bool, where that is asked for.
        """
        rays = mask.nonzero()[:, 0]
        if not len(rays) or not (self.leaves or self.origins.requires_grad or self.directions.requires_grad):
            return values
        t, apart, origins, directions = depth[rays], within[rays], self.origins[rays], self.directions[rays]
        with torch.no_grad():
            sides = [t - apart, t + apart]
            before, after = (self._slopes(origins + side[:, None] * directions, directions) for side in sides)
            # Of no crease, both signs alike, all the weight is on the side that is nearer to the minimum.
            share = (after / (after - before)).nan_to_num(0.5).clamp(0, 1)
        result = values[rays]
        for side, weight in zip(sides, (share, 1 - share), strict=True):
            there = self._at(rays, side, torch.zeros_like(t), 1.0)
            result = result + weight * there
        return values.index_put((rays,), result)

    def _slopes(self, points: Tensor, directions: Tensor) -> Tensor:
        """``grad f . d`` ``[M]``, without a graph."""
        result = torch.empty_like(points[:, 0])
        for some in torch.arange(len(points), device=points.device).split(self.chunk):
            with torch.enable_grad():
                x = points[some].detach().requires_grad_()
                slopes = _by_points(self.sdf(x), x, retain_graph=False)
            result[some] = (slopes * directions[some]).sum(-1)
        return result


class _Requery(torch.autograd.Function):
    """A constant forwards; backwards, the gradient of the field there, or of the depth at which it is zero."""

    @staticmethod
    def forward(ctx, query: Requery, factor, depth, result, origins, directions, *leaves) -> Tensor:
        ctx.query, ctx.factor = query, factor
        ctx.save_for_backward(depth, origins, directions, *leaves)
        return result.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, origins, directions, *leaves = ctx.saved_tensors
        grad_origins, grad_directions = torch.zeros_like(origins), torch.zeros_like(directions)
        totals: list[Tensor | None] = [None] * len(leaves)
        for some in (grad != 0).nonzero()[:, 0].split(ctx.query.chunk):
            t, d = depth[some], directions[some]
            slopes, parts = _chunk_gradients(
                ctx.query.sdf, origins[some] + t[:, None] * d, d, grad[some], ctx.factor, leaves
            )
            grad_origins[some], grad_directions[some] = slopes, t[:, None] * slopes
            totals = [_sum(total, part) for total, part in zip(totals, parts, strict=True)]
        return None, None, None, None, grad_origins, grad_directions, *totals


def _chunk_gradients(sdf, points, directions, grad, factor, leaves) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Gradients of ``sum(grad * result)`` by the points ``[M, 3]`` and by the leaves; its graph ends with it."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        f = sdf(points)
        slopes = _by_points(f, points, retain_graph=True)
        weight = grad * factor if factor is not None else -grad / _facing(slopes, directions)
        if leaves and f.requires_grad:
            # Retained: the leaves may reach the field through a graph that all chunks share.
            parts = torch.autograd.grad(f, leaves, weight.to(f.dtype), retain_graph=True, allow_unused=True)
        else:
            parts = (None,) * len(leaves)
    return weight[:, None] * slopes, parts


def _by_points(f: Tensor, points: Tensor, *, retain_graph: bool, create_graph: bool = False) -> Tensor:
    """The field's gradient at each point ``[M, 3]``."""
    if not f.requires_grad:
        raise UserError("the field cannot be differentiated: its result does not depend on the points it was given")
    return torch.autograd.grad(f.sum(), points, retain_graph=retain_graph, create_graph=create_graph)[0]


def _facing(slopes: Tensor, directions: Tensor) -> Tensor:
    """``grad f . d`` ``[M]``, kept away from zero."""
    along = (slopes * directions).sum(-1)
    least = (GRAZING * slopes.norm(dim=-1)).clamp(min=torch.finfo(slopes.dtype).tiny)
    return torch.where(along > 0, along.clamp(min=least), along.clamp(max=-least))


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if total is None or part is None:
        return part if total is None else total
    return total + part


def normals(sdf: Callable[[Tensor], Tensor], points: Tensor, mask: Tensor, leaves: list[Tensor], chunk: int) -> Tensor:
    """Unit gradients ``[N, 3]`` of the field at points ``[N, 3]`` where ``mask``, zero elsewhere.

    Differentiable in the points and the leaves, for fields that can be differentiated twice.
    """
    rays = mask.nonzero()[:, 0]
    return torch.zeros_like(points).index_put((rays,), _Normals.apply(sdf, chunk, points[rays], *leaves))


class _Normals(torch.autograd.Function):
    """``grad f / |grad f|``, recomputed chunk by chunk when its own gradient is wanted."""

    @staticmethod
    def forward(ctx, sdf, chunk: int, points: Tensor, *leaves: Tensor) -> Tensor:
        ctx.sdf, ctx.chunk = sdf, chunk
        ctx.save_for_backward(points, *leaves)
        result = torch.empty_like(points)
        for some in torch.arange(len(points), device=points.device).split(chunk):
            with torch.enable_grad():
                x = points[some].detach().requires_grad_()
                result[some] = F.normalize(_by_points(sdf(x), x, retain_graph=False), dim=-1)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        points, *leaves = ctx.saved_tensors
        grad_points = torch.zeros_like(points)
        totals: list[Tensor | None] = [None] * len(leaves)
        for some in (grad != 0).any(-1).nonzero()[:, 0].split(max(1, ctx.chunk // 2)):  # the graph is twice as large
            with torch.enable_grad():
                x = points[some].detach().requires_grad_()
                normal = F.normalize(_by_points(ctx.sdf(x), x, retain_graph=True, create_graph=True), dim=-1)
                if not normal.requires_grad:  # a field linear in the points and free of parameters
                    continue
                parts = torch.autograd.grad(normal, (x, *leaves), grad[some], retain_graph=True, allow_unused=True)
            grad_points[some] = torch.zeros_like(x) if parts[0] is None else parts[0]
            totals = [_sum(total, part) for total, part in zip(totals, parts[1:], strict=True)]
        return None, None, grad_points, *totals
