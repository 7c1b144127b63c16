"""Additions, multiplications, parameters, energy."""

import json
from functools import partial

import pytest
import torch
from addernet.counting import PICOJOULES, as_json, as_table, count
from papershelf.errors import UserError
from torch import nn

from addernet import Adder2d, build

STEM, CLASSIFIER = 3 * 9 * 16 * 32 * 32, 64 * 10
STAGES = (  # ResNet-20 by hand: inner layers of each stage, its 1x1 shortcut included
    6 * 16 * 16 * 9 * 32 * 32,
    (16 * 32 * 9 + 5 * 32 * 32 * 9 + 16 * 32) * 16 * 16,
    (32 * 64 * 9 + 5 * 64 * 64 * 9 + 32 * 64) * 8 * 8,
)


def test_resnet20_by_hand():
    conv, adder = count(build("resnet20", op="conv"), 32), count(build("resnet20"), 32)
    assert conv.multiplications == conv.additions == STEM + sum(STAGES) + CLASSIFIER == 40_813_184
    assert adder.multiplications == STEM + CLASSIFIER
    assert adder.additions == 2 * sum(STAGES) + STEM + CLASSIFIER
    assert adder.parameters == conv.parameters == 272_484


@pytest.mark.parametrize(
    ("arch", "classes", "size", "published"),
    [
        ("resnet20", 10, 32, 41.17e6),  # the paper's table 2, to which 0.9 % are missing
        ("resnet18", 1000, 224, 1.8e9),  # the paper's table 3
        ("resnet50", 1000, 224, 4.09e9),  # torchvision's documentation
    ],
)
def test_published_multiplications(arch, classes, size, published):
    with torch.device("meta"):
        conv, adder = (count(build(arch, op=op, classes=classes), size) for op in ("conv", "adder"))
    assert conv.multiplications == pytest.approx(published, rel=0.01)
    # The paper's tables: as many multiplications become twice as many additions, except in stem and classifier.
    assert adder.additions + adder.multiplications == 2 * conv.multiplications


def test_layers_of_all_sorts():
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2),
        nn.BatchNorm2d(6),
        Adder2d(6, 8, 3, padding=1, groups=2, bias=True),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(2, 3, 5),
        nn.Flatten(),
        nn.LazyLinear(7),
    )
    model(torch.zeros(1, 4, 9, 10))
    counted = count(model, (9, 10), 4)
    rows = {layer.name: layer for layer in counted.layers}
    assert [rows[name].output for name in "02357"] == [(6, 4, 5), (8, 4, 5), (2, 8, 10), (3, 76), (7,)]
    assert rows["0"].multiplications == rows["0"].additions == 6 * 4 * 5 * 2 * 3 * 2
    assert (rows["1"].additions, rows["1"].multiplications, rows["1"].parameters) == (0, 0, 12)
    assert (rows["2"].additions, rows["2"].multiplications) == (2 * 8 * 4 * 5 * 3 * 9, 0)
    assert rows["2"].parameters == 8 * 3 * 9 + 8
    assert rows["3"].multiplications == 4 * 5 * 8 * 2 * 2 * 2
    assert rows["5"].multiplications == 76 * 3 * 2 * 5
    assert rows["7"].multiplications == 3 * 76 * 7
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.multiplications == sum(row.multiplications for row in rows.values())


def test_a_layer_called_twice_counts_twice_but_has_its_parameters_once():
    layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    counted = count(nn.Sequential(layer, nn.ReLU(), layer), 8)
    assert [row.name for row in counted.layers] == ["0"]
    assert counted.multiplications == 2 * 81 * 64
    assert counted.parameters == counted.layers[0].parameters == 81


def test_the_network_is_left_as_it_is():
    model = build("lenet").double()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count(model, 32)
    assert model.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_channels_are_the_networks_own():
    assert count(build("lenet", in_channels=1), 32).input == (1, 32, 32)
    assert count(build("lenet", op="conv", in_channels=1), 32).multiplications == 416_520


def test_energy():
    conv, adder = count(build("resnet20", op="conv"), 32), count(build("resnet20"), 32)
    assert conv.microjoules() == pytest.approx(40_813_184 * (0.9 + 3.7) / 1e6)
    assert conv.microjoules("int8") == pytest.approx(40_813_184 * (0.03 + 0.2) / 1e6)
    assert adder.microjoules() == pytest.approx((adder.additions * 0.9 + (STEM + CLASSIFIER) * 3.7) / 1e6)


def test_for_people_and_machines():
    counts = {"conv": count(build("resnet20", op="conv"), 32), "adder": count(build("resnet20"), 32)}
    table = as_table(counts)
    assert table.splitlines() == [
        "for one image  additions  multiplications  parameters   float32    int8",
        "conv             40.81 M          40.81 M      0.27 M  187.7 µJ  9.4 µJ",
        "adder            81.18 M           0.44 M      0.27 M   74.7 µJ  2.5 µJ",
    ]
    long = as_table(counts, layers=True)
    assert long.endswith(table)
    assert long.count("layer3.0.downsample.0  Adder2d") == 1
    assert "32x32" in long
    read = json.loads(as_json(counts["adder"]))
    assert read["multiplications"] == STEM + CLASSIFIER
    assert read["layers"][0] == {
        "name": "conv1",
        "kind": "Conv2d",
        "output": [16, 32, 32],
        "additions": STEM,
        "multiplications": STEM,
        "parameters": 432,
    }
    assert set(read["microjoules"]) == set(PICOJOULES)


@pytest.mark.parametrize(
    ("make", "channels"), [(partial(build, "resnet20"), 5), (partial(build, "lenet", input_size=32), 1)]
)
def test_an_image_that_does_not_fit(make, channels):
    with pytest.raises(UserError, match=rf"does not take images of \[{channels}, 30, 20\]: ") as caught:
        count(make(), (30, 20), channels)
    assert "\n" not in str(caught.value)
