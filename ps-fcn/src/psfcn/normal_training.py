"""What PS-FCN learns and how it is tested: the loss of eq. (2), and angles beside the classical methods'."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from papershelf.processes import Place
from papershelf.training_log import Panel
from torch import Tensor, nn

from psfcn import classical
from psfcn.angles import mean_degrees
from psfcn.crops import Crop, Crops, Samples, photographs
from psfcn.networks import PSFCN
from psfcn.recipes import TrainingConfig

BASELINES = {"least_squares": "ls", "trimmed": "trimmed"}


class NormalTask:
    """PS-FCN, PS-FCN+N or UPS-FCN on rendered samples.

    Args:
        config: the recipe.
        samples: to train on.
        held_out: of held-out materials and shapes, to test on.
    """

    best_by = "mae"
    panels = (Panel(("train_mae", "mae_few", "mae_all", "trimmed_mae_few", "trimmed_mae_all"), "degrees", log=True),)

    def __init__(self, config: TrainingConfig, samples: Samples, held_out: Samples) -> None:
        self.config, self.samples, self.held_out = config, samples, held_out
        self.network = network_for(config.network)
        self.dataset = Crops(self.samples, config)
        self._baselines: dict[str, float] = {}

    def loss(self, forward: Callable[..., Tensor], batch: Crop, place: Place) -> tuple[Tensor, Tensor]:
        """Eq. (2), over the mask: the mean of ``1 - n . n~``, and the mean angle in degrees.

        Paper: the released code's mean takes the background in. Here a process's share of the pixels that all
        processes have, so that many give the gradients of one.
        """
        lights = None if self.config.network == "upsfcn" else batch.lights
        found = forward(batch.images, lights, None)
        cosine = (found * batch.normal).sum(1, keepdim=True)
        pixels = place.summed(batch.mask.sum()).clamp(min=1) / place.world
        angles = torch.rad2deg(torch.acos(cosine.detach().clamp(-1, 1)))
        return ((1 - cosine) * batch.mask).sum() / pixels, (angles * batch.mask).sum() / pixels

    @torch.inference_mode()
    def validate(self, network: nn.Module, place: Place) -> dict[str, float]:
        """Mean angular errors on the held-out samples, in degrees: with few lights, with all, and their mean.

        Each process takes its share of the samples. Least squares (plain and trimmed) is measured once.
        """
        names = ["mae_few", "mae_all"]
        sums = dict.fromkeys([*names, *(f"{b}_{n}" for b in BASELINES for n in names)], 0.0)
        for number in range(place.rank, len(self.held_out), place.world):
            sample = self.held_out.load(number)
            for name, chosen in zip(names, _few_and_all(len(sample.lights), number), strict=True):
                images, lights = photographs(sample, chosen), torch.from_numpy(sample.lights[chosen])
                given = None if self.config.network == "upsfcn" else lights[None].to(place.device)
                found = network(images[None].to(place.device), given)[0].permute(1, 2, 0).cpu().numpy()
                sums[name] += mean_degrees(found, sample.normal, sample.mask)
                if not self._baselines:
                    pixels = images.permute(0, 2, 3, 1).numpy()
                    for baseline, method in BASELINES.items():
                        found = classical.solve(pixels, lights.numpy(), sample.mask, method).normals
                        sums[f"{baseline}_{name}"] += mean_degrees(found, sample.normal, sample.mask)
        totals = place.summed(torch.tensor([*sums.values()], dtype=torch.float64, device=place.device))
        means = dict(zip(sums, (totals / len(self.held_out)).tolist(), strict=True))
        if not self._baselines:
            self._baselines = {name: value for name, value in means.items() if name not in names}
        return {"mae": (means["mae_few"] + means["mae_all"]) / 2} | {n: means[n] for n in names} | self._baselines


def network_for(kind: str) -> PSFCN:
    """A fresh network of a kind: ``psfcn``, ``psfcn-n`` or ``upsfcn``."""
    return PSFCN(in_channels=3 if kind == "upsfcn" else 6, normalise=kind == "psfcn-n")


def _few_and_all(lights: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 8 of a sample's lights, always the same ones, and up to 32."""
    order = np.random.default_rng(number).permutation(lights)
    return order[:8], order[:32]
