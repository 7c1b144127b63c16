"""The command line through real files: pictures, depths, videos, meshes, and what is said of bad input."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from distrender import decoder_files, decoder_kernels
from distrender.cli import main
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.grid import GridSDF
from papershelf.images import read_image


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


SPHERE = "sphere(0.5)"


def test_help_has_examples_and_does_not_wait_for_torch():
    for words in ([], ["render"], ["mesh"], ["bench"], ["complete"], ["demo"]):
        shown = subprocess.run(
            [sys.executable, "-m", "distrender", *words, "--help"], capture_output=True, text=True, check=True
        )
        assert "Example" in shown.stdout
    imported = "import sys, distrender.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True).stdout.strip() == "False"


def test_a_sphere_s_silhouette_is_a_disc(tmp_path):
    done("render", SPHERE, "-o", tmp_path / "s.png", "--what", "silhouette", "--size", 64)
    black = read_image(tmp_path / "s.png")[..., 0] == 0
    # Seen from 2.5, a sphere of radius 0.5 has an angular radius of asin(0.2).
    radius = 150 / 137 * 64 * np.tan(np.arcsin(0.5 / 2.5))
    assert black.sum() == pytest.approx(np.pi * radius**2, rel=0.03)
    assert black[32, 32]
    assert not black[0, 0]


def test_depth_comes_as_numbers(tmp_path):
    done("render", SPHERE, "-o", tmp_path / "d.npy", "--what", "depth", "--size", 65)
    depth = np.load(tmp_path / "d.npy")
    assert depth.shape == (65, 65)
    assert depth[32, 32] == pytest.approx(2.0, abs=1e-4)
    assert np.isinf(depth[0, 0])
    done("render", SPHERE, "-o", tmp_path / "d.exr", "--what", "depth", "--size", 65, "--plain")
    np.testing.assert_allclose(read_image(tmp_path / "d.exr")[32, 32, 0], 2.0, atol=1e-3)


def test_normals_and_shading_look_towards_the_camera(tmp_path):
    done("render", SPHERE, "-o", tmp_path / "n.png", "--what", "normal", "--size", 33)
    middle, right, top = (read_image(tmp_path / "n.png")[at] / 255.0 for at in ((16, 16), (16, 22), (10, 16)))
    np.testing.assert_allclose(middle, [0.5, 0.5, 1.0], atol=0.02)
    assert right[0] > 0.7
    assert top[1] > 0.7
    done("render", SPHERE, "-o", tmp_path / "s.jpg", "--size", 33)
    shaded = read_image(tmp_path / "s.jpg").astype(float).mean(-1)
    assert shaded[10, 12] > shaded[22, 20]  # lit from above and left


def test_counts_are_printed(tmp_path):
    plain = json.loads(done("render", SPHERE, "-o", tmp_path / "a.png", "--size", 48, "--json", "--plain"))
    ours = json.loads(done("render", SPHERE, "-o", tmp_path / "b.png", "--size", 48, "--json"))
    assert plain["views"] == 1
    assert ours["queries"] > 48 * 48 * 0.1 < plain["queries"]
    assert ours["missed"] == plain["missed"] == 0
    assert ours["covered"] == pytest.approx(plain["covered"], abs=0.01)


def test_an_orbit_is_a_video(tmp_path):
    done("render", "box(0.5, 0.2, 0.3)", "--orbit", 6, "--size", 32, "-o", tmp_path / "turn.mp4")
    with av.open(str(tmp_path / "turn.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert np.abs(frames[0] - frames[1]).mean() > 2


@pytest.fixture
def files(tmp_path):
    """A mesh, a grid and a decoder."""
    trimesh.creation.icosphere(3, 0.7).export(tmp_path / "ball.obj")
    axis = torch.linspace(-1.05, 1.05, 24)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    GridSDF((x * x + y * y + z * z).sqrt() - 0.5).save(tmp_path / "ball.npz")
    torch.manual_seed(0)
    decoder = DeepSDFDecoder(DecoderConfig(latent=4, hidden=16, layers=4, skip=(2,)))
    with torch.no_grad():  # any untrained field, moved so that the middle is inside and the rim is not
        field = decoder.with_code(torch.ones(4))
        inner, outer = field(torch.zeros(1, 3)), field(torch.full((1, 3), 0.9))
        if inner > outer:
            list(decoder.parameters())[-2].neg_()
    decoder_files.save(tmp_path / "net.safetensors", decoder, torch.stack([torch.ones(4)]), ["one"])
    return tmp_path


def test_meshes_and_grids_are_shapes(files):
    for name in ("ball.obj", "ball.npz"):
        done("render", files / name, "-o", files / "a.png", "--size", 32, "--grid", 32)
        assert (read_image(files / "a.png") < 255).any()
    done("mesh", files / "ball.npz", "-o", files / "again.ply", "--resolution", 24)
    made = trimesh.load(files / "again.ply")
    np.testing.assert_allclose(made.bounds, [[-0.5] * 3, [0.5] * 3], atol=0.02)


def test_a_decoder_is_rendered_by_its_code(files):
    for code in ("0", "one"):
        done("render", files / "net.safetensors", "--code", code, "-o", files / "a.png", "--size", 16)
    result = run("render", files / "net.safetensors", "--code", "two", "-o", files / "b.png")
    assert result.exit_code == 1
    assert "no shape 'two'" in result.output
    assert not (files / "b.png").exists()


def test_sixteen_bits_far_from_the_surface_show_the_same(tmp_path):
    torch.manual_seed(0)
    decoder = DeepSDFDecoder(DecoderConfig(latent=0, hidden=24, layers=2, skip=(), final_tanh=0))
    directions = torch.nn.functional.normalize(torch.randn(24, 3), dim=1)
    with torch.no_grad():  # a ball's distance, as good as 24 directions tell it
        decoder.lin0.weight.copy_(directions)
        decoder.lin1.weight.copy_(torch.eye(24))
        for bias in (decoder.lin0.bias, decoder.lin1.bias):
            bias.zero_()
        decoder.lin2.weight.fill_(4 / 24)  # a half of the directions see a point, with a cosine of 1/2
        decoder.lin2.bias.fill_(-0.6)
    decoder_files.save(tmp_path / "ball.safetensors", decoder, torch.zeros(1, 0), ["one"])
    depths, counts = [], []
    for precision in ("mixed", "float32"):
        output, words = tmp_path / f"{precision}.npy", ("--what", "depth", "--size", 48, "--precision", precision)
        counts.append(json.loads(done("render", tmp_path / "ball.safetensors", "-o", output, *words, "--json")))
        depths.append(np.load(output))
    hit = np.isfinite(depths)
    assert hit.mean() > 0.1
    assert (hit[0] != hit[1]).sum() <= 2
    first, second = (depth[hit.all(0)] for depth in depths)
    assert np.quantile(np.abs(first - second), 0.95) < 1e-3
    if decoder_kernels.MULTIPLIES_BFLOAT16:
        assert counts[0]["queries"] != counts[1]["queries"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["render", "nothing.obj", "-o", "a.png"], 1, "no such file"),
        (["render", "sphere", "-o", "a.png"], 1, "nor an expression"),
        (["render", "sphere(", "-o", "a.png"], 1, "column 8"),
        (["render", SPHERE, "-o", "a.xyz"], 1, "choose .png"),
        (["render", SPHERE, "-o", "a.mp4"], 1, "needs --orbit"),
        (["render", SPHERE, "-o", "a.png", "--orbit", "3"], 1, "makes a video"),
        (["render", SPHERE, "-o", "a.npy"], 1, "--what depth"),
        (["render", SPHERE, "-o", "a.png", "--size", "0"], 2, "--size"),
        (["render", SPHERE], 2, "--output"),
        (["mesh", "sphere(9)", "-o", "a.obj"], 1, "no surface"),
        (["mesh", SPHERE, "-o", "a.txt"], 1, "written as"),
    ],
)
def test_bad_input_gets_one_line(words, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert len(result.output.strip().splitlines()) == 1
    assert not [*tmp_path.iterdir()]
