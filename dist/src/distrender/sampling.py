"""Training samples as DeepSDF prepares them: points with their signed distances, most of them near the surface.

DeepSDF, section 5 and supplement: of points drawn evenly over the surface each gives two samples, moved by Gaussian
noise of variance 0.0025 and of a tenth of it; some more lie anywhere in the unit ball. A file keeps those outside
(``pos``) and inside (``neg``) apart, since training draws as many of either.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

from distrender.grid import MESH_RADIUS, mesh_distance, read_mesh

NEWTON_STEPS = 3
CHUNK = 2**17  # points that a function is asked for at once


@dataclass(frozen=True)
class SamplingOptions:
    """How many points are sampled, and where.

    Args:
        count: samples of one shape.
        near: share of them that lies near the surface.
        variances: of the noise that moves points off the surface, half of them by each; squared units of the scene.
        resolution: samples along each axis of the grid on which the surface of a function is first looked for.
    """

    count: int = 525_000
    near: float = 500 / 525
    variances: tuple[float, float] = (0.0025, 0.00025)
    resolution: int = 96

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.near <= 1 or min(self.variances) < 0 or self.resolution < 2:
            raise UserError(
                "sampling needs count >= 1, near from 0 to 1, variances >= 0 and resolution >= 2, got "
                f"{self.count}, {self.near}, {self.variances} and {self.resolution}"
            )


@dataclass(frozen=True)
class Samples:
    """Points with signed distances ``[N, 4]`` float32 (x, y, z, distance): outside or on the surface, and inside."""

    pos: np.ndarray
    neg: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, distances: np.ndarray) -> Samples:
        """From points ``[N, 3]`` and distances ``[N]``, in their order; without those that are not numbers."""
        rows = np.concatenate([points, distances[:, None]], 1).astype(np.float32)
        rows = rows[np.isfinite(rows).all(1)]
        return cls(rows[rows[:, 3] >= 0], rows[rows[:, 3] < 0])

    def save(self, path: Path | str) -> None:
        """Write DeepSDF's ``SdfSamples/....npz``, atomically."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, pos=self.pos, neg=self.neg)

    @classmethod
    def load(cls, path: Path | str) -> Samples:
        """Read ``pos`` and ``neg`` as DeepSDF or :meth:`save` wrote them.

        Raises:
            UserError: the file cannot be read or holds something else.
        """
        arrays = _read_npz(path, ("pos", "neg"))
        for name, array in arrays.items():
            if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind != "f":
                raise UserError(f"{path}: {name} is {array.dtype} {list(array.shape)}, expected floats [samples, 4]")
        return cls(*(array[np.isfinite(array).all(1)].astype(np.float32) for array in arrays.values()))


@dataclass(frozen=True)
class NormalizationParameters:
    """What brings a mesh into the unit ball: ``(x + offset) * scale``; ``offset`` is ``[3]`` in the mesh's units."""

    offset: np.ndarray
    scale: float

    @classmethod
    def of(cls, vertices: np.ndarray) -> NormalizationParameters:
        """Centres the bounding box of ``[V, 3]`` and brings the farthest vertex to 1 / 1.03 from the origin.

        Raises:
            UserError: all vertices are the same point.
        """
        offset = -(vertices.min(0) + vertices.max(0)) / 2
        radius = float(np.linalg.norm(vertices + offset, axis=1).max())
        if radius == 0:
            raise UserError("the mesh has no extent: all its points are the same")
        return cls(offset, MESH_RADIUS / radius)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """From the mesh's coordinates to those of the unit ball."""
        return (points + self.offset) * self.scale

    def undo(self, points: np.ndarray) -> np.ndarray:
        """Back to the mesh's coordinates."""
        return points / self.scale - self.offset

    def save(self, path: Path | str) -> None:
        """Write DeepSDF's ``NormalizationParameters/....npz``, atomically."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, offset=self.offset.astype(np.float32), scale=np.float32([self.scale]))

    @classmethod
    def load(cls, path: Path | str) -> NormalizationParameters:
        """Read ``offset`` and ``scale``.

        Raises:
            UserError: the file cannot be read or holds something else.
        """
        offset, scale = _read_npz(path, ("offset", "scale")).values()
        if offset.size != 3 or scale.size != 1 or not np.isfinite(offset).all() or not float(scale.flat[0]) > 0:
            raise UserError(f"{path}: expected an offset of 3 numbers and one positive scale")
        return cls(offset.astype(np.float64).reshape(3), float(scale.flat[0]))


def sample_mesh(
    path: Path | str, options: SamplingOptions = SamplingOptions(), seed: int = 0
) -> tuple[Samples, NormalizationParameters]:
    """Samples of a mesh, brought into the unit ball first; inside is where its winding number is over one half.

    Args:
        path: a mesh file that trimesh reads.
        options: how many, and where.
        seed: of the random numbers; the same seed gives the same samples.

    Raises:
        UserError: the file cannot be read or has no triangles.
    """
    vertices, faces = read_mesh(path)
    normalization = NormalizationParameters.of(vertices[np.unique(faces)])  # DeepSDF: vertices of some face
    vertices = normalization.apply(vertices)
    rng = np.random.default_rng(seed)
    points = _around(on_triangles(vertices, faces, _near(options), rng), options, rng)
    distances = [mesh_distance(part, vertices, faces) for part in _chunks(points)]
    return Samples.of(points, np.concatenate(distances)), normalization


def sample_sdf(sdf: Callable[[Tensor], Tensor], options: SamplingOptions = SamplingOptions(), seed: int = 0) -> Samples:
    """Samples of a function whose shape lies in the unit ball; its values are taken for the distances.

    Args:
        sdf: float32 points ``[N, 3]`` to distances ``[N]``, differentiable in the points.
        options: how many, and where.
        seed: of the random numbers.

    Raises:
        UserError: the function has no surface in the unit ball.
    """
    rng = np.random.default_rng(seed)
    points = _around(surface_points(sdf, _near(options), rng, options.resolution), options, rng)
    return Samples.of(points, _values(sdf, points))


def surface_points(
    sdf: Callable[[Tensor], Tensor], count: int, rng: np.random.Generator, resolution: int = 96
) -> np.ndarray:
    """``count`` points ``[count, 3]`` spread evenly over the zero set of ``sdf`` within [-1, 1]^3.

    Marching cubes finds the surface, and a few steps along the gradient bring the points onto it.

    Raises:
        UserError: the function does not change its sign there.
    """
    from skimage.measure import marching_cubes  # late: half a second

    axis = np.linspace(-1, 1, resolution, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    values = _values(sdf, grid.reshape(-1, 3)).reshape(grid.shape[:3])
    if not values.min() < 0 < values.max():
        raise UserError(
            f"the function has no surface in the unit ball: its values there are from {values.min():.3g} to "
            f"{values.max():.3g}; scale the shape into the ball"
        )
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    points = on_triangles(vertices * (2 / (resolution - 1)) - 1, faces, count, rng).astype(np.float32)
    step = 2 / (resolution - 1)
    return np.concatenate([_onto_surface(sdf, torch.from_numpy(part), step).numpy() for part in _chunks(points)])


def on_triangles(vertices: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` points ``[count, 3]`` spread evenly over triangles ``[F, 3]`` of ``vertices`` ``[V, 3]``.

    Raises:
        UserError: the triangles have no area.
    """
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    if not area[-1] > 0:
        raise UserError("the mesh's triangles have no area; a mesh of a surface is needed")
    which = np.minimum(np.searchsorted(area, rng.random(count) * area[-1], side="right"), len(faces) - 1)
    # Eq. of Turk, "Generating random points in triangles": the root makes the density even.
    root, share = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - root) * a[which] + root * (1 - share) * b[which] + root * share * c[which]


def _near(options: SamplingOptions) -> int:
    """Points on the surface that are needed: each gives two samples."""
    return (round(options.count * options.near) + 1) // 2


def _around(surface: np.ndarray, options: SamplingOptions, rng: np.random.Generator) -> np.ndarray:
    """Each point of the surface moved by either noise, and points anywhere in the unit ball, ``count`` in all."""
    moved = [surface + rng.normal(0, variance**0.5, surface.shape) for variance in options.variances]
    near = np.concatenate(moved)[: round(options.count * options.near)]
    direction = rng.normal(size=(options.count - len(near), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return np.concatenate([near, direction * rng.random((len(direction), 1)) ** (1 / 3)])


def _chunks(points: np.ndarray) -> list[np.ndarray]:
    return np.array_split(points, max(1, -(-len(points) // CHUNK)))


@torch.no_grad()
def _values(sdf: Callable[[Tensor], Tensor], points: np.ndarray) -> np.ndarray:
    parts = [sdf(torch.from_numpy(part.astype(np.float32))) for part in _chunks(points)]
    return torch.cat(parts).float().numpy()


def _onto_surface(sdf: Callable[[Tensor], Tensor], points: Tensor, longest: float) -> Tensor:
    """Newton's steps ``f g / |g|^2``, none longer than ``longest``: a function need not be a true distance."""
    for _ in range(NEWTON_STEPS):
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            value = sdf(points)
            (gradient,) = torch.autograd.grad(value.sum(), points)
        step = value.detach()[:, None] * gradient / gradient.square().sum(1, keepdim=True).clamp(min=1e-12)
        size = step.norm(dim=1, keepdim=True)
        points = points.detach() - step * (longest / size.clamp(min=longest))
    return points.detach()


def _read_npz(path: Path | str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise UserError(f"{path}: expected an .npz file with {' and '.join(names)}; {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: expected an .npz file with {' and '.join(names)}") from error
