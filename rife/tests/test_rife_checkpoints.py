"""Weights from files: official names, our own, and everything that is neither."""

import dataclasses
import json
import pickle

import pytest
import rife_plain_networks as plain
import torch
from papershelf.errors import UserError
from rife.checkpoints import load, save
from rife.model import Rife
from rife.presets import PRESETS, RIFEM_LARGE, V3_8, V4_6, V4_25
from safetensors import safe_open
from safetensors.torch import save_file

RELEASES = sorted(set(PRESETS) - {"paper-large", "rifem-large", "v3.1"})  # Large has the paper's shapes; v3.1 below


def official(name, widths=None, seed=0):
    weights = plain.official_weights(name, widths or PRESETS[name].widths, seed)
    return {key: tensor.float() for key, tensor in weights.items()}


def with_prefix(tensors):
    return {f"module.{key}": tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", RELEASES)
def test_official_files_are_recognised_by_their_keys(tmp_path, name):
    weights = official(name)
    torch.save(with_prefix(weights) if name != "v4.6" else weights, tmp_path / "flownet.pkl")
    model = load(tmp_path / "flownet.pkl")
    assert model.config == PRESETS[name]
    assert not model.training
    assert sorted(p.sum().item() for p in model.parameters()) == sorted(p.sum().item() for p in weights.values())
    assert {(p.dtype, p.device.type, p.requires_grad) for p in model.parameters()} == {(torch.float32, "cpu", True)}


def test_official_names_lead_to_the_right_places(tmp_path):
    weights = official("v4.0")
    save_file(weights, tmp_path / "flownet.safetensors")
    frames = torch.rand(2, 1, 3, 128, 128)
    expected, _, _ = plain.v4(weights, *frames, 0.3, refine=True)
    with torch.no_grad():
        frame = load(tmp_path / "flownet.safetensors")(*frames, 0.3).frame
    torch.testing.assert_close(frame, expected.clamp(0, 1), atol=1e-4, rtol=0)


def _three_files(folder):
    weights = official("v3.1")
    for part in ("flownet", "contextnet", "unet"):
        tensors = {key.removeprefix(part + "."): tensor for key, tensor in weights.items()}
        mine = {k: v for k, v in tensors.items() if part + "." + k in weights or (part == "flownet" and "block" in k)}
        torch.save(with_prefix(mine), folder / f"{part}.pkl")
    return weights


@pytest.mark.parametrize("as_folder", [True, False])
def test_v3_1_in_three_files(tmp_path, as_folder):
    weights = _three_files(tmp_path)
    model = load(tmp_path if as_folder else sorted(tmp_path.iterdir()))
    assert model.config.name == "v3.1"
    frames = torch.rand(2, 1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(*frames).frame, plain.v3_1(weights, *frames)[0].clamp(0, 1), atol=1e-4, rtol=0)


def test_v3_1_without_its_other_two_files_says_so(tmp_path):
    _three_files(tmp_path)
    with pytest.raises(UserError, match="give the folder that holds the three"):
        load(tmp_path / "flownet.pkl")


def test_a_folder_with_one_file(tmp_path):
    torch.save(official("v4.6"), tmp_path / "flownet.pkl")
    assert load(tmp_path).config == V4_6


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"no flownet\.pkl in this folder"):
        load(tmp_path)


def test_the_teacher_may_be_missing(tmp_path):
    weights = {key: tensor for key, tensor in official("v3.8").items() if "block_tea" not in key}
    torch.save(weights, tmp_path / "flownet.pth")
    assert load(tmp_path / "flownet.pth").config == dataclasses.replace(V3_8, teacher=())


def test_what_only_official_training_used_is_left_out(tmp_path):
    extra = {"caltime.0.weight": torch.rand(3), "teacher.block0.conv0.0.0.weight": torch.rand(2)}
    torch.save(with_prefix(official("v4.25") | extra), tmp_path / "flownet.pkl")
    assert load(tmp_path / "flownet.pkl").config == V4_25


@pytest.mark.parametrize(("name", "widths"), [("v4.10", (384, 192, 96, 48)), ("v4.25", (256, 192, 96, 48))])
def test_releases_between_v4_7_and_v4_25_of_other_widths(tmp_path, name, widths):
    torch.save(official(name, widths), tmp_path / "flownet.pkl")
    config = load(tmp_path / "flownet.pkl").config
    base = PRESETS[name]
    assert (config.widths, config.encoder, config.carried) == (widths, base.encoder, base.carried)
    assert (config.later, config.scales, config.padding) == (base.later, (8, 4, 2, 1), 32)


def test_own_files_keep_configuration_and_metadata(tmp_path):
    config = dataclasses.replace(RIFEM_LARGE, widths=(16, 12, 8))
    model = Rife(config)
    save(model, tmp_path / "mine.safetensors", {"seed": "7", "command": "rife train"})
    again = load(tmp_path / "mine.safetensors")
    assert again.config == config
    for (name, tensor), (other, loaded) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, loaded)
    with safe_open(tmp_path / "mine.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["tool"], about["architecture"], about["seed"]) == ("rife-interp", "rifem-large", "7")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.safetensors"]


def test_half_precision_and_channels_last_are_saved_and_come_back_as_float32(tmp_path):
    config = dataclasses.replace(V4_6, widths=(8, 8, 8, 8))
    model = Rife(config).to(torch.float16).to(memory_format=torch.channels_last)
    save(model, tmp_path / "half.safetensors")
    again = load(tmp_path / "half.safetensors")
    assert torch.equal(again.blocks[0].stem[0][0].weight, model.blocks[0].stem[0][0].weight.float())


class _Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"weight": _Runs()}, protocol=2))
    torch.save({"weight": _Runs()}, tmp_path / "evil.pth")
    for file in ("evil.pkl", "evil.pth"):
        with pytest.raises(UserError, match="would run code from it: refused"):
            load(tmp_path / file)


def test_files_that_are_no_weights(tmp_path):
    torch.save(official("v4.6"), tmp_path / "whole.pkl")
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "whole.pkl").read_bytes()[:100_000])
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "weights.onnx").write_bytes(b"")
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    torch.save([torch.rand(2)], tmp_path / "list.pt")
    torch.save({"conv1.weight": torch.rand(2)}, tmp_path / "resnet.pth")
    for file, message in [
        ("cut.pkl", "fetch it anew"),
        ("cut.safetensors", "fetch it anew"),
        ("empty.pkl", "fetch it anew"),
        ("numbers.pkl", "fetch it anew"),
        ("weights.onnx", r"weights end in \.pkl, \.pth"),
        ("list.pt", "plain dictionary of tensors"),
        ("resnet.pth", r"not weights of a known RIFE release \(paper, rifem.*v4\.25\)$"),
        ("missing.pkl", "No such file"),
        ("missing.safetensors", "No such file"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / file)
        assert "\n" not in str(caught.value)


def test_own_files_of_another_version(tmp_path):
    model = Rife(dataclasses.replace(V4_6, widths=(8, 8, 8, 8)))
    config = dataclasses.asdict(model.config)
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"config": json.dumps(config | {"later_idea": 1})})
    save_file(model.state_dict(), tmp_path / "b.safetensors", {"config": json.dumps(config | {"widths": [4] * 4})})
    with pytest.raises(UserError, match="of another version of this tool"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="do not fit the configuration"):
        load(tmp_path / "b.safetensors")


def test_text_under_a_weights_name_gets_one_line(tmp_path):
    for content in ("text", "a longer text", ""):
        (tmp_path / "a.pth").write_text(content)
        with pytest.raises(UserError, match=r"a\.pth: cannot be read"):
            load(tmp_path / "a.pth")
