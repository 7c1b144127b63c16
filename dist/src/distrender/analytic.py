r"""Signed distances of primitives, put together by set operations and transforms, as one small program.

A tree of frozen dataclasses is what people write; :class:`AnalyticSDF` turns it into a *tape*, a program for a stack
machine that PyTorch runs here and the kernels in ``csrc/`` run for a whole ray at a time. What each
instruction computes stands in :mod:`distrender.tape`.

Each primitive is centred on the origin; what has an axis has it along y. Exact means: the distance to the surface,
negative inside. Intersections and differences of exact distances are bounds: never larger in magnitude than the
distance outside, the true surface at zero; so are unions inside. Tracing needs no more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from papershelf.errors import UserError
from torch import Tensor, nn

from distrender import tape
from distrender.tape import Op


@dataclass(frozen=True)
class Shape:
    """A node of the tree: shapes that it is made of, then its numbers."""

    op: ClassVar[Op]
    any_sign: ClassVar[bool] = False  # of its numbers; otherwise none is negative
    not_zero: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in self.numbers().items():
            if not math.isfinite(value) or (value < 0 and not self.any_sign) or (value == 0 and self.not_zero):
                kind = "finite" if self.any_sign else "positive" if self.not_zero else "zero or positive"
                raise UserError(f"{type(self).__name__}: {name} must be a {kind} number, got {value:g}")

    def _fields(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def parts(self) -> dict[str, Shape]:
        """The shapes that it is made of."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Shape)}

    def numbers(self) -> dict[str, float]:
        """Its own numbers, in order."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Shape)}


@dataclass(frozen=True)
class Sphere(Shape):
    """Exact."""

    op: ClassVar[Op] = Op.SPHERE
    radius: float


@dataclass(frozen=True)
class Box(Shape):
    """From -x to x, -y to y, -z to z. Exact."""

    op: ClassVar[Op] = Op.BOX
    x: float
    y: float
    z: float


@dataclass(frozen=True)
class RoundBox(Shape):
    """A box as above, its edges and corners rounded by ``radius``. Exact."""

    op: ClassVar[Op] = Op.ROUND_BOX
    x: float
    y: float
    z: float
    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius > min(self.x, self.y, self.z):
            raise UserError(f"RoundBox: radius {self.radius:g} must not exceed the smallest of x, y and z")


@dataclass(frozen=True)
class Torus(Shape):
    """A tube of radius ``tube`` about a circle of radius ``ring`` in the plane y = 0. Exact if tube <= ring."""

    op: ClassVar[Op] = Op.TORUS
    ring: float
    tube: float


@dataclass(frozen=True)
class Capsule(Shape):
    """All that is within ``radius`` of the segment from y = -half to y = half. Exact."""

    op: ClassVar[Op] = Op.CAPSULE
    half: float
    radius: float


@dataclass(frozen=True)
class Cylinder(Shape):
    """Between y = -half and y = half. Exact."""

    op: ClassVar[Op] = Op.CYLINDER
    half: float
    radius: float


@dataclass(frozen=True)
class Cone(Shape):
    """From a disk of radius ``bottom`` at y = -half to one of radius ``top`` at y = half. Exact."""

    op: ClassVar[Op] = Op.CONE
    half: float
    bottom: float
    top: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half == 0:
            raise UserError("Cone: half must be positive, got 0")


@dataclass(frozen=True)
class Ellipsoid(Shape):
    """Half axes x, y and z. A bound: never larger in magnitude than the distance, equal to first order outside."""

    op: ClassVar[Op] = Op.ELLIPSOID
    not_zero: ClassVar[bool] = True
    x: float
    y: float
    z: float


@dataclass(frozen=True)
class Plane(Shape):
    """The half space below the plane with normal (x, y, z), ``offset`` from the origin along it. Exact."""

    op: ClassVar[Op] = Op.PLANE
    any_sign: ClassVar[bool] = True
    x: float
    y: float
    z: float
    offset: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x == self.y == self.z == 0:
            raise UserError("Plane: the normal (x, y, z) must not be 0 0 0")


@dataclass(frozen=True)
class Union(Shape):
    """min(a, b)."""

    op: ClassVar[Op] = Op.UNION
    a: Shape
    b: Shape


@dataclass(frozen=True)
class Intersection(Shape):
    """max(a, b)."""

    op: ClassVar[Op] = Op.INTERSECTION
    a: Shape
    b: Shape


@dataclass(frozen=True)
class Difference(Shape):
    """``a`` without ``b``: max(a, -b)."""

    op: ClassVar[Op] = Op.DIFFERENCE
    a: Shape
    b: Shape


@dataclass(frozen=True)
class SmoothUnion(Shape):
    """min(a, b) - h^2 k / 4 with h = max(k - |a - b|, 0) / k: the seam, where they differ by less than k, is filled."""

    op: ClassVar[Op] = Op.SMOOTH_UNION
    not_zero: ClassVar[bool] = True
    a: Shape
    b: Shape
    k: float


@dataclass(frozen=True)
class SmoothIntersection(Shape):
    """max(a, b) + h^2 k / 4, h as for the union: the edge is rounded."""

    op: ClassVar[Op] = Op.SMOOTH_INTERSECTION
    not_zero: ClassVar[bool] = True
    a: Shape
    b: Shape
    k: float


@dataclass(frozen=True)
class SmoothDifference(Shape):
    """The smooth intersection of ``a`` and what is outside ``b``."""

    op: ClassVar[Op] = Op.SMOOTH_DIFFERENCE
    not_zero: ClassVar[bool] = True
    a: Shape
    b: Shape
    k: float


@dataclass(frozen=True)
class Shell(Shape):
    """What is within ``half`` of the shape's surface, on either side: |a| - half."""

    op: ClassVar[Op] = Op.SHELL
    a: Shape
    half: float


@dataclass(frozen=True)
class Translate(Shape):
    """Moved by (x, y, z)."""

    op: ClassVar[Op] = Op.TRANSLATE
    any_sign: ClassVar[bool] = True
    a: Shape
    x: float
    y: float
    z: float


@dataclass(frozen=True)
class Rotate(Shape):
    """Turned about the axis (x, y, z) by that vector's length in radians, right-handed."""

    op: ClassVar[Op] = Op.ROTATE
    any_sign: ClassVar[bool] = True
    a: Shape
    x: float
    y: float
    z: float


@dataclass(frozen=True)
class Scale(Shape):
    """``factor`` times as large about the origin."""

    op: ClassVar[Op] = Op.SCALE
    not_zero: ClassVar[bool] = True
    a: Shape
    factor: float


def union(*shapes: Shape) -> Shape:
    """What is in any of the shapes."""
    return reduce(Union, shapes)


def intersection(*shapes: Shape) -> Shape:
    """What is in all of the shapes."""
    return reduce(Intersection, shapes)


def difference(shape: Shape, *others: Shape) -> Shape:
    """The first shape without the others."""
    return reduce(Difference, others, shape)


def smooth_union(*shapes: Shape, k: float) -> Shape:
    """The union with seams filled where two of the distances differ by less than ``k``."""
    return reduce(lambda a, b: SmoothUnion(a, b, k), shapes)


class AnalyticSDF(nn.Module):
    """A tree of shapes as a signed distance function whose numbers can be fitted.

    Attributes:
        values: float32 Parameter ``[V]``, every number of the tree as it is written: a shape's parts, then its own.
        names: what they are, as in ``"torus.tube"``.
        tape: int32 ``[I, 3]``, the program in postfix order: instruction, slot of the point that it reads, and index of
            its first number in :meth:`constants`. Primitives push a distance, set operations replace two by one, a
            transform of the point in a slot writes the next slot.
        slots: points that the program needs at once.
        depth: distances that it needs at once.
    """

    def __init__(self, tree: Shape):
        super().__init__()
        if not isinstance(tree, Shape):
            raise UserError(f"AnalyticSDF takes a tree of shapes as Sphere(0.5), got {type(tree).__name__}")
        self._tree = tree
        self.names: list[str] = []
        self._runs: list[tuple[Op, int]] = []  # of numbers: whose they are, and how many
        self.slots, self.depth = 1, 0
        numbers: list[float] = []
        program: list[tuple[int, int, int]] = []
        self._compile(tree, 0, 0, numbers, program)
        self._program = program
        self.values = nn.Parameter(torch.tensor(numbers, dtype=torch.float32))
        self.register_buffer("tape", torch.tensor(program, dtype=torch.int32), persistent=False)

    def _compile(self, node: Shape, slot: int, depth: int, numbers: list, program: list) -> None:
        """Append ``node`` to the program; its point is in ``slot``, and ``depth`` distances lie below its own."""
        transform = node.op in (Op.TRANSLATE, Op.ROTATE, Op.SCALE)
        begin = len(program)
        if transform:
            program.append((node.op, slot, 0))  # its numbers come behind those of its part
        for i, part in enumerate(node.parts().values()):
            self._compile(part, slot + transform, depth + i, numbers, program)
        first = sum(tape.WIDTH.get(op, count) for op, count in self._runs)
        own = node.numbers()
        numbers += own.values()
        self.names += [f"{type(node).__name__.lower()}.{name}" for name in own]
        self._runs.append((node.op, len(own)))
        if transform:
            program[begin] = (node.op, slot, first)
            if node.op == Op.SCALE:
                program.append((Op.SCALE_BACK, slot, first))
        else:
            program.append((node.op, slot, first))
        self.slots = max(self.slots, slot + 1)
        self.depth = max(self.depth, depth + 1)

    def constants(self) -> Tensor:
        """``[K]``, the values as the tape reads them: rotations as matrices, normals of length one. Differentiable."""
        pieces, at = [], 0
        for op, count in self._runs:
            numbers = self.values[at : at + count]
            at += count
            pieces.append(tape.PREPARED[op](numbers) if op in tape.PREPARED else numbers)
        return torch.cat(pieces)

    @property
    def tree(self) -> Shape:
        """The tree with the present values.

        Raises:
            UserError: a value has become impossible, such as a negative radius.
        """
        return _with_values(self._tree, iter(self.values.tolist()))

    def forward(self, points: Tensor) -> Tensor:
        """Signed distances ``[...]`` at points ``[..., 3]``, in the points' dtype."""
        return tape.run(self._program, self.constants().to(points.dtype), points)

    def extra_repr(self) -> str:
        return f"{len(self._program)} instructions, {len(self.names)} values"


def _with_values(node: Shape, values: Iterator[float]) -> Shape:
    changed: dict[str, object] = {name: _with_values(part, values) for name, part in node.parts().items()}
    changed |= {name: next(values) for name in node.numbers()}
    return dataclasses.replace(node, **changed)
