"""Networks in other programs give what they give here."""

import importlib.util
import logging

import pytest
import torch
from papershelf.errors import UserError
from torch import nn

from addernet import Adder2d, build, export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def settle(model, images):
    """Statistics of the batch norms as those of ``images``, so that no part of the network is dead."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None
    with torch.no_grad():
        model(images)
    return model.eval()


def in_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": (2, 3), "padding": (2, 1)},
    "dilated, no padding": {"kernel_size": (3, 2), "dilation": (2, 1)},
    "1x1 of stride 2": {"kernel_size": 1, "stride": 2},
    "groups and bias": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": True},
    "depthwise": {"kernel_size": 3, "groups": 6},
}


@pytest.mark.parametrize(
    ("name", "piece"),
    [*((name, export.PIECE) for name in LAYERS), ("3x3", 20_000), ("groups and bias", 9000), ("depthwise", 1)],
)
def test_layers_of_any_shape(tmp_path, monkeypatch, name, piece):
    torch.manual_seed(5)
    monkeypatch.setattr(export, "PIECE", piece)
    layer = Adder2d(6, 12, **LAYERS[name])
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    export.export(layer, tmp_path / "layer.onnx", (9, 11), in_channels=6)
    for batch in (1, 3):
        images = torch.randn(batch, 6, 9, 11)
        expected = layer(images).detach()
        torch.testing.assert_close(in_onnxruntime(tmp_path / "layer.onnx", images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("arch", "op"), [("resnet20", "adder"), ("lenet", "conv")])
@pytest.mark.parametrize("form", export.FORMATS)
def test_networks(tmp_path, capfd, caplog, arch, op, form):
    torch.manual_seed(6)
    images = torch.randn(5, 3, 32, 32)
    model = settle(build(arch, op=op), images)
    model.metadata = {"class_names": '["a"]'}
    expected = model(images).detach()
    assert expected.std(0).min() > 1e-3
    path = tmp_path / f"network.{form}"
    export.export(model, path, 32)
    assert list(tmp_path.iterdir()) == [path]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")
    assert all(p.requires_grad for p in model.parameters())
    for batch in (5, 1):
        if form == "onnx":
            found = in_onnxruntime(path, images[:batch])
        else:
            found = torch.export.load(path).module()(images[:batch]).detach()
        torch.testing.assert_close(found, expected[:batch], atol=1e-3, rtol=1e-3)


def test_onnx_has_plain_operators_and_says_what_it_is(tmp_path):
    model = build("lenet").train()
    model.metadata = {"arch": "lenet"}
    export.export(model, tmp_path / "network.onnx", 32)
    assert model.training
    file = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    assert sum(node.op_type == "Abs" for node in file.graph.node) == 3
    assert {entry.key: entry.value for entry in file.metadata_props} == {"producer": "addernet", "arch": "lenet"}
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in file.graph.input]
    assert shapes == [["batch", 3, 32, 32]]


def test_pt2_keeps_the_operator(tmp_path):
    export.export(build("lenet", in_channels=1), tmp_path / "network.pt2", 32)
    graph = torch.export.load(tmp_path / "network.pt2").graph
    targets = [node.target for node in graph.nodes]
    assert targets.count(torch.ops.addernet.forward.default) == 3


@pytest.mark.slow
def test_resnet50_in_onnx(tmp_path):
    torch.manual_seed(7)
    images = torch.randn(2, 3, 64, 64)
    model = settle(build("resnet50"), images)
    export.export(model, tmp_path / "network.onnx", 64)
    expected = model(images).detach()
    torch.testing.assert_close(in_onnxruntime(tmp_path / "network.onnx", images), expected, atol=1e-2, rtol=1e-2)


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"needs onnxscript: install the extra papershelf-addernet\[export\]"):
        export.export(build("lenet"), tmp_path / "network.onnx", 32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("network.pth", None, "exported as onnx or pt2, got 'pth'"),
        ("network", None, "exported as onnx or pt2, got ''"),
        ("network.onnx", "tflite", "exported as onnx or pt2, got 'tflite'"),
        ("network.onnx", "pt2", r"exported as pt2 ends in \.pt2"),
        ("folder/network.pt2", None, "there is no folder"),
    ],
)
def test_files_that_cannot_be_written(tmp_path, name, form, message):
    with pytest.raises(UserError, match=message):
        export.export(build("lenet"), tmp_path / name, 32, form)
