"""What normals are measured on: objects with known normals, out of data sets of any layout that the tool reads.

========================================  ===================================================================
given                                     objects
========================================  ===================================================================
DiLiGenT's ``pmsData`` or its parent      folders such as ``ballPNG``
a folder with ``objects.txt``             those it lists (SDPS-Net's layout)
a folder of folders with list files       each of them, such as ``psfcn render --layout diligent`` writes
a folder of ``.npz``, or one              samples of ``psfcn render``
one object's folder                       that one
========================================  ===================================================================

The true normals are ``Normal_gt.mat`` (DiLiGenT), or a picture of ``(n + 1) / 2``: SDPS-Net's ``normal.png``,
``Normal_gt.png``, SDM-UniPS' ``normal.tif``. They need not be of unit length; where they are zero nothing is measured.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from papershelf.errors import UserError

from psfcn import captures, published
from psfcn.captures import Capture, ReadOptions
from psfcn.light_files import natural_order, read_intensities
from psfcn.samples import Sample

TRUTH_PICTURES = ("normal_gt.png", "normal_gt.tif", "normal.png", "normal.tif")  # in lower case
SHOWN = 5  # names in a message
SHORT = 0.5  # of (n + 1) / 2 in 8 bits, zero is off by less and a unit vector's length stays above
AS_STORED = ReadOptions()
BEAR, DAMAGED = "bearPNG", 20
BEAR_NOTE = (
    f"its first {DAMAGED} images have faults, and CNN-PS (ECCV 2018) and others leave them out (--skip-damaged does); "
    "all 96 are taken, as for the published rows"
)


@dataclass(frozen=True)
class Entry:
    """An object's name and its folder or .npz file."""

    name: str
    path: Path


@dataclass(frozen=True)
class Subject:
    """An object to measure on.

    Attributes:
        capture: with the true normals, and the images that are to be seen.
        intensities: ``[Q, 3]`` of the lights, by which the capture's images are divided already.
        measured: ``[H, W]`` bool, the mask where the truth is known.
        diligent: whether it is one of DiLiGenT's ten, for which others' figures are published.
        notes: what is to be said of it, a line each.
    """

    capture: Capture
    intensities: np.ndarray
    measured: np.ndarray
    diligent: bool
    notes: tuple[str, ...]


def find(folders: Sequence[Path], only: Sequence[str] = ()) -> list[Entry]:
    """The objects in folders, or those named, in their order; a name found twice gets its folder's before it.

    Raises:
        UserError: a folder is missing or holds no object, or a name is not there.
    """
    entries = [entry for folder in folders for entry in _entries(folder)]
    if only:
        unknown = [name for name in only if name not in {entry.name for entry in entries}]
        if unknown:
            names = [*dict.fromkeys(entry.name for entry in entries)]
            near = get_close_matches(unknown[0], names, SHOWN) or names[:SHOWN]
            raise UserError(f"there is no object {unknown[0]} among {len(names)}; there are {', '.join(near)}")
        entries = [entry for name in dict.fromkeys(only) for entry in entries if entry.name == name]
    counts = Counter(entry.name for entry in entries)
    entries = [
        entry if counts[entry.name] == 1 else Entry(f"{entry.path.resolve().parent.name}/{entry.name}", entry.path)
        for entry in entries
    ]
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is there twice, in folders of the same name; give each folder once, or rename one")
    return entries


def load(
    entry: Entry,
    lights: int | None = None,
    seed: int = 0,
    *,
    skip_damaged: bool = False,
    options: ReadOptions = AS_STORED,
) -> Subject:
    """Read an object.

    Args:
        entry: from :func:`find`.
        lights: how many of its images to take, the same for the same seed and number of images; None for all.
        seed: of the choice.
        skip_damaged: leave out DiLiGenT's bear's first 20 images.
        options: what folders do not say of their images and lights; samples need none.

    Raises:
        UserError: files are missing or damaged, or no true normals are there.
    """
    capture, intensities = _sample(entry.path) if entry.path.suffix == ".npz" else _folder(entry.path, options)
    notes = list(capture.notes)
    count = len(capture.images)
    diligent = is_diligent(entry.path, count)
    which = np.arange(count)
    if diligent and entry.path.name == BEAR:
        if skip_damaged:
            which = which[DAMAGED:]
        else:
            notes.append(BEAR_NOTE)
    if lights is not None and lights > len(which):
        notes.append(f"it has {len(which)} images, and all are taken where {lights} are asked for")
    which = which[chosen(len(which), lights, seed)]
    known = (capture.normals != 0).any(-1) & np.isfinite(capture.normals).all(-1)
    measured = capture.mask & known
    if not measured.any():
        raise UserError(f"{entry.path}: the true normals are zero all over the mask; do they belong to these images?")
    left_out = int(capture.mask.sum() - measured.sum())
    if left_out:
        share = 100 * left_out / capture.mask.sum()
        notes.append(f"{left_out} pixels of the mask ({share:.2g} %) have no true normal and are left out")
    return Subject(capture.take(which), intensities[which], measured, diligent, tuple(notes))


def chosen(count: int, lights: int | None, seed: int) -> np.ndarray:
    """Which of ``count`` images are seen, in order; of the same seed, fewer are among more."""
    if lights is None or lights >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:lights])


def is_diligent(path: Path, images: int) -> bool:
    """Whether a folder is one of DiLiGenT's ten: its name, its files, and as many images as these have."""
    name = path.name.removesuffix("PNG")
    is_named = path.name.endswith("PNG") and name in published.OBJECTS
    return is_named and images == published.IMAGES and (path / "Normal_gt.mat").exists()


def _entries(path: Path) -> list[Entry]:
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(f"{path}: expected a folder, or a sample of `psfcn render` (.npz)")
        return [Entry(path.stem, path)]
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    samples = [file for file in path.glob("*.npz") if not file.name.startswith(".")]
    if samples:
        return [Entry(file.stem, file) for file in sorted(samples, key=lambda file: natural_order(file.name))]
    folders = [child for child in path.iterdir() if child.is_dir()]
    if (path / "objects.txt").exists() or any((child / name).exists() for child in folders for name in captures.LISTS):
        found = [Entry(name, folder) for name, folder in captures.read_objects(path)]
        if {entry.name for entry in found} <= set(published.OBJECTS):
            found.sort(key=lambda entry: published.OBJECTS.index(entry.name))  # as papers' tables have them
        return found
    if (path / "pmsData").is_dir():
        return _entries(path / "pmsData")
    if any(path.glob("*.data")) or any(child.suffix.lower() in captures.IMAGES for child in path.iterdir()):
        return [Entry(path.resolve().name.removesuffix("PNG"), path)]
    raise UserError(
        f"{path}: no objects here; expected folders of images (DiLiGenT's pmsData, or objects.txt), samples of "
        "`psfcn render` (.npz), or one object's images"
    )


def _sample(path: Path) -> tuple[Capture, np.ndarray]:
    sample = Sample.load(path)
    normals = sample.normal.astype(np.float32)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    names = tuple(f"{k + 1:03d}" for k in range(len(sample.images)))
    images = sample.radiance() / sample.intensities[:, None, None]
    normals = np.where(sample.mask[..., None] & (length > 0), normals / np.where(length > 0, length, 1), 0)
    return Capture(images, sample.mask, names, sample.lights.astype(np.float64), normals), sample.intensities


def _folder(path: Path, options: ReadOptions) -> tuple[Capture, np.ndarray]:
    shared = path.parent / "light_directions.txt"  # one file for all objects, where they have none of their own
    own = any((path / name).exists() for name in captures.DIRECTIONS)
    if shared.exists() and not own:
        options = dataclasses.replace(options, lights=shared)
    capture = captures.read(path, options)
    file = path / "light_intensities.txt"
    intensities = read_intensities(file) if file.exists() else np.ones((len(capture.images), 3))
    if capture.normals is not None:
        return capture, intensities
    folders = [path, *path.glob("*.data")]
    pictures = {child.name.lower(): child for folder in reversed(folders) for child in folder.iterdir()}
    found = next((pictures[name] for name in TRUTH_PICTURES if name in pictures), None)
    if found is None:
        raise UserError(f"{path}: no true normals to measure against; expected Normal_gt.mat, or normal.png")
    normals, bits = _decoded(found, capture.mask)
    rounded = ("the true normals come from a picture of 8 bits, which rounds them by up to 0.4 degrees",)
    notes = capture.notes + (rounded if bits == 8 else ())
    return dataclasses.replace(capture, normals=normals, notes=notes), intensities


def _decoded(path: Path, mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Unit normals of a picture of them, zero where it shows none, and its bits."""
    picture = captures.read_photograph(path)
    if picture.shape[:2] != mask.shape:
        size, wanted = (f"{shape[1]}x{shape[0]}" for shape in (picture.shape, mask.shape))
        raise UserError(f"{path} is {size} and the images {wanted}; make them alike")
    if picture.dtype.kind == "u":
        normals = 2 * picture.astype(np.float32) / np.iinfo(picture.dtype).max - 1
    else:
        normals = picture.astype(np.float32)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = mask[..., None] & (length > SHORT)
    return np.where(known, normals / np.where(known, length, 1), 0), 8 * picture.dtype.itemsize
