"""Training: the recipe, resuming to the same bits, sharing among processes, what a run leaves, and that it learns."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from click.testing import CliRunner
from papershelf.errors import UserError
from papershelf.images import read_image, write_image
from papershelf.metrics import psnr
from papershelf.processes import Place, joined
from papershelf.training_log import read_metrics
from rife.cli_train import train as train_command
from rife.losses import rife_loss
from rife.model import Rife
from rife.presets import PAPER, RIFEM
from rife.training import Objective, Trainer, learning_rate, network_of, recipe, train, validate
from rife.triplets import Sequences, ValidationSamples
from safetensors import safe_open
from test_rife_triplets import texture

from rife import checkpoints

CPU = Place(torch.device("cpu"))
GPU = torch.cuda.is_available()
SMALL = {"width_factor": 0.05, "batch": 2, "crop": 64}


def make_set(root, count=2, length=3, size=(64, 64), step=3):
    """A soft texture that moves ``step`` pixels a frame, in every sequence another one; all in both lists."""
    names = [f"00001/{k + 1:04d}" for k in range(count)]
    height, width = size
    for seed, name in enumerate(names):
        (root / "sequences" / name).mkdir(parents=True)
        wide = np.rint(texture(seed, height, width + 48) * 255).astype(np.uint8)
        for n in range(length):
            write_image(
                root / "sequences" / name / f"im{n + 1}.png", np.ascontiguousarray(wide[:, n * step :][:, :width])
            )
    for split in ("train", "test"):
        (root / f"{'tri' if length == 3 else 'sep'}_{split}list.txt").write_text("\n".join(names))
    return root


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("triplets") / "set")


def test_the_recipe_is_the_papers():
    config = recipe("paper")
    assert (config.learning_rate, config.final_learning_rate, config.warmup) == (3e-4, 3e-6, 2000)
    assert (config.batch, config.epochs, config.crop, config.weight_decay) == (64, 300, 224, 1e-3)
    assert (config.distill, recipe("rifem").distill, recipe("rifem", distill=0.002).distill) == (0.01, 0.005, 0.002)
    assert network_of(config) == PAPER
    assert network_of(recipe("rifem")) == RIFEM
    assert network_of(recipe("paper", width_factor=0.1)).widths == (24, 16, 8)  # even


def test_the_learning_rate_rises_and_falls():
    config, total = recipe("paper"), 240_600  # 300 passes over 51,312 triplets
    rates = [learning_rate(config, step, total) for step in range(0, total, 50)]
    assert learning_rate(config, 0, total) == pytest.approx(3e-4 / 2000)
    assert learning_rate(config, 999, total) == pytest.approx(1.5e-4)
    assert learning_rate(config, 2000, total) == 3e-4
    assert learning_rate(config, (2000 + total) // 2, total) == pytest.approx((3e-4 + 3e-6) / 2)
    assert learning_rate(config, total - 1, total) == pytest.approx(3e-6, rel=1e-4)
    assert np.argmax(rates) == 40
    assert all(a < b for a, b in pairwise(rates[:41]))
    assert all(a > b for a, b in pairwise(rates[40:]))
    assert learning_rate(config, 10, 100) == 3e-4  # a short run warms up over a tenth of it


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("v4.6", {}, "choose one of paper, rifem"),
        ("paper", {"crop": 100}, "multiple of 32, at least 64, got 100"),
        ("paper", {"crop": 32}, "multiple of 32, at least 64, got 32"),
        ("paper", {"batch": 0}, "batch must be at least 1"),
        ("paper", {"learning_rate": 1e-6}, "learning rates"),
        ("paper", {"width_factor": 0}, "width factor"),
    ],
)
def test_recipes_that_cannot_be(preset, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(preset, **changes)


def state_of(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


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


def test_two_and_two_steps_equal_four(triplets, tmp_path, monkeypatch):
    config = recipe("paper", **SMALL, steps=4, validate_every=3)
    figures = train(config, triplets, tmp_path / "whole", device="cpu")

    update = Trainer.update

    def update_then_ctrl_c(self, batch):
        update(self, batch)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_then_ctrl_c)
        with pytest.raises(KeyboardInterrupt, match="Stopped after step 2 of 4; --resume goes on from"):
            train(config, triplets, tmp_path / "parts", device="cpu", workers=1)
    assert state_of(tmp_path / "parts")["step"] == 2
    again = train(config, triplets, tmp_path / "parts", device="cpu", resume=True)
    assert again["val_psnr"] == figures["val_psnr"]
    assert again["loss"] == figures["loss"]
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    lines = [read_metrics(tmp_path / run) for run in ("whole", "parts")]
    assert lines[0][0] == lines[1][0]
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    assert [line["step"] for line in lines[1][1:]] == [3, 4, 4]


def test_figures_written_after_the_checkpoint_are_dropped_when_resuming(triplets, tmp_path):
    config = recipe("paper", **SMALL, steps=4, validate_every=2)
    train(config, triplets, tmp_path, device="cpu")
    trainer = Trainer(config, triplets, CPU)
    for batch in list(trainer.batches())[:2]:
        trainer.update(batch)
    trainer.save(tmp_path / "checkpoint.pt")  # as if the power had gone after the second step
    train(config, triplets, tmp_path, device="cpu", resume=True)
    assert [line["step"] for line in read_metrics(tmp_path)[1:]] == [2, 4, 4]


def test_what_a_run_leaves(triplets, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    config = recipe("paper", **SMALL, steps=2, seed=3)
    figures = train(config, triplets, tmp_path / "run", device="cpu", command="rife train set")
    run = tmp_path / "run"
    first, *lines = read_metrics(run)
    assert first["config"] == asdict(config)
    assert (first["tool"], first["command"], first["sequences"], first["steps"]) == (
        "rife-interp",
        "rife train set",
        2,
        2,
    )
    terms = lines[0]
    assert terms["loss"] == pytest.approx(terms["student"] + terms["teacher"] + 0.01 * terms["distill"], rel=1e-5)
    assert lines[1] == {"step": 2, "val_psnr": figures["val_psnr"], "val_average": figures["val_average"]}
    assert read_image(run / "curves.png").std() > 5
    assert any((run / "tensorboard").iterdir())
    for name in ("best.safetensors", "last.safetensors"):
        model = checkpoints.load(run / name)
        assert model.config == network_of(config)
        with safe_open(run / name, "pt") as file:
            about = file.metadata()
        assert (about["tool"], about["seed"], about["command"]) == ("rife-interp", "3", "rife train set")
        assert json.loads(about["training"]) == asdict(config)
        assert json.loads(about["figures"])["val_psnr"] == figures["val_psnr"]
    assert validate(model, ValidationSamples(Sequences(triplets, "test", 3)), CPU)["val_psnr"] == figures["val_psnr"]
    assert not list(run.glob(".part*"))


def test_without_plots_and_boards_training_goes_on(triplets, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("papershelf.training_log.importlib.util.find_spec", lambda _: None)
    train(recipe("paper", **SMALL, steps=1), triplets, tmp_path, device="cpu")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "best.safetensors", "last.safetensors", "metrics.jsonl"}
    assert "pip install 'rife-interp[train]'" in caplog.text


def test_best_weights_stay_when_later_ones_are_worse(triplets, tmp_path, monkeypatch):
    scores = iter([20.0, 25.0, 22.0])
    monkeypatch.setattr("rife.training.validate", lambda *_: {"val_psnr": next(scores), "val_average": 0.0})
    figures = train(recipe("paper", **SMALL, steps=3, validate_every=1), triplets, tmp_path, device="cpu")
    steps = {}
    for name in ("best", "last"):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            steps[name] = json.loads(file.metadata()["figures"])["step"]
    assert steps == {"best": 2, "last": 3}
    assert figures["best"] == 25


def test_validation_rounds_pads_and_averages_decibels(tmp_path):
    root = make_set(tmp_path / "set", count=2, size=(72, 90))
    torch.manual_seed(0)
    model = Rife(network_of(recipe("paper", width_factor=0.05)))
    expected = []
    for k in range(2):
        img0, gt, img1 = (
            torch.from_numpy(read_image(root / f"sequences/00001/{k + 1:04d}/im{n}.png")).permute(2, 0, 1)[None] / 255
            for n in (1, 2, 3)
        )
        padded = [torch.zeros(1, 3, 96, 96) for _ in range(2)]
        for canvas, image in zip(padded, (img0, img1), strict=True):
            canvas[..., :72, :90] = image
        with torch.no_grad():
            frame = model(*padded).frame[..., :72, :90]
        expected.append([psnr((x * 255).round() / 255, gt) for x in (frame, (img0 + img1) / 2)])
    result = validate(model, ValidationSamples(Sequences(root, "test", 3)), CPU)
    assert list(result.values()) == pytest.approx(np.mean(expected, axis=0).tolist(), abs=1e-4)


def test_runs_that_cannot_go_on(triplets, tmp_path):
    config, run = recipe("paper", **SMALL, steps=1), tmp_path / "run"
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be resumed from"):
        train(config, triplets, run, device="cpu", resume=True)
    train(config, triplets, run, device="cpu")
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        train(config, triplets, run, device="cpu")
    with pytest.raises(UserError, match="is complete with 1 steps"):
        train(config, triplets, run, device="cpu", resume=True)
    with pytest.raises(UserError, match=r"was made with steps 1 \(now 2\), batch 2 \(now 4\); give the same options"):
        train(recipe("paper", **SMALL | {"batch": 4}, steps=2), triplets, run, device="cpu", resume=True)
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be resumed from"):
        train(config, triplets, run, device="cpu", resume=True)
    torch.save([1, 2], run / "checkpoint.pt")
    with pytest.raises(UserError, match="is no checkpoint of a training run"):
        train(config, triplets, run, device="cpu", resume=True)
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        Trainer(config, triplets, CPU._replace(world=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_the_data_are_one_line_also_out_of_workers(triplets, tmp_path, workers):
    with pytest.raises(UserError, match=r"^00001/000\d is 64x64, smaller than the crop of 96; choose a smaller crop$"):
        train(recipe("paper", **SMALL | {"crop": 96}, steps=1), triplets, tmp_path, device="cpu", workers=workers)


def test_a_loss_that_is_no_number_ends_the_run(triplets, tmp_path):
    with pytest.raises(UserError, match="the loss is nan at step 2; choose a lower --learning-rate"):
        train(recipe("paper", **SMALL, steps=2, learning_rate=1e30), triplets, tmp_path, device="cpu")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_rifem_learns_from_septuplets(tmp_path):
    root = make_set(tmp_path / "set", length=7)
    figures = train(recipe("rifem", **SMALL, steps=2), root, tmp_path / "run", device="cpu")
    model = checkpoints.load(tmp_path / "run" / "last.safetensors")
    assert model.config.timestep
    assert figures["step"] == 2
    with pytest.raises(UserError, match="it holds sequences of 7 instead"):
        train(recipe("paper", **SMALL, steps=2), root, tmp_path / "other", device="cpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU"))])
def test_bfloat16_changes_the_loss_by_little_and_reaches_every_parameter(device):
    torch.manual_seed(0)
    model = Rife(network_of(recipe("paper", width_factor=0.1)))
    img0, img1, gt = torch.rand(3, 2, 3, 64, 64).unbind()
    t = torch.full((2, 1, 1, 1), 0.5)
    exact = rife_loss(model.forward_train(img0, img1, gt, t), gt, 0.01)
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format  # as Trainer has it
    model.to(device, memory_format=layout)
    losses = Objective(model, 0.01, amp=True)(*(x.to(device) for x in (img0, img1, gt, t)))
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(exact.total.item(), rel=5e-3)
    assert losses.total.item() != exact.total.item()
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def gradients(config, data, device="cpu"):
    """Of the first step, in whatever process this runs."""
    with joined(device) as place:
        trainer = Trainer(config, data, place)
        trainer.update(next(iter(trainer.batches())))
        losses = trainer.mean_losses()
        return place.rank, {name: p.grad for name, p in trainer.model.named_parameters()}, losses


def one_of_two(rank, port, config, data, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    number, found, losses = gradients(config, data)
    if number == 0:
        torch.save((found, losses), out)


def test_two_processes_give_the_gradients_of_one_with_the_joined_batch(tmp_path):
    root = make_set(tmp_path / "set", count=4)
    config = recipe("paper", **SMALL | {"batch": 4}, steps=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, config, root, tmp_path / "shared.pt"), nprocs=2)
    shared, shared_losses = torch.load(tmp_path / "shared.pt", weights_only=True)
    _, alone, losses = gradients(config, root)
    assert shared.keys() == alone.keys()
    for name, gradient in alone.items():
        # A pixel at the distillation's threshold may fall to the other side; its share is one of 16384.
        torch.testing.assert_close(shared[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item(), msg=name)
    assert shared_losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_torchrun_takes_the_same_command(triplets, tmp_path):
    script = tmp_path / "command.py"
    script.write_text("from rife.cli_train import train\ntrain()\n")
    options = [
        "--width-factor",
        "0.05",
        "--batch",
        "2",
        "--crop",
        "64",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, name in ([], "alone"), (torchrun, "shared"):
        command = [sys.executable, *launcher, str(script), str(triplets), *options, "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert read_metrics(tmp_path / "shared")[0]["processes"] == 2
    alone, shared = (read_metrics(tmp_path / name)[-1]["val_psnr"] for name in ("alone", "shared"))
    assert shared == pytest.approx(alone, abs=0.01)


def test_the_command(triplets, tmp_path):
    options = [
        "--width-factor",
        "0.05",
        "--batch",
        "2",
        "--crop",
        "64",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    result = CliRunner().invoke(train_command, [str(triplets), *options, "-o", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'run'}: step 1, PSNR ")
    result = CliRunner().invoke(train_command, [str(triplets), *options, "-o", str(tmp_path / "second"), "--json"])
    assert json.loads(result.stdout)["step"] == 1
    result = CliRunner().invoke(train_command, [str(tmp_path), *options, "-o", str(tmp_path / "third")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert not Path(tmp_path / "third").exists()


def test_it_learns(triplets, tmp_path):
    """From nothing, a small network must come to know two triplets far better than the means of their frames."""
    config = recipe("paper", width_factor=0.1, batch=1, crop=64, augment=False, steps=60, learning_rate=3e-3)
    figures = train(config, triplets, tmp_path, device="cpu")
    assert figures["val_average"] < 24
    assert figures["val_psnr"] > 34  # measured: 37.3
