"""Grids against scipy's interpolation, their gradients, meshes against a sphere, files."""

import numpy as np
import pytest
import torch
import trimesh
from distrender.grid import GridSDF, mesh_distance, normalise
from papershelf.errors import UserError
from scipy.interpolate import RegularGridInterpolator


def random_grid(shape=(4, 5, 6), low=-1.05, high=1.05):
    return GridSDF(torch.from_numpy(np.random.default_rng(0).normal(size=shape)), low, high)


def random_points(n, spread):
    return torch.from_numpy(np.random.default_rng(1).uniform(-spread, spread, (n, 3)))


def interpolated(grid, at):
    axes = [np.linspace(grid.low, grid.high, n) for n in grid.values.shape]
    return RegularGridInterpolator(axes, grid.values.detach().numpy())(at.numpy()[:, ::-1])


@pytest.mark.parametrize(
    ("shape", "low", "high"), [((4, 5, 6), -1.05, 1.05), ((2, 2, 2), 0.0, 3.0), ((2, 9, 3), -2, 1)]
)
def test_inside_it_is_scipys_interpolation(shape, low, high):
    grid = random_grid(shape, low, high)
    at = torch.from_numpy(np.random.default_rng(1).uniform(low, high, (300, 3)))
    np.testing.assert_allclose(grid(at).detach(), interpolated(grid, at), atol=1e-12)


def test_samples_are_met_at_their_places_and_at_the_border():
    grid = random_grid().float()
    z, y, x = (torch.linspace(-1.05, 1.05, n) for n in grid.values.shape)
    at = torch.stack(torch.meshgrid(z, y, x, indexing="ij"), -1).flip(-1)
    torch.testing.assert_close(grid(at), grid.values, atol=1e-5, rtol=0)


def test_outside_the_distance_to_the_cube_is_added():
    grid, at = random_grid(), random_points(300, 3.0)
    nearest = at.clamp(-1.05, 1.05)
    expected = interpolated(grid, nearest) + (at - nearest).norm(dim=-1).numpy()
    np.testing.assert_allclose(grid(at).detach(), expected, atol=1e-12)


def test_gradients_in_points_and_values():
    grid = random_grid((3, 4, 3))
    at = random_points(20, 1.5).requires_grad_()

    def call(at, values):
        return torch.func.functional_call(grid, {"values": values}, (at,))

    torch.autograd.gradcheck(call, (at, grid.values.detach().requires_grad_()))
    (normal,) = torch.autograd.grad(call(at, grid.values).sum(), at, create_graph=True)
    assert torch.autograd.grad(normal.pow(2).sum(), grid.values)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 2, 2), (5, 9, 3), (8, 7, 12)])
def test_compact_grids_differ_by_the_rounding_to_halves(shape):
    grid = random_grid(shape)
    rounded = GridSDF(grid.values.detach().half().double())
    at = random_points(300, 1.5).requires_grad_()
    compact, expected = grid.compact()(at), rounded(at)
    torch.testing.assert_close(compact, expected, atol=1e-12, rtol=0)
    assert (compact - grid(at)).abs().max() <= 2**-11 * grid.values.abs().max()
    (normal,), (expected_normal,) = (torch.autograd.grad(f.sum(), at) for f in (compact, expected))
    torch.testing.assert_close(normal, expected_normal)
    assert grid.compact()(at[:0].float()).dtype == torch.float32
    assert grid.compact().bricks.shape[3:] == (4, 4, 4)


def test_compact_grids_need_distances_that_halves_hold():
    with pytest.raises(UserError, match="65504"):
        GridSDF(torch.full((2, 2, 2), 1e5)).compact()


def test_shapes_dtypes_and_what_is_not_a_number():
    grid = GridSDF(np.zeros((3, 3, 3), np.float16))
    assert grid.values.dtype == torch.float32
    at = random_points(12, 1.5)
    assert grid(at.view(3, 4, 3)).shape == (3, 4)
    assert grid(at).dtype == torch.float64
    assert grid(torch.empty(0, 3)).shape == (0,)
    assert grid(torch.tensor([[torch.nan, 0, 0], [torch.inf, 0, 0]])).isnan().tolist() == [True, False]


def test_values_are_copied():
    values = torch.zeros(2, 2, 2)
    grid = GridSDF(values)
    values += 1
    assert grid.values.sum() == 0


def sphere_file(folder, name="sphere.ply", subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions, radius=3.0)
    mesh.apply_translation([5, -2, 1])
    mesh.export(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["sphere.ply", "sphere.obj", "sphere.stl"])
def test_a_mesh_becomes_its_distance(tmp_path, name):
    grid = GridSDF.from_mesh(sphere_file(tmp_path, name), resolution=20)
    assert grid.values.shape == (20, 20, 20)
    axis = torch.linspace(-1.05, 1.05, 20)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    expected = (x * x + y * y + z * z).sqrt() - 1 / 1.03
    # A mesh inscribed in the sphere, its 1280 flat triangles at most 0.8% inside.
    torch.testing.assert_close(grid.values.detach(), expected, atol=0.008, rtol=0)
    assert (grid.values.detach() - expected).min() > -1e-5


def test_a_hole_and_a_turned_surface_leave_the_sign(tmp_path):
    mesh = trimesh.creation.icosphere(3)
    low, top = np.array([[0.0, 0, 0], [0, 0, -0.5]]), np.array([[0, 0, z] for z in np.linspace(0.5, 1.5, 50)])
    open_ = mesh.submesh([mesh.triangles_center[:, 2] < 0.9], append=True)
    assert not open_.is_watertight
    for faces in (open_.faces, open_.faces[:, ::-1]):
        assert (mesh_distance(low, np.asarray(open_.vertices), faces) < -0.4).all()
        through = mesh_distance(top, np.asarray(open_.vertices), faces)
        assert through[0] < 0 < through[-1]
        assert np.abs(np.diff(through)).max() < 0.1  # at most 0.46 from the rim, on either side
    np.testing.assert_allclose(
        mesh_distance(top[30:], np.asarray(mesh.vertices), mesh.faces), top[30:, 2] - 1, atol=1e-9
    )


def test_normalised_meshes_reach_just_into_the_unit_sphere():
    vertices = normalise(np.array([[0.0, 0, 0], [4, 0, 0], [0, 2, 0], [1, 1, 9]]))
    np.testing.assert_allclose(vertices.min(0), -vertices.max(0))
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(1 / 1.03)


def test_files_keep_everything(tmp_path):
    grid = random_grid((3, 4, 5), -2, 2.5).float()
    grid.save(tmp_path / "a.npz")
    again = GridSDF.load(tmp_path / "a.npz")
    assert torch.equal(again.values, grid.values)
    assert (again.low, again.high) == (-2, 2.5)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    np.savez(tmp_path / "bare.npz", values=np.zeros((2, 2, 2)))
    assert (GridSDF.load(tmp_path / "bare.npz").low, GridSDF.load(tmp_path / "bare.npz").high) == (-1.05, 1.05)


@pytest.mark.parametrize(
    ("values", "low", "high", "message"),
    [
        (torch.zeros(3, 3), -1, 1, r"\[D, H, W\].*\[3, 3\]"),
        (torch.zeros(1, 3, 3), -1, 1, "at least 2"),
        (torch.zeros(3, 3, 3, dtype=torch.int32), -1, 1, "floating point"),
        (torch.zeros(3, 3, 3), 1, 1, "lower to a higher"),
        (torch.full((2, 2, 2), torch.nan), -1, 1, "finite"),
    ],
)
def test_impossible_grids_are_refused(values, low, high, message):
    with pytest.raises(UserError, match=message):
        GridSDF(values, low, high)


def test_files_that_are_no_grids_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        GridSDF.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"an \.npz file"):
        GridSDF.load(tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match=r"an \.npz file"):
        GridSDF.load(tmp_path / "array.npy")
    np.savez(tmp_path / "other.npz", density=np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match="no key 'values', only density"):
        GridSDF.load(tmp_path / "other.npz")
    np.savez(tmp_path / "flat.npz", values=np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"flat.npz: a grid must be"):
        GridSDF.load(tmp_path / "flat.npz")


def test_files_that_are_no_meshes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        GridSDF.from_mesh(tmp_path / "missing.obj")
    (tmp_path / "bad.ply").write_text("not a mesh")
    with pytest.raises(UserError, match=r"cannot read .* as a mesh"):
        GridSDF.from_mesh(tmp_path / "bad.ply")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(UserError, match="no triangles"):
        GridSDF.from_mesh(tmp_path / "points.obj")
    (tmp_path / "one.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    with pytest.raises(UserError, match="no extent"):
        GridSDF.from_mesh(tmp_path / "one.obj")
    with pytest.raises(UserError, match="resolution"):
        GridSDF.from_mesh(sphere_file(tmp_path), resolution=1)
