"""Classical photometric stereo: exact on what it assumes, and robust where it says so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from psfcn.classical import METHODS, least_squares, residual, solve, sparse_bayesian


def half_sphere(count, seed=0, widest=60.0):
    """Unit directions within ``widest`` degrees of the viewer."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(np.cos(np.radians(widest)), 1, count)
    turn = rng.uniform(0, 2 * np.pi, count)
    side = np.sqrt(1 - z * z)
    return np.stack([side * np.cos(turn), side * np.sin(turn), z], -1)


def capture(lights, seed=0, widest=25.0):
    """Lambertian images of patches that all lights reach, their normals, colours and mask."""
    rng = np.random.default_rng(seed)
    normals = half_sphere(30, seed + 1, widest).reshape(5, 6, 3)
    colours = rng.uniform(0.2, 1, (5, 6, 3))
    shading = np.einsum("qi,hwi->qhw", lights, normals)
    assert shading.min() > 0
    mask = np.ones((5, 6), bool)
    mask[0, 0] = False
    return shading[..., None] * colours * mask[..., None], normals * mask[..., None], colours * mask[..., None], mask


def degrees(a, b, mask):
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))[mask]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(count=st.integers(4, 40), seed=st.integers(0, 1000))
def test_lambertian_surfaces_are_found_exactly(method, count, seed):
    lights = half_sphere(count, seed)
    images, normals, colours, mask = capture(lights, seed)
    if np.linalg.svd(lights, compute_uv=False)[-1] < 0.15:
        return  # nearly in one plane: nothing to be exact about
    found = solve(images, lights, mask, method)
    assert degrees(found.normals, normals, mask).max() < 0.2
    np.testing.assert_allclose(found.albedo, colours, atol=5e-3)
    assert found.residual.max() < 5e-3
    assert not found.normals[~mask].any()
    assert not found.albedo[~mask].any()


def test_weights_of_zero_leave_images_out():
    rng = np.random.default_rng(0)
    values, lights = torch.from_numpy(rng.random((7, 9))), torch.from_numpy(half_sphere(9))
    weights = torch.ones(7, 9, dtype=torch.float64)
    weights[:, 3] = 0
    kept = [q for q in range(9) if q != 3]
    expected = torch.from_numpy(np.linalg.lstsq(lights[kept].numpy(), values[:, kept].numpy().T, rcond=None)[0].T)
    torch.testing.assert_close(least_squares(values, lights, weights), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["trimmed", "l1", "sbl"])
def test_shadows_and_highlights_hardly_move_robust_methods(method):
    lights = half_sphere(40)
    images, normals, _, mask = capture(lights)
    rng = np.random.default_rng(1)
    spoilt = images.copy()
    for y, x in np.argwhere(mask):
        which = rng.permutation(40)
        spoilt[which[:6], y, x] = 0  # shadows
        spoilt[which[6:9], y, x] *= 4  # highlights
    robust, plain = (degrees(solve(spoilt, lights, mask, m).normals, normals, mask).mean() for m in (method, "ls"))
    assert robust < 0.35 * plain


def test_sparse_bayesian_finds_the_outliers_where_they_are_few():
    lights = half_sphere(24)
    images, normals, _, mask = capture(lights)
    images[:4] = 0  # four lights cast shadows everywhere
    found = solve(images, lights, mask, "sbl")
    assert degrees(found.normals, normals, mask).max() < 0.3


def test_sparse_bayesian_equals_the_paper_s_large_matrices():
    rng = np.random.default_rng(0)
    lights = half_sphere(8)
    values = (lights @ np.array([0.1, 0.2, 0.9]) * 0.7)[None]
    values[0, 2] = 0
    values[0, 5] *= 2
    values += rng.normal(0, 1e-3, values.shape)
    y, noise, gamma = values[0] / values.mean(), 1e-6, np.ones(8)
    wide = 1e9 * lights @ lights.T  # a flat prior of g
    for _ in range(60):
        inverse = np.linalg.inv(wide + np.diag(gamma) + noise * np.eye(8))
        mean = gamma * (inverse @ y)
        gamma = mean**2 + gamma - gamma**2 * np.diag(inverse)
    weights = 1 / (gamma + noise)
    expected = np.linalg.solve((lights.T * weights) @ lights, (lights.T * weights) @ y) * values.mean()
    found = sparse_bayesian(torch.from_numpy(values), torch.from_numpy(lights))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_worse_normals_have_larger_residuals():
    lights = half_sphere(20)
    images, normals, _, mask = capture(lights)
    turned = normals + np.array([0.2, 0, 0])
    turned = turned / np.linalg.norm(turned, axis=-1, keepdims=True)
    right, wrong = residual(images, normals, lights, mask), residual(images, turned, lights, mask)
    assert right[mask].max() < 1e-6 < 0.02 < wrong[mask].mean()


def test_black_pixels_face_the_viewer():
    lights = half_sphere(6)
    found = solve(np.zeros((6, 2, 2, 3)), lights, np.ones((2, 2), bool), "ls")
    np.testing.assert_array_equal(found.normals, np.broadcast_to([0, 0, 1], (2, 2, 3)))
    assert np.isfinite(found.residual).all()
    assert not found.albedo.any()


def test_an_empty_mask_gives_nothing():
    found = solve(np.ones((4, 2, 2, 3)), half_sphere(4), np.zeros((2, 2), bool))
    assert not found.normals.any()


@pytest.mark.parametrize(
    ("lights", "message"),
    [
        (half_sphere(3), "4 images need lights"),
        (np.array([[0, 0, 1], [0, 0.6, 0.8], [0, -0.6, 0.8], [0, 0.8, 0.6]]), "in one plane"),
    ],
)
def test_lights_that_cannot_do_are_refused(lights, message):
    with pytest.raises(UserError, match=message):
        solve(np.ones((4, 2, 2, 3)), lights, np.ones((2, 2), bool))


def test_unknown_methods_are_refused():
    with pytest.raises(UserError, match="ls, trimmed"):
        solve(np.ones((4, 2, 2, 3)), half_sphere(4), np.ones((2, 2), bool), "magic")
