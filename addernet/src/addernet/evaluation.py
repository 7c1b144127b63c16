"""How many images a network names rightly: top 1, top 5, and class by class (AdderNet, section 4)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.processes import Place
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from addernet import checkpoints, cifar, quantization
from addernet.batches import Batch, PlainBatches
from addernet.datasets import PHOTO_MEAN, PHOTO_STD, SMALL, DataSet, open_data

SHIPPED = "shipped weights"
TOP = 5
CPU = Place(torch.device("cpu"))
BATCH = 250  # images at once
AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Scores:
    """What was counted over a test set.

    Args:
        images: their number.
        loss: mean cross-entropy, natural logarithm.
        top1: share of the images whose class the network puts first, in [0, 1].
        top5: whose class is among its first five.
        seen: images of each class.
        right: those of them that the network puts first.
    """

    images: int
    loss: float
    top1: float
    top5: float
    seen: tuple[int, ...]
    right: tuple[int, ...]


def autocast(device: torch.device, amp: str):
    """A context in which convolutions run in ``bfloat16`` or ``float16``; ``off``: none."""
    return torch.autocast(device.type, AMP[amp]) if AMP[amp] else nullcontext()


@torch.no_grad()
def score(
    model: Callable[[Tensor], Tensor], batches: Iterable[Batch], classes: int, place: Place, amp: str = "off"
) -> Scores:
    """Compare a network's answers with the labels.

    Args:
        model: images ``[N, 3, H, W]`` to logits ``[N, classes]``, on the place's device.
        batches: this process's share of the images.
        classes: their number.
        place: of this process; the result counts the images of all.
        amp: ``off``, ``bfloat16`` or ``float16``.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=place.device)  # loss, top 1, top 5
    counts = torch.zeros(2, classes, dtype=torch.int64, device=place.device)  # seen, right
    for x, labels in batches:
        with autocast(place.device, amp):
            logits = model(x).float()
        best = logits.topk(min(TOP, classes), dim=1).indices == labels[:, None]  # [N, 5]
        sums += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), best[:, 0].sum(), best.sum()]).double()
        counts += torch.stack([labels.bincount(minlength=classes), labels[best[:, 0]].bincount(minlength=classes)])
    seen, right = place.summed(counts).tolist()
    images = sum(seen)
    loss, top1, top5 = (x / images for x in place.summed(sums).tolist())
    return Scores(images, loss, top1, top5, tuple(seen), tuple(right))


@dataclass(frozen=True)
class Evaluation:
    """The scores of some weights on some data, with names."""

    data: str
    weights: str
    about: str
    classes: tuple[str, ...]
    scores: Scores
    seconds: float

    def as_json(self) -> dict:
        scores = self.scores
        rows = zip(self.classes, scores.seen, scores.right, strict=True)
        return {
            "data": self.data,
            "weights": self.weights,
            "network": self.about,
            "images": scores.images,
            "top1": scores.top1,
            "top5": scores.top5,
            "loss": scores.loss,
            "images_per_second": scores.images / self.seconds,
            "classes": {name: {"images": seen, "top1": right / seen} for name, seen, right in rows if seen},
        }

    def table(self) -> str:
        """Totals in two lines, then a line for each class."""
        scores = self.scores
        lines = [
            f"{self.weights} ({self.about}) on {self.data}, {scores.images} images, {self.seconds:.1f} s",
            f"top 1 {scores.top1:.2%}, top 5 {scores.top5:.2%}, loss {scores.loss:.4f}",
            "",
        ]
        width = max(len(name) for name in self.classes)
        for name, seen, right in zip(self.classes, scores.seen, scores.right, strict=True):
            if seen:
                lines.append(f"{name:{width}}  {right / seen:7.2%}  {right} of {seen}")
        return "\n".join(lines)


def evaluate(
    path: Path,
    weights: Path | None,
    place: Place,
    *,
    batch: int = BATCH,
    limit: int | None = None,
    workers: int = 0,
    amp: str = "off",
) -> Evaluation:
    """Test a network on the test part of a data set.

    Args:
        path: of the data set, see :mod:`addernet.datasets`.
        weights: a file that :func:`addernet.checkpoints.load` reads; None: the ResNet-20 that is shipped.
        place: where it runs.
        batch: images at once.
        limit: at most so many images.
        workers: processes that read photographs.
        amp: ``off``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: data or weights do not fit, or each other.
    """
    model = network(weights).to(place.device)
    data = as_trained(open_data(path, ("test",), limit), model, str(weights or SHIPPED))
    about = " ".join([model.config.arch, model.config.op, model.metadata.get("quantized", "")]).rstrip()
    batches = PlainBatches(data, "test", model.config.input_size, batch, place, workers)
    began = time.monotonic()
    bar = tqdm(batches, "Testing", unit=" batches", disable=None, leave=False)
    scores = score(model, bar, len(data.classes), place, amp)
    seconds = time.monotonic() - began
    return Evaluation(data.name, str(weights or SHIPPED), about, data.classes, scores, seconds)


def images_of(path: Path, model: nn.Module, count: int) -> Tensor:
    """Some training images of a data set as a network wants them, such as to measure ranges on.

    Args:
        path: of the data set.
        model: what they are for.
        count: at most so many, spread evenly over the set.

    Returns:
        ``[count, 3, H, W]`` float32 on the CPU.
    """
    data = open_data(path, ("train",), count)
    mean, std = normalization(model, data)
    data = replace(data, mean=mean, std=std)
    return torch.cat([x for x, _ in PlainBatches(data, "train", model.config.input_size, BATCH, CPU)])


def network(weights: Path | None) -> nn.Module:
    """The network of a file, float32 or int8, on the CPU, ready for inference.

    Args:
        weights: what :mod:`addernet.checkpoints` or :mod:`addernet.quantization` reads; None: the shipped ResNet-20.

    Raises:
        UserError: the file cannot be read.
    """
    file = weights or checkpoints.default_weights()
    return quantization.load(file) if _quantized(file) else checkpoints.load(file)


def _quantized(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as content:
            return "quantized" in (content.metadata() or {})
    except (OSError, SafetensorError):
        return False  # no safetensors: checkpoints.load says what is wrong, if it is


def as_trained(data: DataSet, model: nn.Module, file: str) -> DataSet:
    """The data set with the mean, deviation and labels that a network was trained with, as far as its file says.

    Raises:
        UserError: the classes or the images' size are not the network's.
    """
    config, metadata = model.config, model.metadata
    if config.in_channels != 3:
        raise UserError(f"{file} takes images of {config.in_channels} channels; those of {data.name} have 3 (RGB)")
    mean, std = normalization(model, data)
    parts = data.parts
    names = tuple(json.loads(metadata["class_names"])) if "class_names" in metadata else None
    if names and names != data.classes and set(data.classes) <= set(names):
        place = torch.tensor([names.index(name) for name in data.classes]).numpy()  # number here -> number there
        parts = {split: replace(part, labels=place[part.labels]) for split, part in parts.items()}
    elif len(data.classes) != config.classes:
        raise UserError(
            f"{file} tells {config.classes} classes apart, {data.name} has {len(data.classes)}; give weights or data "
            "of the same classes"
        )
    else:
        if names and names != data.classes:
            logging.warning("%s and %s name the classes differently: the same order is assumed", file, data.name)
        names = data.classes
    if data.image_size and config.arch in ("vgg-small", "lenet") and data.image_size != config.input_size:
        raise UserError(
            f"{file} takes images of {config.input_size} pixels; those of {data.name} have {data.image_size}"
        )
    return replace(data, classes=names, mean=mean, std=std, parts=parts)


def normalization(model: nn.Module, data: DataSet | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that a network was trained with: as its file says, as the data has them, or as is usual."""
    metadata = model.metadata
    if "mean" in metadata and "std" in metadata:
        return tuple(json.loads(metadata["mean"])), tuple(json.loads(metadata["std"]))
    if data:
        return data.mean, data.std
    return (cifar.MEAN, cifar.STD) if model.config.input_size <= SMALL else (PHOTO_MEAN, PHOTO_STD)
