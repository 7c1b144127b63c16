"""From a capture to its normals by a network: cut to the object, in tiles, in as little memory as wanted.

What a pixel's normal depends on ends 24 pixels from it (section 3.1's layers see about 41 by 41), so that a tile with
that much around it gives the same numbers as the whole picture, and so does the picture cut to the object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from papershelf.errors import UserError

from psfcn.networks import GROUP, PSFCN, STRIDE

HALO = 24  # pixels; a multiple of STRIDE, as tiles must begin on the network's own raster
TILE = 256
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
        tile: side of the squares that are computed at a time, pixels; a multiple of 4.
        group: photographs taken at a time; what is kept does not grow with their number.
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
    network = network.to(device, memory_format=torch.channels_last).eval()
    directions = None if lights is None else torch.from_numpy(np.asarray(lights, np.float32))[None].to(device)
    spots = [spot for spot in tiles(mask, tile) if mask[spot.inner].any()]
    for number, spot in enumerate(spots, 1):
        pixels = torch.from_numpy(images[:, *spot.outer] * mask[spot.outer][..., None])
        some = pixels.permute(0, 3, 1, 2)[None].to(device)
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
            found = network(some, directions, group)[0]
        normals[spot.inner] = found.permute(1, 2, 0).cpu().numpy()[spot.kept]
        if progress:
            progress(number, len(spots))
    return normals * mask[..., None]


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
    """Squares that cover the mask's box, each beginning on a multiple of the network's stride."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0] // STRIDE * STRIDE, columns[0] // STRIDE * STRIDE
    bottom, right = rows[-1] + 1, columns[-1] + 1
    return [
        Tile(y, min(y + side, bottom), x, min(x + side, right), mask.shape)
        for y in range(top, bottom, side)
        for x in range(left, right, side)
    ]


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 there."""
    kind = torch.device(device).type
    return MULTIPLIES_BFLOAT16 if kind == "cpu" else torch.cuda.is_bf16_supported()
