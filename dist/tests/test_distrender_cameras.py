"""Cameras against the definition of their projection, and rays against it the other way round."""

import math

import pytest
import torch
from distrender.cameras import Camera
from papershelf.errors import UserError


def some_cameras():
    eyes = torch.tensor([[0.3, 1.0, 2.0], [2.4, 0.2, 0.1], [-1.0, -0.5, -2.0]], dtype=torch.float64)
    return Camera.look_at(eyes, size=(12, 20))


def test_points_on_a_ray_are_seen_at_its_pixel():
    cameras = some_cameras()
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (3, 12, 20, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3, 12, 20, dtype=torch.float64))
    points = origins + 1.7 * directions
    for view in range(3):
        pixels, z = cameras[view].project(points[view].reshape(-1, 3))
        torch.testing.assert_close(pixels.reshape(12, 20, 2), cameras.pixels())
        assert (z > 0).all()


def test_pixel_centres_are_at_halves():
    pixels = some_cameras().pixels()
    assert pixels[0, 0].tolist() == [0.5, 0.5]
    assert pixels[11, 19].tolist() == [19.5, 11.5]


def test_look_at_has_the_target_in_the_middle_right_to_the_right_and_up_up():
    camera = Camera.look_at((0.0, 0.0, 2.0), size=(10, 10))
    pixels, z = camera.project(torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]))
    assert pixels[0, 0].tolist() == [5.0, 5.0]
    assert pixels[0, 1, 0] > 5  # seen from +z, +x is to the right
    assert pixels[0, 2, 1] < 5  # y grows downwards in the image
    assert torch.equal(z, torch.full((1, 3), 2.0))
    torch.testing.assert_close(camera.eye, torch.tensor([[0.0, 0.0, 2.0]]))
    torch.testing.assert_close(torch.linalg.det(camera.rotation), torch.ones(1))


def test_orbit_is_the_protocols_camera():
    """Distance 2.5, azimuth 30, elevation 20 degrees, focal length 150/137 of the image side."""
    camera = Camera.orbit(4)
    az, el = math.radians(30), math.radians(20)
    expected = 2.5 * torch.tensor([math.cos(el) * math.sin(az), math.sin(el), math.cos(el) * math.cos(az)])
    torch.testing.assert_close(camera.eye[0], expected)
    torch.testing.assert_close(camera.eye[2] + camera.eye[0], torch.tensor([0.0, 2 * expected[1].item(), 0.0]))
    assert camera.intrinsics[0, 0, 0] == pytest.approx(512 * 150 / 137)
    origins, directions = Camera.orbit(1).rays()
    along = (origins * directions).sum(-1, keepdim=True)
    meeting = (origins - along * directions).norm(dim=-1) < 1
    assert abs(int(meeting.sum()) - 188_044) < 20


def test_resized_sees_the_same():
    camera = some_cameras()
    smaller = camera.resized((6, 5))
    points = torch.rand(7, 3, dtype=torch.float64)
    factor = torch.tensor([5 / 20, 6 / 12], dtype=torch.float64)
    torch.testing.assert_close(smaller.project(points)[0], camera.project(points)[0] * factor)


def test_in_ball_sees_the_same():
    camera = some_cameras()
    centre = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
    points = torch.rand(7, 3, dtype=torch.float64)
    moved = camera.in_ball(centre, 0.4)
    torch.testing.assert_close(moved.project((points - centre) / 0.4)[0], camera.project(points)[0])
    torch.testing.assert_close(moved.eye, (camera.eye - centre) / 0.4)
    with pytest.raises(UserError, match="radius must be above 0"):
        camera.in_ball(centre, 0.0)


def test_skewed_intrinsics_and_views_by_slice():
    camera = some_cameras()
    skewed = Camera(camera.intrinsics.clone(), camera.rotation, camera.translation, camera.size)
    skewed.intrinsics[:, 0, 1] = 0.7
    origins, directions = skewed[1:].rays()
    pixels, _ = skewed[2].project((origins + directions)[1].reshape(-1, 3))
    torch.testing.assert_close(pixels.reshape(12, 20, 2), camera.pixels())


def test_rays_are_differentiable_in_the_pose():
    camera = some_cameras()[0]
    shift = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)

    def rays(shift):
        return Camera(camera.intrinsics, camera.rotation, camera.translation + shift, (2, 3)).rays()

    assert torch.autograd.gradcheck(rays, shift)


def test_faults_are_told():
    with pytest.raises(UserError, match="look along the up direction"):
        Camera.look_at((0.0, 2.0, 0.0))
    with pytest.raises(UserError, match="three numbers"):
        Camera.look_at((0.0, 2.0))
    with pytest.raises(UserError, match="at least one view"):
        Camera.orbit(0)
    with pytest.raises(UserError, match="between -90 and 90"):
        Camera.orbit(1, elevation=90)
    with pytest.raises(UserError, match=r"need intrinsics \[V, 3, 3\]"):
        Camera(torch.eye(3), torch.eye(3), torch.zeros(3), (4, 4))
    with pytest.raises(UserError, match="from 1 pixel on"):
        Camera.look_at((0.0, 0.0, 2.0), size=(0, 4))
