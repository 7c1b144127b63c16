"""The samples of a run that is given none: rendered into its folder, once."""

from __future__ import annotations

import os
from pathlib import Path

from psfcn.recipes import TrainingConfig
from psfcn.render_options import SHAPES, Options
from psfcn.sample_folders import render_folder

HELD_OUT, HELD_OUT_SIZE, HELD_OUT_LIGHTS = 24, 64, 32
CLUSTERED, RINGS = 0.15, 0.1  # not in the paper: shares of samples whose lights are not spread over the half sphere


def training_set(folder: Path, config: TrainingConfig, count: int, meshes: Path | None) -> None:
    """Fill a folder with ``count`` samples as large as the recipe has use for, under twice its lights.

    Args:
        folder: made if need be.
        config: the recipe.
        count: of samples; those that are there already are kept.
        meshes: folder of meshes to take in beside random shapes.

    Raises:
        UserError: samples of another recipe are there, or nothing can be written, or a mesh is damaged.
    """
    lights = 2 * config.lights[1]  # section 5.1: 32 of 64
    options = Options(
        size=config.side[1],
        lights=(lights, lights),
        shapes=_shapes(meshes),
        meshes=meshes,
        clustered=CLUSTERED,
        rings=RINGS,
    )
    _render(folder, options, count, config.seed)


def validation_set(folder: Path, meshes: Path | None) -> None:
    """Fill a folder with 24 samples of held-out materials (and meshes), measured ones only.

    Raises:
        UserError: as :func:`training_set`.
    """
    options = Options(
        size=HELD_OUT_SIZE,
        lights=(HELD_OUT_LIGHTS, HELD_OUT_LIGHTS),
        split="test",
        shapes=_shapes(meshes),
        materials=("measured",),
        meshes=meshes,
        clustered=CLUSTERED,
        rings=RINGS,
    )
    _render(folder, options, HELD_OUT, 0)


def _shapes(meshes: Path | None) -> tuple[str, ...]:
    return tuple(shape for shape in SHAPES if shape != "meshes" or meshes)


def _render(folder: Path, options: Options, count: int, seed: int) -> None:
    workers = min(os.cpu_count() or 1, count)
    render_folder(folder, options, count=count, seed=seed, layout="npz", test_set=False, workers=workers, sheet=None)
