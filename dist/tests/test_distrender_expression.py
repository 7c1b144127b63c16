"""Text to trees and back, and what the messages point at."""

import math

import pytest
from distrender import analytic
from distrender.analytic import (
    AnalyticSDF,
    Box,
    Difference,
    Rotate,
    Scale,
    Shape,
    Shell,
    SmoothUnion,
    Sphere,
    Torus,
    Translate,
    Union,
)
from distrender.expression import DEEPEST, SHAPES, parse, unparse
from hypothesis import given
from hypothesis import strategies as st
from papershelf.errors import UserError


def test_shapes_parts_and_numbers():
    tree = parse("difference(sphere(0.6), translate(torus(0.5, 0.2), 0, 0, 0.1))")
    assert tree == Difference(Sphere(0.6), Translate(Torus(0.5, 0.2), 0, 0, 0.1))
    assert parse(" Shell ( box(1,\n.5, 2.), 1e-2 ) ") == Shell(Box(1, 0.5, 2), 0.01)
    assert parse("torus(tube=0.2, ring=0.5)") == parse("torus(0.5, tube=0.2)") == Torus(0.5, 0.2)
    assert parse("translate(sphere(1), -1, +2, -.5)") == Translate(Sphere(1), -1, 2, -0.5)


def test_several_shapes_are_taken_from_left_to_right():
    a, b, c = Sphere(1), Sphere(2), Sphere(3)
    assert parse("union(sphere(1), sphere(2), sphere(3))") == Union(Union(a, b), c)
    assert parse("smooth_union(sphere(1), sphere(2), sphere(3), 0.1)") == SmoothUnion(SmoothUnion(a, b, 0.1), c, 0.1)


def test_angles_are_degrees():
    assert parse("rotate(sphere(1), 0, 90, 0)") == Rotate(Sphere(1), 0, math.pi / 2, 0)
    assert unparse(Rotate(Sphere(1), 0, math.pi / 2, 0)) == "rotate(sphere(1), 0, 90, 0)"


def test_every_shape_has_a_name():
    assert set(SHAPES.values()) == set(Shape.__subclasses__())
    assert all(name.replace("_", "") == kind.__name__.lower() for name, kind in SHAPES.items())
    assert {kind.op for kind in SHAPES.values()} == set(analytic.Op) - {analytic.Op.SCALE_BACK}


numbers = st.floats(0.01, 2).map(lambda number: float(f"{number:.6g}"))
trees = st.recursive(
    st.builds(Sphere, numbers) | st.builds(Box, numbers, numbers, numbers) | st.builds(Torus, numbers, numbers),
    lambda inner: (
        st.builds(Union, inner, inner)
        | st.builds(SmoothUnion, inner, inner, numbers)
        | st.builds(Translate, inner, numbers, numbers.map(lambda number: -number), numbers)
        | st.builds(Scale, inner, numbers)
    ),
    max_leaves=8,
)


@given(trees)
def test_text_of_a_tree_is_read_as_that_tree(tree):
    assert parse(unparse(tree)) == tree


@given(st.text("sphere(tous0.5,-)=_ ", max_size=30))
def test_any_text_is_a_shape_or_one_line(text):
    try:
        AnalyticSDF(parse(text))
    except UserError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1, at its end: a shape was expected, as in sphere(0.5), but there is nothing"),
        ("sphere", "column 7, at its end: '(' was expected behind sphere"),
        ("sphere(0.5", "column 11, at its end: ',' was expected or ')'"),
        ("sphere(0.5))", "column 12, at ')': the expression should end here"),
        ("sphere(0.5 0.6)", "column 12, at '0.6)': ',' was expected or ')'"),
        ("union(sphere(1), spere(2))", "column 18, at 'spere(2))': there is no shape 'spere'; did you mean sphere?"),
        ("union(sphere(1), shell(torus(1), 1))", "column 24, at 'torus(1), 1))': torus(ring, tube) got 1 numbers"),
        ("torus(1, 2, 3)", "torus(ring, tube) got 3 numbers"),
        ("torus(1, ring=2)", "torus(ring, tube): ring is given twice"),
        ("torus(ring=1, ring=2)", "column 20, at '2)': ring is given twice"),
        ("torus(ring=1, size=2)", "torus(ring, tube) has no size"),
        ("torus(ring=1, 2)", "column 15, at '2)': numbers without a name come before those with one"),
        ("torus(ring=sphere(1))", "a number was expected for ring"),
        ("translate(1, sphere(1))", "shapes come before numbers"),
        ("union(sphere(1))", "union(shape, shape, ...) got 1 shapes"),
        ("shell(sphere(1), sphere(1), 1)", "shell(shape, half) got 2 shapes"),
        ("smooth_union(sphere(1), sphere(1), 0)", "SmoothUnion: k must be a positive number, got 0"),
        ("sphere(#)", "column 8, at '#)': a shape, a number or ')' was expected"),
        ("union(sphere(1),\n sphere(-1))", "column 19, at 'sphere(-1))': Sphere: radius must be"),
        ("7", "the name of a shape was expected"),
        ("banana(1)", "there are sphere, box, round_box"),
    ],
)
def test_messages_point_at_the_place(text, message):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesting_has_an_end():
    with pytest.raises(UserError, match="nested"):
        parse("shell(" * (DEEPEST + 1) + "sphere(1)" + ", 0.1)" * (DEEPEST + 1))
