"""Training an auto-decoder: equations by hand, what is prepared, going on after a stop, and the command."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from distrender import decoder_files, procedural, reconstruction
from distrender.autodecoder import Trainer, TrainingOptions
from distrender.cli import main
from distrender.sampling import NormalizationParameters, Samples, SamplingOptions
from distrender.training import RunOptions, train
from distrender.training_data import ALONE, TrainingSet, find, open_training_set
from papershelf.errors import UserError
from papershelf.processes import joined

TINY = TrainingOptions(latent=3, hidden=16, layers=3, skip=2, steps=4, batch=2, points=32, samples=200)
QUIET = RunOptions(device="cpu", save_every=1000, shown=0)


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def spheres(radii, count=400) -> TrainingSet:
    """Exact samples of spheres."""
    rng = np.random.default_rng(0)
    parts = []
    for radius in radii:
        points = rng.uniform(-1, 1, (count, 3))
        parts.append(Samples.of(points, np.linalg.norm(points, axis=1) - radius))
    starts = [torch.tensor([0, *np.cumsum([len(getattr(p, side)) for p in parts])]) for side in ("pos", "neg")]
    pos, neg = (torch.from_numpy(np.concatenate([getattr(p, side) for p in parts])) for side in ("pos", "neg"))
    return TrainingSet(tuple(f"r{r}" for r in radii), pos, neg, *starts)


def test_half_of_what_is_drawn_is_outside():
    data = spheres([0.5, 0.8])
    drawn = data.draw(torch.tensor([1, 0]), 40, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 40, 4)
    assert (drawn[..., 3] >= 0).sum(1).tolist() == [20, 20]
    for rows, radius in zip(drawn, (0.8, 0.5), strict=True):  # each from its own shape
        torch.testing.assert_close(rows[:, :3].norm(dim=1) - radius, rows[:, 3])


def test_a_step_is_equations_4_and_9():
    """Against autograd on the sums written out, with Adam's first step: the sign of the gradient times the rate."""
    trainer = Trainer(TINY, spheres([0.5, 0.8, 0.3]), ALONE)
    shapes, samples = trainer.drawn()
    decoder, codes = trainer.on_cpu()
    codes.requires_grad_()
    loss = 0.0
    for number, rows in zip(shapes.tolist(), samples, strict=True):
        for row in rows:
            value = decoder(codes[number], row[None, :3])[0]
            loss = loss + (value.clamp(-0.1, 0.1) - row[3].clamp(-0.1, 0.1)).abs() / (2 * 32)
        loss = loss + 1e-4 * (codes[number] ** 2).sum() / 2
    loss.backward()
    before = trainer.model.codes.detach().clone()
    trainer.update()
    moved = trainer.model.codes.detach() - before
    expected = -1e-3 * codes.grad / (codes.grad.abs() + 1e-8)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(trainer.model.decoder.lin0.weight.grad, decoder.lin0.weight.grad, rtol=1e-4, atol=1e-7)


def test_each_shape_is_met_once_an_epoch_and_rates_fall_to_nothing():
    trainer = Trainer(TINY, spheres([0.2, 0.3, 0.4, 0.5]), ALONE)
    met = [trainer.drawn()[0]]
    assert trainer.schedule() == 1
    trainer.update()
    met.append(trainer.drawn()[0])
    assert sorted(torch.cat(met).tolist()) == [0, 1, 2, 3]
    trainer.step = 2
    assert trainer.schedule() == pytest.approx(0.5)
    trainer.step = trainer.total
    assert trainer.schedule() == pytest.approx(0)


def test_it_learns_spheres():
    options = replace(TINY, hidden=32, skip=0, steps=300, points=200, lr=5e-3, code_lr=1e-2)
    data = spheres([0.4, 0.7], 2000)
    trainer = Trainer(options, data, ALONE)
    for _ in range(options.steps):
        trainer.update()
    decoder, codes = trainer.on_cpu()
    with torch.no_grad():
        for code, radius in zip(codes, (0.4, 0.7), strict=True):
            on_surface = torch.nn.functional.normalize(torch.randn(100, 3), dim=1) * radius
            assert decoder(code, on_surface).abs().mean() < 0.02


def test_the_eikonal_term_brings_gradients_to_one():
    norms = []
    for eikonal in (0.0, 0.3):
        options = replace(TINY, hidden=32, skip=0, steps=150, batch=1, points=200, lr=5e-3, eikonal=eikonal)
        trainer = Trainer(options, spheres([0.5], 2000), ALONE)
        for _ in range(trainer.total):
            trainer.update()
        decoder, codes = trainer.on_cpu()
        points = torch.nn.functional.normalize(torch.randn(200, 3), dim=1).mul(0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(decoder(codes[0], points).sum(), points)
        norms.append(float((gradient.norm(dim=1) - 1).abs().mean()))
    assert norms[1] < norms[0]


def state_of(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_steps(options, out=None):
    """Gradients and sums of the second step, as this process sees them after all have been joined."""
    with joined("cpu") as place:
        trainer = Trainer(options, spheres([0.3, 0.5, 0.6, 0.8]), place)
        trainer.update()
        trainer.update()
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        found |= {"sums": place.summed(trainer.sums), "moved": trainer.model.codes.detach()}
        if out and place.rank == 0:
            torch.save(found, out)
    return found


def one_of_two(rank, port, options, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    two_steps(options, out)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    options = replace(TINY, batch=4, eikonal=0.1)
    torch.multiprocessing.spawn(one_of_two, (free_port(), options, tmp_path / "shared.pt"), nprocs=2)
    shared = torch.load(tmp_path / "shared.pt", weights_only=True)
    alone = two_steps(options)
    assert shared.pop("sums")[0] / 4 == pytest.approx(float(alone.pop("sums")[0]) / 2, rel=1e-5)
    for name, expected in alone.items():
        torch.testing.assert_close(
            shared[name], expected, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


class Stopping:
    """Answers as stop_requests does: yes from the ``at``-th question on."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def test_two_steps_and_two_more_are_four(tmp_path, monkeypatch):
    train(TINY, "procedural", tmp_path / "whole", QUIET, shapes=3)
    with monkeypatch.context() as patched:
        patched.setattr("distrender.training.stop_requests", lambda: Stopping(2))
        with pytest.raises(KeyboardInterrupt, match="after step 2 of 4"):
            train(TINY, "procedural", tmp_path / "parts", QUIET, shapes=3)
    assert state_of(tmp_path / "parts")["step"] == 2
    train(TINY, "procedural", tmp_path / "parts", replace(QUIET, resume=True), shapes=3)
    whole, parts = (state_of(tmp_path / name) for name in ("whole", "parts"))
    for state in (whole, parts):
        state.pop("seconds")
    assert same(whole, parts)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[1:] for name in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in part] for part in lines]
    assert losses[0] == losses[1]


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    (folder / "round").mkdir(parents=True)
    trimesh.creation.icosphere(2, 3.0).export(folder / "round" / "ball.obj")
    moved = trimesh.creation.box((1, 2, 1))
    moved.apply_translation((5, 0, 0))
    moved.export(folder / "brick.ply")
    return folder


def test_meshes_are_sampled_into_deepsdf_s_layout_once(tmp_path, meshes, caplog):
    (meshes / "broken.obj").write_text("no mesh")
    options = SamplingOptions(count=300)
    data = open_training_set(str(meshes), tmp_path / "run", options, workers=2)
    assert data.names == ("brick", "round/ball")
    assert "left out: broken" in caplog.text
    made = tmp_path / "run" / "data"
    assert json.loads((made / "split.json").read_text()) == {"meshes": {"shapes": ["brick"], "round": ["ball"]}}
    ball = Samples.load(made / "SdfSamples" / "meshes" / "round" / "ball.npz")
    assert len(ball.pos) + len(ball.neg) == 300
    scaled = NormalizationParameters.load(made / "NormalizationParameters" / "meshes" / "shapes" / "brick.npz")
    np.testing.assert_allclose(scaled.offset, [-5, 0, 0], atol=1e-6)
    files = sorted(made.rglob("*.npz"))
    before = [file.stat().st_mtime_ns for file in files]
    again = open_training_set(str(meshes), tmp_path / "run", options)  # in this process
    assert [file.stat().st_mtime_ns for file in files] == before
    assert torch.equal(data.pos, again.pos)
    files[-1].unlink()
    anew = open_training_set(str(meshes), tmp_path / "run", options)  # the same numbers, whoever draws them
    assert torch.equal(data.pos, anew.pos)
    assert torch.equal(data.neg, anew.neg)
    with pytest.raises(UserError, match="holds samples made with"):
        open_training_set(str(meshes), tmp_path / "run", SamplingOptions(count=200))
    # What was prepared is itself a source, as a whole or by a split.
    assert [item.name for item in find(str(made))] == ["round/ball", "shapes/brick"]
    assert [item.name for item in find(str(made), made / "split.json")] == ["shapes/brick", "round/ball"]
    few = open_training_set(str(made), tmp_path / "other", SamplingOptions(count=100), split=made / "split.json")
    assert 200 <= len(few.pos) + len(few.neg) <= 204
    assert not (tmp_path / "other").exists()


def test_a_shape_without_inside_gives_what_it_has(tmp_path):
    folder = tmp_path / "SdfSamples" / "d" / "c"
    folder.mkdir(parents=True)
    Samples(np.ones((5, 4), np.float32), np.ones((0, 4), np.float32)).save(folder / "s.npz")
    data = open_training_set(str(tmp_path), tmp_path / "run", SamplingOptions(count=100))
    assert data.draw(torch.tensor([0]), 8, torch.Generator()).shape == (1, 8, 4)
    Samples(np.ones((0, 4), np.float32), np.ones((0, 4), np.float32)).save(folder / "s.npz")
    with pytest.raises(UserError, match="no samples"):
        open_training_set(str(tmp_path), tmp_path / "run", SamplingOptions(count=100))


def test_held_out_shapes_are_never_trained_on():
    seeds = [item.source[1] for item in find("procedural", shapes=5000)]
    assert max(seeds) < procedural.HELD_OUT_FROM


SMALL = ["--latent", 3, "--hidden", 16, "--layers", 2, "--skip", 0, "--steps", 3, "--points", 16, "--samples", 200]


def test_the_command_leaves_a_decoder_that_can_be_rendered(tmp_path, meshes):
    words = [
        "train",
        meshes,
        "-o",
        tmp_path / "run",
        *SMALL,
        "--workers",
        0,
        "--seed",
        5,
        "--half",
        "--json",
        "--shown",
        1,
    ]
    result = run(*words)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["step"] == 3
    assert figures["shapes"] == 2
    assert figures["surface_error"] > 0
    experiment = decoder_files.load_experiment(tmp_path / "run" / "model.safetensors")
    assert experiment.names == ("brick", "round/ball")
    assert experiment.codes.dtype == experiment.decoder.lin0.weight.dtype == torch.float32
    assert torch.equal(experiment.codes, experiment.codes.half().float())
    assert experiment.metadata["tool"] == "dist-render"
    assert experiment.metadata["seed"] == "5"
    assert json.loads(experiment.metadata["training"])["latent"] == 3
    assert json.loads(experiment.metadata["figures"])["surface_error"] == figures["surface_error"]
    assert experiment.metadata["command"].startswith("dist-render ")
    for name in ("curves.png", "metrics.jsonl", "last.pt", "pictures/0000003.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["config"]["points"] == 16
    assert first["samples"] == 400
    rendered = run(
        "render", tmp_path / "run" / "model.safetensors", "--code", "brick", "-o", tmp_path / "a.png", "--size", 8
    )
    assert rendered.exit_code == 0, rendered.output
    result = run(*words)
    assert result.exit_code == 1
    assert "holds a run already" in result.output
    result = run(*words, "--resume")
    assert result.exit_code == 1
    assert "is complete with 3 steps" in result.output
    result = run(*words, "--resume", "--lr", 0.1)
    assert result.exit_code == 1
    assert "lr 0.0005 (now 0.1)" in result.output
    (meshes / "brick.ply").unlink()
    result = run(*words, "--resume")
    assert result.exit_code == 1
    assert "shapes 2 (now 1)" in result.output


def test_help_has_examples_and_does_not_wait_for_torch():
    shown = run("train", "--help")
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    words = "import sys, distrender.cli_train; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "no such folder"),
        (["."], 1, "no shape to train on"),
        ([".", "--split", "s.json"], 1, "leave it out"),
        (["procedural", "--split", "s.json"], 1, "with procedural"),
        (["procedural", "--lr", "-1"], 1, "lr must be"),
        (["procedural", "--lr", "nan"], 1, "lr must be"),
        (["procedural", "--hidden", "100"], 1, "hidden must exceed"),
        (["procedural", "--batch", "0"], 2, "--batch"),
        (["procedural", "--device", "abacus"], 1, "--device"),
        (["procedural", "--shapes", "1", "--samples", "50", "--resume"], 1, "cannot be resumed from"),
        ([], 2, "SOURCE"),
    ],
)
def test_bad_input_gets_one_line(words, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", *words, "--workers", 0)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert len(result.output.strip().splitlines()) == 1


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    options = replace(TINY, steps=60, lr=1e30, code_lr=1e30)
    with pytest.raises(UserError, match="choose a lower --lr"):
        train(options, "procedural", tmp_path / "run", QUIET, shapes=2)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_shape_is_compared_with_what_it_should_be():
    def sphere(radius):
        return lambda points: points.norm(dim=-1) - radius

    same = reconstruction.compare(sphere(0.5), sphere(0.5), 48)
    assert same["surface_error"] < 1e-4
    assert same["gradient"] == pytest.approx(1, abs=1e-4)
    assert same["chamfer"] == pytest.approx(same["chamfer_floor"], rel=0.1)
    larger = reconstruction.compare(sphere(0.6), sphere(0.5), 48)
    assert larger["surface_error"] == pytest.approx(0.1, abs=1e-4)
    assert larger["chamfer"] == pytest.approx(1000 * 2 * 0.1**2, rel=0.05)  # both ways, squared, times 1000
    assert reconstruction.compare(lambda points: points.norm(dim=-1) + 1, sphere(0.5), 24)["chamfer"] is None
