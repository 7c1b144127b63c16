"""What is done to an image before the network sees it, and what chance has to say in it.

Small images (AdderNet, section 4.2, after He et al. 2016): a border of four zero pixels, a random crop of the old
size, mirrored every other time; for a whole batch at once, on whatever device holds it. Larger photographs
(section 4.3, after Szegedy et al. 2015): a random part of 8 to 100% of the area, stretched by up to 4/3 and brought
to the network's size, mirrored every other time; one by one, in the processes that read them.

What chance decides depends on the seed, the epoch and the image's number, and on nothing else: not on how many
processes share the work, and not on whether the run was interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAD = 4  # section 4.2
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # Szegedy et al. 2015, "Going deeper with convolutions", section 6
ATTEMPTS = 10  # at a part that lies inside the photograph, before its middle is taken
SHOWN = 224 / 256  # of the shorter side, in the middle, when a photograph is tested


@dataclass(frozen=True)
class Chances:
    """What chance decides for the N images of one epoch, each at its place in the order.

    Args:
        order: ``[N]`` numbers of the images, as they are drawn.
        top: ``[N]`` first row of the crop, 0 to 2 PAD.
        left: ``[N]`` first column.
        mirrored: ``[N]`` bool.
        hole: ``[N, 2]`` middle of the square that cutout erases, as a share of height and width.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor
    hole: Tensor

    def at(self, places: slice, device: torch.device) -> Chances:
        """Those of some places in the order."""
        chosen = (x[places].to(device, non_blocking=True) for x in vars(self).values())
        return Chances(*chosen)


def chances(count: int, seed: int, epoch: int) -> Chances:
    """Draw for one epoch of ``count`` images."""
    rng = np.random.default_rng([seed, epoch])
    drawn = (
        rng.permutation(count),
        rng.integers(0, 2 * PAD + 1, count),
        rng.integers(0, 2 * PAD + 1, count),
        rng.random(count) < 0.5,
        rng.random((count, 2), np.float32),
    )
    return Chances(*(torch.from_numpy(x) for x in drawn))


def crop_and_mirror(pixels: Tensor, drawn: Chances) -> Tensor:
    """A border of zeros around each image, out of it a crop of the old size, some mirrored.

    Args:
        pixels: ``[N, H, W, 3]`` uint8.
        drawn: for these N images.

    Returns:
        ``[N, H, W, 3]`` uint8.
    """
    n, h, w, _ = pixels.shape
    device = pixels.device
    padded = torch.nn.functional.pad(pixels, (0, 0, PAD, PAD, PAD, PAD))
    column = torch.arange(w, device=device)
    columns = drawn.left[:, None] + torch.where(drawn.mirrored[:, None], w - 1 - column, column)  # [N, W]
    rows = drawn.top[:, None] + torch.arange(h, device=device)  # [N, H]
    return padded[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def cut_out(x: Tensor, hole: Tensor, side: int) -> Tensor:
    """Cutout (DeVries and Taylor 2017): a square is erased, which may reach over the edge.

    Args:
        x: ``[N, C, H, W]``, normalised, so that 0 is the data set's mean.
        hole: ``[N, 2]`` middle of the square, as a share of height and width.
        side: of the square in pixels.
    """
    h, w = x.shape[-2:]
    middle = (hole * torch.tensor([h, w], device=x.device)).long()  # [N, 2]
    first = middle - side // 2
    row, column = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    rows = (row >= first[:, :1]) & (row < first[:, :1] + side)  # [N, H]
    columns = (column >= first[:, 1:]) & (column < first[:, 1:] + side)  # [N, W]
    erased = (rows[:, :, None] & columns[:, None, :])[..., None]  # [N, H, W, 1]
    return x.permute(0, 2, 3, 1).masked_fill(erased, 0).permute(0, 3, 1, 2)  # stays channels_last


def normalized(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``[N, H, W, 3]`` uint8 to ``[N, 3, H, W]`` float32 in channels_last: in [0, 1], minus mean, over std."""
    scale = 1 / (255 * torch.tensor(std, device=pixels.device))
    shift = torch.tensor(mean, device=pixels.device) * 255 * scale
    return (pixels.float() * scale - shift).permute(0, 3, 1, 2)


def random_part(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, at times mirrored.

    Args:
        image: ``[H, W, 3]`` uint8.
        size: of the result in pixels.
        rng: decides.

    Returns:
        ``[size, size, 3]`` uint8.
    """
    h, w = image.shape[:2]
    for _ in range(ATTEMPTS):
        area = h * w * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*np.log(ASPECT)))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= h and 0 < width <= w:
            top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
            part = image[top : top + height, left : left + width]
            break
    else:
        part = middle(image)
    part = resized(part, size)
    return np.ascontiguousarray(part[:, ::-1]) if rng.random() < 0.5 else part


def middle(image: np.ndarray, shown: float = 1.0) -> np.ndarray:
    """The square in the middle, ``shown`` of the shorter side: ``[H, W, 3]`` to ``[S, S, 3]``."""
    h, w = image.shape[:2]
    side = max(1, round(shown * min(h, w)))
    top, left = (h - side) // 2, (w - side) // 2
    return image[top : top + side, left : left + side]


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """``[H, W, 3]`` uint8 to ``[size, size, 3]``: smaller by the mean over areas, larger by interpolation."""
    import cv2  # late: 0.1 s, and only for images from files

    if image.shape[:2] == (size, size):
        return image
    method = cv2.INTER_AREA if min(image.shape[:2]) >= size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method)
