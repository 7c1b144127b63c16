"""Samples where DeepSDF takes them, with true distances, and files as it writes them."""

import numpy as np
import pytest
import torch
import trimesh
from distrender.sampling import (
    NormalizationParameters,
    Samples,
    SamplingOptions,
    on_triangles,
    sample_mesh,
    sample_sdf,
    surface_points,
)
from papershelf.errors import UserError

FEW = SamplingOptions(count=2001, resolution=24)


def sphere(points):
    return points.norm(dim=-1) - 0.5


def steep(points):
    """The same surface, four times as steep: no distance."""
    return 4 * sphere(points)


@pytest.fixture
def ball(tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=2.0)
    mesh.apply_translation([5, 1, -3])
    mesh.export(tmp_path / "ball.ply")
    return tmp_path / "ball.ply"


def test_options_are_the_papers():
    options = SamplingOptions()
    assert round(options.count * options.near) == 500_000
    assert options.variances == (0.0025, 0.00025)


def test_samples_of_a_function_lie_where_they_should():
    samples = sample_sdf(sphere, FEW)
    rows = np.concatenate([samples.pos, samples.neg])
    assert rows.shape == (2001, 4)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, 3], np.linalg.norm(rows[:, :3], axis=1) - 0.5, atol=1e-6)
    assert (samples.pos[:, 3] >= 0).all()
    assert (samples.neg[:, 3] < 0).all()
    assert 0.3 < len(samples.neg) / len(rows) < 0.7
    # Half of those near have noise of 0.05 and half of 0.016 along the normal; few are anywhere.
    spread = np.quantile(np.abs(rows[:, 3]), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(spread, [0.0092, 0.0215, 0.047], rtol=0.2)


def test_points_anywhere_fill_the_ball_evenly():
    samples = sample_sdf(sphere, SamplingOptions(count=4000, near=0, resolution=8))
    radius = np.linalg.norm(np.concatenate([samples.pos, samples.neg])[:, :3], axis=1)
    assert radius.max() <= 1
    np.testing.assert_allclose(np.quantile(radius**3, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


@pytest.mark.parametrize("sdf", [sphere, steep])
def test_surface_points_lie_on_the_surface_evenly(sdf):
    points = surface_points(sdf, 3000, np.random.default_rng(0), 24)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.5, atol=1e-5)
    # Archimedes: each coordinate of points spread evenly over a sphere is uniform.
    for axis in points.T:
        np.testing.assert_allclose(np.quantile(axis, [0.25, 0.5, 0.75]), [-0.25, 0, 0.25], atol=0.04)


def test_points_on_triangles_go_by_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 3, 0]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5], [0, 0, 1]])
    points = on_triangles(vertices, faces, 5000, np.random.default_rng(0))
    large = points[:, 0] > 2
    assert abs(large.mean() - 0.9) < 0.02
    np.testing.assert_allclose(points[large].mean(0), [6, 1, 0], atol=0.05)  # its centroid
    assert (points[:, 2] == 0).all()
    with pytest.raises(UserError, match="no area"):
        on_triangles(vertices, faces[2:], 1, np.random.default_rng(0))


def test_samples_of_a_mesh(ball):
    samples, normalization = sample_mesh(ball, FEW)
    np.testing.assert_allclose(normalization.offset, [-5, -1, 3], atol=1e-5)
    assert normalization.scale == pytest.approx(1 / 1.03 / 2)
    rows = np.concatenate([samples.pos, samples.neg])
    assert rows.shape == (2001, 4)
    expected = np.linalg.norm(rows[:, :3], axis=1) - 1 / 1.03
    np.testing.assert_allclose(rows[:, 3], expected, atol=0.012)  # its triangles are chords of the sphere


def test_the_seed_decides(ball):
    for call in (lambda seed: sample_sdf(sphere, FEW, seed), lambda seed: sample_mesh(ball, FEW, seed)[0]):
        assert np.array_equal(call(1).pos, call(1).pos)
        assert not np.array_equal(call(1).pos[:50], call(2).pos[:50])


def test_files_are_deepsdfs(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    rows[3, 3] = np.nan
    samples = Samples.of(rows[:, :3], rows[:, 3])
    assert len(samples.pos) + len(samples.neg) == 19
    samples.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file.files) == ["neg", "pos"]
        assert file["pos"].dtype == np.float32
    again = Samples.load(tmp_path / "a.npz")
    assert np.array_equal(again.pos, samples.pos)
    assert np.array_equal(again.neg, samples.neg)
    # DeepSDF's own files hold NaN where its renderer failed.
    np.savez(tmp_path / "b.npz", pos=rows, neg=rows.astype(np.float64))
    assert len(Samples.load(tmp_path / "b.npz").pos) == 19


def test_normalization_there_and_back(tmp_path):
    vertices = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3] + 7
    normalization = NormalizationParameters.of(vertices)
    normal = normalization.apply(vertices)
    assert np.linalg.norm(normal, axis=1).max() == pytest.approx(1 / 1.03)
    np.testing.assert_allclose(normal.max(0) + normal.min(0), 0, atol=1e-12)
    np.testing.assert_allclose(normalization.undo(normal), vertices)
    normalization.save(tmp_path / "n.npz")
    again = NormalizationParameters.load(tmp_path / "n.npz")
    np.testing.assert_allclose(again.apply(vertices), normal, atol=1e-6)
    with pytest.raises(UserError, match="no extent"):
        NormalizationParameters.of(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pos": np.zeros((2, 4))}, "neg"),
        ({"pos": np.zeros((2, 3)), "neg": np.zeros((2, 4))}, "pos is float64"),
        (b"text", "expected an .npz file with pos and neg"),
        (None, "No such file"),
    ],
)
def test_files_of_something_else(tmp_path, content, message):
    path = tmp_path / "a.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        Samples.load(path)


def test_a_function_without_a_surface():
    with pytest.raises(UserError, match="no surface in the unit ball"):
        sample_sdf(lambda points: points.norm(dim=-1) + 1, FEW)


def test_impossible_options():
    with pytest.raises(UserError, match="near from 0 to 1"):
        SamplingOptions(near=2)


def test_gradients_are_not_needed_from_outside():
    with torch.no_grad():
        assert len(sample_sdf(sphere, FEW).pos)
