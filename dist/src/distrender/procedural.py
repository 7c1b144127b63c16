"""Mugs, bowls, vases, bottles, chairs and tables from random numbers: shapes to train on, and others to test with.

Not in the paper, which takes ShapeNet's sofas, planes and tables: these need no download, their distances come from a
formula, and a seed gives the same shape everywhere. Upright along y, all of a family alike in pose, and scaled so that
they come close to the unit sphere without touching it, as DeepSDF's training meshes do.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
from papershelf.errors import UserError

from distrender.analytic import (
    AnalyticSDF,
    Cone,
    Cylinder,
    Ellipsoid,
    Rotate,
    RoundBox,
    Scale,
    Shape,
    Shell,
    SmoothDifference,
    SmoothUnion,
    Torus,
    Translate,
    difference,
    smooth_union,
    union,
)

ROOM = 1.03  # DeepSDF's: the farthest point of a shape lies at 1 / 1.03 of the sphere's radius
HELD_OUT_FROM = 1_000_000  # seeds from here on are never trained on
HELD_OUT_COUNT = 50

Draw = Callable[[float, float], float]


def shape(family: str, seed: int) -> AnalyticSDF:
    """The signed distance function of one shape; see :func:`tree`."""
    return AnalyticSDF(tree(family, seed))


def tree(family: str, seed: int) -> Shape:
    """One shape of a family, within the unit ball around the origin.

    Args:
        family: one of ``FAMILIES``.
        seed: 0 or more; from ``HELD_OUT_FROM`` on they are kept for tests.

    Raises:
        UserError: there is no such family or seed.
    """
    if family not in FAMILIES:
        raise UserError(f"no family {family!r} of shapes; there are {', '.join(FAMILIES)}")
    if seed < 0:
        raise UserError(f"a seed is 0 or more, got {seed}")
    # Each family has its own numbers for a seed, whatever families there are beside it.
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    made, reach = FAMILIES[family](lambda low, high: float(rng.uniform(low, high)))
    return Scale(made, 1 / (ROOM * reach))


def training_set(count: int) -> list[tuple[str, int]]:
    """``count`` pairs of family and seed, the families in turn; a longer set begins with a shorter one."""
    names = list(FAMILIES)
    return [(names[i % len(names)], i // len(names)) for i in range(count)]


def held_out() -> list[tuple[str, int]]:
    """The 50 shapes that completion is measured on."""
    return [(name, HELD_OUT_FROM + seed) for name, seed in training_set(HELD_OUT_COUNT)]


# Each of these gives a shape that is centred on its height, and the distance of its farthest point from the origin
# (an upper bound: what is rounded or smoothly joined stays within).


def _mug(draw: Draw) -> tuple[Shape, float]:
    half, radius = draw(0.5, 0.75), draw(0.38, 0.6)
    wall, floor = draw(0.06, 0.09), draw(0.07, 0.12)
    ring, tube = half * draw(0.4, 0.6), draw(0.06, 0.09)
    foot = radius * draw(0.75, 1.0)
    handle = Translate(Rotate(Torus(ring, tube), math.pi / 2, 0, 0), radius, draw(-0.1, 0.1) * half, 0)
    outside = SmoothUnion(Cone(half, foot, radius), handle, 0.08)
    hollow = Translate(Cone(half, foot - wall, radius - wall), 0, floor, 0)
    reach = max(math.hypot(radius, half), math.hypot(radius + ring + tube, 0.1 * half)) + 0.02
    return difference(outside, hollow), reach


def _bowl(draw: Draw) -> tuple[Shape, float]:
    radius, depth, half = 0.9, draw(0.45, 0.8), draw(0.035, 0.055)
    foot, foot_half = radius * draw(0.3, 0.5), draw(0.04, 0.09)
    rim = draw(0.0, 0.2) * depth  # how far the ball goes on above its equator
    # Half of a shell; the cut removes all that is above the rim.
    ball = Shell(Ellipsoid(radius, depth, radius), half)
    bowl = difference(ball, Translate(Cylinder(1.0, 2.0), 0, rim + 1.0, 0))
    stand = Translate(Cylinder(foot_half, foot), 0, -depth - foot_half + half, 0)
    bottom = -depth - 2 * foot_half + half
    middle = (rim + bottom) / 2
    # Nothing is wider than the ball, nor farther from the middle's height than rim and bottom.
    reach = math.hypot(radius + half, rim - middle)
    return Translate(SmoothUnion(bowl, stand, 0.05), 0, -middle, 0), reach + 0.0125


def _vase(draw: Draw) -> tuple[Shape, float]:
    foot, belly, neck, lip = draw(0.25, 0.4), draw(0.42, 0.62), draw(0.2, 0.32), draw(0.26, 0.48)
    low, middle, high = draw(0.25, 0.4), draw(0.25, 0.4), draw(0.1, 0.25)  # half the height of each part
    half, k = draw(0.035, 0.05), 0.1
    total = low + middle + high
    parts = [
        Translate(Cone(low, foot, belly), 0, low - total, 0),
        Translate(Cone(middle, belly, neck), 0, 2 * low + middle - total, 0),
        Translate(Cone(high, neck, lip), 0, total - high, 0),
    ]
    solid = smooth_union(*parts, k=k)
    opened = difference(Shell(solid, half), Translate(Cylinder(0.2, lip - half), 0, total + 0.1, 0))
    rings = [(foot, -total), (belly, 2 * low - total), (neck, total - 2 * high), (lip, total)]
    return opened, max(math.hypot(radius, y) for radius, y in rings) + half + k / 2


def _bottle(draw: Draw) -> tuple[Shape, float]:
    radius, neck = draw(0.25, 0.42), draw(0.1, 0.16)
    body, shoulder, top = draw(0.4, 0.6), draw(0.12, 0.25), draw(0.12, 0.22)  # half the height of each part
    cap, k = neck + draw(0.02, 0.06), draw(0.04, 0.12)
    total = body + shoulder + top
    parts = [
        Translate(Cylinder(body, radius), 0, body - total, 0),
        Translate(Cone(shoulder, radius, neck), 0, 2 * body + shoulder - total, 0),
        Translate(Cylinder(top, neck), 0, total - top, 0),
    ]
    lid = Translate(Cylinder(0.35 * top, cap), 0, total - 0.35 * top, 0)
    dent = Translate(Ellipsoid(0.6 * radius, 0.1, 0.6 * radius), 0, -total, 0)
    bottle = union(SmoothDifference(smooth_union(*parts, k=k), dent, 0.03), lid)
    corners = [(radius, -total), (radius, 2 * body - total), (cap, total)]
    return bottle, max(math.hypot(r, y) for r, y in corners) + k / 2


def _chair(draw: Draw) -> tuple[Shape, float]:
    wide, deep, thick = draw(0.4, 0.55), draw(0.38, 0.52), draw(0.04, 0.07)  # half sizes of the seat
    leg, back, rod = draw(0.3, 0.45), draw(0.35, 0.55), draw(0.045, 0.065)  # half heights of legs and back
    bottom, top = -leg - back, leg + back
    seat_at = bottom + 2 * leg
    parts: list[Shape] = [
        Translate(RoundBox(wide, thick, deep, 0.03), 0, seat_at, 0),
        *_legs(wide, deep, leg, rod, bottom),
    ]
    behind = Translate(RoundBox(wide, back, rod, 0.03), 0, seat_at + back, rod - deep)
    if draw(0, 1) < 0.5:  # a gap between the seat and the back, held by two posts
        gap = draw(0.25, 0.5) * back
        upper = Translate(RoundBox(wide, back - gap, rod, 0.03), 0, top - (back - gap), rod - deep)
        posts = [
            Translate(RoundBox(rod, back, rod, 0.02), x, seat_at + back, rod - deep) for x in (rod - wide, wide - rod)
        ]
        parts += [upper, *posts]
    else:
        parts.append(behind)
    if draw(0, 1) < 0.4:
        height = draw(0.3, 0.5) * back
        for side in (-1, 1):
            x = side * (wide - rod)
            parts.append(Translate(RoundBox(rod, rod, deep, 0.02), x, seat_at + height, 0))
            parts.append(Translate(RoundBox(rod, height / 2, rod, 0.02), x, seat_at + height / 2, deep - rod))
    return union(*parts), math.hypot(wide, deep, top)


def _table(draw: Draw) -> tuple[Shape, float]:
    thick, half, rod = draw(0.04, 0.08), draw(0.35, 0.6), draw(0.05, 0.08)
    round_top = draw(0, 1) < 0.4
    wide = draw(0.6, 0.85)
    deep = wide if round_top else draw(0.45, 0.7)
    plate = Cylinder(thick, wide) if round_top else RoundBox(wide, thick, deep, 0.03)
    top = Translate(plate, 0, half - thick, 0)
    if round_top and draw(0, 1) < 0.6:  # on one pillar
        foot, high = draw(0.3, 0.5), draw(0.04, 0.08)
        pillar = Translate(Cylinder(half - thick, rod + 0.02), 0, -thick, 0)
        parts = [top, smooth_union(pillar, Translate(Cone(high, foot, 0.6 * foot), 0, high - half, 0), k=0.06)]
        return union(*parts), math.hypot(wide, half) + 0.015
    spread = 1 / math.sqrt(2) if round_top else 1.0  # legs of a round table stand within its circle
    legs = _legs(wide * spread, deep * spread, half, rod, -half)
    return union(top, *legs), math.hypot(wide, half) if round_top else math.hypot(wide, deep, half)


def _legs(wide: float, deep: float, half: float, rod: float, bottom: float) -> list[Shape]:
    """Four posts within the corners of a rectangle of these half sizes, standing on ``bottom``."""
    corners = [(x, z) for x in (rod - wide, wide - rod) for z in (rod - deep, deep - rod)]
    return [Translate(RoundBox(rod, half, rod, 0.02), x, bottom + half, z) for x, z in corners]


FAMILIES: dict[str, Callable[[Draw], tuple[Shape, float]]] = {
    "mug": _mug,
    "vase": _vase,
    "chair": _chair,
    "bottle": _bottle,
    "table": _table,
    "bowl": _bowl,
}
