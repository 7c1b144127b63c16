"""Samples made without the renderer: Lambertian spheres with a highlight, each of another size and colour."""

from pathlib import Path

import numpy as np
from psfcn.samples import WHITE, Sample


def sphere_sample(number: int, size: int = 20, lights: int = 6) -> Sample:
    rng = np.random.default_rng(number)
    directions = rng.normal(size=(lights, 3))
    directions[:, 2] = np.abs(directions[:, 2]) + 0.5
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(grid, -grid)
    radius = rng.uniform(0.7, 1.2)
    z2 = radius**2 - x**2 - y**2
    mask = z2 > 0.02
    normal = np.stack([x, y, np.sqrt(np.maximum(z2, 0))], 2) / radius * mask[..., None]
    colour = rng.uniform(0.2, 0.7, 3)
    shading = np.maximum(normal @ directions.T, 0).transpose(2, 0, 1)
    intensities = np.repeat(rng.uniform(0.5, 1.0, (lights, 1)), 3, 1)
    images = (shading[..., None] * colour + shading[..., None] ** 20 * 0.3) * intensities[:, None, None]
    return Sample(
        np.rint(images.clip(0, 1) * WHITE).astype(np.uint16),
        np.float32(1),
        normal.astype(np.float16),
        np.zeros((size, size), np.float16),
        mask,
        directions.astype(np.float32),
        intensities.astype(np.float32),
        "sphere",
        "made",
    )


def make_folder(folder: Path, count: int, first: int = 0, **options) -> Path:
    folder.mkdir()
    for number in range(first, first + count):
        sphere_sample(number, **options).save(folder / f"{number:06d}.npz")
    return folder
