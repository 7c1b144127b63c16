"""A signed distance function as numbers on a regular grid, trilinear in between.

What a mesh becomes for tracing: one look-up a query instead of a search for the nearest triangle. The grid is sampled
at its corners, ``low`` and ``high`` included; beyond it the value at the nearest point of the grid's cube plus the
distance to it, so that rays from far away arrive.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor, nn

from distrender.tape import length

MESH_RADIUS = 1 / 1.03  # of the farthest vertex of a mesh, once it is centred: some space before the unit sphere
BRICK = 4  # samples along each axis of one: 1 << kBrickShift of csrc/trace.h
WHOLE = 1.1  # a winding number within 0.045 of a whole one is taken for it


class GridSDF(nn.Module):
    """Signed distances on a grid over the cube from ``low`` to ``high``, differentiable in them and in the points.

    Args:
        values: ``[D, H, W]`` (z, y, x), at least 2 each, floating point; kept as float32 or float64. Negative inside.
        low: coordinate of the first samples on all three axes, in units of the scene.
        high: coordinate of the last ones.

    Raises:
        UserError: the shape, the numbers or the extent are impossible.
    """

    def __init__(self, values: Tensor | np.ndarray, low: float = -1.05, high: float = 1.05):
        super().__init__()
        values = torch.as_tensor(values)
        if values.ndim != 3 or min(values.shape) < 2 or not values.is_floating_point():
            raise UserError(
                f"a grid must be floating point [D, H, W] of at least 2 x 2 x 2, "
                f"got {values.dtype} {list(values.shape)}"
            )
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"a grid must reach from a lower to a higher coordinate, got {low:g} to {high:g}")
        if not values.isfinite().all():
            raise UserError("a grid must hold finite distances, got NaN or infinity; repair the file or the mesh")
        kept = values.dtype if values.dtype == torch.float64 else torch.float32
        self.values = nn.Parameter(values.detach().to(kept, copy=True).contiguous())
        self.low, self.high = float(low), float(high)

    def forward(self, points: Tensor) -> Tensor:
        """Signed distances ``[...]`` at points ``[..., 3]`` (x, y, z), in the points' dtype.

        The gradient in the points is that of the trilinear surface: constant along each axis within a cell. NaN
        gives NaN.
        """
        _, h, w = self.values.shape
        flat = self.values.to(points.dtype).flatten()

        def value(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return flat[(z * h + y) * w + x]

        return trilinear(points, tuple(self.values.shape), self.low, self.high, value)

    def compact(self) -> CompactGrid:
        """The grid as it is now in half the memory, laid out for tracing on a GPU; see :class:`CompactGrid`."""
        return CompactGrid(self.values.detach(), self.low, self.high)

    @classmethod
    def from_mesh(cls, path: Path | str, resolution: int = 160) -> GridSDF:
        """The signed distance to a mesh, centred on its bounding box and scaled into the unit sphere.

        The farthest vertex comes to lie at 1 / 1.03 from the origin. Inside is where the winding number is above one
        half (libigl's fast approximation), which small holes and self-intersections do not upset.

        Args:
            path: ``.obj``, ``.ply``, ``.stl``, ``.off`` or whatever else trimesh reads.
            resolution: samples along each axis, from -1.05 to 1.05.

        Raises:
            UserError: the file cannot be read, holds no triangles, or the resolution is below 2.
        """
        if resolution < 2:
            raise UserError(f"a grid needs a resolution of at least 2, got {resolution}")
        low, high = -1.05, 1.05
        vertices, faces = read_mesh(path)
        vertices = normalise(vertices)
        axis = np.linspace(low, high, resolution)
        values = np.empty((resolution,) * 3, np.float32)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        layers = max(1, 2**20 // resolution**2)  # at a time, so that the closest points fit beside the grid
        for begin in range(0, resolution, layers):
            z = axis[begin : begin + layers]
            points = np.empty((len(z), resolution, resolution, 3))
            points[..., 0], points[..., 1], points[..., 2] = x, y, z[:, None, None]
            values[begin : begin + layers] = mesh_distance(points.reshape(-1, 3), vertices, faces).reshape(
                points.shape[:3]
            )
        return cls(torch.from_numpy(values), low, high)

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` with the keys ``values`` ([D, H, W]), ``low`` and ``high``."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(file, values=self.values.detach().cpu().numpy(), low=self.low, high=self.high)

    @classmethod
    def load(cls, path: Path | str) -> GridSDF:
        """Read what :meth:`save` wrote; ``low`` and ``high`` may be missing.

        Raises:
            UserError: the file cannot be read or holds no grid.
        """
        try:
            file = np.load(path, allow_pickle=False)
            found = {key: file[key] for key in file.files}  # an array from .npy has no files
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, AttributeError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"cannot read {path}: an .npz file with a grid was expected") from error
        if "values" not in found:
            raise UserError(f"{path} has no key 'values', only {', '.join(sorted(found)) or 'nothing'}")
        try:
            low, high = (float(found.get(key, default)) for key, default in (("low", -1.05), ("high", 1.05)))
            return cls(found["values"], low, high)
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{path}: {error}") from error

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.values.shape))} from {self.low:g} to {self.high:g}"


class CompactGrid(nn.Module):
    """A grid to trace and not to change: halves, in bricks of 4 x 4 x 4 samples, one line of a GPU's cache each.

    128 samples along each axis take 4 MB and stay in that cache. Numbers are rounded once, by at most 2^-11 of
    themselves, and all arithmetic is that of the points: within a cell of the surface a grid of 128 over 2.1 is off by
    less than 1e-5, a fifth of the threshold at which marching ends.

    Args:
        values: as of :class:`GridSDF`.
        low: likewise.
        high: likewise.

    Raises:
        UserError: a value is beyond what halves hold, 65504.
    """

    def __init__(self, values: Tensor, low: float, high: float):
        super().__init__()
        self.size, self.low, self.high = tuple(values.shape), low, high
        d, h, w = (-(-size // BRICK) for size in self.size)
        padded = F.pad(
            values.half(), (0, -values.shape[2] % BRICK, 0, -values.shape[1] % BRICK, 0, -values.shape[0] % BRICK)
        )
        if not padded.isfinite().all():
            raise UserError("a compact grid holds distances up to 65504; scale the scene down")
        bricks = padded.view(d, BRICK, h, BRICK, w, BRICK).permute(0, 2, 4, 1, 3, 5).contiguous()
        self.register_buffer("bricks", bricks)  # [D / 4, H / 4, W / 4, 4, 4, 4] rounded up, zeros beyond the samples

    def forward(self, points: Tensor) -> Tensor:
        """Signed distances ``[...]`` at points ``[..., 3]``, in the points' dtype and differentiable in them."""
        _, h, w = self.bricks.shape[:3]
        flat = self.bricks.flatten()

        def value(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            brick = ((z // BRICK) * h + y // BRICK) * w + x // BRICK
            return flat[((brick * BRICK + z % BRICK) * BRICK + y % BRICK) * BRICK + x % BRICK].to(points.dtype)

        return trilinear(points, self.size, self.low, self.high, value)

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.size))} from {self.low:g} to {self.high:g}"


def trilinear(
    points: Tensor, size: tuple[int, ...], low: float, high: float, value: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Between samples ``[D, H, W]`` over the cube from ``low`` to ``high``, plus the distance to it: ``[...]``.

    Args:
        points: ``[..., 3]``.
        size: D, H and W.
        low: coordinate of the first samples.
        high: coordinate of the last ones.
        value: the samples at integer x, y and z.
    """
    inside = points.clamp(low, high)
    corner, share = [], []
    for axis, samples in enumerate(reversed(size)):
        # Where a cell's border is met, the cell above it counts, as in csrc/trace_math.h.
        position = (inside[..., axis] - low) * ((samples - 1) / (high - low))
        cell = position.detach().nan_to_num().floor().clamp(0, samples - 2)
        corner.append(cell.long())
        share.append(position - cell)
    x, y, z = corner

    def row(y: Tensor, z: Tensor) -> Tensor:
        near, far = value(x, y, z), value(x + 1, y, z)
        return near + share[0] * (far - near)

    def layer(z: Tensor) -> Tensor:
        near, far = row(y, z), row(y + 1, z)
        return near + share[1] * (far - near)

    near, far = layer(z), layer(z + 1)
    return near + share[2] * (far - near) + length(*(points - inside).unbind(-1))


def read_mesh(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``[V, 3]`` float64 and triangles ``[F, 3]`` int64 of a mesh file, all its parts together.

    Raises:
        UserError: the file cannot be read or holds no triangles.
    """
    import trimesh  # half a second

    if not Path(path).is_file():
        raise UserError(f"cannot read {path}: there is no such file")
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
    except Exception as error:  # each of trimesh's readers fails in its own way
        raise UserError(f"cannot read {path} as a mesh: {error}; .obj, .ply, .stl and .off are read") from error
    vertices = np.asarray(getattr(mesh, "vertices", ()), np.float64).reshape(-1, 3)
    faces = np.asarray(getattr(mesh, "faces", ()), np.int64).reshape(-1, 3)
    if not len(faces) or not np.isfinite(vertices).all():
        raise UserError(f"{path} has no triangles between finite points; a mesh of a closed surface is needed")
    return vertices, faces


def normalise(vertices: np.ndarray) -> np.ndarray:
    """Vertices centred on their bounding box and scaled so that the farthest is 1 / 1.03 from the origin.

    Raises:
        UserError: they all lie in one point.
    """
    centred = vertices - (vertices.min(0) + vertices.max(0)) / 2
    radius = np.linalg.norm(centred, axis=1).max()
    if radius == 0:
        raise UserError("the mesh has no extent: all its points are the same")
    return centred * (MESH_RADIUS / radius)


def mesh_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Signed distances ``[N]`` float64 of points ``[N, 3]`` to a mesh; inside, its winding number is over one half.

    The magnitude is the distance to the nearest triangle, but for what lies in a hole of the mesh, where the winding
    number is no whole number: there it falls to 0 towards the side where the sign changes, so that nothing jumps.
    """
    import igl

    points, vertices = np.ascontiguousarray(points, np.float64), np.ascontiguousarray(vertices, np.float64)
    faces = np.ascontiguousarray(faces, np.int64)
    distance = np.sqrt(igl.point_mesh_squared_distance(points, vertices, faces)[0])
    # libigl's own signed distance has the factor 1 - 2 w everywhere, and with it the approximation's error. A mesh
    # that is inside out winds the other way.
    winding = np.abs(igl.fast_winding_number(vertices, faces, points))
    return distance * np.clip(WHOLE * (1 - 2 * winding), -1, 1)
