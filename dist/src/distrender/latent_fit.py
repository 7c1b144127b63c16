"""The code whose shape passes through points, as DeepSDF completes shapes: by the field's values, without rendering.

DeepSDF, section 6.3 and eq. (10). A point on the surface gives three samples: itself, with distance 0, and one a small
``eta`` before and behind it, with distances eta and -eta, along the normal or, where there is none, along the ray that
saw it. Their L1 loss, both sides clamped at ``clamp``, joins that of free space: points on the ray between camera and
surface must not be inside. Several starts go together, as one batch, each on its own.

It is what points without a camera are completed by, where :mod:`distrender.completion` begins, and what that is
compared with (``bench/completion.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from papershelf.errors import UserError
from torch import Tensor

from distrender.decoder import DeepSDFDecoder
from distrender.observations import Observation
from distrender.tracing import ball_interval


@dataclass(frozen=True)
class LatentFitOptions:
    """Of :func:`fit_latent`. The defaults are those of DeepSDF's text and released code.

    Attributes:
        iterations: of Adam (reconstruct.py: 800).
        rate: of Adam, a tenth of it in the second half (reconstruct.py: 5e-3).
        prior: weight of the mean square of the code (reconstruct.py: 1e-4).
        clamp: of both distances in the loss (reconstruct.py: 0.1).
        eta: how far before and behind a point its two samples lie, scene units. (Section 6.3 leaves its size open.)
        free: points of free space on each ray. (Section 6.3 leaves their number open.)
    """

    iterations: int = 800
    rate: float = 5e-3
    prior: float = 1e-4
    clamp: float = 0.1
    eta: float = 0.01
    free: int = 8

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.free < 0 or min(self.rate, self.clamp, self.eta) <= 0 or self.prior < 0:
            raise UserError(
                "a latent fit needs iterations, free and prior from 0 on and rate, clamp and eta above 0, got "
                f"{self.iterations}, {self.free}, {self.prior}, {self.rate}, {self.clamp} and {self.eta}"
            )


@dataclass(frozen=True)
class ValueSamples:
    """Points with the distances that the field should have there: ``on`` equals, ``free`` at least zero."""

    on: Tensor  # [P, 3]
    targets: Tensor  # [P]
    free: Tensor  # [F, 3]

    @classmethod
    def of(cls, observation: Observation, eta: float, free: int, *, oblique: bool = True) -> ValueSamples:
        """What an observation says about the field's values; see the module.

        Args:
            observation: the points.
            eta: how far before and behind a point its two samples lie.
            free: samples of free space on each ray.
            oblique: take those two along the ray where there is no normal. On a surface seen at an angle they are
                nearer to it than ``eta``, which biases a fit by some thousandths.
        """
        points, normals = observation.points, observation.normals
        outwards, known = normals, normals.square().sum(-1) > 0
        between = points[:0]
        if observation.origins is not None:
            origins, directions, depth = observation.rays
            if oblique:
                outwards = torch.where(known[:, None], normals, -directions)
                known = torch.ones_like(known)
            near = ball_interval(origins, directions, 1.0)[0]
            share = (torch.arange(free, device=points.device, dtype=points.dtype) + 0.5) / max(free, 1)
            last = depth - eta
            at = near[:, None] + share * (last - near)[:, None]  # [N, free]
            between = (origins[:, None] + at[..., None] * directions[:, None])[near < last].reshape(-1, 3)
        step = eta * outwards[known]
        on = torch.cat([points, points[known] + step, points[known] - step])
        targets = torch.cat([points.new_zeros(len(points)), *(points.new_full((len(step),), s * eta) for s in (1, -1))])
        return cls(on, targets, between)

    def loss(self, decoder: DeepSDFDecoder, codes: Tensor, clamp: float) -> Tensor:
        """Eq. (4)'s clamped L1 and the penalty of free space for codes ``[S, L]``: ``[S]``."""
        codes = codes[:, None]
        values = decoder(codes, self.on.expand(len(codes), -1, -1))
        targets = self.targets.clamp(-clamp, clamp)
        loss = (values.clamp(-clamp, clamp) - targets).abs().mean(-1)
        if len(self.free):
            inside = (-decoder(codes, self.free.expand(len(codes), -1, -1))).clamp(min=0)
            loss = loss + inside.mean(-1)
        return loss


def fit_latent(
    decoder: DeepSDFDecoder,
    starts: Tensor,
    observation: Observation,
    options: LatentFitOptions = LatentFitOptions(),
    *,
    after: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. (10): Adam on codes by the field's values at the points.

    Args:
        decoder: whose parameters stay as they are.
        starts: ``[S, L]``, where to begin.
        observation: the points.
        options: how long, how fast.
        after: told of each iteration and the codes ``[S, L]`` after it.

    Returns:
        Codes ``[S, L]``, and the loss ``[S]`` of each, prior included.
    """
    samples = ValueSamples.of(observation, options.eta, options.free)
    codes = starts.detach().clone().requires_grad_()
    adam = torch.optim.Adam([codes], options.rate)

    def losses() -> Tensor:
        return samples.loss(decoder, codes, options.clamp) + options.prior * codes.square().mean(-1)

    for iteration in range(options.iterations):
        if 2 * iteration >= options.iterations:
            adam.param_groups[0]["lr"] = options.rate / 10
        codes.grad = torch.autograd.grad(losses().sum(), codes)[0]  # each code's own: Adam works number by number
        adam.step()
        if after:
            after(iteration + 1, codes.detach())
    with torch.no_grad():
        return codes.detach(), losses()
