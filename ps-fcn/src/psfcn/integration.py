"""Depth from normals: the surface whose slopes are those of the normals, within the mask, with its jumps.

Orthographic: with n_x dz/dx and so on, a surface z(x, y) has ``n_z dz/dx = -n_x`` and ``n_z dz/dy = -n_y``. In
perspective the same holds for ``z = -log D`` (D the distance along the optical axis) and
``n_z f - n_x u - n_y v`` in place of ``n_z``, with (u, v) the pixel relative to the principal point and f in pixels.

At each pixel both equations are written twice, with the neighbour before and the one behind. Where the surface is
smooth both hold; at a jump only one does, and which one, weights find by and by (bilateral normal integration: Cao et
al., "Bilateral Normal Integration", ECCV 2022, sections 3 and 4). Not in the paper that this package is of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from papershelf.errors import UserError
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg, spsolve

SHARPNESS = 2.0  # k of eq. 14: how fast a pixel decides for one side
ROUNDS = 80
SETTLED = 1e-4  # relative change of the energy at which rounds end
SOLVER_STEPS = 200  # conjugate gradients of a round, from where the round before ended
ANCHOR = 1e-8  # pulls depths to zero, so that what no equation ties down is not at infinity


@dataclass(frozen=True)
class Perspective:
    """A pinhole camera: focal length and principal point (x, y) in pixels, the first pixel's centre at 0.5."""

    focal: float
    centre: tuple[float, float]


def integrate(
    normals: np.ndarray, mask: np.ndarray, camera: Perspective | None = None, *, jumps: bool = True
) -> np.ndarray:
    """The depth of a surface from its normals.

    Args:
        normals: ``[H, W, 3]``, unit; x right, y up, z to the viewer.
        mask: ``[H, W]`` bool; parts that do not touch are integrated on their own.
        camera: None for an orthographic one.
        jumps: look for discontinuities; otherwise the surface is smooth all over the mask.

    Returns:
        ``[H, W]`` float64, NaN outside the mask. Orthographic: height towards the viewer in pixels, each part's mean 0.
        Perspective: distance D along the optical axis, each part's geometric mean 1.

    Raises:
        UserError: the sizes differ, the mask is empty, or the focal length is not positive.
    """
    if normals.shape != (*mask.shape, 3):
        raise UserError(f"normals must be {[*mask.shape, 3]} as the mask, got {list(normals.shape)}")
    if not mask.any():
        raise UserError("the mask is empty: there is nothing to integrate")
    nx, ny, nz = (normals[..., k].astype(np.float64)[mask] for k in range(3))
    if camera:
        if not camera.focal > 0:
            raise UserError(f"a focal length must be above 0 pixels, got {camera.focal}")
        rows, columns = np.nonzero(mask)
        u, v = columns + 0.5 - camera.centre[0], camera.centre[1] - rows - 0.5
        nz = nz * camera.focal - nx * u - ny * v
    z = _solve(nx, ny, nz, mask, jumps)
    labels, parts = ndimage.label(mask)
    means = ndimage.mean(z, labels[mask], np.arange(1, parts + 1))
    z -= means[labels[mask] - 1]
    result = np.full(mask.shape, np.nan)
    result[mask] = np.exp(-z) if camera else z
    return result


def _solve(nx: np.ndarray, ny: np.ndarray, nz: np.ndarray, mask: np.ndarray, jumps: bool) -> np.ndarray:
    """``z`` of the mask's pixels; eq. 10 of bilateral normal integration, by reweighted least squares."""
    number = np.full((mask.shape[0] + 2, mask.shape[1] + 2), -1)
    inner = number[1:-1, 1:-1]
    inner[mask] = np.arange(mask.sum())
    # One-sided differences towards +x, -x, +y, -y, in units of n_z; rows without a neighbour stay empty.
    ahead = [
        _difference(inner, neighbour, mask, sign * nz)
        for neighbour, sign in (
            (number[1:-1, 2:], 1),
            (number[1:-1, :-2], -1),
            (number[:-2, 1:-1], 1),
            (number[2:, 1:-1], -1),
        )
    ]
    sides = sparse.vstack(ahead).tocsr()  # [4 P, P]
    there = np.concatenate([np.diff(side.indptr) > 0 for side in ahead]).astype(np.float64)
    slopes = np.concatenate([-nx, -nx, -ny, -ny])
    weights = 0.5 * there
    z = _least_squares(sides, weights, slopes, None)
    if not jumps:
        return z
    energy = float((weights * (sides @ z - slopes) ** 2).sum())
    for _ in range(ROUNDS):
        right, left, up, down = np.split((sides @ z) ** 2, 4)
        x, y = _sigmoid(left - right), _sigmoid(down - up)  # eq. 11: the side with the smaller slope counts
        weights = np.concatenate([x, 1 - x, y, 1 - y]) * there
        z = _least_squares(sides, weights, slopes, z)
        before, energy = energy, float((weights * (sides @ z - slopes) ** 2).sum())
        if abs(before - energy) <= SETTLED * before:
            break
    return z


def _difference(inner: np.ndarray, neighbour: np.ndarray, mask: np.ndarray, scale: np.ndarray) -> sparse.csr_array:
    """``scale * (z of the neighbour - z)`` for each of the mask's pixels that has one."""
    here, there = inner[mask], neighbour[mask]
    rows = here[there >= 0]
    values = scale[rows]
    entries = np.concatenate([values, -values])
    columns = np.concatenate([there[rows], rows])
    return sparse.csr_array((entries, (np.concatenate([rows, rows]), columns)), (len(here), len(here)))


def _least_squares(
    sides: sparse.csr_array, weights: np.ndarray, slopes: np.ndarray, start: np.ndarray | None
) -> np.ndarray:
    matrix = (sides.T @ sparse.diags_array(weights) @ sides + ANCHOR * sparse.eye_array(sides.shape[1])).tocsc()
    right = sides.T @ (weights * slopes)
    if start is None:
        return np.atleast_1d(spsolve(matrix, right))
    scaling = sparse.diags_array(1 / matrix.diagonal())
    return cg(matrix, right, x0=start, rtol=1e-5, maxiter=SOLVER_STEPS, M=scaling)[0]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(SHARPNESS * x, -50, 50)))
