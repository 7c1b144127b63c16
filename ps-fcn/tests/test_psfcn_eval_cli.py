"""``psfcn eval`` through real files."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.images import read_image
from psfcn.checkpoints import save
from psfcn.cli import main
from psfcn.lcnet import LCNet
from psfcn.networks import PSFCN
from psfcn.published import OBJECTS
from psfcn.render_options import Options
from psfcn.rendering import render_sample
from psfcn.sample_folders import write_diligent
from psfcn_spheres import make_folder, sphere_sample
from scipy.io import savemat

SIZE, Q = 24, 8


@pytest.fixture
def rendered(tmp_path):
    """Two rendered objects in folders."""
    root = tmp_path / "set"
    root.mkdir()
    for seed, name in enumerate(("vase", "mug")):
        write_diligent(render_sample(seed, Options(size=SIZE, lights=(Q, Q))), root / f"{name}PNG")
    return root


def run(*words):
    return CliRunner().invoke(main, ["eval", *map(str, words)])


def shown(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_table_of_every_object_and_method(rendered):
    result = run(rendered, "--method", "ls,robust,trimmed,ls")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["degrees", "mug", "vase", "average"]
    figures = {label: [float(cell) for cell in cells] for label, *cells in map(str.split, lines[1:])}
    assert [*figures] == ["ls", "robust", "trimmed"]
    for mug, vase, average in figures.values():
        assert average == pytest.approx((mug + vase) / 2, abs=0.011)
    assert "published" not in result.stdout


def test_results_are_written(rendered, tmp_path):
    out = tmp_path / "new" / "results"
    report = shown(run(rendered, "--method", "ls,trimmed", "-o", out, "--json"))
    assert json.loads((out / "results.json").read_text()) == report
    files = {file for one in report["objects"].values() for file in one["files"]}
    assert {"results.json", *files} == {file.name for file in out.iterdir()}
    assert {"mug_sheet.png", "mug_ls_error.png", "vase_trimmed_error.png"} < files
    assert read_image(out / "mug_ls_error.png").shape == (SIZE, SIZE, 3)
    height, width = read_image(out / "mug_sheet.png").shape[:2]
    assert width > height
    assert report["average"]["ls"] == pytest.approx(
        np.mean([one["degrees"]["ls"] for one in report["objects"].values()]), abs=1e-3
    )
    assert report["objects"]["mug"]["pixels"] > 50


def test_samples_and_a_choice_of_lights(tmp_path):
    folder = make_folder(tmp_path / "samples", 3, size=SIZE, lights=12)
    words = [folder, "--method", "ls", "--lights", 5, "--json"]
    first = shown(run(*words))
    assert [*first["objects"]] == ["000000", "000001", "000002"]
    assert all(one["images"] == 5 for one in first["objects"].values())
    assert shown(run(*words)) == first
    assert shown(run(*words, "--seed", 1))["average"] != first["average"]
    assert [*shown(run(*words, "--objects", "000002,000000"))["objects"]] == ["000002", "000000"]


def test_a_network_and_the_gate(rendered, tmp_path):
    torch.manual_seed(0)
    save(PSFCN(normalise=True), tmp_path / "w.safetensors")
    result = run(rendered, "--weights", tmp_path / "w.safetensors", "--objects", "mug", "--json")
    report = shown(result)
    assert [*report["average"]] == ["psfcn", "auto", "robust", "ls", "trimmed"]
    assert report["average"]["psfcn"] > 40  # it has learnt nothing
    assert report["settings"]["network"]["kind"] == "psfcn-n"


def test_the_weights_that_ship_are_the_default(rendered):
    report = shown(run(rendered, "--json", "--method", "psfcn,robust,ls"))
    assert report["settings"]["network"]["kind"] == "psfcn-n"
    assert report["average"]["psfcn"] < 25  # 24 pixels, few lights: far from a network that has learnt nothing


def test_lights_that_lcnet_finds(rendered, tmp_path):
    torch.manual_seed(0)
    save(LCNet(), tmp_path / "l.safetensors")
    words = [rendered, "--uncalibrated", "--lcnet", tmp_path / "l.safetensors", "--method", "ls"]
    report = shown(run(*words, "--json"))
    assert report["settings"]["uncalibrated"]
    one, other = (one["lights"] for one in report["objects"].values())
    assert report["average_lights"]["direction"] == pytest.approx((one["direction"] + other["direction"]) / 2, abs=1e-4)
    assert 10 < one["direction"] < 120
    assert one["intensity"] >= 0
    text = run(*words).stdout
    assert "direction, degrees" in text
    assert "intensity, relative" in text


def test_lights_and_images_of_another_convention(rendered):
    right = shown(run(rendered, "--method", "ls", "--json"))["average"]["ls"]
    lights = rendered / "mugPNG" / "light_directions.txt"
    np.savetxt(lights, np.loadtxt(lights) * [1, -1, 1])
    words = [rendered / "mugPNG", "--method", "ls", "--json"]
    wrong = shown(run(*words))["average"]["ls"]
    turned = shown(run(*words, "--flip-lights", "y"))["average"]["ls"]
    assert wrong > turned + 10
    assert shown(run(*words, "--flip-lights", "y", "--gamma", "2.2"))["average"]["ls"] != turned
    assert run(rendered, "--gamma", "bright").stderr.startswith("Error: mug: gamma must be")
    whole = shown(run(rendered / "vasePNG", "--method", "ls", "--json"))["average"]["ls"]
    assert (turned + whole) / 2 == pytest.approx(right, abs=1e-3)


def test_published_figures_stand_below_diligent(tmp_path):
    pms = tmp_path / "pmsData"
    pms.mkdir()
    for name in OBJECTS:
        write_diligent(sphere_sample(0, size=12, lights=96), pms / f"{name}PNG")
    result = run(tmp_path, "--method", "ls", "--lights", "10")
    assert result.exit_code == 0, result.output
    heads = [line.removeprefix("degrees") for line in result.stdout.splitlines() if line.startswith("degrees")]
    assert "".join(heads).split() == [*OBJECTS, "average"]  # in the papers' order
    published = [line for line in result.stdout.splitlines() if line.startswith("published")]
    assert any("least squares, 96 images" in line and "4.10" in line for line in published)
    assert any("PS-FCN, 10 images" in line and line.endswith("10.19") for line in published)
    assert "bear: its first 20 images have faults" in result.stderr
    report = shown(run(tmp_path, "--method", "ls", "--json"))
    assert report["objects"]["bear"]["images"] == 96
    assert report["published"]["average"]["PS-FCN+N, 96 images"] == 7.39
    assert report["published"]["degrees"]["PS-FCN, 96 images"]["goblet"] == 8.60
    assert "published" not in run(tmp_path, "--method", "ls", "--no-published", "--objects", "ball").stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere: no such folder"),
        (["SET/mugPNG/mask.png"], 1, "expected a folder, or a sample"),
        (["EMPTY"], 1, "no objects here"),
        (["SET", "--objects", "mugg"], 1, "there is no object mugg among 2; there are mug"),
        (["SET", "SET"], 1, "is there twice"),
        (["SET", "--method", "magic"], 2, "'magic' is not one of"),
        (["SET", "--lcnet", "x"], 2, "--lcnet is for --uncalibrated"),
        (["SET", "--weights", "x", "--method", "ls"], 2, "--weights is for the methods psfcn and auto"),
        (["SET", "--weights", "x.safetensors", "--method", "auto"], 1, "x.safetensors: "),
        (["SET", "--lights", "0"], 2, "--lights"),
        (["SET", "--lights", "2", "--method", "ls"], 1, "mug: photometric stereo needs at least 3 images"),
        (["SET", "--method", "ls", "-o", "SET/mugPNG/mask.png"], 1, "cannot make the folder"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_requests_are_answered_in_a_line(rendered, tmp_path, words, code, message):
    (tmp_path / "empty").mkdir()
    places = {"SET": rendered, "EMPTY": tmp_path / "empty"}
    words = [str(places[word]) if word in places else word.replace("SET", str(rendered)) for word in words]
    result = run(*words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert code == 2 or len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "Normal_gt.mat").unlink(), "no true normals to measure against"),
        (lambda folder: (folder / "Normal_gt.mat").write_bytes(b"nonsense"), "cannot read"),
        (lambda folder: cut(folder / "Normal_gt.mat"), "cannot read"),
        (lambda folder: (folder / "Normal_gt.mat").write_bytes(bytes(100)), "cannot read"),
        (lambda folder: damage_compressed(folder / "Normal_gt.mat"), "cannot read"),
        (lambda folder: (folder / "003.png").unlink(), "003.png"),
        (lambda folder: cut(folder / "003.png"), "003.png"),
        (lambda folder: (folder / "light_directions.txt").unlink(), "the lights are not known"),
        (
            lambda folder: (folder / "light_intensities.txt").write_text("1 1 1\n"),
            "has 1 lights and there are 8 images",
        ),
        (lambda folder: (folder.parent / "objects.txt").write_text("vasePNG\nmissing\n"), "names missing"),
    ],
)
def test_damaged_data_is_named_in_a_line(rendered, spoil, message):
    spoil(rendered / "mugPNG")
    result = run(rendered, "--method", "ls")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def damage_compressed(file):
    savemat(file, {"Normal_gt": np.random.default_rng(0).normal(size=(SIZE, SIZE, 3))}, do_compression=True)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-200])


def test_damaged_samples_are_named(tmp_path):
    folder = make_folder(tmp_path / "samples", 2)
    cut(folder / "000001.npz")
    result = run(folder, "--method", "ls")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 000001: ")
