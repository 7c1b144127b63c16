"""PS-FCN: any number of photographs under different lights to one normal map (sections 3.1 and 3.2).

Every photograph, beside its light's direction, goes through the same extractor; the elementwise maximum over the
photographs' features is what the regressor turns into normals. A maximum knows no order and no number, so the
photographs are taken in groups and a running maximum is kept: the memory does not grow with their number, and the
result is the same to the last bit in any order.

PS-FCN+N divides each pixel's values by their norm over all photographs first (section 3.4, "data normalisation"),
which removes what the albedo varies; UPS-FCN is the same network without lights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 8  # photographs at once where memory must stay constant
STRIDE = 4  # sides are padded to multiples of it: the extractor halves them twice
TRAINED_WITH = 32  # photographs in the paper's training; with q of them normalised values are sqrt(32 / q) as large
SLOPE = 0.1  # of LeakyReLU below zero
EPSILON = 1e-10  # of the released code's norm
_UNIT = 2.0**44  # what is summed in place of 1.0: whole numbers, exact in float64 up to 512 of them


class PSFCN(nn.Module):
    """PS-FCN (figure 3), with the names of the released checkpoints; 2,210,048 parameters.

    Args:
        in_channels: 6 with known lights; 3 for UPS-FCN, which sees only the photographs.
        normalise: PS-FCN+N, see :func:`normalise_images`.

    Raises:
        ValueError: another number of channels.
    """

    def __init__(self, in_channels: int = 6, normalise: bool = False) -> None:
        super().__init__()
        if in_channels not in (3, 6):
            raise ValueError(f"in_channels must be 6 (photographs and lights) or 3 (photographs), got {in_channels}")
        self.in_channels, self.normalise = in_channels, normalise
        self.extractor = nn.Sequential()
        for name, layer in {
            "conv1": _conv(in_channels, 64),
            "conv2": _conv(64, 128, stride=2),
            "conv3": _conv(128, 128),
            "conv4": _conv(128, 256, stride=2),
            "conv5": _conv(256, 256),
            "conv6": _upsampling(256, 128),
            "conv7": _conv(128, 128),
        }.items():
            self.extractor.add_module(name, layer)
        self.regressor = nn.Sequential()
        for name, layer in {
            "deconv1": _conv(128, 128),
            "deconv2": _conv(128, 128),
            "deconv3": _upsampling(128, 64),
            "est_normal": nn.Sequential(nn.Conv2d(64, 3, 3, padding=1, bias=False)),
        }.items():
            self.regressor.add_module(name, layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, lights: Tensor | None = None, group: int | None = GROUP) -> Tensor:
        """Normals of the objects in ``images``.

        Args:
            images: ``[N, Q, 3, H, W]`` linear RGB, any H and W, each divided by its light's intensity.
            lights: ``[N, Q, 3]`` unit vectors towards the lights; None for UPS-FCN.
            group: photographs (of each object) at once; None: all, as in training.

        Returns:
            ``[N, 3, H, W]`` float32 unit vectors: x right, y up, z to the viewer.

        Raises:
            ValueError: shapes do not fit, or lights are missing or too many.
        """
        height, width = images.shape[-2:]
        if self.normalise:
            images = normalise_images(images)
        return self.normals(self.features(images, lights, group))[..., :height, :width]

    def features(self, images: Tensor, lights: Tensor | None = None, group: int | None = GROUP) -> Tensor:
        """The maximum over photographs of what the extractor sees in each.

        Args:
            images: as in :meth:`forward`, but normalised already where the network wants it.
            lights: likewise.
            group: likewise.

        Returns:
            ``[N, 128, H' / 2, W' / 2]``, H' and W' the next multiples of 4.

        Raises:
            ValueError: shapes do not fit, or lights are missing or too many.
        """
        if images.ndim != 5 or images.shape[2] != 3 or not images.shape[1]:
            raise ValueError(f"images must be [N, Q, 3, H, W] with Q of 1 or more, got {list(images.shape)}")
        count, quantity, _, height, width = images.shape
        if (lights is None) != (self.in_channels == 3):
            raise ValueError("this network " + ("takes no lights" if lights is not None else "needs lights"))
        if lights is not None and lights.shape != (count, quantity, 3):
            raise ValueError(f"lights must be {[count, quantity, 3]}, got {list(lights.shape)}")
        group = quantity if group is None else group
        fused = None
        for first in range(0, quantity, group):
            # The last group is filled up with photographs that were there before, which no maximum minds: how a
            # convolution sums may depend on the size of its batch, and so would the last bits on the order.
            members = torch.arange(first, first + group, device=images.device) % quantity
            x = F.pad(images[:, members], (0, -width % STRIDE, 0, -height % STRIDE))
            if lights is not None:
                planes = lights[:, members, :, None, None].to(x.dtype).expand(*x.shape[:3], *x.shape[3:])
                x = torch.cat([x, planes], 2)
            # Channels last, as convolutions leave them: a maximum across that order takes 14 times as long.
            local = self.extractor(x.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, (count, group)).amax(1)
            local = local.permute(0, 3, 1, 2)
            fused = local if fused is None else torch.maximum(fused, local)
        return fused

    def normals(self, features: Tensor) -> Tensor:
        """Features ``[N, 128, H / 2, W / 2]`` to unit normals ``[N, 3, H, W]`` float32."""
        return F.normalize(self.regressor(features).float(), dim=1)


def normalise_images(images: Tensor) -> Tensor:
    """PS-FCN+N: each pixel's values over their norm, taken over all photographs and channels together.

    With q photographs the values are also multiplied by ``sqrt(q / 32)``, so that they are as large as in the
    training with 32.

    Args:
        images: ``[N, Q, 3, H, W]``.

    Returns:
        The same shape, float32; zero where all of a pixel's values are. The same in any order of the photographs.
    """
    images = images.float()
    return images * scales(images.unbind(1))[:, None]


def scales(photographs: Sequence[Tensor]) -> Tensor:
    """What :func:`normalise_images` multiplies by.

    Args:
        photographs: each ``[..., 3, H, W]`` float32. They are taken one after the other, twice, and not kept.

    Returns:
        ``[..., 1, H, W]`` float32, the same in any order of the photographs.
    """
    peak = photographs[0].abs().amax(-3, keepdim=True)
    for number in range(1, len(photographs)):
        peak = torch.maximum(peak, photographs[number].abs().amax(-3, keepdim=True))
    scale = torch.where(peak > 0, peak, 1)
    total = torch.zeros_like(peak, dtype=torch.float64)
    for number in range(len(photographs)):
        # Whole numbers have the same sum in any order; a sum of fractions would differ in its last bits.
        shares = (photographs[number] / scale).double().square_().mul_(_UNIT).round_()
        total += shares.sum(-3, keepdim=True)
    norm = peak * (total / _UNIT).sqrt().float()
    return (len(photographs) / TRAINED_WITH) ** 0.5 / (norm + EPSILON)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(SLOPE, inplace=True))


def _upsampling(inputs: int, outputs: int) -> nn.Sequential:
    """To twice the side."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE, inplace=True))
