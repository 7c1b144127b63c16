"""The camera's pose, from which a known shape shows a given silhouette, depth picture or normals.

DIST optimises shapes, and on real data the similarity between shape and cameras too (section 4.4, sim(3)); this is that
part alone, with the shape known. What a ray says depends on the pose through its origin and direction only, and the
traced depth, distance and normal are differentiable in them (:mod:`distrender.gradients`), each ray on its own: one
backward pass gives every ray's six derivatives, the chain rule the whole Jacobian. So, not in the paper, the pose is
found by Levenberg and Marquardt's method, in some ten steps instead of hundreds of Adam's.

Residuals, in scene units, each group weighed by its mean:

- silhouette: a ray through the silhouette's contour touches the shape, so that the smallest signed distance on it is
  zero. That is positive for rays that pass and negative for those that go through; to know how deep, the shape is
  traced with ``deep`` taken off its surface, which changes no distance's gradient. A contour drawn between pixels is
  known to half a pixel only, alike along straight edges, so at the end the pixels on either side count most: their rays
  must hit or miss, and add the distance by which they do not (the paper's silhouette loss, equation 7, at the border).
- depth: of a pixel, against the traced one; where the ray misses, its smallest distance instead.
- normals: in the camera's axes, times ``NORMAL``.

Cauchy's function lets what does not fit (occlusions, parts that the silhouette lacks) count little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender.cameras import Camera
from distrender.decoder import CodedSDF
from distrender.grid import GridSDF
from distrender.tracing import SDF, Hit, MarchOptions, sphere_trace

WEAK = 0.02  # how much the contour counts beside the pixels that must hit or miss
BESIDE_DEPTH = 0.05  # how much a silhouette counts beside depths: its contour is known to half a pixel only
NORMAL = 0.1  # scene units that a normal's error of one (60 degrees) counts as
TURN, SHIFT, FOCAL, SCALE = slice(0, 3), slice(3, 6), 6, 7  # places in the vector of unknowns
STEPS, NETWORK_STEPS = 60, 200  # trained fields are flat in places
SMALLEST = 1e-6  # of a step, in radians and scene units: smaller ones end the search
SETTLED = 1e-4  # of the cost: less gained in a step ends the search as well
DAMPING = 1e-3  # to begin with, as a share of the diagonal


@dataclass(frozen=True, eq=False)
class Seen:
    """What a picture of the shape shows, some of it: ``[H, W]``.

    Attributes:
        mask: bool, where the shape is.
        depth: along the rays, in scene units, 0 where unknown.
        normals: ``[H, W, 3]`` in the camera's axes (x right, y down, z forward), zero where unknown.
    """

    mask: Tensor | None = None
    depth: Tensor | None = None
    normals: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {tuple(part.shape[:2]) for part in (self.mask, self.depth, self.normals) if part is not None}
        if not sizes:
            raise UserError("a pose needs a silhouette, a depth picture or normals; none was given")
        if len(sizes) > 1:
            raise UserError(f"silhouette, depth and normals must have one size, got {sorted(sizes)} (height, width)")
        if not self.known.any() or (self.mask is not None and not self.mask.any()):
            raise UserError("the picture shows nothing: no silhouette, depth or normal")

    @property
    def known(self) -> Tensor:
        """``[H, W]`` bool, where the shape is seen, as far as known."""
        if self.mask is not None:
            return self.mask
        return self.depth > 0 if self.depth is not None else self.normals.abs().sum(-1) > 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.known.shape
        return height, width


@dataclass(frozen=True, eq=False)
class Pose:
    """A camera of one view in the shape's units, and how many of the depths' units one of these is."""

    camera: Camera
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels (x, y) that residuals are taken at, float64."""

    outline: Tensor  # [C, 2]
    side: Tensor  # [C]: 0, the ray touches the shape; 1, it hits; -1, it misses
    weight: Tensor  # [C]
    inner: Tensor  # [M, 2], where depths or normals are known
    depth: Tensor  # [M], 0 where unknown
    normals: Tensor  # [M, 3], zero where unknown


def cross_matrix(axis: Tensor) -> Tensor:
    """``[3, 3]`` with ``cross_matrix(a) @ b`` the cross product of a and b ``[3]``."""
    x, y, z = axis.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def moved(camera: Camera, change: Tensor) -> Camera:
    """A camera of one view before which the shape is turned about its own origin and shifted.

    Args:
        camera: one view.
        change: ``[6]`` or more: axis times angle (radians) and shift, both in the camera's axes; then the logarithm of
            the focal length's factor, and one for the scale, which the camera does not see.
    """
    rotation = torch.linalg.matrix_exp(cross_matrix(change[TURN])) @ camera.rotation[0]
    translation = camera.translation[0] + change[SHIFT]
    intrinsics = camera.intrinsics
    if len(change) > FOCAL:
        block = torch.zeros_like(intrinsics)
        block[:, :2, :2] = 1
        intrinsics = intrinsics * (1 + block * (change[FOCAL].exp() - 1))
    return Camera(intrinsics, rotation[None], translation[None], camera.size)


def rays_by_change(camera: Camera, directions: Tensor) -> Tensor:
    """Derivatives ``[N, 6, 8]`` of rays (origin, then direction) by what :func:`moved` changes, at no change.

    A direction is R^T v, with v in the camera's axes, and becomes R^T exp(-w) v; an origin -R^T t becomes
    -R^T exp(-w) (t + s).

    Args:
        camera: one view.
        directions: ``[N, 3]``, unit.
    """
    rotation, translation = camera.rotation[0], camera.translation[0]
    own = directions @ rotation.mT  # v
    result = torch.zeros(len(directions), 6, 8, dtype=directions.dtype)
    result[:, :3, TURN] = -rotation.mT @ cross_matrix(translation)
    result[:, :3, SHIFT] = -rotation.mT
    axes = torch.eye(3, dtype=directions.dtype)
    crossed = torch.linalg.cross(own[:, None], axes[None])  # [N, w, 3], v x w
    result[:, 3:, TURN] = (crossed @ rotation).mT
    sideways = -own * own.new_tensor([1.0, 1.0, 0.0])  # times 1 / v_z, and v = u / |u| has |u| = 1 / v_z
    across = sideways - own * (own * sideways).sum(-1, keepdim=True)
    result[:, 3:, FOCAL] = across @ rotation
    return result


def rotation_between(first: Tensor, second: Tensor) -> Tensor:
    """Degrees ``[...]`` of the turn from one rotation ``[..., 3, 3]`` to another."""
    turn = first @ second.mT
    sine = torch.stack(
        [turn[..., 2, 1] - turn[..., 1, 2], turn[..., 0, 2] - turn[..., 2, 0], turn[..., 1, 0] - turn[..., 0, 1]], -1
    )
    cosine = turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.atan2(sine.norm(dim=-1), cosine).rad2deg()


def march_for(sdf: SDF) -> MarchOptions:
    """How rays of few pixels are marched on this field: to the end, and to their true minimum where they miss."""
    if isinstance(sdf, CodedSDF):
        return MarchOptions(steps=NETWORK_STEPS, ratio=1.0, finish="secant", closest=3)
    return MarchOptions(steps=STEPS, ratio=1.0, clamp=2.0, finish="secant", closest=3)


def eroded(sdf: SDF, depth: float) -> SDF:
    """The field of the shape with ``depth`` taken off its surface; of a grid, one that kernels trace."""
    if isinstance(sdf, GridSDF):
        return GridSDF(sdf.values + depth, sdf.low, sdf.high).requires_grad_(False)
    return lambda points: sdf(points) + depth


def samples_of(seen: Seen, outline: int, inner: int, strict: bool = False) -> Samples:
    """At most so many points of the silhouette's contour, and pixels of its inside, evenly spread.

    Args:
        seen: what to take them from.
        outline: of the contour, and with ``strict`` of the pixels on either side of it.
        inner: of the pixels whose depth or normal is known.
        strict: the pixels along the contour must hit or miss.
    """
    points, side, weight = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0), torch.zeros(0)
    if seen.mask is not None:
        points = _contour(seen.mask)
        points = points[_spread(len(points), outline)]
        side, weight = torch.zeros(len(points)), torch.full((len(points),), WEAK if strict else 1.0)
        if strict:
            for which, pixels in ((1.0, _border(seen.mask)), (-1.0, _border(~seen.mask))):
                pixels = pixels[_spread(len(pixels), outline)]
                points = torch.cat([points, pixels])
                side = torch.cat([side, torch.full((len(pixels),), which)])
                weight = torch.cat([weight, torch.ones(len(pixels))])
    zero = torch.zeros(seen.size, dtype=torch.float64)
    depth = zero if seen.depth is None else seen.depth.double()
    normals = zero[..., None].expand(*seen.size, 3) if seen.normals is None else seen.normals.double()
    y, x = (seen.known & ((depth > 0) | (normals.abs().sum(-1) > 0))).nonzero().unbind(1)
    chosen = _spread(len(y), inner)
    y, x = y[chosen], x[chosen]
    return Samples(points, side, weight.double(), torch.stack([x, y], -1).double() + 0.5, depth[y, x], normals[y, x])


def _contour(mask: Tensor) -> Tensor:
    """Points ``[C, 2]`` (x, y) halfway between pixels in and out of a mask; the picture's own border is no contour."""
    from skimage.measure import find_contours  # half a second

    curves = [torch.from_numpy(curve[:, ::-1].copy()) + 0.5 for curve in find_contours(mask.double().numpy(), 0.5)]
    pieces = [(curve[1:] + curve[:-1]) / 2 for curve in curves]
    return torch.cat(pieces) if pieces else torch.zeros(0, 2, dtype=torch.float64)


def _border(mask: Tensor) -> Tensor:
    """Centres ``[B, 2]`` (x, y) of the pixels of a mask that have one of their four neighbours outside it."""
    near = torch.zeros_like(mask)
    near[1:] |= ~mask[:-1]
    near[:-1] |= ~mask[1:]
    near[:, 1:] |= ~mask[:, :-1]
    near[:, :-1] |= ~mask[:, 1:]
    y, x = (mask & near).nonzero().unbind(1)
    return torch.stack([x, y], -1).double() + 0.5


def _spread(count: int, most: int) -> Tensor:
    if count <= most:
        return torch.arange(count)
    return (torch.arange(most, dtype=torch.float64) * (count / most)).long()


class Residuals:
    """What a pose leaves unexplained of what was seen, and how that changes with the pose."""

    def __init__(self, sdf: SDF, samples: Samples, width: float, deep: float) -> None:
        """Prepare for poses.

        Args:
            sdf: the shape.
            samples: what was seen, where.
            width: Cauchy's: residuals much larger, in scene units, count little.
            deep: rays that go deeper through the shape count as that deep only. Samples on a ray lie about so far
                apart, and a smallest distance among several is the surer found the less that is.
        """
        self.sdf, self.shrunk, self.deep = sdf, eroded(sdf, deep), deep
        self.march = march_for(sdf)
        self.samples, self.width = samples, width

    def __call__(self, pose: Pose) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals ``[K]``, their weights in the sum of squares ``[K]``, and the Jacobian ``[K, 8]``; float64."""
        camera, samples = pose.camera, self.samples
        pixels = torch.cat([samples.outline, samples.inner])
        rays = [part[0] for part in camera.rays_through(pixels)]
        by_change = rays_by_change(camera, rays[1])
        leaves = [part.float().detach().requires_grad_() for part in rays]
        parts = [self._outline(leaves), *self._inner(leaves, camera, pose.scale)]
        residuals, weights, jacobian = [], [], []
        for value, weight, rows, direct in parts:
            if value.requires_grad:
                by_ray = torch.cat(torch.autograd.grad(value.sum(), leaves, retain_graph=True), 1)[rows].double()
                chained = torch.einsum("nk,nkp->np", by_ray, by_change[rows])
            else:
                chained = torch.zeros(len(value), 8, dtype=torch.float64)
            residuals.append(value.detach().double())
            weights.append(weight)
            jacobian.append(chained + direct)
        return torch.cat(residuals), torch.cat(weights), torch.cat(jacobian)

    def _outline(self, leaves: list[Tensor]) -> tuple[Tensor, Tensor, slice, Tensor]:
        samples, count = self.samples, len(self.samples.outline)
        rows = slice(0, count)
        hit = sphere_trace(self.shrunk, *(leaf[rows] for leaf in leaves), self.march)
        # A ray that meets even the shrunk shape: deeper is not known, nor which way is out.
        value = torch.where(hit.mask, 0.0, hit.min_sdf) - self.deep
        value = torch.where(samples.side > 0, value.clamp(min=0), value)
        value = torch.where(samples.side < 0, value.clamp(max=0), value)
        weight = samples.weight / samples.weight.sum().clamp(min=1)
        weight = weight * (BESIDE_DEPTH if (samples.depth > 0).any() else 1.0)
        return value, weight, rows, torch.zeros(count, 8, dtype=torch.float64)

    def _inner(self, leaves: list[Tensor], camera: Camera, scale: float) -> list[tuple[Tensor, Tensor, slice, Tensor]]:
        samples, first = self.samples, len(self.samples.outline)
        count = len(samples.inner)
        if not count:
            return []
        rows = slice(first, first + count)
        hit = sphere_trace(self.sdf, *(leaf[rows] for leaf in leaves), self.march)
        has_depth = samples.depth > 0
        reached = torch.where(hit.mask, hit.depth, 0)
        value = torch.where(hit.mask, scale * reached - samples.depth.float(), scale * hit.min_sdf)
        direct = torch.zeros(count, 8, dtype=torch.float64)
        direct[:, SCALE] = scale * reached.detach().double()
        parts = [(value, self._even(count) * (has_depth | ~hit.mask), rows, direct)]
        has_normal = samples.normals.abs().sum(-1) > 0
        if has_normal.any():
            parts += self._normals(hit, camera, rows, has_normal)
        return parts

    def _normals(self, hit: Hit, camera: Camera, rows: slice, known: Tensor) -> list:
        rotation = camera.rotation[0]
        seen = hit.normal @ rotation.float().mT
        parts = []
        for axis in range(3):
            value = NORMAL * (seen[:, axis] - self.samples.normals[:, axis].float())
            direct = torch.zeros(len(value), 8, dtype=torch.float64)
            # Turned by w, a normal n in the camera's axes changes by w x n.
            direct[:, TURN] = -NORMAL * torch.stack([cross_matrix(n)[axis] for n in seen.detach().double()])
            parts.append((value, self._even(len(value)) * (known & hit.mask), rows, direct))
        return parts

    def _even(self, count: int) -> Tensor:
        return torch.full((count,), 1 / max(count, 1), dtype=torch.float64)

    def cost(self, residuals: Tensor, weights: Tensor) -> float:
        """Cauchy's sum, in squared scene units."""
        return float((weights * self.width**2 * torch.log1p((residuals / self.width).square())).sum())


def refine(
    residuals: Residuals,
    pose: Pose,
    *,
    focal: bool = False,
    scale: bool = False,
    iterations: int = 20,
    after: Callable[[], object] = lambda: None,
) -> tuple[Pose, float]:
    """Levenberg and Marquardt's method from a pose to a better one near it.

    Args:
        residuals: of the shape and what was seen.
        pose: where to begin; its camera in float64.
        focal: look for the focal length too.
        scale: and for the depths' units.
        iterations: at most.
        after: called after each.

    Returns:
        The pose, and its cost: squared scene units.
    """
    free = torch.tensor([True] * 6 + [focal, scale])
    damping, value = DAMPING, residuals(pose)
    cost = residuals.cost(*value[:2])
    for _ in range(iterations):
        r, weights, jacobian = value
        jacobian = jacobian[:, free]
        weights = weights / (1 + (r / residuals.width).square())
        square = jacobian.mT @ (weights[:, None] * jacobian)
        slope = jacobian.mT @ (weights * r)
        diagonal = torch.diag(square.diagonal() * damping + 1e-9)
        step = torch.zeros(8, dtype=torch.float64)
        step[free] = -torch.linalg.solve(square + diagonal, slope)
        tried = Pose(_detached(moved(pose.camera, step)), pose.scale * float(step[SCALE].exp()))
        attempt = residuals(tried)
        after()
        better = residuals.cost(*attempt[:2])
        settled = 0 <= cost - better < SETTLED * cost
        if better < cost:
            pose, value, cost, damping = tried, attempt, better, max(damping / 4, 1e-7)
        else:
            damping *= 6
        if settled or step.abs().max() < SMALLEST or damping > 1e5:
            break
    return pose, cost


def looseness(residuals: Residuals, pose: Pose) -> float:
    """By how many degrees the shape could turn before the picture shows it: by half a pixel in the mean square.

    About the axis along which least is seen of it, everything else that can make up for it doing so; as of a mug whose
    handle is hidden. 180 at most.
    """
    _, weights, jacobian = residuals(pose)
    square = jacobian[:, :6].mT @ (weights[:, None] * jacobian[:, :6]) / weights.sum()
    turn, both, shift = square[TURN, TURN], square[TURN, SHIFT], square[SHIFT, SHIFT]
    left = turn - both @ torch.linalg.pinv(shift) @ both.mT  # Schur's complement: the shift as good as it can be
    pixel = float(pose.camera.translation[0].norm() / pose.camera.intrinsics[0, 0, 0])
    least = float(torch.linalg.eigvalsh(left)[0].clamp(min=1e-12).sqrt())
    return min(180.0, math.degrees(0.5 * pixel / least))


def _detached(camera: Camera) -> Camera:
    return Camera(camera.intrinsics.detach(), camera.rotation.detach(), camera.translation.detach(), camera.size)
