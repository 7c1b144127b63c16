"""Primitives against the nearest of many surface points, set operations and transforms, gradients, and the tree."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from distrender.analytic import (
    AnalyticSDF,
    Box,
    Capsule,
    Cone,
    Cylinder,
    Difference,
    Ellipsoid,
    Intersection,
    Plane,
    Rotate,
    RoundBox,
    Scale,
    Shell,
    SmoothDifference,
    SmoothIntersection,
    SmoothUnion,
    Sphere,
    Torus,
    Translate,
    Union,
    difference,
    intersection,
    smooth_union,
    union,
)
from papershelf.errors import UserError
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation


def points(n=400, seed=0, spread=1.2):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-spread, spread, (n, 3)))


def distances(tree, at):
    with torch.no_grad():
        return AnalyticSDF(tree).double()(at)


def polyline(*corners):
    """Points on the way from corner to corner, 1e-4 apart or less."""
    pieces = [np.linspace(a, b, 20_000) for a, b in pairwise(corners)]
    return np.concatenate(pieces)


def arc(centre, radius, begin, end):
    angle = np.linspace(begin, end, 20_000)
    return np.asarray(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


QUARTER = math.pi / 2
# Surfaces of revolution by their profile (distance from the axis, y), and whether (r, y) is inside.
REVOLVED = {
    Sphere(0.7): (arc((0, 0), 0.7, -QUARTER, QUARTER), lambda r, y: r * r + y * y < 0.49),
    Torus(0.6, 0.25): (arc((0.6, 0), 0.25, 0, 4 * QUARTER), lambda r, y: (r - 0.6) ** 2 + y * y < 0.0625),
    Capsule(0.4, 0.3): (
        np.concatenate(
            [
                arc((0, -0.4), 0.3, -QUARTER, 0),
                polyline((0.3, -0.4), (0.3, 0.4)),
                arc((0, 0.4), 0.3, 0, QUARTER),
            ]
        ),
        lambda r, y: r * r + np.maximum(abs(y) - 0.4, 0) ** 2 < 0.09,
    ),
    Cylinder(0.5, 0.35): (
        polyline((0, -0.5), (0.35, -0.5), (0.35, 0.5), (0, 0.5)),
        lambda r, y: (r < 0.35) & (abs(y) < 0.5),
    ),
    Cone(0.5, 0.6, 0.2): (
        polyline((0, -0.5), (0.6, -0.5), (0.2, 0.5), (0, 0.5)),
        lambda r, y: (r < 0.4 - 0.4 * y) & (abs(y) < 0.5),
    ),
    Cone(0.4, 0.0, 0.5): (
        polyline((0, -0.4), (0.5, 0.4), (0, 0.4)),
        lambda r, y: (r < 0.25 + 0.625 * y) & (abs(y) < 0.4),
    ),
}


@pytest.mark.parametrize("shape", REVOLVED, ids=str)
def test_surfaces_of_revolution_are_exact(shape):
    profile, is_inside = REVOLVED[shape]
    at = points()
    x, y, z = at.numpy().T
    radius = np.hypot(x, z)
    nearest, _ = cKDTree(profile).query(np.stack([radius, y], 1))
    expected = np.where(is_inside(radius, y), -nearest, nearest)
    np.testing.assert_allclose(distances(shape, at).numpy(), expected, rtol=0, atol=5e-5)


def box_distance(at, half):
    """Through the nearest of the six faces, each a rectangle."""
    best = np.full(len(at), np.inf)
    for axis in range(3):
        for side in (-1, 1):
            on_face = np.clip(at, -half, half)
            on_face[:, axis] = side * half[axis]
            best = np.minimum(best, np.linalg.norm(at - on_face, axis=1))
    return np.where((np.abs(at) < half).all(1), -best, best)


def test_boxes_are_exact():
    at = points()
    half = np.array([0.5, 0.3, 0.7], np.float32).astype(np.float64)
    np.testing.assert_allclose(distances(Box(*half), at), box_distance(at.numpy(), half), atol=1e-12)
    radius = float(np.float32(0.1))
    expected = box_distance(at.numpy(), half - radius) - radius
    np.testing.assert_allclose(distances(RoundBox(*half, radius), at), expected, atol=1e-12)
    assert distances(RoundBox(*half, radius), torch.tensor([[0.5, 0.0, 0.0]])).abs().item() < 1e-6  # outer size


def test_plane_is_exact_and_normalises():
    assert distances(Plane(0, 0, 2, 0.5), torch.tensor([[9.0, 9.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [1.5, -0.5]


def test_ellipsoid_is_a_bound_and_first_order_at_the_surface():
    half = np.array([0.8, 0.4, 0.25])
    shape, at = Ellipsoid(*half), points(3000)
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(200_000, 3))
    surface = direction / np.linalg.norm(direction, axis=1, keepdims=True) * half
    nearest, _ = cKDTree(surface).query(at.numpy())
    inside = ((at.numpy() / half) ** 2).sum(1) < 1
    found = distances(shape, at).numpy()
    np.testing.assert_array_equal(found < 0, inside)
    assert (np.abs(found) <= nearest + 1e-5).all()
    assert np.median(np.abs(found)[~inside] / nearest[~inside]) > 0.8
    normal = surface[:100] / half**2
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    near = distances(shape, torch.from_numpy(surface[:100] + 1e-4 * normal))
    np.testing.assert_allclose(near, 1e-4, rtol=0.01)
    assert distances(shape, torch.zeros(1, 3)).item() == pytest.approx(-0.25)


@pytest.mark.parametrize(
    "shape", [*REVOLVED, Box(0.5, 0.3, 0.7), RoundBox(0.5, 0.3, 0.7, 0.1), Plane(1, 2, 3, 0.1)], ids=str
)
def test_exact_distances_have_a_gradient_of_length_one(shape):
    at = points().requires_grad_()
    (gradient,) = torch.autograd.grad(AnalyticSDF(shape).double()(at).sum(), at)
    torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(len(at), dtype=torch.float64))


def test_set_operations():
    a, b, at = Sphere(0.6), Translate(Box(0.4, 0.4, 0.4), 0.3, 0, 0), points()
    da, db = distances(a, at), distances(b, at)
    assert torch.equal(distances(union(a, b), at), torch.minimum(da, db))
    assert torch.equal(distances(intersection(a, b), at), torch.maximum(da, db))
    assert torch.equal(distances(difference(a, b), at), torch.maximum(da, -db))
    assert union(a, b, a) == Union(Union(a, b), a)
    assert intersection(a, b) == Intersection(a, b)
    assert difference(a, b, a) == Difference(Difference(a, b), a)
    assert smooth_union(a, b, k=0.1) == SmoothUnion(a, b, 0.1)
    torch.testing.assert_close(distances(Shell(a, 0.1), at), da.abs() - 0.1, rtol=0, atol=1e-7)


def test_smooth_operations_differ_near_the_seam_only_and_stay_bounds():
    a, b, at = Sphere(0.6), Translate(Sphere(0.5), 0.5, 0, 0), points()
    da, db = distances(a, at), distances(b, at)
    for smooth, sharp, seam, sign in (
        (SmoothUnion(a, b, 0.2), torch.minimum(da, db), (da - db).abs(), -1),
        (SmoothIntersection(a, b, 0.2), torch.maximum(da, db), (da - db).abs(), 1),
        (SmoothDifference(a, b, 0.2), torch.maximum(da, -db), (da + db).abs(), 1),
    ):
        change = sign * (distances(smooth, at) - sharp)
        assert (change >= 0).all()
        assert (change <= 0.05 + 1e-6).all()  # k / 4
        torch.testing.assert_close(change > 0, seam < np.float32(0.2))
    points_ = at.requires_grad_()
    (gradient,) = torch.autograd.grad(AnalyticSDF(SmoothUnion(a, b, 0.2)).double()(points_).sum(), points_)
    assert (gradient.norm(dim=-1) <= 1 + 1e-6).all()


def test_transforms_move_the_point_back():
    box, at, vector = Box(0.5, 0.3, 0.2), points(), np.array([0.5, -1.0, 0.25])
    back = torch.from_numpy(Rotation.from_rotvec(vector).inv().apply(at.numpy()))
    torch.testing.assert_close(distances(Rotate(box, *vector), at), distances(box, back))
    move = torch.tensor([0.5, -0.25, 0.125], dtype=torch.float64)
    assert torch.equal(distances(Translate(box, *move.tolist()), at), distances(box, at - move))
    assert torch.equal(distances(Scale(box, 0.5), at), 0.5 * distances(box, at / 0.5))
    nested = Translate(Rotate(Scale(box, 2.0), 0, math.pi / 2, 0), 1, 0, 0)  # x of the box comes to lie along -z
    assert distances(nested, torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)).abs().item() < 1e-6


# One tree with every instruction.
EVERYTHING = smooth_union(
    SmoothDifference(
        Translate(Union(RoundBox(0.5, 0.4, 0.3, 0.05), Cone(0.3, 0.4, 0.1)), 0.1, 0.2, -0.1), Torus(0.4, 0.15), 0.1
    ),
    Rotate(SmoothIntersection(Scale(Capsule(0.3, 0.2), 1.5), Cylinder(0.4, 0.3), 0.2), 0.3, 0.5, -0.2),
    Shell(Difference(Intersection(Ellipsoid(0.7, 0.5, 0.4), Plane(1, 2, 0.5, 0.2)), Box(0.3, 0.3, 0.5)), 0.02),
    Translate(Sphere(0.2), -0.5, 0.5, 0.5),
    k=0.15,
)


def test_gradients_in_points_and_values():
    sdf = AnalyticSDF(EVERYTHING).double()
    at = points(12, seed=3, spread=0.9).requires_grad_()
    assert len(sdf.names) == len(sdf.values) == 40

    def call(at, values):
        return torch.func.functional_call(sdf, {"values": values}, (at,))

    torch.autograd.gradcheck(call, (at, sdf.values.detach().requires_grad_()))
    call(at, sdf.values).sum().backward()
    assert (sdf.values.grad != 0).sum() > 25


def test_derivatives_of_normals_are_finite_where_an_edge_is_not_near():
    """Inside a box the distance to its corner is the length of (0, 0, 0), where roots have no derivative."""
    sdf = AnalyticSDF(Rotate(Box(0.5, 0.5, 0.5), 0, 0, 0))
    at = torch.tensor([[0.49, 0.1, 0.2], [0.0, 0.0, 0.0]], requires_grad=True)
    (normal,) = torch.autograd.grad(sdf(at).sum(), at, create_graph=True)
    gradients = torch.autograd.grad(normal.pow(2).sum(), [at, sdf.values])
    assert all(g.isfinite().all() for g in gradients)


def test_any_leading_shape_and_no_points():
    sdf = AnalyticSDF(EVERYTHING)
    at = points(12).float()
    assert torch.equal(sdf(at.view(3, 4, 3)).flatten(), sdf(at))
    assert sdf(torch.empty(0, 3)).shape == (0,)
    assert sdf(at).dtype == torch.float32


def test_names_values_and_tree_go_together():
    sdf = AnalyticSDF(Difference(Sphere(0.5), Translate(Torus(0.25, 0.125), 0, 0, 1)))
    assert sdf.names == ["sphere.radius", "torus.ring", "torus.tube", "translate.x", "translate.y", "translate.z"]
    assert sdf.values.tolist() == [0.5, 0.25, 0.125, 0, 0, 1]
    assert (sdf.slots, sdf.depth) == (2, 2)
    with torch.no_grad():
        sdf.values[0] = 0.75
    assert sdf.tree == Difference(Sphere(0.75), Translate(Torus(0.25, 0.125), 0, 0, 1))
    again = AnalyticSDF(Difference(Sphere(1), Translate(Torus(1, 1), 0, 0, 0)))
    again.load_state_dict(sdf.state_dict())
    assert again.tree == sdf.tree


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sphere(-1), "Sphere: radius must be a zero or positive number, got -1"),
        (lambda: Sphere(math.nan), "radius"),
        (lambda: Ellipsoid(1, 0, 1), "Ellipsoid: y must be a positive number, got 0"),
        (lambda: Plane(0, 0, 0, 1), "normal"),
        (lambda: Plane(0, 0, math.inf, 1), "finite"),
        (lambda: RoundBox(1, 0.1, 1, 0.2), "radius 0.2"),
        (lambda: Cone(0, 1, 1), "half"),
        (lambda: SmoothUnion(Sphere(1), Sphere(1), 0), "k must be"),
        (lambda: AnalyticSDF("sphere"), "tree of shapes"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
