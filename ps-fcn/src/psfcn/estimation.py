"""From a capture to normals, albedo and a confidence, by the network, by a classical method, or by both.

Not in the paper: the gate of ``auto``. The network and sparse Bayesian least squares each leave some of a pixel's
photographs unexplained (:func:`psfcn.classical.residual`, averaged over a small window): r_n and r_c. Their normals are
averaged with the weight ``1 / (1 + (r_n / (1.1 r_c))^4)`` for the network's: where it explains much less, the classical
normal stands. The factor 1.1 is there because the classical normal is the one that was fitted to these residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from papershelf.errors import UserError
from scipy import ndimage

from psfcn import classical, lcnet
from psfcn.captures import Capture
from psfcn.lcnet import LCNet
from psfcn.networks import PSFCN
from psfcn.prediction import Precision, predict_normals

ROBUST = "sbl"  # of the classical methods the best on held-out materials, from 8 lights to 96
METHODS = ("auto", "psfcn", "robust", *classical.METHODS)
WINDOW = 5  # pixels: residuals of single ones are noisy
# Of the gate, chosen on 20 renders of their own, half of Mitsuba's objects, and the real photographs of a gray ball.
EVEN, STEEP = 1.1, 4  # the ratio of residuals at which both count alike; how fast that changes
HALF = 0.07  # of a pixel's brightness: the residual at which the confidence is one half


@dataclass(frozen=True)
class Estimate:
    """Maps of ``[H, W]``, zero outside the mask.

    Attributes:
        normals: ``[H, W, 3]`` float32, unit.
        albedo: ``[H, W, 3]`` float32, linear RGB.
        confidence: ``[H, W]`` float32 in [0, 1]: 1 where a matt surface with these normals explains the photographs
            wholly, 0.5 where half of them are off by 7 % of the pixel's brightness or more.
        learnt: the network's weight in the normals, in the mean over the object.
        worse: share of the pixels in which it is below one half, None if there is nothing to weigh.
    """

    normals: np.ndarray
    albedo: np.ndarray
    confidence: np.ndarray
    learnt: float
    worse: float | None = None


def estimate(
    capture: Capture,
    method: str = "auto",
    network: PSFCN | None = None,
    *,
    lights_found: bool = False,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Normals of a capture by one method; several are found by one :class:`Estimator`, which takes the same.

    Raises:
        UserError: there is no such method, or lights or network are missing.
    """
    estimator = Estimator(
        capture, network, lights_found=lights_found, precision=precision, device=device, progress=progress
    )
    return estimator.estimate(method)


class Estimator:
    """Normals of a capture by any of ``METHODS``; what several of them need is computed once.

    Args:
        capture: with lights (UPS-FCN does not see them, but albedo and confidence need them).
        network: what "psfcn" and "auto" use; "auto" without one is "robust".
        lights_found: whether they come from :func:`find_lights`. Their errors mislead the robust method more than the
            network, so that "auto" is the network alone then, as in the paper's chain.
        precision: of the network, see :func:`psfcn.prediction.predict_normals`.
        device: where the network computes.
        progress: called with how many of the network's tiles are done, and of how many.

    Raises:
        UserError: lights are missing.
    """

    def __init__(
        self,
        capture: Capture,
        network: PSFCN | None = None,
        *,
        lights_found: bool = False,
        precision: Precision = "auto",
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if capture.lights is None:
            raise UserError("the lights are not known: give their file, or let them be found by --uncalibrated")
        self.capture, self.network, self.lights_found = capture, network, lights_found
        self.precision, self.device, self.progress = precision, device, progress
        self._solved: dict[str, np.ndarray] = {}

    def estimate(self, method: str = "auto") -> Estimate:
        """Normals by one of ``METHODS``.

        Raises:
            UserError: there is no such method, or the network is missing.
        """
        if method not in METHODS:
            raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if method == "auto" and self.network is None:
            method = "robust"
        if method == "psfcn" or (method == "auto" and self.lights_found):
            return _described(self.capture, self.learnt, 1.0)
        if method != "auto":
            return _described(self.capture, self.solved(ROBUST if method == "robust" else method), 0.0)
        mask, learnt, found = self.capture.mask, self.learnt, self.solved(ROBUST)
        weight = _weight(self.capture, learnt, found)
        both = weight * learnt + (1 - weight) * found
        length = np.linalg.norm(both, axis=-1, keepdims=True)
        both = np.where(length > 0, both / np.where(length > 0, length, 1), found)  # opposite normals leave no mean
        inside = weight[mask] if mask.any() else np.zeros(1)
        return _described(self.capture, both, float(inside.mean()), float((inside < 0.5).mean()))

    @cached_property
    def learnt(self) -> np.ndarray:
        """The network's normals ``[H, W, 3]``."""
        if self.network is None:
            raise UserError("method psfcn needs a network's weights; give a file by --weights")
        capture = self.capture
        return predict_normals(
            self.network,
            capture.images,
            capture.lights if self.network.in_channels == 6 else None,
            capture.mask,
            precision=self.precision,
            device=self.device,
            progress=self.progress,
        )

    def solved(self, method: str) -> np.ndarray:
        """Normals ``[H, W, 3]`` by one of the classical methods."""
        if method not in self._solved:
            capture = self.capture
            self._solved[method] = classical.solve(capture.images, capture.lights, capture.mask, method).normals
        return self._solved[method]


def find_lights(capture: Capture, network: LCNet) -> tuple[Capture, np.ndarray]:
    """A capture with the lights that LCNet sees in it, its images divided by their intensities ``[Q]``."""
    pixels = torch.from_numpy(capture.images).permute(0, 3, 1, 2)
    images, mask = lcnet.inputs(pixels, torch.from_numpy(capture.mask))
    with torch.inference_mode():
        directions, strengths = lcnet.decode(network(images[None], mask[None]))
    lights, intensities = directions[0].double().numpy(), strengths[0].numpy()
    images = capture.images / intensities[:, None, None, None]
    return Capture(images, capture.mask, capture.names, lights, capture.normals, capture.notes), intensities


def _weight(capture: Capture, learnt: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How much the network's normals count beside the classical ones, by what either leaves unexplained: ``[H, W, 1]``.

    What is left of the photographs is averaged over a window; how many pixels of it are the object's cancels out.
    """
    ours, theirs = (
        ndimage.uniform_filter(classical.residual(capture.images, normals, capture.lights, capture.mask), WINDOW)
        for normals in (learnt, found)
    )
    ours, theirs = ours.astype(np.float64) ** STEEP, (EVEN * theirs.astype(np.float64)) ** STEEP
    total = ours + theirs
    return np.where(total > 0, theirs / np.where(total > 0, total, 1), 0.5)[..., None]


def _described(capture: Capture, normals: np.ndarray, learnt: float, worse: float | None = None) -> Estimate:
    mask = capture.mask
    values = torch.from_numpy(capture.images[:, mask]).double()
    albedo, misfit = classical.explain(
        values, torch.from_numpy(normals[mask]).double(), torch.from_numpy(capture.lights)
    )
    colours, confidence = np.zeros(normals.shape, np.float32), np.zeros(mask.shape, np.float32)
    colours[mask] = albedo.numpy()
    confidence[mask] = (0.5 ** (misfit / HALF)).numpy()
    return Estimate(normals.astype(np.float32), colours, confidence, learnt, worse)
