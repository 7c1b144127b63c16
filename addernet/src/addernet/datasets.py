"""Labelled images for training and testing, recognised by what lies there.

=====================================  =============================================================
DATA                                   images
=====================================  =============================================================
a folder of CIFAR-10 or CIFAR-100      see :mod:`addernet.cifar`
a .tar, .tar.gz, .tar.xz of images     ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or ``val``), small
a folder of images                     the same; of any size
=====================================  =============================================================

Small images (:data:`SMALL`) are decoded once and kept in memory as bytes, CIFAR's 60,000 in 184 MB; of larger
ones the paths are kept.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.images import READABLE, decode_image, read_image
from tqdm import tqdm

from addernet import cifar

SMALL = 64  # pixels a side, up to which images are kept in memory and cropped from a border of zeros
SPLITS = {"train": ("train",), "test": ("test", "val")}  # the folders' names, the first that is there
# Of ImageNet, which photographs are shifted and scaled by everywhere: weights of others expect it.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_FOLDERS = ", ".join(version.folder for version in cifar.VERSIONS)
EXPECTED = f"expected a folder or tar of train/CLASS/*.jpg and test/CLASS/*.jpg, or one of {CIFAR_FOLDERS}"


@dataclass(frozen=True)
class Images:
    """Small images, all of one size.

    Args:
        pixels: ``[N, H, W, 3]`` uint8, RGB.
        labels: ``[N]`` int64.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Files:
    """Image files of any size, read when they are needed.

    Args:
        paths: N of them.
        labels: ``[N]`` int64.
    """

    paths: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """Images to learn from and images to test with.

    Args:
        name: what it was recognised as.
        classes: names, in the order of the labels.
        mean: of red, green and blue in [0, 1], to be subtracted.
        std: to be divided by.
        parts: ``train`` and ``test``, as far as they were asked for.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parts: dict[str, Images | Files]

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels (the shorter one); None where it differs from file to file."""
        part = next(iter(self.parts.values()))
        return min(part.pixels.shape[1:3]) if isinstance(part, Images) else None


def open_data(path: Path, splits: Sequence[str] = ("train", "test"), limit: int | None = None) -> DataSet:
    """The data set that lies at ``path`` (the module's table).

    Args:
        path: a folder or an archive.
        splits: which parts are needed.
        limit: at most so many images of each part, spread evenly over it, for trials.

    Raises:
        UserError: nothing known lies there, a part is missing or empty, or an image cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; {EXPECTED}")
    if path.is_dir() and (found := cifar.find(path)):
        return _open_cifar(*found, splits, limit)
    with _Folder(path) if path.is_dir() else _open_tar(path) as source:
        classes, chosen = _choose(source.names(), path, splits, limit)
        parts: dict[str, Images | Files] = {}
        if source.small(chosen[splits[0]][0][0]):
            for split in splits:
                parts[split] = _decoded(source, chosen[split], split)
            mean, std = _measured(parts[splits[0]].pixels)
        else:
            for split in splits:
                names, labels = zip(*chosen[split], strict=True)
                parts[split] = Files([str(path / name) for name in names], np.array(labels, np.int64))
            mean, std = PHOTO_MEAN, PHOTO_STD
    sizes = {part.pixels.shape[1:] for part in parts.values() if isinstance(part, Images)}
    if len(sizes) > 1:
        raise UserError(f"{path}: images of training and test differ in size; make them all of one size")
    return DataSet(path.name, classes, mean, std, parts)


def _open_cifar(folder: Path, version: cifar.Version, splits: Sequence[str], limit: int | None) -> DataSet:
    parts = {}
    for split in splits:
        pixels, labels = cifar.read(folder, version, split)
        keep = _spread(len(labels), limit)
        parts[split] = Images(pixels[keep], labels[keep])
    mean, std = (cifar.MEAN, cifar.STD) if version.classes == 10 else (cifar.MEAN_100, cifar.STD_100)
    return DataSet(version.name, cifar.class_names(folder, version), mean, std, parts)


def _spread(count: int, limit: int | None) -> np.ndarray:
    """At most ``limit`` of ``count`` indices, at even distances."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(np.int64)


def _choose(
    names: Iterable[str], path: Path, splits: Sequence[str], limit: int | None
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """The classes, and of each part the chosen names with their labels."""
    found: dict[str, dict[str, str]] = {}  # folder of a part -> name -> class
    for name in names:
        parts = name.split("/")
        if len(parts) >= 3 and parts[-1].lower().endswith(READABLE) and not parts[-1].startswith("."):
            found.setdefault(parts[-3], {})[name] = parts[-2]
    of_split = {split: next((found[name] for name in SPLITS[split] if name in found), {}) for split in SPLITS}
    for split in splits:
        if not of_split[split]:
            wanted = " or ".join(f"{name}/CLASS" for name in SPLITS[split])
            raise UserError(f"{path} has no images in {wanted}; {EXPECTED}")
    classes = tuple(sorted(set((of_split["train"] or of_split["test"]).values())))
    label = {name: number for number, name in enumerate(classes)}
    chosen = {}
    for split in splits:
        rows = list(of_split[split].items())
        if strange := sorted({kind for _, kind in rows} - set(classes)):
            raise UserError(f"{path}: {split} has classes that training has not: {', '.join(strange[:5])}")
        chosen[split] = [(rows[k][0], label[rows[k][1]]) for k in _spread(len(rows), limit)]
    return classes, chosen


class _Folder:
    """Image files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def names(self) -> Iterator[str]:
        for split in sorted({name for names in SPLITS.values() for name in names}):
            if (self.path / split).is_dir():
                for kind in sorted((self.path / split).iterdir()):
                    if kind.is_dir():
                        yield from sorted(f"{split}/{kind.name}/{file.name}" for file in kind.iterdir())

    def small(self, name: str) -> bool:
        return max(self.read(name).shape[:2]) <= SMALL

    def read(self, name: str) -> np.ndarray:
        return rgb(read_image(self.path / name), name)


class _Tar:
    """Image files in an archive; whatever else it holds is not touched, and nothing is unpacked."""

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self.path, self.archive = path, archive
        self.members: dict[str, tarfile.TarInfo] = {}

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def names(self) -> Iterator[str]:
        try:
            for member in tqdm(self.archive, f"Listing {self.path.name}", unit=" files", disable=None, leave=False):
                if member.isfile():
                    self.members[member.name] = member
        except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError) as error:
            raise UserError(f"{self.path} is damaged or cut off: {error}") from error
        return iter(self.members)  # in the archive's order, so that reading goes forward only

    def small(self, name: str) -> bool:
        side = max(self.read(name).shape[:2])
        if side > SMALL:
            raise UserError(
                f"{self.path}: images of {side} pixels; those over {SMALL} are read from a folder: unpack the archive"
            )
        return True

    def read(self, name: str) -> np.ndarray:
        data = self.archive.extractfile(self.members[name]).read()
        return rgb(decode_image(data, f"{self.path}/{name}"), name)


def _open_tar(path: Path) -> _Tar:
    try:
        return _Tar(path, tarfile.open(path))
    except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError) as error:
        raise UserError(f"{path} is no archive that can be read ({error}); {EXPECTED}") from error


def _decoded(source: _Folder | _Tar, rows: list[tuple[str, int]], split: str) -> Images:
    pixels = None
    for k, (name, _) in enumerate(tqdm(rows, f"Reading {split}", unit=" images", disable=None, leave=False)):
        image = source.read(name)
        if pixels is None:
            pixels = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            h, w, rows_, columns = *image.shape[:2], *pixels.shape[1:3]
            raise UserError(
                f"{source.path}/{name} is {w}x{h} and others are {columns}x{rows_}; make all small images of one size"
            )
        pixels[k] = image
    return Images(pixels, np.array([label for _, label in rows], np.int64))


def rgb(image: np.ndarray, name: str) -> np.ndarray:
    """``[H, W, 3]`` uint8: grey thrice, alpha dropped, 16 bits to 8.

    Raises:
        UserError: floating point, whose range is unknown.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{name} holds {image.dtype}; expected 8 or 16 bits a channel: convert it")
    return image.repeat(3, 2) if image.shape[2] == 1 else image[..., :3]


def _measured(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1]."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(3):
        share = np.bincount(pixels[..., channel].reshape(-1), minlength=256) / pixels[..., 0].size
        mean = float(share @ values)
        means.append(round(mean, 4))
        deviations.append(max(round(float(share @ (values - mean) ** 2) ** 0.5, 4), 1 / 255))  # of a flat colour: 0
    return tuple(means), tuple(deviations)
