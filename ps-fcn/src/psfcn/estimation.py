"""From a capture to normals, albedo and a confidence, by the network, by a classical method, or by the better of both.

Not in the paper: the gate of ``auto``. The network and sparse Bayesian least squares each explain a pixel's photographs
so well; where the network explains them worse (:func:`psfcn.classical.residual`, averaged over a small window), the
classical normal stands.
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
HALF = 0.07  # of a pixel's brightness: the residual at which the confidence is one half


@dataclass(frozen=True)
class Estimate:
    """Maps of ``[H, W]``, zero outside the mask.

    Attributes:
        normals: ``[H, W, 3]`` float32, unit.
        albedo: ``[H, W, 3]`` float32, linear RGB.
        confidence: ``[H, W]`` float32 in [0, 1]: 1 where a matt surface with these normals explains the photographs
            wholly, 0.5 where half of them are off by 7 % of the pixel's brightness or more.
        learnt: share of the object's pixels whose normal is the network's.
        worse: share of the pixels that the network explained worse than the classical method, None if not asked.
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
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Normals of a capture.

    Args:
        capture: with lights, unless ``network`` is UPS-FCN.
        method: one of ``METHODS``.
        network: what "psfcn" and "auto" use; "auto" without one is "robust".
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
    better = _explains_better(capture, learnt, found)
    share = float(better[mask].mean()) if mask.any() else 0.0
    return _described(capture, np.where(better[..., None], learnt, found), share, 1 - share)


def find_lights(capture: Capture, network: LCNet) -> tuple[Capture, np.ndarray]:
    """A capture with the lights that LCNet sees in it, its images divided by their intensities ``[Q]``."""
    pixels = torch.from_numpy(capture.images).permute(0, 3, 1, 2)
    images, mask = lcnet.inputs(pixels, torch.from_numpy(capture.mask))
    with torch.inference_mode():
        directions, strengths = lcnet.decode(network(images[None], mask[None]))
    lights, intensities = directions[0].double().numpy(), strengths[0].numpy()
    images = capture.images / intensities[:, None, None, None]
    return Capture(images, capture.mask, capture.names, lights, capture.normals, capture.notes), intensities


def _explains_better(capture: Capture, learnt: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where the network's normals leave less unexplained than the classical ones: ``[H, W]`` bool."""
    seen = ndimage.uniform_filter(capture.mask.astype(np.float32), WINDOW)
    residuals = (
        ndimage.uniform_filter(classical.residual(capture.images, normals, capture.lights, capture.mask), WINDOW)
        / np.where(seen > 0, seen, 1)
        for normals in (learnt, found)
    )
    return (next(residuals) < next(residuals)) & capture.mask


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
