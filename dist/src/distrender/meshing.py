"""A triangle mesh of a signed distance function's surface, by marching cubes (scikit-image).

A field whose distances can be believed to some degree need not be asked everywhere (:func:`sample_near`): where blocks
of samples are farther from the surface than they are wide, their corners tell enough. A trained decoder is asked about
a fifth of the questions that way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

POINTS_AT_ONCE = 1 << 18
WRITTEN = (".obj", ".ply", ".stl", ".off", ".glb")
BLOCKS = (8, 4, 2, 1)  # sides in samples that are tried
SLACK = 1.3  # a field may overstate distances by this factor
BELIEVED = 0.1  # scene units: DeepSDF's decoders are trained on distances clamped there


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


@torch.no_grad()
def sample_near(sdf: Callable[[Tensor], Tensor], resolution: int, bound: float = 1.0) -> Tensor:
    """Like :func:`sample`, but only near the surface; farther off, what lies between the values around it.

    For fields that overstate no distance below ``BELIEVED`` by more than the factor ``SLACK``: what they say about the
    corners of a block then proves that no surface passes through it.
    """
    step = 2 * bound / (max(resolution, 2) - 1)
    side = next(side for side in BLOCKS if side == 1 or _apart(side, step) < BELIEVED)
    if side == 1 or resolution <= 2 * side:
        return sample(sdf, resolution, bound)
    blocks = -(-(resolution - 1) // side)  # along each axis; the last may reach beyond the cube
    extent = blocks * side * step / 2
    # `sample` is centred on the origin, and these blocks begin at the cube's lower corner.
    shift = extent - bound
    corners = sample(lambda p: sdf(p + shift), blocks + 1, extent)[None, None]
    least = -F.max_pool3d(-corners.abs(), 2, 1)
    signs = corners.sign()
    near = (least < _apart(side, step)) | (F.max_pool3d(signs, 2, 1) != -F.max_pool3d(-signs, 2, 1))
    cells = near.float()
    for axis in (2, 3, 4):
        cells = cells.repeat_interleave(side, axis)
    asked = F.max_pool3d(cells, 2, 1, padding=1)[0, 0, :resolution, :resolution, :resolution] > 0  # any cell beside it
    values = F.interpolate(corners, size=(blocks * side + 1,) * 3, mode="trilinear", align_corners=True)
    values = values[0, 0, :resolution, :resolution, :resolution].clone()
    axis = torch.linspace(-bound, bound, resolution)
    for some in asked.nonzero().split(POINTS_AT_ONCE):
        z, y, x = some.unbind(1)
        values[z, y, x] = sdf(torch.stack([axis[x], axis[y], axis[z]], -1))
    return values


def _apart(side: int, step: float) -> float:
    """The distance at a corner that proves a block free: farther than anything in it is from its nearest corner."""
    return SLACK * side * step * 3**0.5 / 2


def mesh(
    sdf: Callable[[Tensor], Tensor], resolution: int = 128, bound: float = 1.0, *, near: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The zero set's triangles.

    Args:
        sdf: points ``[N, 3]`` to signed distances ``[N]``, negative inside.
        resolution: samples along each axis.
        bound: half the side of the cube that is searched.
        near: ask only near the surface, of fields that :func:`sample_near` is for.

    Returns:
        Vertices ``[V, 3]`` float32 (x, y, z) and faces ``[F, 3]``, counterclockwise from outside.

    Raises:
        UserError: there is no surface in the cube.
    """
    from skimage.measure import marching_cubes

    values = (sample_near if near else sample)(sdf, resolution, bound).numpy()
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
