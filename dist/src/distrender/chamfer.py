"""How far two surfaces are apart: DeepSDF's Chamfer distance between points spread evenly over either.

DeepSDF, section 6 and supplement: the sum of both directions' mean *squared* distance to the nearest point, of 30,000
points on each surface; tables give it times 1000, and so does DIST's table of shape completion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from papershelf.errors import UserError
from torch import Tensor

from distrender.sampling import on_triangles, surface_points

POINTS = 30_000  # DeepSDF, supplement: on either surface


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance from the points of ``a`` to the nearest of ``b``, plus that from ``b`` to ``a``.

    Args:
        a: ``[N, 3]``.
        b: ``[M, 3]``, in the same units.

    Returns:
        Squared units of the points; DeepSDF's tables show a thousand times this.

    Raises:
        UserError: one holds no points, or something that is none.
    """
    from scipy.spatial import cKDTree

    for points in (a, b):
        if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
            raise UserError(f"distances are between finite points [N, 3], at least one, got {list(points.shape)}")
    there, _ = cKDTree(b).query(a)
    back, _ = cKDTree(a).query(b)
    return float(np.square(there).mean() + np.square(back).mean())


def surface_samples(
    shape: Callable[[Tensor], Tensor] | tuple[np.ndarray, np.ndarray],
    count: int = POINTS,
    seed: int = 0,
    resolution: int = 96,
) -> np.ndarray:
    """``count`` points ``[count, 3]`` spread evenly over a surface.

    Args:
        shape: a signed distance function, float32 points ``[N, 3]`` to ``[N]``, whose zero set within [-1, 1]^3 is
            meant; or a mesh, vertices ``[V, 3]`` and faces ``[F, 3]``.
        count: how many.
        seed: of the random numbers.
        resolution: samples along each axis of the grid on which a function's surface is looked for.

    Raises:
        UserError: there is no surface.
    """
    rng = np.random.default_rng(seed)
    if callable(shape):
        return surface_points(shape, count, rng, resolution)
    return on_triangles(*shape, count, rng)
