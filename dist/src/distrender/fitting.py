"""A shape fitted to posed pictures by rendering it and sending the gradients back (DIST, section 4.4).

Two kinds of evidence. Silhouettes: on rays near an outline, the smallest signed distance must be at most 0 inside and
at least the distance to the outline's cone outside (section 3.3's silhouette loss, with distances in pixels). Images:
what neighbouring views show of a point on the surface must agree (:mod:`distrender.photometric`), where the depth in
the neighbouring view says that it sees the point.

The shape is a decoder's latent code, as in the paper, or a grid of distances. A grid starts from the visual hull, has
its own regularisers (:mod:`distrender.banded_grid`), and goes from coarse to fine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender import photometric, visual_hull
from distrender.banded_grid import BandedGrid, redistanced, resampled
from distrender.cameras import Camera
from distrender.decoder import CodedSDF, DeepSDFDecoder
from distrender.gradients import CHUNK
from distrender.grid import GridSDF
from distrender.posed_images import PosedImages
from distrender.tracing import Hit, MarchOptions, as_hit, sphere_trace, trace_rays

EXACT = MarchOptions(steps=60, ratio=1.0, clamp=2.0, finish="secant", closest=2)  # a grid of true distances
CAREFUL = MarchOptions(steps=100, ratio=1.0, finish="secant", closest=2)  # a trained network
CODE_DETAIL = 0.03  # scene units: what codes show of a shape
REDISTANCE_EVERY = 50  # steps
SLOWEST = 0.1  # of the rate, at a stage's end
SMALLEST = 100  # pixels of an image's shorter side: they are not halved below
LOST = 3.0  # pixels or details: what a ray is off beyond that is taken for a fault of the silhouettes


@dataclass(frozen=True)
class FitConfig:
    """How a shape is fitted. Weights and rate are the paper's for latent codes; grids have theirs.

    Attributes:
        resolution: samples along each axis of the last grid.
        coarsest: of the first; each is twice the one before.
        steps: of each grid, fitted to silhouettes.
        image_steps: of the last grid, or of a code, fitted to images too; 0 leaves images out.
        code_steps: of a code, fitted to silhouettes.
        rate: of Adam for a grid, in distances between samples; falls to a tenth in each stage.
        code_rate: of Adam for a code (section 4.4: 1e-2).
        rays: for silhouettes, in each step of a grid: half near outlines, half inside.
        code_rays: likewise of a code, whose network takes longer to ask.
        surface_rays: of one view, for images, in each step.
        near: how far from an outline rays are drawn, pixels or samples' distances.
        silhouette: weight (section 4.2: 1), of a loss in pixels, or in samples' distances where these are wider.
        photometric: weight (section 4.4: 5).
        latent: weight of a code's mean square (section 4.4: 1).
        eikonal: weight for a grid.
        laplacian: weight for a grid.
        area: weight for a grid.
        compare: images by "ncc" of patches or by the paper's "l1" of pixels.
        patch: radius of patches in pixels.
        levels: how often images are halved for the first comparisons.
        views: neighbours that a view is compared with.
        band: samples on either side of the surface that are fitted.
        seed: of all that is drawn.
    """

    resolution: int = 128
    coarsest: int = 32
    steps: int = 150
    image_steps: int = 450
    code_steps: int = 200
    rate: float = 0.1
    code_rate: float = 1e-2
    rays: int = 4096
    code_rays: int = 1024
    surface_rays: int = 2048
    near: float = 4.0
    silhouette: float = 1.0
    photometric: float = 5.0
    latent: float = 1.0
    eikonal: float = 0.1
    laplacian: float = 0.01
    area: float = 0.15
    compare: Literal["ncc", "l1"] = "ncc"
    patch: int = 3
    levels: int = 2
    views: int = 2
    band: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of the fit: a grid's samples along each axis (0: a code), steps, and whether images count."""

    resolution: int
    steps: int
    images: bool


def stages(config: FitConfig, *, code: bool, images: bool) -> list[Stage]:
    """What comes after what."""
    if code:
        plan = [Stage(0, config.code_steps, False)]
    else:
        sizes = [config.resolution]
        while sizes[0] > config.coarsest:
            sizes.insert(0, max(config.coarsest, sizes[0] // 2))
        plan = [Stage(size, config.steps, False) for size in sizes]
    if images and config.image_steps:
        plan.append(Stage(plan[-1].resolution, config.image_steps, True))
    return plan


class Evidence:
    """What pictures say, in the frame where the scene's ball is the unit ball.

    Args:
        views: the pictures.
        cameras: theirs in that frame.
        config: which pixels are drawn, how images are compared.
    """

    def __init__(self, views: PosedImages, cameras: Camera, config: FitConfig):
        self.cameras, self.config, self.masks = cameras, config, views.masks
        self.distances = visual_hull.pixel_distances(views.masks)
        self.directions = cameras.rays()[1].reshape(-1, 3)
        self.pixel = visual_hull.pixel_sizes(cameras)
        self.focus(0.0)
        self.images = None
        if views.images is not None:
            halved = [n for n in range(1, config.levels + 1) if min(cameras.size) >> n >= SMALLEST]
            self.images = photometric.pyramid(views.images, len(halved))
            self.neighbours = photometric.neighbours(cameras, config.views)
            inner = self.distances < -1
            self.inner = [mask.view(-1).nonzero()[:, 0] for mask in inner]

    def focus(self, detail: float) -> None:
        """Draw rays within ``near`` pixels of the outlines, or so many of ``detail`` (scene units) where that is more.

        What a coarse grid cannot show would otherwise pass for a fault of the silhouettes.
        """
        sizes = self.pixel * self.cameras.eye.norm(dim=-1)  # of a pixel at the ball's middle
        self.width = (detail / sizes).clamp(min=1)  # [V], of a detail, in pixels
        reach = (self.config.near * self.width)[:, None, None]
        self.outline = (self.distances.abs() <= reach).view(-1).nonzero()[:, 0]
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
        radius = config.patch if config.compare == "ncc" else 0
        for other in self.neighbours[view]:
            loss, usable = photometric.disagreement(
                surface, images[view], cameras[other], images[other], radius, config.compare
            )
            usable = usable & shape.visible(hit.point.detach()[rows], normal, self.cameras[other])
            total = total + loss[usable].clamp(max=1).sum()
            count += int(usable.sum())
        return total / max(count, 1)


class GridShape:
    """A grid that is fitted.

    Args:
        grid: of true distances, in the unit ball; its values are written to.
        config: the band's width, and the regularisers' weights.
    """

    def __init__(self, grid: GridSDF, config: FitConfig):
        self.config = config
        self.banded = BandedGrid(grid, config.band)
        self.leaf = self.banded.numbers
        self.detail = self.banded.step
        self.rate = config.rate * self.detail
        self.tolerance = 3 * self.detail
        self.rays = config.rays

    @property
    def sdf(self) -> GridSDF:
        return self.banded.grid

    def trace(self, origins: Tensor, directions: Tensor) -> Hit:
        """Rays ``[N, 3]``, marched by the kernels on the grid, with gradients in the band's numbers."""
        with torch.no_grad():
            march = trace_rays(self.sdf, origins, directions, None, EXACT)
        return as_hit(
            self.banded, origins, directions, march, origins.shape[:1], EXACT, gradient="implicit", chunk=CHUNK
        )

    def visible(self, points: Tensor, normal: Tensor, camera: Camera) -> Tensor:
        return photometric.visible(self.sdf, points, normal, camera, self.tolerance, EXACT)

    def regulariser(self, generator: torch.Generator) -> Tensor:
        """Weighted; of a quarter of the samples at a time."""
        inner, config = self.banded.inner, self.config
        if not len(inner):
            return self.leaf.sum() * 0
        which = torch.randint(len(inner), (-(-len(inner) // 4),), generator=generator)
        eikonal, laplacian, area = self.banded.regularisers(which)
        return config.eikonal * eikonal + config.laplacian * laplacian + config.area * area

    def moved(self) -> None:
        """To be called after the leaf has changed."""
        self.banded.write()


class CodeShape:
    """A decoder's shape whose code is fitted, from the mean of the codes or zero.

    Args:
        decoder: of shapes in the unit ball.
        code: ``[L]``, where to begin.
        config: the weight of the code, and how many rays are drawn.
    """

    def __init__(self, decoder: DeepSDFDecoder, code: Tensor, config: FitConfig):
        self.config = config
        self.sdf = CodedSDF(decoder.requires_grad_(False), torch.nn.Parameter(code.clone()))
        self.leaf = self.sdf.latent
        self.detail, self.rate, self.rays = CODE_DETAIL, config.code_rate, config.code_rays
        self.tolerance = CODE_DETAIL

    def trace(self, origins: Tensor, directions: Tensor) -> Hit:
        """Rays ``[N, 3]`` with gradients in the code."""
        return sphere_trace(self.sdf, origins, directions, CAREFUL)

    def visible(self, points: Tensor, normal: Tensor, camera: Camera) -> Tensor:
        return photometric.visible(self.sdf, points, normal, camera, self.tolerance, CAREFUL)

    def regulariser(self, _: torch.Generator) -> Tensor:
        """The code's mean square, weighted (section 4.2)."""
        return self.config.latent * self.leaf.square().mean()

    def moved(self) -> None:
        """Nothing depends on the code but what is computed from it."""


class Fitter:
    """A shape on its way, step by step.

    Args:
        views: what it is fitted to.
        cameras: of these, in the frame where the scene's ball is the unit ball.
        config: how.
        decoder: whose code is fitted; None fits a grid.
        code: ``[L]``, where to begin.

    Raises:
        UserError: the silhouettes do not meet in the ball, or the options are impossible.
    """

    def __init__(
        self,
        views: PosedImages,
        cameras: Camera,
        config: FitConfig,
        decoder: DeepSDFDecoder | None = None,
        code: Tensor | None = None,
    ):
        self.config = config
        self.evidence = Evidence(views, cameras, config)
        self.stages = stages(config, code=decoder is not None, images=views.images is not None)
        self.total = sum(stage.steps for stage in self.stages)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.decoder = decoder
        if decoder is not None:
            self._begin_code(torch.zeros(decoder.config.latent) if code is None else code)
        else:
            self._begin_grid(visual_hull.hull_grid(cameras, self.evidence.distances, self.stages[0].resolution))

    def _begin_code(self, code: Tensor) -> None:
        self.start = code
        self.shape: Shape = CodeShape(self.decoder, code, self.config)
        self.adam = torch.optim.Adam([self.shape.leaf], self.shape.rate)
        self.evidence.focus(self.shape.detail)

    def _begin_grid(self, grid: GridSDF) -> None:
        """Go on from a grid: with distances measured anew, a new band, and a new Adam."""
        self._continue_grid(redistanced(grid, self.config.band + 1).values.detach())

    def _continue_grid(self, values: Tensor) -> None:
        self.start = values
        self.shape = GridShape(GridSDF(values, -visual_hull.HALF, visual_hull.HALF), self.config)
        self.adam = torch.optim.Adam([self.shape.leaf], self.shape.rate)
        self.evidence.focus(self.shape.detail)

    @property
    def place(self) -> tuple[Stage, int]:
        """The stage of the next step, and its number in it."""
        within = self.step
        for stage in self.stages[:-1]:
            if within < stage.steps:
                return stage, within
            within -= stage.steps
        return self.stages[-1], within

    def update(self) -> dict[str, float]:
        """One step of Adam.

        Returns:
            ``loss``, ``silhouette`` (pixels), ``regulariser`` and, where images count, ``photometric``.

        Raises:
            UserError: the loss is no number any more, or nothing is left of the shape.
        """
        config, evidence = self.config, self.evidence
        stage, within = self.place
        if self.decoder is None and self.step and within % REDISTANCE_EVERY == 0:
            grid = self.shape.sdf
            self._begin_grid(resampled(grid, stage.resolution) if len(grid.values) != stage.resolution else grid)
        share = within / max(stage.steps, 1)
        for group in self.adam.param_groups:
            group["lr"] = self.shape.rate * (1 - (1 - SLOWEST) * share)
        self.adam.zero_grad()
        silhouette = evidence.silhouette_loss(self.shape, self.generator)
        regulariser = self.shape.regulariser(self.generator)
        loss = config.silhouette * silhouette + regulariser
        figures = {"silhouette": silhouette.item(), "regulariser": regulariser.item()}
        if stage.images:
            level = evidence.level(share)
            disagreement = evidence.photometric_loss(self.shape, level, self.generator)
            loss = loss + config.photometric * disagreement
            figures["photometric"] = disagreement.item()
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item()} in step {self.step + 1}; choose a lower --rate")
        if loss.requires_grad:
            loss.backward()
            self.adam.step()
            self.shape.moved()
        self.step += 1
        return {"loss": loss.item(), **figures}

    def state(self) -> dict[str, object]:
        """What :meth:`load` goes on from, to the same bits on a CPU."""
        return {
            "step": self.step,
            "start": self.start,
            "leaf": self.shape.leaf.detach(),
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict) -> None:
        """Go on from what :meth:`state` gave for the same pictures and configuration."""
        self.step = state["step"]
        if self.decoder is None:
            self._continue_grid(state["start"])
        with torch.no_grad():
            self.shape.leaf.copy_(state["leaf"])
        self.shape.moved()
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"])


Shape = GridShape | CodeShape
