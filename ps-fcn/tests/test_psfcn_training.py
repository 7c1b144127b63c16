"""Training: the recipe, the loss, resuming to the same bits, sharing among processes, what a run leaves, learning."""

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.multiprocessing
from papershelf.errors import UserError
from papershelf.images import read_image
from papershelf.processes import Place, joined
from papershelf.training_log import read_metrics
from psfcn import checkpoints, classical
from psfcn.angles import mean_degrees
from psfcn.crops import Crop, Samples, photographs
from psfcn.lcnet_training import LightTask, intensity_error, lit
from psfcn.normal_training import NormalTask
from psfcn.recipes import TrainingConfig, learning_rate, recipe
from psfcn.samples import Sample
from psfcn.training import Trainer, train
from psfcn_spheres import make_folder, sphere_sample
from safetensors import safe_open

CPU = Place(torch.device("cpu"))
SMALL = {"batch": 2, "lights": (3, 4), "crop": (8, 12), "side": (8, 16), "turn": True, "gain": 0.02, "noise": 0.002}
TASKS = {"psfcn": NormalTask, "psfcn-n": NormalTask, "upsfcn": NormalTask, "lcnet": LightTask}


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Curves and TensorBoard take most of a small run's time; one test has them."""
    find = importlib.util.find_spec
    if request.function is not test_what_a_run_leaves:
        missing = ("matplotlib", "tensorboard")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest)
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spheres")
    return make_folder(folder / "train", 5, size=16), make_folder(folder / "held-out", 2, first=100, size=16)


def go(folders, run, config, **options):
    return train(config, folders[0], run, validation=folders[1], device="cpu", **options)


def state_of(run):
    return torch.load(run / "last.pt", weights_only=True) | {"seconds": None}


def assert_same(a, b):
    """Equal to the bit, through dictionaries and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_the_recipe_is_the_papers():
    assert recipe("psfcn-n") == TrainingConfig()
    assert (recipe("psfcn").colour, recipe("upsfcn").colour, recipe("psfcn-n").colour) == (True, True, False)
    assert (recipe("lcnet").lr, recipe("lcnet").epochs) == (5e-4, 20)
    assert recipe("psfcn-n", epochs=3, lr=None).epochs == 3
    assert recipe("psfcn-n", steps=9).schedule == "cosine"
    assert recipe("psfcn-n", minutes=9, schedule="halving").schedule == "halving"


def test_the_rate_is_halved_every_five_epochs_or_follows_a_cosine():
    config = recipe("psfcn-n")
    rates = [learning_rate(config, epoch / 30 + 1e-6) for epoch in range(30)]
    assert rates == [1e-3 * 0.5**k for k in range(6) for _ in range(5)]
    cosine = [learning_rate(recipe("psfcn-n", steps=100), step / 100) for step in range(101)]
    assert 0 < cosine[0] < 5e-4
    assert cosine[1:] == sorted(cosine[1:], reverse=True)
    assert cosine[50] == pytest.approx(5e-4)
    assert cosine[100] < 1e-9


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("resnet", {}, "no network 'resnet'; there are psfcn, psfcn-n, upsfcn, lcnet"),
        ("psfcn", {"batch": 0}, "batch must be at least 1, got 0"),
        ("psfcn", {"steps": 0}, "steps must be at least 1, got 0"),
        ("psfcn", {"lights": (2, 5)}, r"lights must be LEAST\.\.MOST, 3 or more, got 2\.\.5"),
        ("psfcn", {"crop": (32, 24)}, r"crop must be LEAST\.\.MOST, 8 or more, got 32\.\.24"),
        ("psfcn", {"crop": (10, 32)}, "crop must be multiples of 4 pixels"),
        ("psfcn", {"side": (16, 24)}, r"side must reach the 32 pixels of crop, got 16\.\.24"),
        ("psfcn", {"lr": 0.0}, "lr and minutes must be above 0"),
        ("psfcn", {"steps": 3, "minutes": 1.0}, "ends after steps or after minutes"),
        ("psfcn", {"amp": "float16"}, "amp is off or bfloat16"),
    ],
)
def test_recipes_that_cannot_be(network, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(network, **changes)


def test_the_loss_is_eq_2_over_the_mask(folders):
    task = NormalTask(recipe("psfcn-n"), *map(Samples, folders))
    normal, found = (torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1) for _ in range(2))
    mask = (torch.rand(2, 1, 4, 4) > 0.4).float()
    loss, angle = task.loss(lambda *_: found, Crop(torch.zeros(0), torch.zeros(0), normal * mask, mask), CPU)
    losses, angles = [], []
    for n, y, x in np.argwhere(mask[:, 0].numpy() > 0):
        cosine = float(normal[n, :, y, x] @ found[n, :, y, x])
        losses.append(1 - cosine)
        angles.append(np.rad2deg(np.arccos(cosine)))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert angle.item() == pytest.approx(np.mean(angles), rel=1e-4)


def test_one_step_is_adam_written_out(folders):
    config = recipe("psfcn-n", **SMALL, steps=10)
    torch.manual_seed(0)
    trainer = Trainer(config, NormalTask(config, *map(Samples, folders)), CPU)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batches = trainer.batches()
    trainer.update(next(batches), 1e-3)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 1e-3 * p.grad / (p.grad.abs() + 1e-8), msg=name)
    sums = trainer.sums.clone()
    trainer.update(next(batches), 0.0)
    assert trainer.step == 2
    assert trainer.sums[0] > sums[0]


@pytest.mark.parametrize("network", ["psfcn-n", "upsfcn"])
def test_two_and_two_steps_equal_four(folders, tmp_path, monkeypatch, network):
    config = recipe(network, **SMALL, steps=4, epochs=2, amp="bfloat16" if network == "upsfcn" else "off")
    figures = go(folders, tmp_path / "whole", config)
    update = Trainer.update

    def update_then_ctrl_c(self, batch, rate):
        update(self, batch, rate)
        if self.step in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_then_ctrl_c)
        for resume in (False, True):
            with pytest.raises(KeyboardInterrupt, match=r"Stopped after step [12]; --resume goes on from"):
                go(folders, tmp_path / "parts", config, resume=resume)
    again = go(folders, tmp_path / "parts", config, resume=True)
    assert again | {"seconds": 0} == figures | {"seconds": 0}
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    lines = [read_metrics(tmp_path / run) for run in ("whole", "parts")]
    assert lines[0][0] == lines[1][0]
    assert [line["step"] for line in lines[1][1:]] == [2, 4]
    assert [line["train_loss"] for line in lines[0][1:]] == [line["train_loss"] for line in lines[1][1:]]


def test_a_run_that_has_ended_goes_on_with_a_larger_budget(folders, tmp_path):
    config = recipe("psfcn-n", **SMALL, steps=2, epochs=2)
    go(folders, tmp_path, config)
    with pytest.raises(UserError, match=r"is complete; give more --steps, --minutes or --epochs\. Weights: .*model"):
        go(folders, tmp_path, config, resume=True)
    figures = go(folders, tmp_path, dataclasses.replace(config, steps=4), resume=True)
    assert [line["step"] for line in read_metrics(tmp_path)[1:]] == [1, 2, 4]
    assert figures["lr"] == pytest.approx(learning_rate(dataclasses.replace(config, steps=4), 0.75))
    by_clock = dataclasses.replace(config, steps=None, minutes=1e-9, epochs=2)
    with pytest.raises(UserError, match="is complete"):
        go(folders, tmp_path, by_clock, resume=True)


def test_a_run_by_the_clock_ends(folders, tmp_path):
    figures = go(folders, tmp_path, recipe("psfcn-n", **SMALL, minutes=0.01, epochs=2))
    assert figures["seconds"] >= 0.6
    assert state_of(tmp_path)["step"] == figures["step"] >= 1


def test_what_a_run_leaves(folders, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    config, run = recipe("psfcn-n", **SMALL, epochs=2, seed=3), tmp_path / "run"
    figures = go(folders, run, config, command="psfcn train psfcn-n")
    names = {path.name for path in run.iterdir()}
    assert names == {"last.pt", "model.safetensors", "metrics.jsonl", "curves.png", "tensorboard"}
    first, *lines = read_metrics(run)
    assert first["config"] == json.loads(json.dumps(asdict(config)))
    assert (first["tool"], first["command"], first["data"]["samples"]) == ("psfcn", "psfcn train psfcn-n", 5)
    assert [line["step"] for line in lines] == [2, 4]  # two epochs of five samples, two at a time
    assert lines[-1] == figures
    assert read_image(run / "curves.png").std() > 5
    assert checkpoints.load(run / "model.safetensors").normalise
    with safe_open(run / "model.safetensors", "pt") as file:
        about = file.metadata()
    best = min(lines, key=lambda line: line["mae"])
    assert json.loads(about["figures"]) == best
    assert (about["kind"], about["seed"], about["command"]) == ("psfcn-n", "3", "psfcn train psfcn-n")
    assert json.loads(about["config"])["lights"] == [3, 4]


def test_the_figures_are_what_they_say(folders, tmp_path):
    config = recipe("psfcn-n", **SMALL, steps=1, epochs=1)
    figures = go(folders, tmp_path, config)
    network = checkpoints.load(tmp_path / "model.safetensors")
    errors, plain = [], []
    for file in sorted(folders[1].iterdir()):
        sample = Sample.load(file)
        images, lights = photographs(sample, slice(None)), torch.from_numpy(sample.lights)
        with torch.no_grad():
            found = network(images[None], lights[None])[0].permute(1, 2, 0).numpy()
        errors.append(mean_degrees(found, sample.normal, sample.mask))
        pixels = images.permute(0, 2, 3, 1).numpy()
        plain.append(
            mean_degrees(classical.solve(pixels, sample.lights, sample.mask, "ls").normals, sample.normal, sample.mask)
        )
    assert figures["mae_all"] == pytest.approx(np.mean(errors), rel=0.01)  # weights are kept in half precision
    assert figures["least_squares_mae_all"] == pytest.approx(np.mean(plain), rel=1e-3)


def test_angular_errors_by_hand():
    sample = sphere_sample(0)
    exact = sample.normal / np.maximum(np.linalg.norm(sample.normal.astype(np.float64), axis=2, keepdims=True), 1e-9)
    assert mean_degrees(exact, sample.normal, sample.mask) < 1e-4
    turn = np.deg2rad(10)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    axis = exact[sample.mask][:, 1]
    expected = np.rad2deg(np.arccos(axis**2 + (1 - axis**2) * np.cos(turn))).mean()
    assert mean_degrees(exact @ rotation.T, sample.normal, sample.mask) == pytest.approx(expected, rel=1e-5)


def test_runs_that_cannot_go_on(folders, tmp_path):
    config, run = recipe("psfcn-n", **SMALL, steps=1), tmp_path / "run"
    with pytest.raises(UserError, match=r"last\.pt cannot be resumed from"):
        go(folders, run, config, resume=True)
    go(folders, run, config)
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        go(folders, run, config)
    other = dataclasses.replace(config, steps=3, batch=1, noise=0.0)
    with pytest.raises(UserError, match=r"was made with batch 2 \(now 1\), noise 0.002 \(now 0.0\); give the same"):
        go(folders, run, other, resume=True)
    with pytest.raises(UserError, match=r"was made with samples 5 \(now 2\)"):
        go((folders[1], folders[1]), run, dataclasses.replace(config, steps=3), resume=True)
    with pytest.raises(UserError, match="a batch of 2 cannot be shared by 3 processes"):
        Trainer(config, NormalTask(config, *map(Samples, folders)), CPU._replace(world=3))
    checkpoints.save(NormalTask(recipe("upsfcn"), *map(Samples, folders)).network, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds upsfcn, not psfcn-n"):
        go(folders, tmp_path / "from", config, start=tmp_path / "other.safetensors")


def test_a_run_starts_from_given_weights(folders, tmp_path):
    config = recipe("psfcn-n", **SMALL, steps=1, lr=1e-12)
    torch.manual_seed(9)
    network = NormalTask(config, *map(Samples, folders)).network
    checkpoints.save(network, tmp_path / "start.safetensors")
    go(folders, tmp_path / "run", config, start=tmp_path / "start.safetensors")
    found = checkpoints.load(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(a, b.half().float()) for a, b in zip(found.parameters(), network.parameters(), strict=True))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_good(folders, tmp_path, monkeypatch):
    update = Trainer.update

    def update_then_break(self, batch, rate):
        if self.step == 1:
            torch.nn.init.constant_(next(self.model.parameters()), float("nan"))
        update(self, batch, rate)

    monkeypatch.setattr(Trainer, "update", update_then_break)
    with pytest.raises(UserError, match=r"the loss is nan in step \d; what was saved .* lower --lr"):
        go(folders, tmp_path, recipe("psfcn-n", **SMALL, steps=2, epochs=2))
    assert state_of(tmp_path)["step"] == 1
    assert all(value.isfinite().all() for value in state_of(tmp_path)["model"].values())


@pytest.mark.parametrize("network", ["psfcn-n", "upsfcn", "psfcn"])
def test_it_learns_a_batch(folders, network):
    config = recipe(network, batch=2, lights=(4, 4), crop=(16, 16), side=(16, 16), noise=0.0, colour=False, steps=40)
    torch.manual_seed(0)
    trainer = Trainer(config, TASKS[network](config, *map(Samples, folders)), CPU)
    batch = next(trainer.batches())
    for _ in range(40):
        trainer.update(batch, 1e-3)
        if trainer.step == 1:
            first = trainer.means()[1]
            trainer.sums.zero_()
    trainer.sums.zero_()
    trainer.update(batch, 0.0)
    assert first > 40
    assert trainer.means()[1] < 8


def test_lcnet_learns_a_batch_and_is_tested(folders, tmp_path):
    config = recipe("lcnet", batch=1, lights=(3, 3), turn=True, steps=2, epochs=1)
    figures = go(folders, tmp_path, config)
    assert 0 < figures["direction"] < 120
    assert 0 < figures["intensity"] < 3
    assert checkpoints.kind_of(checkpoints.load(tmp_path / "model.safetensors")) == "lcnet"
    trainer = Trainer(config, LightTask(config, *map(Samples, folders)), CPU)
    batch = next(trainer.batches())
    assert batch.images.shape == (1, 3, 3, 128, 128)
    for _ in range(12):
        trainer.update(batch, 5e-4)
        if trainer.step == 1:
            first = trainer.means()[0]
    trainer.sums.zero_()
    trainer.update(batch, 0.0)
    assert trainer.means()[0] < 0.6 * first


def test_what_lcnet_sees_is_dimmed_and_turned_with_its_lights(folders):
    sample = sphere_sample(0, 40)
    item = lit(sample, np.random.default_rng(0), np.arange(6))
    assert ((item.intensities >= 0.2) & (item.intensities <= 2)).all()
    means = item.images.mean((1, 2, 3)) / item.intensities
    plain = photographs(sample, slice(None)).mean((1, 2, 3))
    torch.testing.assert_close(means / means.sum(), plain / plain.sum(), rtol=0.02, atol=0.002)
    config = recipe("lcnet", batch=1, lights=(6, 6), turn=True, noise=0.0, colour=False)
    task = LightTask(config, *map(Samples, folders))
    ramp = torch.linspace(-1, 1, 128)
    for step in range(8):  # the brighter side of a sphere is where the light is
        turned = task.dataset[step, 0]
        weights = turned.images.sum(1)
        right = (weights * ramp).sum((1, 2)) / weights.sum((1, 2))
        up = (weights * -ramp[:, None]).sum((1, 2)) / weights.sum((1, 2))
        for side, axis in ((right, 0), (up, 1)):
            assert np.corrcoef(side, turned.lights[:, axis])[0, 1] > 0.8


def test_intensities_are_compared_at_the_best_scale():
    true = torch.tensor([0.5, 1.0, 2.0])
    assert intensity_error(3 * true, true) < 1e-6
    found = torch.tensor([0.6, 1.0, 2.0])
    scale = (found * true).sum() / (found**2).sum()
    expected = (abs(scale * 0.6 - 0.5) / 0.5 + 3 * abs(scale - 1) - abs(scale - 1)) / 3
    assert intensity_error(found, true).item() == pytest.approx(expected.item(), rel=1e-4)


def gradients(config, folders):
    """Of the first step, in whatever process this runs, and the sums of loss, figure and steps."""
    with joined("cpu") as place:
        torch.manual_seed(config.seed)
        trainer = Trainer(config, TASKS[config.network](config, *map(Samples, folders)), place)
        trainer.update(next(trainer.batches()), 1e-3)
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        figures = trainer.task.validate(trainer.model.eval(), place) if config.network != "lcnet" else {}
        return place.rank, found, (place.summed(trainer.sums) / place.world).tolist(), figures


def one_of_two(rank, port, config, folders, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    place, *result = gradients(config, folders)
    if place == 0:
        torch.save(result, out)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["psfcn-n", "lcnet"])
def test_two_processes_give_the_gradients_of_one_with_the_joined_batch(folders, tmp_path, network):
    config = recipe(network, **SMALL | {"batch": 4})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, config, folders, tmp_path / "shared.pt"), nprocs=2)
    found, sums, figures = torch.load(tmp_path / "shared.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, expected, expected_sums, expected_figures = gradients(config, folders)
    finally:
        torch.set_num_threads(threads)
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3 * scale, msg=name)
    assert sums == pytest.approx(expected_sums, rel=1e-4)
    assert figures == pytest.approx(expected_figures, abs=0.2)  # Adam's first step turns on the sign of each gradient


@pytest.mark.slow
def test_torchrun_takes_the_same_command(folders, tmp_path):
    options = ["--data", str(folders[0]), "--validation", str(folders[1]), "--batch", "2", "--lights", "3"]
    options += ["--crop", "8", "--side", "16", "--steps", "3", "--epochs", "1", "--device", "cpu", "--threads", "1"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for launcher, name in ([], "alone"), (torchrun, "shared"):
        command = [sys.executable, "-m", *launcher, "psfcn", "train", "psfcn-n", *options, "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert read_metrics(tmp_path / "shared")[0]["processes"] == 2
    alone, shared = (read_metrics(tmp_path / name)[-1] for name in ("alone", "shared"))
    assert shared["step"] == 3
    assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=0.02)
