"""Networks on bytes: what is folded is exact, what is searched for is found, files come back as they went."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from addernet.architectures import build
from addernet.int8 import Grid
from addernet.layer import Adder2d
from addernet.quantization import QuantizedAdder2d, load, quantize, save
from papershelf.errors import UserError
from torch import nn

from addernet import checkpoints, int8


def settled(arch, images, **options):
    """A fresh network whose running statistics are those of the images."""
    torch.manual_seed(0)
    model = build(arch, in_channels=images.shape[1], **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics are the mean over all passes, here of one
    with torch.no_grad():
        model(images)
    return model.eval()


def pictures(count=12, channels=3, side=16):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet():
    return settled("resnet20", pictures())


@pytest.fixture(scope="module")
def quantized(resnet):
    return quantize(resnet, pictures(), search_images=6)


@torch.no_grad()
def deviation(model, quantized, images):
    """The error's share of what tells the images apart."""
    exact = model(images)
    return ((quantized(images) - exact).norm() / (exact - exact.mean(0)).norm()).item()


def test_filters_beyond_the_inputs_range_lose_nothing():
    torch.manual_seed(0)
    grid = Grid(1 / 32, 0)
    layer, norm = Adder2d(12, 7, 3, stride=2, padding=1, bias=True), nn.BatchNorm2d(7).eval()
    with torch.no_grad():
        layer.weight.mul_(20).round_().div_(4)  # on the grid, and far out of it on both sides
        nn.init.normal_(layer.bias)
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            tensor.uniform_(0.5, 2)
        assert layer.weight.min() < grid.low
        assert layer.weight.max() > grid.high
        x = grid.values(torch.randint(0, 256, (2, 12, 9, 8)))
        module = QuantizedAdder2d(layer, grid).fold(layer, norm)
        torch.testing.assert_close(module(x), norm(layer(x)), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "images", "limit"),
    [
        ("lenet", pictures(8, 1, 32), 0.03),
        ("vgg-small", pictures(4, 3, 8), 0.03),
        ("resnet18", pictures(6, 3, 32), 0.3),
    ],
)
def test_networks_answer_as_before(arch, images, limit):
    options = {"input_size": images.shape[2]} if arch == "vgg-small" else {}
    model = settled(arch, images, **options)
    assert 0 < deviation(model, quantize(model, images, search_images=4), images) < limit


def test_resnet_answers_as_before(resnet, quantized):
    before = resnet.state_dict()["layer1.0.conv1.weight"].clone()
    assert deviation(resnet, quantized, pictures()) < 0.06
    assert torch.equal(resnet.state_dict()["layer1.0.conv1.weight"], before)
    assert any(isinstance(module, Adder2d) for module in resnet.modules())
    assert not any(isinstance(module, Adder2d) for module in quantized.modules())


def test_bytes_go_from_layer_to_layer(quantized):
    def given(name):
        module = quantized.get_submodule(name)
        return module.want_float, module.next_grid is not None, module.relu

    assert given("layer1.0.conv1") == (False, True, True)
    assert given("layer1.0.conv2") == (True, True, True)  # bytes for the next layer, floats for its shortcut
    assert given("layer1.2.conv2") == (False, True, True)  # the next shortcut is a layer, and reads bytes
    assert given("layer2.0.downsample.0") == (True, False, False)
    assert given("layer3.2.conv2") == (True, False, True)
    assert quantized.get_submodule("layer2.0.conv1").grid == quantized.get_submodule("layer2.0.downsample.0").grid
    norms = [name for name, module in quantized.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == []  # the stem's and the classifier's are in their convolutions


def test_inputs_after_a_relu_get_all_the_bytes(quantized):
    grids = [module.grid for module in quantized.modules() if isinstance(module, QuantizedAdder2d)]
    assert len(grids) == 20
    assert {grid.zero_point for grid in grids} == {0}


def test_rare_large_inputs_are_clipped():
    images = pictures(8)
    model = settled("resnet20", images)
    layer = model.layer1[0].conv1
    seen = []
    layer.register_forward_hook(lambda _, inputs, y: seen.append(inputs[0].max().item()))
    with_spike = images.clone()
    with_spike[7, :, 0, 0] = 500
    with torch.no_grad():
        model(with_spike)
    grid = quantize(model, with_spike, search_images=4).get_submodule("layer1.0.conv1").grid
    assert 0 < grid.high < seen[0] / 8


def test_bytes_in_give_the_same(quantized):
    module = quantized.get_submodule("layer2.0.conv1")
    x = F.relu(torch.randn(2, 16, 8, 8))
    assert torch.equal(module(x), module(int8.quantize(x, module.grid)))


def test_the_mean_error_is_taken_off(resnet, quantized):
    """Over the images that the search saw, each channel of the first layer is right on average."""
    taken = {}
    norm, layer = resnet.layer1[0].bn1, quantized.get_submodule("layer1.0.conv1")
    handle = norm.register_forward_hook(lambda _, inputs, y: taken.update(exact=y))
    stem = F.relu(quantized.get_submodule("conv1")(pictures()[:6]))
    with torch.no_grad():
        resnet(pictures()[:6])
        shown = QuantizedAdder2d(resnet.layer1[0].conv1, layer.grid)
        shown.load_state_dict(layer.state_dict())
        error = shown(stem) - taken["exact"]
    handle.remove()
    assert error.mean((0, 2, 3)).abs().max() < 1e-3
    assert error.std() > 1e-3


def test_files_come_back(quantized, tmp_path):
    path = tmp_path / "small.safetensors"
    save(quantized, path, {"mean": "[0.5, 0.5, 0.5]"})
    back = load(path)
    images = pictures()
    with torch.no_grad():
        assert torch.equal(back(images), quantized(images))
    assert back.metadata["quantized"] == "int8"
    assert back.metadata["mean"] == "[0.5, 0.5, 0.5]"
    assert back.metadata["tool"] == "addernet"
    assert back.config == quantized.config
    save(back, tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    assert again.metadata == back.metadata
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in quantized.state_dict().items())


def test_a_quarter_of_the_size(resnet, quantized, tmp_path):
    save(quantized, tmp_path / "small.safetensors")
    checkpoints.save(resnet, tmp_path / "large.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "large")]
    assert sizes[0] < 0.32 * sizes[1]


def test_runs_compiled(quantized):
    images = pictures(2)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), quantized(images))


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (nn.Conv2d(3, 3, 3), pictures(), "only adder networks"),
        (build("resnet20", op="conv"), pictures(), "only adder networks"),
        (build("resnet20"), pictures(2, 1), r"images \[N, 3, H, W\]"),
        (build("resnet20"), pictures(2)[:0], "N of 1 or more"),
    ],
)
def test_what_cannot_be_quantised_is_said(model, images, message):
    with pytest.raises(UserError, match=message):
        quantize(model, images)


def test_files_that_hold_none(resnet, quantized, tmp_path):
    plain, cut = tmp_path / "plain.safetensors", tmp_path / "cut.safetensors"
    checkpoints.save(resnet, plain)
    with pytest.raises(UserError, match="no network quantised"):
        load(plain)
    save(quantized, cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load(cut)
    with pytest.raises(UserError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save(quantized, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"expected a network of addernet\.quantize"):
        save(resnet, tmp_path / "large.safetensors")
    save(quantized, cut, {})
    other = build("resnet20", classes=3)
    quantized_other = quantize(other.eval(), pictures(2), search_images=2)
    quantized_other.config = quantized.config  # a file that says one thing and holds another
    save(quantized_other, cut)
    with pytest.raises(UserError, match="quantise it anew"):
        load(cut)


@pytest.mark.slow  # reads a thousand JPEGs from an archive
@pytest.mark.skipif("PAPERSHELF_DATA" not in os.environ, reason="PAPERSHELF_DATA is not set")
def test_accuracy_of_the_shipped_network_on_real_images(tmp_path):
    from addernet.evaluation import CPU, evaluate, images_of

    weights = checkpoints.default_weights()
    data = Path(os.environ["PAPERSHELF_DATA"]) / "cifar10" / "cifar10_jpeg.tar.gz"
    model = checkpoints.load(weights)
    save(quantize(model, images_of(data, model, 128)), tmp_path / "small.safetensors")
    scores = [evaluate(data, file, CPU, limit=2000).scores.top1 for file in (weights, tmp_path / "small.safetensors")]
    assert scores[1] > scores[0] - 0.005
