"""Batches of a data set for one process: small images out of memory, photographs through workers.

Either kind yields ``Batch(x, labels)``: ``x`` is ``[N, 3, H, W]`` float32, normalised, in channels_last and on the
device. Of every batch of B images, process r of R takes the places r B / R to (r + 1) B / R - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.images import read_image
from papershelf.processes import Place, read
from torch import Tensor
from torch.utils.data import Dataset

from addernet import augmentation
from addernet.augmentation import Chances, chances
from addernet.datasets import SMALL, DataSet, Files, Images, rgb

SMALLEST_PART = 2  # images: the statistics of a batch norm are taken over a part, and one has no spread


class Batch(NamedTuple):
    """Images ``[N, 3, H, W]`` as the network wants them, and their labels ``[N]`` int64."""

    x: Tensor
    labels: Tensor


class TrainingBatches:
    """The training images in a random order, augmented, epoch by epoch.

    Args:
        data: with its part ``train``.
        size: side of the network's input; small images keep their own.
        batch: images a step, over all processes.
        place: of this process.
        seed: of order and augmentation.
        cutout: side in pixels of the square that is erased; 0: none.
        augment: False for the images as they are, in random order.
        parts: in which each process computes its share, one after the other.
        workers: processes that read photographs.

    Raises:
        UserError: the batch cannot be shared, or there are too few images.
    """

    def __init__(
        self,
        data: DataSet,
        size: int,
        batch: int,
        place: Place,
        *,
        seed: int = 0,
        cutout: int = 0,
        augment: bool = True,
        parts: int = 1,
        workers: int = 0,
    ) -> None:
        parts *= place.world
        if batch % parts or batch < SMALLEST_PART * parts:
            raise UserError(
                f"a batch of {batch} cannot be computed in {parts} equal parts of {SMALLEST_PART} or more images"
            )
        self.data, self.part, self.size, self.place = data, data.parts["train"], size, place
        self.batch, self.seed, self.cutout, self.augment, self.workers = batch, seed, cutout, augment, workers
        whole, rest = divmod(len(self.part), batch)
        # The last batch may be smaller, as long as its parts are equal too.
        self.last = rest // parts * parts
        self.last *= self.last >= SMALLEST_PART * parts
        self.steps = whole + bool(self.last)  # an epoch's
        if not self.steps:
            raise UserError(f"{len(self.part)} training images are too few for batches in {parts} parts; give more")
        self.pixels: Tensor | None = None
        if isinstance(self.part, Images):  # all of them on the device: CIFAR takes 154 MB
            self.pixels = torch.from_numpy(self.part.pixels).to(place.device)
            self.labels = torch.from_numpy(self.part.labels).to(place.device)

    def share(self, step: int) -> slice:
        """Which places in the epoch's order are this process's at a step."""
        size = self.batch if (step + 1) * self.batch <= len(self.part) else self.last
        own = size // self.place.world
        first = step * self.batch + self.place.rank * own
        return slice(first, first + own)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        drawn = chances(len(self.part), self.seed, epoch)
        shares = [self.share(step) for step in range(start, self.steps)]
        yield from self._from_memory(drawn, shares) if self.pixels is not None else self._read(drawn, shares, epoch)

    def _from_memory(self, drawn: Chances, shares: list[slice]) -> Iterator[Batch]:
        for share in shares:
            now = drawn.at(share, self.place.device)
            pixels = self.pixels[now.order]
            if self.augment:
                pixels = augmentation.crop_and_mirror(pixels, now)
            yield Batch(self._finished(pixels, now), self.labels[now.order])

    def _read(self, drawn: Chances, shares: list[slice], epoch: int) -> Iterator[Batch]:
        samples = Photographs(self.part, self.size, (self.seed, epoch) if self.augment else None)
        batches = read(samples, self.place, self.workers, batch_sampler=[drawn.order[s].tolist() for s in shares])
        for share, (pixels, labels) in zip(shares, batches, strict=True):
            device = self.place.device
            pixels = pixels.to(device, non_blocking=True)
            x = self._finished(pixels, drawn.at(share, device))
            yield Batch(x, labels.to(device, non_blocking=True))

    def _finished(self, pixels: Tensor, drawn: Chances) -> Tensor:
        x = augmentation.normalized(pixels, self.data.mean, self.data.std)
        return augmentation.cut_out(x, drawn.hole, self.cutout) if self.cutout else x


class PlainBatches:
    """The images of a part in their order, as they are, or the middle of the photographs.

    Args:
        data: the data set.
        part: which of its parts, ``train`` or ``test``.
        size: side of the network's input, for photographs; small images keep their own.
        batch: images at once, in each process.
        place: of this process; every process takes each ``world``-th batch.
        workers: processes that read photographs.
    """

    def __init__(self, data: DataSet, part: str, size: int, batch: int, place: Place, workers: int = 0) -> None:
        self.data, self.part, self.size, self.place, self.workers = data, data.parts[part], size, place, workers
        firsts = range(place.rank * batch, len(self.part), batch * place.world)
        self.shares = [range(first, min(first + batch, len(self.part))) for first in firsts]

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in self._pixels():
            x = augmentation.normalized(pixels.to(self.place.device), self.data.mean, self.data.std)
            yield Batch(x, labels.to(self.place.device))

    def _pixels(self) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self.part, Files):
            yield from read(Photographs(self.part, self.size), self.place, self.workers, batch_sampler=self.shares)
            return
        for share in self.shares:
            places = slice(share.start, share.stop)
            yield torch.from_numpy(self.part.pixels[places]), torch.from_numpy(self.part.labels[places])


class Photographs(Dataset):
    """Photographs read from their files, as ``[size, size, 3]`` uint8, with their labels.

    Args:
        files: which.
        size: of the network's input in pixels.
        chance: seed and epoch of a random part of each; None: their middle.
    """

    def __init__(self, files: Files, size: int, chance: tuple[int, int] | None = None) -> None:
        self.files, self.size, self.chance = files, size, chance

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.int64]:
        name = self.files.paths[number]
        image = rgb(read_image(name), name)
        if self.chance:
            image = augmentation.random_part(image, self.size, np.random.default_rng([*self.chance, number]))
        else:
            image = for_network(image, self.size)
        return image, self.files.labels[number]


def for_network(image: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image of any size: ``[H, W, 3]`` uint8 to ``[size, size, 3]``.

    All of the middle square for the networks of small images, 7/8 of it for those of photographs, as they are tested.
    """
    shown = 1.0 if size <= SMALL else augmentation.SHOWN
    return augmentation.resized(augmentation.middle(image, shown), size)
