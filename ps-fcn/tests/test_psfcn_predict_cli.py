"""``psfcn predict`` through real files."""

import json

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from papershelf.images import read_image, write_image
from psfcn.captures import read
from psfcn.checkpoints import save
from psfcn.cli import main
from psfcn.cli_predict import METHODS as OFFERED
from psfcn.estimation import METHODS, estimate, find_lights
from psfcn.lcnet import LCNet
from psfcn.light_files import read_lights, write_lights
from psfcn.networks import PSFCN
from scipy.io import savemat

SIZE, Q = 40, 10


@pytest.fixture
def ball(tmp_path):
    """A folder with a matt ball under ten lights, and its true normals."""
    folder = tmp_path / "ball"
    folder.mkdir()
    turn, lean = np.linspace(0, 6, Q), np.linspace(0.2, 0.7, Q)
    lights = np.stack([np.sin(lean) * np.cos(turn), np.sin(lean) * np.sin(turn), np.cos(lean)], -1)
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, SIZE), np.linspace(1.3, -1.3, SIZE))
    mask = x**2 + y**2 < 0.95
    normals = np.stack([x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))], -1) * mask[..., None]
    for k, light in enumerate(lights):
        shading = np.clip(normals @ light, 0, 1)[..., None] * [0.9, 0.6, 0.3]
        write_image(folder / f"{k}.png", (shading * 65535).round().astype(np.uint16))
    write_lights(folder / "light_directions.txt", lights)
    write_image(folder / "mask.png", (mask[..., None] * np.uint8(255)))
    savemat(folder / "Normal_gt.mat", {"Normal_gt": normals})
    return folder


def run(*words):
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def test_what_is_offered_is_what_there_is():
    assert set(OFFERED) == set(METHODS)


def test_everything_asked_for_is_written(ball, tmp_path):
    out = tmp_path / "new" / "out"
    result = run(ball, "-o", out, "--method", "robust", "--depth", "--mesh", "obj", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["error_degrees"] < 1.5
    assert report["confidence"] > 0.9
    assert sorted(report["files"]) == sorted(file.name for file in out.iterdir())
    normals = np.load(out / "normal.npy")
    picture = read_image(out / "normal.png")
    mask = read_image(ball / "mask.png")[..., 0] > 0
    np.testing.assert_allclose(picture[mask] / 127.5 - 1, normals[mask], atol=0.005)
    assert (picture[~mask] == 127).all()
    depth = np.load(out / "depth.npy")
    assert depth[SIZE // 2, SIZE // 2] - depth[SIZE // 2, 9] > 3  # the middle is nearest
    levels = read_image(out / "depth.png")[..., 0]
    assert levels[SIZE // 2, SIZE // 2] > levels[SIZE // 2, 9] > levels[0, 0] == 0
    assert len(trimesh.load(out / "mesh.obj", process=False).vertices) == mask.sum()


def test_a_network_from_a_file(ball, tmp_path):
    torch.manual_seed(0)
    save(PSFCN(normalise=True), tmp_path / "w.safetensors")
    out = tmp_path / "out"
    result = run(ball, "-o", out, "--method", "psfcn", "--weights", tmp_path / "w.safetensors", "--json")
    assert result.exit_code == 0, result.output
    untrained = json.loads(result.stdout)["error_degrees"]
    automatic = run(ball, "-o", out, "--weights", tmp_path / "w.safetensors", "--json")
    assert json.loads(automatic.stdout)["error_degrees"] < 1.5 < untrained
    assert "robust least squares explains" in automatic.stderr


def test_lights_are_found_and_written(ball, tmp_path, monkeypatch):
    known = read(ball).lights
    strengths = np.linspace(0.5, 1.5, Q)
    # An untrained LCNet may see all lights in one place, from which there are no normals.
    decoded = torch.from_numpy(known)[None], torch.from_numpy(strengths)[None]
    monkeypatch.setattr("psfcn.lcnet.decode", lambda _: decoded)
    torch.manual_seed(0)
    save(LCNet(), tmp_path / "l.safetensors")
    out = tmp_path / "out"
    result = run(ball, "-o", out, "--uncalibrated", "--lcnet", tmp_path / "l.safetensors", "--method", "ls", "--json")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(read_lights(out / "lights.txt").directions, known, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(out / "light_intensities.txt"), strengths, rtol=1e-5)
    assert {"lights.txt", "light_intensities.txt"} <= set(json.loads(result.stdout)["files"])


def test_found_lights_divide_the_images(ball):
    torch.manual_seed(0)
    capture = read(ball)
    found, strengths = find_lights(capture, LCNet().eval())
    np.testing.assert_allclose(found.images * strengths[:, None, None, None], capture.images, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.lights, axis=1), 1, rtol=1e-5)


def test_the_gate_takes_what_explains_more(ball, monkeypatch):
    capture = read(ball)
    half = np.arange(SIZE)[None, :, None] < SIZE // 2  # a network that is right on the left and wrong on the right
    wrong = np.broadcast_to(np.float32([0.6, 0, 0.8]), capture.normals.shape)
    learnt = np.where(half, capture.normals, wrong)
    monkeypatch.setattr("psfcn.estimation.predict_normals", lambda *_, **__: learnt)
    shadowed = capture.images.copy()
    shadowed[:4, :, : SIZE // 2] *= 0.3  # where it is right, four of ten photographs mislead the classical method
    spoilt = type(capture)(shadowed, capture.mask, capture.names, capture.lights, capture.normals)
    found = estimate(spoilt, "auto", PSFCN(normalise=True))

    def error(normals):
        cosine = (normals * capture.normals).sum(-1)
        return np.degrees(np.arccos(np.clip(cosine, -1, 1)))[capture.mask].mean()

    assert error(found.normals) < 0.6 * min(error(learnt), error(estimate(spoilt, "robust").normals))
    assert 0.05 < found.learnt < 0.95
    assert 0.05 < found.worse < 0.95
    np.testing.assert_allclose(np.linalg.norm(found.normals[capture.mask], axis=-1), 1, rtol=1e-5)
    chain = estimate(spoilt, "auto", PSFCN(normalise=True), lights_found=True)
    assert (chain.learnt, chain.worse) == (1, None)
    assert error(chain.normals) == pytest.approx(error(learnt), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere: no such file or folder"),
        (["BALL", "--method", "magic"], 2, "magic"),
        (["BALL", "BALL/light_directions.txt", "--uncalibrated"], 2, "leave LIGHTS or --uncalibrated out"),
        (["BALL", "--lcnet", "x"], 2, "--lcnet is for --uncalibrated"),
        (["BALL", "--weights", "x", "--method", "ls"], 2, "--weights is for"),
        (["BALL", "--gamma", "bright"], 1, "gamma must be"),
        (["BALL", "-o", "BALL/mask.png", "--method", "ls"], 1, "cannot make the folder"),
    ],
)
def test_bad_requests_are_answered_in_a_line(ball, words, code, message):
    result = run(*(word.replace("BALL", str(ball)) for word in words))
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_capture_without_lights_says_what_to_do(ball):
    (ball / "light_directions.txt").unlink()
    result = run(ball, "--method", "ls")
    assert result.exit_code == 1
    assert "--uncalibrated" in result.stderr
