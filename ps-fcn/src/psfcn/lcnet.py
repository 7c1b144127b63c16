"""LCNet: the lights' directions and intensities from the photographs alone (section 4).

Every photograph, beside the mask, gives local features; their maximum over the photographs is the object's, and both
together say in which of 36 bins a light's azimuth and elevation lie, and in which of 20 its intensity.

============  ===================================  ===================
what          of a light (x, y, z)                 bins
============  ===================================  ===================
azimuth       atan(x / z), degrees in [-90, 90]    36 of 5 degrees
elevation     atan(y / sqrt(x^2 + z^2)), likewise  36 of 5 degrees
intensity     [0.2, 2.0]                           20 of 0.09
============  ===================================  ===================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 128  # pixels along each side of what it sees
ANGLES, INTENSITIES = 36, 20  # bins
WEAKEST, STRONGEST = 0.2, 2.0
DECODINGS = ("soft", "centre")
MARGIN = 0.05  # of the object's side, around it
LEVEL = 0.25  # not in the paper: what the mean of the photographs over the mask is brought to


class Logits(NamedTuple):
    """Scores of bins, each ``[N, Q, bins]``."""

    azimuth: Tensor
    elevation: Tensor
    intensity: Tensor


class LCNet(nn.Module):
    """LCNet (figure 5), with the names of the released checkpoint; 4,409,692 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.featExtractor = nn.Sequential()
        for number, (inputs, outputs, stride) in enumerate(
            [(4, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)], 1
        ):
            self.featExtractor.add_module(f"conv{number}", _conv(inputs, outputs, stride))
        self.classifier = nn.ModuleDict(
            {
                "conv1": _conv(512, 256, 1),
                "conv2": _conv(256, 256, 2),
                "conv3": _conv(256, 256, 2),
                "conv4": _conv(256, 256, 2),
                "dir_x_est": _head(ANGLES),
                "dir_y_est": _head(ANGLES),
                "int_est": _head(INTENSITIES),
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, mask: Tensor) -> Logits:
        """Scores of the bins of every photograph's light.

        Args:
            images: ``[N, Q, 3, 128, 128]`` linear RGB, from :func:`inputs`.
            mask: ``[N, 1, 128, 128]``, 0 or 1.

        Raises:
            ValueError: shapes do not fit.
        """
        if images.ndim != 5 or images.shape[2:] != (3, SIZE, SIZE) or not images.shape[1]:
            raise ValueError(f"images must be [N, Q, 3, {SIZE}, {SIZE}] with Q of 1 or more, got {list(images.shape)}")
        count, quantity = images.shape[:2]
        if mask.shape != (count, 1, SIZE, SIZE):
            raise ValueError(f"mask must be {[count, 1, SIZE, SIZE]}, got {list(mask.shape)}")
        x = torch.cat([images, mask[:, None].to(images.dtype).expand(-1, quantity, -1, -1, -1)], 2)
        local = self.featExtractor(x.flatten(0, 1)).unflatten(0, (count, quantity))  # [N, Q, 256, 8, 8]
        joint = local.amax(1, keepdim=True).expand_as(local)
        x = torch.cat([local, joint], 2).flatten(0, 1)
        for name in ("conv1", "conv2", "conv3", "conv4"):
            x = self.classifier[name](x)
        heads = (self.classifier[name](x) for name in ("dir_x_est", "dir_y_est", "int_est"))
        return Logits(*(head.flatten(1).unflatten(0, (count, quantity)).float() for head in heads))


def inputs(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What LCNet sees of photographs: the object in a square of 128 pixels, at one exposure.

    Args:
        images: ``[Q, 3, H, W]`` linear RGB of any exposure.
        mask: ``[H, W]`` bool.

    Returns:
        ``[Q, 3, 128, 128]`` and ``[1, 128, 128]``: cut to the mask's box and a margin, made square by zeros, resized
        (low-passed), zero outside the mask, and divided so that the mean over the mask is 0.25.
        # Not in the paper: its renderings have one exposure, photographs any.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = (torch.nonzero(mask.any(dim)).flatten() for dim in (1, 0))
    if not len(rows):
        raise ValueError("the mask must not be empty")
    top, bottom, left, right = (int(x) for x in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    side = max(bottom - top, right - left)
    side += 2 * max(1, round(MARGIN * side))
    # F.pad with negative sizes cuts.
    above, before = (side - (bottom - top)) // 2 - top, (side - (right - left)) // 2 - left
    padding = (before, side - before - mask.shape[1], above, side - above - mask.shape[0])
    plane = mask.to(images).expand(len(images), 1, -1, -1)
    cut = F.pad(torch.cat([images * mask, plane], 1), padding)
    if side != SIZE:
        cut = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    inside = (cut[:1, 3] > 0.5).to(images.dtype)
    seen = cut[:, :3] * inside
    mean = seen.sum() / (3 * len(images) * inside.sum()).clamp(min=1)
    return seen * (LEVEL / mean.clamp(min=1e-12)), inside


def bins_of(lights: Tensor, intensities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bins of directions ``[..., 3]`` and intensities ``[...]``: azimuth, elevation, intensity, int64 ``[...]``."""
    azimuth, elevation = angles_of(lights)
    strength = (intensities - WEAKEST) / (STRONGEST - WEAKEST)
    return (
        _bin((azimuth + 90) / 180, ANGLES),
        _bin((elevation + 90) / 180, ANGLES),
        _bin(strength, INTENSITIES),
    )


def angles_of(lights: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth atan(x / z) and elevation atan(y / sqrt(x^2 + z^2)) in degrees of directions ``[..., 3]`` with z >= 0."""
    x, y, z = lights.unbind(-1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


def directions_of(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors ``[..., 3]`` from angles in degrees: the inverse of :func:`angles_of`."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)


def decode(logits: Logits, how: str = "soft") -> tuple[Tensor, Tensor]:
    """Lights from scores.

    Args:
        logits: of :class:`LCNet`.
        how: ``centre``: of the best bin, as released, which is up to 2.5 degrees off at best; ``soft``: the mean of
            the best bin's centre and its neighbours', weighted by their probabilities (not in the paper).

    Returns:
        Unit directions ``[N, Q, 3]`` and intensities ``[N, Q]``, which are relative: the photographs of an object
        that is twice as bright are the same.

    Raises:
        ValueError: no such way.
    """
    if how not in DECODINGS:
        raise ValueError(f"how must be one of {', '.join(DECODINGS)}, got {how!r}")
    places = [_place(scores, how) / scores.shape[-1] for scores in logits]
    directions = directions_of(180 * places[0] - 90, 180 * places[1] - 90)
    return directions, WEAKEST + (STRONGEST - WEAKEST) * places[2]


def loss(logits: Logits, lights: Tensor, intensities: Tensor) -> Tensor:
    """Eq. (5): the sum of three cross-entropies, of directions ``[N, Q, 3]`` and intensities ``[N, Q]``."""
    parts = zip(logits, bins_of(lights, intensities), strict=True)
    return sum(F.cross_entropy(scores.flatten(0, 1), bins.flatten()) for scores, bins in parts)


def _place(scores: Tensor, how: str) -> Tensor:
    """Where on the scale of bins a value lies: bin i reaches from i to i + 1."""
    best = scores.argmax(-1, keepdim=True)
    if how == "centre":
        return best.squeeze(-1) + 0.5
    centres = torch.arange(scores.shape[-1], device=scores.device)
    # Only around the best bin: a second mode far off would draw the mean to where there is nothing.
    weights = torch.where((centres - best).abs() <= 1, scores, -torch.inf).softmax(-1)
    return (weights * (centres + 0.5)).sum(-1)


def _bin(share: Tensor, bins: int) -> Tensor:
    return (share * bins).floor().long().clamp(0, bins - 1)


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True))


def _head(bins: int) -> nn.Sequential:
    hidden = nn.Sequential(nn.Conv2d(256, 64, 1), nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(hidden, nn.Sequential(nn.Conv2d(64, bins, 1)))
