"""Balls in a picture: the circle of a mask, and of an outline that no mask shows.

Not in the paper. A ball's own normals are the ruler of every calibration here, so its circle is fitted to all of its
outline, in fractions of a pixel, and parts of that may be hidden: by a stand, by the picture's edge, by the dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from papershelf.errors import UserError
from scipy import ndimage

CRUMB = 0.05  # parts of a mask smaller than this share of the largest are no balls
ROUND = 0.9  # a disc covers its circle, and its circle it, by this share of both together
ROUNDS = 30  # of reweighted least squares
SEARCHED = 320  # pixels of the longer side in which circles are looked for
MEASURED = 1600  # pixels of the longer side in which they are measured
SMALLEST, LARGEST = 0.08, 0.55  # radii looked for, of the shorter side
CANDIDATES = 12
SWAY = 0.05  # radians: how well an edge's gradient points to the centre
RAYS = 360
REACH, LEAST_REACH = 0.1, 8.0  # of the radius, and pixels: how far from a candidate its outline is looked for
ON_CIRCLE = 0.015  # of the radius: how far an edge may lie from the circle
FAINT = 0.01  # of the picture's range: smaller steps are no edges
SEEN = 0.55  # of the outline, from which on a circle is a ball


@dataclass(frozen=True)
class Ball:
    """A circle in the picture: centre (x, y) and radius in pixels, the first pixel's centre at (0.5, 0.5)."""

    x: float
    y: float
    radius: float


def find_balls(mask: np.ndarray) -> list[Ball]:
    """The circles of all discs in a mask ``[H, W]``, the largest first.

    Raises:
        UserError: the mask is empty, or a part of it is no disc.
    """
    labels, parts = ndimage.label(mask)
    if not parts:
        raise UserError("the mask of the ball is empty; give a picture with the ball in white")
    sizes = ndimage.sum_labels(mask, labels, np.arange(1, parts + 1))
    boxes = ndimage.find_objects(labels)
    balls = []
    for part in np.flatnonzero(sizes >= CRUMB * sizes.max()):
        # With room around it: what of the picture lies there is not the ball.
        room = max(side.stop - side.start for side in boxes[part]) // 4 + 2
        box = tuple(slice(max(0, side.start - room), side.stop + room) for side in boxes[part])
        ball = _disc(labels[box] == part + 1)
        balls.append(Ball(ball.x + box[1].start, ball.y + box[0].start, ball.radius))
    return sorted(balls, key=lambda ball: -ball.radius)


def see_ball(brightness: np.ndarray) -> Ball:
    """The one ball in a picture ``[H, W]``, such as the mean of all photographs, found by its outline.

    Circles come from a Hough transform of a small picture's edges. Along each one's rays the strongest edge near it is
    taken, a circle fitted to those, and the share of rays counted whose edge lies on it: a circle that is there has
    most, one that is not has as many as chance gives, a fifth.

    Raises:
        UserError: no circle shows enough of its outline.
    """
    levels = _levels(brightness)
    small, shrunk = _at_most(levels, SEARCHED)
    fine, scale = _at_most(levels, MEASURED)
    smooth, grow = ndimage.gaussian_filter(fine, 1.0), scale / shrunk
    seen: list[tuple[float, Ball]] = []
    for circle in _candidates(small):
        start = Ball(circle.x * grow, circle.y * grow, circle.radius * grow)
        if measured := _on_edges(smooth, start):
            share, ball = measured
            seen.append((share, Ball(ball.x / scale, ball.y / scale, ball.radius / scale)))
    top = max((share for share, _ in seen), default=0.0)
    if top < SEEN:
        raise UserError(
            f"no ball is seen: the likeliest circle shows {100 * top:.0f} % of its outline; paint the ball white in a "
            "picture of the same size and give it by --mask"
        )
    # Reflections within a ball may be round as well: of what is seen alike the largest.
    return max((ball for share, ball in seen if share >= 0.9 * top), key=lambda ball: ball.radius)


def ball_normals(ball: Ball, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The normals ``[H, W, 3]`` of a ball and its mask ``[H, W]``, seen from far away."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y = (columns + 0.5 - ball.x) / ball.radius, (ball.y - rows - 0.5) / ball.radius
    inside = x * x + y * y < 1
    z = np.sqrt(np.where(inside, 1 - x * x - y * y, 0))
    return np.stack([x, y, z], -1) * inside[..., None], inside


def _disc(part: np.ndarray) -> Ball:
    """The circle of one part of a mask."""
    part = ndimage.binary_fill_holes(part)
    # The outline passes between a pixel inside and its neighbour outside; the picture's edge is no outline.
    side = np.argwhere(part[:, 1:] != part[:, :-1]) + np.array([0.5, 1.0])
    below = np.argwhere(part[1:] != part[:-1]) + np.array([1.0, 0.5])
    outline = np.concatenate([side, below])[:, ::-1]
    ball = fit_circle(outline) if len(outline) >= 8 else None
    if ball:
        disc = ball_normals(ball, part.shape)[1]
        share = (part & disc).sum() / (part | disc).sum()
        # Discs of a few pixels are coarse.
        if share >= ROUND - 1 / ball.radius:
            return ball
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    raise UserError(
        f"the mask of the ball is no disc (a part of it is {np.ptp(columns) + 1} by {np.ptp(rows) + 1} pixels and not "
        "round); give a mask of the whole ball in white, and of nothing else"
    )


def fit_circle(points: np.ndarray) -> Ball | None:
    """The circle with the smallest sum of distances to points (x, y) ``[N, 2]``; None where they lie on a line."""
    centre, weights = points.mean(0), np.ones(len(points))
    near = points - centre
    matrix = np.column_stack([near, np.ones(len(near))])
    square = (near**2).sum(1)
    for _ in range(ROUNDS):
        # |p|^2 = 2 p . c + (r^2 - |c|^2), linear in what is sought.
        root = np.sqrt(weights)
        a, b, c = np.linalg.lstsq(root[:, None] * matrix, root * square, rcond=None)[0]
        x, y = a / 2, b / 2
        radius = np.sqrt(max(c + x * x + y * y, 0))
        if not 0 < radius < 1e6:
            return None
        away = np.hypot(near[:, 0] - x, near[:, 1] - y) - radius
        weights = 1 / np.maximum(np.abs(away), 0.5)  # half a pixel is what an outline is known to
    return Ball(float(centre[0] + x), float(centre[1] + y), float(radius))


def _candidates(picture: np.ndarray) -> list[Ball]:
    """Circles to which many edges point: a Hough transform in which each edge votes along its gradient, both ways."""
    from skimage.feature import canny  # late: 0.4 s

    least, most = max(6, int(SMALLEST * min(picture.shape))), int(LARGEST * min(picture.shape))
    if np.ptp(picture) == 0:
        return []
    rows, columns = np.nonzero(canny(picture, 1.0, 0.8, 0.9, use_quantiles=True))
    down, right = (ndimage.gaussian_filter(picture, 1.5, order)[rows, columns] for order in ((1, 0), (0, 1)))
    length = np.maximum(np.hypot(down, right), 1e-12)
    down, right = down / length, right / length
    found = []
    for radius in range(least, most + 1):
        votes = np.zeros(picture.shape)
        for sign in (-radius, radius):
            y, x = np.rint(rows + sign * down).astype(int), np.rint(columns + sign * right).astype(int)
            inside = (y >= 0) & (y < votes.shape[0]) & (x >= 0) & (x < votes.shape[1])
            np.add.at(votes, (y[inside], x[inside]), 1.0)
        # A gradient's direction is known to a few degrees.
        votes = ndimage.gaussian_filter(votes, max(1.0, SWAY * radius)) * radius
        y, x = np.unravel_index(votes.argmax(), votes.shape)
        found.append((votes[y, x], Ball(x + 0.5, y + 0.5, float(radius))))
    kept: list[Ball] = []
    for _, ball in sorted(found, key=lambda pair: -pair[0]):
        apart = (abs(ball.x - k.x) + abs(ball.y - k.y) + abs(ball.radius - k.radius) > 0.1 * ball.radius for k in kept)
        if all(apart):
            kept.append(ball)
    return kept[:CANDIDATES]


def _on_edges(picture: np.ndarray, ball: Ball) -> tuple[float, Ball] | None:
    """A candidate fitted to the edges around it, and the share of its outline that shows."""
    angles = np.arange(RAYS) * 2 * np.pi / RAYS
    for share in (1.0, 1.0, 0.7):
        reach = share * max(REACH * ball.radius, LEAST_REACH)
        steps = np.linspace(-reach, reach, int(4 * reach) | 1)
        lengths = ball.radius + steps
        x = ball.x + np.cos(angles)[:, None] * lengths
        y = ball.y + np.sin(angles)[:, None] * lengths
        profile = ndimage.map_coordinates(picture, [y - 0.5, x - 0.5], order=1, mode="nearest")
        rise = np.abs(np.gradient(profile, lengths, axis=1))
        inside = (x > 0) & (x < picture.shape[1]) & (y > 0) & (y < picture.shape[0])
        rise *= inside
        strongest = rise.argmax(1)
        edge = rise.max(1) > FAINT * np.ptp(picture)
        if edge.sum() < RAYS / 4:
            return None
        rays = np.arange(RAYS)
        points = np.stack([x[rays, strongest], y[rays, strongest]], 1)[edge]
        fitted = fit_circle(points)
        if fitted is None or not 0.8 < fitted.radius / ball.radius < 1.25:
            return None
        ball = fitted
    away = np.abs(np.hypot(points[:, 0] - ball.x, points[:, 1] - ball.y) - ball.radius)
    return float((away < max(1.0, ON_CIRCLE * ball.radius)).sum() / RAYS), ball


def _levels(brightness: np.ndarray) -> np.ndarray:
    """How light it looks, in [0, 1]: balls of chrome stand before the dark, and their lamps outshine all."""
    top = np.percentile(brightness, 99.5)
    return np.cbrt(np.clip(brightness / max(top, 1e-12), 0, 1)).astype(np.float32)


def _at_most(picture: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """A picture, made smaller if its longer side is above ``longest``, and by what factor."""
    scale = longest / max(picture.shape)
    if scale >= 1:
        return picture, 1.0
    import cv2

    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), scale
