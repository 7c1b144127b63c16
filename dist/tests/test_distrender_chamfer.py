"""DeepSDF's distance between surfaces, against hand-computed values and spheres."""

import numpy as np
import pytest
from distrender.analytic import AnalyticSDF, Sphere
from distrender.chamfer import chamfer, surface_samples
from distrender.meshing import mesh
from papershelf.errors import UserError


def test_both_directions_count_and_distances_are_squared():
    a = np.array([[0.0, 0, 0], [1, 0, 0]])
    b = np.array([[0.0, 0, 0.5]])
    # a to b: 0.25 and 1.25, mean 0.75; b to a: 0.25.
    assert chamfer(a, b) == pytest.approx(1.0)
    assert chamfer(b, a) == pytest.approx(1.0)
    assert chamfer(a, a) == 0


def test_it_agrees_with_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(37, 3)), rng.normal(size=(53, 3))
    pairs = np.square(a[:, None] - b[None]).sum(-1)
    assert chamfer(a, b) == pytest.approx(pairs.min(0).mean() + pairs.min(1).mean())


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    a, b = (surface_samples(AnalyticSDF(Sphere(radius)), 20_000, resolution=48) for radius in (0.5, 0.7))
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 0.5, atol=1e-5)
    assert chamfer(a, b) == pytest.approx(2 * 0.2**2, rel=0.01)


def test_samples_of_a_mesh_lie_on_it_and_follow_the_seed():
    shape = mesh(AnalyticSDF(Sphere(0.5)), 48)
    samples = surface_samples(shape, 5000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(samples, axis=1), 0.5, atol=2e-3)
    assert abs(samples.mean(0)).max() < 0.02
    np.testing.assert_array_equal(samples, surface_samples(shape, 5000, seed=1))
    assert not np.array_equal(samples, surface_samples(shape, 5000, seed=2))


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros((4, 2)), np.full((2, 3), np.nan)])
def test_no_points_have_no_distance(bad):
    with pytest.raises(UserError, match="finite points"):
        chamfer(bad, np.zeros((1, 3)))
    with pytest.raises(UserError, match="finite points"):
        chamfer(np.zeros((1, 3)), bad)
