"""How a shape is fitted to views: weights, steps and rates, and what comes after what.

The paper's values (DIST, sections 4.2 and 4.4) are those of latent codes. It fits no grids: their numbers are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BEGUN = 2 / 3  # of the resolution, on which images begin, and of their steps that are spent there


@dataclass(frozen=True)
class FitConfig:
    """How a shape is fitted. Weights and rate are the paper's for latent codes; grids have theirs.

    Attributes:
        resolution: samples along each axis of the last grid.
        coarsest: of the first; each is twice the one before.
        steps: of each grid, fitted to silhouettes.
        image_steps: of the last two grids, or of a code, fitted to images too; 0 leaves images out.
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
        smoother: times the Laplacian counts at the end of the steps for images.
        area: weight for a grid.
        compare: images by "ncc" of patches or by the paper's "l1" of pixels.
        patch: radius of patches in pixels; None: a ninety-sixth of the pictures' shorter side, from 2 to 5.
        levels: how often images are halved for the first comparisons.
        views: neighbours that a view is compared with.
        faults: views that may have lost one part of the shape in the dark (:mod:`distrender.mending`).
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
    smoother: float = 60.0
    area: float = 0.15
    compare: Literal["ncc", "l1"] = "ncc"
    patch: int | None = None
    levels: int = 2
    views: int = 2
    faults: int = 0
    band: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of the fit.

    Attributes:
        resolution: the grid's samples along each axis; 0 for a code.
        steps: of Adam.
        images: None where only silhouettes count; else which part of all steps for images this is, from 0 to 1.
    """

    resolution: int
    steps: int
    images: tuple[float, float] | None = None


def stages(config: FitConfig, *, code: bool, images: bool) -> list[Stage]:
    """What comes after what. Images begin on a coarser grid, where a step goes farther."""
    images = images and config.image_steps > 0
    if code:
        return [Stage(0, config.code_steps), *([Stage(0, config.image_steps, (0.0, 1.0))] if images else [])]
    largest = max(config.coarsest, round(config.resolution * BEGUN)) if images else config.resolution
    sizes = [min(largest, config.resolution)]
    while sizes[0] > config.coarsest:
        sizes.insert(0, max(config.coarsest, sizes[0] // 2))
    plan = [Stage(size, config.steps) for size in sizes]
    if images:
        first = round(config.image_steps * BEGUN)
        share = first / config.image_steps
        plan.append(Stage(sizes[-1], first, (0.0, share)))
        plan.append(Stage(config.resolution, config.image_steps - first, (share, 1.0)))
    return plan
