"""Meshes of depth maps: where their vertices are, which way their faces look, where they are torn."""

import numpy as np
import pytest
import trimesh
from papershelf.errors import UserError
from psfcn.integration import Perspective
from psfcn.surface_mesh import surface_mesh, write_mesh

UP = np.array([0.0, 0.0, 1.0])


def test_a_flat_square_faces_the_viewer():
    vertices, faces, places = surface_mesh(np.zeros((3, 4)), np.broadcast_to(UP, (3, 4, 3)))
    assert len(vertices) == 12
    assert len(faces) == 2 * 2 * 3
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    np.testing.assert_array_equal(np.cross(b - a, c - a), np.broadcast_to(UP, (12, 3)))
    np.testing.assert_array_equal(vertices[0], [-1.5, 1, 0])  # the picture's top left is left and up
    np.testing.assert_array_equal(places[-1], [2, 3])


def test_triangles_need_all_three_pixels():
    depth = np.zeros((2, 2))
    depth[1, 1] = np.nan
    vertices, faces, _ = surface_mesh(depth, np.broadcast_to(UP, (2, 2, 3)))
    assert (len(vertices), len(faces)) == (3, 1)


def test_a_jump_tears_the_mesh_and_a_slope_does_not():
    depth = np.zeros((4, 6))
    depth[:, 3:] = 10
    _, faces, places = surface_mesh(depth, np.broadcast_to(UP, (4, 6, 3)))
    sides = places[:, 1][faces] >= 3
    assert (sides.all(1) | ~sides.any(1)).all()
    steep = np.array([-10.0, 0, 1]) / np.sqrt(101)
    slope = np.broadcast_to(10.0 * np.arange(6), (4, 6))
    assert len(surface_mesh(slope, np.broadcast_to(steep, (4, 6, 3)))[1]) == 2 * 3 * 5


def test_perspective_puts_vertices_on_their_rays():
    camera = Perspective(20.0, (3.0, 2.0))
    vertices, *_ = surface_mesh(np.full((4, 6), 2.0), np.broadcast_to(UP, (4, 6, 3)), camera)
    np.testing.assert_allclose(vertices[0], [2 * -2.5 / 20, 2 * 1.5 / 20, -2])


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_files_hold_vertices_and_colours(tmp_path, suffix):
    vertices, faces, places = surface_mesh(np.zeros((3, 3)), np.broadcast_to(UP, (3, 3, 3)))
    colours = np.repeat(places[:, :1] * 100, 3, 1).astype(np.uint8)
    write_mesh(tmp_path / f"a{suffix}", vertices, faces, colours)
    read = trimesh.load(tmp_path / f"a{suffix}", process=False)
    np.testing.assert_allclose(read.vertices, vertices)
    np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], colours)
    with pytest.raises(UserError, match=r"\.ply or \.obj"):
        write_mesh(tmp_path / "a.stl", vertices, faces)
