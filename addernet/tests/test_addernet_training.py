"""Training: the recipe, resuming to the same bits, sharing among processes, what a run leaves, and that it learns."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from addernet.architectures import IMAGENET, build
from addernet.datasets import open_data
from addernet.layer import Adder2d
from addernet.recipes import TrainingConfig, learning_rate, recipe
from addernet.training import Trainer, train
from addernet_image_sets import make_folder
from papershelf.errors import UserError
from papershelf.images import read_image
from papershelf.processes import Place, joined
from papershelf.training_log import read_metrics
from safetensors import safe_open
from torch import nn

from addernet import checkpoints

CPU = Place(torch.device("cpu"))
SMALL = {"batch": 8, "epochs": 2}


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("colors") / "set", train=8, test=3)


def test_the_recipe_is_the_papers():
    assert recipe("resnet20") == TrainingConfig()
    assert asdict(recipe("resnet20")) | {"arch": "vgg-small"} == asdict(recipe("vgg-small"))
    assert (recipe("resnet50").epochs, recipe("resnet50").weight_decay) == (150, 1e-4)
    assert (recipe("lenet").epochs, recipe("lenet").nesterov) == (50, True)
    assert recipe("resnet50", epochs=3, lr=None).epochs == 3
    assert all(recipe(arch).weight_decay == 1e-4 for arch in IMAGENET)


def test_the_learning_rate_is_half_a_cosine_by_epochs():
    config = recipe("resnet20")
    rates = [learning_rate(config, epoch) for epoch in range(400)]
    assert rates[0] == 0.1
    assert rates[200] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0.05 * (1 + 0.5**0.5))
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-5


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("resnet21", {}, "no architecture 'resnet21'; there are resnet20, "),
        ("resnet20", {"batch": 0}, "batch must be at least 1, got 0"),
        ("resnet20", {"limit": 0}, "limit must be at least 1"),
        ("resnet20", {"lr": 0.0}, "lr and eta must be above 0"),
        ("resnet20", {"ema": 1.0}, "ema from 0 to below 1"),
        ("resnet20", {"op": "multiplier"}, "op adder or conv, got off and multiplier"),
        ("resnet20", {"accumulate": 3}, "a batch of 256 cannot be computed in 3 equal parts"),
    ],
)
def test_recipes_that_cannot_be(arch, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(arch, **changes)


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


def test_one_step_is_the_algorithm_written_out(colors):
    """SGD of the paper by hand: adder gradients to length eta sqrt(k), weight decay, momentum, the epoch's rate."""
    config = recipe("lenet", batch=8, epochs=4, nesterov=False, weight_decay=0.01)
    trainer = Trainer(config, open_data(colors), CPU)
    layers = {f"{name}.weight" for name, m in trainer.model.named_modules() if isinstance(m, Adder2d)}
    assert layers
    batches = [*trainer.batches.epoch(0), *trainer.batches.epoch(1)][2:4]  # of the first and the second epoch
    trainer.step = 2
    velocity = {}
    for batch, rate in zip(batches, (0.1, 0.05 * (1 + 0.5**0.5)), strict=True):
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.model.zero_grad()
        F.cross_entropy(trainer.model(batch.x), batch.labels).backward()
        expected = {}
        for name, p in trainer.model.named_parameters():
            grad = p.grad.clone()
            if name in layers:
                grad *= 0.2 * grad.numel() ** 0.5 / grad.norm()
            grad += 0.01 * before[name]
            velocity[name] = 0.9 * velocity[name] + grad if name in velocity else grad
            expected[name] = before[name] - rate * velocity[name]
        trainer.update(batch)
        for name, p in trainer.model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "cutout": 8, "accumulate": 2, "amp": "float16"}])
def test_two_and_two_epochs_equal_four(colors, tmp_path, monkeypatch, extra):
    config = recipe("lenet", **SMALL | {"epochs": 4}, **extra)
    figures = train(config, colors, tmp_path / "whole", device="cpu")

    finish = Trainer.finish_epoch

    def finish_then_ctrl_c(self):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish_epoch", finish_then_ctrl_c)
        with pytest.raises(KeyboardInterrupt, match="Stopped after step 6 of 12; --resume goes on from"):
            train(config, colors, tmp_path / "parts", device="cpu")
    again = train(config, colors, tmp_path / "parts", device="cpu", resume=True)
    assert again["test_loss"] == figures["test_loss"]
    assert again["train_loss"] == figures["train_loss"]
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    lines = [read_metrics(tmp_path / run) for run in ("whole", "parts")]
    assert lines[0][0] == lines[1][0]
    assert [line["epoch"] for line in lines[1][1:]] == [1, 2, 3, 4]
    assert [line["train_loss"] for line in lines[0][1:]] == [line["train_loss"] for line in lines[1][1:]]


def test_a_stop_within_an_epoch_loses_nothing(colors, tmp_path, monkeypatch):
    config = recipe("lenet", op="conv", **SMALL)
    figures = train(config, colors, tmp_path / "whole", device="cpu")
    update = Trainer.update

    def update_then_ctrl_c(self, batch):
        update(self, batch)
        if self.step in (1, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update_then_ctrl_c)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match=f"Stopped after step {5 if resume else 1} of 6"):
            train(config, colors, tmp_path / "parts", device="cpu", resume=resume)
    again = train(config, colors, tmp_path / "parts", device="cpu", resume=True)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    for name in ("train_loss", "train_accuracy", "test_loss"):
        assert again[name] == figures[name]


def test_an_epoch_that_takes_long_is_saved_now_and_then(colors, tmp_path, monkeypatch):
    monkeypatch.setattr("addernet.training.SAVED_EVERY", 0.0)
    saved = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self, file: saved.append(self.step) or save(self, file))
    train(recipe("lenet", op="conv", **SMALL), colors, tmp_path, device="cpu")
    assert saved == [1, 2, 3, 4, 5, 6]


def test_what_a_run_leaves(colors, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    config = recipe("lenet", **SMALL, seed=3)
    run = tmp_path / "run"
    figures = train(config, colors, run, device="cpu", command="addernet train set")
    assert {path.name for path in run.iterdir()} == {
        "last.pt",
        "model.safetensors",
        "metrics.jsonl",
        "curves.png",
        "tensorboard",
    }
    first, *lines = read_metrics(run)
    assert first["config"] == asdict(config)
    assert (first["tool"], first["command"], first["steps"]) == ("addernet", "addernet train set", 6)
    assert (first["data"]["images"], first["data"]["classes"]) == (24, ["blue", "green", "red"])
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1] == figures
    assert lines[1]["lr"] == pytest.approx(0.05)
    assert all(line["images_per_second"] > 0 for line in lines)
    assert read_image(run / "curves.png").std() > 5
    model = checkpoints.load(run / "model.safetensors")
    with safe_open(run / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["tool"], about["seed"], about["command"]) == ("addernet", "3", "addernet train set")
    assert json.loads(about["training"]) == asdict(config)
    assert json.loads(about["figures"])["test_accuracy"] == figures["test_accuracy"]
    assert json.loads(about["class_names"]) == ["blue", "green", "red"]
    assert json.loads(about["mean"]) == first["data"]["mean"]
    assert model.config.input_size == 32


def test_averaged_weights_are_tested_and_kept(colors, tmp_path):
    config = recipe("lenet", **SMALL, ema=0.5)
    trainer = Trainer(config, open_data(colors), CPU)
    names = [name for name, value in trainer.model.state_dict().items() if value.is_floating_point()]
    expected = {name: trainer.model.state_dict()[name].clone() for name in names}
    for batch in trainer.batches.epoch(0):
        trainer.update(batch)
        for name in names:
            expected[name] = 0.5 * expected[name] + 0.5 * trainer.model.state_dict()[name]
    assert trainer.kept is not trainer.model
    for name in names:
        torch.testing.assert_close(trainer.kept.state_dict()[name], expected[name])
    train(config, colors, tmp_path, device="cpu")
    kept = checkpoints.load(tmp_path / "model.safetensors").state_dict()
    assert_same(dict(kept), dict(state_of(tmp_path)["averaged"]))


def test_runs_that_cannot_go_on(colors, tmp_path):
    config, run = recipe("lenet", **SMALL | {"epochs": 1}, op="conv"), tmp_path / "run"
    with pytest.raises(UserError, match=r"last\.pt cannot be resumed from"):
        train(config, colors, run, device="cpu", resume=True)
    train(config, colors, run, device="cpu")
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        train(config, colors, run, device="cpu")
    with pytest.raises(UserError, match=r"is complete with 1 epochs; its weights are .*model\.safetensors"):
        train(config, colors, run, device="cpu", resume=True)
    other = recipe("lenet", **SMALL | {"batch": 4}, op="conv")
    with pytest.raises(UserError, match=r"was made with epochs 1 \(now 2\), batch 8 \(now 4\); give the same options"):
        train(other, colors, run, device="cpu", resume=True)
    larger = make_folder(tmp_path / "larger", train=9, test=1)
    with pytest.raises(UserError, match=r"was made with images 24 \(now 27\), test_images 9 \(now 3\)"):
        train(config, larger, run, device="cpu", resume=True)
    (run / "last.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be resumed from"):
        train(config, colors, run, device="cpu", resume=True)
    torch.save([1, 2], run / "last.pt")
    with pytest.raises(UserError, match="is no checkpoint of a training run"):
        train(config, colors, run, device="cpu", resume=True)
    with pytest.raises(UserError, match="cannot be computed in 3 equal parts"):
        Trainer(config, open_data(colors), CPU._replace(world=3))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_good(colors, tmp_path, monkeypatch):
    update = Trainer.update

    def update_then_break(self, batch):
        if self.step == 4:
            nn.init.constant_(next(self.model.parameters()), float("nan"))
        update(self, batch)

    monkeypatch.setattr(Trainer, "update", update_then_break)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 2, step \d; what was saved .* lower --lr"):
        train(recipe("lenet", **SMALL), colors, tmp_path, device="cpu")
    state = state_of(tmp_path)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())
    assert [line["epoch"] for line in read_metrics(tmp_path)[1:]] == [1]


def test_from_conv_starts_with_the_given_filters(colors, tmp_path):
    conv = build("resnet20", op="conv", classes=3)
    checkpoints.save(conv, tmp_path / "conv.safetensors")
    config = recipe("resnet20", **SMALL)
    trainer = Trainer(config, open_data(colors), CPU, from_conv=tmp_path / "conv.safetensors")
    names = {name for name, module in trainer.model.named_modules() if isinstance(module, Adder2d)}
    given = dict(conv.named_parameters())
    assert all(torch.equal(trainer.model.get_parameter(f"{n}.weight"), given[f"{n}.weight"]) for n in names)
    with pytest.raises(UserError, match="leave out --op conv"):
        Trainer(recipe("resnet20", op="conv"), open_data(colors), CPU, from_conv=tmp_path / "conv.safetensors")


@pytest.mark.parametrize("op", ["adder", "conv"])
def test_bfloat16_changes_the_gradients_by_little(colors, op):
    found = []
    for amp in ("off", "bfloat16"):
        trainer = Trainer(recipe("lenet", **SMALL, op=op, amp=amp), open_data(colors), CPU)
        trainer.update(next(iter(trainer.batches.epoch(0))))
        found.append((trainer.means()[0], dict(trainer.model.named_parameters())))
    (exact, _), (rough, parameters) = found
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in parameters.values())


def gradients(config, data, device="cpu", frozen=False):
    """Of the first step before SGD takes it, in whatever process this runs; ``frozen``: no batch statistics."""
    with joined(device) as place:
        trainer = Trainer(config, open_data(data), place)
        trainer.model.train(not frozen)
        found = {}

        def keep(*_):
            found.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

        trainer.optimizer.register_step_pre_hook(keep)
        trainer.update(next(iter(trainer.batches.epoch(0))))
        loss, right, images = place.summed(trainer.sums).tolist()
        return place.rank, found, [loss / images, right, images]


def one_of_two(rank, port, jobs, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    results = []
    for number, job in enumerate(jobs):
        os.environ["MASTER_PORT"] = str(port[number])
        place, *result = gradients(*job)
        results.append(result)
    if place == 0:
        torch.save(results, out)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_give_the_gradients_of_one_with_the_joined_batch(colors, tmp_path):
    """With batch norms at rest, and with each process's own statistics beside one process that takes two parts."""
    config, parts = recipe("lenet", **SMALL), recipe("lenet", **SMALL, accumulate=2)
    shared_jobs = [(config, colors, "cpu", True), (config, colors), (parts, colors)]
    ports = [free_port() for _ in shared_jobs]
    torch.multiprocessing.spawn(one_of_two, (ports, shared_jobs, tmp_path / "shared.pt"), nprocs=2)
    shared = torch.load(tmp_path / "shared.pt", weights_only=True)
    quarters = recipe("lenet", **SMALL, accumulate=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have: in flat images maxima tie, and the order of sums breaks the ties
    try:
        alone = [gradients(*job)[1:] for job in [(config, colors, "cpu", True), (parts, colors), (quarters, colors)]]
    finally:
        torch.set_num_threads(threads)
    for (found, sums), (expected, expected_sums) in zip(shared, alone, strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()  # sums that nearly cancel differ by the order they are taken in
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-3, atol=1e-3 * scale, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert sums == pytest.approx(expected_sums, rel=1e-5)
    assert alone[0][1][2] == 8


@pytest.mark.slow
def test_torchrun_takes_the_same_command(colors, tmp_path):
    options = ["--arch", "lenet", "--op", "conv", "--batch", "8", "--epochs", "2", "--device", "cpu", "--lr", "0.01"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    # Two processes take batch statistics over half a batch each, as one does over two parts.
    for launcher, parts, name in ([], "2", "alone"), (torchrun, "1", "shared"):
        command = [sys.executable, "-m", *launcher, "addernet", "train", str(colors), *options]
        command += ["--accumulate", parts, "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert read_metrics(tmp_path / "shared")[0]["processes"] == 2
    alone, shared = (read_metrics(tmp_path / name)[-1] for name in ("alone", "shared"))
    assert shared["epoch"] == 2
    assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
    assert shared["train_accuracy"] == alone["train_accuracy"]


@pytest.mark.parametrize("op", ["adder", "conv"])
def test_it_learns(colors, tmp_path, op):
    config = recipe("lenet", op=op, batch=8, epochs=12)
    figures = train(config, colors, tmp_path, device="cpu")
    assert figures["train_accuracy"] > 80
    assert figures["test_accuracy"] > 80
