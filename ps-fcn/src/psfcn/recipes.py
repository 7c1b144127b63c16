"""How the paper trains each network (sections 5.1 and 5.2): the values, with their sources, and the rate's course."""

from __future__ import annotations

import math
from dataclasses import dataclass

from papershelf.errors import UserError

NETWORKS = ("psfcn", "psfcn-n", "upsfcn", "lcnet")
WARM_UP = 0.01  # of a cosine schedule, during which the rate rises from zero
SMALLEST_CROP = 8  # pixels


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe; what the paper does not have is marked, and off unless asked for."""

    network: str = "psfcn-n"
    batch: int = 32  # section 5.2; over all processes
    epochs: int = 30  # section 5.2; LCNet 20
    lr: float = 1e-3  # section 5.2, of Adam; LCNet 5e-4
    halve_every: int = 5  # section 5.2: epochs
    lights: tuple[int, int] = (32, 32)  # section 5.2; not in the paper: a number drawn anew for each batch
    crop: tuple[int, int] = (32, 32)  # pixels, section 5.2; not in the paper: likewise. LCNet sees 128x128
    side: tuple[int, int] = (32, 128)  # pixels, section 5.2: of the rescaled image that crops are taken from
    noise: float = 0.025  # section 5.2: uniform in [-noise, noise], where images are in [0, 1]
    colour: bool = False  # section 5.2: random colours, for networks without PS-FCN+N's normalisation
    turn: bool = False  # not in the paper: quarter turns and mirror images
    gain: float = 0.0  # not in the paper: standard deviation of errors in the lights' intensities
    aim: float = 0.0  # not in the paper: standard deviation in degrees of errors in the lights' directions
    schedule: str = "halving"  # not in the paper: cosine, down to zero
    steps: int | None = None  # not in the paper: in place of epochs
    minutes: float | None = None  # not in the paper: likewise; the rate follows the clock
    amp: str = "off"  # not in the paper: bfloat16
    seed: int = 0  # of weights, order and augmentation


BUDGET = ("epochs", "steps", "minutes", "lr", "halve_every", "schedule")  # what a run may change when it goes on


def recipe(network: str, **changes: object) -> TrainingConfig:
    """The paper's values for a network, with ``changes``; those that are None stay the paper's.

    Raises:
        UserError: there is no such network, or a value makes no sense.
    """
    if network not in NETWORKS:
        raise UserError(f"no network {network!r}; there are {', '.join(NETWORKS)}")
    own: dict[str, object] = {"colour": network != "psfcn-n"}
    if network == "lcnet":
        own |= {"lr": 5e-4, "epochs": 20}
    if changes.get("steps") or changes.get("minutes"):
        own |= {"schedule": "cosine"}
    config = TrainingConfig(network=network, **own | {k: v for k, v in changes.items() if v is not None})
    least = {"epochs": 1, "batch": 1, "halve_every": 1, "steps": 1, "noise": 0, "gain": 0, "aim": 0, "seed": 0}
    for name, value in least.items():
        if (given := getattr(config, name)) is not None and given < value:
            raise UserError(f"{name} must be at least {value}, got {given}")
    for name, value in {"lights": 3, "crop": SMALLEST_CROP, "side": SMALLEST_CROP}.items():
        low, high = getattr(config, name)
        if not value <= low <= high:
            raise UserError(f"{name} must be LEAST..MOST, {value} or more, got {low}..{high}")
    if config.side[1] < config.crop[1]:
        raise UserError(f"side must reach the {config.crop[1]} pixels of crop, got {config.side[0]}..{config.side[1]}")
    if any(side % 4 for side in config.crop):
        raise UserError(f"crop must be multiples of 4 pixels, got {config.crop[0]}..{config.crop[1]}")
    if config.lr <= 0 or (config.minutes is not None and config.minutes <= 0):
        raise UserError("lr and minutes must be above 0")
    if config.steps and config.minutes:
        raise UserError("a run ends after steps or after minutes; give one of them")
    if config.amp not in ("off", "bfloat16") or config.schedule not in ("halving", "cosine"):
        raise UserError(f"amp is off or bfloat16, schedule halving or cosine, got {config.amp} and {config.schedule}")
    return config


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """Section 5.2: halved every 5 of 30 epochs; or a cosine from a short rise down to zero.

    Args:
        config: the recipe.
        progress: of the run, from 0 to 1.
    """
    if config.schedule == "halving":
        return config.lr * 0.5 ** (int(progress * config.epochs) // config.halve_every)
    return config.lr * min(1, (progress + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * min(progress, 1))) / 2
