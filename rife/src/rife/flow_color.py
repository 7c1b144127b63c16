"""Optical flow as colours, and in Middlebury's .flo files.

Baker, Scharstein, Lewis, Roth, Black, Szeliski, "A Database and Evaluation Methodology for Optical Flow"
(ICCV 2007, IJCV 2011): direction is a hue, length the saturation, no motion is white. The wheel has 55
hues, more of them where the eye tells more apart: 15 from red to yellow, 6 to green, 4 to cyan, 11 to
blue, 13 to magenta, 6 back to red. Motion to the right is red, downwards yellow, to the left cyan,
upwards violet.

Not in the paper: the wheel is closed (a turn is 55 steps), so that hues have no seam at "right".
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor

# Steps from each colour to the next, which changes one of R, G, B.
WHEEL = (("red", 15), ("yellow", 6), ("green", 4), ("cyan", 11), ("blue", 13), ("magenta", 6))
CORNERS = {
    "red": (1.0, 0.0, 0.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "blue": (0.0, 0.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
TOO_LONG = 0.75  # flow beyond the maximum is shown in its full hue, darkened by this
UNKNOWN = 1e9  # Middlebury marks unknown flow by larger values
FLO_TAG = b"PIEH"  # 202021.25 as a little-endian float32


def color_wheel() -> Tensor:
    """The 55 hues, ``[55, 3]`` RGB in [0, 1], from red on."""
    names = [name for name, _ in WHEEL]
    rows = []
    for (name, steps), following in zip(WHEEL, names[1:] + names[:1], strict=True):
        here, there = (torch.tensor(CORNERS[n]) for n in (name, following))
        rows += [torch.lerp(here, there, k / steps) for k in range(steps)]
    return torch.stack(rows)


def flow_to_rgb(flow: Tensor, longest: float | None = None) -> Tensor:
    """Flow as a picture.

    Args:
        flow: ``[2, H, W]``: u to the right, v downwards, in pixels. NaN and values above 1e9 are unknown: black.
        longest: the length in pixels that has full saturation; None for the longest in the picture.

    Returns:
        ``[3, H, W]`` RGB in [0, 1].
    """
    flow = flow.float()
    known = (flow.abs() < UNKNOWN).all(0)  # False for NaN
    u, v = torch.where(known, flow, 0)
    length = torch.hypot(u, v)
    unit = longest or length.max().item() or 1.0
    radius = (length / unit).clamp(max=1)
    wheel = color_wheel().to(flow.device)
    place = torch.atan2(v, u).remainder(2 * math.pi) * (len(wheel) / (2 * math.pi))
    index = place.long() % len(wheel)  # % since remainder may round up to a whole turn
    hue = torch.lerp(wheel[index], wheel[(index + 1) % len(wheel)], place.frac()[..., None]).permute(2, 0, 1)
    rgb = torch.where(length > unit * (1 + 1e-6), hue * TOO_LONG, 1 - radius * (1 - hue))
    return rgb * known


def write_flo(path: Path, flow: Tensor) -> None:
    """``[2, H, W]`` as a .flo file: tag, width, height, then u and v of each pixel in float32."""
    _, height, width = flow.shape
    with atomic_path(path) as part:
        samples = flow.permute(1, 2, 0).contiguous().cpu().numpy().astype("<f4")
        part.write_bytes(FLO_TAG + np.array([width, height], "<i4").tobytes() + samples.tobytes())


def read_flo(path: Path) -> Tensor:
    """The flow ``[2, H, W]`` of a .flo file; UserError if it is none or is cut off."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data[:4] != FLO_TAG or len(data) < 12:
        raise UserError(f"{path} is no .flo file: it must begin with {FLO_TAG.decode()}")
    width, height = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
    if width < 1 or height < 1 or len(data) != 12 + 8 * width * height:
        raise UserError(f"{path} says {width}x{height} but has {len(data)} bytes; it is damaged or cut off")
    samples = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)
    return torch.from_numpy(samples.transpose(2, 0, 1).copy())
