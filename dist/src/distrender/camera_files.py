"""Cameras from files: Middlebury's ``par``, IDR's ``cameras.npz``, COLMAP's text, and our own JSON.

=================  =================================================================================================
``*_par.txt``      Middlebury: a line for each image, ``name k11..k33 r11..r33 t1 t2 t3``; ``K [R t]`` projects
``cameras.npz``    IDR, NeuS, DTU: ``world_mat_i`` 4x4 projects, ``scale_mat_i`` takes the unit ball to the world
``images.txt``     COLMAP's text model (or the folder that holds it and ``cameras.txt``), without distortion
``*.json``         ours: ``{"size": [h, w], "views": [{"name", "intrinsics", "rotation", "translation"}, ...]}``
=================  =================================================================================================

None but ours and COLMAP's tells the images' size: it is read off the images beside the file, or given. Where a format
places the centre of the first pixel at (0, 0), as Middlebury and IDR do, half a pixel is added.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from papershelf import images
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

from distrender.cameras import Camera

PINHOLE = {"SIMPLE_PINHOLE": 1, "PINHOLE": 2}  # COLMAP's models without distortion, and how many focal lengths
PICTURES = (".png", ".jpg", ".jpeg")
IMAGE_FOLDERS = (".", "image", "images", "rgb")  # where data sets keep the pictures, beside the cameras


@dataclass(frozen=True)
class CameraFile:
    """Cameras with the names of their images, in the file's order."""

    cameras: Camera
    names: tuple[str, ...]


def read(path: Path | str, size: tuple[int, int] | None = None) -> Camera:
    """The cameras in a file of any of the formats above, float32.

    Args:
        path: the file, or COLMAP's folder.
        size: (height, width) of the images where the file does not tell; None looks at the images beside it.

    Raises:
        UserError: the file is missing or none of these, or the size is not to be found.
    """
    return read_named(path, size).cameras


def read_named(path: Path | str, size: tuple[int, int] | None = None) -> CameraFile:
    """Like :func:`read`, with the images' names."""
    path = Path(path)
    if path.is_dir() and (path / "images.txt").is_file():
        path = path / "images.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected *_par.txt, cameras.npz, COLMAP's images.txt or a .json")
    try:
        if path.suffix == ".npz":
            return _read_idr(path, size)
        if path.suffix == ".json":
            return _read_json(path)
        if path.name == "images.txt":
            return _read_colmap(path)
        if path.suffix == ".txt":
            return _read_middlebury(path, size)
    except (ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as cameras ({type(error).__name__}: {error})") from error
    raise UserError(f"{path}: cameras are *_par.txt, cameras.npz, COLMAP's images.txt or .json, got {path.suffix!r}")


def write(path: Path | str, camera: Camera, names: Sequence[str] | None = None) -> None:
    """Write cameras in the format that the path's ending names.

    Args:
        path: ``.json``, ours; ``.npz``, IDR's, whose ``scale_mat`` are identities since the scene is in the unit ball
            already; ``images.txt`` or a folder, COLMAP's, with ``cameras.txt`` and an empty ``points3D.txt`` beside
            it; any other ``.txt``, Middlebury's.
        camera: V views.
        names: of their images; None counts them.

    Raises:
        UserError: the names are not one for each view or do not fit the format, the ending is none of these, COLMAP
            is to hold a skewed camera, or a file cannot be written.
    """
    path = Path(path)
    names = [f"view_{number:03d}" for number in range(len(camera))] if names is None else list(names)
    if len(names) != len(camera):
        raise UserError(f"{path}: {len(camera)} views need as many names, got {len(names)}")
    if path.suffix == ".json":
        _write_text(path, _as_json(camera, names))
    elif path.suffix == ".npz":
        _write_idr(path, camera)
    elif path.name == "images.txt" or not path.suffix:
        _write_colmap(path, camera, names)
    elif path.suffix == ".txt":
        _write_text(path, _as_middlebury(path, camera, names))
    else:
        raise UserError(f"{path}: cameras are written as .json, .npz, *_par.txt or COLMAP's folder (images.txt)")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text)


def _as_json(camera: Camera, names: Sequence[str]) -> str:
    fields = (camera.intrinsics, camera.rotation, camera.translation)
    views = [
        {"name": name, "intrinsics": k, "rotation": r, "translation": t}
        for name, k, r, t in zip(names, *(field.detach().cpu().tolist() for field in fields), strict=True)
    ]
    return json.dumps({"size": list(camera.size), "views": views}, indent=1) + "\n"


def _to_corner(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Intrinsics that count from the first pixel's centre, rotation and translation, float64."""
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = -0.5
    fields = (camera.intrinsics, camera.rotation, camera.translation)
    intrinsics, rotation, translation = (field.detach().cpu().double() for field in fields)
    return shift @ intrinsics, rotation, translation


def _as_middlebury(path: Path, camera: Camera, names: Sequence[str]) -> str:
    if split := [name for name in names if not name or len(name.split()) > 1]:
        raise UserError(f"{path}: names in Middlebury's files have no spaces, got {split[0]!r}; rename the images")
    rows = zip(names, *(field.flatten(1).tolist() for field in _to_corner(camera)), strict=True)
    lines = [" ".join([name, *(f"{v:.10g}" for v in [*k, *r, *t])]) for name, k, r, t in rows]
    return "\n".join([str(len(lines)), *lines]) + "\n"


def _write_idr(path: Path, camera: Camera) -> None:
    arrays = {}
    for number, (k, r, t) in enumerate(zip(*_to_corner(camera), strict=True)):
        world = np.eye(4)
        world[:3] = (k @ torch.cat([r, t[:, None]], 1)).numpy()
        arrays |= {f"world_mat_{number}": world, f"scale_mat_{number}": np.eye(4)}
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _write_colmap(path: Path, camera: Camera, names: Sequence[str]) -> None:
    from scipy.spatial.transform import Rotation  # a third of a second

    fields = (camera.intrinsics, camera.rotation, camera.translation)
    intrinsics, rotation, translation = (field.detach().cpu().double() for field in fields)
    if (intrinsics[:, 0, 1].abs() > 1e-6 * intrinsics[:, 0, 0]).any():
        raise UserError(f"{path}: COLMAP's PINHOLE has no skew, these cameras have; write another format")
    folder = path.parent if path.name == "images.txt" else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another place") from error
    height, width = camera.size
    numbers = intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]  # fx, fy, cx, cy: COLMAP's pixels begin at their corner too
    one = bool((numbers == numbers[0]).all())
    cameras = [
        f"{k} PINHOLE {width} {height} " + " ".join(f"{v:.10g}" for v in row.tolist())
        for k, row in enumerate(numbers[:1] if one else numbers, 1)
    ]
    images = []
    for k, (name, t) in enumerate(zip(names, translation, strict=True)):
        x, y, z, w = Rotation.from_matrix(rotation[k].numpy()).as_quat(canonical=True)
        pose = " ".join(f"{v:.10g}" for v in (w, x, y, z, *t.tolist()))
        images += [f"{k + 1} {pose} {1 if one else k + 1} {name}", ""]
    _write_text(folder / "cameras.txt", "\n".join(["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS", *cameras]) + "\n")
    _write_text(folder / "points3D.txt", "# no points\n")
    _write_text(folder / "images.txt", "\n".join(["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", *images]) + "\n")


def _read_json(path: Path) -> CameraFile:
    content = json.loads(path.read_text())
    height, width = (int(number) for number in content["size"])
    views = content["views"]
    fields = (torch.tensor([view[key] for view in views]) for key in ("intrinsics", "rotation", "translation"))
    names = tuple(str(view.get("name", number)) for number, view in enumerate(views))
    return CameraFile(Camera(*(field.float() for field in fields), (height, width)), names)


def _read_middlebury(path: Path, size: tuple[int, int] | None) -> CameraFile:
    first, *lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if len(first) != 1 or not first[0].isdigit() or int(first[0]) != len(lines):
        raise ValueError(f"the first line must be the number of the {len(lines)} lines that follow")
    if any(len(line) != 22 for line in lines):
        raise ValueError("each line must be a name and 21 numbers")
    numbers = torch.tensor([[float(number) for number in line[1:]] for line in lines], dtype=torch.float64)
    intrinsics, rotation = numbers[:, :9].reshape(-1, 3, 3), numbers[:, 9:18].reshape(-1, 3, 3)
    names = tuple(line[0] for line in lines)
    size = size or _size_beside(path, names)
    return CameraFile(_from_corner(intrinsics, rotation, numbers[:, 18:], size), names)


def _read_idr(path: Path, size: tuple[int, int] | None) -> CameraFile:
    """``world_mat_i @ scale_mat_i`` takes points of the unit ball to pixels."""
    with np.load(path, allow_pickle=False) as content:
        count = sum(key.startswith("world_mat_") and not key.startswith("world_mat_inv") for key in content.files)
        if count == 0:
            raise ValueError("there is no world_mat_0 in it")
        world = np.stack([content[f"world_mat_{k}"] for k in range(count)]).astype(np.float64)
        identity = np.eye(4)
        scale = np.stack(
            [content[f"scale_mat_{k}"] if f"scale_mat_{k}" in content.files else identity for k in range(count)]
        ).astype(np.float64)
    if world.shape[1:] not in ((4, 4), (3, 4)) or scale.shape[1:] != (4, 4):
        raise ValueError(f"matrices must be 4x4, got {world.shape[1:]} and {scale.shape[1:]}")
    parts = [decompose(torch.from_numpy(matrix)) for matrix in world[:, :3] @ scale]
    intrinsics, rotation, translation = (torch.stack(part) for part in zip(*parts, strict=True))
    names = _pictures_beside(path)[:count] or tuple(f"{number:03d}" for number in range(count))
    size = size or _size_beside(path, names)
    return CameraFile(_from_corner(intrinsics, rotation, translation, size), names)


def decompose(projection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K ``[3, 3]``, R ``[3, 3]`` and t ``[3]`` with ``K [R t]`` the ``projection`` ``[3, 4]``, up to its scale.

    What scales the scene, as IDR's ``scale_mat``, ends in t: the same points are seen at the same pixels.
    """
    left = projection[:, :3]
    flip = torch.eye(3, dtype=projection.dtype).flip(0)
    # An RQ decomposition by QR of the rows in reverse: left = K R with K upper triangular.
    q, r = torch.linalg.qr((flip @ left).mT)
    intrinsics, rotation = flip @ r.mT @ flip, flip @ q.mT
    signs = torch.sign(torch.diagonal(intrinsics))
    if (signs == 0).any():
        raise ValueError("a projection's left 3x3 part must be invertible")
    intrinsics, rotation = intrinsics * signs, signs[:, None] * rotation
    translation = torch.linalg.solve(intrinsics, projection[:, 3])
    if torch.linalg.det(rotation) < 0:  # the projection's sign is arbitrary, that of a rotation is not
        rotation, translation = -rotation, -translation
    return intrinsics / intrinsics[2, 2], rotation, translation


def _read_colmap(path: Path) -> CameraFile:
    cameras = {}
    beside = path.with_name("cameras.txt")
    if not beside.is_file():
        raise UserError(f"{path}: needs {beside} beside it; export COLMAP's model as text")
    for number, model, width, height, *parameters in _rows(beside):
        if model not in PINHOLE:
            raise UserError(
                f"{beside}: camera {number} is {model}, which has distortion; undistort the images with COLMAP "
                f"(image_undistorter) to get {' or '.join(PINHOLE)}"
            )
        *focal, x, y = (float(parameter) for parameter in parameters)
        if len(focal) != PINHOLE[model]:
            raise ValueError(f"camera {number} has {len(parameters)} parameters")
        matrix = torch.tensor([[focal[0], 0, x], [0, focal[-1], y], [0, 0, 1]], dtype=torch.float64)
        cameras[number] = (matrix, (int(height), int(width)))
    # Two lines an image: the pose, and its points, which may be none.
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    views = sorted((line.split(maxsplit=9) for line in lines[::2] if line.strip()), key=lambda fields: fields[9])
    if not views:
        raise ValueError("there are no images in it")
    sizes = {cameras[fields[8]][1] for fields in views}
    if len(sizes) > 1:
        raise UserError(f"{path}: the images have {len(sizes)} sizes ({sorted(sizes)}); they must have one")
    numbers = torch.tensor([[float(number) for number in fields[1:8]] for fields in views], dtype=torch.float64)
    rotation = torch.stack([_rotation(quaternion) for quaternion in numbers[:, :4]])
    intrinsics = torch.stack([cameras[fields[8]][0] for fields in views])
    camera = Camera(intrinsics.float(), rotation.float(), numbers[:, 4:].float(), sizes.pop())
    return CameraFile(camera, tuple(fields[9] for fields in views))


def _rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


def _rotation(quaternion: Tensor) -> Tensor:
    """The matrix ``[3, 3]`` of a quaternion ``[4]`` (w, x, y, z)."""
    w, *axis = (quaternion / quaternion.norm()).tolist()
    x, y, z = axis
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=quaternion.dtype)
    return torch.eye(3, dtype=quaternion.dtype) + 2 * w * cross + 2 * cross @ cross


def _from_corner(intrinsics: Tensor, rotation: Tensor, translation: Tensor, size: tuple[int, int]) -> Camera:
    """Cameras whose intrinsics count from the first pixel's centre."""
    shift = torch.eye(3, dtype=intrinsics.dtype)
    shift[:2, 2] = 0.5
    return Camera((shift @ intrinsics).float(), rotation.float(), translation.float(), size)


def _pictures_beside(path: Path) -> tuple[str, ...]:
    for folder in IMAGE_FOLDERS:
        place = path.parent / folder
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURES) if place.is_dir() else []
        if found:
            return tuple(p.relative_to(path.parent).as_posix() for p in found)
    return ()


def _size_beside(path: Path, names: Sequence[str]) -> tuple[int, int]:
    for folder in IMAGE_FOLDERS:
        picture = path.parent / folder / names[0]
        if picture.is_file():
            height, width = images.read_image(picture).shape[:2]
            return height, width
    raise UserError(f"{path}: does not tell the images' size, and {names[0]} is not beside it; give the size")
