"""Depth from normals against surfaces whose depth is known."""

import numpy as np
import pytest
from papershelf.errors import UserError
from psfcn.integration import Perspective, integrate


def grid(size):
    """Pixel centres around the middle, in pixels: x right and y up."""
    axis = np.arange(size) + 0.5 - size / 2
    return np.meshgrid(axis, -axis)


def unit(p, q):
    """Normals of a height field with slopes p and q."""
    normals = np.stack([-p, -q, np.ones_like(p)], -1)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def centred(z, mask):
    return np.where(mask, z - z[mask].mean(), np.nan)


@pytest.mark.parametrize("jumps", [False, True])
def test_a_plane_is_exact(jumps):
    x, y = grid(16)
    mask = np.ones((16, 16), bool)
    depth = integrate(unit(np.full_like(x, 0.5), np.full_like(x, -0.25)), mask, jumps=jumps)
    np.testing.assert_allclose(depth, centred(0.5 * x - 0.25 * y, mask), atol=1e-4)


@pytest.mark.parametrize("jumps", [False, True])
def test_a_ball_within_its_mask(jumps):
    x, y = grid(64)
    mask = x**2 + y**2 < 27**2
    z = np.sqrt(np.clip(30**2 - x**2 - y**2, 1, None))
    depth = integrate(unit(-x / z, -y / z) * mask[..., None], mask, jumps=jumps)
    assert np.isnan(depth[~mask]).all()
    assert np.abs(depth - centred(z, mask))[mask].mean() < 0.15  # of a height of 17


def test_a_jump_stays_a_jump():
    x, y = grid(48)
    mask = np.ones((48, 48), bool)
    front = np.abs(x) < 10  # a flat strip before a wall that leans
    q = np.where(front, 0.0, 0.8)

    def error(depth):
        """Each side's shape may be off by its own height alone."""
        return max((depth - 0.8 * y)[x > 10].std(), (depth - 0.8 * y)[x < -10].std(), depth[front].std())

    bilateral, smooth = (error(integrate(unit(np.zeros_like(q), q), mask, jumps=jumps)) for jumps in (True, False))
    assert bilateral < 0.2 * smooth


def test_parts_are_integrated_apart():
    x, _ = grid(32)
    mask = np.abs(x) > 3
    depth = integrate(unit(np.sign(x) * 0.3, np.zeros_like(x)), mask)
    assert abs(depth[x > 3].mean()) < 1e-6 > abs(depth[x < -3].mean())


@pytest.mark.parametrize("jumps", [False, True])
def test_a_plane_in_perspective(jumps):
    # The plane through (0, 0, -1) with normal n, seen from the origin along -z.
    normal = np.array([0.3, -0.2, 1.0]) / np.linalg.norm([0.3, -0.2, 1.0])
    u, v = grid(40)
    focal = 50.0
    distance = -normal[2] / (normal[0] * u / focal + normal[1] * v / focal - normal[2])
    mask = np.ones((40, 40), bool)
    found = integrate(np.broadcast_to(normal, (40, 40, 3)), mask, Perspective(focal, (20, 20)), jumps=jumps)
    expected = distance / np.exp(np.log(distance).mean())
    assert np.abs(found / expected - 1).max() < 2e-3


def test_what_cannot_be_integrated():
    with pytest.raises(UserError, match="mask is empty"):
        integrate(np.zeros((4, 4, 3)), np.zeros((4, 4), bool))
    with pytest.raises(UserError, match="as the mask"):
        integrate(np.zeros((4, 5, 3)), np.ones((4, 4), bool))
    with pytest.raises(UserError, match="focal length"):
        integrate(np.zeros((4, 4, 3)), np.ones((4, 4), bool), Perspective(0, (2, 2)))


def test_a_single_pixel_has_depth_zero():
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    assert integrate(np.broadcast_to([0.0, 0, 1], (3, 3, 3)), mask)[1, 1] == 0
