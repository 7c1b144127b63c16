"""Pinhole cameras, several at a time, and the rays through their pixels.

A point X of the world lies at ``R X + t`` in a camera's axes: x to the right, y down, z forward. It is seen at the
pixel ``K (R X + t)``, divided by its last number, where the first pixel's centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

LADDER_FOCAL = 150 / 137  # focal length over the image's height, in the paper's and our query counts
UP = (0.0, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Camera:
    """V views of one size.

    Attributes:
        intrinsics: ``[V, 3, 3]``, pixels; the last row is (0, 0, 1).
        rotation: ``[V, 3, 3]``, from the world's axes to the cameras'.
        translation: ``[V, 3]``, scene units.
        size: (height, width) in pixels.
    """

    intrinsics: Tensor
    rotation: Tensor
    translation: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        views = len(self.intrinsics) if self.intrinsics.ndim else 0
        shapes = [list(t.shape) for t in (self.intrinsics, self.rotation, self.translation)]
        if shapes != [[views, 3, 3], [views, 3, 3], [views, 3]]:
            raise UserError(f"cameras need intrinsics [V, 3, 3], rotation [V, 3, 3], translation [V, 3], got {shapes}")
        if min(self.size) < 1:
            raise UserError(f"a camera's size is (height, width) from 1 pixel on, got {self.size}")

    @classmethod
    def look_at(
        cls,
        eye: Tensor | Sequence[float],
        target: Tensor | Sequence[float] = (0.0, 0.0, 0.0),
        up: Tensor | Sequence[float] = UP,
        focal: float | None = None,
        size: tuple[int, int] = (512, 512),
    ) -> Camera:
        """Cameras at ``eye`` ``[3]`` or ``[V, 3]`` that see ``target`` in the middle and ``up`` as up.

        Args:
            eye: where the cameras are, scene units.
            target: what they look at.
            up: a direction not along the line of sight.
            focal: focal length in pixels; None sees the unit ball from a distance of 2.5, as the paper's camera.
            size: (height, width) in pixels.

        Raises:
            UserError: a camera is at its target, or looks along ``up``.
        """
        eye = torch.atleast_2d(_vector(eye))
        target, up = (_vector(v).to(eye).expand_as(eye) for v in (target, up))
        forward = target - eye
        right = torch.linalg.cross(forward, up)
        if (right.norm(dim=-1) <= 1e-6 * forward.norm(dim=-1) * up.norm(dim=-1)).any():
            raise UserError("a camera must not be at its target nor look along the up direction; move it or change up")
        forward, right = F.normalize(forward, dim=-1), F.normalize(right, dim=-1)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], -2)
        translation = -(rotation @ eye[..., None])[..., 0]
        pixels = LADDER_FOCAL * size[0] if focal is None else focal
        height, width = size
        intrinsics = torch.tensor([[pixels, 0, width / 2], [0, pixels, height / 2], [0, 0, 1]], dtype=eye.dtype)
        return cls(intrinsics.to(eye.device).expand(len(eye), 3, 3), rotation, translation, size)

    @classmethod
    def orbit(
        cls,
        views: int,
        distance: float = 2.5,
        elevation: float = 20.0,
        first: float = 30.0,
        focal: float | None = None,
        size: tuple[int, int] = (512, 512),
    ) -> Camera:
        """``views`` cameras evenly around the y axis, ``elevation`` degrees above, the first at azimuth ``first``."""
        if views < 1:
            raise UserError(f"an orbit needs at least one view, got {views}")
        if not -90 < elevation < 90:
            raise UserError(f"an orbit's elevation must be between -90 and 90 degrees, got {elevation}")
        azimuth = math.radians(first) + torch.arange(views, dtype=torch.float64) * (2 * math.pi / views)
        height = math.radians(elevation)
        level = math.cos(height)
        eye = torch.stack(
            [level * azimuth.sin(), torch.full_like(azimuth, math.sin(height)), level * azimuth.cos()], -1
        )
        return cls.look_at((distance * eye).float(), focal=focal, size=size)

    def __len__(self) -> int:
        return len(self.intrinsics)

    def __getitem__(self, views: int | slice | Tensor) -> Camera:
        """Some of the views, still with a leading dimension."""
        if isinstance(views, int):
            views = [views]
        return Camera(self.intrinsics[views], self.rotation[views], self.translation[views], self.size)

    def to(self, target: torch.device | torch.dtype | str) -> Camera:
        """The same cameras on another device or in another precision."""
        moved = (t.to(target) for t in (self.intrinsics, self.rotation, self.translation))
        return Camera(*moved, self.size)

    @property
    def eye(self) -> Tensor:
        """``[V, 3]``, where the cameras are in the world."""
        return -(self.rotation.mT @ self.translation[..., None])[..., 0]

    def resized(self, size: tuple[int, int]) -> Camera:
        """The same views in an image of another (height, width)."""
        scale = self.intrinsics.new_tensor([size[1] / self.size[1], size[0] / self.size[0], 1.0])
        return Camera(scale[:, None] * self.intrinsics, self.rotation, self.translation, size)

    def in_ball(self, centre: Tensor | Sequence[float], radius: float) -> Camera:
        """The same views of a world in which the ball around ``centre`` ``[3]`` is the unit ball at the origin."""
        if not radius > 0:
            raise UserError(f"a ball's radius must be above 0, got {radius}")
        moved = self.translation + self.rotation @ _vector(centre).to(self.rotation)
        return Camera(self.intrinsics, self.rotation, moved / radius, self.size)

    def pixels(self) -> Tensor:
        """``[H, W, 2]``, the pixels' centres as (x, y)."""
        height, width = self.size
        y = torch.arange(height, dtype=self.intrinsics.dtype, device=self.intrinsics.device) + 0.5
        x = torch.arange(width, dtype=self.intrinsics.dtype, device=self.intrinsics.device) + 0.5
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y], -1)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions of the rays through the pixels' centres, both ``[V, H, W, 3]``.

        They are differentiable in the cameras' numbers.
        """
        return self.rays_through(self.pixels())

    def rays_through(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and unit directions ``[V, ..., 3]`` of the rays through ``pixels`` ``[..., 2]`` (x, y)."""
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
        flat = homogeneous.reshape(-1, 3).mT  # [3, P]
        # Not solve(): for so many right sides of so small a matrix LAPACK takes a hundred times as long.
        along = torch.linalg.inv(self.intrinsics) @ flat  # [V, 3, P], camera axes
        directions = F.normalize((self.rotation.mT @ along).mT, dim=-1)
        shape = (len(self), *pixels.shape[:-1], 3)
        origins = self.eye[:, None].expand_as(directions)
        return origins.reshape(shape), directions.reshape(shape)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``[V, N, 2]`` (x, y) at which ``points`` ``[N, 3]`` are seen, and their z ``[V, N]``."""
        inside = self.rotation @ points.mT + self.translation[..., None]  # [V, 3, N], camera axes
        seen = (self.intrinsics @ inside).mT
        return seen[..., :2] / seen[..., 2:], inside[:, 2]


def _vector(value: Tensor | Sequence[float]) -> Tensor:
    vector = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
    if vector.shape[-1:] != (3,) or vector.ndim > 2:
        raise UserError(f"a place or direction is three numbers, got {list(vector.shape)}")
    return vector
