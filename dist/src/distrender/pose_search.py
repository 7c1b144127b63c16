"""From any direction to the pose: many starts looked at coarsely, the best refined, and how sure the answer is.

Starts are cameras on a sphere around the shape. Each is first brought to the distance and place at which its silhouette
has the given one's area and middle, then scored on a small lattice of rays around the silhouette. All of this, and
the first refinement, is done on a grid of the shape, which kernels trace; only the last steps ask the shape itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender.analytic import AnalyticSDF
from distrender.cameras import Camera
from distrender.grid import GridSDF
from distrender.meshing import sample
from distrender.pose import Pose, Residuals, Seen, looseness, march_for, refine, rotation_between, samples_of
from distrender.tracing import SDF, sphere_trace

ROOM = 0.25  # of the silhouette's extent, around it, that scores look at
DEPTH_COUNTS = 0.1  # scene units of depth error that count as much as half of the silhouette
LOOSE = 10.0  # degrees of a turn that hardly show make the answer ambiguous
STEPS = 10, 12, 12  # of each refinement: on the grid, on the shape, and with the pixels along the contour
APART = 15.0  # degrees between poses that count as two
ALIGNED = 3  # times that distance and place are brought to the silhouette's


@dataclass(frozen=True)
class PoseOptions:
    """How a pose is looked for. Not in the paper, which starts from known poses.

    Attributes:
        focal: look for the focal length too.
        scale: look for the depths' units too (sim(3), section 4.4).
        azimuths: directions tried around the y axis.
        elevations: degrees above the horizon tried at each.
        rolls: turns of the picture tried at each.
        grid: samples along each axis of the grid that stands for a network's shape at first.
        lattice: rays along each side of what starts are scored by.
        refined: starts that are refined; None takes six, and of several rolls three each.
        finished: of these, how many go on to the shape itself.
        rays: of the contour and of the inside each, for the last refinement; the first takes a third.
        alike: a second pose whose score is so near the first's makes the answer ambiguous.
    """

    focal: bool = False
    scale: bool = False
    azimuths: int = 16
    elevations: tuple[float, ...] = (-70.0, -45.0, -20.0, 5.0, 30.0, 55.0, 80.0)
    rolls: int = 1
    grid: int = 64
    lattice: int = 40
    refined: int | None = None
    finished: int = 3
    rays: int = 600
    alike: float = 0.02

    @property
    def starts(self) -> int:
        """How many are refined."""
        return self.refined or max(6, 3 * self.rolls)


@dataclass(frozen=True, eq=False)
class Found:
    """A pose, its score (0 is perfect), and the best other pose that is ``apart`` degrees away, if there was one.

    ``loose`` degrees of a turn would hardly show, see :func:`distrender.pose.looseness`.
    """

    pose: Pose
    score: float
    loose: float
    second: Pose | None = None
    second_score: float = float("inf")
    apart: float = 0.0
    ambiguous: bool = False


def find_pose(
    sdf: SDF,
    seen: Seen,
    camera: Camera,
    options: PoseOptions = PoseOptions(),
    *,
    search: bool = True,
    after: Callable[[], object] = lambda: None,
) -> Found:
    """The camera from which a shape shows what was seen.

    Args:
        sdf: the shape, in the unit ball; a module is asked for no gradients of its own.
        seen: silhouette, depths, normals.
        camera: one view of the picture's size: its intrinsics, and the pose to begin with.
        options: how to look.
        search: also from all around; False refines the camera's own pose alone.
        after: called after each step, for progress.

    Raises:
        UserError: the camera is not of the picture's size, or no start shows the shape.
    """
    if len(camera) != 1 or camera.size != seen.size:
        raise UserError(
            f"a pose needs one camera of the picture's size {list(seen.size)} (height, width), got {len(camera)} of "
            f"{list(camera.size)}"
        )
    coarse = stand_in(sdf, options.grid)
    lattice = Lattice(seen, options.lattice)
    camera = camera.to(torch.float64)
    starts = lattice.aligned(coarse, all_around(camera, options) if search else camera, options.scale)
    poses = lattice.best(coarse, starts, options.starts, options.scale)
    if not poses:
        raise UserError("the shape is not seen from any start; give a --camera or --distance nearer to the truth")
    few = Residuals(coarse, samples_of(seen, options.rays // 3, options.rays // 3), width=0.1, deep=0.1)
    free = {"focal": options.focal, "scale": options.scale, "after": after}
    poses = [refine(few, pose, iterations=STEPS[0], **free)[0] for pose in poses]
    ranked = _distinct(sorted(((lattice.score(coarse, pose), n, pose) for n, pose in enumerate(poses))))
    many = Residuals(sdf, samples_of(seen, options.rays, options.rays), width=0.02, deep=0.03)
    strict = Residuals(sdf, samples_of(seen, options.rays, options.rays, strict=True), width=0.02, deep=0.01)
    last = []
    for _, _, pose in ranked[: options.finished]:
        pose, _ = refine(many, pose, iterations=STEPS[1], **free)
        last.append(refine(strict, pose, iterations=STEPS[2], **free)[0] if seen.mask is not None else pose)
    fine = Lattice(seen, 2 * options.lattice)
    ranked = _distinct(sorted((fine.score(sdf, pose), n, pose) for n, pose in enumerate(last)))
    score, _, pose = ranked[0]
    loose = looseness(many, pose)
    if len(ranked) == 1:
        return Found(pose, score, loose, ambiguous=loose > LOOSE)
    other, _, second = ranked[1]
    apart = float(rotation_between(pose.camera.rotation, second.camera.rotation))
    return Found(pose, score, loose, second, other, apart, loose > LOOSE or other - score < options.alike)


def stand_in(sdf: SDF, resolution: int) -> SDF:
    """The field itself where kernels trace it, else a grid of it over the unit ball."""
    if isinstance(sdf, (AnalyticSDF, GridSDF)):
        return sdf
    return GridSDF(sample(sdf, resolution, 1.05), -1.05, 1.05).requires_grad_(False)


def all_around(camera: Camera, options: PoseOptions) -> Camera:
    """The camera's own pose and those of every azimuth, elevation and roll, as far away as it is."""
    eyes = [
        (azimuth, elevation)
        for elevation in options.elevations
        for azimuth in torch.arange(options.azimuths).mul(360 / options.azimuths).tolist()
    ]
    azimuth, elevation = torch.tensor(eyes, dtype=torch.float64).deg2rad().unbind(1)
    eye = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], -1)
    upright = Camera.look_at(eye).rotation  # [D, 3, 3]
    turned = []
    for roll in torch.arange(options.rolls, dtype=torch.float64) * (2 * torch.pi / options.rolls):
        turn = torch.eye(3, dtype=torch.float64)
        turn[0, 0] = turn[1, 1] = roll.cos()
        turn[0, 1], turn[1, 0] = -roll.sin(), roll.sin()
        turned.append(turn @ upright)
    rotation = torch.cat([camera.rotation, *turned])
    count = len(rotation)
    distance = camera.translation.new_tensor([0.0, 0.0, float(camera.translation.norm())])
    translation = torch.cat([camera.translation, distance.expand(count - 1, 3)])
    return Camera(camera.intrinsics.expand(count, 3, 3), rotation, translation, camera.size)


class Lattice:
    """A square of rays around what was seen, and what was seen there."""

    def __init__(self, seen: Seen, side: int) -> None:
        y, x = seen.known.nonzero().unbind(1)
        low = torch.stack([x.min(), y.min()]).double()
        high = torch.stack([x.max(), y.max()]).double() + 1
        half = (high - low).max() * (0.5 + ROOM)
        ticks = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
        rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
        self.pixels = (low + high) / 2 + half * torch.stack([columns, rows], -1)  # [n, n, 2]
        at = self.pixels.floor().long()
        self.pixels = at.double() + 0.5  # the pixels' own centres, so that what was seen there is known exactly
        height, width = seen.size
        inside = ((at >= 0) & (at < torch.tensor([width, height]))).all(-1)
        x, y = at[..., 0].clamp(0, width - 1), at[..., 1].clamp(0, height - 1)
        self.mask = seen.known[y, x] & inside
        # Without a silhouette nothing is known beside the depths.
        self.known = inside if seen.mask is not None else self.mask
        zero = torch.zeros(())
        self.depth = torch.where(self.mask, seen.depth[y, x] if seen.depth is not None else zero, zero)

    @torch.no_grad()
    def depths(self, sdf: SDF, cameras: Camera) -> Tensor:
        """``[V, n, n]`` float32, inf where the shape is not."""
        origins, directions = cameras.rays_through(self.pixels)
        march = replace(march_for(sdf), closest=0)
        return sphere_trace(sdf, origins.float(), directions.float(), march, gradient="none").depth

    def aligned(self, sdf: SDF, cameras: Camera, scale: bool) -> Camera:
        """Cameras shifted until they show as much as was seen, where it was seen."""
        area, middle = self._moments(self.mask[None])
        for _ in range(ALIGNED):
            depth = self.depths(sdf, cameras)
            shown = depth.isfinite() & self.known
            now, place = self._moments(shown)
            z = cameras.translation[:, 2]
            focal = cameras.intrinsics[:, [0, 1], [0, 1]]
            nearer = (now / area).sqrt().clamp(0.5, 2.0)
            if not scale and (self.depth > 0).any():
                both = shown & (self.depth > 0)
                off = torch.where(both, self.depth - depth, torch.nan).flatten(1).nanmedian(1).values
                nearer = torch.where(off.isnan(), nearer, 1 + off / z)
            shift = (middle - place) * z[:, None] / focal
            # Only where anything is seen; elsewhere there is nothing to go by.
            translation = torch.cat([cameras.translation[:, :2] + shift, z[:, None]], 1) * nearer[:, None]
            translation = torch.where((now > 0)[:, None], translation, cameras.translation)
            cameras = Camera(cameras.intrinsics, cameras.rotation, translation, cameras.size)
        return cameras

    def _moments(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """How many rays ``[V]`` of ``[V, n, n]``, and their middle ``[V, 2]`` in pixels."""
        count = shown.sum((1, 2)).double()
        total = (shown[..., None] * self.pixels).sum((1, 2))
        return count, total / count.clamp(min=1)[:, None]

    def scores(self, depth: Tensor, scale: Tensor) -> Tensor:
        """``[V]``: 1 - IoU, and half the depths' mean error in ``DEPTH_COUNTS``, at most one half; inf: nothing."""
        shown = depth.isfinite() & self.known
        both = shown & self.mask
        score = 1 - both.sum((1, 2)) / (shown | self.mask).sum((1, 2))
        score = torch.where(both.any(2).any(1), score, torch.inf)
        measured = both & (self.depth > 0)
        if (self.depth > 0).any():
            error = torch.where(measured, (scale[:, None, None] * depth - self.depth).abs(), 0).sum((1, 2))
            error = error / measured.sum((1, 2)).clamp(min=1)
            error = torch.where(measured.any(2).any(1), error, DEPTH_COUNTS)
            score = score + 0.5 * (error / DEPTH_COUNTS).clamp(max=1)
        return score

    def score(self, sdf: SDF, pose: Pose) -> float:
        """Of one pose."""
        return float(self.scores(self.depths(sdf, pose.camera), torch.tensor([pose.scale])))

    def best(self, sdf: SDF, cameras: Camera, count: int, scale: bool) -> list[Pose]:
        """The poses of the best scores among cameras, no two of them alike."""
        depth = self.depths(sdf, cameras)
        scales = torch.ones(len(cameras))
        if scale:
            ratio = torch.where(depth.isfinite() & (self.depth > 0), self.depth / depth, torch.nan)
            scales = ratio.flatten(1).nanmedian(1).values.nan_to_num(1.0)
        scores = self.scores(depth, scales)
        order = scores.argsort()[scores.sort().values.isfinite()].tolist()
        ranked = [(float(scores[n]), n, Pose(cameras[n], float(scales[n]))) for n in order]
        return [pose for _, _, pose in _distinct(ranked, count)]


def _distinct(ranked: list[tuple[float, int, Pose]], count: int | None = None) -> list[tuple[float, int, Pose]]:
    """The first of every cluster of poses."""
    kept: list[tuple[float, int, Pose]] = []
    for entry in ranked:
        if len(kept) == count:
            break
        rotation = entry[2].camera.rotation
        if all(rotation_between(rotation, other[2].camera.rotation) > APART for other in kept):
            kept.append(entry)
    return kept
