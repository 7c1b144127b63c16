"""The paper's networks: their sizes, names, shapes, and that they learn."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from addernet.architectures import IMAGENET, Architecture
from addernet.resnet import BasicBlock, ResNet
from papershelf.errors import UserError
from torch import fx, nn

from addernet import ARCHITECTURES, Adder2d, attach, build

SIZES = {  # published: parameters, those in adder layers, entries of the state dictionary
    "resnet20": (10, 272_484, 269_824, 132),
    "resnet50": (1000, 25_559_032, 23_445_504, 325),
}
LARGE = ("resnet44", "resnet56", "resnet110", "resnet34", "resnet101")


def on_meta(arch, **options):
    with torch.device("meta"):
        return build(arch, **options)


@pytest.mark.parametrize("arch", SIZES)
@pytest.mark.parametrize("op", ["adder", "conv"])
def test_sizes_are_the_published_ones(arch, op):
    classes, parameters, in_adders, entries = SIZES[arch]
    model = on_meta(arch, op=op, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    adders = sum(m.weight.numel() for m in model.modules() if isinstance(m, Adder2d))
    assert adders == (in_adders if op == "adder" else 0)
    assert len(model.state_dict()) == entries


def test_names_are_those_of_the_authors():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", *(f"{bn}.{part}" for bn in ("bn1", "bn2") for part in norm)}
    for stage in (1, 2, 3):
        for block in range(3):
            for i in (1, 2):
                expected.add(f"layer{stage}.{block}.conv{i}.weight")
                expected |= {f"layer{stage}.{block}.bn{i}.{part}" for part in norm}
        if stage > 1:
            expected.add(f"layer{stage}.0.downsample.0.weight")
            expected |= {f"layer{stage}.0.downsample.1.{part}" for part in norm}
    state = on_meta("resnet20").state_dict()
    assert set(state) == expected
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["fc.weight"].shape == (10, 64, 1, 1)
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_ops_make_the_same_network(arch):
    adder, conv = on_meta(arch), on_meta(arch, op="conv")
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (adder, conv)]
    assert shapes[0] == shapes[1]
    assert not any(isinstance(module, Adder2d) for module in conv.modules())
    layers = [m for m in adder.modules() if isinstance(m, Adder2d | nn.Conv2d | nn.Linear)]
    ordinary = [not isinstance(layer, Adder2d) for layer in layers]
    assert ordinary == [True, *[False] * (len(layers) - 2), True]
    leaves = [m for m in adder.modules() if not list(m.children())]
    after = [b for a, b in pairwise(leaves) if isinstance(a, Adder2d)]
    assert all(isinstance(m, nn.BatchNorm2d) for m in after)


@pytest.mark.parametrize(
    ("arch", "op"),
    [
        pytest.param(arch, op, marks=[pytest.mark.slow] if arch in LARGE else [])
        for arch in ARCHITECTURES
        for op in ("adder", "conv")
    ],
)
def test_forward(arch, op):
    torch.manual_seed(0)
    model = build(arch, op=op, classes=5)
    assert model.config == Architecture(arch, op, 5, 3, 224 if arch in IMAGENET else 32)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 5)
    assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("arch", IMAGENET)
def test_forward_at_full_size(arch):
    y = build(arch, classes=1000).eval()(torch.randn(1, 3, 224, 224))
    assert y.shape == (1, 1000)


def test_other_channels_and_sizes():
    assert build("lenet", in_channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert build("vgg-small", input_size=16)(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert build("resnet20", in_channels=4)(torch.randn(2, 4, 9, 14)).shape == (2, 10)


@pytest.mark.parametrize("op", ["adder", "conv"])
def test_memory_formats_agree(op):
    torch.manual_seed(1)
    model = build("resnet20", op=op)
    images = torch.randn(4, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of what it has seen
    model(images)
    model.eval()
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    expected = model(images)
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4)
    plain = model.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain(images), expected, atol=1e-4, rtol=1e-4)


def test_autocast_reaches_every_layer():
    model = build("resnet20")
    seen = []
    for module in model.modules():
        if isinstance(module, Adder2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(2, 3, 8, 8))
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("arch", ["vgg-small", "lenet"])
def test_the_wrong_size_is_named(arch):
    with pytest.raises(UserError, match="takes images of 32x32 pixels, got 40x28"):
        on_meta(arch)(torch.empty(1, 3, 28, 40, device="meta"))


@pytest.mark.parametrize("arch", ["vgg-small", "lenet"])
def test_they_can_be_traced(arch):
    model = build(arch, op="conv").eval()

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)

    images = torch.randn(2, 3, 32, 32)
    traced = fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet19"}, "no architecture 'resnet19'; there are resnet20, "),
        ({"arch": "lenet", "op": "shift"}, "op must be one of adder, conv, got 'shift'"),
        ({"arch": "lenet", "input_size": 28}, "32x32 pixels, got 28"),
        ({"arch": "vgg-small", "input_size": 28}, "multiple of 8, got 28"),
        ({"arch": "resnet20", "classes": 0}, "classes must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_built(arguments, message):
    with pytest.raises(UserError, match=message):
        build(**arguments)


def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model = ResNet(Adder2d, BasicBlock, (1, 1, 1), 4).to(memory_format=torch.channels_last)
    images, labels = torch.randn(16, 3, 12, 12), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    attach(optimizer, model)
    for _ in range(40):
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1) == labels).all()
    assert loss < 0.2
