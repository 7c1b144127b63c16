"""A user's convolutional network becomes an AdderNet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import nn
from torch.nn.utils import parametrizations

from addernet import Adder2d, attach, build, convert, load, save


class Plain(nn.Module):
    """Registered in another order than it runs in."""

    def __init__(self, tail="linear"):
        super().__init__()
        self.head = nn.Linear(8, 3) if tail == "linear" else nn.Conv2d(8, 3, 1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=True)
        self.conv3 = nn.Conv2d(6, 8, (3, 1), padding="same", dilation=2, groups=2, bias=False)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        if isinstance(self.head, nn.Linear):
            return self.head(x.mean((2, 3)))
        return self.head(x).mean((2, 3))


class Branching(Plain):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def replaced(model):
    return {name for name, module in model.named_modules() if isinstance(module, Adder2d)}


@pytest.mark.parametrize("tail", ["linear", "conv"])
def test_what_runs_first_and_last_stays(caplog, tail):
    model = Plain(tail)
    parts = [model, model.conv1, model.head, model.bn2]
    assert convert(model) is model
    assert replaced(model) == {"conv2", "conv3"}
    assert [model, model.conv1, model.head, model.bn2] == parts
    assert not caplog.records


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), {"conv1", "conv2", "conv3"}),
        (("first",), {"conv2", "conv3"}),
        (("last",), {"conv1", "conv2", "conv3"}),
        (("conv1", "conv3"), {"conv2"}),
    ],
)
def test_keep(keep, expected):
    assert replaced(convert(Plain(), keep=keep)) == expected


def test_keep_names_whole_parts():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert replaced(convert(model, keep=["0"])) == {"1"}
    with pytest.raises(UserError, match="keep names '7', which is no module of this Sequential"):
        convert(model, keep=["7"])


def test_filters_anew_or_as_they_were():
    torch.manual_seed(3)
    model = Plain()
    with torch.no_grad():
        model.conv2.weight.fill_(9)
    kept = convert(copy.deepcopy(model), init="keep")
    assert torch.equal(kept.conv2.weight, model.conv2.weight)
    assert torch.equal(kept.conv2.bias, model.conv2.bias)
    fresh = convert(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)), keep=(), eta=0.7, local_rate="backward")
    assert abs(fresh[0].weight.std().item() - 1) < 0.02
    assert (fresh[0].bias == 0).all()
    assert (fresh[0].eta, fresh[0].local_rate) == (0.7, "backward")
    with pytest.raises(UserError, match="init must be normal or keep, got 'he'"):
        convert(model, init="he")


def test_geometry_dtype_mode_and_layout_carry_over():
    model = Plain().to(memory_format=torch.channels_last).double().eval()
    model.conv2.weight.requires_grad_(False)
    shape = model(torch.randn(2, 3, 17, 12, dtype=torch.float64)).shape
    convert(model)
    assert model(torch.randn(2, 3, 17, 12, dtype=torch.float64)).shape == shape
    layer = model.conv3
    assert (layer.kernel_size, layer.padding, layer.dilation, layer.groups) == ((3, 1), (2, 0), (2, 2), 2)
    assert layer.weight.dtype == torch.float64
    assert not layer.training
    assert not model.conv2.weight.requires_grad
    assert layer.bias is None
    assert model.conv2.bias is not None


def test_an_optimizer_made_before_trains_it():
    torch.manual_seed(4)
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    attach(optimizer, convert(model))
    images, labels = torch.randn(12, 3, 9, 9), torch.arange(12) % 3
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_without_a_trace_the_order_of_registration_counts(caplog):
    model = convert(Branching())
    assert replaced(model) == {"conv2", "conv3"}  # head and conv1 are the first and the last registered
    model = convert(Branching(), keep=())
    assert [r.getMessage() for r in caplog.records] == [
        "no batch norm follows these adder layers, whose output is far below zero: conv2, conv3"
    ] * 2


def test_layers_without_a_norm_are_named(caplog):
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)]
    convert(nn.Sequential(*layers[:7], nn.BatchNorm2d(3), layers[7], nn.ReLU(), layers[8]))
    assert [r.getMessage() for r in caplog.records] == [
        "no batch norm follows these adder layers, whose output is far below zero: 1, 2, 3, 4, 5 and 1 more"
    ]


def test_a_layer_used_twice_stays_one():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.BatchNorm2d(3)), "b": nn.Sequential(shared)})
    convert(model, keep=())
    assert isinstance(model["a"][0], Adder2d)
    assert model["a"][0] is model["b"][0]


class Special(nn.Conv2d):
    pass


def test_other_convolutions_stay(caplog):
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        Special(3, 3, 1),
        parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
        nn.ConvTranspose2d(3, 3, 1),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 3, 1),
    )
    assert replaced(convert(model)) == {"4"}
    assert [r.getMessage() for r in caplog.records] == [
        "left as they are, not being plain nn.Conv2d: 1 (Special), 2 (ParametrizedConv2d)"
    ]


def test_nothing_to_replace(caplog):
    convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 2)))
    assert [r.getMessage() for r in caplog.records] == [
        "no convolution was replaced: 2 are kept or not plain nn.Conv2d"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
            "1: padding_mode 'reflect', but adder layers pad",
        ),
        ({"kernel_size": 2, "padding": "same"}, "1: padding must be .* or name it in keep"),
    ],
)
def test_paddings_that_adder_layers_have_not(options, message):
    middle = nn.Conv2d(3, 3, **options)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), middle, nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    with pytest.raises(UserError, match=message):
        convert(model)
    assert replaced(model) == set()
    convert(model, keep=("first", "last", "1"))
    assert replaced(model) == {"3"}


def test_a_padding_mode_without_padding_is_none():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, padding_mode="reflect"), nn.BatchNorm2d(3))
    assert replaced(convert(model, keep=())) == {"0"}


def test_a_twin_of_ours_becomes_the_adder_network(tmp_path):
    model = convert(build("resnet20", op="conv"))
    assert model.config == build("resnet20").config
    assert replaced(model) == replaced(build("resnet20"))
    save(model, tmp_path / "converted.safetensors")
    again = load(tmp_path / "converted.safetensors")
    assert torch.equal(again.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    with pytest.raises(UserError, match="layers of this resnet20 were changed"):
        save(convert(build("resnet20", op="conv"), keep=()), tmp_path / "other.safetensors")
