"""Files of light directions and intensities, in the forms that photometric stereo data come in.

=============================== ===========================================================================
file                            lines
=============================== ===========================================================================
DiLiGenT light_directions.txt   ``x y z`` (also as .csv, and .npy ``[Q, 3]``)
UW lights.txt                   how many, then ``x y z``
.lp                             how many, then ``file x y z`` (reflectance transformation imaging)
.yml .yaml .xml of OpenCV       a matrix of Q x 3 or 3 x Q
light_intensities.txt           ``r g b``, or one number for all channels
=============================== ===========================================================================

Directions point from the object to the light: x right, y up, z to the viewer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.files import atomic_path

OPENCV = (".yml", ".yaml", ".xml")


@dataclass(frozen=True)
class Lights:
    """Directions ``[Q, 3]`` as the file has them, and the image each belongs to, where the file says."""

    directions: np.ndarray
    names: tuple[str, ...] = ()


def read_lights(path: Path | str) -> Lights:
    """Light directions from any of the module's forms.

    Raises:
        UserError: the file cannot be read, or a line of it is no direction.
    """
    path = Path(path)
    if path.suffix.lower() in OPENCV:
        return Lights(_opencv_matrix(path))
    if path.suffix.lower() == ".npy":
        return Lights(_checked(path, _load_npy(path), (3,)))
    rows = [(number, line.replace(",", " ").split()) for number, line in enumerate(_lines(path), 1)]
    rows = [(number, words) for number, words in rows if words and not words[0].startswith("#")]
    if not rows:
        raise UserError(f"{path} is empty; expected one light direction `x y z` a line")
    count = None
    if len(rows[0][1]) == 1:
        number, (word,) = rows.pop(0)
        if not word.isdigit():
            raise UserError(f"{path}:{number}: expected how many lights follow, or `x y z`, got {word!r}")
        count = int(word)
    names, directions = [], []
    for number, words in rows:
        *name, x, y, z = words if len(words) >= 3 else (*words, "", "", "")
        try:
            directions.append([float(x), float(y), float(z)])
        except ValueError:
            raise UserError(f"{path}:{number}: expected `x y z` or `file x y z`, got {' '.join(words)!r}") from None
        names.append(" ".join(name))
    if count is not None and count != len(directions):
        raise UserError(f"{path} announces {count} lights and lists {len(directions)}; correct its first line")
    return Lights(_checked(path, np.array(directions), (3,)), tuple(names) if all(names) else ())


def read_intensities(path: Path | str) -> np.ndarray:
    """Light intensities ``[Q, 3]``, linear RGB; a file with one number a line gives the same to all channels.

    Raises:
        UserError: the file cannot be read, or holds other than one or three positive numbers a line.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        values = _load_npy(path)
    else:
        try:
            values = np.array(
                [[float(word) for word in line.replace(",", " ").split()] for line in _lines(path) if line]
            )
        except ValueError:
            raise UserError(f"{path}: expected lines of `r g b` or of one number, each line alike") from None
    values = _checked(path, values[:, None] if values.ndim == 1 else values, (1, 3))
    if (values <= 0).any():
        raise UserError(f"{path}: light {int((values <= 0).any(1).argmax()) + 1} has an intensity that is not above 0")
    return np.broadcast_to(values, (len(values), 3)).copy()


def write_lights(path: Path | str, directions: np.ndarray, names: tuple[str, ...] = ()) -> None:
    """Write directions ``[Q, 3]``: ``.lp`` with the images' names, OpenCV's .yml, .yaml or .xml, or ``x y z`` lines.

    Raises:
        UserError: an ``.lp`` is asked for and there is not one name for each light.
    """
    path = Path(path)
    if path.suffix.lower() in OPENCV:
        _write_opencv_matrix(path, np.asarray(directions, np.float64))
        return
    lines = [" ".join(f"{number:.8g}" for number in row) for row in directions]
    if path.suffix.lower() == ".lp":
        if len(names) != len(lines):
            raise UserError(f"{path}: an .lp file names an image for each light; choose .txt, or give the images too")
        lines = [str(len(lines)), *(f"{name} {line}" for name, line in zip(names, lines, strict=True))]
    write_text(path, lines)


def write_text(path: Path | str, lines: list[str]) -> None:
    """Write lines, atomically."""
    with atomic_path(path) as part:
        part.write_text("\n".join(lines) + "\n")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``cat.2`` before ``cat.10``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name.lower())]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file; expected lines of `x y z`") from error


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: expected a .npy array of numbers") from error


def _opencv_matrix(path: Path) -> np.ndarray:
    import cv2

    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file")
    try:
        file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
        nodes = [file.root().getNode(key) for key in file.root().keys()] if file.isOpened() else []  # noqa: SIM118
        matrices = [node.mat() for node in nodes if node.isMap()]
    except cv2.error as error:
        raise UserError(f"cannot read {path}: expected a file of OpenCV's FileStorage with a matrix") from error
    for matrix in matrices:
        if matrix is not None and matrix.ndim == 2 and 3 in matrix.shape:
            return _checked(path, matrix if matrix.shape[1] == 3 else matrix.T, (3,))
    raise UserError(f"{path}: expected a matrix of Q x 3 light directions, found none")


def _write_opencv_matrix(path: Path, matrix: np.ndarray) -> None:
    import cv2

    with atomic_path(path) as part:
        file = cv2.FileStorage(str(part), cv2.FILE_STORAGE_WRITE)
        file.write("light_directions", matrix)
        file.release()


def _checked(path: Path, values: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] not in widths or not len(values) or values.dtype.kind not in "fiu":
        wanted = " or ".join(map(str, widths))
        raise UserError(f"{path}: expected {wanted} numbers for each light, got an array of {list(values.shape)}")
    values = values.astype(np.float64)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise UserError(f"{path}: light {int(bad.argmax()) + 1} holds a number that is not finite")
    return values
