"""Lights from balls photographed under them: directions from a mirror ball, directions and intensities from a matt one.

Not in the paper. A distant viewer ``v = (0, 0, 1)`` sees a light in a mirror ball where the normal ``n`` halves the
angle between the two: ``l = 2 (n . v) n - v``. A matt ball shows ``albedo * e * max(n . l, 0)`` of a light of intensity
``e``, which gives ``albedo * e * l`` by a fit over its lit side. The ball's outline gives ``n`` in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from papershelf.errors import UserError
from scipy import ndimage

from psfcn.angles import degrees
from psfcn.balls import Ball, ball_normals

BRIGHT = 0.5  # of the brightest, from which on a pixel belongs to the highlight
BLURRED = 0.2  # of the ball: a highlight larger than that is no reflection of one light
UNLIT = 0.2  # of the highlights' median brightness: a darker one is none
FLAT = 3.0  # times the ball's median: a highlight is brighter
RIVAL = 0.3  # of the highlight's light, from which on a second spot is worth a word
STEADY = 0.2  # of an image must be left when what all images share is taken off
APART = 5.0  # degrees between two balls' directions that are worth a word
SHADOWED, GRAZING = 0.1, 0.25  # n . l and n_z, below which a matt ball's pixels are left out
MATT = 0.5  # of how much the brightness changes over a ball: a matt one's misfit is below it
ROUNDS = 20  # of reweighted least squares


@dataclass(frozen=True)
class Found:
    """What balls tell of Q lights.

    Attributes:
        directions: ``[Q, 3]`` float64, unit, to the lights; x right, y up, z to the viewer.
        intensities: ``[Q, 3]`` float64, relative, their mean 1; None where the balls do not tell.
        spread: ``[Q]`` float64, degrees: how far the balls' own directions are from their mean at most; 0 for one.
        marks: ``[Q, balls, 2]`` float64, (x, y) in pixels where each ball shows the light.
        notes: what the user should know, a line each.
    """

    directions: np.ndarray
    spread: np.ndarray
    marks: np.ndarray
    intensities: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def shared_light(pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the least of pictures ``[H, W]``: what shows the ball, and the light that never goes out."""
    count, total, least = 0, None, None
    for picture in pictures:
        count += 1
        total = picture.astype(np.float64) if total is None else total + picture
        least = picture if least is None else np.minimum(least, picture)
    return total / count, least


def from_chrome_balls(
    pictures: Iterable[np.ndarray], balls: Sequence[Ball], names: Sequence[str], steady: np.ndarray | None = None
) -> Found:
    """Directions to the lights from their reflections.

    Args:
        pictures: brightness ``[H, W]`` of one photograph after the other; whether linear or not does not matter.
        balls: where the mirror balls are; their directions are averaged.
        names: of the photographs, for messages.
        steady: ``[H, W]``, the least of them all, which is taken off: windows, and lamps that are always on.

    Raises:
        UserError: a photograph shows no highlight on a ball.
    """
    rays, marks, tops, notes = [], [], [], []
    for picture, name in zip(pictures, names, strict=True):
        changing = picture if steady is None else picture - steady
        if changing.max() < STEADY * picture.max():  # all photographs are lit alike
            changing = picture
        spots = [_highlight(changing, ball, name) for ball in balls]
        rays.append([spot.direction for spot in spots])
        marks.append([spot.mark for spot in spots])
        tops.append(min(spot.top for spot in spots))
        if any(spot.rival for spot in spots):
            notes.append(f"{name}: two highlights on the ball; the larger was taken: cover other lamps if it is wrong")
    dark = np.flatnonzero(np.array(tops) < UNLIT * np.median(tops))
    if len(dark):
        raise UserError(
            f"{names[dark[0]]}: no highlight on the ball (its brightest spot has {100 * tops[dark[0]]:.1f} % of white, "
            f"the others' {100 * np.median(tops):.1f} %); leave the photograph out, or take it again with its light on"
        )
    directions, spread = _agreed(np.array(rays))
    return Found(directions, spread, np.array(marks), None, notes + _remarks(directions, spread, names))


def from_matt_balls(
    images: Iterable[np.ndarray], balls: Sequence[Ball], names: Sequence[str], lights: np.ndarray | None = None
) -> Found:
    """Directions and intensities of the lights from the shading of white or grey matt balls.

    Args:
        images: linear RGB ``[H, W, 3]`` of one photograph after the other; 1 and above is overexposed.
        balls: where the balls are.
        names: of the photographs, for messages.
        lights: ``[Q, 3]``, unit, where the directions are known and only intensities are sought.

    Raises:
        UserError: a ball is black, or shows no matt shading.
    """
    rays, marks, strengths = [], [], []
    geometry: list[tuple[tuple[slice, slice], np.ndarray, np.ndarray]] = []
    for k, (image, name) in enumerate(zip(images, names, strict=True)):
        geometry = geometry or [_window(ball, image.shape[:2]) for ball in balls]
        known = None if lights is None else lights[k]
        fits = [_shading(image[box], normals, inside, name, known) for box, normals, inside in geometry]
        rays.append([direction for direction, _ in fits])
        strengths.append(np.mean([strength for _, strength in fits], 0))
        marks.append(
            [[b.x + b.radius * l[0], b.y - b.radius * l[1]] for b, (l, _) in zip(balls, fits, strict=True)]  # noqa: E741
        )
    directions, spread = _agreed(np.array(rays))
    intensities = np.array(strengths)
    return Found(
        directions, spread, np.array(marks), intensities / intensities.mean(), _remarks(directions, spread, names)
    )


@dataclass(frozen=True)
class _Spot:
    direction: np.ndarray  # [3]
    mark: tuple[float, float]
    top: float
    rival: bool


def _highlight(picture: np.ndarray, ball: Ball, name: str) -> _Spot:
    """The light's reflection on a ball."""
    box, normals, inside = _window(ball, picture.shape)
    # A hot pixel is no highlight, nor is noise.
    smooth = ndimage.gaussian_filter(picture[box].astype(np.float64), max(0.5, ball.radius / 150)) * inside
    top = float(smooth.max())
    if top <= 0:
        raise UserError(f"{name}: the chrome ball is black; photograph it under each light")
    weight = (smooth - BRIGHT * top).clip(0)
    labels, _ = ndimage.label(weight > 0)
    light = np.bincount(labels.ravel(), weight.ravel())
    order = light.argsort()[::-1]
    spot = labels == order[0]
    share = spot.sum() / inside.sum()
    if share > BLURRED or top < FLAT * np.median(smooth[inside]):
        raise UserError(
            f"{name}: no highlight on the ball ({100 * (weight > 0).sum() / inside.sum():.0f} % of it is bright); a "
            "mirror ball shows a small lamp as a spot; for a matt ball choose --mode matt"
        )
    # A ball's disc shows all directions with equal areas, so that the mean over pixels is the light's middle.
    n, w = normals[spot], weight[spot]
    ray = (w[:, None] * (2 * n[:, 2:] * n - [0, 0, 1])).sum(0)
    ray /= np.linalg.norm(ray)
    half = ray + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    mark = ball.x + ball.radius * half[0], ball.y - ball.radius * half[1]
    rival = len(order) > 2 and light[order[1]] > RIVAL * light[order[0]]
    return _Spot(ray, (float(mark[0]), float(mark[1])), top, bool(rival))


def _shading(
    image: np.ndarray, normals: np.ndarray, inside: np.ndarray, name: str, light: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Direction ``[3]`` and albedo times intensity ``[3]`` from a matt ball: least absolute misfit on its lit side."""
    usable = inside & (normals[..., 2] > GRAZING) & (image < 1).all(-1)
    n, values = normals[usable], image[usable].astype(np.float64)
    gray = values.mean(-1)
    if not len(gray) or gray.max() <= 0:
        raise UserError(f"{name}: the ball is {'overexposed' if not len(gray) else 'black'}; photograph it again")
    if light is None:
        b = np.linalg.lstsq(n, gray, rcond=None)[0]
        for _ in range(ROUNDS):
            size = np.linalg.norm(b)
            # Which pixels count is decided by the fit and not by their own brightness, which would bend it.
            shade = n @ b
            lit = shade > SHADOWED * size
            if lit.sum() < 10:
                break
            weight = np.sqrt(1 / np.maximum(np.abs(gray - shade)[lit], 0.01 * size))
            b = np.linalg.lstsq(weight[:, None] * n[lit], weight * gray[lit], rcond=None)[0]
        light = b / max(np.linalg.norm(b), 1e-300)
    shade = n @ light
    lit = shade > SHADOWED
    if lit.sum() < 10:
        raise UserError(f"{name}: the light does not reach the ball's visible side; leave the photograph out")
    # The median of the ratios, each counted by its shading: the least sum of absolute differences.
    ratio = values[lit] / shade[lit, None]
    order = ratio.argsort(0)
    heavy = shade[lit][order].cumsum(0)
    middle = (heavy < heavy[-1] / 2).sum(0)
    strength = np.take_along_axis(ratio, order, 0)[middle, np.arange(3)]
    change = np.abs(gray[lit] - np.median(gray[lit])).mean()
    misfit = np.abs(gray[lit] - shade[lit] * strength.mean()).mean() / max(change, 1e-12)
    if misfit > MATT or (strength <= 0).any():
        raise UserError(
            f"{name}: the ball shows no matt shading ({100 * misfit:.0f} % of how its brightness changes is "
            "unexplained); for a mirror ball choose --mode chrome, and for gamma-encoded images pass --gamma srgb"
        )
    return light, strength


def _window(ball: Ball, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The part of a picture that holds a ball, and there its normals and mask."""
    top, left = max(0, int(ball.y - ball.radius) - 2), max(0, int(ball.x - ball.radius) - 2)
    bottom, right = min(size[0], int(ball.y + ball.radius) + 3), min(size[1], int(ball.x + ball.radius) + 3)
    moved = Ball(ball.x - left, ball.y - top, ball.radius)
    return (slice(top, bottom), slice(left, right)), *ball_normals(moved, (bottom - top, right - left))


def _agreed(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The balls' mean directions from ``[Q, balls, 3]``, and the largest angle in degrees of one to it."""
    mean = rays.mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return mean, degrees(rays, mean[:, None]).max(1)


def _remarks(directions: np.ndarray, spread: np.ndarray, names: Sequence[str]) -> list[str]:
    notes = []
    if spread.max() > APART:
        notes.append(
            f"the balls' directions are up to {spread.max():.1f} degrees off their mean ({names[spread.argmax()]}): "
            "the lights are near, or a ball's mask is wrong"
        )
    behind = np.flatnonzero(directions[:, 2] < 0)
    if len(behind):
        notes.append(
            f"{names[behind[0]]}: the light stands behind the ball (z < 0), where it lights little that is seen"
        )
    return notes
