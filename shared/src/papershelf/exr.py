"""OpenEXR files as float32 arrays (OpenCV's wheels hold no EXR since version 5).

Read: the channels ``R G B A``, ``R G B`` or ``Y`` of the first part, half or float. Written: float,
losslessly compressed (ZIP). Values are handed through as they are, infinities and NaN included;
they are scene-linear by the format's convention, which nothing here enforces.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from papershelf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"\x76\x2f\x31\x01"
NOT_PLAIN = 0x200 | 0x800 | 0x1000  # version flags: tiled, deep, multi-part
GROUPS = {1: "Y", 3: "RGB", 4: "RGBA"}


def read(path: Path, data: bytes) -> np.ndarray:
    """The image in an EXR file, ``[H, W, C]`` float32, C = 1 (Y), 3 (RGB) or 4 (RGBA).

    Args:
        path: the file.
        data: its content, to see whether it is whole.

    Raises:
        UserError: it is damaged, has other channels, or its pixels do not fill the picture.
    """
    import numpy as np
    import OpenEXR

    _check_whole(path, data)
    try:
        with OpenEXR.File(str(path)) as file:
            header, channels = dict(file.header()), dict(file.channels())  # closing empties the file's own
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot read {path}: the EXR is damaged ({error})") from error
    if not np.array_equal(header["dataWindow"], header["displayWindow"]):
        raise UserError(
            f"{path}: its pixels (dataWindow) do not fill the picture (displayWindow) exactly; write the whole picture"
        )
    for name in reversed(GROUPS.values()):
        if name in channels:
            pixels = channels[name].pixels.astype(np.float32, copy=False)
            return pixels[..., None] if pixels.ndim == 2 else pixels
    raise UserError(f"{path}: expected channels RGBA, RGB or Y, got {', '.join(channels)}; export one of these")


def write(path: Path, image: np.ndarray) -> None:
    """Write ``image``, ``[H, W, C]`` float32, C = 1, 3 or 4, as an EXR file."""
    import numpy as np
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    pixels = np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
    with OpenEXR.File(header, {GROUPS[image.shape[2]]: pixels}) as file:
        file.write(str(path))


def _check_whole(path: Path, data: bytes) -> None:
    """That a plain file holds every row it lists; the library reports damage on stdout and goes on.

    A plain file (one part, rows) is a magic number, a version, attributes (name, type, size, value)
    up to an empty name, a table of 64-bit offsets, and at each a block of rows: its y, its size, its data.
    """
    try:
        (version,) = struct.unpack_from("<I", data, 4)
        if version & NOT_PLAIN:
            return
        at = 8
        while data[at] != 0:
            at = data.index(b"\0", data.index(b"\0", at) + 1) + 1
            at += 4 + struct.unpack_from("<I", data, at)[0]
        at += 1
        table_end = len(data)
        while at < table_end:
            (block,) = struct.unpack_from("<Q", data, at)
            if block == 0 or block + 8 + struct.unpack_from("<I", data, block + 4)[0] > len(data):
                raise ValueError
            at, table_end = at + 8, min(table_end, block)  # the lowest block begins where the table ends
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"cannot read {path}: the EXR is damaged or cut off") from error
