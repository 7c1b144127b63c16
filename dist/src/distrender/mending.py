"""Silhouettes that contradict each other, mended where few of them are to blame.

What lies in a shadow as dark as the background is missing from a silhouette, and one view's fault carves a piece off
the visual hull that the other views' silhouettes show plainly. So, on a coarse grid: a point that the hull lacks, and
that all views but ``faults`` have inside, is put back if it lies where at least so many views miss something of the
hull. Where it is seen in the views that lacked it, their pixels are unknown: nothing is drawn from there.

Not in the paper, whose silhouettes are given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distrender import visual_hull
from distrender.cameras import Camera
from distrender.grid import GridSDF
from distrender.tracing import MarchOptions, sphere_trace

SAMPLES = 96  # along each axis of the grid on which this is decided
MARCH = MarchOptions(steps=60, ratio=1.0, clamp=2.0, finish="secant")
THIN = 1.5  # samples of the grid: what is missing by less is the grid's own coarseness


@torch.no_grad()
def unknown_pixels(cameras: Camera, masks: Tensor, faults: int) -> Tensor:
    """Pixels ``[V, H, W]`` bool outside their silhouettes that belong to what the other views show.

    Args:
        cameras: V views, of a scene in the unit ball.
        masks: ``[V, H, W]`` bool.
        faults: how many views may be wrong about one point.
    """
    unknown = torch.zeros_like(masks)
    if faults == 0:
        return unknown
    distances = visual_hull.pixel_distances(masks)
    hull = visual_hull.hull_grid(cameras, distances, SAMPLES)
    missing = torch.stack([_missing(hull, camera, mask) for camera, mask in zip(_each(cameras), masks, strict=True)])
    points = visual_hull.grid_points(SAMPLES)
    outside = (hull.values.view(-1) > 0) & (points.norm(dim=-1) < 1)
    rows = outside.nonzero()[:, 0]
    points = points[rows]
    against, wanted = torch.zeros(2, len(points), dtype=torch.int32)
    for camera, distance, lack in zip(_each(cameras), distances, missing, strict=True):
        against += (visual_hull.hull_values(points, camera, distance[None]) > 0).int()
        pixels = camera.project(points)[0][0]
        wanted += (visual_hull.look_up(lack[None].float(), pixels)[0][0] > 0.5).int()
    back = points[(against <= faults) & (wanted >= faults)]
    if not len(back):
        return unknown
    step = 2 * visual_hull.HALF / (SAMPLES - 1)
    for view, camera in enumerate(_each(cameras)):
        blamed = back[visual_hull.hull_values(back, camera, distances[view : view + 1]) > step]
        if not len(blamed):
            continue
        pixels, depth = (part[0] for part in camera.project(blamed))
        size = pixels.new_tensor([camera.size[1], camera.size[0]])
        pixels = pixels[((pixels >= 0) & (pixels < size)).all(-1) & (depth > 0)].long()
        marked = torch.zeros(1, 1, *camera.size)
        marked[0, 0, pixels[:, 1], pixels[:, 0]] = 1
        # Wide enough to join what lies a sample apart.
        radius = max(1, round(float(step / (depth.median() * visual_hull.pixel_sizes(camera)[0]))))
        grown = F.max_pool2d(marked, 2 * radius + 1, 1, radius)[0, 0] > 0
        unknown[view] = grown & ~masks[view]
    return unknown


def _missing(hull: GridSDF, camera: Camera, mask: Tensor) -> Tensor:
    """Where a silhouette ``[H, W]`` shows what the hull lacks, by more than the grid is coarse."""
    origins, directions = (part[0] for part in camera.rays())
    hit = sphere_trace(hull, origins, directions, MARCH, gradient="none")
    lack = mask & ~hit.mask
    if not lack.any():
        return lack
    step = 2 * visual_hull.HALF / (SAMPLES - 1)
    size = float(visual_hull.pixel_sizes(camera)[0] * camera.eye.norm())
    inner = visual_hull.pixel_distances(lack[None])[0] < -THIN * step / size
    return inner if not inner.any() else visual_hull.pixel_distances(inner[None])[0] < THIN * step / size


def _each(cameras: Camera) -> list[Camera]:
    return [cameras[view] for view in range(len(cameras))]
