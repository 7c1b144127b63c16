"""How well views agree on what they see of a surface (DIST, section 4.4: photometric consistency).

A pixel of one view meets the surface at a point; a neighbouring view sees that point elsewhere, and the colours there
should be the same. The paper compares single pixels by their L1 distance. Not in the paper: small patches, which lie
in the surface's tangent plane, so that they look right from both views; and their normalised cross-correlation, which
is blind to the brightness that a light, an exposure or a shining surface changes from view to view.

What moves is the point on its ray: the loss is differentiable in the depths, and through them in the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distrender.cameras import Camera
from distrender.tracing import SDF, MarchOptions, sphere_trace
from distrender.visual_hull import look_up

FACING = 0.2  # least cosine of a surface's normal and the direction to a view that is said to see it
FLAT = 1e-4  # variance of levels in [0, 1] below which a patch has nothing to compare


@dataclass(frozen=True, eq=False)
class SeenSurface:
    """What one view sees at some pixels."""

    camera: Camera  # one view
    pixels: Tensor  # [N, 2], (x, y)
    depth: Tensor  # [N], differentiable
    normal: Tensor  # [N, 3]

    def patches(self, radius: int) -> tuple[Tensor, Tensor]:
        """Pixels ``[N, P, 2]`` of the patches and their points ``[N, P, 3]`` in the tangent planes."""
        offsets = torch.arange(-radius, radius + 1.0)
        y, x = torch.meshgrid(offsets, offsets, indexing="ij")
        pixels = self.pixels[:, None] + torch.stack([x, y], -1).reshape(-1, 2)
        origins, directions = (part[0] for part in self.camera.rays_through(pixels))
        middle = self.camera.rays_through(self.pixels)[1][0]
        normal = self.normal.detach()[:, None]
        # The plane through o + t d with normal n meets the ray o + s e where s = t (n.d) / (n.e).
        away = (normal * directions).sum(-1)
        ahead = (normal * middle[:, None]).sum(-1)
        scale = ahead / torch.where(away.abs() < 1e-3, torch.copysign(away.new_tensor(1e-3), away), away)
        return pixels, origins + (self.depth[:, None] * scale.clamp(0.5, 2))[..., None] * directions


@torch.no_grad()
def visible(sdf: SDF, points: Tensor, normal: Tensor, camera: Camera, tolerance: float, march: MarchOptions) -> Tensor:
    """Which points ``[N, 3]`` on a surface one view sees ``[N]``: by the depth along the ray towards them.

    Args:
        sdf: the surface.
        points: scene units.
        normal: ``[N, 3]``, outwards.
        camera: one view.
        tolerance: how much nearer the surface may be, scene units.
        march: how the rays march.
    """
    towards = points - camera.eye
    distance = towards.norm(dim=-1)
    directions = towards / distance[:, None]
    pixels, depth = (part[0] for part in camera.project(points))
    size = pixels.new_tensor([camera.size[1], camera.size[0]])
    seen = ((pixels > 0) & (pixels < size)).all(-1) & (depth > 0) & ((normal * directions).sum(-1) < -FACING)
    hit = sphere_trace(sdf, camera.eye.expand(int(seen.sum()), 3), directions[seen], march, gradient="none")
    return seen.index_put((seen.nonzero()[:, 0],), hit.mask & (hit.depth > distance[seen] - tolerance))


def disagreement(
    surface: SeenSurface,
    image: Tensor,
    other: Camera,
    other_image: Tensor,
    radius: int,
    kind: Literal["ncc", "l1"],
) -> tuple[Tensor, Tensor]:
    """How differently two views show a surface.

    Args:
        surface: as the first view sees it.
        image: ``[C, H, W]`` of the first view.
        other: the second view.
        other_image: likewise.
        radius: of the patches in pixels; 0 compares single pixels.
        kind: "l1" is the mean absolute difference (the paper's with radius 0), "ncc" one minus the normalised
            cross-correlation, from 0 to 2.

    Returns:
        ``[N]``, differentiable in the depth, and whether there was something to compare ``[N]``.
    """
    pixels, points = surface.patches(radius)
    a, known = look_up(image, pixels)
    there, depth = (part[0] for part in other.project(points.reshape(-1, 3)))
    b, seen = look_up(other_image, there.reshape(*points.shape[:2], 2))
    usable = (known & seen).all(-1) & (depth.reshape(seen.shape) > 0).all(-1)
    if kind == "l1":
        return (a - b).abs().mean((0, 2)), usable
    a, b = a.mean(0), b.mean(0)  # grey levels [N, P]
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    spread = a.square().mean(-1), b.square().mean(-1)
    usable &= (spread[0] > FLAT) & (spread[1] > FLAT)
    correlation = (a * b).mean(-1) / (spread[0].clamp(min=FLAT) * spread[1].clamp(min=FLAT)).sqrt()
    return 1 - correlation, usable


def neighbours(cameras: Camera, count: int) -> list[list[int]]:
    """For each view the ``count`` others whose directions towards the origin are nearest to its own."""
    towards = F.normalize(cameras.eye, dim=-1)
    cosine = towards @ towards.T
    cosine.fill_diagonal_(-torch.inf)
    return cosine.topk(min(count, len(cameras) - 1)).indices.tolist()


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """``images`` ``[V, C, H, W]``, and so often again at half the size."""
    result = [images]
    for _ in range(levels):
        result.append(F.avg_pool2d(result[-1], 2, ceil_mode=True))
    return result
