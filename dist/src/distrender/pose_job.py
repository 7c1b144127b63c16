"""``dist-render pose`` from files to files: what was seen, the camera to begin with, and what was found."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.images import read_image, write_image
from torch import Tensor
from tqdm import tqdm

from distrender import camera_files
from distrender.cameras import LADDER_FOCAL, Camera
from distrender.observations import along_rays, read_depth, read_mask
from distrender.pose import Seen
from distrender.pose_search import STEPS, Found, PoseOptions, find_pose
from distrender.rendering import trace_view
from distrender.shape_files import open_shape
from distrender.tracing import Hit

FOUND_COLOUR, GIVEN = (255, 120, 0), 90  # of the overlay: the outline, and how bright what lies outside is at most
OVERLAY_SIDE = 480  # pixels; smaller pictures are enlarged by a whole number
ASPECT = 0.01  # by which the camera's picture may be flatter or taller than the one given
UNIT = 0.15  # by which a normal's length may be off


@dataclass(frozen=True)
class JobOptions:
    """Files and conventions of one run; angles in degrees, lengths in scene units."""

    output: Path
    overlay: Path | None = None
    mask: str | None = None
    normals: Path | None = None
    depth_scale: float = 1.0
    depth_is: str = "ray"
    camera: Path | None = None
    view: str = "0"
    focal: float | None = None
    distance: float = 2.5
    azimuth: float = 30.0
    elevation: float = 20.0
    search: bool = True


def run(
    shape: str, picture: Path, job: JobOptions, options: PoseOptions, *, code: str, epoch: str, grid: int
) -> dict[str, object]:
    """Find a pose and write it.

    Args:
        shape: as :func:`distrender.shape_files.open_shape` takes it.
        picture: a silhouette, or depths (``.npy``, ``.exr``, 16-bit grey ``.png``).
        job: the other files.
        options: how to look.
        code: of a decoder's shape.
        epoch: of a DeepSDF experiment.
        grid: samples along each axis of a mesh's grid.

    Returns:
        ``iou``, ``depth_error``, ``normal_error_degrees`` (None where not seen), the camera in numbers, and
        ``ambiguous`` with the second-best pose and ``loose_degrees``.

    Raises:
        UserError: a file cannot be read or does not fit the others, or the shape is not found.
    """
    if job.output.suffix != ".json":
        raise UserError(f"{job.output}: poses are written as .json, which `render --camera` reads")
    size = _size(picture)
    camera = _first_camera(job, size)
    seen = read_seen(picture, job, camera)
    if options.scale and seen.depth is None:
        raise UserError("--free scale needs depths: a silhouette looks the same at any scale")
    sdf = open_shape(shape, code, grid, epoch).requires_grad_(False)
    total = options.starts * STEPS[0] + options.finished * (STEPS[1] + STEPS[2])
    with tqdm(total=total, unit="step", file=sys.stderr, disable=None, leave=False) as bar:
        found = find_pose(sdf, seen, camera, options, search=job.search, after=bar.update)
    pose = found.pose
    exact = pose.camera.to(torch.float32)
    hit = trace_view(sdf, exact)
    camera_files.write(job.output, pose.camera, [picture.stem])
    if job.overlay:
        write_image(job.overlay, overlay(picture, seen, hit.mask[0]))
    return measured(seen, hit, found) | described(pose.camera) | {"scale": pose.scale} | _doubt(found)


def read_seen(picture: Path, job: JobOptions, camera: Camera) -> Seen:
    """The picture, with the silhouette and the normals that came beside it."""
    depth = None
    if _holds_depth(picture):
        depth = read_depth(picture, job.depth_scale)
        if job.depth_is == "z":
            depth = along_rays(depth, camera)
        if job.mask is None and (depth > 0).all():
            raise UserError(f"{picture}: has a depth at every pixel, the background's too; give the shape's --mask")
        mask = None if job.mask == "none" else depth > 0 if job.mask is None else read_silhouette(Path(job.mask))
        if mask is not None and mask.shape == depth.shape:
            depth = torch.where(mask, depth, 0)
    else:
        if job.mask is not None:
            raise UserError(f"{picture} is a silhouette already; --mask goes with a depth picture")
        mask = read_silhouette(picture)
    normals = None
    if job.normals:
        normals = read_normals(job.normals)
        if mask is not None and mask.shape == normals.shape[:2]:
            normals = torch.where(mask[..., None], normals, 0)
    return Seen(mask, depth, normals)


def read_silhouette(path: Path) -> Tensor:
    """``[H, W]`` bool. The shape is what is bright or opaque, unless most of the picture's border would be shape."""
    mask = read_mask(path)
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return ~mask if border.float().mean() > 0.5 else mask


def read_normals(path: Path) -> Tensor:
    """``[H, W, 3]`` in the camera's axes from a picture as `render --what normal` writes it, zero where it is none."""
    image = read_image(path)
    if image.shape[2] < 3 or image.dtype.kind != "u":
        raise UserError(f"{path}: normals are an RGB picture of 8 or 16 bits, as `render --what normal` writes it")
    levels = torch.from_numpy(image[..., :3].astype(np.float32) / np.iinfo(image.dtype).max)
    normals = (2 * levels - 1) * torch.tensor([1.0, -1.0, -1.0])  # there y is up and z towards the camera
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where((length - 1).abs() < UNIT, F.normalize(normals, dim=-1), 0)


def overlay(picture: Path, seen: Seen, mask: Tensor) -> np.ndarray:
    """What was given, dimmed outside the shape, and the outline of what was found: ``[h, w, 3]`` uint8."""
    if _holds_depth(picture):
        depth = seen.depth
        known = depth > 0
        low, high = depth[known].min(), depth[known].max()
        grey = torch.where(known, 1 - 0.6 * (depth - low) / (high - low).clamp(min=1e-9), 0)
        base = (255 * grey)[..., None].expand(-1, -1, 3).numpy()
    else:
        image = read_image(picture)
        base = image[..., :3].astype(np.float32) * (255 / (np.iinfo(image.dtype).max if image.dtype != "f4" else 1))
        base = np.broadcast_to(base, (*base.shape[:2], 3))
    inside = seen.known.numpy()[..., None]
    base = np.where(inside, np.maximum(base, 2 * GIVEN), np.minimum(base, GIVEN))
    times = max(1, -(-OVERLAY_SIDE // max(mask.shape)))
    large, found = (np.repeat(np.repeat(part, times, 0), times, 1) for part in (base, mask.numpy()))
    padded = F.pad(torch.from_numpy(found)[None, None].float(), (2, 2, 2, 2), mode="replicate")
    outline = (F.max_pool2d(padded, 5, 1) != -F.max_pool2d(-padded, 5, 1))[0, 0].numpy()
    return np.where(outline[..., None], np.array(FOUND_COLOUR), large).astype(np.uint8)


def measured(seen: Seen, hit: Hit, found: Found) -> dict[str, object]:
    """How well the found pose explains what was seen."""
    shown, result = hit.mask[0], {"iou": None, "depth_error": None, "normal_error_degrees": None}
    if seen.mask is not None:
        result["iou"] = float((shown & seen.mask).sum() / (shown | seen.mask).sum())
    if seen.depth is not None:
        both = shown & (seen.depth > 0)
        error = (found.pose.scale * hit.depth[0] - seen.depth)[both].abs()
        result["depth_error"] = float(error.mean()) if both.any() else None
    if seen.normals is not None:
        both = shown & (seen.normals.abs().sum(-1) > 0)
        mine = hit.normal[0][both] @ found.pose.camera.rotation[0].float().mT
        cosine = (mine * seen.normals[both]).sum(-1).clamp(-1, 1)
        result["normal_error_degrees"] = float(cosine.acos().rad2deg().median()) if both.any() else None
    return result


def described(camera: Camera) -> dict[str, object]:
    """A camera of one view in numbers as `render` takes them, and its roll; degrees."""
    eye = camera.eye[0]
    x, y, z = eye.tolist()
    distance = math.hypot(x, y, z)
    forward, right = camera.rotation[0, 2], camera.rotation[0, 0]
    level = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0], dtype=forward.dtype)), dim=0)
    down = torch.linalg.cross(forward, level)
    return {
        "eye": eye.tolist(),
        "distance": distance,
        "azimuth": math.degrees(math.atan2(x, z)),
        "elevation": math.degrees(math.asin(max(-1.0, min(1.0, y / distance)))),
        "roll": math.degrees(math.atan2(float(right @ down), float(right @ level))),
        "focal": float(camera.intrinsics[0, 0, 0]),
    }


def _doubt(found: Found) -> dict[str, object]:
    result = {"score": found.score, "ambiguous": found.ambiguous, "loose_degrees": found.loose, "second": None}
    if found.second is not None:
        doubt = {"degrees_apart": found.apart, "worse_by": found.second_score - found.score}
        result["second"] = described(found.second.camera) | doubt
    return result


def _holds_depth(picture: Path) -> bool:
    if picture.suffix.lower() in (".npy", ".exr"):
        return True
    image = read_image(picture)
    return image.dtype == np.uint16 and image.shape[2] == 1


def _size(picture: Path) -> tuple[int, int]:
    if _holds_depth(picture):
        height, width = read_depth(picture).shape
    else:
        height, width = read_image(picture).shape[:2]
    return height, width


def _first_camera(job: JobOptions, size: tuple[int, int]) -> Camera:
    if not job.camera:
        focal = LADDER_FOCAL * size[0] if job.focal is None else job.focal
        return Camera.orbit(1, job.distance, job.elevation, job.azimuth, focal=focal, size=size)
    named = camera_files.read_named(job.camera, size)
    if job.view in named.names:
        number = named.names.index(job.view)
    elif job.view.isdigit() and int(job.view) < len(named.cameras):
        number = int(job.view)
    else:
        raise UserError(
            f"{job.camera}: no view {job.view!r}; it has 0 to {len(named.cameras) - 1}: {', '.join(named.names[:8])}"
        )
    camera = named.cameras[number]
    if abs(camera.size[0] * size[1] / (camera.size[1] * size[0]) - 1) > ASPECT:
        raise UserError(
            f"{job.camera}: is of pictures of {list(camera.size)} (height, width), this one is {list(size)}; "
            "give a camera of that shape, or --focal"
        )
    return camera.resized(size)
