"""Decoders written as DeepSDF's own code (github.com/facebookresearch/DeepSDF) loads them.

That code builds the network from ``specs.json``, wraps it in ``DataParallel`` and loads ``{epoch, model_state_dict}``:
names begin with ``module.``, and the layers that ``norm_layers`` names (all but the last, in its examples) have their
weight as a direction ``weight_v`` and a length ``weight_g`` for each row. Reading is :mod:`distrender.decoder_files`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.decoder_files import Experiment

# How each dialect calls a layer's tensors; "" for weights as they are.
DIALECTS = {
    "deepsdf": ("module.", "weight_g", "weight_v"),
    "newer": ("module.", "parametrizations.weight.original0", "parametrizations.weight.original1"),
    "plain": ("", "", ""),
}


def state_dict(decoder: DeepSDFDecoder, dialect: str = "deepsdf") -> OrderedDict[str, Tensor]:
    """A decoder's tensors under a dialect's names, float32 on the CPU.

    Args:
        decoder: of any architecture that DeepSDF knows.
        dialect: "deepsdf", as released; "newer", as newer releases of PyTorch name weight normalisation; or "plain",
            without it and without ``module.``.
    """
    prefix, length, direction = DIALECTS[dialect]
    last = f"lin{decoder.config.layers}"
    state = OrderedDict()
    for name, tensor in decoder.state_dict().items():
        layer, _, kind = name.partition(".")
        tensor = tensor.detach().cpu().float().clone()
        if kind == "weight" and length and layer != last:
            state[f"{prefix}{layer}.{length}"] = tensor.double().norm(dim=1, keepdim=True).float()
            state[f"{prefix}{layer}.{direction}"] = tensor
        else:
            state[prefix + name] = tensor
    return state


def specs(config: DecoderConfig, weight_norm: bool, where: Path) -> dict[str, object]:
    """``specs.json`` of an architecture.

    Raises:
        UserError: DeepSDF's code knows no such network.
    """
    if config.activation != "relu" or config.final_tanh == 0:
        raise UserError(
            f"{where}: DeepSDF's networks have ReLU and a tanh at the end, this one {config.activation} and "
            f"{config.final_tanh} tanh; keep it as .safetensors"
        )
    return {
        "Description": "written by dist-render convert",
        "NetworkArch": "deep_sdf_decoder",
        "NetworkSpecs": {
            "dims": [config.hidden] * config.layers,
            "dropout": [],
            "dropout_prob": 0.0,
            "norm_layers": list(range(config.layers)) if weight_norm else [],
            "latent_in": list(config.skip),
            "xyz_in_all": config.xyz_in_all,
            "use_tanh": config.final_tanh == 2,
            "latent_dropout": False,
            "weight_norm": weight_norm,
        },
        "CodeLength": config.latent,
    }


def write_weights(path: Path, decoder: DeepSDFDecoder, dialect: str = "deepsdf", epoch: int = 0) -> None:
    """Write ``{epoch, model_state_dict}``, atomically.

    Raises:
        UserError: DeepSDF's code knows no such network, or the file cannot be written.
    """
    specs(decoder.config, dialect != "plain", path)
    _write(path, {"epoch": epoch, "model_state_dict": state_dict(decoder, dialect)})


def write_experiment(folder: Path, experiment: Experiment, dialect: str = "deepsdf", epoch: int = 0) -> None:
    """Write ``specs.json``, ``ModelParameters/latest.pth`` and, where there are codes, ``LatentCodes/latest.pth``.

    Raises:
        UserError: as :func:`write_weights`, or the folder holds something already.
    """
    settings = specs(experiment.decoder.config, dialect != "plain", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder for the experiment")
    try:
        (folder / "ModelParameters").mkdir(parents=True)
        if len(experiment.codes):
            (folder / "LatentCodes").mkdir()
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another place") from error
    write_weights(folder / "ModelParameters" / "latest.pth", experiment.decoder, dialect, epoch)
    if len(experiment.codes):
        codes = OrderedDict(weight=experiment.codes.detach().cpu().float())
        _write(folder / "LatentCodes" / "latest.pth", {"epoch": epoch, "latent_codes": codes})
    with atomic_path(folder / "specs.json") as part:
        part.write_text(json.dumps(settings, indent=2) + "\n")


def _write(path: Path, content: Mapping[str, object]) -> None:
    with atomic_path(path) as part:
        torch.save(dict(content), part)
