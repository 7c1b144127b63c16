"""What most often goes wrong with photometric stereo data, found in the numbers themselves and said in one line each.

Not in the paper. None of these stops anything: the functions return sentences for the user, or None.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from psfcn.classical import solve

FEW_LEVELS = 48  # distinct values of an 8-bit photograph of a lit object are more
SATURATED_SHARE = 0.05
STEEPEST = 0.35  # n_z below which slopes are left out: they say little but noise
SURE = 0.8  # one explanation must leave less than this share of the other's misfit
SURE_OF_GAMMA = 0.87
SRGB_POWER = 2.2
PIXELS = 5_000  # looked at, at most


def coarse_levels(images: np.ndarray, mask: np.ndarray, dtype: np.dtype) -> str | None:
    """16-bit data that an earlier program read as 8 bits: ``images`` as stored, ``[Q, H, W, 3]`` of ``dtype``."""
    if dtype != np.uint8 or not mask.any():
        return None
    inside = images[:, mask]
    levels = np.unique(inside)
    if len(levels) < FEW_LEVELS and inside.max() < 128:
        return (
            f"the images hold only {len(levels)} grey levels (0 to {inside.max()} of 255): they look like 16-bit data "
            "cut down to 8 bits, which costs tens of degrees; use the original 16-bit files"
        )
    return None


def saturated(images: np.ndarray, mask: np.ndarray, top: float) -> str | None:
    """Overexposed pixels: ``images`` as stored, ``top`` the largest number the file can hold."""
    share = float((images[:, mask] >= top).any(-1).mean()) if mask.any() else 0.0
    if share > SATURATED_SHARE:
        return f"{100 * share:.0f} % of the object's pixels are overexposed; photograph with a shorter exposure"
    return None


def gamma_encoded(images: np.ndarray, lights: np.ndarray, mask: np.ndarray) -> str | None:
    """Images that a Lambertian surface explains clearly better after undoing a display's gamma.

    Args:
        images: ``[Q, H, W, 3]``, taken to be linear.
        lights: ``[Q, 3]``, unit.
        mask: ``[H, W]`` bool.
    """
    mask = _fewer(mask)
    if len(images) < 6 or not mask.any():  # too few equations for their misfit to say much
        return None
    plain = _misfit(images, lights, mask)
    undone = _misfit(np.clip(images, 0, None) ** SRGB_POWER, lights, mask)
    if undone < SURE_OF_GAMMA * plain:
        return (
            "the images look gamma encoded, as cameras' JPEGs and most PNGs are, and photometric stereo needs linear "
            "light; pass --gamma srgb, or export linear 16-bit files from the raw photographs"
        )
    return None


def flipped_axes(images: np.ndarray, lights: np.ndarray, mask: np.ndarray) -> str | None:
    """Lights whose y points down (or x to the left): the normals they give are then of no surface.

    The slopes p = dz/dx and q = dz/dy of a surface have dp/dy = dq/dx. Lights with one axis turned round give slopes
    with that one's sign turned round, and the two sides differ by the sign instead.
    """
    if mask.sum() < 64:
        return None
    normals = solve(images, lights, mask, "trimmed").normals
    steep = normals[..., 2] < STEEPEST
    z = np.where(steep, 1, normals[..., 2])
    p = ndimage.gaussian_filter(np.where(steep, 0, -normals[..., 0] / z), 1)
    q = ndimage.gaussian_filter(np.where(steep, 0, -normals[..., 1] / z), 1)
    good = ndimage.binary_erosion(mask & ~steep, iterations=3)
    if good.sum() < 64:
        return None
    p_y, q_x = -np.gradient(p, axis=0)[good], np.gradient(q, axis=1)[good]  # rows go down, y goes up
    as_given, turned = np.abs(p_y - q_x).mean(), np.abs(p_y + q_x).mean()
    if turned < SURE * as_given:
        inward = _inward(mask, normals)
        axis, looks = ("x", "to the left") if inward[0] > inward[1] else ("y", "down")
        return (
            f"with these lights the normals belong to no surface, and with {axis} turned round they do: the lights' "
            f"{axis} seems to point {looks}; pass --flip-lights {axis}"
        )
    return None


def not_unit(lights: np.ndarray) -> str | None:
    """Directions ``[Q, 3]`` whose lengths differ from 1."""
    lengths = np.linalg.norm(lights, axis=1)
    if np.abs(lengths - 1).max() < 0.02:
        return None
    return (
        f"the light directions are not of unit length ({lengths.min():.3g} to {lengths.max():.3g}): they were "
        "normalised; positions of near lights are not directions"
    )


def pointing_away(lights: np.ndarray) -> str | None:
    """Directions ``[Q, 3]`` of which most have z below 0."""
    behind = int((lights[:, 2] < 0).sum())
    if behind <= len(lights) / 2:
        return None
    return (
        f"{behind} of {len(lights)} lights point away from the viewer (z < 0), where directions go from the object to "
        "the light; pass --flip-lights z if z points into the picture, or xyz if they go from the light to the object"
    )


def _misfit(images: np.ndarray, lights: np.ndarray, mask: np.ndarray) -> float:
    """What a Lambertian surface leaves unexplained, as a share of how much the lights change: median over the pixels.

    A share of the change and not of the brightness, since a root makes all changes smaller.
    """
    values = images[:, mask].mean(-1)  # [Q, P]
    shading = np.clip(lights @ solve(images, lights, mask, "l1").normals[mask].T, 0, None)
    albedo = (values * shading).sum(0) / np.clip((shading**2).sum(0), 1e-12, None)
    change = np.abs(values - np.median(values, 0)).mean(0)
    return float(np.median(np.abs(values - albedo * shading).mean(0) / np.clip(change, 1e-12, None)))


def _inward(mask: np.ndarray, normals: np.ndarray) -> tuple[float, float]:
    """How much the normals' x and y point inwards at the outline, on average: a solid's point outwards."""
    rim = mask & ~ndimage.binary_erosion(mask, iterations=3)
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), 3)
    towards = np.gradient(smooth, axis=1)[rim], -np.gradient(smooth, axis=0)[rim]
    return float((towards[0] * normals[rim][:, 0]).mean()), float((towards[1] * normals[rim][:, 1]).mean())


def _fewer(mask: np.ndarray) -> np.ndarray:
    """At most so many of the mask's pixels, evenly."""
    inside = np.flatnonzero(mask)
    fewer = np.zeros(mask.size, bool)
    fewer[inside[:: -(-len(inside) // PIXELS) or 1]] = True
    return fewer.reshape(mask.shape)
