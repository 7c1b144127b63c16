"""What a network sees in image files of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from papershelf.images import read_image
from torch import nn

from addernet import augmentation
from addernet.batches import for_network
from addernet.datasets import rgb
from addernet.evaluation import network, normalization

BATCH = 64  # images at once


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the first one first.

    Args:
        path: of the image.
        classes: names, or numbers where the weights' file has no names.
        probabilities: of these classes, in [0, 1].
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(paths: Sequence[Path], weights: Path | None, device: torch.device, top: int = 5) -> Iterator[Prediction]:
    """Name what is on images: their middle square, brought to the size that the network was trained on.

    Args:
        paths: image files, any that :mod:`papershelf.images` reads.
        weights: a file of a network; None: the ResNet-20 that is shipped.
        device: where it runs.
        top: how many classes of each.

    Raises:
        UserError: an image or the weights cannot be read.
    """
    model = network(weights).to(device)
    names = class_names(model)
    mean, std = normalization(model)
    for first in range(0, len(paths), BATCH):
        chosen = paths[first : first + BATCH]
        images = [for_network(rgb(read_image(path), str(path)), model.config.input_size) for path in chosen]
        pixels = torch.stack([torch.from_numpy(image) for image in images]).to(device)
        with torch.no_grad():
            logits = model(augmentation.normalized(pixels, mean, std))
        best = logits.float().softmax(1).topk(min(top, len(names)), dim=1)
        for path, numbers, shares in zip(chosen, best.indices.tolist(), best.values.tolist(), strict=True):
            yield Prediction(str(path), tuple(names[number] for number in numbers), tuple(shares))


def class_names(model: nn.Module) -> tuple[str, ...]:
    """What a network's outputs stand for: as its file says, else their numbers."""
    if "class_names" in model.metadata:
        return tuple(json.loads(model.metadata["class_names"]))
    return tuple(map(str, range(model.config.classes)))
