"""The test set: the 20 materials and the shapes that nothing is trained on, the same wherever it is rendered.

Each material on a sphere and on two more shapes: the meshes ``homer`` and ``rocker-arm`` where a folder has them, else
two blobs. A sample has 96 lights over the half sphere, in an order in which the first 8, 16 or 32 are spread out as
well, so one rendering serves every number of lights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psfcn import blobs, light_sets, materials
from psfcn.gbuffer import Mesh
from psfcn.rendering import render
from psfcn.samples import Sample

LIGHTS = 96
SEED = 20071314  # of the lights, and of the views and blobs


@dataclass(frozen=True)
class Case:
    """One object of the test set.

    Attributes:
        shape: ``sphere``, ``blob1``, ``blob2``, or the path of a mesh.
        material: one of the 20.
    """

    shape: str | Path
    material: str

    @property
    def name(self) -> str:
        return f"{getattr(self.shape, 'stem', self.shape)}_{self.material}"


def cases(meshes: Path | None) -> list[Case]:
    """The 60 cases; with the held-out meshes of a folder if one is given.

    Raises:
        UserError: the folder is missing or has neither of them.
    """
    shapes: list[str | Path] = ["sphere", *(blobs.held_out_files(meshes) if meshes else ["blob1", "blob2"])]
    return [Case(shape, material) for shape in shapes for material in materials.names("test")]


def render_case(case: Case, size: int) -> Sample:
    """A case at ``size`` x ``size`` pixels."""
    lights = light_sets.spread_first(light_sets.half_sphere(np.random.default_rng(SEED), LIGHTS))
    return render(mesh_of(case.shape, size), [materials.measured(case.material)], lights, np.ones_like(lights), size)


def mesh_of(shape: str | Path, size: int) -> Mesh:
    """A shape of the test set, drawn for images of ``size`` pixels."""
    if isinstance(shape, Path):
        return blobs.from_file(shape, np.random.default_rng((SEED, 0)), zoom=False)
    if shape == "sphere":
        return blobs.sphere()
    return blobs.random_blob(np.random.default_rng((SEED, int(shape.removeprefix("blob")))), size, zoom=False)
