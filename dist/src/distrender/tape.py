r"""The instructions that a tree of shapes becomes, and what each computes: a stack machine in PyTorch.

The kernels run the same program (csrc/trace_math.h). The distances follow from each primitive's geometry in the usual
way: a point is folded into the symmetric part (absolute values, or its radius about the axis), where the nearest
feature is a plane, an edge or a circle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import reduce

import torch
from torch import Tensor


class Op(IntEnum):
    """Instructions of the tape; the numbers are those of csrc/trace.h."""

    SPHERE = 0
    BOX = 1
    ROUND_BOX = 2
    TORUS = 3
    CAPSULE = 4
    CYLINDER = 5
    CONE = 6
    ELLIPSOID = 7
    PLANE = 8
    UNION = 9
    INTERSECTION = 10
    DIFFERENCE = 11
    SMOOTH_UNION = 12
    SMOOTH_INTERSECTION = 13
    SMOOTH_DIFFERENCE = 14
    SHELL = 15
    TRANSLATE = 16  # these three make the point of the next slot
    ROTATE = 17
    SCALE = 18
    SCALE_BACK = 19  # the distance that was found in a scaled space


def run(program: Sequence[tuple[int, int, int]], constants: Tensor, points: Tensor) -> Tensor:
    """Distances ``[...]`` at points ``[..., 3]``.

    Args:
        program: instruction, slot of the point that it reads, and index of its first constant; in postfix order.
        constants: ``[K]`` in the points' dtype.
        points: in slot 0 to begin with; a transform of the point in a slot writes the next slot.
    """
    numbers = constants.unbind()
    slots = {0: points.unbind(-1)}
    stack: list[Tensor] = []
    for op, slot, first in program:
        own = numbers[first : first + 9]  # the longest are rotations
        if op in _PRIMITIVES:
            stack.append(_PRIMITIVES[op](*slots[slot], own))
        elif op in _TRANSFORMS:
            slots[slot + 1] = _TRANSFORMS[op](slots[slot], own)
        elif op in _CHANGES:
            stack.append(_CHANGES[op](stack.pop(), own))
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(_SETS[op](a, b, own))
    return stack.pop()


def _rotation(vector: Tensor) -> Tensor:
    """Nine numbers of the inverse rotation, row by row: I - sin(t)/t K + (1 - cos(t))/t^2 K^2 (Rodrigues)."""
    angle = length(*vector)
    x, y, z = vector
    zero = torch.zeros_like(x)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    matrix = eye - torch.sinc(angle / math.pi) * k + 0.5 * torch.sinc(angle / (2 * math.pi)) ** 2 * (k @ k)
    return matrix.flatten()


def _plane(numbers: Tensor) -> Tensor:
    return torch.cat([numbers[:3] / length(*numbers[:3]), numbers[3:]])


PREPARED: dict[Op, Callable[[Tensor], Tensor]] = {Op.ROTATE: _rotation, Op.PLANE: _plane}
WIDTH = {Op.ROTATE: 9}  # of what is prepared, where it is not the values' own


def length(*sides: Tensor) -> Tensor:
    """Euclidean length; all its derivatives are 0 where it is 0, instead of NaN."""
    square = sum(side * side for side in sides)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def _outside_corner(*sides: Tensor) -> Tensor:
    """Distance to a corner of right angles, from the signed distances to its sides."""
    return length(*(side.clamp_min(0) for side in sides)) + reduce(torch.maximum, sides).clamp_max(0)


def _box(x: Tensor, y: Tensor, z: Tensor, c: tuple[Tensor, ...]) -> Tensor:
    return _outside_corner(x.abs() - c[0], y.abs() - c[1], z.abs() - c[2])


def _round_box(x: Tensor, y: Tensor, z: Tensor, c: tuple[Tensor, ...]) -> Tensor:
    return _box(x, y, z, tuple(side - c[3] for side in c[:3])) - c[3]


def _cone(x: Tensor, y: Tensor, z: Tensor, c: tuple[Tensor, ...]) -> Tensor:
    half, bottom, top = c[:3]
    radius = length(x, z)
    # The nearer cap, then the slanted side from the top's rim: the nearest of both is the surface.
    past_cap = (radius - torch.where(y < 0, bottom, top)).clamp_min(0)
    above = y.abs() - half
    along_r, along_y = bottom - top, -2 * half
    share = ((radius - top) * along_r + (y - half) * along_y) / (along_r * along_r + along_y * along_y)
    share = share.clamp(0, 1)
    side_r, side_y = radius - top - share * along_r, y - half - share * along_y
    cap, side = past_cap * past_cap + above * above, side_r * side_r + side_y * side_y
    inside = (side_r < 0) & (above < 0)
    # Where a plane is nearest, the signed distance from it: a length of zero would have no gradient on the surface.
    to_side = (side_y * along_r - side_r * along_y) / length(along_r, along_y)
    to_rim = length(side_r, side_y)
    slanted = torch.where((share > 0) & (share < 1), to_side, torch.where(inside, -to_rim, to_rim))
    flat = torch.where(inside | (above >= 0), above, -above)
    past = length(past_cap, above)
    flat = torch.where(past_cap > 0, torch.where(inside, -past, past), flat)
    return torch.where(cap < side, flat, slanted)


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, c: tuple[Tensor, ...]) -> Tensor:
    u, v, w = x / c[0], y / c[1], z / c[2]
    k, slope = length(u, v, w), length(u / c[0], v / c[1], w / c[2])
    # k is convex, so a step to its linear zero never passes the surface from outside; from inside it would, and
    # there k's largest slope gives the bound.
    inside = k < 1
    outer = k * (k - 1) / torch.where(inside, 1, slope)
    return torch.where(inside, (k - 1) * torch.minimum(torch.minimum(c[0], c[1]), c[2]), outer)


_PRIMITIVES: dict[Op, Callable[..., Tensor]] = {
    Op.SPHERE: lambda x, y, z, c: length(x, y, z) - c[0],
    Op.BOX: _box,
    Op.ROUND_BOX: _round_box,
    Op.TORUS: lambda x, y, z, c: length(length(x, z) - c[0], y) - c[1],
    Op.CAPSULE: lambda x, y, z, c: length(x, (y.abs() - c[0]).clamp_min(0), z) - c[1],
    Op.CYLINDER: lambda x, y, z, c: _outside_corner(length(x, z) - c[1], y.abs() - c[0]),
    Op.CONE: _cone,
    Op.ELLIPSOID: _ellipsoid,
    Op.PLANE: lambda x, y, z, c: x * c[0] + y * c[1] + z * c[2] - c[3],
}


def _smooth_min(a: Tensor, b: Tensor, c: tuple[Tensor, ...]) -> Tensor:
    h = (c[0] - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - h * h / (4 * c[0])


_SETS: dict[Op, Callable[..., Tensor]] = {
    Op.UNION: lambda a, b, c: torch.minimum(a, b),
    Op.INTERSECTION: lambda a, b, c: torch.maximum(a, b),
    Op.DIFFERENCE: lambda a, b, c: torch.maximum(a, -b),
    Op.SMOOTH_UNION: _smooth_min,
    Op.SMOOTH_INTERSECTION: lambda a, b, c: -_smooth_min(-a, -b, c),
    Op.SMOOTH_DIFFERENCE: lambda a, b, c: -_smooth_min(-a, b, c),
}
_CHANGES: dict[Op, Callable[..., Tensor]] = {
    Op.SHELL: lambda d, c: d.abs() - c[0],
    Op.SCALE_BACK: lambda d, c: d * c[0],
}
_TRANSFORMS: dict[Op, Callable[..., tuple[Tensor, ...]]] = {
    Op.TRANSLATE: lambda p, c: tuple(p[i] - c[i] for i in range(3)),
    Op.ROTATE: lambda p, c: tuple(c[i] * p[0] + c[i + 1] * p[1] + c[i + 2] * p[2] for i in (0, 3, 6)),
    Op.SCALE: lambda p, c: tuple(p[i] / c[0] for i in range(3)),
}
