"""What posed pictures say of a shape that is rendered: its losses by silhouettes and by images (DIST, section 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from distrender import mending, photometric, visual_hull
from distrender.cameras import Camera
from distrender.fit_plan import FitConfig
from distrender.fitted_shapes import Shape
from distrender.posed_images import PosedImages

SMALLEST = 100  # pixels of an image's shorter side: they are not halved below
LOST = 3.0  # pixels or details: what a ray is off beyond that is taken for a fault of the silhouettes


class Evidence:
    """What pictures say, in the frame where the scene's ball is the unit ball.

    Args:
        views: the pictures.
        cameras: theirs in that frame.
        config: which pixels are drawn, how images are compared.
    """

    def __init__(self, views: PosedImages, cameras: Camera, config: FitConfig):
        self.cameras, self.config, self.masks = cameras, config, views.masks
        unknown = mending.unknown_pixels(cameras, views.masks, config.faults)
        inside, outside = (visual_hull.pixel_distances(masks) for masks in (views.masks, views.masks | unknown))
        self.hull = outside
        self.distances = torch.where(views.masks, inside, outside)
        self.known = ~unknown
        self.directions = cameras.rays()[1].reshape(-1, 3)
        self.pixel = visual_hull.pixel_sizes(cameras)
        self.focus(0.0)
        self.images = None
        if views.images is not None:
            halved = [n for n in range(1, config.levels + 1) if min(cameras.size) >> n >= SMALLEST]
            self.images = photometric.pyramid(views.images, len(halved))
            self.neighbours = photometric.neighbours(cameras, config.views)
            own = min(max(round(min(cameras.size) / 96), 2), 5)
            self.radius = 0 if config.compare == "l1" else config.patch or own
            inner = self.distances < -1 - self.radius
            self.inner = [mask.view(-1).nonzero()[:, 0] for mask in inner]

    def focus(self, detail: float) -> None:
        """Draw rays within ``near`` pixels of the outlines, or so many of ``detail`` (scene units) where that is more.

        What a coarse grid cannot show would otherwise pass for a fault of the silhouettes.
        """
        sizes = self.pixel * self.cameras.eye.norm(dim=-1)  # of a pixel at the ball's middle
        self.width = (detail / sizes).clamp(min=1)  # [V], of a detail, in pixels
        reach = (self.config.near * self.width)[:, None, None]
        self.outline = (self.known & (self.distances.abs() <= reach)).view(-1).nonzero()[:, 0]
        self.inside = self.masks.reshape(-1).nonzero()[:, 0]

    def level(self, share: float) -> int:
        """How often images are halved after a share of the steps that count them: ever less."""
        return len(self.images) - 1 - min(int(share * len(self.images)), len(self.images) - 1)

    def silhouette_loss(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """By how many pixels (or details) rays near the outlines are off, at most ``LOST``; the mean over all drawn."""
        # Half of them anywhere inside: thin plates wear through where no outline is near.
        half = shape.rays // 2
        pools = (self.outline, self.inside)
        which = torch.cat([pool[torch.randint(len(pool), (half,), generator=generator)] for pool in pools])
        view = which // self.distances[0].numel()
        origins, directions = self.cameras.eye[view], self.directions[which]
        wanted = self.distances.view(-1)[which]
        hit = shape.trace(origins, directions)
        depth = (hit.min_point.detach() - origins).norm(dim=-1)
        found = hit.min_sdf / (depth * self.pixel[view] * self.width[view])
        # The outline is somewhere between the centres of two pixels. Rays that hit have a smallest value near zero, of
        # either sign: those inside are right, and are not to be pulled on.
        off = torch.where(wanted < 0, found, ((wanted - 0.5) / self.width[view]).clamp(max=LOST) - found)
        known = hit.min_sdf.isfinite() & ~(hit.mask & (wanted < 0))
        return off[known].clamp(0, LOST).sum() / len(which)

    def photometric_loss(self, shape: Shape, level: int, generator: torch.Generator) -> Tensor:
        """How much one view and its neighbours disagree about the surface; the mean over what both see."""
        config = self.config
        view = int(torch.randint(len(self.cameras), (1,), generator=generator))
        images = self.images[level]
        inner = self.inner[view]
        chosen = inner[torch.randint(len(inner), (min(config.surface_rays, shape.rays),), generator=generator)]
        directions = self.directions[view * self.distances[0].numel() + chosen]
        origins = self.cameras.eye[view].expand_as(directions)
        hit = shape.trace(origins, directions)
        normal = hit.normal.detach()
        facing = hit.mask & ((normal * directions).sum(-1) < -photometric.FACING)
        rows = facing.nonzero()[:, 0]
        normal = normal[rows]
        size = tuple(images.shape[2:])
        cameras = self.cameras.resized(size)
        width = self.cameras.size[1]
        place = torch.stack([chosen[rows] % width, chosen[rows] // width], -1) + 0.5
        scale = place.new_tensor([size[1] / width, size[0] / self.cameras.size[0]])
        surface = photometric.SeenSurface(cameras[view], place * scale, hit.depth[rows], normal)
        total, count = hit.depth.new_zeros(()), 0
        for other in self.neighbours[view]:
            loss, usable = photometric.disagreement(
                surface, images[view], cameras[other], images[other], self.radius, config.compare
            )
            usable = usable & shape.visible(hit.point.detach()[rows], normal, self.cameras[other])
            total = total + loss[usable].clamp(max=1).sum()
            count += int(usable.sum())
        return total / max(count, 1)
