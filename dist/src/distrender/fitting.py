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

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender import visual_hull
from distrender.banded_grid import redistanced, resampled
from distrender.cameras import Camera
from distrender.decoder import DeepSDFDecoder
from distrender.evidence import Evidence
from distrender.fit_plan import FitConfig, Stage, stages
from distrender.fitted_shapes import CodeShape, GridShape, Shape
from distrender.grid import GridSDF
from distrender.posed_images import PosedImages

REDISTANCE_EVERY = 50  # steps
SLOWEST = 0.1  # of the rate, at a stage's end


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
            self._begin_grid(visual_hull.hull_grid(cameras, self.evidence.hull, self.stages[0].resolution))

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
        seen = stage.images and stage.images[0] + share * (stage.images[1] - stage.images[0])
        # What images carve begins rough, so as to get there, and ends smooth.
        regulariser = self.shape.regulariser(self.generator, 1.0 if seen is None else config.smoother**seen)
        loss = config.silhouette * silhouette + regulariser
        figures = {"silhouette": silhouette.item(), "regulariser": regulariser.item()}
        if seen is not None:
            disagreement = evidence.photometric_loss(self.shape, evidence.level(seen), self.generator)
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
