"""``psfcn train`` and ``psfcn convert`` through real files."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from psfcn import checkpoints, cli_convert, cli_train, recipes
from psfcn.cli import main
from psfcn.light_files import read_lights
from psfcn.networks import PSFCN
from psfcn.samples import Sample
from psfcn_spheres import make_folder

SMALL = ["--batch", "2", "--lights", "3..4", "--crop", "8", "--side", "16", "--steps", "2", "--epochs", "1"]
SMALL += ["--device", "cpu", "--threads", "1"]


def run(*args):
    return CliRunner().invoke(main, [*map(str, args)])


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spheres")
    return make_folder(folder / "train", 3, size=16), make_folder(folder / "held-out", 1, first=100, size=16)


def test_lists_that_help_pages_repeat():
    assert cli_train.NETWORKS == recipes.NETWORKS
    assert cli_convert.WEIGHTS == checkpoints.SUFFIXES


@pytest.mark.parametrize("command", ["train", "convert"])
def test_help_ends_in_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:\n  psfcn " in result.output
    assert max(map(len, result.output.splitlines())) <= 120


def test_train_resume_convert(folders, tmp_path):
    data = ["--data", folders[0], "--validation", folders[1], "-o", tmp_path / "run"]
    result = run("train", "psfcn-n", *data, *SMALL)
    assert result.exit_code == 0, result.output
    assert "step 2, mean error " in result.stdout
    result = run("train", "psfcn-n", *data, *SMALL)
    assert result.exit_code == 1
    assert "holds a run already; go on with --resume" in result.stderr
    result = run("train", "psfcn-n", *data, *SMALL, "--steps", "3", "--resume", "--json")
    assert json.loads(result.stdout)["step"] == 3
    weights = tmp_path / "run" / "model.safetensors"
    result = run("convert", weights, "-o", tmp_path / "a.pth")
    assert result.stdout.endswith("a.pth: psfcn-n, 8.8 MB\n"), result.output
    result = run("convert", tmp_path / "a.pth", "--kind", "psfcn-n", "-o", tmp_path / "b.safetensors")
    assert result.exit_code == 0, result.output
    there, back = checkpoints.load(weights), checkpoints.load(tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(there.parameters(), back.parameters(), strict=True))
    assert back.metadata["converted"].startswith("psfcn ")


@pytest.mark.slow
def test_a_run_renders_what_it_is_not_given(tmp_path):
    options = ["--generate", "3", *SMALL, "-o", tmp_path / "run"]
    result = run("train", "psfcn-n", *options)
    assert result.exit_code == 0, result.output
    train, held_out = (
        [Sample.load(f) for f in sorted((tmp_path / "run" / name).glob("*.npz"))] for name in ("train", "validation")
    )
    assert [sample.images.shape for sample in train] == [(8, 16, 16, 3)] * 3
    assert len(held_out) == 24
    assert all(sample.material.startswith("sgd:") for sample in held_out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["psfcn-n"], "name the samples with --data FOLDER, or have them made with --generate COUNT"),
        (["psfcn-n", "--data", "a", "--generate", "2"], "name the samples with --data"),
        (["psfcn-n", "--data", "a", "--resume", "--from", "b"], "leave out --from"),
        (["psfcn-n", "--data", "a", "--lights", "2"], "expected at least 3 lights"),
        (["psfcn-n", "--data", "a", "--crop", "32..8"], "expected at least 8 pixels, and the larger number last"),
        (["resnet", "--data", "a"], "'resnet' is not one of"),
    ],
)
def test_flags_that_do_not_fit(options, message):
    result = run("train", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_one_process_renders(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("train", "psfcn", "--generate", "3")
    assert result.exit_code == 2
    assert "run psfcn render first" in result.stderr


def test_a_recipe_that_cannot_be_and_a_folder_without_samples(folders, tmp_path):
    result = run("train", "psfcn", "--data", folders[0], "--batch", "0")
    assert (result.exit_code, result.stderr) == (1, "Error: batch must be at least 1, got 0\n")
    result = run("train", "psfcn", "--data", tmp_path, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "holds no samples (*.npz); make some with: psfcn render" in result.stderr
    assert not (tmp_path / "run").exists()  # no held-out samples were rendered for nothing


def test_convert_lights(tmp_path):
    (tmp_path / "a.txt").write_text("0 0 1\n0.6 0 0.8\n0 0.6 0.8\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("p10.png", "p2.png", "p1.png"):
        (photos / name).touch()
    result = run("convert", tmp_path / "a.txt", "--images", photos, "-o", tmp_path / "a.lp")
    assert result.stdout.endswith("a.lp: 3 lights\n"), result.output
    lights = read_lights(tmp_path / "a.lp")
    assert lights.names == ("p1.png", "p2.png", "p10.png")
    result = run("convert", tmp_path / "a.lp", "-o", tmp_path / "b.txt")
    np.testing.assert_allclose(read_lights(tmp_path / "b.txt").directions, lights.directions)
    result = run("convert", tmp_path / "a.txt", "-o", tmp_path / "c.lp")
    assert result.exit_code == 1
    assert "names an image for each light" in result.stderr


def test_convert_refuses(tmp_path):
    checkpoints.save(PSFCN(), tmp_path / "a.pth")
    for args, message in [
        (["a.pth", "-o", "a.txt"], "weights become weights, and lights lights"),
        (["a.txt", "-o", "a.pth"], "weights become weights"),
        (["a.txt", "--full", "-o", "b.txt"], "are for files of weights"),
        (["a.pth", "--images", ".", "-o", "b.pth"], "--images is for light files"),
    ]:
        result = run("convert", *args)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    result = run("convert", tmp_path / "a.pth", "--kind", "lcnet", "-o", tmp_path / "b.pth")
    assert result.exit_code == 1
    assert "holds psfcn, not lcnet" in result.stderr
