"""What a prediction writes: maps of the normals, albedo, confidence and depth, a sheet of them, a page, a mesh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image

from psfcn.captures import Capture
from psfcn.estimation import Estimate
from psfcn.integration import Perspective, integrate
from psfcn.relight_page import srgb, write_page
from psfcn.surface_mesh import surface_mesh, write_mesh

BACKGROUND = 127  # of pictures of normals
GAP = 6  # pixels between a sheet's pictures
WIDEST = 360  # pixels of a sheet's picture
BRIGHT = 0.9  # of white: the albedo's 99th percentile in pictures
TURNS = ((-0.55, 0.0), (0.0, 0.55), (0.55, 0.0), (0.0, -0.55))  # x and y of the lights that a sheet is relit by


def write_maps(folder: Path, capture: Capture, estimate: Estimate, title: str) -> list[Path]:
    """Write ``normal.png``, ``normal.npy``, ``albedo.png``, ``confidence.png``, ``sheet.png`` and ``relight.html``.

    Pictures of normals are ``(n + 1) / 2`` in RGB, 127 outside; of the albedo sRGB with its 99th percentile at 0.9;
    of the confidence white for 1.

    Returns:
        What was written.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another by -o") from error
    mask = capture.mask
    pictures = {
        "normal.png": normal_picture(estimate.normals, mask),
        "albedo.png": as_bytes(srgb(displayed(estimate.albedo, mask))),
        "confidence.png": as_bytes(estimate.confidence[..., None]),
        "sheet.png": sheet(capture, estimate),
    }
    for name, picture in pictures.items():
        write_image(folder / name, picture)
    save_array(folder / "normal.npy", estimate.normals)
    write_page(folder / "relight.html", estimate.normals, estimate.albedo, mask, title)
    return [folder / name for name in (*pictures, "normal.npy", "relight.html")]


def write_surface(
    folder: Path,
    mesh_suffix: str | None,
    capture: Capture,
    estimate: Estimate,
    camera: Perspective | None,
    *,
    jumps: bool,
) -> list[Path]:
    """Write ``depth.npy`` and ``depth.png`` (16 bits, near is white), and ``mesh`` with a suffix if one is given."""
    depth = integrate(estimate.normals, capture.mask, camera, jumps=jumps)
    save_array(folder / "depth.npy", depth.astype(np.float32))
    inside = depth[capture.mask]
    near = inside if camera is None else -inside
    picture = np.zeros((*capture.mask.shape, 1), np.uint16)
    span = max(float(np.ptp(near)), 1e-12)
    picture[capture.mask, 0] = (1 + (near - near.min()) / span * 65534).round()  # 0 is outside
    write_image(folder / "depth.png", picture)
    written = [folder / "depth.npy", folder / "depth.png"]
    if mesh_suffix:
        vertices, faces, places = surface_mesh(depth, estimate.normals, camera)
        colours = as_bytes(srgb(displayed(estimate.albedo, capture.mask)))[places[:, 0], places[:, 1]]
        written.append(folder / f"mesh{mesh_suffix}")
        write_mesh(written[-1], vertices, faces, colours)
    return written


def normal_picture(normals: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` uint8: (n + 1) / 2, 127 outside the mask."""
    return np.where(mask[..., None], as_bytes((normals + 1) / 2), np.uint8(BACKGROUND))


def sheet(capture: Capture, estimate: Estimate) -> np.ndarray:
    """One picture ``[H, W, 3]`` uint8 of it all, around the object.

    Above: the photographs' mean, normals, albedo, confidence; below: the object relit from four sides.
    """
    mask = capture.mask
    mean = capture.images.mean(0)
    albedo = displayed(estimate.albedo, mask)
    pictures = [
        srgb(displayed(mean, mask)),
        normal_picture(estimate.normals, mask) / 255.0,
        srgb(albedo),
        np.repeat(estimate.confidence[..., None], 3, 2),
    ]
    for x, y in TURNS:
        light = np.array([x, y, (1 - x * x - y * y) ** 0.5])
        pictures.append(srgb(albedo * (estimate.normals @ light).clip(0)[..., None]))
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    small = [_small(as_bytes(picture)[box]) for picture in pictures]
    height, width = small[0].shape[:2]
    result = np.full((2 * height + 3 * GAP, 4 * width + 5 * GAP, 3), 30, np.uint8)
    for k, picture in enumerate(small):
        y, x = GAP + k // 4 * (height + GAP), GAP + k % 4 * (width + GAP)
        result[y : y + height, x : x + width] = picture
    return result


def save_array(path: Path, array: np.ndarray) -> None:
    """Write .npy, atomically."""
    with atomic_path(path) as part, part.open("wb") as file:
        np.save(file, array)


def displayed(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Linear RGB of any scale so that it fills a screen's range."""
    top = float(np.percentile(values[mask], 99)) if mask.any() else 1.0
    return (values * (BRIGHT / max(top, 1e-12))).clip(0, 1)


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8."""
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _small(picture: np.ndarray) -> np.ndarray:
    import cv2  # late: 0.1 s

    scale = WIDEST / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
