"""Random shapes: blobs, heaps of them, solids and height fields; and meshes from files, turned and cropped at random.

The paper renders "Blobby" shapes (Johnson and Adelson, CVPR 2011) and scans of sculptures (section 5.1). Blobs here
are spheres displaced by smooth noise along their normals and sideways. What the two sets lack, and real captures
have, are flat and slightly curved faces under any tilt: height fields from nearly flat to rugged.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from papershelf.errors import UserError

from psfcn.gbuffer import Mesh, creased_normals, smooth_normals
from psfcn.noise import Noise

HELD_OUT = ("homer", "rocker-arm")  # meshes that are only tested on
SUFFIXES = (".obj", ".ply", ".stl", ".off", ".glb")
FIELD = 96  # squares along each side of a height field


def sphere() -> Mesh:
    """The unit sphere, shrunk to leave a margin around it."""
    directions, faces = _icosphere(6)
    return Mesh(0.95 * directions, faces, directions, "sphere")


def random_sphere(rng: np.random.Generator) -> Mesh:
    """A sphere somewhere in the image, from small to cut off by its edges."""
    directions, faces = _icosphere(5)
    radius = np.float32(rng.uniform(0.5, 1.3))
    centre = np.float32([*rng.uniform(-1, 1, 2) * abs(1 - radius), 0])
    return Mesh(radius * directions + centre, faces, directions, "sphere")


def random_blob(rng: np.random.Generator, size: int, *, zoom: bool = True) -> Mesh:
    """One blob, or a heap of two to four (1 in 3).

    Args:
        rng: what it is drawn from.
        size: pixels of the image to come, which the mesh is fine enough for.
        zoom: sometimes show only a part of it.
    """
    level = 4 if size <= 40 else 5
    count = 1 if rng.uniform() < 2 / 3 else int(rng.integers(2, 5))
    blobs = [_blob(rng, level) for _ in range(count)]
    vertices = np.concatenate(
        [blob * rng.uniform(0.5, 1) + (rng.normal(0, 0.5, 3) if count > 1 else 0) for blob in blobs]
    )
    faces = np.concatenate([_icosphere(level)[1] + i * len(blobs[0]) for i in range(count)])
    vertices = _framed(rng, vertices, zoom)
    return Mesh(vertices, faces, smooth_normals(vertices, faces), "blob" if count == 1 else "blobs")


def random_patch(rng: np.random.Generator) -> Mesh:
    """A height field under any tilt up to 65 degrees: flat (1 in 4), slightly curved, or with relief."""
    grid = np.linspace(-1, 1, FIELD + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
    at = np.stack([x, y, np.zeros_like(x)], axis=1)
    z = np.zeros(len(x))
    if rng.uniform() > 0.25:
        bend = rng.normal(0, 0.25, 3)
        z = bend[0] * x**2 + bend[1] * x * y + bend[2] * y**2
        if rng.uniform() < 0.6:
            frequency = np.exp(rng.uniform(np.log(0.3), np.log(4)))
            steepness = np.exp(rng.uniform(np.log(0.03), np.log(0.8)))  # of the relief: about rise over run
            noise = Noise(rng, frequency, int(rng.integers(1, 4)))(at)[:, 0]
            z = z + steepness / (2 * np.pi * frequency) * noise
    tilt, towards = np.deg2rad(rng.uniform(0, 65)), rng.uniform(0, 2 * np.pi)
    z = z + np.tan(tilt) * (x * np.cos(towards) + y * np.sin(towards))
    # Half of them reach beyond the image, the others end within it.
    reach, turn = (1.5, 0.0) if rng.uniform() < 0.5 else (rng.uniform(0.55, 0.9), rng.uniform(0, 2 * np.pi))
    vertices = reach * np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), z], axis=1)
    faces = _grid_faces()
    vertices = vertices.astype(np.float32)
    return Mesh(vertices, faces, smooth_normals(vertices, faces), "patch")


def random_solid(rng: np.random.Generator) -> Mesh:
    """Two to five boxes, cylinders and lathed pieces put together: flat faces, sharp edges, straight shadows."""
    vertices, faces, first = [], [], 0
    for _ in range(int(rng.integers(2, 6))):
        corners, triangles = _box() if rng.uniform() < 0.5 else _lathed(rng)
        corners = corners * rng.uniform(0.25, 1, 3) @ random_rotation(rng).T + rng.normal(0, 0.4, 3)
        vertices.append(corners)
        faces.append(triangles + first)
        first += len(corners)
    corners, triangles = _framed(rng, np.concatenate(vertices), zoom=True), np.concatenate(faces)
    return Mesh(corners, triangles, smooth_normals(corners, triangles), "solid")


def mesh_files(folder: Path, split: str) -> list[Path]:
    """The meshes in a folder that a split may use, sorted: training takes all but those held out, the test those alone.

    Raises:
        UserError: no such folder, or no such mesh in it.
    """
    if split == "test":
        return held_out_files(folder)
    files = [file for file in _files(folder) if file.stem.lower() not in HELD_OUT]
    if not files:
        raise UserError(f"{folder} holds no mesh to train on; expected {', '.join(SUFFIXES)}, other than held-out ones")
    return files


def held_out_files(folder: Path) -> list[Path]:
    """The meshes in a folder that are only tested on, sorted.

    Raises:
        UserError: no such folder, or it has none of them.
    """
    files = [file for file in _files(folder) if file.stem.lower() in HELD_OUT]
    if not files:
        raise UserError(f"{folder} has none of the meshes held out for tests: expected {' or '.join(HELD_OUT)}")
    return files


def held_out_names(folder: Path) -> list[str]:
    """Which of the held-out meshes a folder has; training leaves them out."""
    return [file.stem for file in _files(folder) if file.stem.lower() in HELD_OUT]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected one with meshes ({', '.join(SUFFIXES)})")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


@cache
def read_mesh(file: Path) -> Mesh:
    """The mesh in a file, centred, within the unit ball; smooth but for sharp edges.

    Raises:
        UserError: it is damaged or holds no triangles.
    """
    import trimesh

    try:
        mesh = trimesh.load(file, force="mesh", process=True)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"cannot read {file} as a mesh: {error}") from error
    if not len(getattr(mesh, "faces", ())):
        raise UserError(f"cannot read {file} as a mesh: it holds no triangles")
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    vertices /= np.linalg.norm(vertices, axis=1).max()
    corners = np.arange(faces.size, dtype=np.int32).reshape(-1, 3)
    return Mesh(vertices[faces].reshape(-1, 3), corners, creased_normals(vertices, faces), file.stem)


def from_file(file: Path, rng: np.random.Generator, *, zoom: bool = True) -> Mesh:
    """A mesh of a file under a random rotation; whole, or with ``zoom`` sometimes only a part of it."""
    mesh = read_mesh(file)
    turn = random_rotation(rng).T.astype(np.float32)
    vertices = _framed(rng, mesh.vertices @ turn, zoom)
    return Mesh(vertices, mesh.faces, mesh.normals @ turn, mesh.name)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """``[3, 3]``, uniform over all rotations: from a random unit quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _framed(rng: np.random.Generator, vertices: np.ndarray, zoom: bool) -> np.ndarray:
    """The vertices moved and scaled to fill the image; with ``zoom``, 1 in 3 times so that up to a third of it does."""
    low, high = vertices.min(0), vertices.max(0)
    scale = 2 * rng.uniform(0.8, 0.98) / (high - low)[:2].max()
    centre = (low + high) / 2
    if zoom and rng.uniform() < 1 / 3:
        scale *= np.exp(rng.uniform(0, np.log(3)))
        # Look at some vertex in the middle half, so that the object is in the picture.
        near = np.nonzero((np.abs(vertices - centre)[:, :2] < (high - low)[:2] / 4).all(1))[0]
        centre = vertices[rng.choice(near)] if len(near) else centre
    return ((vertices - centre) * scale).astype(np.float32)


def _blob(rng: np.random.Generator, level: int) -> np.ndarray:
    directions, _ = _icosphere(level)
    frequency = np.exp(rng.uniform(np.log(0.2), np.log(0.9)))
    bumps = Noise(rng, frequency, int(rng.integers(1, 5)), rng.uniform(0.2, 0.5))(directions)
    if rng.uniform() < 0.25:
        bumps = 1 - 2 * np.abs(bumps)  # ridges and creases where the noise crosses zero
    height = rng.uniform(0.05, 0.25) * bumps
    sideways = rng.uniform(0, 0.3) * Noise(rng, rng.uniform(0.2, 0.6), channels=3)(directions)
    vertices = directions * np.maximum(1 + height, 0.3) + sideways
    return vertices * rng.uniform(0.5, 1, 3) @ random_rotation(rng).T


@cache
def _icosphere(level: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    ball = trimesh.creation.icosphere(level)
    return np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32)


@cache
def _grid_faces() -> np.ndarray:
    index = np.arange((FIELD + 1) ** 2, dtype=np.int32).reshape(FIELD + 1, FIELD + 1)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


@cache
def _box() -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    box = trimesh.creation.box(extents=(1, 1, 1))
    # Corners of their own for every face keep the edges sharp.
    return np.asarray(box.vertices[box.faces].reshape(-1, 3)), np.arange(36, dtype=np.int32).reshape(-1, 3)


def _lathed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A turned piece: a smooth random profile around the z axis, closed by flat ends with sharp rims."""
    sides, rows = 48, 24
    along = np.linspace(-0.5, 0.5, rows)
    waves = sum(rng.normal(0, 0.12 / n) * np.sin(np.pi * n * (along + 0.5) + rng.uniform(0, 6)) for n in (1, 2, 3))
    profile = np.maximum(0.35 + (waves if rng.uniform() < 0.6 else 0 * along), 0.08)
    azimuth = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    wall = np.concatenate([profile[:, None, None] * circle, np.broadcast_to(along[:, None, None], (rows, sides, 1))], 2)
    index = np.arange(rows * sides, dtype=np.int32).reshape(rows, sides)
    turned = np.roll(index, -1, axis=1)
    a, b, c, d = (part.ravel() for part in (index[:-1], turned[:-1], turned[1:], index[1:]))
    faces = [np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)]
    vertices = [wall.reshape(-1, 3)]
    for row, order in ((0, (0, 2, 1)), (rows - 1, (0, 1, 2))):
        first = sum(len(part) for part in vertices)
        vertices += [np.array([[0, 0, along[row]]]), wall[row]]
        rim = first + 1 + np.arange(sides, dtype=np.int32)
        cap = np.stack([np.full(sides, first, np.int32), rim, np.roll(rim, -1)], axis=1)
        faces.append(cap[:, order])
    return np.concatenate(vertices), np.concatenate(faces).astype(np.int32)
