"""Formats there and back: decoders, grids, samples, cameras; and what is said where that is not possible."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from distrender import camera_files, conversion, decoder_files
from distrender.cameras import Camera
from distrender.cli import main
from distrender.conversion import ConvertOptions, convert
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.grid import GridSDF
from distrender.sampling import NormalizationParameters, Samples
from papershelf.errors import UserError
from papershelf.images import write_image
from torch import nn
from torch.nn.utils import parametrizations

CONFIG = DecoderConfig(latent=5, hidden=24, layers=5, skip=(2,))
POINTS = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
SMALL = ConvertOptions(resolution=12, count=60)


@pytest.fixture(name="ours")
def _ours(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "ours.safetensors"
    decoder_files.save(path, DeepSDFDecoder(CONFIG), torch.randn(2, 5), ["mug", "bowl"])
    return path


def assert_same_decoder(path, ours):
    found, expected = decoder_files.load_experiment(path), decoder_files.load_experiment(ours)
    code = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(found.decoder(code, POINTS), expected.decoder(code, POINTS), rtol=1e-5, atol=1e-6)
    return found, expected


class Original(nn.Module):
    """DeepSDF's network by its description: layers called lin{k}, all but the last with weight normalisation."""

    def __init__(self, specs, latent):
        super().__init__()
        dims = [latent + 3, *specs["dims"], 1]
        for k in range(len(dims) - 1):
            out = dims[k + 1] - dims[0] if k + 1 in specs["latent_in"] else dims[k + 1]
            linear = nn.Linear(dims[k], out)
            named = specs["weight_norm"] and k in specs["norm_layers"]
            self.add_module(f"lin{k}", old_weight_norm(linear) if named else linear)

    def forward(self, x):
        layers = list(self.children())
        y = x
        for k, layer in enumerate(layers):
            y = layer(torch.cat([y, x], -1) if k in (2,) else y)
            y = torch.relu(y) if k + 1 < len(layers) else torch.tanh(y)
        return y[:, 0]


def old_weight_norm(linear):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(linear)


def test_an_experiment_loads_into_deepsdfs_own_network(tmp_path, ours):
    folder = tmp_path / "experiment"
    assert "2 codes" in convert(str(ours), folder)
    specs = json.loads((folder / "specs.json").read_text())
    assert specs["CodeLength"] == 5
    network = nn.DataParallel(Original(specs["NetworkSpecs"], 5))
    state = torch.load(folder / "ModelParameters" / "latest.pth", weights_only=True)
    assert set(state) == {"epoch", "model_state_dict"}
    network.load_state_dict(state["model_state_dict"])  # strict: every name, none beside them
    experiment = decoder_files.load_experiment(ours)
    code = experiment.codes[1]
    x = torch.cat([code.expand(len(POINTS), 5), POINTS], 1)
    torch.testing.assert_close(network.module(x), experiment.decoder(code, POINTS), rtol=1e-5, atol=1e-6)
    embedding = nn.Embedding(2, 5)
    embedding.load_state_dict(torch.load(folder / "LatentCodes" / "latest.pth", weights_only=True)["latent_codes"])
    assert torch.equal(embedding.weight, experiment.codes)


def test_an_experiment_comes_back(tmp_path, ours):
    convert(str(ours), tmp_path / "experiment")
    convert(str(tmp_path / "experiment"), tmp_path / "again.safetensors")
    found, expected = assert_same_decoder(tmp_path / "again.safetensors", ours)
    assert torch.equal(found.codes, expected.codes)
    assert found.decoder.config == CONFIG
    with pytest.raises(UserError, match="is there already"):
        convert(str(ours), tmp_path / "experiment")


@pytest.mark.parametrize("dialect", ["deepsdf", "newer", "plain"])
def test_weights_of_every_dialect_come_back(tmp_path, ours, dialect):
    said = convert(str(ours), tmp_path / "w.pth", ConvertOptions(dialect=dialect))
    assert "2 codes are not in it" in said
    assert_same_decoder(tmp_path / "w.pth", ours)
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model_state_dict"]
    assert ("module.lin0.weight_g" in state) == (dialect == "deepsdf")
    assert ("lin0.weight" in state) == (dialect == "plain")


def test_the_newer_dialect_is_pytorchs(tmp_path, ours):
    convert(str(ours), tmp_path / "w.pth", ConvertOptions(dialect="newer"))
    decoder = DeepSDFDecoder(CONFIG)
    for k in range(CONFIG.layers):
        parametrizations.weight_norm(getattr(decoder, f"lin{k}"))
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model_state_dict"]
    decoder.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})


def test_networks_that_deepsdf_does_not_know_stay_ours(tmp_path):
    decoder_files.save(tmp_path / "s.safetensors", DeepSDFDecoder(DecoderConfig(2, 12, 2, (), activation="softplus")))
    for output in ("w.pth", "folder"):
        with pytest.raises(UserError, match=r"keep it as \.safetensors"):
            convert(str(tmp_path / "s.safetensors"), tmp_path / output)
        assert not (tmp_path / output).exists()


@pytest.fixture(name="mesh")
def _mesh(tmp_path):
    trimesh.creation.box((2.0, 1.0, 1.0)).apply_translation((5, 0, 0)).export(tmp_path / "box.ply")
    return tmp_path / "box.ply"


def test_a_mesh_becomes_a_grid(tmp_path, mesh):
    convert(str(mesh), tmp_path / "box.npz", ConvertOptions(to="grid", resolution=12))
    assert torch.equal(GridSDF.load(tmp_path / "box.npz").values, GridSDF.from_mesh(mesh, 12).values)


def test_a_mesh_becomes_samples_where_deepsdf_looks_for_them(tmp_path, mesh):
    output = tmp_path / "SdfSamples" / "set" / "box.npz"
    output.parent.mkdir(parents=True)
    convert(str(mesh), output, ConvertOptions(to="samples", count=60))
    samples = Samples.load(output)
    assert len(samples.pos) + len(samples.neg) == 60
    found = NormalizationParameters.load(tmp_path / "NormalizationParameters" / "set" / "box.npz")
    np.testing.assert_allclose(found.apply(np.array([[5.0, 0, 0]])), 0, atol=1e-6)
    corner = found.apply(np.array([[6.0, 0.5, 0.5]]))
    assert np.linalg.norm(corner) == pytest.approx(1 / 1.03)
    assert conversion.normalization_path(Path("a/b.npz")) == Path("a/b_normalization.npz")


def test_other_shapes_become_grids(tmp_path, ours):
    convert("sphere(0.5)", tmp_path / "s.npz", SMALL)
    grid = GridSDF.load(tmp_path / "s.npz")
    assert grid(torch.tensor([[1.05, 0.0, 0.0]])).item() == pytest.approx(0.55, abs=0.01)
    convert(str(ours), tmp_path / "d.npz", ConvertOptions(code="bowl", resolution=3))
    experiment = decoder_files.load_experiment(ours)
    corner = experiment.decoder(experiment.codes[1], torch.full((1, 3), -1.05))
    assert GridSDF.load(tmp_path / "d.npz").values[0, 0, 0].item() == pytest.approx(corner.item(), abs=1e-5)
    convert("sphere(0.5)", tmp_path / "p.npz", ConvertOptions(to="samples", count=60))
    assert len(Samples.load(tmp_path / "p.npz").neg) > 10


@pytest.mark.parametrize("output", ["c.json", "cameras.npz", "c_par.txt", "colmap", "model/images.txt"])
def test_cameras_come_back_from_every_format(tmp_path, output):
    camera = Camera.orbit(3, first=200.0, focal=310.0, size=(120, 160))
    names = ["a.png", "b.png", "c.png"]
    camera_files.write(tmp_path / "in.json", camera, names)
    for name in names:
        write_image(tmp_path / name, np.zeros((120, 160, 3), np.uint8))
    assert "3 cameras" in convert(str(tmp_path / "in.json"), tmp_path / output)
    again = tmp_path / ("model" if output.startswith("model") else output)
    convert(str(again), tmp_path / "out.json")
    found = camera_files.read_named(tmp_path / "out.json")
    assert found.names == tuple(names)
    assert found.cameras.size == (120, 160)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    for a, b in zip(found.cameras.project(points), camera.project(points), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


def test_cameras_that_a_format_cannot_hold(tmp_path):
    camera = Camera.orbit(1, size=(20, 20))
    with pytest.raises(UserError, match="no spaces"):
        camera_files.write(tmp_path / "c_par.txt", camera, ["view one.png"])
    skewed = camera.intrinsics.clone()
    skewed[:, 0, 1] = 1.0
    with pytest.raises(UserError, match="no skew"):
        camera_files.write(tmp_path / "colmap", Camera(skewed, camera.rotation, camera.translation, camera.size))
    with pytest.raises(UserError, match=r"written as \.json"):
        camera_files.write(tmp_path / "c.xml", camera)


@pytest.mark.parametrize(
    ("source", "output", "to", "says"),
    [
        ("box.ply", "b.npz", None, "add --to grid or --to samples"),
        ("box.ply", "b.obj", None, "dist-render mesh"),
        ("sphere(0.5)", "b.ply", None, "dist-render mesh sphere"),
        ("box.ply", "b.pth", None, r"is a mesh, which cannot become \.pth"),
        ("box.ply", "b.pth", "grid", r"makes an \.npz"),
        ("box.ply", "folder", None, "cannot become a folder"),
        ("ours.safetensors", "b.bin", None, r"written as \.safetensors"),
        ("nothing", "b.npz", None, "neither a decoder"),
        ("missing.npz", "b.json", None, "cannot read"),
        ("odd.npz", "b.json", None, "expected a grid, samples or cameras"),
        ("text.npz", "b.json", None, "expected"),
        ("grid.npz", "b.npz", None, "is a grid already"),
        ("missing.json", "b.npz", None, "no such file"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, monkeypatch, ours, mesh, source, output, to, says):
    monkeypatch.chdir(tmp_path)
    np.savez("odd.npz", other=np.zeros(3))
    Path("text.npz").write_text("no archive")
    GridSDF(torch.ones(2, 2, 2)).save("grid.npz")
    with pytest.raises(UserError, match=says) as caught:
        convert(source, Path(output), ConvertOptions(to=to))
    assert "\n" not in str(caught.value)
    assert not Path(output).exists()


def test_the_command(tmp_path, ours):
    result = CliRunner().invoke(main, ["convert", str(ours), "--dialect", "plain", "-o", str(tmp_path / "w.pth")])
    assert result.exit_code == 0, result.output
    assert "w.pth: a decoder" in result.output
    result = CliRunner().invoke(main, ["convert", "sphere(0.5)", "-o", str(tmp_path / "s.ply")])
    assert result.exit_code == 1
    result = CliRunner().invoke(main, ["convert", "c_par.txt", "--size", "0", "4", "-o", str(tmp_path / "c.json")])
    assert result.exit_code == 2


def test_maurocks_decoder_becomes_deepsdfs(tmp_path):
    if not os.environ.get("PAPERSHELF_DATA"):
        pytest.skip("PAPERSHELF_DATA is not set")
    source = Path(os.environ["PAPERSHELF_DATA"]) / "deepsdf" / "maurock_3shapes"
    convert(str(source), tmp_path / "experiment")
    found, expected = (decoder_files.load_experiment(path) for path in (tmp_path / "experiment", source))
    assert torch.equal(found.codes, expected.codes)
    code = expected.codes[0]
    torch.testing.assert_close(found.decoder(code, POINTS), expected.decoder(code, POINTS), rtol=1e-5, atol=1e-6)
