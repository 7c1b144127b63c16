"""Codes found from points, depths and silhouettes, on a decoder of capsules whose true codes are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from distrender import camera_files, completion, decoder_files, observations
from distrender.cameras import Camera
from distrender.cli import main
from distrender.cli_complete import complete_command, demo_command
from distrender.completion import OURS, PAPER, Frame, Recipe, agreement, complete
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.decoder_files import Experiment
from distrender.latent_fit import LatentFitOptions, ValueSamples, fit_latent
from distrender.observations import Observation
from distrender.pyramid import trace_image
from distrender.tracing import MarchOptions, sphere_trace
from papershelf.errors import UserError
from papershelf.images import read_image, write_image

TRUTH = (0.1, -0.1)  # a code that is not among the experiment's
FAST = Recipe(iterations=60, rate=2e-2, decay=0.05, latent=0.01, rays=64)


def capsule(codes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Signed distances ``[S, P]`` of upright capsules: radius 0.35 + code 0, half length 0.3 + code 1."""
    radius, half = 0.35 + codes[:, None, 0], 0.3 + codes[:, None, 1]
    x, y, z = points.unbind(-1)
    return (x.square() + z.square() + (y.abs() - half).clamp(min=0).square()).sqrt() - radius


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """A decoder trained for a second or two on capsules, with the codes of nine."""
    torch.manual_seed(0)
    decoder = DeepSDFDecoder(DecoderConfig(latent=2, hidden=48, layers=3, skip=(2,)))
    adam = torch.optim.Adam(decoder.parameters(), 1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 400)
    for _ in range(400):
        codes, points = torch.rand(8, 2) * 0.4 - 0.2, torch.rand(8, 256, 3) * 2 - 1
        loss = (decoder(codes[:, None], points) - capsule(codes, points).clamp(-0.5, 0.5)).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    assert loss < 0.01
    codes = torch.cartesian_prod(*[torch.tensor([-0.15, 0.0, 0.15])] * 2)
    return Experiment(decoder.eval().requires_grad_(False), codes)


@pytest.fixture(scope="module")
def seen(experiment) -> tuple[torch.Tensor, Camera]:
    """Depths of the shape of TRUTH, 0 where there is none, and the camera."""
    camera = Camera.orbit(1, size=(40, 40))
    sdf = experiment.decoder.with_code(torch.tensor(TRUTH))
    with torch.no_grad():
        hit = trace_image(sdf, camera, MarchOptions(ratio=1.0, finish="secant"), steps=(3, 3, 100), gradient="none")
    return torch.where(hit.mask[0], hit.depth[0], 0), camera


@pytest.fixture(scope="module")
def sparse(seen) -> Observation:
    depth, camera = seen
    return observations.from_depth(depth, camera, mask=depth > 0, keep=15)


def off(code: torch.Tensor) -> float:
    return float((code - torch.tensor(TRUTH)).abs().max())


def test_samples_say_what_the_points_mean():
    points, normals = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]), torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    made = ValueSamples.of(Observation(points, normals), 0.1, 4)
    assert torch.equal(made.on, torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0.6, 0, 0], [0.4, 0, 0]]))
    torch.testing.assert_close(made.targets, torch.tensor([0, 0, 0.1, -0.1]))
    assert not len(made.free)
    # Seen from above: the second point's samples lie along its ray, the first's still along its normal.
    made = ValueSamples.of(Observation(points, normals, torch.tensor([[0.5, 2.0, 0], [0, 2.0, 0]])), 0.1, 4)
    torch.testing.assert_close(made.on[2:], torch.tensor([[0.6, 0, 0], [0, 0.6, 0], [0.4, 0, 0], [0, 0.4, 0]]))
    assert len(made.free) == 8
    known = ValueSamples.of(
        Observation(points, normals, torch.tensor([[0.5, 2.0, 0], [0, 2.0, 0]])), 0.1, 4, oblique=False
    )
    assert torch.equal(known.on, torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0.6, 0, 0], [0.4, 0, 0]]))
    height = made.free[:, 1].reshape(2, 4)
    assert (height < torch.tensor([[0.8661], [1.0]])).all()  # in the unit ball
    assert (height > torch.tensor([[0.1], [0.6]])).all()  # and before the points


def test_values_lose_nothing_on_a_field_that_agrees(experiment):
    linear = DeepSDFDecoder(DecoderConfig(latent=2, hidden=2, layers=1, skip=(), final_tanh=0))
    with torch.no_grad():  # relu(x) - relu(-x) = x, whatever the code
        for layer, values in (("lin0", [[0, 0, 1.0, 0, 0], [0, 0, -1.0, 0, 0]]), ("lin1", [[1.0, -1.0]])):
            linear.get_submodule(layer).weight.copy_(torch.tensor(values))
            linear.get_submodule(layer).bias.zero_()
    points = torch.tensor([[0.0, 0.2, 0.1], [0.0, -0.3, 0.2]])
    made = ValueSamples.of(Observation(points, torch.zeros(2, 3), points + torch.tensor([2.0, 0, 0])), 0.05, 3)
    torch.testing.assert_close(made.loss(linear, torch.zeros(3, 2), 0.1), torch.zeros(3))
    # From behind, all samples before and behind are off by 0.1 and free space, 0.15 to 0.9 deep, is inside.
    made = ValueSamples.of(Observation(points[:1], torch.zeros(1, 3), points[:1] - torch.tensor([2.0, 0, 0])), 0.05, 3)
    expected = 2 * 0.1 / 3 + float(-made.free[:, 0].mean())
    torch.testing.assert_close(made.loss(linear, torch.zeros(1, 2), 0.1), torch.tensor([expected]))


def test_a_fit_by_values_finds_the_code_from_each_start_alone(experiment, seen):
    options = LatentFitOptions(iterations=150, rate=2e-2, prior=0.0)
    dense = observations.from_depth(*seen, keep=200)
    starts = torch.tensor([[0.0, 0.0], [-0.15, 0.15]])
    codes, losses = fit_latent(experiment.decoder, starts, dense, options)
    assert off(codes[losses.argmin()]) < 0.03
    alone = torch.cat([fit_latent(experiment.decoder, start[None], dense, options)[0] for start in starts])
    torch.testing.assert_close(codes, alone, atol=1e-3, rtol=0)


def test_the_nearest_training_codes_come_first(experiment, sparse):
    starts = completion.starting_codes(experiment, sparse, replace(PAPER, nearest=3), seed=0)
    assert starts[0].tolist() == pytest.approx([0.15, -0.15])
    assert starts.shape == (3, 2)
    drawn = completion.starting_codes(experiment, sparse, replace(PAPER, sigma=0.5), seed=0)
    assert torch.equal(drawn, completion.starting_codes(experiment, sparse, replace(PAPER, sigma=0.5), seed=0))
    assert not torch.equal(drawn, completion.starting_codes(experiment, sparse, replace(PAPER, sigma=0.5), seed=1))
    without = Experiment(experiment.decoder, torch.zeros(0, 2))
    assert completion.starting_codes(without, sparse, replace(PAPER, nearest=3), seed=0).shape == (1, 2)


def test_rendering_finds_the_code_from_few_depths_and_a_silhouette(experiment, sparse):
    told = []
    found = complete(experiment, sparse, FAST, after=lambda done, whole: told.append((done, whole)))
    assert off(found.path[0]) > 0.05  # where it began
    assert off(found.code) < 0.03
    assert found.path.shape == (61, 2)
    assert told == [(done, 60) for done in range(1, 61)]
    assert found.history[-1]["total"] < found.history[0]["total"] / 4
    assert found.queries > 0
    again = complete(experiment, sparse, FAST)
    assert torch.equal(again.code, found.code)


def test_a_silhouette_alone_shrinks_and_grows_the_shape(experiment, seen):
    depth, camera = seen
    middle = observations.from_depth(depth, camera, mask=depth > 0, keep=1)
    for start in ([0.2, 0.2], [-0.2, -0.2]):  # too large, and too small
        placed = Experiment(experiment.decoder, torch.tensor([start]))
        only = replace(FAST, depth=0.0, nearest=1, iterations=100, rays=200, edge=0.5)
        assert off(complete(placed, middle, only).code) < 0.03


def test_the_silhouette_s_edge_is_where_it_begins_and_ends():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[20:80, 30:70] = True
    edge = completion._edge(mask)
    assert edge[20, 50]
    assert edge[17:23, 50].all()
    assert not edge[16, 50]
    assert not edge[23, 50]
    assert not edge[50, 50]
    assert not edge[0, 0]


def test_a_frame_s_codes_are_distributed_evenly(experiment):
    torch.manual_seed(0)
    codes = torch.randn(400, 3) @ torch.tensor([[2.0, 0, 0], [0.3, 0.5, 0], [0, 0, 0.8]]) + torch.tensor([1.0, 2, 3])
    frame = Frame.around(codes[0], codes, 400)
    assert torch.equal(frame.code(torch.zeros(3)), codes[0])
    at = torch.linalg.solve(frame.axes.T, (codes - codes[0]).T).T
    torch.testing.assert_close(frame.code(at), codes)
    torch.testing.assert_close(torch.cov(at.T), torch.eye(3), atol=1e-3, rtol=0)
    # Those nearest are of the start's own cluster; too few say nothing.
    far = Frame.around(codes[5] + 100, torch.cat([codes, codes + 100]), 400)
    torch.testing.assert_close(far.axes.T @ far.axes, frame.axes.T @ frame.axes, atol=1e-3, rtol=0)
    assert torch.equal(Frame.around(codes[0], codes[:4], 64).axes, torch.eye(3))


def test_another_start_is_tried_and_must_end_clearly_better(experiment, sparse):
    good, bad = torch.tensor([[0.1, -0.1], [-0.15, 0.15]])
    nearer = bad + torch.tensor([2e-3, -2e-3])
    short = replace(FAST, iterations=5, rate=1e-4, rays=4096)
    for starts, runs, expected in (([bad, good], 2, good), ([good, bad], 1, good), ([bad, nearer], 2, bad)):
        told = []
        found = complete(
            experiment, sparse, short, starts=torch.stack(starts), after=lambda *at, told=told: told.append(at)
        )
        assert told[-1] == (5 * runs, 5 * runs)
        torch.testing.assert_close(found.code, expected, atol=9e-4, rtol=0)


def test_a_recipe_of_ours_finds_the_code_too(experiment, sparse):
    found = complete(experiment, sparse, replace(OURS, nearest=2, warm=20))
    assert {"spread", "values", "depth", "inside", "outside"} < set(found.history[0])
    assert off(found.code) < 0.03


def test_rays_that_miss_are_pulled_and_surfaces_in_front_pushed(experiment, seen):
    depth, camera = seen
    rim = torch.zeros_like(depth)
    row = (depth > 0).any(1).nonzero()[2]  # near the top, which a short capsule does not reach
    rim[row] = depth[row]
    for start, hit in (([-0.1, -0.2], False), ([0.2, 0.2], True)):
        code = torch.tensor(start)
        observation = observations.from_depth(rim, camera)
        found = sphere_trace(experiment.decoder.with_code(code), *observation.rays[:2], completion.MARCH)
        assert found.mask.all() == hit
        after = complete(Experiment(experiment.decoder, code[None]), observation, replace(FAST, nearest=1)).code
        trace = sphere_trace(experiment.decoder.with_code(after), *observation.rays[:2], completion.MARCH)
        assert trace.mask.float().mean() > 0.7
        assert (trace.depth - observation.rays[2])[trace.mask].abs().median() < 0.02


def test_dense_depths_bring_normals_in(experiment, seen):
    dense = observations.from_depth(*seen)
    found = complete(experiment, dense, FAST)
    assert {"depth", "normal", "latent", "total"} == set(found.history[0])
    assert found.history[-1]["normal"] < found.history[0]["normal"]
    assert off(found.code) < 0.03


def test_points_without_a_camera_are_completed_by_their_values(experiment, sparse):
    points = Observation(sparse.points, torch.zeros_like(sparse.points))
    found = complete(experiment, points, replace(FAST, values=1.0, nearest=2, warm=20))
    assert set(found.history[0]) == {"values", "latent", "total"}
    assert found.queries == 0
    assert float(experiment.decoder(found.code, points.points).abs().mean()) < 0.02


def test_agreement_of_a_shape_with_its_own_picture(experiment, sparse):
    figures = agreement(experiment.decoder.with_code(torch.tensor(TRUTH)), sparse)
    assert figures["iou"] > 0.99
    assert figures["hit"] == 1
    assert figures["depth"] < 1e-3
    assert figures["distance"] < 1e-3
    other = agreement(experiment.decoder.with_code(torch.tensor([-0.2, -0.2])), sparse)
    assert other["iou"] < 0.6
    assert other["hit"] < 1


def test_impossible_recipes_are_told():
    for field in ("depth", "latent", "iterations", "nearest"):
        with pytest.raises(UserError, match=f"{field} must be 0 or more"):
            Recipe(**{field: -1})
    with pytest.raises(UserError, match="rate must be above 0"):
        Recipe(rate=0)
    with pytest.raises(UserError, match="a latent fit needs"):
        LatentFitOptions(eta=0)


@pytest.fixture
def folder(experiment, seen, tmp_path):
    """A user's files: decoder, depth in millimetres, camera, silhouette, points."""
    depth, camera = seen
    decoder_files.save(tmp_path / "capsules.safetensors", experiment.decoder, experiment.codes)
    write_image(tmp_path / "depth.png", (1000 * depth).round().numpy().astype(np.uint16)[..., None])
    write_image(tmp_path / "mask.png", ((depth > 0) * 255).numpy().astype(np.uint8)[..., None])
    camera_files.write(tmp_path / "camera.json", camera, ["front"])
    np.save(tmp_path / "points.npy", observations.from_depth(depth, camera).points.numpy())
    return tmp_path


def run(folder, *words: object):
    known = ["--decoder", folder / "capsules.safetensors", "--iterations", 20, "--resolution", 32]
    return CliRunner().invoke(complete_command, [str(word) for word in (*words, *known, "-o", folder / "shape.ply")])


def test_files_are_completed_to_files(folder):
    taken = ("--camera", folder / "camera.json", "--view", "front", "--depth-scale", 0.001)
    given = (folder / "depth.png", *taken, "--mask", folder / "mask.png", "--keep", 30)
    wanted = ("--code", folder / "code.npy", "--pictures", folder / "steps")
    result = run(folder, *given, *wanted, "--compare", "sphere(0.5)", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert report["points"] == 30
    assert report["iou"] > 0.9
    assert report["depth"] < 0.03
    assert report["chamfer_x1000"] > 1
    assert np.load(folder / "code.npy").shape == (2,)
    made = trimesh.load(folder / "shape.ply")
    np.testing.assert_allclose(made.bounds[1], [0.45, 0.65, 0.45], atol=0.08)
    names = ["observed", *(f"iteration_{number:04d}" for number in (0, 5, 10, 20))]
    tiles = [read_image(folder / "steps" / f"{name}.png") for name in (*names, "truth")]
    np.testing.assert_array_equal(read_image(folder / "steps" / "sheet.png"), np.concatenate(tiles, 1))
    assert (tiles[0] == np.round(255 * 0.82)).all(-1).any()  # the silhouette
    assert (tiles[-2] < 255).any()


def test_points_are_completed_with_and_without_a_camera(folder):
    for known in ((), ("--camera", folder / "camera.json"), ("--recipe", "paper")):
        result = run(folder, folder / "points.npy", *known, "--pictures", folder / "steps")
        if known[:1] == ("--camera",):  # then a .npy is a depth picture
            assert result.exit_code == 1
            assert "needs one camera of its size" in result.output
        else:
            assert result.exit_code == 0, result.output
            assert "mean distance of the points" in result.output
            assert (folder / "shape.ply").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["depth.png"], "needs the camera"),
        (["depth.png", "--camera", "camera.json"], "check the units"),
        (["depth.png", "--camera", "camera.json", "--view", "back"], "no view 'back'"),
        (["points.npy", "--mask", "mask.png"], "needs the camera"),
        (["points.npy", "--mask", "depth"], "no depth picture"),
        (["points.npy", "--code", "code.pth"], "written as .npy"),
        (["points.npy", "-o", "shape.xyz"], "meshes are written as"),
        (["missing.npy"], "cannot read"),
    ],
)
def test_faults_take_one_line(folder, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    known = ["--decoder", "capsules.safetensors", *([] if "-o" in words else ["-o", "shape.ply"])]
    result = CliRunner().invoke(complete_command, [*words, *known])
    assert result.exit_code == 1
    assert said in result.output
    assert not (folder / "shape.ply").exists()


@pytest.mark.slow
def test_the_demo_comes_close_to_a_shape_never_trained_on(tmp_path):
    result = CliRunner().invoke(demo_command, ["-o", str(tmp_path / "demo"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert report["points"] == 50
    assert report["iou"] > 0.95
    assert report["chamfer_x1000"] < 2
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"completed.ply", "code.npy", "depth.npy", "camera.json", "mask.png", "sheet.png", "truth.png"} <= made
    files = tmp_path / "demo"
    again = ["complete", files / "depth.npy", "--camera", files / "camera.json", "--mask", files / "mask.png"]
    result = CliRunner().invoke(main, [str(word) for word in (*again, "-o", files / "again.ply")])
    assert result.exit_code == 0, result.output
    assert (files / "again.ply").read_bytes() == (files / "completed.ply").read_bytes()
    shown = ["render", "procedural", "--code", files / "code.npy", "--size", 64, "-o", files / "code.png"]
    result = CliRunner().invoke(main, [str(word) for word in shown])
    assert result.exit_code == 0, result.output
