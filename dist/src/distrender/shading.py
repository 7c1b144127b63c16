"""Pictures of what rays met: shaded, depth, normals, silhouette."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distrender.tracing import Hit

AMBIENT = 0.25
LIGHT = (-0.4, 0.6, 0.7)  # towards the light from the camera: left, up, behind it
PICTURES = ("shaded", "depth", "normal", "silhouette")


def picture(hit: Hit, rotation: Tensor, what: str = "shaded", albedo: tuple[float, float, float] = (0.9, 0.88, 0.84)):
    """One view as a picture ``[H, W, 3]`` in [0, 1], white where nothing was hit.

    Args:
        hit: of one view, ``[H, W]``.
        rotation: ``[3, 3]`` of the view's camera, from the scene's axes to the camera's (y down, z forward).
        what: "shaded" (a matt surface under a light that moves with the camera), "depth" (near is bright, over the
            picture's own range), "normal" (in the camera's axes, x right, y up, z towards it, from [-1, 1] to [0, 1])
            or "silhouette" (the shape is black).
        albedo: of the shaded surface, linear RGB.
    """
    mask = hit.mask[..., None]
    white = torch.ones(*hit.mask.shape, 3)
    if what == "silhouette":
        return torch.where(mask, 0.0, white)
    if what == "depth":
        return torch.where(mask, depth_levels(hit)[..., None], white)
    normal = (hit.normal @ rotation.T) * torch.tensor([1.0, -1.0, -1.0])  # y up, z towards the camera
    if what == "normal":
        return torch.where(mask, (normal + 1) / 2, white)
    light = F.normalize(torch.tensor(LIGHT), dim=0)
    shade = AMBIENT + (1 - AMBIENT) * (normal @ light).clamp(min=0)
    linear = shade[..., None] * torch.tensor(albedo)
    return torch.where(mask, encoded(linear), white)


def depth_levels(hit: Hit) -> Tensor:
    """``[H, W]``: 1 at the nearest hit, 0.1 at the farthest."""
    if not hit.mask.any():
        return torch.ones(hit.mask.shape)
    depth = torch.where(hit.mask, hit.depth, hit.depth[hit.mask].max())
    near, far = depth.min(), depth.max()
    return 1 - 0.9 * (depth - near) / (far - near).clamp(min=1e-9)


def encoded(linear: Tensor) -> Tensor:
    """Linear light to sRGB, both in [0, 1]."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
