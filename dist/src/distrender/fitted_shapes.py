"""What a fit changes: a grid's numbers near the surface, or a decoder's code. Either traces itself with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from distrender import photometric
from distrender.banded_grid import BandedGrid
from distrender.cameras import Camera
from distrender.decoder import CodedSDF, DeepSDFDecoder
from distrender.fit_plan import FitConfig
from distrender.gradients import CHUNK
from distrender.grid import GridSDF
from distrender.tracing import Hit, MarchOptions, as_hit, sphere_trace, trace_rays

EXACT = MarchOptions(steps=60, ratio=1.0, clamp=2.0, finish="secant", closest=2)  # a grid of true distances
CAREFUL = MarchOptions(steps=100, ratio=1.0, finish="secant", closest=2)  # a trained network
CODE_DETAIL = 0.03  # scene units: what codes show of a shape


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

    def regulariser(self, generator: torch.Generator, smoother: float) -> Tensor:
        """Weighted; of a quarter of the samples at a time; the Laplacian counts ``smoother`` times."""
        inner, config = self.banded.inner, self.config
        if not len(inner):
            return self.leaf.sum() * 0
        which = torch.randint(len(inner), (-(-len(inner) // 4),), generator=generator)
        eikonal, laplacian, area = self.banded.regularisers(which)
        return config.eikonal * eikonal + smoother * config.laplacian * laplacian + config.area * area

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

    def regulariser(self, _: torch.Generator, __: float) -> Tensor:
        """The code's mean square, weighted (section 4.2)."""
        return self.config.latent * self.leaf.square().mean()

    def moved(self) -> None:
        """Nothing depends on the code but what is computed from it."""


Shape = GridShape | CodeShape
