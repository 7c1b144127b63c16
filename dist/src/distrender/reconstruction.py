"""How well a decoder has learnt its training shapes: in figures, and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender.cameras import Camera
from distrender.chamfer import chamfer, surface_samples
from distrender.decoder import DeepSDFDecoder
from distrender.meshing import mesh
from distrender.pyramid import trace_image
from distrender.rendering import NETWORK_STEPS, bytes_of
from distrender.sampling import surface_points
from distrender.shading import picture
from distrender.tracing import MarchOptions
from distrender.training_data import TrainingSet

NEAR = 0.02  # distance within which samples are near the surface
AT_MOST = 64  # shapes that the figures of a training run are taken from


def near_surface(decoder: DeepSDFDecoder, codes: Tensor, data: TrainingSet) -> dict[str, float]:
    """Errors at the training samples within 0.02 of a surface, over at most 64 shapes.

    Args:
        decoder: on the CPU.
        codes: ``[S, latent]``.
        data: of the same shapes.

    Returns:
        ``surface_error`` (mean absolute error of the distance) and ``gradient`` (median of its gradient's norm; 1 in
        a true distance function).
    """
    errors, norms = [], []
    for number in some(len(codes), AT_MOST):
        samples = data.of_shape(number)
        samples = samples[samples[:, 3].abs() < NEAR]
        error, norm = against(decoder, codes[number], samples)
        errors.append(error)
        norms.append(norm)
    return {"surface_error": float(torch.cat(errors).mean()), "gradient": float(torch.cat(norms).median())}


def against(decoder: DeepSDFDecoder, code: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute errors ``[M]`` and norms of the gradient ``[M]`` at samples ``[M, 4]`` of one shape."""
    points = samples[:, :3].clone().requires_grad_()
    values = decoder(code.detach(), points)
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return (values.detach() - samples[:, 3]).abs(), gradient.norm(dim=-1)


def compare(
    sdf: Callable[[Tensor], Tensor], truth: Callable[[Tensor], Tensor], resolution: int = 128, seed: int = 0
) -> dict[str, float | None]:
    """One shape against what it should be.

    Args:
        sdf: of the reconstruction.
        truth: the shape's signed distance function, within the unit ball.
        resolution: of the grid on which the reconstruction's mesh is found.
        seed: of points.

    Returns:
        ``chamfer`` (DeepSDF's, times 1000, of 30,000 points; None where the reconstruction has no surface),
        ``chamfer_floor`` (the same between two draws of points on the true surface: no reconstruction comes below),
        ``surface_error`` (mean distance that the reconstruction gives on the true surface) and ``gradient`` (median
        norm there).
    """
    points = torch.from_numpy(surface_points(truth, 4096, np.random.default_rng(seed))).requires_grad_()
    values = sdf(points)
    (gradient,) = torch.autograd.grad(values.sum(), points)
    true_points = surface_samples(truth, seed=seed)
    figures: dict[str, float | None] = {
        "chamfer": None,
        "chamfer_floor": 1000 * chamfer(surface_samples(truth, seed=seed + 1), true_points),
        "surface_error": float(values.detach().abs().mean()),
        "gradient": float(gradient.norm(dim=-1).median()),
    }
    try:
        made = surface_samples(mesh(sdf, resolution), seed=seed + 1)
    except UserError:  # there is no surface
        return figures
    return figures | {"chamfer": 1000 * chamfer(made, true_points)}


def some(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, in order, drawn by chance but always the same."""
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].tolist())


@torch.no_grad()
def sheet(decoder: DeepSDFDecoder, codes: Tensor | Sequence[Tensor], size: int = 128) -> np.ndarray:
    """Pictures of the shapes of codes beside each other, ``[size, shapes * size, 3]`` uint8.

    Args:
        decoder: on the CPU.
        codes: ``[S, latent]``.
        size: of each, pixels.
    """
    camera = Camera.orbit(1, size=(size, size))
    march = MarchOptions(ratio=1.0, finish="secant")
    pictures = []
    for code in codes:
        hit = trace_image(decoder.with_code(code), camera, march, steps=(3, 3, NETWORK_STEPS), gradient="none")
        pictures.append(bytes_of(picture(hit, camera.rotation[0])[0]))
    return np.concatenate(pictures, 1)
