"""The visual hull: the largest shape with given silhouettes (Laurentini, 1994), as distances on a grid.

A silhouette's distance transform, in pixels and negative inside, times the size of a pixel at a point's depth is about
the point's distance to the cone of that silhouette, and the hull is where all cones meet: the largest of the distances
over the views. A silhouette within its picture is whole, and what is past the picture is outside; one that the picture
cuts off says nothing about what is past it. A point of which less than half of the views know anything is outside.

Not in the paper, which starts from a random latent code: this is where a fit of a grid starts.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

from distrender.cameras import Camera
from distrender.grid import GridSDF

ROOM = 1.1  # of the ball around what was found, over its radius
HALF = 1.05  # side of a grid, half of it, in radii of the ball
SEARCH = 40  # samples along each axis where the ball is looked for
POINTS_AT_ONCE = 1 << 16  # so that what a view says of them stays in the cache


def pixel_distances(masks: Tensor) -> Tensor:
    """Signed distances ``[V, H, W]`` in pixels of the pixels' centres to the outlines, negative inside.

    The rim of the picture is no outline. A view that is all inside has minus its diagonal everywhere.
    """
    from scipy.ndimage import distance_transform_edt

    result = np.empty(masks.shape, np.float32)
    farthest = float(np.hypot(*masks.shape[1:]))
    for view, mask in enumerate(masks.numpy()):
        inside = distance_transform_edt(mask) if not mask.all() else np.full(mask.shape, farthest)
        outside = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, farthest)
        result[view] = np.where(mask, 0.5 - inside, outside - 0.5)
    return torch.from_numpy(result)


def pixel_sizes(cameras: Camera) -> Tensor:
    """``[V]``, the width of a pixel at depth 1, scene units."""
    return 1 / torch.linalg.det(cameras.intrinsics[:, :2, :2]).abs().sqrt()


@torch.no_grad()
def hull_values(points: Tensor, cameras: Camera, distances: Tensor) -> Tensor:
    """About the signed distance to the hull ``[N]`` at ``points`` ``[N, 3]``; inf where few views know the point.

    Args:
        points: scene units.
        cameras: V views.
        distances: ``[V, H, W]`` of :func:`pixel_distances`.
    """
    largest = torch.full((len(points),), -torch.inf)
    views = torch.zeros(len(points))
    rims = (distances[:, 0], distances[:, -1], distances[:, :, 0], distances[:, :, -1])
    cut_off = torch.cat([(rim < 0).any(1, keepdim=True) for rim in rims], 1).any(1)
    size = points.new_tensor([cameras.size[1], cameras.size[0]])
    for view in range(len(cameras)):
        pixels, depth = (part[0] for part in cameras[view].project(points))
        value, seen = look_up(distances[view : view + 1], pixels)
        cone = value[0] * depth * pixel_sizes(cameras[view])
        if not cut_off[view]:
            past = (pixels - pixels.minimum(size).clamp(min=0)).norm(dim=-1)
            cone, seen = cone + past * depth * pixel_sizes(cameras[view]), torch.ones_like(seen)
        known = seen & (depth > 0)
        largest = torch.where(known, torch.maximum(largest, cone), largest)
        views += known
    return torch.where(views < len(cameras) / 2, torch.inf, largest)


def look_up(image: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """``image`` ``[C, H, W]`` at ``pixels`` ``[..., 2]`` (x, y), bilinear: ``[C, ...]``, and which lie in it ``[...]``.

    Differentiable in both; beyond the rim, the rim's values.
    """
    height, width = image.shape[1:]
    seen = (pixels >= 0).all(-1) & (pixels[..., 0] <= width) & (pixels[..., 1] <= height)
    flat = pixels.reshape(1, 1, -1, 2) * pixels.new_tensor([2 / width, 2 / height]) - 1
    found = F.grid_sample(image[None], flat.nan_to_num(0), padding_mode="border", align_corners=False)
    return found.reshape(len(image), *pixels.shape[:-1]), seen


def hull_grid(cameras: Camera, distances: Tensor, resolution: int) -> GridSDF:
    """The hull within the unit ball on a grid of ``resolution`` samples a side, from -1.05 to 1.05.

    Raises:
        UserError: the cones do not meet in the ball.
    """
    points = grid_points(resolution)
    values = torch.cat([hull_values(some, cameras, distances) for some in points.split(POINTS_AT_ONCE)])
    beyond = points.norm(dim=-1) - 1  # nothing outside the ball is traced
    values = torch.maximum(values.clamp(max=2 * HALF), beyond)  # what few views know is far outside
    if not (values < 0).any():
        raise UserError(
            "the silhouettes' cones do not meet within the ball: check the order of the pictures, the cameras, and "
            "--centre and --radius"
        )
    return GridSDF(values.reshape(resolution, resolution, resolution), -HALF, HALF)


def grid_points(resolution: int) -> Tensor:
    """Where a grid's samples lie ``[R^3, 3]``, in the order of its values."""
    axis = torch.linspace(-HALF, HALF, resolution)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def find_ball(cameras: Camera, masks: Tensor) -> tuple[Tensor, float]:
    """The ball around the visual hull: its centre ``[3]`` and radius in scene units.

    The lines through the silhouettes' centroids pass near the middle of the shape, and the silhouettes' extents there
    say how large it is. A coarse hull in a wider ball finds the bounds.

    Raises:
        UserError: the cones do not meet.
    """
    height, width = cameras.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    shares = masks.float() / masks.sum((1, 2), keepdim=True)
    centroids = torch.stack([(shares * x).sum((1, 2)), (shares * y).sum((1, 2))], -1)  # [V, 2]
    rays = [cameras[view].rays_through(centroids[view]) for view in range(len(cameras))]
    origins, directions = (torch.cat(parts).double() for parts in zip(*rays, strict=True))
    # The point nearest to all lines: sum of (I - d d^T) (p - o) = 0.
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None]
    centre = torch.linalg.lstsq(across.sum(0), (across @ origins[..., None]).sum(0)).solution[:, 0].float()
    depth = cameras.project(centre[None])[1][:, 0]
    if (depth <= 0).any():
        raise UserError("some cameras look away from where the others look; check the camera file")
    reach = torch.stack([torch.hypot(x - c[0], y - c[1])[mask].max() for c, mask in zip(centroids, masks, strict=True)])
    distances = pixel_distances(masks)
    radius = float((reach * depth * pixel_sizes(cameras)).median()) * 1.5  # some views may cut the shape off
    for _ in range(4):
        grid = hull_grid(cameras.in_ball(centre, radius), distances, SEARCH)
        where = (grid.values < 0).nonzero().flip(1).float()  # x, y, z
        points = (where / (SEARCH - 1) * 2 - 1) * HALF
        middle = (points.amin(0) + points.amax(0)) / 2
        extent = float((points - middle).norm(dim=-1).max()) + 2 * HALF / (SEARCH - 1)
        touches = bool((points.norm(dim=-1) > 0.97).any())
        centre = centre + radius * middle
        radius = radius * 1.5 if touches else radius * extent * ROOM
        if not touches and extent > 0.5:
            break
    return centre, radius
