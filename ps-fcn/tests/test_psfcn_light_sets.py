"""Lights stand where each set says."""

import numpy as np
import pytest
from psfcn import light_sets

SETS = (light_sets.half_sphere, light_sets.clustered, light_sets.rings)


@pytest.mark.parametrize("lights_of", SETS)
@pytest.mark.parametrize("count", [3, 6, 12, 96])
def test_lights_are_unit_and_in_front(lights_of, count):
    for seed in range(20):
        lights = lights_of(np.random.default_rng(seed), count)
        assert lights.shape == (count, 3)
        assert lights.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(lights, axis=1), 1, atol=1e-5)
        assert (lights[:, 2] > np.sin(np.deg2rad(light_sets.LOWEST)) - 1e-5).all()


def test_the_half_sphere_is_covered_evenly():
    lights = np.concatenate([light_sets.half_sphere(np.random.default_rng(seed), 32) for seed in range(200)])
    lowest = np.sin(np.deg2rad(light_sets.LOWEST))
    in_bands, _ = np.histogram(lights[:, 2], np.linspace(lowest, 1, 6))  # equal heights have equal areas
    np.testing.assert_allclose(in_bands / len(lights), 0.2, atol=0.02)
    np.testing.assert_allclose(lights[:, :2].mean(0), 0, atol=0.03)


def test_clustered_lights_are_within_90_degrees_of_each_other_and_use_the_cone():
    widest = []
    for seed in range(50):
        lights = light_sets.clustered(np.random.default_rng(seed), 32)
        middle = lights.mean(0) / np.linalg.norm(lights.mean(0))
        angles = np.degrees(np.arccos(np.clip(lights @ middle, -1, 1)))
        assert np.degrees(np.arccos(np.clip(lights @ lights.T, -1, 1))).max() <= 2 * light_sets.CONE + 0.1
        widest.append(angles.max())
    assert 35 < np.median(widest) < 55


def test_rings_have_few_heights():
    lights = light_sets.rings(np.random.default_rng(3), 24)
    assert len(np.unique(np.round(lights[:, 2], 4))) <= 3


def test_the_first_of_spread_lights_are_spread_themselves():
    lights = light_sets.half_sphere(np.random.default_rng(0), 96)
    ordered = light_sets.spread_first(lights)
    assert {tuple(light) for light in lights} == {tuple(light) for light in ordered}
    for count in (8, 16, 32):
        first = ordered[:count]
        nearest = np.degrees(np.arccos(np.clip(first @ first.T - 2 * np.eye(count), -1, 1))).min()
        ideal = np.degrees(np.sqrt(2 * np.pi / count))  # the side of the square that each would have
        assert nearest > 0.6 * ideal


def test_intensities_are_grey_and_in_lcnets_range():
    drawn = light_sets.draw_intensities(np.random.default_rng(0), 500)
    assert (drawn == drawn[:, :1]).all()
    assert 0.2 <= drawn.min() < 0.25
    assert 1.95 < drawn.max() <= 2.0
