"""Networks in files: ours, the authors', convolutional ones, and everything that is none."""

import pickle

import pytest
import torch
from addernet.architectures import IMAGENET, Architecture
from addernet.layer import Adder2d
from papershelf.errors import UserError
from safetensors import safe_open
from safetensors.torch import save_file

from addernet import ARCHITECTURES, build, checkpoints, load, quantization, save


def used(arch="resnet20", size=16, **options):
    """A network whose batch norms have seen something."""
    torch.manual_seed(2)
    model = build(arch, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of what it has seen
    model(torch.randn(4, model.config.in_channels, size, size))
    return model.eval()


def released(arch, *, prefix="module.", classes=10):
    """A state dictionary as the authors' code writes it, of no size on disk."""
    with torch.device("meta"):
        model = build(arch, classes=classes)
    adders = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Adder2d)}
    return {
        prefix + (key.removesuffix("weight") + "adder" if key in adders else key): torch.full(
            (), 0.5 if value.is_floating_point() else 7, dtype=value.dtype
        ).expand(value.shape)
        for key, value in model.state_dict().items()
    }


def same_state(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("options", [{}, {"op": "conv", "classes": 3}, {"arch": "vgg-small", "input_size": 8}])
def test_ours_come_back_as_they_were(tmp_path, options):
    model = build(**{"arch": "resnet20", "in_channels": 2, **options})
    save(model, tmp_path / "mine.safetensors", {"class_names": '["cat", "dog"]', "seed": "7", "arch": "not this"})
    again = load(tmp_path / "mine.safetensors")
    same_state(model, again)
    assert again.config == model.config
    assert not again.training
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in again.parameters() if p.ndim == 4)
    assert again.metadata["class_names"] == '["cat", "dog"]'
    assert again.metadata["arch"] == model.config.arch
    assert (again.metadata["tool"], again.metadata["seed"]) == ("addernet", "7")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.safetensors"]
    with safe_open(tmp_path / "mine.safetensors", "pt") as file:
        assert file.metadata() == again.metadata


def test_half_precision_comes_back_as_float32(tmp_path):
    model = build("resnet20").half()
    save(model, tmp_path / "half.safetensors")
    again = load(tmp_path / "half.safetensors")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.fc.weight, model.fc.weight.float())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_released_files_are_recognised(tmp_path, arch):
    classes = 1000 if arch in IMAGENET else 100
    torch.save(released(arch, classes=classes), tmp_path / "AdderNet.pth")
    model = load(tmp_path / "AdderNet.pth")
    assert model.config == Architecture(arch, "adder", classes, 3, 224 if arch in IMAGENET else 32)
    assert model.metadata == {
        "arch": arch,
        "op": "adder",
        "classes": str(classes),
        "in_channels": "3",
        "input_size": str(model.config.input_size),
    }
    assert all((p == 0.5).all() for p in model.parameters())


def test_released_names_lead_to_the_right_places(tmp_path):
    model = used()
    save(model, tmp_path / "theirs.pth")
    written = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert len(written) == 132
    assert torch.equal(written["module.layer1.0.conv1.adder"], model.layer1[0].conv1.weight)
    assert torch.equal(written["module.conv1.weight"], model.conv1.weight)
    assert written["module.layer3.0.downsample.0.adder"].shape == (64, 32, 1, 1)
    images = torch.randn(2, 3, 16, 16)
    logits = model(images)
    assert logits.std(0).min() > 1e-3
    assert torch.equal(load(tmp_path / "theirs.pth")(images), logits)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".safetensors"])
def test_forms_of_the_same(tmp_path, suffix):
    weights = released("resnet20", prefix="")
    weights = {key: tensor.clone() for key, tensor in weights.items() if "num_batches" not in key}
    file = tmp_path / f"AdderNet{suffix}"
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save({"epoch": 3, "state_dict": weights} if suffix == ".pth.tar" else weights, file)
    model = load(file, arch="resnet20", classes=10)
    assert model.config.arch == "resnet20"
    assert model.bn1.num_batches_tracked == 0


def test_a_file_that_does_not_say_its_op(tmp_path):
    model = build("resnet20", op="conv")
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="resnet20 in it has adders or convolutions; give op="):
        load(tmp_path / "plain.pth")
    for op in ("adder", "conv"):
        same_state(load(tmp_path / "plain.pth", op=op), model)


def test_what_was_asked_for_must_be_there(tmp_path):
    save(build("resnet20"), tmp_path / "mine.safetensors")
    torch.save(released("resnet20"), tmp_path / "theirs.pth")
    for file in ("mine.safetensors", "theirs.pth"):
        with pytest.raises(UserError, match="classes is 10, not 100"):
            load(tmp_path / file, classes=100)
    with pytest.raises(UserError, match="arch is resnet20, not resnet32"):
        load(tmp_path / "mine.safetensors", arch="resnet32")
    with pytest.raises(UserError, match=r"layer1\.3\.bn1\.bias of a resnet32 is missing"):
        load(tmp_path / "theirs.pth", arch="resnet32")
    with pytest.raises(UserError, match="no architecture 'resnet21'"):
        load(tmp_path / "theirs.pth", arch="resnet21")
    with pytest.raises(UserError, match="op is adder, not conv"):
        load(tmp_path / "theirs.pth", op="conv")


def test_networks_on_bytes_are_loaded_too(tmp_path):
    model = used("lenet", size=32)
    images = torch.randn(4, 3, 32, 32)
    small = quantization.quantize(model, images)
    quantization.save(small, tmp_path / "int8.safetensors")
    again = load(tmp_path / "int8.safetensors", arch="lenet")
    assert torch.equal(again(images), small(images))
    with pytest.raises(UserError, match="classes is 10, not 3"):
        load(tmp_path / "int8.safetensors", classes=3)


class _Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


def test_pickled_models_are_refused(tmp_path):
    torch.save(build("lenet"), tmp_path / "model.pth")
    torch.save({"weight": _Runs()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weight": _Runs()}, protocol=2))
    for file in ("model.pth", "evil.pth", "evil.pt"):
        with pytest.raises(UserError, match=f"{file}: holds a pickled model .* refused; where it was made, save") as e:
            load(tmp_path / file)
        assert "\n" not in str(e.value)


def test_files_that_are_no_networks(tmp_path):
    torch.save(released("resnet20"), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:9000])
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    torch.save([torch.rand(2)], tmp_path / "list.pt")
    torch.save({"conv1.weight": torch.rand(64, 3, 7, 7), "fc.weight": torch.rand(1000, 512)}, tmp_path / "other.pth")
    torch.save({"module.weight": torch.rand(2)}, tmp_path / "tiny.pth")
    shapes = released("resnet20") | {"module.layer1.1.bn2.bias": torch.rand(3)}
    torch.save(shapes, tmp_path / "shapes.pth")
    save(build("resnet20"), tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
    save_file(tensors, tmp_path / "later.safetensors", about | {"arch": "resnet21"})
    save_file(tensors, tmp_path / "renamed.safetensors", about | {"arch": "resnet32"})
    for file, message in [
        ("cut.pth", "fetch it anew"),
        ("cut.safetensors", "fetch it anew"),
        ("empty.pth", "fetch it anew"),
        ("text.pth", "fetch it anew"),
        ("model.onnx", r"files that end in \.safetensors, \.pth"),
        ("folder.pth", "Is a directory"),
        ("list.pt", "plain dictionary of tensors"),
        ("other.pth", r"not a state dictionary of resnet20, .* \(first is 'conv1.weight'\)"),
        ("tiny.pth", r"not a state dictionary of resnet20, "),
        ("shapes.pth", r"not a state dictionary of resnet20, "),
        ("later.safetensors", "written by another version of addernet"),
        ("renamed.safetensors", "not those of the resnet32 it names"),
        ("missing.pth", "No such file"),
        ("missing.safetensors", "No such file"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / file)
        assert "\n" not in str(caught.value)
        assert file in str(caught.value)
    with pytest.raises(UserError, match=r"layer1\.1\.bn2\.bias is \[3\], but \[16\] in a resnet20"):
        load(tmp_path / "shapes.pth", arch="resnet20")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(UserError, match=r"only networks of addernet\.build .* got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    changed = build("lenet")
    changed.conv2 = torch.nn.Conv2d(6, 16, 5, bias=False)
    with pytest.raises(UserError, match="layers of this lenet were changed"):
        save(changed, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save(build("lenet"), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_shipped_network(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "checkpoints.py"))
    with pytest.raises(UserError, match="is missing; reinstall"):
        checkpoints.default_weights()
    file = tmp_path / "weights" / "resnet20-cifar10.safetensors"
    file.parent.mkdir()
    file.touch()
    assert checkpoints.default_weights() == file


def torchvision_like(arch, classes):
    """A state dictionary of random numbers under torchvision's and timm's names, written down independently."""
    depths = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[arch]
    expansion = 4 if arch == "resnet50" else 1
    state = {}

    def conv(name, outputs, inputs, kernel):
        state[f"{name}.weight"] = torch.randn(1).expand(outputs, inputs, kernel, kernel)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(9)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            name, outputs = f"layer{stage + 1}.{block}", width * expansion
            layers = [(inputs, width, 3), (width, width, 3)]
            if expansion == 4:
                layers = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            for index, (a, b, kernel) in enumerate(layers, 1):
                conv(f"{name}.conv{index}", b, a, kernel)
                norm(f"{name}.bn{index}", b)
            if block == 0 and inputs != outputs:
                conv(f"{name}.downsample.0", outputs, inputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.randn(classes, inputs), torch.randn(classes)
    return state


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("as_file", [True, False])
def test_from_a_convolutional_network(tmp_path, caplog, arch, as_file):
    state = torchvision_like(arch, 20)
    source = tmp_path / "conv.pth"
    torch.save(state, source)
    model = checkpoints.from_conv(source if as_file else state, arch, 20, eta=0.5, input_size=160)
    assert model.config == Architecture(arch, "adder", 20, 3, 160)
    assert model.training
    assert model.layer1[0].conv1.eta == 0.5
    mine = model.state_dict()
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(mine[key].flatten(), tensor.flatten()), key
    assert isinstance(model.layer2[0].downsample[0], Adder2d)
    assert not caplog.records


def test_from_a_convolutional_network_of_other_classes(caplog):
    state = torchvision_like("resnet18", 20)
    model = checkpoints.from_conv(state, "resnet18", 7)
    assert model.fc.weight.shape == (7, 512, 1, 1)
    assert [r.getMessage() for r in caplog.records] == [
        "this state dictionary: its classifier [20, 512] does not fit 7 classes: a fresh one"
    ]


@pytest.mark.parametrize("linear", [True, False])
def test_from_a_cifar_network(caplog, linear):
    twin = used(op="conv")
    state = {key: tensor.clone() for key, tensor in twin.state_dict().items()}
    if linear:  # as other people's ResNet-20 has it
        state = {key: tensor for key, tensor in state.items() if not key.startswith("bn2.")}
        state["fc.weight"], state["fc.bias"] = state["fc.weight"].flatten(1), torch.arange(10.0)
    model = checkpoints.from_conv(state, "resnet20")
    assert torch.equal(model.fc.weight, twin.fc.weight)
    assert torch.equal(model.layer3[0].downsample[0].weight, twin.layer3[0].downsample[0].weight)
    if linear:
        assert torch.equal(model.bn2.bias, torch.arange(10.0))
        assert torch.equal(model.bn2.running_var, torch.ones(10))
    else:
        assert torch.equal(model.bn2.running_mean, twin.bn2.running_mean)
    assert not caplog.records


def test_what_no_network_starts_from(tmp_path):
    state = torchvision_like("resnet18", 10)
    for changed, arch, message in [
        (state, "vgg-small", "torchvision's or timm's residual networks, not vgg-small"),
        (state, "resnet50", r"layer1\.0\.bn3\.bias of a resnet50 is missing"),
        (state, "resnet34", r"layer1\.2\.bn1\.bias of a resnet34 is missing"),
        ({k: v for k, v in state.items() if k != "fc.weight"}, "resnet18", r"has no fc\.weight"),
        (state | {"conv1.0.weight": state["conv1.weight"]}, "resnet18", r"conv1\.0\.weight is not part of a resnet18"),
        (state | {"bn1.bias": torch.rand(2)}, "resnet18", r"bn1\.bias is \[2\], but \[64\] in a resnet18"),
        ({"a": 1}, "resnet18", "plain dictionary of tensors"),
    ]:
        with pytest.raises(UserError, match=message):
            checkpoints.from_conv(changed, arch)
    with pytest.raises(UserError, match="No such file"):
        checkpoints.from_conv(tmp_path / "none.pth", "resnet18")


def test_text_under_a_weights_name_gets_one_line(tmp_path):
    for content in ("text", "a longer text", ""):
        (tmp_path / "a.pth").write_text(content)
        with pytest.raises(UserError, match=r"a\.pth: cannot be read"):
            load(tmp_path / "a.pth")
