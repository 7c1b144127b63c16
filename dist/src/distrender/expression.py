"""Shapes as text: ``difference(sphere(0.6), translate(torus(0.5, 0.2), 0, 0, 0.1))``.

Each shape of :mod:`distrender.analytic` under its name in lower case, its parts before its numbers, which may be named
(``torus(ring=0.5, tube=0.2)``). Unions, intersections and differences take two shapes or more. Angles are in degrees:
``rotate(shape, 0, 90, 0)`` is a quarter turn about y.
"""

from __future__ import annotations

import dataclasses
import math
import re
from difflib import get_close_matches
from typing import NoReturn

from papershelf.errors import UserError

from distrender import analytic
from distrender.analytic import Shape

SHAPES: dict[str, type[Shape]] = {
    "sphere": analytic.Sphere,
    "box": analytic.Box,
    "round_box": analytic.RoundBox,
    "torus": analytic.Torus,
    "capsule": analytic.Capsule,
    "cylinder": analytic.Cylinder,
    "cone": analytic.Cone,
    "ellipsoid": analytic.Ellipsoid,
    "plane": analytic.Plane,
    "union": analytic.Union,
    "intersection": analytic.Intersection,
    "difference": analytic.Difference,
    "smooth_union": analytic.SmoothUnion,
    "smooth_intersection": analytic.SmoothIntersection,
    "smooth_difference": analytic.SmoothDifference,
    "shell": analytic.Shell,
    "translate": analytic.Translate,
    "rotate": analytic.Rotate,
    "scale": analytic.Scale,
}
DEEPEST = 100  # nesting; Python's own stack bears no more than a few hundred
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[Ee][-+]?\d+)?)|(?P<mark>[(),=]))", re.ASCII
)


def parse(text: str) -> Shape:
    """The tree that a text describes.

    Raises:
        UserError: it describes none; the message says where and why.
    """
    return _Parser(text).whole()


def unparse(tree: Shape) -> str:
    """The text of a tree, numbers with six digits: what :func:`parse` reads."""
    name = next(name for name, kind in SHAPES.items() if kind is type(tree))
    numbers = tree.numbers().values()
    if isinstance(tree, analytic.Rotate):
        numbers = map(math.degrees, numbers)
    return f"{name}({', '.join([*map(unparse, tree.parts().values()), *(f'{number:.6g}' for number in numbers)])})"


class _Parser:
    """Reads a text from left to right; each method reads what it is named after."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0  # where the next token begins
        self.depth = 0

    def whole(self) -> Shape:
        if not self.text.strip():
            self.fail("a shape was expected, as in sphere(0.5), but there is nothing")
        shape = self.shape()
        if self.peek()[0] != "end":
            self.fail("the expression should end here")
        return shape

    def peek(self) -> tuple[str, str]:
        """Kind and text of the next token, without taking it."""
        match = _TOKEN.match(self.text, self.at)
        if match:
            return match.lastgroup, match[match.lastgroup]
        return ("end", "") if not self.text[self.at :].strip() else ("unknown", self.text[self.at :].lstrip()[0])

    def take(self) -> str:
        match = _TOKEN.match(self.text, self.at)
        self.at = match.end()
        return match[match.lastgroup]

    def expect(self, mark: str, when: str) -> None:
        if self.peek() != ("mark", mark):
            self.fail(f"{mark!r} was expected {when}")
        self.take()

    def shape(self) -> Shape:
        kind, found = self.peek()
        begin = self.at
        if kind != "name":
            self.fail("the name of a shape was expected")
        if found.lower() not in SHAPES:
            close = get_close_matches(found.lower(), SHAPES, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SHAPES)}"
            self.fail(f"there is no shape {found!r}; {hint}")
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"shapes are nested more than {DEEPEST} deep")
        name = self.take().lower()
        self.expect("(", f"behind {name}")
        parts, numbers, named = self.arguments()
        self.depth -= 1
        end, self.at = self.at, begin  # complaints about the whole point at its name
        shape = self.build(name, parts, numbers, named)
        self.at = end
        return shape

    def arguments(self) -> tuple[list[Shape], list[float], dict[str, float]]:
        """Shapes, numbers and named numbers, the closing parenthesis included."""
        parts: list[Shape] = []
        numbers: list[float] = []
        named: dict[str, float] = {}
        while self.peek() != ("mark", ")"):
            kind, found = self.peek()
            begin = self.at
            if kind == "number":
                if named:
                    self.fail("numbers without a name come before those with one")
                numbers.append(float(self.take()))
            elif kind == "name":
                self.take()
                is_named = self.peek() == ("mark", "=")
                if is_named:
                    self.take()
                    if self.peek()[0] != "number":
                        self.fail(f"a number was expected for {found}")
                    if found in named:
                        self.fail(f"{found} is given twice")
                    named[found] = float(self.take())
                else:
                    self.at = begin
                    if numbers or named:
                        self.fail("shapes come before numbers")
                    parts.append(self.shape())
            else:
                self.fail("a shape, a number or ')' was expected")
            if self.peek() != ("mark", ")"):
                self.expect(",", "or ')'")
        self.take()
        return parts, numbers, named

    def build(self, name: str, parts: list[Shape], numbers: list[float], named: dict[str, float]) -> Shape:
        kind = SHAPES[name]
        fields = [field.name for field in dataclasses.fields(kind)]
        shapes = [field for field in fields if field in ("a", "b")]
        own = fields[len(shapes) :]
        taken = [[], ["shape"], ["shape", "shape", "..."]][len(shapes)]
        usage = f"{name}({', '.join([*taken, *own])})"
        if len(parts) < len(shapes) or (len(parts) > len(shapes) and len(shapes) < 2):
            self.fail(f"{usage} got {len(parts)} shapes")
        if unknown := [given for given in named if given not in own]:
            self.fail(f"{usage} has no {unknown[0]}")
        if given := [given for given in own[: len(numbers)] if given in named]:
            self.fail(f"{usage}: {given[0]} is given twice")
        if len(numbers) + len(named) != len(own):
            self.fail(f"{usage} got {len(numbers) + len(named)} numbers")
        values = dict(zip(own, numbers, strict=False)) | named
        if name == "rotate":
            values = {axis: math.radians(angle) for axis, angle in values.items()}
        try:
            if len(shapes) < 2:
                return kind(*parts, **values)
            tree = parts[0]
            for part in parts[1:]:
                tree = kind(tree, part, **values)
            return tree
        except UserError as error:
            self.fail(str(error))

    def fail(self, complaint: str) -> NoReturn:
        rest = self.text[self.at :].strip()
        place = f"at {rest[:20] + '...' * (len(rest) > 20)!r}" if rest else "at its end"
        column = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip()) + 1
        raise UserError(f"shape expression, column {column}, {place}: {complaint}")
