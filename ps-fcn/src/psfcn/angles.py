"""Angles between directions: the field's figure for normals and for lights."""

from __future__ import annotations

import numpy as np
from papershelf.errors import UserError


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles in degrees between vectors ``[..., 3]`` of any lengths; NaN where one of them is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))
    return np.where((a != 0).any(-1) & (b != 0).any(-1), angle, np.nan)


def mean_degrees(normals: np.ndarray, true: np.ndarray, mask: np.ndarray) -> float:
    """The mean angle in degrees between normals ``[H, W, 3]`` over the mask, where both are known.

    Raises:
        UserError: they are nowhere.
    """
    angle = degrees(normals[mask], true[mask])
    if np.isnan(angle).all():
        raise UserError("the true normals are zero all over the mask; do they belong to these images?")
    return float(np.nanmean(angle))
