"""Files of networks: the released form by the spec's keys, ours with what it says of itself, and what is refused."""

import argparse
import json

import pytest
import torch
from papershelf.errors import UserError
from psfcn import checkpoints
from psfcn.lcnet import LCNet
from psfcn.networks import PSFCN
from safetensors import safe_open
from test_psfcn_networks import assert_same_normals, plain_forward, released_state, scene

KINDS = {
    "psfcn": lambda: PSFCN(),
    "psfcn-n": lambda: PSFCN(normalise=True),
    "upsfcn": lambda: PSFCN(in_channels=3),
    "lcnet": LCNet,
}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_checkpoint_gives_the_plain_forward(tmp_path, prefix):
    file = tmp_path / "PS-FCN_B_S_32.pth.tar"
    state = released_state()
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}, "model": "PS_FCN_run"}, file)
    model = checkpoints.load(file)
    images, lights = scene()
    with torch.no_grad():
        assert_same_normals(model(images, lights)[0], *plain_forward(state, images[0], lights[0]))
    assert model.metadata == {"kind": "psfcn"}
    assert not model.training
    assert checkpoints.load(file, "psfcn-n").normalise
    with pytest.raises(UserError, match="holds psfcn, not upsfcn"):
        checkpoints.load(file, "upsfcn")
    torch.save({"state_dict": released_state(3), "model": "PS_FCN_run"}, file)
    assert checkpoints.load(file).in_channels == 3
    with pytest.raises(UserError, match="holds upsfcn, not psfcn-n"):
        checkpoints.load(file, "psfcn-n")


@pytest.mark.parametrize("kind", KINDS)
def test_ours_come_back_in_half_precision_with_what_they_say(tmp_path, kind):
    network = KINDS[kind]()
    file = tmp_path / "model.safetensors"
    checkpoints.save(network, file, {"command": "psfcn train", "seed": "3", "figures": json.dumps({"mae": 5.0})})
    assert file.stat().st_size < 2.02 * sum(p.numel() for p in network.parameters()) + 4096
    with safe_open(file, "pt") as content:
        about = content.metadata()
        assert all(content.get_tensor(key).dtype == torch.float16 for key in content.keys())  # noqa: SIM118
    assert (about["tool"], about["kind"], about["command"], about["seed"]) == ("psfcn", kind, "psfcn train", "3")
    assert about["version"]
    loaded = checkpoints.load(file)
    assert checkpoints.kind_of(loaded) == kind
    assert loaded.metadata == about
    for key, value in network.state_dict().items():
        assert loaded.state_dict()[key].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[key], value.half().float())
    checkpoints.save(network, file, full=True)
    assert torch.equal(next(checkpoints.load(file).parameters()), next(network.parameters()))
    other = KINDS[kind]()
    checkpoints.load_into(other, file)
    assert torch.equal(next(other.parameters()), next(network.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_released_form_is_written_too(tmp_path, kind):
    network = KINDS[kind]()
    checkpoints.save(network, tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content.keys() == {"state_dict", "model"}
    assert content["model"] == ("LCNet" if kind == "lcnet" else "PS_FCN_run")
    loaded = checkpoints.load(tmp_path / "a.pth", kind)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def test_files_that_hold_more_than_tensors_are_refused(tmp_path):
    file = tmp_path / "checkp_30_rec.pth.tar"
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "objects.pth")
    with pytest.raises(UserError, match=r"holds other objects than tensors, .*: refused; give the weights alone"):
        checkpoints.load(tmp_path / "objects.pth")
    torch.save({"optimizer": argparse.Namespace(lr=1)}, tmp_path / "PS-FCN_rec.pth")
    with pytest.raises(UserError, match=r"refused; give the file of the same name without _rec"):
        checkpoints.load(tmp_path / "PS-FCN_rec.pth")
    torch.save({"optimizer": {"state": {}}, "scheduler": {}}, file)
    with pytest.raises(UserError, match=r"expected the released .* without _rec"):
        checkpoints.load(file)


def test_files_that_are_something_else(tmp_path):
    file = tmp_path / "a.pth"
    with pytest.raises(UserError, match=r"a\.pth: No such file"):
        checkpoints.load(file)
    with pytest.raises(UserError, match=r"come in files that end in \.safetensors, \.pth"):
        checkpoints.load(tmp_path / "a.onnx")
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a network"):
        checkpoints.load(file)
    (tmp_path / "a.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be read as a network"):
        checkpoints.load(tmp_path / "a.safetensors")
    torch.save({"fc.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"neither PS-FCN's tensors .* nor LCNet's .* the first is fc\.weight"):
        checkpoints.load(file)
    state = released_state()
    del state["regressor.deconv3.0.weight"]
    torch.save(state, file)
    with pytest.raises(UserError, match=r"regressor\.deconv3\.0\.weight of psfcn is missing"):
        checkpoints.load(file)
    torch.save(released_state() | {"extra.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"extra\.weight is not part of psfcn"):
        checkpoints.load(file)
    torch.save(released_state() | {"extractor.conv2.0.bias": torch.zeros(64)}, file)
    with pytest.raises(UserError, match=r"extractor\.conv2\.0\.bias is \[64\], but \[128\] in psfcn"):
        checkpoints.load(file)
    with pytest.raises(UserError, match="no network 'resnet'"):
        checkpoints.load(file, "resnet")
    with pytest.raises(UserError, match=r"written as \.safetensors, or as \.pth"):
        checkpoints.save(PSFCN(), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="no weights for upsfcn come with psfcn"):
        checkpoints.default_weights("upsfcn")
