"""Weights of RIFE from files: the official ones as they were published, and our own safetensors.

Which release a file holds is seen from its keys and shapes, never from its name. The official names
differ from ours by the table ``_RENAMES``; our own files carry their whole configuration.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.resuming import UNREADABLE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from rife.flow_net import BlockStyle
from rife.model import Rife
from rife.presets import PRESETS, V4_7, V4_25, RifeConfig
from rife.refinement import RefinementConfig

PICKLED = (".pkl", ".pth", ".pt")
SUFFIXES = (*PICKLED, ".safetensors")
V3_1_FILES = ("flownet", "contextnet", "unet")  # v3.1 comes in three files

_BLOCK = r"^(blocks\.\d|teacher)\."
_RENAMES = [  # official name -> ours, in this order
    (r"^(caltime|teacher)\..*", ""),  # v4.18 and later: parts that only their training used
    (r"^block_tea\.", "teacher."),
    (r"^block(\d)\.", r"blocks.\1."),
    (_BLOCK + r"conv0\.", r"\1.stem."),
    (_BLOCK + r"convblock\.", r"\1.body."),
    (_BLOCK + r"convblock(\d)\.", r"\1.body.\2."),  # v3: pairs
    (_BLOCK + r"lastconv\.(?:0\.)?", r"\1.head.0."),
    (_BLOCK + r"conv1\.(?:0\.)?(?=[wb])", r"\1.head.0."),  # v3: conv1 gives flow, conv2 the mask
    (_BLOCK + r"conv1\.", r"\1.head."),
    (_BLOCK + r"conv2\.(?:0\.)?(?=[wb])", r"\1.mask_head.0."),
    (_BLOCK + r"conv2\.", r"\1.mask_head."),
    (r"^encode\.cnn(\d)\.", lambda m: f"encoder.layers.{2 * int(m[1])}."),
    (r"^encode\.(\d)\.", r"encoder.layers.\1."),
    (r"^contextnet\.conv0\.", "refinement.context.stem."),
    (r"^contextnet\.conv(\d)\.", lambda m: f"refinement.context.levels.{int(m[1]) - 1}."),
    (r"^unet\.conv0\.", "refinement.fusion.stem."),
    (r"^unet\.conv\.", "refinement.fusion.out."),
    (r"^unet\.(down|up)(\d)\.", r"refinement.fusion.\1.\2."),
    (r"^(refinement\..*)\.conv(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}."),  # the two of a pair
]


def load(path: Path | Sequence[Path]) -> Rife:
    """The network that a file of weights belongs to, ready for inference.

    Args:
        path: ``.pkl``, ``.pth``, ``.pt`` or ``.safetensors``; v3.1's three files as a list, or the folder
            that holds them under their official names. Teacher weights may be missing.

    Returns:
        The model on the CPU, float32, in eval mode.

    Raises:
        UserError: a file cannot be read, needs Python code to be unpickled, or fits no known release.
    """
    paths = _files([Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path])
    where = ", ".join(map(str, paths))
    tensors, metadata = {}, {}
    for file in paths:
        more, metadata = _read(file)
        tensors |= more
    if "config" in metadata:
        config, state = _config_from_json(metadata["config"], where), tensors
    else:
        state = rename(tensors)
        config = recognise(state, where)
    with torch.device("meta"):
        model = Rife(config)
    try:
        model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{where}: its tensors do not fit the configuration it carries; fetch or save it anew"
        ) from error
    return model.eval()


def save(model: Rife, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``model`` as safetensors that :func:`load` and other tools can read, atomically.

    Args:
        model: any release, trained by us or converted.
        path: ends in ``.safetensors``.
        metadata: strings kept beside tool, version, architecture and configuration, e.g. command, seed, figures.
    """
    about = {
        "tool": "rife-interp",
        "version": version("rife-interp"),
        "architecture": model.config.name,
        "config": json.dumps(dataclasses.asdict(model.config)),
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, {**(metadata or {}), **about}))


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official parameter names to those of :class:`rife.model.Rife`."""
    renamed = {}
    for key, tensor in tensors.items():
        name = key
        for pattern, new in _RENAMES:
            name = re.sub(pattern, new, name)
        if name:
            renamed[name] = tensor
    return renamed


def recognise(state: Mapping[str, Tensor], where: str) -> RifeConfig:
    """The release whose parameters have exactly these names and shapes.

    RIFE-Large has the paper's parameters and cannot be told from it: our own files say which they are.

    Raises:
        UserError: there is none; ``where`` names the file in the message.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    candidates = list(PRESETS.values())
    if "encoder.layers.0.weight" in shapes:
        candidates.append(_encoder_release(shapes))
    for config in candidates:
        if config.teacher and "teacher.stem.0.0.weight" not in shapes:
            config = dataclasses.replace(config, teacher=())
        if _shapes(config) == shapes:
            return config
    hint = ""
    if not any(key.startswith("refinement.") for key in shapes) and shapes.get("blocks.0.head.0.weight") == (
        160,
        4,
        4,
        4,
    ):
        hint = "; v3.1 comes as flownet, contextnet and unet: give the folder that holds the three"
    raise UserError(f"{where}: not weights of a known RIFE release ({', '.join(PRESETS)}){hint}")


def _encoder_release(shapes: Mapping[str, tuple[int, ...]]) -> RifeConfig:
    """A release between v4.7 and v4.26 by its sizes: they vary more than their structure."""
    blocks = sum(re.fullmatch(r"blocks\.\d\.stem\.1\.0\.weight", key) is not None for key in shapes)
    layers = sorted(key for key in shapes if re.fullmatch(r"encoder\.layers\.\d\.weight", key))
    carried = shapes["blocks.0.head.0.weight"][1] // 4 - 5
    base = V4_7 if carried == 1 else V4_25
    scales = (16, 8, 4, 2, 1)[-blocks:]
    return dataclasses.replace(
        base,
        name=f"v4 ({blocks} blocks with encoder)",
        widths=tuple(shapes[f"blocks.{i}.stem.1.0.weight"][0] for i in range(blocks)),
        scales=scales,
        encoder=(shapes[layers[0]][0], shapes[layers[-1]][1], len(layers)),
        carried=0 if carried == 1 else carried,
        padding=4 * scales[0],
    )


def _shapes(config: RifeConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in Rife(config).state_dict().items()}


def _files(paths: list[Path]) -> list[Path]:
    if len(paths) != 1 or not paths[0].is_dir():
        return paths
    found = [file for part in V3_1_FILES for suffix in SUFFIXES if (file := paths[0] / (part + suffix)).exists()]
    if not found:
        raise UserError(f"{paths[0]}: no flownet.pkl in this folder; give a file of weights")
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file; v3.1's parts get the prefix that says which they are."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights end in {', '.join(SUFFIXES)}")
    try:
        if path.suffix in PICKLED:
            tensors, metadata = torch.load(path, map_location="cpu", weights_only=True), {}
        else:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iterator)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors, and loading it would run code from it: refused") from error
    except (*UNREADABLE, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights ({error}); fetch it anew") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: expected a plain dictionary of tensors, as flownet.pkl is")
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    prefix = "unet." if "up0.0.weight" in tensors else "contextnet." if "conv4.conv1.0.weight" in tensors else ""
    return {prefix + key: tensor for key, tensor in tensors.items()}, metadata


def _config_from_json(text: str, where: str) -> RifeConfig:
    try:
        values = json.loads(text)
        refinement = values["refinement"]
        values |= {"style": BlockStyle(**values["style"]), "refinement": refinement and RefinementConfig(**refinement)}
        return RifeConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: its configuration is of another version of this tool: {error}") from error
