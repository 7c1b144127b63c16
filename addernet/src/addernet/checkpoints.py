"""Networks in files: ours as safetensors, the authors' as they published them, and convolutional ones to start from.

The authors' files are state dictionaries, mostly of ``DataParallel``: ``module.layer1.0.conv1.adder``. Ours call
adder filters ``weight``, as convolutions do, and say in their metadata what they are; the architecture of any other
file is seen from the names and shapes of its tensors.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.resuming import UNREADABLE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from addernet.architectures import ARCHITECTURES, IMAGENET, Architecture, build
from addernet.layer import ETA, Adder2d
from addernet.resnet import DEPTHS
from addernet.vgg import SHRINK, WIDTHS

log = logging.getLogger(__name__)

PICKLED = (".pth", ".pt", ".pth.tar")
SUFFIXES = (".safetensors", *PICKLED)
_COUNTER = ".num_batches_tracked"  # a batch norm's; files from before PyTorch 0.4.1 have none


def save(model: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network of :func:`addernet.build` so that :func:`load` and other tools can read it.

    Args:
        model: the network, in any dtype, on any device.
        path: ends in ``.safetensors`` for our form, or in ``.pth`` or ``.pt`` for the authors' names, which the
            authors' code can read and which has no place for metadata.
        metadata: strings kept beside architecture, op, classes, channels, and input size. Those that the commands
            know: ``class_names`` (a JSON list), ``mean`` and ``std`` (JSON lists, per channel, of images in
            [0, 1]), ``command``, ``seed``, figures.

    Raises:
        UserError: the network is not one of ours, or the file cannot be written.
    """
    path = Path(path)
    config = getattr(model, "config", None)
    if not isinstance(config, Architecture):
        raise UserError(
            f"only networks of addernet.build are saved with their architecture, got {type(model).__name__}; "
            "use torch.save(model.state_dict(), ...) for others"
        )
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if _adder_names(model) != _adder_names(_empty(config)) or _shapes(state) != _shapes(_empty(config).state_dict()):
        raise UserError(
            f"layers of this {config.arch} were changed after addernet.build; use torch.save(model.state_dict(), ...)"
        )
    if path.suffix == ".safetensors":
        about = {"tool": "addernet", "version": version("papershelf-addernet"), **_config_strings(config)}
        content = to_bytes(state, {**(metadata or {}), **about})
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    elif path.suffix in PICKLED:
        with atomic_path(path) as temporary:
            torch.save(released_names(model, state), temporary)
    else:
        raise UserError(f"{path}: networks are written as .safetensors, or as .pth for the authors' code")


def load(path: Path | str, arch: str | None = None, classes: int | None = None, *, op: str | None = None) -> nn.Module:
    """The network that a file holds, ready for inference.

    Args:
        path: ``.safetensors`` of ours, or a state dictionary of the authors' code or of a network of ours
            (``.pth``, ``.pt``, ``.pth.tar``), its names with or without ``module.``, plain or under ``state_dict``.
            A file of :mod:`addernet.quantization` gives the network on bytes.
        arch: what it has to be; seen from the file where not given.
        classes: how many it has to tell apart; likewise.
        op: ``"adder"`` or ``"conv"`` for a file that does not say it: one whose adder filters are called
            ``weight`` and which carries no metadata.

    Returns:
        The network on the CPU, float32, in eval mode and channels last; ``.metadata`` is a dictionary of strings,
        with architecture, op, classes, channels and input size also where the file has none.

    Raises:
        UserError: the file cannot be read, holds more than tensors, fits no architecture or not the asked one.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if "quantized" in metadata:
        from addernet.quantization import assemble  # late: few files are

        model = assemble(tensors, metadata, path)
        _check_asked(path, model.config, arch, classes, op)
        return model
    if "arch" in metadata:
        config = _config_from_strings(metadata, path)
        if _shapes(tensors) != _shapes(_empty(config).state_dict()):
            raise UserError(f"{path}: its tensors are not those of the {config.arch} it names; fetch or save it anew")
    else:
        tensors, config = _recognise(tensors, path, arch, op)
    _check_asked(path, config, arch, classes, op)
    model = _filled(config, tensors).eval()
    model.metadata = {**metadata, **_config_strings(config)}
    return model


def from_conv(
    source: Mapping[str, Tensor] | Path | str,
    arch: str,
    classes: int | None = None,
    *,
    input_size: int | None = None,
    eta: float = ETA,
) -> nn.Module:
    """An adder network that starts from a convolutional one's parameters (torchvision's and timm's names).

    The filters of a convolution become those of the adder layer in its place, batch norms are taken as they are,
    a linear classifier becomes our 1x1 convolution where the classes are as many, else a fresh one. What comes out
    is a start for training; it does not classify yet.

    Args:
        source: a state dictionary, or a file of one: ``.safetensors``, ``.pth``, ``.pt``.
        arch: a residual network of ``ARCHITECTURES``; the source must be the same with convolutions.
        classes: number of outputs; by default as many as the source has.
        input_size: as in :func:`addernet.build`.
        eta: likewise.

    Returns:
        The network in training mode, on the CPU, float32.

    Raises:
        UserError: the source cannot be read, or its names or shapes are not those of ``arch``.
    """
    where = "this state dictionary" if isinstance(source, Mapping) else str(source)
    if not arch.startswith("resnet"):
        raise UserError(f"--from-conv takes torchvision's or timm's residual networks, not {arch}")
    tensors = _tensors(source, where) if isinstance(source, Mapping) else _read(Path(source))[0]
    tensors = _plain_names(tensors)
    for key in ("conv1.weight", "fc.weight"):
        if key not in tensors or tensors[key].ndim < 2:
            raise UserError(f"{where}: has no {key}; expected the state dictionary of torchvision's or timm's {arch}")
    weight, bias = tensors.pop("fc.weight"), tensors.pop("fc.bias", None)
    model = build(
        arch,
        classes=classes or weight.shape[0],
        in_channels=tensors["conv1.weight"].shape[1],
        input_size=input_size,
        eta=eta,
    )
    fits = weight.shape[0] == model.config.classes
    fresh = {}
    for key, value in model.state_dict().items():
        norm_over_classes = key.startswith("bn2.") and not (fits and key in tensors)  # a twin of ours has one
        if norm_over_classes or key.startswith("fc.") or key.endswith(_COUNTER):
            fresh[key] = value
    if fits and weight.numel() == fresh["fc.weight"].numel():
        fresh["fc.weight"] = weight.reshape(fresh["fc.weight"].shape)
        if bias is not None:  # the CIFAR networks' classifier has none, the norm after it has
            fresh["fc.bias" if "fc.bias" in fresh else "bn2.bias"] = bias
    else:
        log.warning(
            "%s: its classifier %s does not fit %d classes: a fresh one",
            where,
            list(weight.shape),
            model.config.classes,
        )
    tensors |= fresh
    _check_shapes(tensors, model.state_dict(), where, arch)
    model.load_state_dict(tensors)
    return model


def released_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of the authors' code, as ``DataParallel`` writes them: ``module.layer1.0.conv1.adder``."""
    adders = _adder_names(model)
    return {f"module.{adders.get(key, key)}": tensor for key, tensor in state.items()}


def default_weights() -> Path:
    """The ResNet-20 for CIFAR-10 that comes with the package.

    Raises:
        UserError: this installation lacks it.
    """
    path = Path(__file__).parent / "weights" / "resnet20-cifar10.safetensors"
    if not path.exists():
        raise UserError(f"{path}: the network that comes with addernet is missing; reinstall, or name a file of yours")
    return path


def _adder_names(model: nn.Module) -> dict[str, str]:
    """Our name -> the authors' of each adder layer's filters."""
    return {f"{name}.weight": f"{name}.adder" for name, module in model.named_modules() if isinstance(module, Adder2d)}


def _empty(config: Architecture) -> nn.Module:
    """The network without memory for its parameters."""
    with torch.device("meta"):
        return build(**dataclasses.asdict(config))


def _check_asked(path: Path, config: Architecture, arch: str | None, classes: int | None, op: str | None) -> None:
    for name, asked in (("arch", arch), ("classes", classes), ("op", op)):
        found = getattr(config, name)
        if asked is not None and asked != found:
            raise UserError(f"{path}: {name} is {found}, not {asked}; leave {name} out or give another file")


def _filled(config: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    model = _empty(config).to_empty(device="cpu")
    model.load_state_dict(tensors)
    return model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: networks come in files that end in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():  # the word of PyTorch's messages for classes and functions
            raise UserError(f"{path}: cannot be read as a network (no file of PyTorch's); fetch it anew") from error
        raise UserError(
            f"{path}: holds a pickled model or other objects, and loading it would run code from it: refused; "
            "where it was made, save torch.save(model.state_dict(), ...)"
        ) from error
    except (*UNREADABLE, SafetensorError) as error:  # a cut file gives any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a network ({reason}); fetch it anew") from error
    return _tensors(content, str(path)), {}


def _tensors(content: object, where: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise UserError(f"{where}: expected a plain dictionary of tensors; save torch.save(model.state_dict(), ...)")
    return dict(content)


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def _recognise(
    tensors: Mapping[str, Tensor], path: Path, arch: str | None, op: str | None
) -> tuple[dict[str, Tensor], Architecture]:
    """Tensors under our names, complete, and the architecture whose names and shapes they have."""
    tensors = _plain_names(tensors)
    has_adders = any(key.endswith(".adder") for key in tensors)
    tensors = {key[: -len("adder")] + "weight" if key.endswith(".adder") else key: t for key, t in tensors.items()}
    if has_adders:
        op = "adder"
    if arch not in (None, *ARCHITECTURES):
        raise UserError(f"no architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    for name in ARCHITECTURES if arch is None else [arch]:
        if arch is None and not _as_deep(name, tensors):
            continue
        config = _fitted(name, tensors)
        if config is None:
            continue
        expected = _shapes(_empty(config).state_dict())
        found = _shapes(tensors)
        missing = {key for key in expected if key.endswith(_COUNTER) and key not in found}
        if found | dict.fromkeys(missing, ()) == expected:
            if op is None:
                raise UserError(
                    f"{path}: does not say whether the {name} in it has adders or convolutions; "
                    "give op='adder' or op='conv'"
                )
            zeros = {key: torch.zeros((), dtype=torch.int64) for key in missing}
            return tensors | zeros, dataclasses.replace(config, op=op)
        if arch is not None:
            _check_shapes(tensors | dict.fromkeys(missing, torch.zeros(())), _empty(config).state_dict(), path, arch)
    raise UserError(
        f"{path}: not a state dictionary of {arch or ', '.join(ARCHITECTURES)} (first is {next(iter(tensors))!r}); "
        "for a convolutional network of torchvision or timm use --from-conv"
    )


def _as_deep(arch: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether stages have as many blocks as in ``arch``: a glance, before networks are built to compare with."""
    stages = DEPTHS[arch][1] if arch in DEPTHS else ()
    return all(
        (f"layer{stage + 1}.{block}.conv1.weight" in tensors) == (block < depth)
        for stage, depth in enumerate((*stages, 0)[:4])
        for block in (0, depth - 1, depth)
        if block >= 0
    )


def _fitted(arch: str, tensors: Mapping[str, Tensor]) -> Architecture | None:
    """``arch`` with classes, channels and size as the first and the last layer have them, if they are there."""
    stem = tensors.get("features.0.weight" if arch == "vgg-small" else "conv1.weight")
    classifier = tensors.get("fc.weight")
    if stem is None or classifier is None or stem.ndim != 4 or classifier.ndim < 2:
        return None
    size = 224 if arch in IMAGENET else 32
    if arch == "vgg-small":
        size = max(SHRINK, SHRINK * round((classifier.shape[1] / WIDTHS[-1]) ** 0.5))
    return Architecture(arch, "adder", classifier.shape[0], stem.shape[1], size)


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object, arch: str) -> None:
    """Names the first tensor that is missing, unknown or of another shape."""
    a, b = _shapes(found), _shapes(expected)
    for key in sorted(a.keys() | b.keys()):
        if key not in a:
            raise UserError(f"{where}: {key} of a {arch} is missing; is it another architecture?")
        if key not in b:
            raise UserError(f"{where}: {key} is not part of a {arch}; is it another architecture?")
        if a[key] != b[key]:
            raise UserError(f"{where}: {key} is {list(a[key])}, but {list(b[key])} in a {arch}: another architecture?")


def _config_strings(config: Architecture) -> dict[str, str]:
    return {key: str(value) for key, value in dataclasses.asdict(config).items()}


def _config_from_strings(metadata: Mapping[str, str], path: Path) -> Architecture:
    try:
        numbers = {key: int(metadata[key]) for key in ("classes", "in_channels", "input_size")}
        config = Architecture(metadata["arch"], metadata["op"], **numbers)
        _empty(config)
    except (KeyError, ValueError, UserError) as error:
        raise UserError(f"{path}: was written by another version of addernet ({error}); convert it there") from error
    return config
