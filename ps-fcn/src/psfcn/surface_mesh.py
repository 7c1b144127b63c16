"""A triangle mesh of an integrated depth map, torn where the depth jumps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.files import atomic_path

from psfcn.integration import Perspective

MESHES = (".ply", ".obj")
TEAR = 3.0  # pixels by which a step between neighbours may exceed what the steeper of their normals says
STEEPEST = 0.05  # n_z that a slope is computed with at least


def surface_mesh(
    depth: np.ndarray, normals: np.ndarray, camera: Perspective | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles over the pixels that have a depth.

    Args:
        depth: ``[H, W]`` as :func:`psfcn.integration.integrate` gives it, NaN outside.
        normals: ``[H, W, 3]``.
        camera: that the depth is of; None for an orthographic one.

    Returns:
        Vertices ``[V, 3]`` (x right, y up, z to the viewer; pixels, or units of the mean distance in perspective),
        faces ``[F, 3]``, counter-clockwise seen from the viewer, and each vertex's place in the map ``[V, 2]``
        (row, column).
    """
    mask = np.isfinite(depth)
    number = np.full(depth.shape, -1)
    number[mask] = np.arange(mask.sum())
    rows, columns = np.nonzero(mask)
    if camera is None:
        # Around the middle of the map, so that a viewer finds it.
        x, y = columns + 0.5 - depth.shape[1] / 2, depth.shape[0] / 2 - rows - 0.5
        vertices = np.stack([x, y, depth[mask]], -1)
        heights = depth
    else:
        distance = depth[mask]
        x, y = columns + 0.5 - camera.centre[0], camera.centre[1] - rows - 0.5
        vertices = np.stack([x / camera.focal * distance, y / camera.focal * distance, -distance], -1)
        heights = -depth * camera.focal / np.median(distance)  # in pixels at the middle distance
    steepness = np.hypot(normals[..., 0], normals[..., 1]) / np.clip(normals[..., 2], STEEPEST, None)
    a, b, c, d = (_corner(number, *at) for at in ((0, 0), (0, 1), (1, 0), (1, 1)))  # a b above c d
    torn = _range(heights) > _largest(steepness) * np.sqrt(2) + TEAR
    kinds = [((a, c, b), ~torn), ((b, c, d), ~torn)]
    faces = [np.stack(corners, -1)[whole & (np.stack(corners).min(0) >= 0)] for corners, whole in kinds]
    return vertices, np.concatenate(faces), np.stack([rows, columns], -1)


def write_mesh(path: Path | str, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray | None = None) -> None:
    """Write ``.ply`` or ``.obj`` with vertex colours ``[V, 3]`` uint8, atomically.

    Raises:
        UserError: another ending.
    """
    import trimesh  # late: half a second

    path = Path(path)
    if path.suffix.lower() not in MESHES:
        raise UserError(f"cannot write {path}: expected a name that ends in {' or '.join(MESHES)}")
    mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)
    with atomic_path(path) as part, part.open("wb") as file:
        content = mesh.export(file_type=path.suffix.lower()[1:])
        file.write(content.encode() if isinstance(content, str) else content)


def _corner(values: np.ndarray, down: int, right: int) -> np.ndarray:
    """That corner of every square of four pixels."""
    height, width = values.shape
    return values[down : height - 1 + down, right : width - 1 + right]


def _range(heights: np.ndarray) -> np.ndarray:
    corners = np.stack([_corner(heights, down, right) for down in (0, 1) for right in (0, 1)])
    return np.where(np.isfinite(corners), corners, -np.inf).max(0) - np.where(
        np.isfinite(corners), corners, np.inf
    ).min(0)


def _largest(values: np.ndarray) -> np.ndarray:
    return np.max([_corner(values, down, right) for down in (0, 1) for right in (0, 1)], axis=0)
