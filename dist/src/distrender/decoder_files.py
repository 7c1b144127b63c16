"""Trained decoders and their codes from files: DeepSDF's experiments in every dialect, and our own safetensors.

The architecture is seen from the names and shapes of the tensors, never from a file's name. Weight normalisation
(a direction ``v`` and a length ``g`` for each row) is multiplied out, and names become DeepSDF's ``lin{k}``:

================================================== ==========================================================
``lin{k}.weight_g``, ``lin{k}.weight_v``           DeepSDF as released
``lin{k}.parametrizations.weight.original0``, 1    the same by newer releases of PyTorch
``lin{k}.weight``                                  without weight normalisation, or multiplied out
``net.{k}.0...``, ``skip_layer.0``, ``final_layer.0``  github.com/maurock/DeepSDF
================================================== ==========================================================

each with or without ``module.`` before it (``DataParallel``). Nothing here ever runs code from a file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.pickled import read_codes, read_pickled

PICKLED = (".pth", ".pt")
SUFFIXES = (".safetensors", *PICKLED)
CODE = ".npy"  # of a single code
PROCEDURAL = "procedural"  # the word that names the decoder that ships with this package
SHIPPED = Path(__file__).parent / "weights" / f"{PROCEDURAL}.safetensors"
BEFORE_SKIP = 3  # maurock's skip_layer comes after so many layers of `net`, if there are twice as many


@dataclass(frozen=True)
class Experiment:
    """A decoder with the codes of the shapes it was trained on.

    Args:
        decoder: in eval mode, float32, on the CPU.
        codes: ``[S, latent]``, perhaps of no shapes.
        names: of the shapes, or empty where the files do not tell.
        metadata: strings that our own files carry: tool, version, command, seed, figures.
    """

    decoder: DeepSDFDecoder
    codes: Tensor
    names: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def code(self, which: int | str) -> Tensor:
        """The code ``[latent]`` of a shape by its number, its name, or from a ``.npy`` as ``complete`` writes it.

        Raises:
            UserError: there is no such shape, or the file is no code of this decoder's.
        """
        if isinstance(which, str) and which.endswith(CODE):
            return _read_code(Path(which), self.decoder.config.latent)
        if isinstance(which, str) and which in self.names:
            which = self.names.index(which)
        if not isinstance(which, int) and not re.fullmatch(r"\d+", which):
            known = f"names are {', '.join(self.names[:8])}" if self.names else "it carries no names, only numbers"
            raise UserError(f"no shape {which!r} in this experiment; {known}")
        if not 0 <= int(which) < len(self.codes):
            raise UserError(f"this experiment has codes 0 to {len(self.codes) - 1}, got {which}")
        return self.codes[int(which)]


def _read_code(path: Path, size: int) -> Tensor:
    try:
        code = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a code ({error}); write it with `complete --code`") from error
    if not isinstance(code, np.ndarray) or code.shape != (size,) or code.dtype.kind != "f":
        raise UserError(f"{path}: this decoder's codes are {size} numbers, got {getattr(code, 'shape', 'none')}")
    return torch.from_numpy(code.astype(np.float32))


def load(path: Path | str) -> DeepSDFDecoder:
    """The decoder of a file of weights or of an experiment's folder; see :func:`load_experiment`."""
    return load_experiment(path).decoder


def load_experiment(path: Path | str, epoch: str | int = "latest") -> Experiment:
    """A decoder and its codes.

    Args:
        path: a file of weights (``.pth``, ``.pt``), our ``.safetensors``, or a folder: DeepSDF's, with ``specs.json``,
            ``ModelParameters/EPOCH.pth`` and ``LatentCodes/EPOCH.pth``, or maurock's, with ``weights.pt`` and
            ``results.npy``. The word ``procedural`` is our own decoder of mugs, chairs and so on.
        epoch: which of a DeepSDF folder's.

    Returns:
        The experiment; without codes for a file of weights alone.

    Raises:
        UserError: something is missing, cannot be read, would run code, or is no such decoder.
    """
    path = Path(path)
    if str(path) == PROCEDURAL:
        if not SHIPPED.exists():
            raise UserError(
                f"{PROCEDURAL}: its weights are missing from this installation ({SHIPPED}); install it anew"
            )
        return _read_ours(SHIPPED)
    if path.is_dir():
        if (path / "specs.json").exists() or (path / "ModelParameters").exists():
            return _deepsdf_folder(path, str(epoch))
        if (path / "weights.pt").exists():
            return _maurock_folder(path)
        raise UserError(f"{path}: no DeepSDF experiment (no specs.json, ModelParameters or weights.pt in this folder)")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: decoders come in folders, or in files that end in {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        return _read_ours(path)
    decoder = from_tensors(read_pickled(path), str(path), settings=_settings(path.parent / "settings.yaml"))
    return Experiment(decoder, torch.zeros(0, decoder.config.latent))


def save(
    path: Path | str,
    decoder: DeepSDFDecoder,
    codes: Tensor | None = None,
    names: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
    *,
    half: bool = False,
) -> None:
    """Write decoder and codes into one safetensors file that :func:`load_experiment` reads, atomically.

    Args:
        path: ends in ``.safetensors``.
        decoder: stored in the precision that it has, unless ``half``.
        codes: ``[S, latent]``.
        names: of the shapes, as many as codes, or none.
        metadata: strings kept beside tool, version and architecture, e.g. command, seed, figures.
        half: store all numbers in half precision; what is loaded is float32 again.

    Raises:
        UserError: codes or names do not fit, or the file cannot be written.
    """
    path = Path(path)
    codes = torch.zeros(0, decoder.config.latent) if codes is None else codes
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: decoders are written as .safetensors; choose that ending")
    if codes.ndim != 2 or codes.shape[1] != decoder.config.latent or len(names) not in (0, len(codes)):
        raise UserError(
            f"codes must be [shapes, {decoder.config.latent}] and names as many or none, got {list(codes.shape)} "
            f"and {len(names)}"
        )
    about = {
        "tool": "dist-render",
        "version": version("dist-render"),
        "config": json.dumps(dataclasses.asdict(decoder.config)),
        "names": json.dumps(list(names)),
    }
    tensors = {**decoder.state_dict(), "codes": codes}
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    content = to_bytes(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {**(metadata or {}), **about}
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def from_tensors(
    content: object, where: str, *, settings: Mapping[str, str] | None = None, final_tanh: int = 1
) -> DeepSDFDecoder:
    """The decoder whose tensors these are, as any of the dialects calls them.

    Args:
        content: a state dictionary, plain or under ``model_state_dict``.
        where: the file, for messages.
        settings: of maurock's ``settings.yaml``, whose tensors do not say whether the skip layer is used.
        final_tanh: how often tanh comes last; tensors do not say that either.

    Raises:
        UserError: they are no decoder's.
    """
    if isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        content = content["model_state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{where}: expected a dictionary of tensors or DeepSDF's {{epoch, model_state_dict}}")
    state = multiplied_out(deepsdf_names(content, settings or {}), where)
    config = recognise(state, where, final_tanh)
    return _filled(config, state, where)


def deepsdf_names(tensors: Mapping[str, Tensor], settings: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under DeepSDF's names, ``lin{k}``, still in their form of weight normalisation."""
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    layers = {int(found[1]) for name in tensors if (found := re.match(r"net\.(\d+)\.0\.", name))}
    if not layers or "final_layer.0.weight" not in tensors:
        return tensors
    skips = "skip_layer.0.weight" in tensors and len(layers) >= 2 * BEFORE_SKIP
    if "num_layers" in settings:  # the network without skips has one more layer in `net`
        skips = skips and int(settings["num_layers"]) == len(layers) + 2
    renamed = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(?:net\.(\d+)|(skip_layer)|(final_layer))\.0\.(.+)", name)
        if not found:
            renamed[name] = tensor
        elif not found[2] or skips:  # else the skip layer is there and never used
            k = int(found[1]) + (skips and int(found[1]) >= BEFORE_SKIP) if found[1] else len(layers) + skips
            renamed[f"lin{BEFORE_SKIP if found[2] else k}.{found[4]}"] = tensor
    return renamed


def multiplied_out(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights ``g v / |v|``, row by row, for every pair of ``g`` and ``v``; other tensors in float32."""
    state = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.partition(".")
        if kind in ("weight_v", "parametrizations.weight.original1"):
            other = "weight_g" if kind == "weight_v" else "parametrizations.weight.original0"
            length = tensors.get(f"{layer}.{other}")
            if length is None or tensor.ndim != 2 or length.numel() != tensor.shape[0]:
                raise UserError(f"{where}: {name} has no {other} of its length beside it; fetch the file anew")
            # In float64, so that the product is the nearest float32 to what was trained.
            v = tensor.double()
            weight = v * (length.double().reshape(-1, 1) / v.norm(dim=1, keepdim=True))
            state[f"{layer}.weight"] = weight.float()
        elif kind not in ("weight_g", "parametrizations.weight.original0"):
            state[name] = tensor.float()
    return state


def recognise(state: Mapping[str, Tensor], where: str, final_tanh: int = 1) -> DecoderConfig:
    """The architecture whose layers, ``lin{k}.weight``, have these shapes.

    Raises:
        UserError: there is none.
    """
    if any(re.match(r"bn\d+\.", name) for name in state):
        raise UserError(f"{where}: has layer normalisation (bn0...), which is not supported; train with weight_norm")
    shapes = []
    while (weight := state.get(f"lin{len(shapes)}.weight")) is not None and weight.ndim == 2:
        shapes.append(tuple(weight.shape))
    if len(shapes) < 2:
        raise UserError(
            f"{where}: no decoder of DeepSDF's: expected tensors lin0.weight, lin1.weight, ... or net.0.0.weight, ..., "
            f"got {', '.join(list(state)[:3]) or 'none'}"
        )
    layers, latent, hidden = len(shapes) - 1, shapes[0][1] - 3, shapes[1][1]
    added = [shapes[k][1] - shapes[k - 1][0] for k in range(1, layers + 1)]  # inputs beside the last layer's output
    skip = tuple(k for k, extra in enumerate(added, 1) if extra == latent + 3)
    in_all = bool(added) and all(extra in (3, latent + 3) for extra in added) and 3 in added and latent > 0
    try:
        config = DecoderConfig(latent, hidden, layers, skip, in_all, final_tanh=final_tanh)
    except UserError as error:
        raise UserError(f"{where}: no decoder of DeepSDF's: {error}") from error
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in DeepSDFDecoder(config).state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else None
        if found != expected.get(name):
            raise UserError(
                f"{where}: no decoder of DeepSDF's: {name} is {found and list(found)}, where {expected.get(name)} "
                "would fit; widths must be the same in all layers"
            )
    return config


def _filled(config: DecoderConfig, state: Mapping[str, Tensor], where: str) -> DeepSDFDecoder:
    with torch.device("meta"):
        decoder = DeepSDFDecoder(config)
    try:
        decoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(f"{where}: its tensors do not fit the architecture it names; fetch or save it anew") from error
    return decoder.eval()


def _deepsdf_folder(folder: Path, epoch: str) -> Experiment:
    weights = folder / "ModelParameters" / f"{epoch}.pth"
    if not weights.exists():
        there = sorted(file.stem for file in weights.parent.glob("*.pth"))
        raise UserError(f"{weights}: not there; epochs of this experiment are {', '.join(there) or 'none'}")
    specs = _specs(folder / "specs.json")
    network = specs.get("NetworkSpecs", {})
    decoder = from_tensors(read_pickled(weights), str(weights), final_tanh=2 if network.get("use_tanh") else 1)
    size = specs.get("CodeLength", decoder.config.latent)
    if size != decoder.config.latent:
        raise UserError(f"{folder}: specs.json says CodeLength {size}, the weights have {decoder.config.latent}")
    file = folder / "LatentCodes" / f"{epoch}.pth"
    codes = read_codes(file, size) if file.exists() else torch.zeros(0, size)
    return Experiment(decoder, codes)


def _maurock_folder(folder: Path) -> Experiment:
    weights, results = folder / "weights.pt", folder / "results.npy"
    decoder = from_tensors(read_pickled(weights), str(weights), settings=_settings(folder / "settings.yaml"))
    size = decoder.config.latent
    return Experiment(decoder, read_codes(results, size) if results.exists() else torch.zeros(0, size))


def _specs(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        specs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); mend or remove it") from error
    if not isinstance(specs, dict) or not isinstance(specs.get("NetworkSpecs", {}), dict):
        raise UserError(f"{path}: expected an object with NetworkSpecs and CodeLength as DeepSDF writes it")
    return specs


def _settings(path: Path) -> dict[str, str]:
    """The flat ``name: value`` lines of maurock's settings; no other YAML occurs in them."""
    if not path.exists():
        return {}
    found = re.findall(r"^num_layers:\s*(\d+)\s*$", path.read_text(errors="replace"), re.MULTILINE)
    return {"num_layers": found[0]} if found else {}


def _read_ours(path: Path) -> Experiment:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); fetch it anew") from error
    codes = tensors.pop("codes", None)
    if metadata.get("tool") == "dist-render":
        try:
            values = json.loads(metadata["config"])
            config = DecoderConfig(**{**values, "skip": tuple(values["skip"])})
            names = tuple(json.loads(metadata.get("names", "[]")))
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path}: was written by another version of dist-render ({error}); save it anew") from error
        decoder = _filled(config, tensors, str(path))
    else:
        decoder, names = from_tensors(tensors, str(path)), ()
    codes = torch.zeros(0, decoder.config.latent) if codes is None else codes.float()
    if codes.ndim != 2 or codes.shape[1] != decoder.config.latent:
        raise UserError(f"{path}: codes are {list(codes.shape)}, expected [shapes, {decoder.config.latent}]")
    return Experiment(decoder, codes, names, metadata)
