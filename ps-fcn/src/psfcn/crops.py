"""What PS-FCN is trained on: random crops of rendered objects under some of their lights (section 5.2).

Everything random is drawn from the seed and the step's number, so that a run goes on after a break as if there had
been none, and is the same with any number of processes that read.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor
from torch.utils.data import Dataset

from psfcn.recipes import TrainingConfig
from psfcn.samples import WHITE, Sample

INSIDE = 0.999  # of a pixel must be the object's for it to count as such
SEEN = 0.25  # of a crop should be, or another place is tried
TRIES = 8
COLOURS = (0.2, 2.0)  # not in the spec: factors of red, green and blue


class Crop(NamedTuple):
    """Photographs and what is to be found in them; a leading dimension more in a batch.

    images ``[Q, 3, S, S]``, zero outside the mask; lights ``[Q, 3]``; normal ``[3, S, S]``; mask ``[1, S, S]``, 0 or 1.
    """

    images: Tensor
    lights: Tensor
    normal: Tensor
    mask: Tensor


class Samples:
    """The samples in a folder, in an order that is random and new in each pass.

    Args:
        folder: of ``psfcn render``'s .npz files.

    Attributes:
        files: in the order of their names.
        lights_by: who says where the lights are, None for the truth; see :mod:`psfcn.found_lights`.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """

    lights_by: str | None = None

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.npz"))
        if not self.files:
            raise UserError(f"{folder} holds no samples (*.npz); make some with: psfcn render -o {folder}")
        self._order: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0))

    def __len__(self) -> int:
        return len(self.files)

    def load(self, number: int) -> Sample:
        """The sample in a file.

        Raises:
            UserError: it is damaged.
        """
        return Sample.load(self.files[number])

    def drawn(self, seed: int, number: int, least_lights: int) -> Sample:
        """The ``number``-th sample of a run with this seed.

        Raises:
            UserError: the file is damaged, or it has too few lights.
        """
        key = (seed, number // len(self))
        if self._order[0] != key:
            self._order = key, np.random.default_rng(key).permutation(len(self))
        place = self._order[1][number % len(self)]
        sample = self.load(place)
        if len(sample.lights) < least_lights:
            raise UserError(
                f"{self.files[place]} has {len(sample.lights)} lights, and {least_lights} are asked for; render with "
                f"--lights {least_lights}, or train with --lights {len(sample.lights)}"
            )
        return sample


class Crops(Dataset):
    """Crops by (step, place in the batch).

    Args:
        samples: what they are taken from.
        config: the recipe.
    """

    def __init__(self, samples: Samples, config: TrainingConfig) -> None:
        self.samples, self.config = samples, config

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        step, place = key
        config = self.config
        of_batch = np.random.default_rng([config.seed, step])
        quantity = int(of_batch.integers(config.lights[0], config.lights[1] + 1))
        size = 4 * int(of_batch.integers(config.crop[0] // 4, config.crop[1] // 4 + 1))
        sample = self.samples.drawn(config.seed, step * config.batch + place, quantity)
        return random_crop(sample, np.random.default_rng([config.seed, step, place]), quantity, size, config)


def random_crop(sample: Sample, rng: np.random.Generator, quantity: int, size: int, config: TrainingConfig) -> Crop:
    """A square of an object, rescaled, under some of its lights, with what the recipe changes about it.

    Args:
        sample: the object.
        rng: what is drawn from.
        quantity: of lights.
        size: of the crop in pixels.
        config: the recipe.
    """
    chosen = rng.permutation(len(sample.lights))[:quantity]
    window = _window(sample.mask, rng, size, config)
    mask = sample.mask[window]
    normal = torch.from_numpy(sample.normal[window].astype(np.float32)).permute(2, 0, 1)
    images = photographs(sample, chosen, window)
    covered = resized(torch.from_numpy(mask.astype(np.float32))[None, None], size)[0]
    mask = (covered > INSIDE).float()
    images, normal = resized(images, size), F.normalize(resized(normal[None], size)[0], dim=0)
    lights = torch.from_numpy(sample.lights[chosen])
    if config.turn:
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        images, mask = (turned(x, turns, mirrored) for x in (images, mask))
        normal = turned_vectors(turned(normal, turns, mirrored), 0, turns, mirrored)
        lights = turned_vectors(lights, 1, turns, mirrored)
    if config.aim:
        lights = F.normalize(lights + np.deg2rad(config.aim) * _normal(rng, lights.shape), dim=1)
    if config.gain:
        images = images * (1 + config.gain * _normal(rng, (quantity, 1, 1, 1)))
    if config.colour:
        images = images * torch.from_numpy(rng.uniform(*COLOURS, (3, 1, 1)).astype(np.float32))
    return Crop(with_noise(images, rng, config.noise) * mask, lights.contiguous(), normal * mask, mask)


def photographs(sample: Sample, chosen: np.ndarray | slice, window: tuple[slice, slice] = (slice(None),) * 2) -> Tensor:
    """Some of a sample's images, divided by their lights' intensities, ``[Q, 3, H, W]`` in about [0, 1]."""
    pixels = torch.from_numpy(sample.images[:, *window][chosen].astype(np.float32)).permute(0, 3, 1, 2) / WHITE
    return pixels / torch.from_numpy(sample.intensities[chosen])[:, :, None, None]


def resized(x: Tensor, size: int) -> Tensor:
    """``[..., C, H, W]`` to squares of a size, low-passed where they shrink."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)


def turned_vectors(x: Tensor, dim: int, turns: int, mirrored: bool) -> Tensor:
    """Vectors along ``dim`` after mirroring left and right, then quarter turns counterclockwise."""
    a, b, c = x.unbind(dim)
    a = -a if mirrored else a
    for _ in range(turns):
        a, b = -b, a
    return torch.stack([a, b, c], dim)


def with_noise(images: Tensor, rng: np.random.Generator, noise: float) -> Tensor:
    """Uniform noise in [-noise, noise] added."""
    if not noise:
        return images
    return images + noise * torch.from_numpy(2 * rng.random(images.shape, dtype=np.float32) - 1)


def _window(mask: np.ndarray, rng: np.random.Generator, size: int, config: TrainingConfig) -> tuple[slice, slice]:
    """Where a crop is taken from: what becomes ``size`` pixels when the image becomes a side drawn from the recipe's.

    Images are not made larger; one that is smaller than the crop is an exception to that.
    """
    own = min(mask.shape)
    most = max(size, min(own, config.side[1]))
    side = rng.uniform(min(max(size, config.side[0]), most), most)
    width = min(own, round(size * own / side))
    best, window = -1.0, (slice(None), slice(None))
    for _ in range(TRIES):
        top, left = (int(rng.integers(0, length - width + 1)) for length in mask.shape)
        found = slice(top, top + width), slice(left, left + width)
        seen = mask[found].mean()
        if seen > best:
            best, window = seen, found
        if best >= SEEN:
            break
    return window


def turned(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Images ``[..., H, W]`` mirrored left and right, then turned by quarters counterclockwise."""
    x = x.flip(-1) if mirrored else x
    return x.rot90(turns, (-2, -1))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
