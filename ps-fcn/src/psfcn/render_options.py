"""What samples are rendered from: the options of ``psfcn render`` and their defaults. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHAPES = {"blobs": 3, "solids": 2, "patches": 2, "spheres": 1, "meshes": 3}  # and how often each is drawn
MATERIALS = ("measured", "painted", "ggx", "blends")


@dataclass(frozen=True)
class Options:
    """What samples are drawn from.

    Attributes:
        size: pixels along each side.
        lights: the least and the most lights of a sample.
        split: ``train`` or ``test``: which measured materials and meshes, and other seeds.
        shapes: some of :data:`SHAPES`, drawn as often as it says.
        materials: some of :data:`MATERIALS`, equally often; ``painted`` are measured ones of another diffuse colour.
        meshes: folder of meshes, for ``meshes``.
        clustered: share of samples whose lights all lie within 45 degrees.
        rings: share of samples whose lights stand in rings.
        intensities: draw every light's intensity from U(0.2, 2).
        noise: standard deviation of the noise added, relative to the brightest value that is kept.
    """

    size: int = 128  # section 5.1
    lights: tuple[int, int] = (64, 64)  # section 5.1
    split: str = "train"
    shapes: tuple[str, ...] = ("blobs", "solids", "patches", "spheres")
    materials: tuple[str, ...] = MATERIALS
    meshes: Path | None = None
    clustered: float = 0.0
    rings: float = 0.0
    intensities: bool = False
    noise: float = 0.0
