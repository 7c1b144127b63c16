"""From a capture to its normals by a network: cut to the object, in tiles, in as little memory as wanted.

What a pixel's normal depends on ends 24 pixels from it (section 3.1's layers see about 41 by 41), so that a tile with
that much around it gives the same numbers as the whole picture, and so does the picture cut to the object. On a CPU
with a compiler the network goes through :mod:`psfcn.inference`, elsewhere through its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from papershelf.errors import UserError
from torch import Tensor

from psfcn import inference
from psfcn.networks import PSFCN, STRIDE

HALO = 24  # pixels; a multiple of STRIDE, as tiles must begin on the network's own raster
TILE = 512  # pixels; a photograph of it is at most 80 MB between the layers
GROUP = 2  # photographs at once where there is no kernel: as many as tiles of that size bear
# Without such instructions bfloat16 is slower than float32. Older releases of PyTorch do not tell.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))

Precision = Literal["auto", "float32", "bfloat16"]


def predict_normals(
    network: PSFCN,
    images: np.ndarray,
    lights: np.ndarray | None,
    mask: np.ndarray,
    *,
    tile: int = TILE,
    group: int = GROUP,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Normals of the object under the mask.

    Args:
        network: PS-FCN, PS-FCN+N or UPS-FCN.
        images: ``[Q, H, W, 3]`` float32, linear RGB, divided by the lights' intensities.
        lights: ``[Q, 3]``, unit directions to the lights; None for UPS-FCN.
        mask: ``[H, W]`` bool.
        tile: side of the squares that are computed at a time, pixels; a multiple of 4. Memory grows with its area.
        group: photographs taken at a time where there is no kernel (else one is). Memory does not grow with their
            number on a CPU; a GPU holds all of a tile's.
        precision: of the convolutions; "auto" is bfloat16 where the processor multiplies it.
        device: where to compute.
        progress: called with how many tiles are done, and of how many.

    Returns:
        ``[H, W, 3]`` float32, unit, zero outside the mask.

    Raises:
        UserError: the tile is no positive multiple of 4, or the network wants lights and there are none, or none and
            there are.
    """
    if tile < STRIDE or tile % STRIDE:
        raise UserError(f"a tile's side must be a multiple of {STRIDE} from {STRIDE} on, got {tile}")
    if (lights is None) != (network.in_channels == 3):
        wanted = "needs the lights' directions" if lights is None else "takes no lights"
        raise UserError(f"this network {wanted}; choose other weights, or give the lights")
    normals = np.zeros((*mask.shape, 3), np.float32)
    if not mask.any():
        return normals
    low = precision == "bfloat16" or (precision == "auto" and bfloat16_pays(device))
    forward = _forward(network, low, group, torch.device(device))
    directions = None if lights is None else torch.from_numpy(np.asarray(lights, np.float32))
    spots = tiles(mask, tile)
    for number, spot in enumerate(spots, 1):
        found = forward(_Photographs(images, mask, spot), directions)
        normals[spot.inner] = found.permute(1, 2, 0).cpu().numpy()[spot.kept]
        if progress:
            progress(number, len(spots))
    return normals * mask[..., None]


Forward = Callable[[Sequence[Tensor], Tensor | None], Tensor]  # photographs and lights to normals [3, H, W]


def _forward(network: PSFCN, low: bool, group: int, device: torch.device) -> Forward:
    """The fastest way through the network that there is on the device."""
    if inference.serves(device):
        return inference.Prepared(network.to(device), torch.bfloat16 if low else torch.float32)
    network = network.to(device, memory_format=torch.channels_last).eval()

    def forward(photographs: Sequence[Tensor], lights: Tensor | None) -> Tensor:
        images = torch.stack([photographs[number] for number in range(len(photographs))])[None].to(device)
        lights = None if lights is None else lights[None].to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
            return network(images, lights, group)[0]

    return forward


class _Photographs(Sequence):
    """A tile of each photograph, cut and masked when it is asked for: ``[3, H, W]`` float32."""

    def __init__(self, images: np.ndarray, mask: np.ndarray, spot: Tile) -> None:
        self.images, self.spot = images, spot
        self.mask = torch.from_numpy(mask[spot.outer])[..., None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        pixels = torch.from_numpy(np.asarray(self.images[number][self.spot.outer], np.float32))
        return torch.where(self.mask, pixels, 0).permute(2, 0, 1)


class Tile:
    """A rectangle of the picture, with what is around it.

    Attributes:
        inner: rows and columns whose normals are wanted.
        outer: the same with the halo, within the picture.
        kept: where ``inner`` lies within ``outer``.
    """

    def __init__(self, top: int, bottom: int, left: int, right: int, size: tuple[int, int]) -> None:
        self.inner = slice(top, bottom), slice(left, right)
        rows, columns = (
            (max(0, first - HALO), min(length, last + HALO))
            for first, last, length in ((top, bottom, size[0]), (left, right, size[1]))
        )
        self.outer = slice(*rows), slice(*columns)
        self.kept = slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0])


def tiles(mask: np.ndarray, side: int) -> list[Tile]:
    """Rectangles that cover the mask, no larger than ``side``, each beginning on a multiple of the network's stride.

    They are squares of a raster over the mask's box, each cut to what the mask has there.
    """
    top, bottom, left, right = _box(mask)
    found = []
    for y in range(top, bottom, side):
        for x in range(left, right, side):
            part = mask[y : min(y + side, bottom), x : min(x + side, right)]
            if part.any():
                first, last, begin, end = _box(part)
                found.append(Tile(y + first, y + last, x + begin, x + end, mask.shape))
    return found


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns from which and up to which the mask reaches; the first ones are multiples of the stride."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0] // STRIDE * STRIDE, rows[-1] + 1, columns[0] // STRIDE * STRIDE, columns[-1] + 1


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 there."""
    kind = torch.device(device).type
    return MULTIPLIES_BFLOAT16 if kind == "cpu" else torch.cuda.is_bf16_supported()
