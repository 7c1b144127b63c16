"""What completion starts from: a depth picture with its camera, or points, and perhaps a silhouette; read from files.

Depths are distances along the pixels' rays, as :func:`distrender.sphere_trace` gives and ``dist-render render --what
depth`` writes them; sensors that measure along the optical axis say z (:func:`along_rays`). All of it lies in the
decoder's own frame: the shape is in the unit ball around the origin, in the pose that the decoder was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.images import read_image
from torch import Tensor

from distrender.cameras import Camera

DEPTHS, POINTS = (".png", ".npy", ".exr"), (".ply", ".obj", ".xyz", ".npy")
REACH = 1.5  # from the origin; what lies farther cannot be on a shape in the unit ball
STEEPEST = 6.0  # neighbouring points farther apart than so many pixels are wide there lie on different surfaces


@dataclass(frozen=True, eq=False)
class Observation:
    """Points on a surface, and what is known of how they were seen.

    Attributes:
        points: ``[N, 3]``.
        normals: ``[N, 3]``, outwards and of unit length, zero where unknown.
        origins: ``[N, 3]``, from where each point was seen; None for points that no camera saw.
        camera: one view, of the silhouette.
        mask: ``[H, W]`` bool, where the view saw the shape; None where that is unknown.
    """

    points: Tensor
    normals: Tensor
    origins: Tensor | None = None
    camera: Camera | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or not len(self.points):
            raise UserError(f"there is nothing to complete: points must be [N, 3], got {list(self.points.shape)}")
        far = self.points.norm(dim=-1) > REACH
        if not self.points.isfinite().all() or far.all():
            raise UserError(
                f"no point lies within {REACH} of the origin, where a decoder's shapes are (they fill the unit ball); "
                "check the units (--depth-scale), the camera, and bring the points into the decoder's frame"
            )

    @property
    def rays(self) -> tuple[Tensor, Tensor, Tensor]:
        """Origins and directions ``[N, 3]`` of the rays that saw the points, and their depths ``[N]``.

        Raises:
            UserError: no camera saw them.
        """
        if self.origins is None:
            raise UserError("these points have no rays: no camera saw them")
        along = self.points - self.origins
        depth = along.norm(dim=-1)
        return self.origins, along / depth[:, None], depth

    def to(self, device: torch.device | str) -> Observation:
        """The same on another device."""
        moved = {
            name: None if (value := getattr(self, name)) is None else value.to(device)
            for name in ("points", "normals", "origins", "camera", "mask")
        }
        return Observation(**moved)


def from_depth(
    depth: Tensor, camera: Camera, *, mask: Tensor | None = None, keep: int | None = None, seed: int = 0
) -> Observation:
    """What a depth picture shows.

    Args:
        depth: ``[H, W]``, along the rays; nothing was measured where it is not a number above 0.
        camera: its one view.
        mask: ``[H, W]`` bool, where the shape is. Depths outside it belong to something else and are left out.
        keep: take only so many of the depths, drawn evenly.
        seed: of the drawing.

    Raises:
        UserError: the sizes do not fit, or there is no depth at all.
    """
    if len(camera) != 1 or depth.shape != camera.size:
        raise UserError(
            f"a depth picture needs one camera of its size, got {list(depth.shape)} (height, width) and {len(camera)} "
            f"of {list(camera.size)}"
        )
    if mask is not None and mask.shape != depth.shape:
        raise UserError(f"the silhouette must have the depth's size {list(depth.shape)}, got {list(mask.shape)}")
    depth = depth.to(torch.float32)
    known = depth.isfinite() & (depth > 0)
    if mask is not None:
        known &= mask
    if not known.any():
        raise UserError("the depth picture holds no depth (finite, above 0, inside the silhouette)")
    if keep is not None and keep < int(known.sum()):
        places = known.flatten().nonzero()[:, 0]
        chosen = places[torch.from_numpy(np.random.default_rng(seed).permutation(len(places))[:keep])]
        known = torch.zeros_like(known).flatten().index_fill(0, chosen, True).reshape(known.shape)
    origins, directions = (rays[0] for rays in camera.rays())
    away = torch.where(known, depth, 0)[..., None] * directions
    normals = depth_normals(away, known, directions)
    return Observation((origins + away)[known], normals[known], origins[known], camera, mask)


def depth_normals(points: Tensor, known: Tensor, directions: Tensor) -> Tensor:
    """Unit normals ``[H, W, 3]`` towards the camera, by central differences of what a depth picture shows.

    Zero where one of the four neighbours is unknown or lies on another surface.

    Args:
        points: ``[H, W, 3]``, seen from the camera.
        known: ``[H, W]`` bool, where there is one.
        directions: ``[H, W, 3]`` of the rays.
    """
    inner = slice(1, -1)
    left, right, above, below = (
        (slice(1, -1), slice(0, -2)),
        (slice(1, -1), slice(2, None)),
        (slice(0, -2), slice(1, -1)),
        (slice(2, None), slice(1, -1)),
    )
    across, down = points[right] - points[left], points[below] - points[above]
    usable = known[inner, inner] & known[left] & known[right] & known[above] & known[below]
    depth = (points[inner, inner] * directions[inner, inner]).sum(-1)
    for first, second, apart in ((left, right, across), (above, below, down)):
        width = depth * (directions[second] - directions[first]).norm(dim=-1)
        usable &= apart.norm(dim=-1) < STEEPEST * width
    normal = F.normalize(torch.linalg.cross(across, down), dim=-1)
    normal = torch.where((normal * directions[inner, inner]).sum(-1, keepdim=True) > 0, -normal, normal)
    result = torch.zeros_like(points)
    result[inner, inner] = torch.where(usable[..., None], normal, 0)
    return result


def along_rays(z: Tensor, camera: Camera) -> Tensor:
    """Distances ``[H, W]`` along the rays of depths along the optical axis."""
    directions = camera.rays()[1][0]
    return z / (directions @ camera.rotation[0, 2])


def read_depth(path: Path | str, scale: float = 1.0) -> Tensor:
    """A picture of depths ``[H, W]`` float32 in scene units, 0 where there is none.

    Args:
        path: 16-bit ``.png``, ``.exr``, or ``.npy`` of ``[H, W]`` or ``[H, W, 1]``.
        scale: scene units of one unit of the file, as 0.001 for millimetres in a scene of metres.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    path = Path(path)
    if not scale > 0:
        raise UserError(f"the depth's scale must be above 0, got {scale}")
    if path.suffix.lower() not in DEPTHS:
        raise UserError(f"{path}: depths are read from {', '.join(DEPTHS)}")
    values = _read_numbers(path) if path.suffix.lower() == ".npy" else read_image(path)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype == np.uint8:
        raise UserError(
            f"{path}: expected one channel of depths [H, W], 16 bits or floating point, got {values.dtype} "
            f"{list(values.shape)}"
        )
    depth = torch.from_numpy(values.astype(np.float32)) * scale
    return torch.where(depth.isfinite() & (depth > 0), depth, 0)


def read_mask(path: Path | str) -> Tensor:
    """A silhouette ``[H, W]`` bool: the alpha channel where there is one, else where the picture is bright.

    Raises:
        UserError: the file cannot be read, or shows nothing, or nothing else.
    """
    image = read_image(path)
    levels = image[..., 3] if image.shape[2] == 4 else image.mean(-1)
    top = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0
    mask = torch.from_numpy(levels > top / 2)
    if not mask.any() or mask.all():
        raise UserError(f"{path}: a silhouette must be bright (or opaque) on the shape and dark elsewhere")
    return mask


def read_points(path: Path | str) -> Observation:
    """Points of a ``.ply`` or ``.obj`` (its vertices), ``.xyz`` (three or six numbers a line) or ``.npy`` (likewise).

    Normals are read where the file has them.

    Raises:
        UserError: the file cannot be read or holds no points.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in POINTS:
        raise UserError(f"{path}: points are read from {', '.join(POINTS)}")
    rows = _read_numbers(path) if suffix in (".npy", ".xyz") else _read_vertices(path)
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or not len(rows):
        raise UserError(
            f"{path}: expected points [N, 3], or [N, 6] with their normals, at least one, got {list(rows.shape)}"
        )
    rows = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    rows = rows[rows.isfinite().all(-1)]
    normals = F.normalize(rows[:, 3:], dim=-1) if rows.shape[1] == 6 else torch.zeros_like(rows)
    return Observation(rows[:, :3], normals)


def thinned(observation: Observation, keep: int, seed: int = 0) -> Observation:
    """The same with ``keep`` of the points, drawn evenly; all of them where there are not so many."""
    if keep >= len(observation.points):
        return observation
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(observation.points))[:keep])
    origins = None if observation.origins is None else observation.origins[chosen]
    return replace(observation, points=observation.points[chosen], normals=observation.normals[chosen], origins=origins)


def _read_numbers(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else np.loadtxt(path, ndmin=2)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as numbers ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected an array of numbers")
    return values


def _read_vertices(path: Path) -> np.ndarray:
    """Vertices ``[N, 3]``, or ``[N, 6]`` with normals: those of a .ply's points, or of a mesh."""
    import trimesh  # half a second

    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file")
    try:
        content = trimesh.load(path, process=False)
        vertices = np.asarray(content.vertices)
        if isinstance(content, trimesh.Trimesh):
            return np.hstack([vertices, content.vertex_normals])
        columns = content.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})
        names = getattr(getattr(columns, "dtype", None), "names", columns)  # an array's, or a dictionary's
        if not {"nx", "ny", "nz"} <= set(names):
            return vertices
        return np.hstack([vertices, *(np.asarray(columns[name]).reshape(-1, 1) for name in ("nx", "ny", "nz"))])
    except Exception as error:  # each of trimesh's readers fails in its own way
        raise UserError(f"{path}: cannot be read as points ({type(error).__name__}: {error})") from error
