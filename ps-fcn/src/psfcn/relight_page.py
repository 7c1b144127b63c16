"""A web page of one file that shows a result under a light which the pointer moves."""

from __future__ import annotations

import base64
import html
from importlib.resources import files
from pathlib import Path

import numpy as np
from papershelf.files import atomic_path

LARGEST = 1_000_000  # pixels: what a browser shades sixty times a second
BRIGHT = 0.9  # the albedo's 99th percentile, on the page


def write_page(path: Path | str, normals: np.ndarray, albedo: np.ndarray, mask: np.ndarray, title: str) -> None:
    """Write the page; it needs nothing else, neither files nor a network.

    Args:
        path: ends in ``.html``.
        normals: ``[H, W, 3]``, unit; x right, y up, z to the viewer.
        albedo: ``[H, W, 3]``, linear RGB, of any scale.
        mask: ``[H, W]`` bool; only the object's surroundings are cut away.
        title: of the page.
    """
    page = files("psfcn").joinpath("relight.html").read_text(encoding="utf-8")
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    around = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(None),) * 2
    normals, albedo, mask = normals[around], albedo[around], mask[around]
    top = np.percentile(albedo[mask], 99) if mask.any() else 1.0
    colours = srgb(np.clip(albedo * (BRIGHT / max(float(top), 1e-12)), 0, 1))
    alpha = mask[..., None].astype(np.float32)
    pictures = {
        "@NORMALS@": _as_url((normals + 1) / 2),
        "@ALBEDO@": _as_url(np.concatenate([colours, alpha], -1)),
        "@TITLE@": html.escape(title, quote=True),
    }
    for place, content in pictures.items():
        page = page.replace(place, content)
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as a screen wants it (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055)


def _as_url(picture: np.ndarray) -> str:
    """A PNG of ``[H, W, 3 or 4]`` in [0, 1], made smaller if need be."""
    import cv2  # late: 0.1 s

    height, width = picture.shape[:2]
    if height * width > LARGEST:
        scale = (LARGEST / (height * width)) ** 0.5
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        picture = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    stored = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    order = [2, 1, 0, 3][: stored.shape[2]]  # OpenCV's
    data = cv2.imencode(".png", np.ascontiguousarray(stored[..., order]))[1]
    return "data:image/png;base64," + base64.b64encode(data).decode()
