"""A mask proposed where the user gives none: what is lit by any of the lights, without holes and crumbs."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

CRUMB = 0.02  # regions smaller than this share of the largest are dropped


def propose(images: np.ndarray) -> np.ndarray:
    """The object before a dark background: ``[H, W]`` bool.

    Not in the paper, whose data sets have masks. The brightest any light makes a pixel is split in two by Otsu's
    threshold ("A threshold selection method from gray-level histograms", 1979) of its cube root, which goes with how
    light it looks: of real objects before a dimly lit cloth linear values lose the dark parts, logarithms take in the
    cloth. Small regions are dropped and holes filled.

    Args:
        images: ``[Q, H, W, 3]``, linear RGB.
    """
    from skimage.filters import threshold_otsu  # late: a third of a second

    brightest = images.max(axis=(0, 3))
    top = np.percentile(brightest, 99.5)
    if top <= 0:
        return np.zeros(brightest.shape, bool)
    levels = np.cbrt(np.clip(brightest / top, 0, 1))
    if np.ptp(levels) == 0:
        return np.ones(brightest.shape, bool)
    mask = levels > threshold_otsu(levels)
    mask = ndimage.binary_opening(mask, iterations=1)
    labels, count = ndimage.label(mask)
    if count:
        sizes = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
        mask = np.isin(labels, 1 + np.flatnonzero(sizes >= CRUMB * sizes.max()))
    return ndimage.binary_fill_holes(mask)
