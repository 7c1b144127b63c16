"""Photometric stereo without learning: what every network is measured against, and what it falls back to.

A Lambertian surface under a distant light ``l`` shows ``I = albedo * max(n . l, 0)``. Each method below finds, for
every pixel on its own, ``g = albedo * n`` from ``Q`` such equations, and differs in which it believes:

========== ======================================================================================================
ls         all of them (Woodham, "Photometric method for determining surface orientation from multiple images", 1980)
trimmed    all but the darkest fifth (shadows) and the brightest tenth (highlights)
l1         sum of absolute residuals, by reweighted least squares
sbl        residuals sparse, each with a variance of its own that the data finds: sparse Bayesian learning (Ikehata et
           al., "Robust photometric stereo using sparse regression", CVPR 2012, section 3.2)
========== ======================================================================================================

Axes: x right, y up, z to the viewer, for normals and for directions to the lights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from papershelf.errors import UserError
from torch import Tensor

DARKEST, BRIGHTEST = 0.2, 0.1  # shares that `trimmed` leaves out
L1_ROUNDS, SBL_ROUNDS = 30, 60
FLOOR = 1e-3  # of a pixel's brightness: residuals below it count as noise
PIXELS_AT_ONCE = 16384  # 96 images: 12 MB a matrix in float64


@dataclass(frozen=True)
class Surface:
    """What was found at each pixel of ``[H, W]``; zero outside the mask.

    Attributes:
        normals: ``[H, W, 3]`` float32, unit length.
        albedo: ``[H, W, 3]`` float32, linear RGB, 1 is a surface that shows the light's own intensity when it faces it.
        residual: ``[H, W]`` float32, see :func:`residual`.
    """

    normals: np.ndarray
    albedo: np.ndarray
    residual: np.ndarray


def solve(images: np.ndarray, lights: np.ndarray, mask: np.ndarray, method: str = "trimmed") -> Surface:
    """Normals and albedo of a Lambertian surface.

    Args:
        images: ``[Q, H, W, 3]``, linear RGB, divided by the lights' intensities.
        lights: ``[Q, 3]``, unit directions to the lights.
        mask: ``[H, W]`` bool, the object.
        method: a key of ``METHODS``.

    Raises:
        UserError: there is no such method, fewer than three lights, or they lie in one plane.
    """
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_lights(lights, len(images))
    values = torch.from_numpy(images[:, mask]).double()  # [Q, P, 3]
    directions = torch.from_numpy(np.asarray(lights)).double()
    gray = values.mean(-1).mT  # [P, Q]
    found = [METHODS[method](some, directions) for some in gray.split(PIXELS_AT_ONCE)]
    normals = _facing(torch.cat(found) if found else gray.new_zeros(0, 3))
    shape = mask.shape
    albedo, misfit = explain(values, normals, directions)
    return Surface(
        _spread(normals, mask, (*shape, 3)), _spread(albedo, mask, (*shape, 3)), _spread(misfit, mask, shape)
    )


def residual(images: np.ndarray, normals: np.ndarray, lights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How badly normals explain the images: ``[H, W]`` float32, zero outside the mask.

    At each pixel the median over the images of ``|I - albedo * max(n . l, 0)|`` over the mean of ``I``: 0 is a perfect
    Lambertian explanation, and up to half of the images may hold shadows or highlights without raising it much.

    Args:
        images: ``[Q, H, W, 3]``, linear RGB, divided by the lights' intensities.
        normals: ``[H, W, 3]``.
        lights: ``[Q, 3]``.
        mask: ``[H, W]`` bool.
    """
    values, directions = torch.from_numpy(images[:, mask]).double(), torch.from_numpy(np.asarray(lights)).double()
    _, misfit = explain(values, torch.from_numpy(normals[mask]).double(), directions)
    return _spread(misfit, mask, mask.shape)


def explain(values: Tensor, normals: Tensor, lights: Tensor) -> tuple[Tensor, Tensor]:
    """The albedo ``[P, 3]`` with which normals ``[P, 3]`` explain ``values`` ``[Q, P, 3]`` best, and their residual.

    Best is the sum of absolute differences over the lit images, which shadows and highlights hardly move.
    """
    shading = (lights @ normals.mT).clamp(min=0)  # [Q, P]
    # |I - a s| summed is least at the median of I / s weighted by s.
    ratio = values / shading.clamp(min=1e-6)[..., None]
    order = ratio.argsort(0)
    weight = shading[..., None].expand_as(ratio).gather(0, order).cumsum(0)
    middle = (weight < weight[-1:] / 2).sum(0, keepdim=True).clamp(max=len(ratio) - 1)
    albedo = ratio.gather(0, order).gather(0, middle)[0]
    albedo = torch.where(shading.sum(0)[:, None] > 0, albedo, 0)
    difference = (values - albedo * shading[..., None]).abs().mean(-1)  # [Q, P]
    misfit = difference.median(0).values if len(difference) else difference.sum(0)
    return albedo, misfit / values.mean((0, 2)).clamp(min=1e-12)


def least_squares(values: Tensor, lights: Tensor, weights: Tensor | None = None) -> Tensor:
    """``g`` ``[P, 3]`` with the smallest ``sum_q w_q (I_q - g . l_q)^2`` from ``values`` ``[P, Q]``.

    Args:
        values: ``[P, Q]``.
        lights: ``[Q, 3]``.
        weights: ``[P, Q]``, not negative; None for all alike.
    """
    if weights is None:
        return values @ torch.linalg.pinv(lights).mT
    return _posterior(values, lights, weights)[0]


def trimmed(values: Tensor, lights: Tensor) -> Tensor:
    """Least squares without each pixel's darkest fifth and brightest tenth of ``values`` ``[P, Q]``: ``[P, 3]``."""
    count = values.shape[1]
    dark, bright = int(DARKEST * count), int(BRIGHTEST * count)
    rank = values.argsort(1).argsort(1)
    kept = (rank >= dark) & (rank < count - bright)
    return least_squares(values, lights, kept.to(values.dtype))


def l1(values: Tensor, lights: Tensor) -> Tensor:
    """``g`` ``[P, 3]`` with the smallest sum of absolute residuals of ``values`` ``[P, Q]``."""
    smallest = FLOOR * values.mean(1, keepdim=True).clamp(min=1e-12)
    g = least_squares(values, lights)
    for _ in range(L1_ROUNDS):
        g = least_squares(values, lights, 1 / (values - g @ lights.mT).abs().clamp(min=smallest))
    return g


def sparse_bayesian(values: Tensor, lights: Tensor) -> Tensor:
    """``g`` ``[P, 3]`` for ``I = L g + e`` with sparse ``e``: each e_q is normal with a variance found from the data.

    Expectation maximisation. With ``d = gamma + noise`` the posterior of ``g`` is weighted least squares with weights
    ``1 / d``, so that no matrix larger than 3 x 3 is ever inverted (the paper inverts one of Q x Q).
    """
    scale = values.mean(1, keepdim=True).clamp(min=1e-12)
    y = values / scale
    noise = FLOOR**2
    gamma = torch.full_like(y, 1.0)
    g = torch.zeros_like(y[:, :3])
    for _ in range(SBL_ROUNDS):
        g, covariance = _posterior(y, lights, 1 / (gamma + noise))
        spread = covariance.flatten(1) @ _squares(lights).mT  # of l . g: l' covariance l
        share = gamma / (gamma + noise)
        gamma = share.square() * ((y - g @ lights.mT).square() + spread) + share * noise
    return g * scale


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ls": least_squares,
    "trimmed": trimmed,
    "l1": l1,
    "sbl": sparse_bayesian,
}


def check_lights(lights: np.ndarray, images: int) -> None:
    """Refuse lights from which no normal can be found.

    Raises:
        UserError: not ``[images, 3]``, fewer than three, or all in one plane.
    """
    if np.shape(lights) != (images, 3):
        raise UserError(f"{images} images need lights [{images}, 3], got {list(np.shape(lights))}; give one for each")
    if images < 3:
        raise UserError(f"photometric stereo needs at least 3 images under different lights, got {images}")
    if np.linalg.svd(np.asarray(lights, np.float64), compute_uv=False)[-1] < 1e-3:
        raise UserError("the lights lie in one plane, which leaves the normals open; add an image lit from elsewhere")


def _posterior(values: Tensor, lights: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares ``[P, 3]`` and the inverse of its matrix ``[P, 3, 3]``."""
    matrix = (weights @ _squares(lights)).unflatten(1, (3, 3))
    # A hair of ridge: what is kept of few lights may lie in one plane.
    size = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    inverse = torch.linalg.inv(matrix + (1e-9 * size + 1e-30) * torch.eye(3, dtype=matrix.dtype))
    return (inverse @ ((weights * values) @ lights)[..., None])[..., 0], inverse


def _squares(lights: Tensor) -> Tensor:
    """The matrices l l' of ``lights`` ``[Q, 3]``, as rows ``[Q, 9]``."""
    return (lights[:, :, None] * lights[:, None]).flatten(1)


def _facing(g: Tensor) -> Tensor:
    """Unit vectors ``[P, 3]``; a pixel that is black in every image faces the viewer."""
    size = g.norm(dim=1, keepdim=True)
    return torch.where(size > 0, g / size.clamp(min=1e-300), g.new_tensor([0.0, 0.0, 1.0]))


def _spread(values: Tensor, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result = np.zeros(shape, np.float32)
    result[mask] = values.numpy()
    return result
