"""Photographs of one object under different lights, from whatever layout they come in.

============================ ==============================================================================
layout                       what tells it
============================ ==============================================================================
DiLiGenT object              ``filenames.txt`` beside the images, ``light_directions.txt``,
                             ``light_intensities.txt``, ``mask.png``, ``Normal_gt.mat``
SDPS object                  ``names.txt`` beside the images, ``mask.png``
SDM-UniPS object             ``NAME.data`` with ``L*`` images
list file                    a text file: how many images, their paths, perhaps the mask's (University of Washington)
.lp file                     how many, then ``file x y z`` (reflectance transformation imaging)
folder                       its images in natural order; ``*mask*`` is the mask
============================ ==============================================================================

Images come as linear RGB float32, divided by their lights' intensities; axes x right, y up, z to the viewer.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.images import read_image

from psfcn import pitfalls
from psfcn.light_files import natural_order, read_intensities, read_lights
from psfcn.masks import propose

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".exr", ".bmp", ".webp", ".tga")
LISTS = ("filenames.txt", "names.txt")
NOT_PHOTOGRAPHS = ("mask", "normal", "albedo", "depth", "baked", "roughness", "metallic")  # in a name: made from them
DIRECTIONS = ("light_directions.txt", "lights.txt", "lights.lp", "light_directions.yml")


@dataclass(frozen=True)
class ReadOptions:
    """How files are understood.

    Args:
        lights: file of light directions; None for the layout's own, if it has one.
        intensities: file of light intensities; None for the layout's own.
        mask: picture of the object, white; None for the layout's own, or else a proposed one.
        gamma: what the images were encoded with: "linear", "srgb", or a power such as "2.2".
        flip_lights: axes of the lights whose sign is turned round, such as "y" or "xyz".
    """

    lights: Path | None = None
    intensities: Path | None = None
    mask: Path | None = None
    gamma: str = "linear"
    flip_lights: str = ""


@dataclass(frozen=True)
class Capture:
    """One object under Q lights.

    Attributes:
        images: ``[Q, H, W, 3]`` float32, linear RGB, divided by the lights' intensities.
        mask: ``[H, W]`` bool.
        names: of the images.
        lights: ``[Q, 3]`` float64, unit directions to the lights, or None where nothing tells.
        normals: ``[H, W, 3]`` float32, the true ones, unit, or None.
        notes: what the user should know about the data, a line each.
    """

    images: np.ndarray
    mask: np.ndarray
    names: tuple[str, ...]
    lights: np.ndarray | None = None
    normals: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def take(self, which: Sequence[int]) -> Capture:
        """Only these images."""
        which = list(which)
        lights = None if self.lights is None else self.lights[which]
        names = tuple(self.names[k] for k in which)
        return dataclasses.replace(self, images=self.images[which], lights=lights, names=names)


def read(path: Path | str, options: ReadOptions = ReadOptions()) -> Capture:
    """Read a capture, and look for what most often goes wrong (:mod:`psfcn.pitfalls`).

    Args:
        path: a folder, a list file or an ``.lp`` file; see the module.
        options: what the layout does not say.

    Raises:
        UserError: something is missing or damaged, or images, lights and mask do not fit each other.
    """
    path = Path(path)
    files, lights_file, mask_file = files_of(path, options.mask)
    lights_file = options.lights or lights_file
    stored = _load_all(files)
    top = float(np.iinfo(stored.dtype).max) if stored.dtype.kind == "u" else 1.0
    images = linear(stored.astype(np.float32) / np.float32(top), options.gamma)
    notes: list[str] = []

    intensities_file = options.intensities or _beside(files[0], "light_intensities.txt")
    if intensities_file:
        intensities = read_intensities(intensities_file)
        _same_count(intensities_file, len(intensities), len(files))
        images /= intensities[:, None, None].astype(np.float32)
    mask = read_mask(mask_file, images.shape[1:3]) if mask_file else propose(images)
    if not mask.any():
        raise UserError(f"{mask_file or path}: the mask is empty; give a picture with the object in white by --mask")
    if not mask_file:
        share = 100 * mask.mean()
        notes.append(f"no mask was given; one was proposed from the brightness ({share:.0f} % of the picture)")

    lights = None
    if lights_file:
        found = read_lights(lights_file)
        directions = in_order(lights_file, found.directions, found.names, files)
        lights, said = unit_directions(directions, options.flip_lights)
        notes += said
    said = [
        pitfalls.coarse_levels(stored, mask, stored.dtype),
        pitfalls.saturated(stored, mask, top),
    ]
    if lights is not None and len(files) >= 3 and np.linalg.matrix_rank(lights, 1e-3) == 3:
        if options.gamma == "linear":
            said.append(pitfalls.gamma_encoded(images, lights, mask))
        said.append(pitfalls.flipped_axes(images, lights, mask))
    notes += [line for line in said if line]
    return Capture(
        images, mask, tuple(file.name for file in files), lights, _true_normals(files[0], mask), tuple(notes)
    )


def read_objects(path: Path | str) -> list[tuple[str, Path]]:
    """The objects of a data set's folder: names and folders, from ``objects.txt`` or from what is there.

    ``pmsData`` of DiLiGenT has folders ``ballPNG`` and so on; SDPS data sets list theirs in ``objects.txt``.

    Raises:
        UserError: there is no object.
    """
    path = Path(path)
    listed = path / "objects.txt"
    if listed.exists():
        folders = [path / name for name in _read_lines(listed)]
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(f"{listed} names {missing[0].name}, and there is no folder {missing[0]}")
    else:
        folders = sorted(
            (child for child in path.iterdir() if child.is_dir() and any((child / name).exists() for name in LISTS))
            if path.is_dir()
            else (),
            key=lambda child: natural_order(child.name),
        )
    if not folders:
        raise UserError(f"{path}: no objects here; expected folders with images and {' or '.join(LISTS)}")
    return [(folder.name.removesuffix("PNG"), folder) for folder in folders]


def linear(images: np.ndarray, gamma: str) -> np.ndarray:
    """Undo an encoding of values in [0, 1]: "linear", "srgb" (IEC 61966-2-1), or a power such as "2.2".

    Raises:
        UserError: it is none of these.
    """
    if gamma == "linear":
        return images
    if gamma == "srgb":
        return np.where(images <= 0.04045, images / 12.92, ((images.clip(0) + 0.055) / 1.055) ** 2.4).astype(np.float32)
    try:
        power = float(gamma)
    except ValueError:
        power = 0.0
    if not 0.1 <= power <= 10:
        raise UserError(f"gamma must be linear, srgb or a power such as 2.2, got {gamma!r}")
    return (images.clip(0) ** np.float32(power)).astype(np.float32)


def read_photograph(path: Path) -> np.ndarray:
    """``[H, W, 3]`` as the file stores it: uint8, uint16 or float32; grey is repeated, alpha left out.

    Raises:
        UserError: the file cannot be read.
    """
    image = _read_targa(path) if path.suffix.lower() == ".tga" else read_image(path)
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image[..., :3]


def read_alike(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Photographs as stored, see :func:`read_photograph`, one after the other.

    Raises:
        UserError: a file cannot be read, differs in size or kind from the first, or holds what is not finite.
    """
    kind = None
    for file in files:
        image = read_photograph(file)
        own = f"{image.shape[1]}x{image.shape[0]} {image.dtype}"
        kind = kind or own
        if own != kind:
            raise UserError(f"{file} is {own} and {files[0].name} {kind}; all images must be alike")
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise UserError(f"{file} holds numbers that are not finite; repair it or leave it out")
        yield image


def files_of(path: Path, mask: Path | None = None) -> tuple[list[Path], Path | None, Path | None]:
    """The photographs of a layout, and the layout's own file of light directions and its mask, where it has them.

    Args:
        path: as in :func:`read`.
        mask: one to take in place of the layout's own.

    Raises:
        UserError: there are no photographs.
    """
    files, lights, own = _layout(path)
    mask = mask or own
    if mask:  # which may lie among the photographs under any name
        files = [file for file in files if file.resolve() != mask.resolve()]
    if not files:
        raise UserError(f"{path}: no images here beside the mask; expected the object under each light")
    return files, lights, mask


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """``[H, W]`` bool from a picture with the object in white.

    Raises:
        UserError: the file cannot be read, or is of another size.
    """
    picture = read_photograph(path)
    if picture.shape[:2] != size:
        raise UserError(
            f"{path} is {picture.shape[1]}x{picture.shape[0]} and the images {size[1]}x{size[0]}; make them alike"
        )
    return picture.max(-1) > (np.iinfo(picture.dtype).max / 2 if picture.dtype.kind == "u" else 0.5)


def _layout(path: Path) -> tuple[list[Path], Path | None, Path | None]:
    """The images, and the layout's own files of light directions and mask, where it has them."""
    if path.is_dir():
        inner = sorted(path.glob("*.data")) if not any((path / name).exists() for name in LISTS) else []
        if len(inner) == 1 and inner[0].is_dir():
            path = inner[0]
        listed = next((path / name for name in LISTS if (path / name).exists()), None)
        if listed:
            files = [path / name for name in _read_lines(listed)]
        else:
            files = [file for file in path.iterdir() if file.suffix.lower() in IMAGES and _is_photograph(file)]
            files.sort(key=lambda file: natural_order(file.name))
        lights = next((path / name for name in DIRECTIONS if (path / name).exists()), None)
        if lights is None and len(lp := sorted(path.glob("*.lp"))) == 1:
            lights = lp[0]
        masks = [file for file in path.iterdir() if file.suffix.lower() in IMAGES and "mask" in file.stem.lower()]
        masks.sort(key=lambda file: (len(file.name), file.name))
        mask = masks[0] if masks else None
    elif path.suffix.lower() == ".lp":
        files = [_found(path.parent, name) for name in read_lights(path).names]
        lights, mask = path, None
    elif path.suffix.lower() == ".txt":
        files = [_found(path.parent, name) for name in _read_lines(path) if not name.isdigit()]
        masks = [file for file in files if "mask" in file.name.lower()]
        files = [file for file in files if file not in masks]
        lights, mask = None, masks[0] if masks else None
    elif path.exists():
        raise UserError(f"{path}: expected a folder of images, a list of them (.txt) or an .lp file")
    else:
        raise UserError(f"{path}: no such file or folder")
    if not files:
        raise UserError(f"{path}: no images here; expected files that end in one of {', '.join(IMAGES)}")
    return files, lights, mask


def _is_photograph(file: Path) -> bool:
    return not any(word in file.stem.lower() for word in NOT_PHOTOGRAPHS)


def _found(folder: Path, name: str) -> Path:
    """A listed file, whose path may begin with folders that are not here."""
    parts = Path(name.replace("\\", "/")).parts
    tries = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((file for file in tries if file.exists()), tries[0])


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file; expected a list of images") from error


def _load_all(files: list[Path]) -> np.ndarray:
    images = None
    for k, image in enumerate(read_alike(files)):
        images = np.empty((len(files), *image.shape), image.dtype) if images is None else images
        images[k] = image
    return images


def _read_targa(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError  # OpenCV reads no TGA

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is damaged or no image'}"
        ) from error


def _beside(image: Path, name: str) -> Path | None:
    file = image.parent / name
    return file if file.exists() else None


def _same_count(path: Path, lights: int, images: int) -> None:
    if lights != images:
        raise UserError(f"{path} has {lights} lights and there are {images} images; give one line for each image")


def in_order(path: Path, directions: np.ndarray, names: tuple[str, ...], files: list[Path]) -> np.ndarray:
    """A file that names its images may list them in another order, or more of them."""
    if names:
        rows = {Path(name.replace("\\", "/")).stem.lower(): k for k, name in enumerate(names)}
        missing = [file for file in files if file.stem.lower() not in rows]
        if missing:
            raise UserError(f"{path} has no light for {missing[0].name}; add its line, or leave the image out")
        return directions[[rows[file.stem.lower()] for file in files]]
    _same_count(path, len(directions), len(files))
    return directions


def unit_directions(lights: np.ndarray, flip: str = "") -> tuple[np.ndarray, list[str]]:
    """Unit directions, and what is to be said of them."""
    if set(flip) - set("xyz"):
        raise UserError(f"--flip-lights takes letters of xyz, got {flip!r}")
    lights = lights * [-1.0 if axis in flip else 1.0 for axis in "xyz"]
    lengths = np.linalg.norm(lights, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise UserError(f"light {int((lengths == 0).argmax()) + 1} has no direction: all its numbers are 0")
    notes = [pitfalls.not_unit(lights), pitfalls.pointing_away(lights)]
    return lights / lengths, [line for line in notes if line]


def _true_normals(image: Path, mask: np.ndarray) -> np.ndarray | None:
    """``Normal_gt.mat`` of DiLiGenT beside the images, made unit."""
    file = _beside(image, "Normal_gt.mat")
    if file is None:
        return None
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:  # NotImplementedError is how loadmat refuses version 7.3, which is HDF5
        normals = loadmat(file)["Normal_gt"].astype(np.float32)
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, zlib.error, MatReadError) as error:
        raise UserError(f"cannot read {file}: expected a MAT file with Normal_gt") from error
    if normals.shape != (*mask.shape, 3):
        raise UserError(f"{file}: Normal_gt is {list(normals.shape)}, expected {[*mask.shape, 3]} as the images")
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(mask[..., None] & (length > 0), normals / np.where(length > 0, length, 1), 0)
