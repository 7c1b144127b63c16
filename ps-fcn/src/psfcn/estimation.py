"""From a capture to normals, albedo and a confidence, by the network, by a classical method, or by both.

Not in the paper: the gate of ``auto``. The network and sparse Bayesian least squares each leave some of a pixel's
photographs unexplained (:func:`psfcn.classical.residual`, averaged over a small window): r_n and r_c. Their normals are
averaged with the weight ``1 / (1 + (r_n / (1.4 r_c))^3)`` for the network's: where it explains much less, the classical
normal stands. The factor 1.4 is there because the classical normal is the one that was fitted to these residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
EVEN, STEEP = 1.4, 3  # the ratio of residuals at which both count alike; how fast that changes
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
    """Normals of a capture.

    Args:
        capture: with lights, unless ``network`` is UPS-FCN.
        method: one of ``METHODS``.
        network: what "psfcn" and "auto" use; "auto" without one is "robust".
        lights_found: whether they come from :func:`find_lights`. Their errors mislead the robust method more than the
            network, so that "auto" is the network alone then, as in the paper's chain.
        precision: of the network, see :func:`psfcn.prediction.predict_normals`.
        device: where the network computes.
        progress: called with how many of the network's tiles are done, and of how many.

    Raises:
        UserError: there is no such method, or lights or network are missing.
    """
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if capture.lights is None:
        raise UserError("the lights are not known: give their file, or let them be found by --uncalibrated")
    if lights_found and method == "auto" and network:
        method = "psfcn"
    images, lights, mask = capture.images, capture.lights, capture.mask
    learnt, found = None, None
    if method == "psfcn" or (method == "auto" and network):
        if network is None:
            raise UserError("method psfcn needs a network's weights; give a file by --weights")
        known = lights if network.in_channels == 6 else None
        learnt = predict_normals(network, images, known, mask, precision=precision, device=device, progress=progress)
    if method != "psfcn":
        found = classical.solve(images, lights, mask, ROBUST if method in ("auto", "robust") else method).normals
    if learnt is None:
        return _described(capture, found, 0.0)
    if found is None:
        return _described(capture, learnt, 1.0)
    weight = _weight(capture, learnt, found)
    both = weight * learnt + (1 - weight) * found
    length = np.linalg.norm(both, axis=-1, keepdims=True)
    both = np.where(length > 0, both / np.where(length > 0, length, 1), found)  # opposite normals leave no mean
    inside = weight[mask] if mask.any() else np.zeros(1)
    return _described(capture, both, float(inside.mean()), float((inside < 0.5).mean()))


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
