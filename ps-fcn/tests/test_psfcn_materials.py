"""The materials obey physics, and what the classical methods make of them is known."""

import numpy as np
import pytest
from psfcn import blobs, materials
from psfcn.gbuffer import look_at, unshadowed
from psfcn.rendering import shade

EVERY = [(family, name) for family in ("sgd", "abc") for name in materials.names("train") + materials.names("test")]


def directions(rng, count):
    z = rng.uniform(0.05, 1, count)
    azimuth, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], 1).astype(np.float32)


def cosines(light, view):
    half = light + view
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    return light[:, 2], view[:, 2], half[:, 2], (light * half).sum(1)


def test_the_split_keeps_every_fifth_material_for_the_test():
    train, test = materials.names("train"), materials.names("test")
    assert (len(train), len(test)) == (80, 20)
    assert not set(train) & set(test)
    assert test[:2] == ["alum-bronze", "black-fabric"]
    assert test[-1] == "white-paint"


def test_every_fit_is_finite_positive_and_reciprocal():
    rng = np.random.default_rng(0)
    light, view = directions(rng, 500), directions(rng, 500)
    for family, name in EVERY:
        material = materials.measured(name, family)
        forth = materials.brdf(material, *cosines(light, view))
        back = materials.brdf(material, *cosines(view, light))
        assert forth.dtype == np.float32
        assert np.isfinite(forth).all(), name
        assert (forth >= 0).all(), name
        np.testing.assert_allclose(forth, back, rtol=2e-3, atol=1e-6, err_msg=name)


def test_sgd_equals_the_formulas_by_hand():
    """One channel of one material, worked out with plain numbers: normal 30 degrees from the light and the viewer."""
    m = materials.measured("gray-plastic")
    t = np.deg2rad(30)
    red = [float(getattr(m, key)[0]) for key in ("rho_d", "rho_s", "alpha", "p", "f0", "f1", "kappa")]
    rho_d, rho_s, alpha, p, f0, f1, kappa = red
    lamda, c, k, theta0 = (float(getattr(m, key)[0]) for key in ("lamda", "c", "k", "theta0"))
    g1 = min(1, max(0, 1 + lamda * (1 - np.exp(c * max(t - theta0, 0) ** k))))
    d = kappa * np.exp(-alpha) / alpha**p / np.pi  # n = h
    f = f0 - np.cos(t) * f1 + (1 - f0) * (1 - np.cos(t)) ** 5
    expected = rho_d / np.pi + rho_s / np.pi * f * d * g1**2 / np.cos(t) ** 2
    cos = np.full(1, np.cos(t), np.float32)
    value = materials.brdf(m, cos, cos, np.ones(1, np.float32), cos)[0, 0]
    assert value == pytest.approx(expected, rel=1e-4)


def test_distributions_of_facets_integrate_to_one():
    """The projected area of all facets is that of the surface: ∫ D cos = 1, which is what kappa is for."""
    # Fine towards theta = 0, where the lobes of polished materials are less than a degree wide.
    theta = (np.linspace(0, 1, 200001) ** 4 * np.pi / 2 * 0.9999)[:, None]
    for name in ("brass", "gray-plastic", "beige-fabric", "nickel"):
        d = materials.measured(name)._distribution(np.cos(theta[:, 0]).astype(np.float64))
        total = np.trapezoid(d * np.cos(theta) * np.sin(theta) * 2 * np.pi, theta, axis=0)
        np.testing.assert_allclose(total, 1, rtol=0.03, err_msg=name)


def test_a_white_furnace_gets_no_brighter():
    """A GGX metal reflects no more than all light from everywhere, and a polished one almost all of it."""
    rng = np.random.default_rng(1)
    light = directions(rng, 200_000)
    light_weight = 2 * np.pi * 0.95 / len(light)
    view = np.broadcast_to(np.float32([np.sin(0.5), 0, np.cos(0.5)]), light.shape)
    for alpha, least in ((0.1, 0.95), (0.3, 0.8), (0.6, 0.5)):
        metal = materials.GGX("m", np.zeros(3, np.float32), np.ones(3, np.float32), alpha)
        total = (materials.brdf(metal, *cosines(light, view)) * light[:, 2:]).sum(0) * light_weight
        assert (total < 1.03).all()
        assert (total > least).all()


def test_paint_changes_the_diffuse_part_alone():
    rng = np.random.default_rng(2)
    before = materials.measured("blue-acrylic")
    after = materials.recoloured(rng, before)
    assert after.name == "sgd:blue-acrylic+paint"
    assert not np.array_equal(after.rho_d, before.rho_d)
    np.testing.assert_array_equal(after.rho_s, before.rho_s)
    assert (after.rho_d <= 0.95).all()


def test_least_squares_on_spheres_of_all_measured_materials():
    """How far from Lambertian the materials are, in degrees: 96 lights over the half sphere, shadows left out.

    The figures asked for are 6.46, and 2.49 without the darkest fifth and the brightest tenth.
    """
    z = (np.arange(96) + 0.5) / 96
    azimuth, radius = np.pi * (3 - np.sqrt(5)) * np.arange(96), np.sqrt(1 - z**2)
    lights = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], 1).astype(np.float32)
    seen = look_at(blobs.sphere(), 24)
    lit = unshadowed(seen, lights)
    plain, trimmed = [], []
    for name in materials.names("train") + materials.names("test"):
        ones = np.ones((len(seen.normals), 1), np.float32)
        grey = shade(seen, [materials.measured(name)], ones, lights, lit).mean(-1)
        rank = np.argsort(np.argsort(grey, axis=0), axis=0)
        plain.append(angle(lights, grey, lit, seen.normals))
        trimmed.append(angle(lights, grey, lit & (rank >= 0.2 * 96) & (rank < 0.9 * 96), seen.normals))
    assert 6 < np.mean(plain) < 7
    assert 1.6 < np.mean(trimmed) < 2.9


def angle(lights, values, used, normals):
    used = used.astype(np.float64)
    matrix = np.einsum("kn,ki,kj->nij", used, lights, lights) + 1e-9 * np.eye(3)
    found = np.linalg.solve(matrix, np.einsum("kn,ki,kn->ni", used, lights, values)[..., None])[..., 0]
    found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-20
    return np.degrees(np.arccos(np.clip((found * normals).sum(1), -1, 1))).mean()
