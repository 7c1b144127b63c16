"""Image files as arrays, and back: 8 and 16 bits, floating point, alpha, nothing converted silently.

An array is ``[H, W, C]`` with the samples as the file stores them:

====================  =======================  ===============================================
file                  dtype                    channels C
====================  =======================  ===============================================
.png                  uint8, uint16            1 (grey), 3 (RGB), 4 (RGBA, alpha not multiplied in)
.jpg .jpeg            uint8                    1, 3
.tif .tiff            uint8, uint16, float32   1, 3, 4; the first page
.exr                  float32 (half is read)   1, 3, 4; see :mod:`papershelf.exr`
.bmp .webp            uint8                    1, 3, 4; read only
====================  =======================  ===============================================

A JPEG or TIFF that says it was taken with the camera turned is turned upright (EXIF orientation);
PNG and WebP are taken as they lie. Colour profiles are neither applied nor kept. OpenCV decodes and
encodes; its BGR order does not leave this module.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from papershelf import exr
from papershelf.errors import UserError
from papershelf.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

# What write_image accepts: suffix -> (dtypes, channels).
WRITABLE = {
    ".png": (("uint8", "uint16"), (1, 3, 4)),
    ".jpg": (("uint8",), (1, 3)),
    ".jpeg": (("uint8",), (1, 3)),
    ".tif": (("uint8", "uint16", "float32"), (1, 3, 4)),
    ".tiff": (("uint8", "uint16", "float32"), (1, 3, 4)),
    ".exr": (("float32",), (1, 3, 4)),
}
READABLE = (*WRITABLE, ".bmp", ".webp")

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path | str) -> np.ndarray:
    """The image in a file; what kind of file it is, its content says and not its name.

    Damage inside a PNG is always found (its checksums), inside the other formats where it stops the
    decoder: a JPEG with a few bad bytes shows them.

    Returns:
        ``[H, W, C]``, C = 1 (grey), 3 (RGB) or 4 (RGBA); uint8, uint16 or float32, as stored.

    Raises:
        UserError: there is no such file, or it is damaged, cut off, or no image of a known kind.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; expected an image file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return decode_image(data, path)


def decode_image(data: bytes, path: Path | str) -> np.ndarray:
    """The image that the bytes of a file make, such as one out of an archive.

    Args:
        data: all of the file.
        path: what messages call it.

    Returns:
        As :func:`read_image`.

    Raises:
        UserError: the bytes are damaged, cut off, or no image of a known kind.
    """
    path = Path(path)
    if data.startswith(exr.MAGIC):
        return exr.read(path, data)
    image = _decode(path, data)
    if image.dtype.name not in ("uint8", "uint16", "float32") or image.shape[2] not in (1, 3, 4):
        raise UserError(
            f"{path}: {image.shape[2]} channels of {image.dtype}; expected 1, 3 or 4 channels of uint8, uint16 "
            "or float32; convert it"
        )
    return _swap_red_and_blue(image)


def write_image(path: Path | str, image: np.ndarray, *, quality: int = 95) -> None:
    """Write an image; the suffix decides the format and the dtype the depth. Whole or not at all.

    Args:
        path: ends in .png, .jpg, .jpeg, .tif, .tiff or .exr.
        image: ``[H, W, C]``, C = 1, 3 (RGB) or 4 (RGBA), of a dtype the format holds (module's table).
        quality: of a JPEG, 1 to 100; the other formats are lossless.

    Raises:
        UserError: the format cannot hold such an array, or the path cannot be written to.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(f"cannot write {path}: expected a name that ends in one of {', '.join(WRITABLE)}")
    dtypes, channels = WRITABLE[suffix]
    if image.ndim != 3 or 0 in image.shape or image.shape[2] not in channels or image.dtype.name not in dtypes:
        raise UserError(
            f"cannot write {path}: {suffix} holds [H, W, C] with C of {', '.join(map(str, channels))} "
            f"and {' or '.join(dtypes)}, got {list(image.shape)} and {image.dtype}"
        )
    with atomic_path(path) as part:
        if suffix == ".exr":
            exr.write(part, image)
            return
        cv2 = _cv2()
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
        try:
            _, data = cv2.imencode(suffix, _swap_red_and_blue(image), options)
        except cv2.error as error:
            raise UserError(f"cannot write {path}: {error.err}") from error
        part.write_bytes(data)


def _decode(path: Path, data: bytes) -> np.ndarray:
    import numpy as np

    cv2 = _cv2()
    flags = cv2.IMREAD_UNCHANGED
    if data.startswith(JPEG):  # no alpha to lose, and this flag heeds the orientation
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    elif data.startswith(PNG):
        data = b"".join(_essential_chunks(path, data))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise UserError(f"cannot read {path}: {error.err}") from error
    if image is None:
        raise UserError(
            f"cannot read {path}: it is damaged, cut off or no image; expected one of {', '.join(READABLE)}"
        )
    return image[..., None] if image.ndim == 2 else image


def _essential_chunks(path: Path, data: bytes) -> Iterator[bytes]:
    """A PNG without the chunks that do not make pixels, each of the others checked by its CRC.

    libpng writes its complaints to stderr, past OpenCV's log: about damage, which is found here
    first, and about profiles and dates, which nobody reads here.
    """
    yield PNG
    at = len(PNG)
    while at < len(data):
        if at + 12 > len(data):
            break
        (size,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + size
        if end > len(data) or struct.pack(">I", zlib.crc32(data[at + 4 : end - 4])) != data[end - 4 : end]:
            break
        critical = not kind[0] & 32  # an upper-case letter
        if critical or kind == b"tRNS":
            yield data[at:end]
        if kind == b"IEND":
            return
        at = end
    raise UserError(f"cannot read {path}: the PNG is damaged or cut off at byte {at} of {len(data)}")


def _swap_red_and_blue(image: np.ndarray) -> np.ndarray:
    """BGR(A) <-> RGB(A), contiguous; grey stays."""
    cv2 = _cv2()
    if image.shape[2] == 1:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _cv2():
    """OpenCV, imported late (0.1 s) and told to keep its warnings to itself: errors are raised here."""
    import cv2

    if "OPENCV_LOG_LEVEL" not in os.environ:  # somebody may have imported it before
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
