"""The command line itself: help pages, their speed, and every command through real files."""

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial

import click
import pytest
import torch
from addernet.architectures import ARCHITECTURES
from addernet.cli import main
from addernet.cli_train import ARCHITECTURES as NAMED
from addernet.cli_train import train
from addernet.recipes import AMP, recipe
from addernet_image_sets import make_cifar, make_folder
from click.testing import CliRunner
from papershelf.training_log import read_metrics

from addernet import checkpoints


def commands(group, path="addernet"):
    yield path, group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, f"{path} {name}")


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.output


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("colors") / "set", train=4, test=2)


@pytest.fixture(scope="module")
def run(colors, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--arch", "resnet20", "--epochs", "1", "--batch", "6", "--device", "cpu"]
    text = call("train", colors, *options, "-o", folder)
    assert text.startswith(f"{folder}: epoch 1, test accuracy ")
    return folder


@pytest.mark.parametrize(("path", "command"), list(commands(main)))
def test_every_help_page_ends_in_an_example(path, command):
    text = CliRunner().invoke(command, ["--help"]).output
    example = re.search(r"Examples?:\n((?:  .*\n)+)", text)
    assert example, text
    assert all(line.split()[0] == "addernet" for line in example[1].splitlines())


@pytest.mark.parametrize(("path", "command"), [pair for pair in commands(main) if pair[0] != "addernet"])
def test_the_examples_options_exist(path, command):
    text = CliRunner().invoke(command, ["--help"]).output
    for line in re.search(r"Examples?:\n((?:  .*\n)+)", text)[1].splitlines():
        words = line.split()
        known = {name for option in main.commands[words[1]].params for name in option.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_help_loads_no_torch():
    code = "import sys, addernet.cli; sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_page_has_sections_and_the_recipes_defaults():
    text = CliRunner().invoke(train, ["-h"], terminal_width=100).output
    titles = re.findall(r"^(\w[\w (')]*):$", text, re.M)
    assert titles == ["Data", "Network", "Recipe (the paper's unless given)", "This run", "Other", "Examples"]
    config = recipe("resnet20")
    for name in ("epochs", "batch", "lr", "momentum", "eta", "accumulate", "seed"):
        option = next(option for option in train.params if option.name == name)
        assert re.search(rf"\[default: {getattr(config, name)}[;\]]", option.help)
    assert "5e-4; ImageNet's networks 1e-4" in text


def test_names_that_the_help_page_repeats():
    assert NAMED == ARCHITECTURES
    assert next(option for option in train.params if option.name == "amp").type.choices == AMP


def test_versions():
    assert re.fullmatch(r"addernet \d+\.\d+\.\d+\n", call("--version"))


def test_train_takes_data_by_either_name(tmp_path):
    folder, _ = make_cifar(tmp_path / "set")
    options = ["--arch", "lenet", "--op", "conv", "--epochs", "1", "--batch", "10", "--device", "cpu", "--json"]
    a = json.loads(call("train", folder, *options, "-o", tmp_path / "a"))
    b = json.loads(call("train", "--data", folder, *options, "-o", tmp_path / "b"))
    assert a["train_loss"] == b["train_loss"]
    for data in ([], [folder, "--data", folder]):
        assert "name the data set once" in call("train", *data, code=2)


def test_train_on_nothing_is_one_line(tmp_path):
    text = call("train", tmp_path / "nowhere", "-o", tmp_path / "run", code=1)
    assert re.fullmatch(r"Error: .*nowhere does not exist; expected .*\n", text)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_state_to_resume(colors, tmp_path):
    command = [sys.executable, "-m", "addernet", "train", str(colors), "--arch", "lenet", "--op", "conv"]
    command += ["--batch", "6", "--epochs", "100000", "--device", "cpu", "--threads", "1", "-o", "run"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (tmp_path / "run" / "last.pt").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130, message
    assert re.search(r"^Stopped after step \d+ of 200000; --resume goes on from run$", message, re.M)
    assert "Traceback" not in message
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == int(re.search(r"after step (\d+)", message)[1])
    assert len(read_metrics(tmp_path / "run")) == 1 + state["step"] // 2


def test_eval(colors, run):
    text = call("eval", colors, "--weights", run / "model.safetensors", "--device", "cpu")
    assert re.search(r"^top 1 [\d.]+%, top 5 100.00%, loss [\d.]+$", text, re.M)
    result = json.loads(call("eval", colors, "--weights", run / "model.safetensors", "--json", "--device", "cpu"))
    assert result["images"] == 6
    assert 100 * result["top1"] == pytest.approx(read_metrics(run)[-1]["test_accuracy"])
    assert result["loss"] == pytest.approx(read_metrics(run)[-1]["test_loss"])


def test_predict(colors, run):
    image = colors / "test" / "red" / "000.png"
    text = call("predict", image, image, "--weights", run / "model.safetensors", "--top", 2)
    assert re.fullmatch(rf"({image}: \w+ [\d.]+%, \w+ [\d.]+%\n){{2}}", text)
    (row,) = json.loads(call("predict", image, "--weights", run / "model.safetensors", "--json"))
    assert set(row["classes"]) == {"red", "green", "blue"}
    assert "cannot read" in call("predict", run / "metrics.jsonl", "--weights", run / "model.safetensors", code=1)


def test_convert_to_the_released_form_and_back(run, tmp_path):
    text = call("convert", run / "model.safetensors", "-o", tmp_path / "a.pth")
    assert text == f"{tmp_path / 'a.pth'}: resnet20 adder, 3 classes\n"
    call("convert", tmp_path / "a.pth", "-o", tmp_path / "b.safetensors")
    a, b = (checkpoints.load(path).state_dict() for path in (run / "model.safetensors", tmp_path / "b.safetensors"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "needs the --arch" in call("convert", tmp_path / "a.pth", "--from-conv", "-o", tmp_path / "c.pth", code=2)


def test_convert_from_convolutions(tmp_path):
    from addernet.architectures import build

    conv = build("resnet20", op="conv")
    checkpoints.save(conv, tmp_path / "conv.safetensors")
    command = ["convert", tmp_path / "conv.safetensors", "--from-conv", "--arch", "resnet20"]
    call(*command, "-o", tmp_path / "start.safetensors")
    start = checkpoints.load(tmp_path / "start.safetensors")
    assert start.config.op == "adder"
    name = next(name for name, p in conv.named_parameters() if p.ndim == 4 and name.startswith("layer"))
    assert torch.equal(start.get_parameter(name), conv.get_parameter(name))


def test_export(run, tmp_path):
    text = call("export", "--weights", run / "model.safetensors", "-o", tmp_path / "net.pt2")
    assert text.startswith(f"{tmp_path / 'net.pt2'}: resnet20 adder, ")
    program = torch.export.load(tmp_path / "net.pt2")
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), checkpoints.load(run / "model.safetensors")(x))


def test_count():
    text = call("count")
    assert re.search(r"^resnet20 adder +81\.\d\d M +0\.\d\d M +0\.27 M", text, re.M)
    both = json.loads(call("count", "resnet18", "--json"))
    assert list(both) == ["resnet18 adder", "resnet18 conv"]
    parameters = {counted["parameters"] for counted in both.values()}
    assert parameters == {11_689_512 + 2 * 1000}  # torchvision's, and the batch norm of the classes
    assert "layer1.0.conv1" in call("count", "--op", "adder", "--layers")


def test_bench_hands_its_options_on(monkeypatch):
    speed = pytest.importorskip("addernet.speed")
    asked = []
    monkeypatch.setattr(speed, "run", lambda *words: asked.append(words) or "a table")
    assert call("bench", "--layers", "16-16-32x32", "--seconds", "0.5", "--json") == "a table\n"
    assert asked == [(("16-16-32x32",), 1, 0.5, True)]


def test_quantize(colors, run, tmp_path):
    path = tmp_path / "int8.safetensors"
    text = call("quantize", colors, "--weights", run / "model.safetensors", "--images", 6, "-o", path)
    assert re.fullmatch(rf"{path}: resnet20 int8, 0\.\d\d MB\n", text)
    exact, rough = (
        json.loads(call("eval", colors, "--weights", weights, "--json"))
        for weights in (run / "model.safetensors", path)
    )
    assert rough["network"] == "resnet20 adder int8"
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.05)
