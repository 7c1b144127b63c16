"""Meshes of signed distances."""

import numpy as np
import pytest
import torch
import trimesh
from distrender.analytic import AnalyticSDF, Difference, Sphere, Torus, Translate
from distrender.meshing import mesh, sample, sample_near, write_mesh
from papershelf.errors import UserError


def test_a_sphere_s_mesh_is_round_closed_and_faces_outwards():
    vertices, faces = mesh(AnalyticSDF(Sphere(0.6)), 48)
    made = trimesh.Trimesh(vertices, faces)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.6, atol=1e-3)
    assert made.is_watertight
    assert made.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)  # negative if turned inside out


def test_axes_are_not_exchanged():
    vertices, _ = mesh(AnalyticSDF(Translate(Sphere(0.1), 0.5, 0.2, -0.3)), 64)
    np.testing.assert_allclose(vertices.mean(0), [0.5, 0.2, -0.3], atol=0.01)


def test_samples_are_taken_where_they_say():
    values = sample(lambda p: p @ torch.tensor([1.0, 10.0, 100.0]), 3)
    assert values[2, 1, 0] == 100 - 1
    assert values[0, 2, 1] == -100 + 10


@pytest.mark.parametrize(("resolution", "share"), [(30, 1.0), (65, 0.6), (98, 0.4)])
def test_near_the_surface_suffices(resolution, share):
    asked = 0

    def shape(points: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(points)
        ball = points.norm(dim=-1) - 0.6
        bar = (points - torch.tensor([0.3, 0.1, 0.0]))[:, :2].norm(dim=-1) - 0.2
        return torch.maximum(ball, -bar)

    near = sample_near(shape, resolution)
    assert asked <= share * resolution**3
    everywhere = sample(shape, resolution)
    assert torch.equal(everywhere.sign(), near.sign())
    close = everywhere.abs() < 3 / resolution
    torch.testing.assert_close(everywhere[close], near[close], rtol=0, atol=1e-6)
    whole, sparse = mesh(shape, resolution), mesh(shape, resolution, near=True)
    np.testing.assert_allclose(whole[0], sparse[0], atol=1e-5)
    np.testing.assert_array_equal(whole[1], sparse[1])


def test_files_keep_the_mesh(tmp_path):
    vertices, faces = mesh(AnalyticSDF(Difference(Sphere(0.6), Torus(0.5, 0.2))), 24)
    for suffix in (".obj", ".ply", ".stl", ".off", ".glb"):
        write_mesh(tmp_path / f"a{suffix}", vertices, faces)
        again = trimesh.load(tmp_path / f"a{suffix}", force="mesh", process=False)
        assert len(again.faces) == len(faces)
        np.testing.assert_allclose(again.bounds, [vertices.min(0), vertices.max(0)], atol=1e-5)


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(UserError, match="whole cube is outside"):
        mesh(AnalyticSDF(Translate(Sphere(0.1), 5, 0, 0)), 8)
    with pytest.raises(UserError, match="whole cube is inside"):
        mesh(AnalyticSDF(Sphere(9.0)), 8)
    with pytest.raises(UserError, match="at least 2"):
        mesh(AnalyticSDF(Sphere(0.5)), 1)
    with pytest.raises(UserError, match="written as"):
        write_mesh(tmp_path / "a.xyz", *mesh(AnalyticSDF(Sphere(0.5)), 8))
    assert not [*tmp_path.iterdir()]
