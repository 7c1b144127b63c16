"""The network on a CPU, with its convolutions in Winograd's form: one photograph at a time, and a running maximum.

What :meth:`psfcn.networks.PSFCN.forward` gives, in half the time or less: photographs are read, normalised and joined
with their light's direction one after the other, so that only one is in memory beside the maximum, and the last
convolution of the extractor raises the maximum where it stands. Every photograph goes through the same steps alone,
whatever their order and number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psfcn import winograd
from psfcn.networks import PSFCN, SLOPE, STRIDE, scales
from psfcn.winograd import Convolution


class Prepared:
    """A network whose weights are packed for the CPU; they are those that it had when it was made.

    Args:
        network: on the CPU.
        dtype: of the convolutions, float32 or bfloat16; sums are float32.
    """

    def __init__(self, network: PSFCN, dtype: torch.dtype = torch.float32) -> None:
        self.normalise, self.channels, self.dtype = network.normalise, network.in_channels, dtype
        layers = {name: layer[0] for name, layer in network.extractor.named_children()}
        # conv1 has too few channels, and strides leave nothing to save.
        self.first, self.second, self.fourth = (_Plain(layers[name], dtype) for name in ("conv1", "conv2", "conv4"))
        self.third, self.fifth, self.sixth, self.last = (
            Convolution(layers[name], dtype, SLOPE) for name in ("conv3", "conv5", "conv6", "conv7")
        )
        *hidden, final = (layer[0] for layer in network.regressor.children())
        self.regressor = [Convolution(layer, dtype, SLOPE) for layer in hidden]
        self.normal = _Plain(final, dtype, slope=1)

    @torch.inference_mode()
    def __call__(self, photographs: Sequence[Tensor], lights: Tensor | None) -> Tensor:
        """Normals of one object.

        Args:
            photographs: each ``[3, H, W]`` float32, linear RGB, divided by its light's intensity; they are taken by
                their number, up to three times each, and never kept.
            lights: ``[Q, 3]`` unit vectors towards the lights; None for UPS-FCN.

        Returns:
            ``[3, H, W]`` float32 unit vectors.
        """
        height, width = photographs[0].shape[1:]
        factors = scales(photographs) if self.normalise else None
        padded = height + -height % STRIDE, width + -width % STRIDE
        x = torch.zeros(1, self.channels, *padded, dtype=self.dtype).to(memory_format=torch.channels_last)
        most = torch.full((1, self.last.outputs, padded[0] // 2, padded[1] // 2), -torch.inf, dtype=self.dtype)
        most = most.to(memory_format=torch.channels_last)
        for number in range(len(photographs)):
            pixels = photographs[number]
            x[0, :3, :height, :width] = pixels if factors is None else pixels * factors
            if lights is not None:
                x[0, 3:] = lights[number, :, None, None]
            self.last.raise_maximum(most, self.sixth(self.fifth(self.fourth(self.third(self.second(self.first(x)))))))
        for layer in self.regressor:
            most = layer(most)
        return F.normalize(self.normal(most)[0, :, :height, :width].float(), dim=0)


class _Plain:
    """A convolution of PyTorch's and the LeakyReLU behind it."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, slope: float = SLOPE) -> None:
        self.weight = layer.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.stride, self.slope = layer.stride, slope

    def __call__(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding=1)
        return x if self.slope == 1 else F.leaky_relu_(x, self.slope)


def serves(device: torch.device | str) -> bool:
    """Whether networks can be prepared for a device."""
    return torch.device(device).type == "cpu" and winograd.available()
