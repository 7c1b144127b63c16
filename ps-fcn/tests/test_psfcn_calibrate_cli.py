"""``psfcn calibrate`` through real files."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.images import read_image, write_image
from psfcn import cli_calibrate
from psfcn.angles import degrees
from psfcn.balls import Ball, ball_normals
from psfcn.calibration_run import MODES
from psfcn.checkpoints import save
from psfcn.cli import main
from psfcn.lcnet import LCNet
from psfcn.light_files import read_intensities, read_lights, write_lights

BALL, SIZE = Ball(70, 60, 40), (120, 150)
TURNS = np.radians([10, 100, 200, 310])
LEAN = np.radians([10, 25, 40, 55])
LIGHTS = np.stack([np.sin(LEAN) * np.cos(TURNS), np.sin(LEAN) * np.sin(TURNS), np.cos(LEAN)], 1)
STRENGTHS = np.array([1.2, 0.8, 0.6, 1.4])
NORMALS, INSIDE = ball_normals(BALL, SIZE)


def write_folder(folder, images):
    folder.mkdir()
    for k, image in enumerate(images):
        picture = np.where(INSIDE, image, 0.3)[..., None].repeat(3, 2).clip(0, 1)
        write_image(folder / f"{k}.png", (picture * 65535).round().astype(np.uint16))
    return folder


@pytest.fixture
def chrome(tmp_path):
    """A folder with a chrome ball before a grey wall, without a mask."""
    reflected = 2 * NORMALS[..., 2:] * NORMALS - [0, 0, 1]
    return write_folder(tmp_path / "chrome", [np.exp(200 * (reflected @ light - 1)) + 0.05 for light in LIGHTS])


@pytest.fixture
def gray(tmp_path):
    lit = np.clip(NORMALS @ LIGHTS.T, 0, None)
    return write_folder(tmp_path / "gray", [0.5 * e * lit[..., k] for k, e in enumerate(STRENGTHS)])


@pytest.fixture
def mask(tmp_path):
    write_image(tmp_path / "ball.png", INSIDE[..., None] * np.uint8(255))
    return tmp_path / "ball.png"


def run(*words):
    return CliRunner().invoke(main, ["calibrate", *map(str, words)])


def test_what_is_offered_is_what_there_is():
    assert cli_calibrate.MODES == MODES


@pytest.mark.parametrize("suffix", [".txt", ".lp", ".yml"])
def test_a_chrome_ball_gives_a_light_file(chrome, mask, tmp_path, suffix):
    out = tmp_path / f"lights{suffix}"
    result = run(chrome, "--mask", mask, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: 4 lights from a ball of radius 40.0 pixels\n"
    assert not result.stderr
    lights = read_lights(out)
    assert degrees(lights.directions, LIGHTS).max() < 1
    assert lights.names == (("0.png", "1.png", "2.png", "3.png") if suffix == ".lp" else ())
    assert len(list(tmp_path.iterdir())) == 3  # nothing else was written


def test_every_layout_and_a_ball_that_no_mask_shows(chrome, tmp_path):
    (tmp_path / "list.txt").write_text("4\n" + "".join(f"chrome/{k}.png\n" for k in range(4)))
    write_lights(tmp_path / "old.lp", -LIGHTS, tuple(f"chrome/{k}.png" for k in range(4)))
    write_lights(chrome / "lights.txt", LIGHTS[:2])  # of another day: neither read nor in the way
    for layout in (chrome, tmp_path / "list.txt", tmp_path / "old.lp"):
        result = run(layout, "-o", tmp_path / "out.txt", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["balls"][0]["radius"] == pytest.approx(40, abs=0.7)
        assert "a ball was found by its outline" in result.stderr
        assert report["notes"][0] in result.stderr
        assert degrees(read_lights(tmp_path / "out.txt").directions, LIGHTS).max() < 2.5


def test_lights_are_compared_and_drawn(chrome, mask, tmp_path):
    other = LIGHTS.copy()
    other[2] = [0, 0, 2]
    write_lights(tmp_path / "other.txt", other)
    words = (chrome, "--mask", mask, "-o", tmp_path / "out.txt", "--compare", tmp_path / "other.txt")
    result = run(*words, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert float(lines[2].split()[-2]) == pytest.approx(40, abs=1)
    assert "largest" in lines[4]
    assert "(2.png)" in lines[4]
    sheet = read_image(tmp_path / "sheet.png")
    red = (sheet[..., 0] > 200) & (sheet[..., 1] < 120)
    assert red.sum() > 4 * 30  # a cross on each tile
    names = ("3.png", "2.png", "1.png", "0.png")
    write_lights(tmp_path / "other.lp", LIGHTS[::-1], names)  # by names, in whatever order
    report = json.loads(run(*words[:-1], tmp_path / "other.lp", "--json").stdout)
    assert max(row["angle_degrees"] for row in report["lights"]) < 1


def test_a_matt_ball_gives_intensities_too(gray, mask, tmp_path):
    result = run(gray, "--mask", mask, "--mode", "matt", "-o", tmp_path / "lights.txt")
    assert result.exit_code == 0, result.output
    assert degrees(read_lights(tmp_path / "lights.txt").directions, LIGHTS).max() < 0.5
    found = read_intensities(tmp_path / "light_intensities.txt")
    np.testing.assert_allclose(found[:, 0], STRENGTHS / STRENGTHS.mean(), rtol=0.01)
    (tmp_path / "light_intensities.txt").unlink()
    (tmp_path / "lights.txt").unlink()
    write_lights(tmp_path / "known.yml", LIGHTS)
    words = ("--lights", tmp_path / "known.yml", "--intensities", tmp_path / "e.txt", "-o", tmp_path / "lights.txt")
    result = run(gray, "--mask", mask, "--mode", "matt", *words)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(read_intensities(tmp_path / "e.txt"), found, rtol=0.01)
    assert not (tmp_path / "lights.txt").exists()


def test_lcnet_sees_lights_on_any_object(gray, tmp_path, monkeypatch):
    decoded = torch.from_numpy(LIGHTS)[None], torch.from_numpy(STRENGTHS)[None]
    monkeypatch.setattr("psfcn.lcnet.decode", lambda _: decoded)  # an untrained one sees nothing
    save(LCNet(), tmp_path / "l.safetensors")
    words = ("--mode", "lcnet", "--weights", tmp_path / "l.safetensors", "-o", tmp_path / "out.txt")
    result = run(gray, *words, "--sheet", tmp_path / "s.jpg")
    assert result.exit_code == 0, result.output
    assert "one was proposed" in result.stderr
    assert degrees(read_lights(tmp_path / "out.txt").directions, LIGHTS).max() < 1e-5
    found = read_intensities(tmp_path / "light_intensities.txt")
    np.testing.assert_allclose(found[:, 1], STRENGTHS / STRENGTHS.mean(), rtol=1e-4)
    assert read_image(tmp_path / "s.jpg").shape[2] == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere: no such file or folder"),
        (["CHROME", "--mode", "magic"], 2, "magic"),
        (["CHROME", "--lights", "x.txt"], 2, "--compare"),
        (["CHROME", "--weights", "x.pth"], 2, "--weights is for --mode lcnet"),
        (["CHROME", "--intensities", "x.txt"], 2, "tells no intensities"),
        (["CHROME", "-o", "TMP/lights.json"], 2, "must end in one of .txt, .lp"),
        (["CHROME", "--sheet", "TMP/s.gif"], 2, "must end in one of .png"),
        (["CHROME", "--sheet", "TMP/none/s.png"], 1, "make it first"),
        (["CHROME", "--gamma", "bright"], 1, "gamma must be"),
        (["CHROME", "--mask", "TMP/square.png"], 1, "no disc"),
        (["CHROME", "--mask", "TMP/missing.png"], 1, "cannot read"),
        (["CHROME", "--mask", "TMP/small.png"], 1, "make them alike"),
        (["CHROME", "--compare", "TMP/three.txt"], 1, "has 3 lights and there are 4 images"),
        (["CHROME", "--mode", "matt"], 1, "--mode chrome"),
        (["GRAY"], 1, "--mode matt"),
        (["EMPTY"], 1, "no images here"),
        (["MIXED"], 1, "all images must be alike"),
        (["BROKEN"], 1, "cannot read"),
        (["BLACK"], 1, "no ball is seen"),
        (["GRAY", "--mode", "lcnet", "--weights", "TMP/three.txt"], 1, "networks come in files"),
    ],
)
def test_bad_requests_are_answered_in_a_line_and_leave_nothing(chrome, gray, tmp_path, words, code, message):
    write_image(tmp_path / "small.png", np.full((9, 9, 1), 255, np.uint8))
    write_image(tmp_path / "square.png", np.pad(np.full((60, 60, 1), 255, np.uint8), ((30, 30), (40, 50), (0, 0))))
    write_lights(tmp_path / "three.txt", LIGHTS[:3])
    places = {"CHROME": chrome, "GRAY": gray, "TMP": tmp_path, "EMPTY": tmp_path / "empty"}
    for name in ("empty", "mixed", "broken", "black"):
        places[name.upper()] = tmp_path / name
        (tmp_path / name).mkdir()
    for name in ("mixed", "broken", "black"):
        write_image(tmp_path / name / "0.png", np.zeros((120, 150, 3), np.uint8))
    write_image(tmp_path / "mixed" / "1.png", np.zeros((120, 151, 3), np.uint8))
    (tmp_path / "broken" / "1.png").write_bytes((tmp_path / "broken" / "0.png").read_bytes()[:60])
    before = sorted(tmp_path.iterdir())
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    if "-o" not in words:
        words += ["-o", str(tmp_path / "lights.txt")]
    result = run(*words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.count("Error:") == 1
    assert len(result.stderr.strip().splitlines()) <= 4  # click's usage has three lines
    assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before
