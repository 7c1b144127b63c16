"""Which processor the networks run on, from the word that ``--device`` takes."""

from __future__ import annotations

import torch

from papershelf.errors import UserError


def device_named(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` (``cuda:1``) as a device; UserError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch {torch.__version__} sees no CUDA GPU here; use --device cpu")
    return device
