"""Rendered samples: the same for the same seed, physically as stated, and whole on disk."""

from dataclasses import replace

import numpy as np
import pytest
from papershelf.errors import UserError
from psfcn import blobs, materials
from psfcn.gbuffer import Mesh, look_at, smooth_normals, unshadowed
from psfcn.render_options import Options
from psfcn.rendering import render, render_sample
from psfcn.samples import Sample

SMALL = Options(size=24, lights=(6, 9))
WHITE = materials.GGX("white", np.ones(3, np.float32), np.zeros(3, np.float32), 1.0)


def same(a, b):
    return all(np.array_equal(getattr(a, field), getattr(b, field)) for field in a.__dataclass_fields__)


def test_a_seed_gives_the_same_sample_and_another_one_does_not():
    first = render_sample(3, SMALL)
    render_sample(4, SMALL)
    assert same(first, render_sample(3, SMALL))
    assert not same(first, render_sample(4, SMALL))
    assert not same(first, render_sample(3, replace(SMALL, split="test")))


@pytest.mark.parametrize("shape", ["blobs", "solids", "patches", "spheres"])
def test_samples_have_the_stated_form(shape):
    for seed in range(4):
        sample = render_sample(seed, replace(SMALL, shapes=(shape,), intensities=True, noise=0.01))
        count = len(sample.lights)
        assert 6 <= count <= 9
        assert sample.images.shape == (count, 24, 24, 3)
        assert sample.images.dtype == np.uint16
        assert sample.normal.dtype == sample.depth.dtype == np.float16
        assert sample.mask.any()
        assert (sample.images[:, ~sample.mask] == 0).all()
        assert (sample.normal[~sample.mask] == 0).all()
        length = np.linalg.norm(sample.normal[sample.mask].astype(np.float32), axis=1)
        np.testing.assert_allclose(length, 1, atol=2e-3)
        assert (sample.normal[sample.mask][:, 2] > 0).all()
        np.testing.assert_allclose(np.linalg.norm(sample.lights, axis=1), 1, atol=1e-5)
        assert ((sample.intensities >= 0.2) & (sample.intensities <= 2)).all()
        assert sample.images.max() == 65535


def test_a_white_sphere_shows_the_cosine_times_the_intensity():
    lights = np.float32([[0, 0, 1], [0.6, 0, 0.8], [0, -0.6, 0.8]])
    intensities = np.float32([[1, 1, 1], [0.5, 1, 2], [1, 1, 1]])
    sample = render(blobs.sphere(), [WHITE], lights, intensities, 33)
    normal = sample.normal.astype(np.float32)
    expected = np.maximum(np.einsum("hwc,qc->qhw", normal, lights), 0)[..., None] * intensities[:, None, None]
    # Around the rim of the lit part and above the 99.9th percentile they may differ.
    clipped = sample.images.max(-1) == 65535
    error = np.abs(sample.radiance() - expected)[~clipped]
    assert np.quantile(error, 0.99) < 2e-3
    assert clipped.mean() < 0.01


def test_normals_point_right_up_and_to_the_viewer():
    sample = render(blobs.sphere(), [WHITE], np.float32([[0, 0, 1]]), np.ones((1, 3)), 32)
    assert sample.normal[16, 29, 0] > 0.7  # right
    assert sample.normal[2, 16, 1] > 0.7  # top row: up
    assert sample.normal[16, 16, 2] > 0.99


def test_depth_is_the_height_whose_slopes_the_normals_are():
    sample = render_sample(1, replace(SMALL, size=64, shapes=("patches",)))
    inside = np.zeros_like(sample.mask)
    inside[1:-1, 1:-1] = sample.mask[:-2, 1:-1] & sample.mask[2:, 1:-1] & sample.mask[1:-1, :-2] & sample.mask[1:-1, 2:]
    depth, normal = sample.depth.astype(np.float32), sample.normal.astype(np.float32)
    slope_x = np.zeros_like(depth)
    slope_x[:, 1:-1] = (depth[:, 2:] - depth[:, :-2]) / 2
    slope_y = np.zeros_like(depth)
    slope_y[1:-1] = (depth[:-2] - depth[2:]) / 2  # y is up
    found = np.stack([-slope_x, -slope_y, np.ones_like(depth)], -1)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    cosine = (found * normal).sum(-1)[inside]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 2


def test_a_wall_casts_the_shadow_that_geometry_says():
    """A wall of height 0.5 over a floor, light from the left at 45 degrees: a shadow 0.5 wide to its right."""
    floor = np.float32([[-2, -2, 0], [2, -2, 0], [2, 2, 0], [-2, 2, 0]])
    wall = np.float32([[-0.02, -2, 0.5], [0.02, -2, 0.5], [0.02, 2, 0.5], [-0.02, 2, 0.5]])
    side = np.float32([[0.02, -2, 0], [0.02, 2, 0], [0.02, 2, 0.5], [0.02, -2, 0.5]])
    vertices = np.concatenate([floor, wall, side])
    faces = np.concatenate([np.int32([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(3)])
    mesh = Mesh(vertices, faces, smooth_normals(vertices, faces), "wall")
    seen = look_at(mesh, 200)
    lit = unshadowed(seen, np.float32([[-np.sqrt(0.5), 0, np.sqrt(0.5)]]))[0]
    x = seen.points[:, 0]
    low = seen.points[:, 2] < 0.01
    assert not lit[low & (x > 0.03) & (x < 0.5)].any()
    assert lit[low & ((x < -0.03) | (x > 0.54))].all()


def test_lights_behind_a_convex_shape_leave_no_false_shadow():
    seen = look_at(blobs.random_sphere(np.random.default_rng(0)), 128)
    lights = np.float32([[0.9, 0, np.sqrt(1 - 0.81)], [0, -0.98, np.sqrt(1 - 0.98**2)]])
    facing = lights @ seen.normals.T
    lit = unshadowed(seen, lights)
    assert not lit[facing <= 0].any()
    assert lit[facing > 0.02].all()


def test_blends_vary_over_the_surface():
    red = replace(WHITE, rho_d=np.float32([1, 0, 0]))
    blue = replace(WHITE, rho_d=np.float32([0, 0, 1]))
    light = np.float32([[0, 0, 1]])
    sample = render(blobs.sphere(), [red, blue], light, np.ones((1, 3)), 48, rng=np.random.default_rng(0))
    colour = sample.radiance()[0][sample.mask]
    share = colour[:, 0] / (colour[:, 0] + colour[:, 2])
    assert share.min() < 0.1
    assert share.max() > 0.9
    np.testing.assert_allclose(colour[:, 0] + colour[:, 2], sample.normal[sample.mask][:, 2], atol=0.02)


def test_a_sample_survives_the_disk(tmp_path):
    sample = render_sample(0, SMALL)
    sample.save(tmp_path / "a.npz")
    again = Sample.load(tmp_path / "a.npz")
    assert same(sample, again)
    assert (again.shape, again.material) == (sample.shape, sample.material)


def test_damaged_samples_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing\.npz"):
        Sample.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text.npz: expected a sample"):
        Sample.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(UserError, match="it lacks"):
        Sample.load(tmp_path / "other.npz")
    render_sample(0, SMALL).save(tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        Sample.load(tmp_path / "cut.npz")
