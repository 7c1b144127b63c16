"""A triangle mesh of a signed distance function's surface, by marching cubes (scikit-image)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

POINTS_AT_ONCE = 1 << 18
WRITTEN = (".obj", ".ply", ".stl", ".off", ".glb")


@torch.no_grad()
def sample(sdf: Callable[[Tensor], Tensor], resolution: int, bound: float = 1.0) -> Tensor:
    """Values ``[R, R, R]`` (z, y, x) on a grid over the cube from ``-bound`` to ``bound``.

    Raises:
        UserError: the resolution is below 2.
    """
    if resolution < 2:
        raise UserError(f"a grid needs a resolution of at least 2, got {resolution}")
    axis = torch.linspace(-bound, bound, resolution)
    values = torch.empty(resolution**3)
    for begin in range(0, resolution**3, POINTS_AT_ONCE):
        index = torch.arange(begin, min(begin + POINTS_AT_ONCE, resolution**3))
        z, y, x = index // resolution**2, index // resolution % resolution, index % resolution
        values[begin : begin + len(index)] = sdf(torch.stack([axis[x], axis[y], axis[z]], -1))
    return values.view(resolution, resolution, resolution)


def mesh(sdf: Callable[[Tensor], Tensor], resolution: int = 128, bound: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The zero set's triangles.

    Args:
        sdf: points ``[N, 3]`` to signed distances ``[N]``, negative inside.
        resolution: samples along each axis.
        bound: half the side of the cube that is searched.

    Returns:
        Vertices ``[V, 3]`` float32 (x, y, z) and faces ``[F, 3]``, counterclockwise from outside.

    Raises:
        UserError: there is no surface in the cube.
    """
    from skimage.measure import marching_cubes

    values = sample(sdf, resolution, bound).numpy()
    if not values.min() < 0 < values.max():
        where = "inside" if values.max() <= 0 else "outside"
        raise UserError(f"no surface within {bound:g} of the origin: the whole cube is {where}")
    step = 2 * bound / (resolution - 1)
    # scikit-image's axes are (z, y, x); turning them round turns the faces round, so it is told the opposite.
    vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=(step,) * 3, gradient_direction="ascent")
    return (vertices[:, ::-1] - bound).astype(np.float32), faces


def write_mesh(path: Path | str, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write a mesh in the format that the file's ending names, atomically.

    Raises:
        UserError: the ending is unknown or the file cannot be written.
    """
    import trimesh

    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise UserError(f"{path}: meshes are written as {', '.join(WRITTEN)}; choose one of these endings")
    content = trimesh.Trimesh(vertices, faces, process=False).export(file_type=path.suffix.lower()[1:])
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
