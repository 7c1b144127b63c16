"""Training samples from folders in the layout of Vimeo90K, with the paper's augmentation (RIFE, section 4.1).

The layout, of the data set itself and of what ``rife dataset`` makes::

    sequences/00001/0001/im1.png im2.png im3.png      (septuplets: to im7.png)
    tri_trainlist.txt  tri_testlist.txt               lines such as 00001/0001
    (septuplets: sep_trainlist.txt  sep_testlist.txt)

Nothing here depends on what was drawn before: the sequence and all the chances of a draw follow from the
seed and its number, so that a resumed run sees what an uninterrupted one would, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.images import read_image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

TRIPLET, SEPTUPLET = 3, 7  # frames of a sequence
PREFIX = {TRIPLET: "tri", SEPTUPLET: "sep"}  # of the lists' names


class Sample(NamedTuple):
    """Two frames and the one between them: uint8 ``[3, H, W]`` each, and its time, a float32 scalar."""

    img0: Tensor
    gt: Tensor
    img1: Tensor
    t: Tensor


class Sequences:
    """The frames of one list of a data set.

    Args:
        root: the folder that holds the lists and ``sequences``.
        split: ``train`` or ``test``.
        length: 3 for triplets, 7 for septuplets.

    Raises:
        UserError: there is no such list, or nothing is in it.
    """

    def __init__(self, root: Path, split: str, length: int) -> None:
        self.root, self.length = Path(root), length
        file = self.root / f"{PREFIX[length]}_{split}list.txt"
        try:
            self.names = file.read_text().split()
        except OSError as error:
            other = SEPTUPLET if length == TRIPLET else TRIPLET
            there = (self.root / f"{PREFIX[other]}_{split}list.txt").exists()
            hint = f"it holds sequences of {other} instead" if there else f"`rife dataset --length {length}` makes one"
            raise UserError(
                f"{file}: {error.strerror}; expected a data set in the layout of Vimeo90K, {hint}"
            ) from error
        if not self.names:
            raise UserError(f"{file} lists no sequences; expected lines such as 00001/0001")

    def __len__(self) -> int:
        return len(self.names)

    def frames(self, index: int, numbers: tuple[int, int, int]) -> np.ndarray:
        """Frames ``numbers`` (the first is 0) of a sequence: ``[3, H, W, 3]`` RGB uint8."""
        folder = self.root / "sequences" / self.names[index]
        images = [read_image(folder / f"im{number + 1}.png") for number in numbers]
        if any(image.dtype != np.uint8 or image.shape[2] != 3 for image in images):
            raise UserError(f"{folder}: expected 8-bit RGB images, as in Vimeo90K; convert them")
        if any(image.shape != images[0].shape for image in images):
            sizes = ", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
            raise UserError(f"{folder}: its images differ in size ({sizes}); remove it from the list")
        return np.stack(images)


class TrainingSamples(Dataset):
    """Random crops, turned and mirrored; indexed by what :class:`Draws` yields.

    Args:
        sequences: triplets give t = 0.5; of a septuplet any three frames are taken (RIFEm, section 3.5).
        crop: side of the crops in pixels.
        seed: of all draws.
        augment: False takes the crop in the middle, nothing mirrored, turned or reversed.
    """

    def __init__(self, sequences: Sequences, crop: int, seed: int, augment: bool = True) -> None:
        self.sequences, self.crop, self.seed, self.augment = sequences, crop, seed, augment

    def __getitem__(self, draw: tuple[int, int]) -> Sample:
        number, index = draw
        rng = np.random.default_rng([self.seed, 1, number])
        n0, n1, n2 = sorted(rng.choice(self.sequences.length, 3, replace=False).tolist())
        frames, t = self.sequences.frames(index, (n0, n1, n2)), (n1 - n0) / (n2 - n0)
        h, w = frames.shape[1:3]
        if min(h, w) < self.crop:
            raise UserError(
                f"{self.sequences.names[index]} is {w}x{h}, smaller than the crop of {self.crop}; choose a smaller crop"
            )
        if self.augment:
            return _sample(*augmented(frames, t, self.crop, rng))
        y, x = (h - self.crop) // 2, (w - self.crop) // 2
        return _sample(frames[:, y : y + self.crop, x : x + self.crop], t)


class ValidationSamples(Dataset):
    """Whole frames: of a triplet the middle one, of septuplets by turns each of the five between the ends."""

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        last = self.sequences.length - 1
        middle = 1 + index % (last - 1)
        return _sample(self.sequences.frames(index, (0, middle, last)), middle / last)


class Draws(Sampler):
    """Batches of (number of the draw, index of its sequence), for one process of several.

    Sequences come in a new random order in every pass, and one pass follows another without a gap: a batch
    may be larger than the data set, and each sequence is drawn as often as any other, give or take one.

    Args:
        count: of sequences.
        batch: draws a step, over all processes.
        steps: first step and one past the last.
        seed: of the orders.
        rank: of this process.
        world: how many processes share a batch.
    """

    def __init__(self, count: int, batch: int, steps: range, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch, self.steps, self.seed = count, batch, steps, seed
        self.share = range(rank * batch // world, (rank + 1) * batch // world)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for step in self.steps:
            numbers = [step * self.batch + k for k in self.share]
            passes = {number // self.count for number in numbers}
            orders = {p: orders[p] if p in orders else self._order(p) for p in passes}
            yield [(number, int(orders[number // self.count][number % self.count])) for number in numbers]

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, number]).permutation(self.count)


def augmented(frames: np.ndarray, t: float, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Section 4.1: a random crop; channels, rows, columns and time reversed with p = 0.5 each; turned.

    Args:
        frames: ``[3, H, W, 3]``: img0, gt, img1.
        t: time of ``gt``.
        crop: side of the result in pixels.
        rng: where the chances come from.

    Returns:
        Frames ``[3, crop, crop, 3]`` (a view), and the time of their middle one.
    """
    h, w = frames.shape[1:3]
    y, x = rng.integers(h - crop + 1), rng.integers(w - crop + 1)
    frames = frames[:, y : y + crop, x : x + crop]
    reverse_channels, mirror_rows, mirror_columns, reverse_time = rng.random(4) < 0.5
    if reverse_channels:
        frames = frames[..., ::-1]
    if mirror_rows:
        frames = frames[:, ::-1]
    if mirror_columns:
        frames = frames[:, :, ::-1]
    if reverse_time:
        frames, t = frames[::-1], 1 - t
    return np.rot90(frames, rng.integers(4), axes=(1, 2)), t


def _sample(frames: np.ndarray, t: float) -> Sample:
    planes = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    return Sample(*planes.unbind(), torch.tensor(t, dtype=torch.float32))
