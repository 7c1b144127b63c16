"""CIFAR-10 and CIFAR-100 as their authors hand them out (https://www.cs.toronto.edu/~kriz/cifar.html).

The Python version holds pickles of a numpy array, the binary one rows of bytes: the label (for CIFAR-100 the
coarse one before it), then 32x32 pixels red, 32x32 green, 32x32 blue. A pickle can name any function to be
called; here it may name those that make an array, and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from papershelf.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
# What the released AdderNet code subtracts and divides by: the standard deviations are means over images.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MEAN_100, STD_100 = (0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)  # the same of CIFAR-100


class Version(NamedTuple):
    """One of the four ways in which the authors give the two data sets."""

    name: str
    folder: str  # as it unpacks
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str  # file with the names of the classes
    classes: int
    labels: str  # the pickle's key of the labels; of a binary one, its last label byte's place

    @property
    def binary(self) -> bool:
        return self.test[0].endswith(".bin")


BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
VERSIONS = (
    Version("CIFAR-10", "cifar-10-batches-py", BATCHES, ("test_batch",), "batches.meta", 10, "labels"),
    Version("CIFAR-100", "cifar-100-python", ("train",), ("test",), "meta", 100, "fine_labels"),
    Version(
        "CIFAR-10",
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        10,
        "0",
    ),
    Version("CIFAR-100", "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 100, "1"),
)


def find(path: Path) -> tuple[Path, Version] | None:
    """The folder that holds a version of CIFAR, ``path`` or one in it, and which; None where there is none."""
    for version in VERSIONS:
        for folder in (path, path / version.folder):
            if (folder / version.test[0]).is_file():
                return folder, version
    return None


def read(folder: Path, version: Version, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of ``train`` or ``test``.

    Returns:
        Pixels ``[N, 32, 32, 3]`` uint8, and labels ``[N]`` int64.

    Raises:
        UserError: a file is missing, damaged, or holds something else.
    """
    read_file = _read_binary if version.binary else _read_pickle
    names = version.train if split == "train" else version.test
    parts = [read_file(folder / name, version) for name in names]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if len(labels) and not 0 <= labels.min() <= labels.max() < version.classes:
        raise UserError(
            f"{folder}: labels from {labels.min()} to {labels.max()}; {version.name} has {version.classes} classes"
        )
    planes = pixels.reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def class_names(folder: Path, version: Version) -> tuple[str, ...]:
    """The names of the classes, in the order of the labels.

    Raises:
        UserError: the file with the names is missing, damaged, or has too many or too few.
    """
    path = folder / version.names
    if version.binary:
        names = _bytes(path).decode(errors="replace").split()
    else:
        key = b"label_names" if version.labels == "labels" else b"fine_label_names"
        found = _unpickled(path).get(key, [])
        names = [name.decode(errors="replace") for name in found if isinstance(name, bytes)]
    if len(names) != version.classes:
        raise UserError(f"{path} names {len(names)} classes; expected {version.classes}")
    return tuple(names)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; unpack the archive of CIFAR anew") from error


def _read_binary(path: Path, version: Version) -> tuple[np.ndarray, np.ndarray]:
    place = int(version.labels)
    row = place + 1 + PIXELS
    data = np.frombuffer(_bytes(path), np.uint8)
    if not len(data) or len(data) % row:
        raise UserError(f"{path} has {len(data)} bytes, expected a multiple of {row}; unpack the archive of CIFAR anew")
    rows = data.reshape(-1, row)
    return rows[:, place + 1 :], rows[:, place].astype(np.int64)


def _read_pickle(path: Path, version: Version) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickled(path)
    pixels, labels = content.get(b"data"), content.get(version.labels.encode())
    good = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2
    good = good and isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    if not good or pixels.shape != (len(labels), PIXELS):
        raise UserError(f"{path} holds no data [N, {PIXELS}] uint8 with N {version.labels}; is it {version.name}?")
    return pixels, np.array(labels, np.int64)


def _unpickled(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; unpack the archive of CIFAR anew") from error
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # damaged pickles raise whatever the damage spells
        raise UserError(f"{path} is damaged ({error}); unpack the archive of CIFAR anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a dictionary as CIFAR's authors wrote it")
    # Python 3 wrote the keys as text, Python 2 (CIFAR's own files) as bytes.
    return {key.encode() if isinstance(key, str) else key: _as_bytes(value) for key, value in content.items()}


def _as_bytes(value: object) -> object:
    """Names as bytes, whichever Python wrote them."""
    if isinstance(value, list):
        return [item.encode() if isinstance(item, str) else item for item in value]
    return value


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays, lists, dictionaries, numbers and text; refuses every other class or function."""

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes from Python 3
            return _latin1
        raise UserError(f"asks for {module}.{name}, which CIFAR's files do not need; do not trust it")


def _empty_array(kind: type, shape: tuple, dtype: object) -> np.ndarray:
    """What a pickle begins an array with, before it fills in shape, dtype and bytes."""
    if kind is not np.ndarray or shape != (0,):
        raise UserError("begins an array as numpy does not; do not trust it")
    return np.ndarray((0,), np.int8)


def _dtype(name: bytes | str, align: int = 0, copy: int = 0) -> np.dtype:
    """Numpy's dtype of bytes; the numbers of old files, which newer versions warn of, as truth values."""
    dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else name, bool(align), bool(copy))
    if dtype.kind not in "iub":
        raise UserError(f"holds an array of {dtype}, expected bytes")
    return dtype


def _latin1(text: str, codec: str) -> bytes:
    if codec not in ("latin1", b"latin1"):
        raise UserError(f"asks for the codec {codec}, which CIFAR's files do not need; do not trust it")
    return text.encode("latin1")
