"""Pictures of what is wrong with normals: maps of the angular error, and a sheet with the normals beside the truth."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psfcn.evaluation import Outcome
from psfcn.evaluation_sets import Subject
from psfcn.relight_page import srgb
from psfcn.result_files import as_bytes, displayed, normal_picture

STEEPEST = 45  # degrees that the scale of colours ends at; what is above looks the same
OUTSIDE = 30  # grey
UNKNOWN = 127  # grey of pixels that have no true normal
SIDES = (180, 280)  # pixels of a sheet's picture: smaller ones are enlarged, larger ones shrunk
GAP, LINE = 8, 20  # pixels
BAR = 22  # pixels, width of the scale
INK = (225, 225, 225)


def pictures(name: str, subject: Subject, outcome: Outcome) -> dict[str, np.ndarray]:
    """The sheet, and each method's map of errors at full size: ``[H, W, 3]`` uint8 each."""
    maps = {f"{method}_error": error_picture(errors, subject.capture.mask) for method, errors in outcome.errors.items()}
    return {"sheet": sheet(name, subject, outcome), **maps}


def error_picture(errors: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Degrees ``[H, W]`` as colours ``[H, W, 3]`` uint8: blue 0, red 45 and above; grey where they are NaN."""
    picture = np.where(mask[..., None], np.uint8(UNKNOWN), np.uint8(OUTSIDE)).repeat(3, -1)
    known = np.isfinite(errors)
    picture[known] = _colours(errors[known])
    return picture


def sheet(name: str, subject: Subject, outcome: Outcome) -> np.ndarray:
    """One picture ``[H, W, 3]`` uint8: mean photograph, true normals, then each method's normals above its errors."""
    mask = subject.capture.mask
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mean = as_bytes(srgb(displayed(subject.capture.images.mean(0), mask)))
    above = {name: mean, "truth": normal_picture(subject.capture.normals, mask)}
    above |= {
        f"{method}  {outcome.means[method]:.2f}°": normal_picture(normals, mask)
        for method, normals in outcome.normals.items()
    }
    tiles = [_sized(picture[box]) for picture in above.values()]
    below = [_sized(error_picture(errors, mask)[box]) for errors in outcome.errors.values()]
    height, width = tiles[0].shape[:2]
    page = np.full((2 * (height + GAP) + LINE + GAP, len(tiles) * (width + GAP) + GAP, 3), OUTSIDE, np.uint8)
    for k, tile in enumerate(tiles):
        _put(page, tile, GAP + LINE, GAP + k * (width + GAP))
    under = 2 * GAP + LINE + height
    for k, tile in enumerate(below, 2):
        _put(page, tile, under, GAP + k * (width + GAP))
    right = GAP + 2 * (width + GAP) - GAP  # of the truth, under which the scale stands
    scale = np.linspace(STEEPEST, 0, height)[:, None].repeat(BAR, 1)
    _put(page, _colours(scale), under, right - BAR)
    canvas = Image.fromarray(page)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for k, text in enumerate(above):
        _write(draw, font, text, (GAP + k * (width + GAP), GAP), width)
    for degrees in range(0, STEEPEST + 1, 15):
        text = f"{degrees}°" if degrees < STEEPEST else f"{degrees}° and more"
        y = under + round((1 - degrees / STEEPEST) * (height - 1))
        anchor = {0: "rd", STEEPEST: "ra"}.get(degrees, "rm")
        draw.text((right - BAR - 6, y), text, INK, font, anchor)
    facts = f"{len(subject.capture.images)} images\n{int(subject.measured.sum()):,} pixels"
    if outcome.lights:
        facts += f"\nLCNet's lights {outcome.lights['direction']:.1f}° off"
    draw.multiline_text((GAP, under), facts, INK, font)
    return np.asarray(canvas)


def _colours(degrees: np.ndarray) -> np.ndarray:
    import cv2  # late: 0.1 s

    levels = (np.clip(degrees / STEEPEST, 0, 1) * 255).round().astype(np.uint8)
    return cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_TURBO)[..., ::-1].reshape(*degrees.shape, 3)


def _sized(picture: np.ndarray) -> np.ndarray:
    import cv2

    longest = max(picture.shape[:2])
    scale = min(max(longest, SIDES[0]), SIDES[1]) / longest
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)


def _put(page: np.ndarray, tile: np.ndarray, y: int, x: int) -> None:
    page[y : y + tile.shape[0], x : x + tile.shape[1]] = tile


def _write(draw: ImageDraw.ImageDraw, font, text: str, place: tuple[int, int], width: int) -> None:
    """Cut to the width of a picture."""
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    draw.text(place, text, INK, font)
