r"""The training loss (RIFE, section 3.4).

.. math::
    L = L_{rec} + L_{rec}^{Tea} + \lambda_d L_{dis}, \qquad
    L_{rec} = d(\hat I_t, I^{GT}_t), \quad L_{rec}^{Tea} = d(\hat I_t^{Tea}, I^{GT}_t)

``d`` is the L1 distance of Laplacian pyramids: the pyramid takes out of a picture, level by level, what a
picture of half the size cannot show, so that coarse structure weighs as much as fine detail.
:math:`L_{dis}` is :func:`rife.model.leakage_distillation`, which ``forward_train`` has computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

from rife.model import TrainingOutput

LEVELS = 5  # section 3.4
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # Burt and Adelson 1983, with a = 3/8
SMALLEST = 64  # pixels; the fifth level's low-pass is then 2, the least that can be blurred at twice its size


class Losses(NamedTuple):
    """The terms of the loss, each a scalar; ``distill`` is not weighted yet."""

    total: Tensor
    student: Tensor
    teacher: Tensor
    distill: Tensor


def rife_loss(output: TrainingOutput, gt: Tensor, distill_weight: float) -> Losses:
    """L = Lap(student, gt) + Lap(teacher, gt) + lambda_d L_dis.

    Args:
        output: of :meth:`rife.model.Rife.forward_train`.
        gt: the true frame ``[N, 3, H, W]`` in [0, 1].
        distill_weight: lambda_d; 0.01 in the paper.
    """
    student = laplacian_loss(output.frame, gt)
    teacher = laplacian_loss(output.merged_teacher, gt)
    total = student + teacher + distill_weight * output.loss_distill
    return Losses(total, student, teacher, output.loss_distill)


def laplacian_loss(a: Tensor, b: Tensor) -> Tensor:
    """Sum over five levels of mean |Lap(a) - Lap(b)|; the low-pass that remains is not compared.

    Args:
        a: ``[N, C, H, W]``; H and W multiples of 32, at least 64.
        b: likewise.

    Returns:
        Scalar, in at least float32 whatever autocast says: the differences are small.

    Raises:
        UserError: the shapes differ or have no five levels.
    """
    h, w = a.shape[-2:]
    if a.shape != b.shape or h % 2**LEVELS or w % 2**LEVELS or min(h, w) < SMALLEST:
        raise UserError(
            f"the Laplacian loss compares frames of one size, sides multiples of {2**LEVELS} and at least "
            f"{SMALLEST}; got {list(a.shape)} and {list(b.shape)}"
        )
    with torch.autocast(a.device.type, enabled=False):
        # The pyramid is linear: that of the difference is the difference of both, for half the work.
        bands = laplacian_pyramid(a.to(torch.promote_types(a.dtype, torch.float32)) - b)
        return torch.stack([band.abs().mean() for band in bands]).sum()


def laplacian_pyramid(image: Tensor) -> list[Tensor]:
    """What each of five halvings takes away: ``[N, C, H, W]``, ``[N, C, H/2, W/2]``, ... ``[N, C, H/16, W/16]``."""
    bands = []
    for _ in range(LEVELS):
        small = _blur(image)[..., ::2, ::2]
        bands.append(image - _double(small))
        image = small
    return bands


def _double(image: Tensor) -> Tensor:
    """Twice the size: zeros in between, then the blur, times 4 since only one pixel in four has a value."""
    n, c, h, w = image.shape
    spread = image.new_zeros(n, c, 2 * h, 2 * w)
    spread[..., ::2, ::2] = image
    return 4 * _blur(spread)


def _blur(image: Tensor) -> Tensor:
    """The binomial 5x5 filter, edges mirrored without repeating them."""
    n, c, h, w = image.shape
    kernel = image.new_tensor(BINOMIAL)
    planes = F.pad(image.reshape(n * c, 1, h, w), (2, 2, 2, 2), mode="reflect")
    return F.conv2d(planes, torch.outer(kernel, kernel)[None, None]).view(n, c, h, w)
