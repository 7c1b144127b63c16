"""A grid of signed distances whose values near the surface are to be fitted.

Only the band's values are parameters; the rest keeps what it had, so that a step costs what the surface costs and not
the volume. What is fitted stays a distance by the eikonal term and, now and then, by measuring it anew
(:func:`redistanced`); it stays smooth by the squared Laplacian and by the surface's area, whose gradient is the
surface's mean curvature.

Not in the paper, which fits latent codes only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

from distrender.grid import GridSDF
from distrender.tape import length

CORNERS = tuple((dx, dy, dz) for dz in (0, 1) for dy in (0, 1) for dx in (0, 1))


class BandedGrid:
    """Distances on a grid with those of magnitude below ``width`` samples free to change.

    Args:
        grid: a cube of distances; its values are written to.
        width: of the band on either side, in distances between samples.

    Attributes:
        numbers: ``[B]``, the leaf tensor that is fitted.
        step: the distance between samples, scene units.
    """

    def __init__(self, grid: GridSDF, width: float):
        self.grid = grid.requires_grad_(False)
        size = grid.values.shape[0]
        self.step = (grid.high - grid.low) / (size - 1)
        flat = grid.values.view(-1)
        self.band = (flat.abs() < width * self.step).nonzero()[:, 0]
        self.numbers = flat[self.band].clone().requires_grad_()
        self._place = torch.full((len(flat),), -1, dtype=torch.int32)  # of each sample among the numbers
        self._place[self.band] = torch.arange(len(self.band), dtype=torch.int32)
        around = torch.tensor([1, -1, size, -size, size * size, -size * size])
        near = (self.band[:, None] + around).clamp(0, len(flat) - 1)
        near = self._place[near].long()
        self.inner = (near >= 0).all(1).nonzero()[:, 0]  # numbers whose six neighbours are numbers too
        self._near = near[self.inner]

    def __call__(self, points: Tensor) -> Tensor:
        """What :class:`GridSDF` gives ``[N]`` at ``points`` ``[N, 3]``, differentiable in points and numbers."""
        grid, size = self.grid, self.grid.values.shape[0]
        inside = points.clamp(grid.low, grid.high)
        position = (inside - grid.low) / self.step
        cell = position.detach().nan_to_num().floor().clamp(0, size - 2)
        share = position - cell
        x, y, z = cell.long().unbind(-1)
        at = (z * size + y) * size + x
        offsets = at.new_tensor([(dz * size + dy) * size + dx for dx, dy, dz in CORNERS])
        corners = at[:, None] + offsets  # [N, 8]
        place = self._place[corners].long()
        values = grid.values.view(-1)[corners]
        values = torch.where(place >= 0, self.numbers[place.clamp(min=0)], values)
        for axis in (2, 1, 0):
            low, high = values.chunk(2, 1)
            values = low + share[:, axis, None] * (high - low)
        return values[:, 0] + length(*(points - inside).unbind(-1))

    @torch.no_grad()
    def write(self) -> None:
        """Take the numbers into the grid, which is what is traced."""
        self.grid.values.view(-1)[self.band] = self.numbers

    def regularisers(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the eikonal term, the squared Laplacian and the area over some samples, in units of the step.

        Args:
            which: ``[M]``, of ``inner``.

        Returns:
            ``(|grad f| - 1)^2``; ``(h laplacian f)^2``; and ``|grad f|`` weighted by a hat of two steps' width around
            the surface, which is the surface's area in the samples' volume.
        """
        near = self.numbers[self._near[which]] / self.step  # [M, 6]
        middle = self.numbers[self.inner[which]] / self.step
        slope = length(*((near[:, 2 * axis] - near[:, 2 * axis + 1]) / 2 for axis in range(3)))
        laplacian = near.sum(1) - 6 * middle
        surface = (1 - middle.detach().abs() / 2).clamp(min=0)
        return (slope - 1).square().mean(), laplacian.square().mean(), (surface * slope).mean()


def redistanced(grid: GridSDF, width: float) -> GridSDF:
    """The same surface with distances measured anew.

    Args:
        grid: any field with the surface as its zero set.
        width: samples within so many steps of the surface get their distance to the triangles of marching cubes, the
            others that to the nearest sample beside the surface, which is right to a step.

    Raises:
        UserError: there is no surface left.
    """
    import igl
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import marching_cubes

    values = grid.values.detach().numpy()
    if not values.min() < 0 < values.max():
        raise UserError("nothing is left of the shape, or nothing outside it; lower --rate, or check the silhouettes")
    inside = values < 0
    distance = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside)) - 0.5
    near = np.stack((distance <= width).nonzero(), -1)  # z, y, x
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    square = igl.point_mesh_squared_distance(
        near.astype(np.float64), vertices.astype(np.float64), np.ascontiguousarray(faces, np.int64)
    )[0]
    distance[tuple(near.T)] = np.sqrt(square)
    step = (grid.high - grid.low) / (len(values) - 1)
    signed = np.where(inside, -distance, distance) * step
    return GridSDF(torch.from_numpy(signed.astype(values.dtype)), grid.low, grid.high)


def resampled(grid: GridSDF, resolution: int) -> GridSDF:
    """The grid with another number of samples a side, trilinear."""
    values = F.interpolate(grid.values.detach()[None, None], (resolution,) * 3, mode="trilinear", align_corners=True)
    return GridSDF(values[0, 0], grid.low, grid.high)
