"""Decoders in files: every dialect gives the same network, and nothing from a file ever runs."""

import itertools
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from distrender import procedural
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.decoder_files import SHIPPED, load, load_experiment, save
from distrender.pickled import read_codes
from distrender.sampling import surface_points
from distrender.shape_files import open_shape
from papershelf.errors import UserError
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

CONFIG = DecoderConfig(latent=5, hidden=24, layers=7, skip=(4,))
POINTS = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
CODE = torch.linspace(-1, 1, 5)


@pytest.fixture
def decoder():
    torch.manual_seed(3)
    return DeepSDFDecoder(CONFIG)


def same_state(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def normalised(state, g, v, layers=None):
    """Weights as lengths and directions, under the names of a dialect."""
    result = OrderedDict()
    for name, tensor in state.items():
        layer, kind = name.split(".")
        if kind == "weight" and (layers is None or layer in layers):
            result[f"{layer}.{g}"] = tensor.norm(dim=1, keepdim=True)
            result[f"{layer}.{v}"] = tensor * torch.linspace(0.5, 2, len(tensor))[:, None]
        else:
            result[name] = tensor
    return result


def maurock_names(state):
    """Three layers, the one before the skip, three more, the last."""
    names = {f"lin{k}": f"net.{k - (k > 3)}.0" for k in range(7)} | {"lin3": "skip_layer.0", "lin7": "final_layer.0"}
    return OrderedDict((f"{names[n.split('.')[0]]}.{n.split('.', 1)[1]}", t) for n, t in state.items())


def dialects(state):
    hidden = [f"lin{k}" for k in range(7)]
    without_skip = [name for name in hidden if name != "lin3"]
    yield "released", normalised(state, "weight_g", "weight_v", hidden)
    yield "newer", normalised(state, "parametrizations.weight.original0", "parametrizations.weight.original1")
    yield "plain", OrderedDict(state)
    yield "maurock", maurock_names(normalised(state, "weight_g", "weight_v", without_skip))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dialect", ["released", "newer", "plain", "maurock"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_dialect_gives_the_same_network(tmp_path, decoder, dialect, prefix, suffix):
    state = {prefix + name: t.contiguous() for name, t in dict(dialects(decoder.state_dict()))[dialect].items()}
    if suffix == ".pth":
        torch.save({"epoch": 7, "model_state_dict": state}, tmp_path / "w.pth")
    else:
        save_file(state, tmp_path / "w.safetensors")
    again = load(tmp_path / f"w{suffix}")
    assert again.config == CONFIG
    assert not again.training
    torch.testing.assert_close(again(CODE, POINTS), decoder(CODE, POINTS), rtol=1e-5, atol=1e-6)


def test_pytorchs_own_weight_normalisation_is_multiplied_out(tmp_path, decoder):
    for k in range(8):
        parametrizations.weight_norm(getattr(decoder, f"lin{k}"))
        with torch.no_grad():
            getattr(decoder, f"lin{k}").parametrizations.weight.original0.mul_(1.5)
    torch.save(decoder.state_dict(), tmp_path / "w.pth")
    torch.testing.assert_close(load(tmp_path / "w.pth")(CODE, POINTS), decoder(CODE, POINTS), rtol=1e-5, atol=1e-6)


class Maurock(nn.Module):
    """github.com/maurock/DeepSDF by its description: `layers` in all, the skip used from eight on."""

    def __init__(self, layers, latent=5, hidden=24):
        super().__init__()
        self.skips = layers >= 8
        sizes = [latent + 3] + [hidden] * (layers - (2 if self.skips else 1))
        self.net = nn.Sequential(*[nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)])
        self.skip_layer = nn.Sequential(nn.Linear(hidden, hidden - latent - 3), nn.ReLU())
        self.final_layer = nn.Sequential(nn.Linear(hidden, 1), nn.Tanh())

    def forward(self, given):
        x = self.net[:3](given)
        if self.skips:
            x = torch.cat([self.skip_layer(x), given], 1)
        return self.final_layer(self.net[3:](x))[:, 0]


@pytest.mark.parametrize("layers", [5, 7, 8, 10])
def test_maurocks_network_layer_by_layer(tmp_path, layers):
    torch.manual_seed(layers)
    theirs = Maurock(layers)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "settings.yaml").write_text(f"inner_dim: 24\nnum_layers: {layers}\nskip_connections: true\n")
    ours = load(tmp_path)
    expected = theirs(torch.cat([CODE.expand(9, -1), POINTS], 1))
    torch.testing.assert_close(ours(CODE, POINTS), expected, rtol=1e-5, atol=1e-6)
    assert ours.config.skip == ((4,) if layers >= 8 else ())


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(),
        DecoderConfig(latent=3, hidden=16, layers=4, skip=(1, 4)),
        DecoderConfig(latent=3, hidden=16, layers=4, skip=(2,), xyz_in_all=True),
        DecoderConfig(latent=3, hidden=16, layers=2, skip=(), xyz_in_all=True),
        DecoderConfig(latent=0, hidden=16, layers=3, skip=(2,)),
        DecoderConfig(latent=8, hidden=16, layers=1, skip=()),
    ],
)
def test_architectures_are_seen_from_their_shapes(tmp_path, config):
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in DeepSDFDecoder(config).state_dict().items()}
    torch.save({name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").config == config


def experiment(folder, decoder, codes, specs=None):
    for part, content in (("ModelParameters", {"model_state_dict": decoder.state_dict()}), ("LatentCodes", codes)):
        (folder / part).mkdir()
        for epoch in ("latest", "100"):
            torch.save({"epoch": 100, **content}, folder / part / f"{epoch}.pth")
    network = {"dims": [24] * 7, "latent_in": [4], "use_tanh": False}
    (folder / "specs.json").write_text(json.dumps(specs or {"CodeLength": 5, "NetworkSpecs": network}))
    return folder


@pytest.mark.parametrize("form", ["embedding", "stacked"])
def test_deepsdf_experiments(tmp_path, decoder, form):
    codes = torch.randn(3, 5)
    kept = {"latent_codes": OrderedDict(weight=codes) if form == "embedding" else codes[:, None]}
    folder = experiment(tmp_path, decoder, kept)
    for epoch in ("latest", 100):
        found = load_experiment(folder, epoch)
        assert torch.equal(found.codes, codes)
        assert torch.equal(found.code("2"), codes[2])
        same_state(found.decoder, decoder)
    with pytest.raises(UserError, match="are 100, latest"):
        load_experiment(folder, 7)
    with pytest.raises(UserError, match=r"codes 0 to 2, got 3"):
        found.code(3)
    with pytest.raises(UserError, match="no names"):
        found.code("mug")


def test_a_second_tanh_is_in_the_specs(tmp_path, decoder):
    specs = {"CodeLength": 5, "NetworkSpecs": {"use_tanh": True}}
    found = load(experiment(tmp_path, decoder, {"latent_codes": torch.zeros(1, 1, 5)}, specs))
    torch.testing.assert_close(found(CODE, POINTS), decoder(CODE, POINTS).tanh())


def test_specs_that_contradict_the_weights(tmp_path, decoder):
    folder = experiment(tmp_path, decoder, {"latent_codes": torch.zeros(1, 1, 5)}, {"CodeLength": 6})
    with pytest.raises(UserError, match="CodeLength 6, the weights have 5"):
        load(folder)


def test_ours_come_back_as_they_were(tmp_path, decoder):
    codes = torch.randn(2, 5)
    save(tmp_path / "mine.safetensors", decoder, codes, ["mug 1", "vase"], {"seed": "4", "tool": "not this"})
    again = load_experiment(tmp_path / "mine.safetensors")
    assert again.decoder.config == CONFIG
    same_state(again.decoder, decoder)
    assert torch.equal(again.code("vase"), codes[1])
    assert (again.metadata["seed"], again.metadata["tool"]) == ("4", "dist-render")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.safetensors"]
    with pytest.raises(UserError, match="names are mug 1, vase"):
        again.code("cup")
    with pytest.raises(UserError, match="codes must be"):
        save(tmp_path / "mine.safetensors", decoder, codes[:, :4])
    with pytest.raises(UserError, match=r"as \.safetensors"):
        save(tmp_path / "mine.pth", decoder)


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def results(content, path):
    np.save(path, np.array([content], dtype=object)[0], allow_pickle=True)
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_in_pickled_numpy_files(tmp_path, dtype, order):
    codes = np.asarray(np.random.default_rng(0).normal(size=(3, 5)), dtype, order=order)
    box = np.empty((), object)
    box[()] = {"best_latent_codes": codes}
    for content in (box, np.array([{"best_latent_codes": codes}], object)[0], codes):
        np.save(tmp_path / "results.npy", content, allow_pickle=True)
        np.testing.assert_array_equal(read_codes(tmp_path / "results.npy", 5).numpy(), codes.astype(np.float32))


def test_no_code_from_a_file_runs(tmp_path, decoder):
    trace = tmp_path / "ran"
    results({"best_latent_codes": Trap(trace)}, tmp_path / "results.npy")
    with pytest.raises(UserError, match=r"names pathlib.*refused"):
        read_codes(tmp_path / "results.npy", 5)
    torch.save({"model_state_dict": decoder.state_dict(), "more": Trap(trace)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="would run code"):
        load(tmp_path / "w.pth")
    assert not trace.exists()


def test_every_cut_of_a_numpy_file_is_an_error_of_one_line(tmp_path):
    whole = results({"best_latent_codes": np.zeros((2, 5), np.float32)}, tmp_path / "results.npy").read_bytes()
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "results.npy").write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            read_codes(tmp_path / "results.npy", 5)
        assert "\n" not in str(error.value)


def wrong_files(folder, state):
    bad = dict(state)
    yield "absent.pth", None, "No such file"
    yield "mesh.obj", b"v 0 0 0", "end in"
    yield "text.pth", b"hello", "cannot be read"
    yield "cut.safetensors", b"hello", "cannot be read"
    yield "number.pth", 3, "dictionary of tensors"
    yield "other.pth", {"conv1.weight": torch.zeros(2, 2)}, "expected tensors lin0.weight"
    yield "norm.pth", bad | {"bn0.weight": torch.zeros(24)}, "layer normalisation"
    yield "half.pth", bad | {"lin2.weight_v": torch.zeros(24, 24)}, "no weight_g"
    yield "wide.pth", bad | {"lin6.weight": torch.zeros(25, 24)}, "lin6.weight is|lin6.bias is|lin7"
    yield "empty.pth", {}, "got none"


@pytest.mark.parametrize("which", range(10))
def test_what_is_no_decoder_gives_one_line(tmp_path, decoder, which):
    name, content, message = list(wrong_files(tmp_path, decoder.state_dict()))[which]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match="no DeepSDF experiment"):
        load(tmp_path)


def test_codes_of_another_decoder(tmp_path):
    torch.save(torch.zeros(3, 4), tmp_path / "codes.pth")
    with pytest.raises(UserError, match=r"codes of 5 numbers for this decoder, got \[3, 4\]"):
        read_codes(tmp_path / "codes.pth", 5)


@pytest.mark.slow
@pytest.mark.skipif("PAPERSHELF_DATA" not in os.environ, reason="PAPERSHELF_DATA is not set")
def test_a_trained_network_of_maurocks_gives_closed_shapes():
    found = load_experiment(Path(os.environ["PAPERSHELF_DATA"]) / "deepsdf" / "maurock_3shapes")
    assert found.decoder.config == DecoderConfig(latent=64, hidden=256, layers=7, skip=(4,))
    assert found.codes.shape == (3, 64)
    axis = torch.linspace(-1, 1, 33)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    edge = (grid.abs() > 0.99).any(1)
    for code in found.codes:
        sdf = found.decoder.with_code(code)
        with torch.no_grad():
            values = sdf(grid)
        assert (values[edge] > 0.2).all()  # it ends before the box does,
        assert 0.001 < (values < 0).float().mean() < 0.05  # and has an inside
        # Onto the surface by bisection between a point inside and points around, then its gradient.
        inside = grid[values.argmin()].expand(200, 3)
        low, high = torch.zeros(200, 1), torch.ones(200, 1)
        outside = nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)))
        for _ in range(20):
            middle = (low + high) / 2
            with torch.no_grad():
                within = sdf(inside + middle * (outside - inside))[:, None] < 0
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        points = (inside + low * (outside - inside)).requires_grad_()
        distances = sdf(points)
        assert distances.abs().max() < 1e-4
        gradient = torch.autograd.grad(distances.sum(), points)[0].norm(dim=1)
        print(
            f"|gradient| at the surface: median {gradient.median():.2f}, {gradient.min():.2f} to {gradient.max():.2f}"
        )
        assert 0.1 < gradient.median() < 1.5  # no true distances: what marching has to live with


def test_a_code_of_its_own_file(tmp_path):
    torch.manual_seed(0)
    decoder = DeepSDFDecoder(DecoderConfig(latent=4, hidden=16, layers=2, skip=()))
    save(tmp_path / "a.safetensors", decoder)
    code = torch.randn(4)
    np.save(tmp_path / "code.npy", code.numpy())
    points = torch.rand(5, 3)
    made = open_shape(str(tmp_path / "a.safetensors"), str(tmp_path / "code.npy"))
    with torch.no_grad():
        torch.testing.assert_close(made(points), decoder(code, points))
    np.save(tmp_path / "long.npy", np.zeros(5, np.float32))
    (tmp_path / "no.npy").write_text("no numbers")
    for name, said in (("long", "codes are 4 numbers"), ("no", "cannot be read as a code"), ("missing", "cannot read")):
        with pytest.raises(UserError, match=said):
            open_shape(str(tmp_path / "a.safetensors"), str(tmp_path / f"{name}.npy"))


def test_half_precision_is_read_back_as_float32(tmp_path, decoder):
    codes = torch.randn(2, 5)
    save(tmp_path / "whole.safetensors", decoder, codes)
    save(tmp_path / "half.safetensors", decoder, codes, half=True)
    again = load_experiment(tmp_path / "half.safetensors")
    assert again.codes.dtype == again.decoder.lin0.weight.dtype == torch.float32
    assert torch.equal(again.codes, codes.half().float())
    torch.testing.assert_close(again.decoder(CODE, POINTS), decoder(CODE, POINTS), rtol=0, atol=1e-3)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * (tmp_path / "whole.safetensors").stat().st_size


def test_the_decoder_that_ships_gives_its_shapes_back():
    """And shapes that it has never seen are not among them."""
    experiment = load_experiment("procedural")
    assert SHIPPED.stat().st_size < 1_000_000
    assert experiment.metadata["command"].startswith("dist-render train procedural")
    assert json.loads(experiment.metadata["figures"])["reconstruction"]["chamfer"] < 0.2
    assert len(experiment.names) == len(experiment.codes)
    seeds = {int(name.partition("/")[2]) for name in experiment.names}
    assert max(seeds) < procedural.HELD_OUT_FROM
    for family in procedural.FAMILIES:
        points = torch.from_numpy(surface_points(procedural.shape(family, 1), 500, np.random.default_rng(0), 48))
        with torch.no_grad():
            assert experiment.decoder(experiment.code(f"{family}/1"), points).abs().mean() < 0.005


def test_the_word_procedural_is_a_shape_and_says_where_it_is_missing(tmp_path, monkeypatch):
    assert open_shape("procedural", "mug/3").latent.shape == (load_experiment("procedural").decoder.config.latent,)
    monkeypatch.setattr("distrender.decoder_files.SHIPPED", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="missing from this installation"):
        load_experiment("procedural")
