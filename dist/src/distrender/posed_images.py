"""Pictures with their cameras and silhouettes, read from files: what a shape is fitted to.

A picture finds its camera by its name or, where no names agree, by its place in the order. Silhouettes are given as
pictures, come as the alpha channel, or are found: the shape is what differs from a uniform background by more than a
threshold (Middlebury's README finds its dinosaur so).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.images import read_image
from torch import Tensor

from distrender import camera_files
from distrender.cameras import Camera
from distrender.observations import read_mask

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".exr", ".bmp", ".webp")
LEVEL = 0.4  # of Otsu's threshold: shadows lie on the shape, and what is lost of a silhouette is carved off
SPECK = 0.01  # of the largest part of a silhouette; smaller parts go, smaller holes are filled
CLOSED = 0.0125  # of the picture's shorter side: cracks narrower than twice that are closed


@dataclass(frozen=True, eq=False)
class PosedImages:
    """V views of one size.

    Attributes:
        cameras: the V views.
        masks: ``[V, H, W]`` bool, the silhouettes.
        images: ``[V, 3, H, W]`` in [0, 1], as the files store them; None where the pictures were silhouettes.
        names: of the pictures.
        note: one line on where the silhouettes came from.
        found: whether they were found in photographs, and may lack what is dark.
    """

    cameras: Camera
    masks: Tensor
    images: Tensor | None = None
    names: tuple[str, ...] = ()
    note: str = ""
    found: bool = False

    def __post_init__(self) -> None:
        shape = [len(self.cameras), *self.cameras.size]
        if list(self.masks.shape) != shape:
            raise UserError(f"silhouettes must be {shape} as the cameras are, got {list(self.masks.shape)}")
        if self.images is not None and list(self.images.shape) != [shape[0], 3, *shape[1:]]:
            raise UserError(f"pictures must be {[shape[0], 3, *shape[1:]]}, got {list(self.images.shape)}")
        for number, mask in enumerate(self.masks):
            if not mask.any():
                name = self.names[number] if self.names else f"view {number}"
                raise UserError(f"{name}: the silhouette is empty; leave the view out or choose another --threshold")


def load(
    cameras: Path, pictures: Sequence[Path], masks: Path | None = None, threshold: float | None = None
) -> PosedImages:
    """Read pictures, their cameras and their silhouettes.

    Args:
        cameras: any file that :mod:`distrender.camera_files` reads.
        pictures: files, or one folder of them.
        masks: folder of silhouettes, named as the pictures (endings may differ) or as many as these.
        threshold: how much the shape differs from the background in its most different channel, of [0, 1]; None
            takes the alpha channel, or finds a threshold.

    Raises:
        UserError: files cannot be read, or do not fit each other.
    """
    files = listed(pictures)
    arrays = [_read(file) for file in files]
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) > 1:
        raise UserError(f"the pictures have {len(sizes)} sizes {sorted(sizes)} (height, width); they must have one")
    known = camera_files.read_named(cameras, sizes.pop())
    places = matched(files, known.names)
    views = known.cameras[torch.tensor(places)]
    if views.size != arrays[0].shape[:2]:
        raise UserError(f"{cameras} is for pictures of {views.size} (height, width), got {arrays[0].shape[:2]}")
    colours = np.stack([array[..., :3].repeat(4 - min(3, array.shape[2]), -1)[..., :3] for array in arrays])
    searched = masks is None and (threshold is not None or any(array.shape[2] != 4 for array in arrays))
    if masks is not None:
        found, note = _given(masks, files), f"silhouettes from {masks}"
    elif not searched:
        found, note = np.stack([array[..., 3] > 0.5 for array in arrays]), "silhouettes from the alpha channel"
    else:
        found, level = silhouettes(colours, threshold)
        note = f"silhouettes found where pictures differ from their background by over {level:.3f}; look at overlays/"
    photographs = None
    if not _two_levels(colours):
        photographs = torch.from_numpy(np.ascontiguousarray(colours.transpose(0, 3, 1, 2)))
    names = tuple(file.name for file in files)
    return PosedImages(views, torch.from_numpy(found), photographs, names, note, searched and photographs is not None)


def listed(pictures: Sequence[Path]) -> list[Path]:
    """The files themselves, or those of the one folder, in the order of their names."""
    if len(pictures) == 1 and pictures[0].is_dir():
        files = sorted(file for file in pictures[0].iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(f"{pictures[0]}: no pictures ({', '.join(PICTURES)}) in this folder")
        return files
    return list(pictures)


def matched(files: Sequence[Path], names: Sequence[str]) -> list[int]:
    """Which camera each picture belongs to: by the name, by the name without its ending, or by order.

    Raises:
        UserError: only some names agree, or none and the numbers differ.
    """
    for key in (lambda name: Path(name).name, lambda name: Path(name).stem):
        known = {key(name): place for place, name in enumerate(names)}
        places = [known.get(key(file)) for file in files]
        if None not in places:
            return places
    if any(place is not None for place in places):
        lost = next(file for file, place in zip(files, places, strict=True) if place is None)
        raise UserError(f"{lost}: the camera file names no such picture, only {', '.join(names[:3])} and so on")
    if len(files) != len(names):
        raise UserError(
            f"{len(files)} pictures and {len(names)} cameras, and no names that agree; name the pictures as the "
            f"cameras are ({names[0]}), or give one for each in their order"
        )
    logging.warning("no names of pictures and cameras agree; they are matched in order")
    return list(range(len(files)))


def silhouettes(colours: np.ndarray, threshold: float | None = None) -> tuple[np.ndarray, float]:
    """Where pictures ``[V, H, W, 3]`` in [0, 1] differ from their background, and the threshold.

    The background is the median colour of a picture's border. Small parts and small holes go, cracks are closed.

    Returns:
        ``[V, H, W]`` bool and the threshold, found by Otsu's method if None was given.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    border = np.concatenate([colours[:, 0], colours[:, -1], colours[:, :, 0], colours[:, :, -1]], 1)
    difference = np.abs(colours - np.median(border, 1)[:, None, None]).max(-1)
    level = float(LEVEL * threshold_otsu(difference) if threshold is None else threshold)
    radius = max(1, round(CLOSED * min(colours.shape[1:3])))
    found = np.empty(difference.shape, bool)
    for view, inside in enumerate(difference > level):
        inside = _without_specks(inside, ndimage.label(inside))
        wide = np.pad(inside, radius, mode="edge")
        closed = ndimage.binary_closing(wide, iterations=radius)[radius:-radius, radius:-radius]
        found[view] = ~_without_specks(~closed, ndimage.label(~closed), closed.sum())
    return found, level


def _without_specks(inside: np.ndarray, labelled: tuple[np.ndarray, int], whole: float | None = None) -> np.ndarray:
    """Parts of at least ``SPECK`` of the whole, which is the largest part's area unless given."""
    labels, count = labelled
    if count == 0:
        return inside
    area = np.bincount(labels.flat, minlength=count + 1)
    area[0] = 0
    return (area >= SPECK * (area.max() if whole is None else whole))[labels] & inside


def _read(file: Path) -> np.ndarray:
    """``[H, W, C]`` float32 in [0, 1]."""
    image = read_image(file)
    return image.astype(np.float32) / (np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0)


def _given(folder: Path, files: Sequence[Path]) -> np.ndarray:
    if not folder.is_dir():
        raise UserError(f"{folder}: --masks is a folder with a picture for each view")
    masks = listed([folder])
    by_stem = {mask.stem: mask for mask in masks}
    chosen = [by_stem.get(file.stem) for file in files]
    if None in chosen:
        if len(masks) != len(files):
            raise UserError(
                f"{folder}: {len(masks)} silhouettes for {len(files)} pictures, and names that do not agree"
            )
        chosen = masks
    found = [read_mask(mask).numpy() for mask in chosen]
    if len({mask.shape for mask in found}) > 1:
        raise UserError(f"{folder}: the silhouettes have several sizes; they must have the pictures'")
    return np.stack(found)


def _two_levels(colours: np.ndarray) -> bool:
    """Whether nearly all pixels are black or white, and alike in all channels: silhouettes, nothing to compare."""
    grey = colours.mean(-1)
    plain = (np.ptp(colours, -1) < 0.01) & ((grey < 0.02) | (grey > 0.98))
    return bool(plain.mean() > 0.97)
