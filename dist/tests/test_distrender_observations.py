"""What completion starts from: depth pictures and points, from files and as tensors."""

import numpy as np
import pytest
import torch
import trimesh
from distrender import observations
from distrender.analytic import AnalyticSDF, Sphere
from distrender.cameras import Camera
from distrender.observations import Observation
from distrender.pyramid import trace_image
from papershelf.errors import UserError
from papershelf.images import write_image

RADIUS = 0.5


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, Camera]:
    """A sphere's depths, 0 where there is none, and the camera."""
    camera = Camera.orbit(1, size=(40, 48))
    with torch.no_grad():
        hit = trace_image(AnalyticSDF(Sphere(RADIUS)), camera, gradient="none")
    return torch.where(hit.mask[0], hit.depth[0], 0), camera


def test_a_depth_picture_s_points_lie_on_the_shape(seen):
    depth, camera = seen
    made = observations.from_depth(depth, camera)
    assert len(made.points) == (depth > 0).sum()
    torch.testing.assert_close(made.points.norm(dim=-1), torch.full((len(made.points),), RADIUS), atol=1e-3, rtol=0)
    origins, directions, along = made.rays
    torch.testing.assert_close(origins + along[:, None] * directions, made.points)
    torch.testing.assert_close(along, depth[depth > 0])


def test_normals_of_neighbours_look_outwards(seen):
    made = observations.from_depth(*seen)
    known = made.normals.square().sum(-1) > 0
    assert 0.7 < known.float().mean() < 1
    cosine = (made.normals * made.points / RADIUS).sum(-1)[known]
    assert cosine.min() > 0.95
    assert cosine.median() > 0.999


def test_some_are_kept_evenly_and_by_the_seed(seen):
    depth, camera = seen
    few, again, other = (observations.from_depth(depth, camera, keep=20, seed=seed) for seed in (1, 1, 2))
    assert len(few.points) == 20
    assert torch.equal(few.points, again.points)
    assert not torch.equal(few.points, other.points)
    assert not few.normals.any()  # single pixels have no neighbours
    all_of_them = observations.from_depth(depth, camera, keep=10**6)
    assert len(all_of_them.points) == (depth > 0).sum()


def test_depths_outside_the_silhouette_belong_to_something_else(seen):
    depth, camera = seen
    mask = depth > 0
    mask[:20] = False
    made = observations.from_depth(torch.where(depth > 0, depth, 2.0), camera, mask=mask)
    assert len(made.points) == mask.sum()


def test_depths_along_the_axis_become_those_along_the_rays(seen):
    depth, camera = seen
    points = observations.from_depth(depth, camera).points
    z = torch.zeros_like(depth)
    z[depth > 0] = camera.project(points)[1][0]
    assert (depth - z)[depth > 0].max() > 0.01
    torch.testing.assert_close(observations.along_rays(z, camera), depth)


def test_depth_files_say_the_same(seen, tmp_path):
    depth, _ = seen
    write_image(tmp_path / "d.png", (depth * 5000).round().numpy().astype(np.uint16)[..., None])
    write_image(tmp_path / "d.exr", depth.numpy()[..., None])
    np.save(tmp_path / "d.npy", torch.where(depth > 0, depth, torch.inf).numpy())
    torch.testing.assert_close(observations.read_depth(tmp_path / "d.png", 1 / 5000), depth, atol=1.1e-4, rtol=0)
    torch.testing.assert_close(observations.read_depth(tmp_path / "d.exr"), depth)
    torch.testing.assert_close(observations.read_depth(tmp_path / "d.npy"), depth)


def test_bad_depths_are_told(seen, tmp_path):
    depth, camera = seen
    write_image(tmp_path / "eight.png", np.zeros((4, 4, 1), np.uint8))
    np.save(tmp_path / "cube.npy", np.zeros((4, 4, 4)))
    (tmp_path / "no.npy").write_text("no numbers")
    for name, said in (("eight.png", "16 bits"), ("cube.npy", "one channel"), ("no.npy", "numbers"), ("a.tif", "from")):
        with pytest.raises(UserError, match=said):
            observations.read_depth(tmp_path / name)
    with pytest.raises(UserError, match="cannot read"):
        observations.read_depth(tmp_path / "missing.npy")
    with pytest.raises(UserError, match="holds no depth"):
        observations.from_depth(torch.zeros_like(depth), camera)
    with pytest.raises(UserError, match="camera of its size"):
        observations.from_depth(depth[1:], camera)
    with pytest.raises(UserError, match="silhouette must have"):
        observations.from_depth(depth, camera, mask=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(UserError, match="check the units"):  # millimetres taken for metres
        observations.from_depth(depth * 1000, camera)


def test_silhouettes_are_bright_or_opaque(tmp_path):
    disc = np.zeros((8, 8, 1), np.uint8)
    disc[2:5, 3:6] = 255
    write_image(tmp_path / "grey.png", disc)
    write_image(tmp_path / "alpha.png", np.concatenate([255 - disc] * 3 + [disc], -1))
    write_image(tmp_path / "sixteen.png", disc.astype(np.uint16) * 257)
    for name in ("grey", "alpha", "sixteen"):
        assert torch.equal(observations.read_mask(tmp_path / f"{name}.png"), torch.from_numpy(disc[..., 0] > 0))
    write_image(tmp_path / "white.png", np.full((8, 8, 1), 255, np.uint8))
    with pytest.raises(UserError, match="bright"):
        observations.read_mask(tmp_path / "white.png")


def test_points_come_with_their_normals(tmp_path):
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(9, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = 0.5 * normals
    both = np.hstack([points, 3 * normals])  # of any length
    np.save(tmp_path / "a.npy", both)
    np.savetxt(tmp_path / "a.xyz", both)
    columns = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    rows = "".join(" ".join(f"{number:.7f}" for number in row) + "\n" for row in both)
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 9\n{columns}end_header\n{rows}")
    for name in ("a.npy", "a.xyz", "a.ply"):
        made = observations.read_points(tmp_path / name)
        np.testing.assert_allclose(made.points, points, atol=1e-6)
        np.testing.assert_allclose(made.normals, normals, atol=1e-6)
        assert made.origins is None
    trimesh.PointCloud(points).export(tmp_path / "b.ply")
    np.save(tmp_path / "b.npy", points)
    for name in ("b.ply", "b.npy"):
        made = observations.read_points(tmp_path / name)
        np.testing.assert_allclose(made.points, points, atol=1e-6)
        assert not made.normals.any()
    trimesh.creation.icosphere(1, 0.5).export(tmp_path / "c.obj")  # a mesh's normals are its own
    made = observations.read_points(tmp_path / "c.obj")
    np.testing.assert_allclose(made.normals, made.points / 0.5, atol=1e-5)


def test_bad_points_are_told(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((4, 2)))
    np.save(tmp_path / "far.npy", np.full((4, 3), 900.0))
    (tmp_path / "bad.ply").write_text("ply\nno")
    for name, said in (
        ("flat.npy", "points \\[N, 3\\]"),
        ("far.npy", "unit ball"),
        ("bad.ply", "cannot be read as points"),
        ("missing.ply", "no such file"),
        ("missing.xyz", "cannot read"),
        ("a.png", "points are read from"),
    ):
        with pytest.raises(UserError, match=said):
            observations.read_points(tmp_path / name)
    with pytest.raises(UserError, match="nothing to complete"):
        Observation(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(UserError, match="no camera saw them"):
        _ = Observation(torch.zeros(1, 3), torch.zeros(1, 3)).rays


def test_points_are_thinned_with_what_belongs_to_them(seen):
    made = observations.from_depth(*seen)
    few = observations.thinned(made, 7)
    assert len(few.points) == len(few.normals) == len(few.origins) == 7
    at = (made.points[None] == few.points[:, None]).all(-1).float().argmax(1)
    assert torch.equal(made.normals[at], few.normals)
    assert observations.thinned(made, 10**6) is made
