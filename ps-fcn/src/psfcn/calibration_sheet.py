"""A picture of every light as it was found: the ball's outline and the light's place on it, for the eye to check."""

from __future__ import annotations

import cv2
import numpy as np

from psfcn.balls import Ball
from psfcn.calibration_run import Calibration, photographs
from psfcn.relight_page import srgb

TILE = 220  # pixels of a tile's longer side
GAP, LABEL = 6, 16  # pixels
AROUND = 1.15  # of a ball: what of the picture is shown
OUTLINE, MARK = (90, 220, 120), (255, 80, 60)  # RGB
DARK = 0.05  # of the brightest: the median below which a picture is lifted
FRACTION = 4  # binary digits of a pixel in OpenCV's drawings
DIAL = 0.16  # of a tile: the radius of the dial that shows a light where there is no ball


def sheet(calibration: Calibration, gamma: str = "linear") -> np.ndarray:
    """``[H, W, 3]`` uint8: a tile for each photograph, brightened, with circles around the balls and crosses on them.

    Where there is no ball (LCNet) a dial in the corner has the cross at the light's x and y.

    Args:
        calibration: what was found.
        gamma: as it was calibrated with.
    """
    tiles = []
    for k, image in enumerate(photographs(calibration.files, gamma)):
        tiles.append(_tile(image, calibration.balls, calibration.found.marks[k], calibration.found.directions[k]))
        _write(tiles[-1], f"{k + 1}  {calibration.names[k]}")
    high, wide = tiles[0].shape[:2]
    columns = max(1, round(np.sqrt(len(tiles) * 1.6 * high / wide)))
    rows = -(-len(tiles) // columns)
    result = np.full((rows * (high + GAP) + GAP, columns * (wide + GAP) + GAP, 3), 30, np.uint8)
    for k, tile in enumerate(tiles):
        y, x = GAP + k // columns * (high + GAP), GAP + k % columns * (wide + GAP)
        result[y : y + high, x : x + wide] = tile
    return result


def _tile(image: np.ndarray, balls: tuple[Ball, ...], marks: np.ndarray, direction: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if balls:
        left = int(np.clip(min(b.x - AROUND * b.radius for b in balls), 0, width - 1))
        top = int(np.clip(min(b.y - AROUND * b.radius for b in balls), 0, height - 1))
        right = int(np.clip(max(b.x + AROUND * b.radius for b in balls), left + 1, width))
        bottom = int(np.clip(max(b.y + AROUND * b.radius for b in balls), top + 1, height))
    part = image[top:bottom, left:right]
    part = (part / max(float(np.percentile(part, 99.9)), 1e-12)).clip(0, 1)
    # What surrounds a highlight is nearly black, and shows whether the outline fits.
    part = srgb(np.sqrt(part) if np.median(part) < DARK else part)
    scale = TILE / max(part.shape[:2])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    part = cv2.resize((part * 255).round().astype(np.uint8), size, interpolation=how)
    tile = np.concatenate([np.full((LABEL, size[0], 3), 30, np.uint8), part])
    circles = [((b.x - left) * scale, (b.y - top) * scale, b.radius * scale) for b in balls]
    places = [((x - left) * scale, (y - top) * scale) for x, y in marks]
    if not balls:
        radius = DIAL * TILE
        circles = [(radius + 4, radius + 4, radius)]
        places = [(radius + 4 + radius * direction[0], radius + 4 - radius * direction[1])]
    for x, y, radius in circles:
        cv2.circle(tile, _fixed(x, y), round(radius * (1 << FRACTION)), OUTLINE, 1, cv2.LINE_AA, FRACTION)
    for x, y in places:
        for dx, dy in ((1, 0), (0, 1)):  # a cross with an open middle, in which the highlight stays visible
            for near, far in ((6, 14), (-6, -14)):
                ends = _fixed(x + near * dx, y + near * dy), _fixed(x + far * dx, y + far * dy)
                cv2.line(tile, *ends, MARK, 2, cv2.LINE_AA, FRACTION)
    return tile


def _fixed(x: float, y: float) -> tuple[int, int]:
    """A place in the picture below the label, as OpenCV draws: pixels' centres are whole, fractions are binary."""
    shift = 1 << FRACTION
    return round((x - 0.5) * shift), round((y - 0.5 + LABEL) * shift)


def _write(tile: np.ndarray, words: str) -> None:
    cv2.putText(tile, words[:34], (3, LABEL - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (230, 230, 230), 1, cv2.LINE_AA)
