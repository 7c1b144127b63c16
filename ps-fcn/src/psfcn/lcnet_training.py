"""What LCNet learns and how it is tested: three cross-entropies (eq. (5)), and errors of lights (section 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from papershelf.processes import Place
from papershelf.training_log import Panel
from torch import Tensor, nn
from torch.utils.data import Dataset

from psfcn.crops import COLOURS, Samples, photographs, turned, turned_vectors, with_noise
from psfcn.lcnet import STRONGEST, WEAKEST, LCNet, Logits, decode, inputs, loss
from psfcn.recipes import TrainingConfig
from psfcn.samples import Sample

MOST = 32  # lights of a held-out sample


class Lit(NamedTuple):
    """An object under lights to be found; a leading dimension more in a batch.

    images ``[Q, 3, 128, 128]``; mask ``[1, 128, 128]``; lights ``[Q, 3]``; intensities ``[Q]``.
    """

    images: Tensor
    mask: Tensor
    lights: Tensor
    intensities: Tensor


class LitObjects(Dataset):
    """Objects by (step, place in the batch).

    Args:
        samples: what they are taken from.
        config: the recipe.
    """

    def __init__(self, samples: Samples, config: TrainingConfig) -> None:
        self.samples, self.config = samples, config

    def __getitem__(self, key: tuple[int, int]) -> Lit:
        step, place = key
        config = self.config
        low, high = config.lights
        quantity = int(np.random.default_rng([config.seed, step]).integers(low, high + 1))
        sample = self.samples.drawn(config.seed, step * config.batch + place, quantity)
        return random_lights(sample, np.random.default_rng([config.seed, step, place]), quantity, config)


class LightTask:
    """LCNet on rendered samples.

    Args:
        config: the recipe.
        samples: to train on.
        held_out: of held-out materials and shapes, to test on.
    """

    best_by = "direction"
    panels = (Panel(("train_direction", "direction"), "degrees", log=True), Panel(("intensity",), "relative", log=True))

    def __init__(self, config: TrainingConfig, samples: Samples, held_out: Samples) -> None:
        self.config, self.samples, self.held_out = config, samples, held_out
        self.network = LCNet()
        self.dataset = LitObjects(self.samples, config)

    def loss(self, forward: Callable[..., Logits], batch: Lit, place: Place) -> tuple[Tensor, Tensor]:
        """Eq. (5), and the mean angle in degrees between the lights and those of the scores.

        Every process has as many lights, so that the mean of their means is the mean.
        """
        logits = forward(batch.images, batch.mask)
        found, _ = decode(Logits(*(scores.detach() for scores in logits)))
        return loss(logits, batch.lights, batch.intensities), angles(found, batch.lights).mean()

    @torch.inference_mode()
    def validate(self, network: nn.Module, place: Place) -> dict[str, float]:
        """Mean errors of directions (degrees) and of intensities (relative) on the held-out samples.

        Each process takes its share of the samples.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        for number in range(place.rank, len(self.held_out), place.world):
            sample = self.held_out.load(number)
            rng = np.random.default_rng(number)
            item = lit(sample, rng, rng.permutation(len(sample.lights))[:MOST])
            scores = network(item.images[None].to(place.device), item.mask[None].to(place.device))
            directions, intensities = (x[0].cpu() for x in decode(scores))
            direction = angles(directions, item.lights).mean()
            sums += torch.stack([direction, intensity_error(intensities, item.intensities)]).double()
        direction, intensity = (place.summed(sums.to(place.device)) / len(self.held_out)).tolist()
        return {"direction": direction, "intensity": intensity}


def random_lights(sample: Sample, rng: np.random.Generator, quantity: int, config: TrainingConfig) -> Lit:
    """An object under some of its lights, each of a random intensity, with what the recipe changes about it.

    Args:
        sample: the object.
        rng: what is drawn from.
        quantity: of lights.
        config: the recipe; crops and sides are not LCNet's.
    """
    item = lit(sample, rng, rng.permutation(len(sample.lights))[:quantity], config.noise, config.colour)
    if not config.turn:
        return item
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    images, mask = (turned(x, turns, mirrored) for x in (item.images, item.mask))
    lights = turned_vectors(item.lights, 1, turns, mirrored)
    return Lit(images.contiguous(), mask.contiguous(), lights, item.intensities)


def lit(sample: Sample, rng: np.random.Generator, chosen: np.ndarray, noise: float = 0.0, colour: bool = False) -> Lit:
    """An object under chosen lights, each of an intensity from U(0.2, 2) (section 5.1), as LCNet sees it."""
    intensities = torch.from_numpy(rng.uniform(WEAKEST, STRONGEST, len(chosen)).astype(np.float32))
    images = photographs(sample, chosen) * intensities[:, None, None, None]
    if colour:
        images = images * torch.from_numpy(rng.uniform(*COLOURS, (3, 1, 1)).astype(np.float32))
    images, mask = inputs(with_noise(images, rng, noise), torch.from_numpy(sample.mask))
    return Lit(images, mask, torch.from_numpy(sample.lights[chosen]), intensities)


def angles(found: Tensor, true: Tensor) -> Tensor:
    """Between unit vectors ``[..., 3]``, in degrees."""
    return torch.rad2deg(torch.acos((found * true).sum(-1).clamp(-1, 1)))


def intensity_error(found: Tensor, true: Tensor) -> Tensor:
    """Eq. (9): the mean of ``|s e - e~| / e~`` with the one scale s that fits best, since none can be seen."""
    scale = (found * true).sum() / found.square().sum()
    return ((scale * found - true).abs() / true).mean()
