"""Light directions from a mirror ball photographed under the same lights.

Not in the paper. A distant viewer sees the light in the ball where the normal ``n`` halves the angle between the
directions to the light and to the viewer ``v = (0, 0, 1)``: ``l = 2 (n . v) n - v``. The ball's outline gives n from
the place of the highlight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from papershelf.errors import UserError
from scipy import ndimage

BRIGHT = 0.8  # of the brightest, from which on a pixel belongs to the highlight
ROUND = 0.1  # by how much of its radius an outline may differ from a circle
BLURRED = 0.2  # of the ball: a highlight larger than that is no reflection of one light


@dataclass(frozen=True)
class Ball:
    """A circle in the picture: centre (x, y) and radius in pixels, the first pixel's centre at (0.5, 0.5)."""

    x: float
    y: float
    radius: float


def find_ball(mask: np.ndarray) -> Ball:
    """The circle of a ball's mask ``[H, W]``.

    Raises:
        UserError: the mask is empty or no disc.
    """
    labels, parts = ndimage.label(mask)
    if not parts:
        raise UserError("the mask of the chrome ball is empty; give a picture with the ball in white")
    sizes = ndimage.sum_labels(mask, labels, np.arange(1, parts + 1))
    disc = ndimage.binary_fill_holes(labels == 1 + sizes.argmax())
    rows, columns = np.flatnonzero(disc.any(1)), np.flatnonzero(disc.any(0))
    wide, high = len(columns), len(rows)
    radius = (wide + high) / 4
    area = disc.sum() / (np.pi * radius**2)
    if abs(wide - high) > 2 * ROUND * radius + 1 or abs(area - 1) > ROUND + 2 / radius:
        raise UserError(
            f"the mask of the chrome ball is no disc ({wide} by {high} pixels, {100 * area:.0f} % of a disc's area); "
            "give a mask of the whole ball"
        )
    return Ball(columns[0] + wide / 2, rows[0] + high / 2, radius)


def from_chrome_ball(images: np.ndarray, mask: np.ndarray, names: tuple[str, ...] = ()) -> np.ndarray:
    """Directions to the lights.

    Args:
        images: ``[Q, H, W, 3]``, the ball under each light; whether linear or not does not matter.
        mask: ``[H, W]`` bool, the ball.
        names: of the images, for messages.

    Returns:
        ``[Q, 3]`` float64, unit; x right, y up, z to the viewer.

    Raises:
        UserError: the mask is no disc, or an image shows no highlight.
    """
    ball = find_ball(mask)
    lights = []
    for k, image in enumerate(images):
        name = names[k] if names else f"image {k + 1}"
        x, y = _highlight(image.mean(-1), mask, name)
        nx, ny = (x - ball.x) / ball.radius, (ball.y - y) / ball.radius
        across = nx * nx + ny * ny
        if across >= 1:
            raise UserError(f"{name}: the highlight lies beside the ball; check the ball's mask")
        normal = np.array([nx, ny, np.sqrt(1 - across)])
        lights.append(2 * normal[2] * normal - [0, 0, 1])
    return np.array(lights)


def ball_normals(ball: Ball, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The normals ``[H, W, 3]`` of a ball and its mask ``[H, W]``, seen from far away."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y = (columns + 0.5 - ball.x) / ball.radius, (ball.y - rows - 0.5) / ball.radius
    inside = x * x + y * y < 1
    z = np.sqrt(np.where(inside, 1 - x * x - y * y, 0))
    return np.stack([x, y, z], -1) * inside[..., None], inside


def _highlight(brightness: np.ndarray, mask: np.ndarray, name: str) -> tuple[float, float]:
    """Where the brightest spot within the mask is: (x, y) in pixels, to a fraction of one."""
    inside = np.where(mask, brightness, 0).astype(np.float64)
    top = inside.max()
    if top <= 0:
        raise UserError(f"{name}: the chrome ball is black; photograph it under each light")
    # Of several spots at the top (a clipped window beside the lamp) the largest is the light.
    labels, _ = ndimage.label(inside >= BRIGHT * top)
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    spot = labels == largest
    if spot.sum() > BLURRED * mask.sum():
        raise UserError(f"{name}: no highlight on the ball ({100 * spot.sum() / mask.sum():.0f} % of it is bright)")
    y, x = ndimage.center_of_mass(inside * spot)
    return x + 0.5, y + 0.5
