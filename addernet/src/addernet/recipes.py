"""How the paper trains each network (AdderNet, section 4): the values, with their sources, and the rate's cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from papershelf.errors import UserError

from addernet.architectures import ARCHITECTURES, IMAGENET

AMP = ("off", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe; what section 4 does not say is marked."""

    arch: str = "resnet20"
    op: str = "adder"  # conv: the twin to compare with
    epochs: int = 400  # section 4.2; ImageNet 150 (section 4.3), LeNet 50 (section 4.1)
    batch: int = 256  # sections 4.1 to 4.3; over all processes
    lr: float = 0.1  # sections 4.1 to 4.3; the highest
    momentum: float = 0.9  # section 4.1
    nesterov: bool = False  # the released code; section 4.1 has it for LeNet
    weight_decay: float = 5e-4  # sections 4.1 and 4.2; ImageNet 1e-4 (section 4.3)
    eta: float = 0.2  # section 3.3: of the adder layers' local learning rate
    seed: int = 0  # not in the paper: of weights, order and augmentation
    augment: bool = True  # section 4.2; False: the images as they are
    cutout: int = 0  # not in the paper: side in pixels of a square that is erased
    amp: str = "off"  # not in the paper: convolutions in bfloat16 or float16
    ema: float | None = None  # not in the paper: decay of averaged weights, which are then tested and kept
    accumulate: int = 1  # not in the paper: parts in which a batch is computed, each with its own batch statistics
    limit: int | None = None  # not in the paper: at most so many images of each part, for trials


def recipe(arch: str, **changes: object) -> TrainingConfig:
    """The paper's values for an architecture, with ``changes``; those that are None stay the paper's.

    Raises:
        UserError: there is no such architecture, or a value makes no sense.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"no architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    own: dict[str, object] = {"epochs": 150, "weight_decay": 1e-4} if arch in IMAGENET else {}
    own |= {"epochs": 50, "nesterov": True} if arch == "lenet" else {}
    config = TrainingConfig(**{"arch": arch, **own, **{k: v for k, v in changes.items() if v is not None}})
    least = {"epochs": 1, "batch": 1, "accumulate": 1, "limit": 1, "cutout": 0, "weight_decay": 0, "seed": 0}
    for name, value in least.items():
        if (given := getattr(config, name)) is not None and given < value:
            raise UserError(f"{name} must be at least {value}, got {given}")
    if config.amp not in AMP or config.op not in ("adder", "conv"):
        raise UserError(f"amp must be one of {', '.join(AMP)} and op adder or conv, got {config.amp} and {config.op}")
    if config.lr <= 0 or config.eta <= 0 or not 0 <= config.momentum < 1 or not 0 <= (config.ema or 0) < 1:
        raise UserError("lr and eta must be above 0, momentum and ema from 0 to below 1")
    if config.batch % config.accumulate:
        raise UserError(f"a batch of {config.batch} cannot be computed in {config.accumulate} equal parts")
    return config


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Section 4: half a cosine, ``0.05 (1 + cos(pi e / E))`` in epoch e of E from 0 on, where lr is 0.1."""
    return config.lr / 2 * (1 + math.cos(math.pi * epoch / config.epochs))
