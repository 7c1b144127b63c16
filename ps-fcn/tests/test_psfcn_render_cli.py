"""``psfcn render`` through real files: the same from any number of processes, gone on with, and in both layouts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from click.testing import CliRunner
from psfcn import held_out, materials
from psfcn.cli import main
from psfcn.samples import Sample
from scipy.io import loadmat

TINY = ["--size", "16", "--lights", "4..6", "--workers", "1"]


def run(*args):
    return CliRunner().invoke(main, ["render", *map(str, args)], catch_exceptions=False)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    for name in ("torus", "homer", "rocker-arm"):
        trimesh.creation.torus(1, 0.4, 12, 8).export(folder / f"{name}.obj")
    return folder


def test_two_processes_write_what_one_writes(tmp_path):
    assert run("-o", tmp_path / "one", "--count", 4, *TINY).exit_code == 0
    result = run("-o", tmp_path / "two", "--count", 4, *TINY[:-1], 2, "--json")
    assert json.loads(result.stdout)["rendered"] == 4
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == [*(f"00000{i}.npz" for i in range(4)), "render.json"]


def test_a_folder_is_gone_on_with_but_not_with_other_options(tmp_path):
    out = tmp_path / "out"
    run("-o", out, "--count", 3, *TINY)
    before = contents(out)
    (out / "000001.npz").unlink()
    report = json.loads(run("-o", out, "--count", 4, *TINY, "--json").stdout)
    assert (report["rendered"], report["kept"]) == (2, 2)
    assert before.items() <= contents(out).items()
    other = run("-o", out, "--count", 4, *TINY, "--seed", 1)
    assert other.exit_code == 1
    assert (
        other.stderr == f"Error: {out} has samples rendered with other options (see render.json); name another folder\n"
    )


def test_seeds_give_other_samples(tmp_path):
    run("-o", tmp_path / "a", "--count", 1, *TINY)
    run("-o", tmp_path / "b", "--count", 1, *TINY, "--seed", 1)
    assert contents(tmp_path / "a")["000000.npz"] != contents(tmp_path / "b")["000000.npz"]


def test_training_leaves_the_held_out_meshes_and_materials_alone(tmp_path, meshes):
    out = tmp_path / "out"
    result = run("-o", out, "--count", 12, *TINY, "--shapes", "meshes", "--meshes", meshes, "--materials", "measured")
    assert result.stderr.splitlines()[-1] == "Held out for tests and left out: homer, rocker-arm"
    samples = [Sample.load(file) for file in sorted(out.glob("*.npz"))]
    assert {sample.shape for sample in samples} == {"torus"}
    used = {sample.material.partition(":")[2] for sample in samples}
    assert used <= set(materials.names("train"))
    test = tmp_path / "test"
    run(
        "-o",
        test,
        "--count",
        6,
        *TINY,
        "--shapes",
        "meshes",
        "--meshes",
        meshes,
        "--materials",
        "measured",
        "--split",
        "test",
    )
    samples = [Sample.load(file) for file in sorted(test.glob("*.npz"))]
    assert {sample.shape for sample in samples} <= {"homer", "rocker-arm"}
    assert {sample.material.removeprefix("sgd:") for sample in samples} <= set(materials.names("test"))


def test_the_diligent_layout_says_the_same_as_npz(tmp_path):
    run("-o", tmp_path / "npz", "--count", 2, *TINY, "--intensities")
    run("-o", tmp_path / "dil", "--count", 2, *TINY, "--intensities", "--layout", "diligent")
    sample, folder = Sample.load(tmp_path / "npz" / "000001.npz"), tmp_path / "dil" / "000001PNG"
    names = (folder / "filenames.txt").read_text().split()
    assert len(names) == len(sample.lights)
    for name, image in zip(names, sample.images, strict=True):
        read = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read[..., ::-1], image)
    np.testing.assert_array_equal(cv2.imread(str(folder / "mask.png"), 0) > 127, sample.mask)
    np.testing.assert_allclose(np.loadtxt(folder / "light_directions.txt"), sample.lights, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(folder / "light_intensities.txt"), sample.intensities, atol=1e-6)
    np.testing.assert_array_equal(loadmat(folder / "Normal_gt.mat")["Normal_gt"], sample.normal)
    assert not list((tmp_path / "dil").glob(".part*"))


def test_the_test_set_is_fixed(tmp_path, meshes):
    kinds = {case.shape for case in held_out.cases(None)}
    assert kinds == {"sphere", "blob1", "blob2"}
    assert len(held_out.cases(None)) == len(held_out.cases(meshes)) == 60
    assert {case.material for case in held_out.cases(meshes)} == set(materials.names("test"))
    case = next(case for case in held_out.cases(meshes) if case.name == "rocker-arm_brass")
    sample = held_out.render_case(case, 16)
    assert (sample.shape, sample.material, len(sample.lights)) == ("rocker-arm", "sgd:brass", 96)
    np.testing.assert_array_equal(sample.images, held_out.render_case(case, 16).images)
    refused = run("-o", tmp_path / "out", "--test-set", "--lights", 8, "--seed", 2)
    assert refused.exit_code == 2
    assert "leave out --lights, --seed" in refused.stderr


def test_a_sheet_shows_photographs_beside_normals(tmp_path):
    result = run("-o", tmp_path / "out", "--count", 5, *TINY, "--shapes", "spheres", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
    assert sheet.shape == (2 * 128, 4 * 4 * 128, 3)
    corner = sheet[0, 3 * 128]
    assert (corner == 128).all()  # no object there: the normal (0, 0, 0)
    assert (sheet[128:, 4 * 128 :] == 0).all()  # one sample on the second row


def test_faults_are_told_in_one_line(tmp_path, meshes):
    empty = tmp_path / "empty"
    empty.mkdir()
    for args, code, message in (
        (["--lights", "9..6"], 2, "the larger number last"),
        (["--lights", "2"], 2, "at least 3 lights"),
        (["--lights", "many"], 2, "neither a number nor two"),
        (["--shapes", "cubes"], 2, "'cubes' is not one of blobs"),
        (["--materials", "measured,wood"], 2, "'wood' is not one of"),
        (["--shapes", "meshes"], 2, "needs --meshes"),
        (["--shapes", "meshes", "--meshes", empty], 1, "holds no mesh to train on"),
        (["--shapes", "meshes", "--meshes", tmp_path / "none"], 1, "is no folder"),
        (["--test-set", "--meshes", empty], 1, "expected homer or rocker-arm"),
        (["--count", 1_000_001], 1, "another --seed"),
    ):
        result = run("-o", tmp_path / "out", *args)
        assert result.exit_code == code, args
        assert message in result.stderr.splitlines()[-1], args
    (meshes / "torus.obj").write_text("nothing in it")
    result = run("-o", tmp_path / "out", "--count", 1, *TINY, "--shapes", "meshes", "--meshes", meshes)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: cannot read {meshes / 'torus.obj'} as a mesh")


def test_help_ends_in_examples_and_loads_nothing_heavy():
    result = run("--help")
    assert result.output.rstrip().splitlines()[-1].startswith("  psfcn render ")
    code = "import sys; import psfcn.cli_render; assert not {'numpy', 'torch'} & set(sys.modules), 'heavy'"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_ctrl_c_says_what_is_there_and_leaves_no_parts(tmp_path, monkeypatch):
    from psfcn import sample_folders

    calls = []

    def stopped(path, work, layout, real=sample_folders._render):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, work, layout)

    monkeypatch.setattr(sample_folders, "_render", stopped)
    result = run("-o", tmp_path / "out", "--count", 5, *TINY)
    assert result.exit_code == 130
    assert "2 of 5 samples are in" in result.stderr
    assert sorted(contents(tmp_path / "out")) == ["000000.npz", "000001.npz", "render.json"]
