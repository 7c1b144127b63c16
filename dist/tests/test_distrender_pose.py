"""Poses found again: Jacobians, refinement, search, and the command through real files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distrender import camera_files, procedural
from distrender.cameras import Camera
from distrender.cli import main
from distrender.cli_pose import warnings
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.grid import GridSDF
from distrender.meshing import sample
from distrender.pose import (
    Pose,
    Residuals,
    Seen,
    eroded,
    looseness,
    moved,
    rays_by_change,
    refine,
    rotation_between,
    samples_of,
)
from distrender.pose_search import Lattice, PoseOptions, all_around, find_pose, stand_in
from distrender.rendering import trace_view
from papershelf.errors import UserError
from papershelf.images import read_image, write_image
from scipy.spatial.transform import Rotation

SIZE = (96, 112)
FEW = PoseOptions(azimuths=8, elevations=(-10.0, 30.0), refined=4, finished=2)


@pytest.fixture(scope="module", name="mug")
def _mug():
    """An asymmetric shape: its handle tells the azimuth, its opening up from down."""
    return GridSDF(sample(procedural.shape("mug", 3), 48, 1.05), -1.05, 1.05).requires_grad_(False)


@pytest.fixture(scope="module", name="true")
def _true():
    eye, target = (torch.tensor(v, dtype=torch.float64) for v in ((1.2, 1.1, 2.0), (0.05, -0.03, 0.02)))
    return Camera.look_at(eye, target, size=SIZE)


@pytest.fixture(scope="module", name="hit")
def _hit(mug, true):
    return trace_view(mug, true.to(torch.float32))


def seen_depth(hit):
    return torch.where(hit.mask, hit.depth, 0)[0]


NEAR = torch.tensor([0.08, -0.06, 0.05, 0.04, 0.02, 0.1, 0.0, 0.0], dtype=torch.float64)


def assert_found(camera, true, degrees=0.5, share=0.01):
    assert rotation_between(camera.rotation, true.rotation).item() < degrees
    assert (camera.eye - true.eye).norm() < share * true.eye.norm()


def test_moved_turns_the_shape_about_its_origin(true):
    change = torch.tensor([0.3, -0.2, 0.1, 0.4, 0.5, 0.6, 0.7], dtype=torch.float64)
    found = moved(true, change)
    turn = torch.from_numpy(Rotation.from_rotvec(change[:3].numpy()).as_matrix())
    torch.testing.assert_close(found.rotation[0], turn @ true.rotation[0])
    torch.testing.assert_close(found.translation[0], true.translation[0] + change[3:6])
    assert found.intrinsics[0, 0, 0].item() == pytest.approx(true.intrinsics[0, 0, 0].item() * np.exp(0.7))
    assert torch.equal(found.intrinsics[0, :2, 2], true.intrinsics[0, :2, 2])
    assert rotation_between(found.rotation, true.rotation).item() == pytest.approx(change[:3].norm().rad2deg().item())


def test_rays_change_as_finite_differences_say(true):
    camera = moved(true, NEAR)
    pixels = torch.rand(6, 2, dtype=torch.float64) * 80
    found = rays_by_change(camera, camera.rays_through(pixels)[1][0])
    for k in range(7):
        shift = torch.zeros(8, dtype=torch.float64)
        shift[k] = 1e-6
        ends = [torch.cat(moved(camera, way * shift).rays_through(pixels), -1)[0] for way in (1, -1)]
        torch.testing.assert_close(found[..., k], (ends[0] - ends[1]) / 2e-6, atol=1e-8, rtol=1e-6)


def test_the_jacobian_is_that_of_finite_differences(mug, true, hit):
    """Of all residuals by all eight unknowns, from a pose that is off."""
    normals = (hit.normal[0] @ true.rotation[0].float().mT) * hit.mask[0, ..., None]
    seen = Seen(hit.mask[0], 1.3 * seen_depth(hit), normals)
    residuals = Residuals(mug, samples_of(seen, 40, 40), width=0.05, deep=0.05)
    pose = Pose(moved(true, 0.3 * NEAR), 1.25)
    values, weights, jacobian = residuals(pose)
    assert len(values) == len(weights) == len(jacobian) == 40 * 5
    step = 2e-3  # the march ends within 5e-5, and a grid's normals jump at its cells
    for k in range(8):
        shift = torch.zeros(8, dtype=torch.float64)
        shift[k] = step
        ends = [
            residuals(Pose(moved(pose.camera, sign * shift), pose.scale * float((sign * shift[7]).exp())))[0]
            for sign in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * step)
        outline_and_depth = slice(0, 80)
        error = (jacobian[:, k] - numeric)[outline_and_depth].abs()
        assert error.median() < 0.02 * numeric[outline_and_depth].abs().max() + 1e-6
    # Of normals that do not change from cell to cell, only the turn itself: at a fixed point, w x n.
    assert jacobian[80:, :3].abs().max() > 0.05


def test_eroded_shapes_lie_inside(mug):
    points = torch.rand(50, 3) - 0.5
    torch.testing.assert_close(eroded(mug, 0.1)(points), mug(points) + 0.1, atol=1e-6, rtol=0)
    field = lambda p: p.norm(dim=-1) - 0.5  # noqa: E731
    torch.testing.assert_close(eroded(field, 0.1)(points), field(points) + 0.1)


def test_a_depth_picture_gives_the_pose(mug, true, hit):
    residuals = Residuals(mug, samples_of(Seen(hit.mask[0], seen_depth(hit)), 100, 100), width=0.05, deep=0.05)
    pose, cost = refine(residuals, Pose(moved(true, NEAR)))
    assert_found(pose.camera, true, 0.05, 0.001)
    assert cost < 1e-5


def test_a_silhouette_gives_the_pose(mug, true, hit):
    seen = Seen(hit.mask[0])
    pose, _ = refine(Residuals(mug, samples_of(seen, 400, 0), width=0.05, deep=0.03), Pose(moved(true, NEAR)))
    pose, _ = refine(Residuals(mug, samples_of(seen, 400, 0, strict=True), width=0.02, deep=0.01), pose)
    assert_found(pose.camera, true, 0.8, 0.015)  # of a hundred pixels; the slow test has more


def test_scale_and_focal_length_are_found_with_depths(mug, true, hit):
    residuals = Residuals(mug, samples_of(Seen(hit.mask[0], 3 * seen_depth(hit)), 100, 200), width=0.2, deep=0.05)
    start = moved(true, torch.cat([0.5 * NEAR[:6], torch.tensor([0.05])]).double())
    pose, _ = refine(residuals, Pose(start, 2.9), focal=True, scale=True, iterations=40)
    assert_found(pose.camera, true, 0.3, 0.01)
    assert pose.scale == pytest.approx(3, rel=0.01)
    assert pose.camera.intrinsics[0, 0, 0].item() == pytest.approx(true.intrinsics[0, 0, 0].item(), rel=0.01)


def test_normals_count(mug, true, hit):
    """Normals alone, from a pose that is turned but not shifted."""
    normals = (hit.normal[0] @ true.rotation[0].float().mT) * hit.mask[0, ..., None]
    residuals = Residuals(mug, samples_of(Seen(normals=normals), 0, 100), width=0.05, deep=0.05)
    turned = torch.tensor([0.0, 0.0, 0.15, 0, 0, 0], dtype=torch.float64)
    pose, cost = refine(residuals, Pose(moved(true, turned)))
    assert rotation_between(pose.camera.rotation, true.rotation).item() < 2
    assert cost < residuals.cost(*residuals(Pose(moved(true, turned)))[:2]) / 5


def test_what_lies_in_front_of_the_shape_counts_little(mug, true, hit):
    depth = seen_depth(hit)
    covered = hit.mask[0].nonzero()[:, 0].float().quantile(0.8).long()
    depth[covered:] *= 0.7
    depth[~hit.mask[0]] = 0
    residuals = Residuals(mug, samples_of(Seen(hit.mask[0], depth), 100, 300), width=0.02, deep=0.05)
    pose, _ = refine(residuals, Pose(moved(true, 0.5 * NEAR)))
    assert_found(pose.camera, true)


def test_search_from_all_around(mug, true, hit):
    first = Camera.orbit(1, distance=2.0, size=SIZE)
    found = find_pose(mug, Seen(hit.mask[0], seen_depth(hit)), first, FEW)
    assert_found(found.pose.camera, true, 0.1, 0.002)
    assert not found.ambiguous


def test_a_shape_that_looks_the_same_all_around_is_ambiguous():
    ring = GridSDF(sample(procedural.shape("bowl", 1), 32, 1.05), -1.05, 1.05).requires_grad_(False)
    camera = Camera.orbit(1, size=(48, 48))
    hit = trace_view(ring, camera)
    options = PoseOptions(azimuths=6, elevations=(20.0,), refined=2, finished=2, rays=100)
    found = find_pose(ring, Seen(hit.mask[0]), camera, options)
    assert found.ambiguous
    assert found.apart > 15


def test_what_hardly_shows_is_told(mug, true, hit):
    """A bowl may turn about its axis unseen, a mug whose handle shows may not."""
    bowl = GridSDF(sample(procedural.shape("bowl", 1), 32, 1.05), -1.05, 1.05).requires_grad_(False)
    camera = Camera.orbit(1, size=(48, 48)).to(torch.float64)
    seen = Seen(trace_view(bowl, camera.to(torch.float32)).mask[0])
    free = looseness(Residuals(bowl, samples_of(seen, 100, 0), width=0.02, deep=0.03), Pose(camera))
    seen = Seen(hit.mask[0], seen_depth(hit))
    bound = looseness(Residuals(mug, samples_of(seen, 100, 200), width=0.02, deep=0.03), Pose(true))
    assert free > 20
    assert bound < 10


def test_starts_are_brought_to_the_silhouette(mug, true, hit):
    lattice = Lattice(Seen(hit.mask[0]), 24)
    far = moved(true, torch.tensor([0, 0, 0, 0.4, -0.3, 1.0], dtype=torch.float64))
    aligned = lattice.aligned(mug, far, scale=False)
    assert (aligned.translation - true.translation).norm() < 0.1


def test_rolls_turn_the_picture():
    camera = Camera.orbit(1, size=SIZE).to(torch.float64)
    around = all_around(camera, PoseOptions(azimuths=2, elevations=(0.0,), rolls=4))
    assert len(around) == 1 + 8
    assert rotation_between(around.rotation[1], around.rotation[3]).item() == pytest.approx(90)
    torch.testing.assert_close(around.rotation[1, 2], around.rotation[3, 2])  # the same line of sight


def test_what_cannot_be_used_is_told(mug):
    with pytest.raises(UserError, match="none was given"):
        Seen()
    with pytest.raises(UserError, match="must have one size"):
        Seen(torch.ones(4, 4, dtype=torch.bool), torch.ones(4, 5))
    with pytest.raises(UserError, match="shows nothing"):
        Seen(depth=torch.zeros(4, 4))
    with pytest.raises(UserError, match="camera of the picture's size"):
        find_pose(mug, Seen(depth=torch.ones(4, 4)), Camera.orbit(1, size=(5, 5)))


def test_networks_are_first_looked_at_as_grids(mug):
    network = DeepSDFDecoder(DecoderConfig(2, 12, 2, ())).with_code(torch.zeros(2))
    grid = stand_in(network, 8)
    assert isinstance(grid, GridSDF)
    corner = torch.full((1, 3), 1.05)
    torch.testing.assert_close(grid(corner), network(corner), atol=1e-5, rtol=0, check_stride=False)
    assert stand_in(mug, 8) is mug


SHAPE = "union(translate(sphere(0.5), 0.2, 0, 0), box(0.9, 0.1, 0.2), translate(box(0.1, 0.6, 0.1), -0.6, 0.2, 0.1))"


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module", name="pictures")
def _pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for what, name in (("silhouette", "dark.png"), ("depth", "depth.npy"), ("normal", "normal.png")):
        view = ("--size", 80, "--azimuth", 75, "--elevation", 25, "--what", what, "-o", folder / name)
        result = run("render", SHAPE, *view)
        assert result.exit_code == 0, result.output
    depth = np.load(folder / "depth.npy")
    write_image(folder / "depth.png", np.where(np.isfinite(depth), depth * 10_000, 0).astype(np.uint16)[..., None])
    alpha = np.dstack([np.full((80, 80, 3), 90), np.isfinite(depth) * 255]).astype(np.uint8)
    write_image(folder / "alpha.png", alpha)
    return folder


START = ("--azimuth", 70, "--elevation", 22, "--near")


@pytest.mark.parametrize("options", [(), ("--depth-scale", 0.0001, "depth.png"), ("--normals", "normal.png")])
def test_the_command_with_depths(tmp_path, pictures, options):
    picture = pictures / ("depth.png" if "depth.png" in options else "depth.npy")
    extra = [pictures / word if str(word).endswith("normal.png") else word for word in options if word != "depth.png"]
    output, overlay = tmp_path / "pose.json", tmp_path / "overlay.png"
    result = run("pose", SHAPE, picture, *extra, *START, "--overlay", overlay, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["azimuth"] == pytest.approx(75, abs=0.2)
    assert report["elevation"] == pytest.approx(25, abs=0.2)
    assert report["roll"] == pytest.approx(0, abs=0.2)
    assert report["distance"] == pytest.approx(2.5, rel=0.003)
    assert report["iou"] > 0.98
    assert report["depth_error"] < 2e-3
    found = camera_files.read_named(output)
    assert found.names == (picture.stem,)
    assert_found(found.cameras, Camera.orbit(1, elevation=25.0, first=75.0, size=(80, 80)), 0.2, 0.003)
    shown = read_image(overlay)
    assert shown.shape == (480, 480, 3)
    assert (shown == (255, 120, 0)).all(-1).any()


@pytest.mark.parametrize("name", ["dark.png", "alpha.png"])
def test_the_command_with_silhouettes(tmp_path, pictures, name):
    result = run("pose", SHAPE, pictures / name, *START, "--overlay", tmp_path / "o.png", "-o", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    assert "IoU 0.9" in result.output
    found = camera_files.read(tmp_path / "p.json")
    assert_found(found, Camera.orbit(1, elevation=25.0, first=75.0, size=(80, 80)), 1.5, 0.03)


def test_the_command_begins_at_a_file_of_cameras(tmp_path, pictures):
    camera = Camera.orbit(2, elevation=20.0, first=72.0, focal=2 * 80 * 150 / 137, size=(160, 160))
    camera_files.write(tmp_path / "c.json", camera, ["a.png", "b.png"])
    given = ("--camera", tmp_path / "c.json", "--view", "a.png", "--near", "-o", tmp_path / "p.json")
    result = run("pose", SHAPE, pictures / "depth.npy", *given)
    assert result.exit_code == 0, result.output
    assert_found(camera_files.read(tmp_path / "p.json"), Camera.orbit(1, elevation=25.0, first=75.0, size=(80, 80)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dark.png", "-o", "p.txt"], "written as .json"),
        (["dark.png", "--mask", "dark.png", "-o", "p.json"], "is a silhouette already"),
        (["dark.png", "--free", "scale", "-o", "p.json"], "--free scale needs depths"),
        (["depth.npy", "--normals", "depth.png", "-o", "p.json"], "normals are an RGB picture"),
        (["full.npy", "-o", "p.json"], "has a depth at every pixel"),
        (["depth.npy", "--camera", "c.json", "--view", "x", "-o", "p.json"], "no view 'x'"),
        (["depth.npy", "--camera", "c.json", "-o", "p.json"], "pictures of [10, 20]"),
    ],
)
def test_bad_input_is_told_in_one_line(pictures, monkeypatch, words, says):
    monkeypatch.chdir(pictures)
    np.save("full.npy", np.ones((8, 8), np.float32))
    camera_files.write("c.json", Camera.orbit(1, size=(10, 20)))
    result = run("pose", SHAPE, *words)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("p.json").exists()


def test_warnings():
    second = {"azimuth": 1.0, "elevation": 2.0, "roll": 3.0, "worse_by": 0.001}
    sure = {"score": 0.01, "ambiguous": False, "loose_degrees": 1.0, "second": second | {"worse_by": 0.3}}
    assert warnings(sure, 0.02) == []
    assert "poor fit (score 0.40" in warnings(sure | {"score": 0.4}, 0.02)[0]
    assert "azimuth 1.0" in warnings(sure | {"ambiguous": True, "second": second}, 0.02)[0]
    assert "turn by 30 degrees" in warnings(sure | {"ambiguous": True, "loose_degrees": 30.0}, 0.02)[0]


def test_depths_along_the_axis_need_the_focal_length(pictures):
    result = run("pose", SHAPE, pictures / "depth.npy", "--depth-is", "z", "--free", "focal", "-o", "p.json")
    assert result.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["silhouette", "depth"])
def test_a_known_pose_of_a_real_mesh_is_found_again(tmp_path, what):
    """Spot, or a mug where the data set is not there, from all around."""
    if data := os.environ.get("PAPERSHELF_DATA"):
        shape = Path(data) / "meshes" / "spot.obj"
    else:
        shape = tmp_path / "mug.npz"
        GridSDF(sample(procedural.shape("mug", 3), 96, 1.05), -1.05, 1.05).save(shape)
    picture = tmp_path / ("d.npy" if what == "depth" else "s.png")
    view = ("--size", 256, "--azimuth", 200, "--elevation", 35)
    assert run("render", shape, *view, "--what", what, "-o", picture).exit_code == 0
    result = run("pose", shape, picture, "-o", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    assert_found(camera_files.read(tmp_path / "p.json"), Camera.orbit(1, elevation=35.0, first=200.0))
