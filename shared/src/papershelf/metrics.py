"""PSNR and SSIM of images, computed per image and then averaged.

Both take ``[..., C, H, W]``: each ``[C, H, W]`` is one image, whose figure is computed over all its
channels and pixels, and the figures of all images are averaged (so PSNR is a mean of decibels, as
papers report it, not the decibels of a mean). The arithmetic is float64 whatever comes in. Nothing
is rounded or clamped here: a convention that rounds to 8 bits first does so before it calls.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from papershelf.errors import UserError

WINDOW, SIGMA = 11, 1.5  # Wang et al., section III-C
K1, K2 = 0.01, 0.03  # ibid.


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(peak² / MSE)``, infinite for equal images.

    Args:
        a: ``[..., C, H, W]``, any real dtype.
        b: same shape; the two may be swapped.
        peak: the value of white: 1 for frames in [0, 1], 255 for 8-bit code values.

    Raises:
        UserError: the shapes differ or are no images.
    """
    a, b = _images(a, b)
    mse = (a - b).square().mean((1, 2, 3))
    return (10 * torch.log10(peak**2 / mse)).mean().item()


def ssim(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13), 1 for equal images.

    As in the authors' code: an 11x11 Gaussian window of sigma 1.5, only where it lies wholly inside
    the picture, variances divided by N. Not in the paper: colour; here each channel has its own map
    and the mean is over all of them.

    Args:
        a: ``[..., C, H, W]``, any real dtype, H and W at least 11.
        b: same shape; the two may be swapped.
        peak: the value of white, L in the paper: 1 for frames in [0, 1], 255 for 8-bit code values.

    Raises:
        UserError: the shapes differ, are no images, or are smaller than the window.
    """
    a, b = _images(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM looks through windows of {WINDOW}x{WINDOW} pixels, got images of {list(a.shape[-2:])}")
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mu_a, mu_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mu_a * mu_a, _blur(b * b) - mu_b * mu_b
    covariance = _blur(a * b) - mu_a * mu_b
    similarity = (2 * mu_a * mu_b + c1) * (2 * covariance + c2)
    similarity /= (mu_a * mu_a + mu_b * mu_b + c1) * (var_a + var_b + c2)
    return similarity.mean((1, 2, 3)).mean().item()


def _images(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``[N, C, H, W]`` float64."""
    if a.shape != b.shape or a.ndim < 3 or a.numel() == 0:
        raise UserError(f"expected two images [..., C, H, W] of one shape, got {list(a.shape)} and {list(b.shape)}")
    return a.double().reshape(-1, *a.shape[-3:]), b.double().reshape(-1, *b.shape[-3:])


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window's weighted mean: ``[N, C, H, W]`` -> ``[N, C, H - 10, W - 10]``."""
    weights = [math.exp(-((k - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for k in range(WINDOW)]
    for dim in (2, 3):
        # By slices: conv2d takes six times as long in float64.
        length, total = x.shape[dim] - WINDOW + 1, sum(weights)
        blurred = x.narrow(dim, 0, length) * (weights[0] / total)
        for k in range(1, WINDOW):
            blurred.add_(x.narrow(dim, k, length), alpha=weights[k] / total)
        x = blurred
    return x
