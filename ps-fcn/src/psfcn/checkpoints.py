"""Networks in files: ours as safetensors, and the authors' as they published them.

The authors' files hold ``{'state_dict': tensors, 'model': name}`` (and one beside each, ``*_rec``, objects that need
running code to be read, which is refused). Which network it is is seen from the names and shapes of its tensors; only
PS-FCN+N has those of PS-FCN, and must be named. Ours store half precision and say in their metadata what they are.
"""

from __future__ import annotations

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
from torch import Tensor

from psfcn.lcnet import LCNet
from psfcn.networks import PSFCN
from psfcn.recipes import NETWORKS

Network = PSFCN | LCNet

PICKLED = (".pth", ".pt", ".tar")
SUFFIXES = (".safetensors", *PICKLED)
# What the released code calls its networks, written so that it can read our files.
RELEASED = {"psfcn": "PS_FCN_run", "psfcn-n": "PS_FCN_run", "upsfcn": "PS_FCN_run", "lcnet": "LCNet"}


def save(network: Network, path: Path | str, metadata: Mapping[str, str] | None = None, *, full: bool = False) -> None:
    """Write a network so that :func:`load` can read it.

    Args:
        network: of this package, on any device.
        path: ends in ``.safetensors`` for our form, or in ``.pth`` for the authors', which has no place for metadata.
        metadata: strings kept beside tool, version and kind: ``command``, ``seed``, ``config``, ``figures``.
        full: store single precision; a ``.pth`` always does.

    Raises:
        UserError: the file cannot be written, or has another suffix.
    """
    path = Path(path)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        about = {"tool": "psfcn", "version": version("ps-fcn"), "kind": kind_of(network)}
        content = to_bytes({k: t if full else t.half() for k, t in state.items()}, {**(metadata or {}), **about})
        with atomic_path(path) as part:
            part.write_bytes(content)
    elif path.suffix in PICKLED:
        with atomic_path(path) as part:
            torch.save({"state_dict": state, "model": RELEASED[kind_of(network)]}, part)
    else:
        raise UserError(f"{path}: networks are written as .safetensors, or as .pth for the authors' code")


def load(path: Path | str, kind: str | None = None) -> Network:
    """The network that a file holds, ready for inference.

    Args:
        path: ours (``.safetensors``), or a released one (``.pth``, ``.pth.tar``).
        kind: what it has to be: ``psfcn``, ``psfcn-n``, ``upsfcn`` or ``lcnet``. A file without metadata and with
            PS-FCN's tensors is taken for ``psfcn`` unless ``psfcn-n`` is given here.

    Returns:
        The network on the CPU, float32, in eval mode; ``.metadata`` is a dictionary of strings with ``kind``.

    Raises:
        UserError: the file cannot be read, holds more than tensors, or is not the network it has to be.
    """
    path = Path(path)
    if kind not in (None, *NETWORKS):
        raise UserError(f"no network {kind!r}; there are {', '.join(NETWORKS)}")
    tensors, metadata = _read(path)
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    found = metadata.get("kind") or _recognised(tensors, path)
    if found == "psfcn" and kind == "psfcn-n" and "kind" not in metadata:
        found = kind
    if kind not in (None, found):
        raise UserError(f"{path} holds {found}, not {kind}; give another file, or leave out the kind")
    if found not in NETWORKS:
        raise UserError(f"{path}: was written by another version of psfcn, as {found!r}; convert it there")
    with torch.device("meta"):
        network = _empty(found)
    _check(tensors, network.state_dict(), found, path)
    network.to_empty(device="cpu")
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    network.metadata = {**metadata, "kind": found}
    return network.eval()


def load_into(network: Network, path: Path | str) -> None:
    """Give a network the weights in a file of the same kind.

    Raises:
        UserError: as in :func:`load`.
    """
    network.load_state_dict(load(path, kind_of(network)).state_dict())


def default_weights(kind: str) -> Path:
    """The weights of a kind that come with the package.

    Raises:
        UserError: there are none.
    """
    path = Path(__file__).parent / "weights" / f"{kind}.safetensors"
    if not path.exists():
        raise UserError(f"no weights for {kind} come with psfcn; name a file, or train one: psfcn train {kind} --help")
    return path


def kind_of(network: Network) -> str:
    """``psfcn``, ``psfcn-n``, ``upsfcn`` or ``lcnet``."""
    if isinstance(network, LCNet):
        return "lcnet"
    if network.in_channels == 3:
        return "upsfcn"
    return "psfcn-n" if network.normalise else "psfcn"


def _empty(kind: str) -> Network:
    if kind == "lcnet":
        return LCNet()
    return PSFCN(in_channels=3 if kind == "upsfcn" else 6, normalise=kind == "psfcn-n")


def _recognised(tensors: Mapping[str, Tensor], path: Path) -> str:
    first = tensors.get("extractor.conv1.0.weight")
    if first is not None and first.ndim == 4 and first.shape[1] in (3, 6):
        return "psfcn" if first.shape[1] == 6 else "upsfcn"
    if "featExtractor.conv1.0.weight" in tensors:
        return "lcnet"
    raise UserError(
        f"{path}: neither PS-FCN's tensors (extractor.conv1.0.weight with 3 or 6 channels) nor LCNet's "
        f"(featExtractor.conv1.0.weight); the first is {next(iter(tensors), 'missing')}"
    )


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: str, path: Path) -> None:
    """Names the first tensor that is missing, unknown or of another shape."""
    for key in sorted(tensors.keys() | expected.keys()):
        if key not in tensors:
            raise UserError(f"{path}: {key} of {kind} is missing; fetch it anew")
        if key not in expected:
            raise UserError(f"{path}: {key} is not part of {kind}; is it another network?")
        if tensors[key].shape != expected[key].shape:
            raise UserError(
                f"{path}: {key} is {list(tensors[key].shape)}, but {list(expected[key].shape)} in {kind}: "
                "another network?"
            )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: networks come in files that end in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():  # the word of PyTorch's messages for classes and functions
            raise UserError(f"{path}: cannot be read as a network (no file of PyTorch's); fetch it anew") from error
        rec = "_rec." in path.name
        advice = "give the file of the same name without _rec" if rec else "give the weights alone"
        raise UserError(
            f"{path}: holds other objects than tensors, and loading it would run code from it: refused; {advice}"
        ) from error
    except (*UNREADABLE, SafetensorError) as error:  # a cut file gives any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a network ({reason}); fetch it anew") from error
    return _tensors(content, path), {}


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        advice = "; give the file of the same name without _rec" if "_rec." in path.name else ""
        raise UserError(f"{path}: expected the released {{'state_dict', 'model'}} or a dictionary of tensors{advice}")
    return dict(content)
