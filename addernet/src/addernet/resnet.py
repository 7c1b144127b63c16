"""Residual networks of adder layers (AdderNet, sections 4.2 and 4.3), and the same with convolutions.

The networks are He et al.'s ("Deep Residual Learning for Image Recognition", CVPR 2016): three stages for CIFAR,
four for ImageNet. As AdderNet's authors have it, the stem and the classifier stay ordinary convolutions, shortcuts
that change their size are 1x1 adder layers, every adder layer is followed by a batch norm, and so is the classifier:
a 1x1 convolution and a batch norm over the classes. Names of parameters are those of the authors' files, except that
adder filters are called ``weight`` as in a convolution and not ``adder``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = Callable[..., nn.Module]  # Adder2d or nn.Conv2d, called as (in, out, kernel size, stride, padding)


class Norm2d(nn.BatchNorm2d):
    """A batch norm that hands on autocast's dtype, as a batch norm after a convolution does.

    What an adder layer gives is float32 under autocast too, a sum of thousands that half precision does not hold;
    without this, everything after the first layer would be float32 as well.
    """

    def forward(self, x: Tensor) -> Tensor:
        y, device = super().forward(x), x.device.type
        if y.dtype == torch.float32 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return y.to(torch.get_autocast_dtype(device))
        return y


class BasicBlock(nn.Module):
    """Two 3x3 layers beside a shortcut."""

    expansion = 1

    def __init__(self, layer: Layer, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layer(inputs, width, 3, stride, 1)
        self.bn1 = Norm2d(width)
        self.conv2 = layer(width, width, 3, 1, 1)
        self.bn2 = Norm2d(width)
        self.downsample = _shortcut(layer, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers beside a shortcut; the stride is the 3x3 layer's, as in the authors' code."""

    expansion = 4

    def __init__(self, layer: Layer, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = layer(inputs, width, 1, 1, 0)
        self.bn1 = Norm2d(width)
        self.conv2 = layer(width, width, 3, stride, 1)
        self.bn2 = Norm2d(width)
        self.conv3 = layer(width, outputs, 1, 1, 0)
        self.bn3 = Norm2d(outputs)
        self.downsample = _shortcut(layer, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {  # three stages: CIFAR, four: ImageNet
    "resnet20": (BasicBlock, (3, 3, 3)),
    "resnet32": (BasicBlock, (5, 5, 5)),
    "resnet44": (BasicBlock, (7, 7, 7)),
    "resnet56": (BasicBlock, (9, 9, 9)),
    "resnet110": (BasicBlock, (18, 18, 18)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A residual network of ``DEPTHS``.

    Args:
        layer: makes its adder layers, or convolutions without bias.
        block: what its stages are made of.
        depths: blocks per stage; three give the network for 32x32 images (16 to 64 channels), four the one for
            224x224 (64 to 512, a 7x7 stem and max pooling before them).
        classes: number of outputs.
        in_channels: of the images.
    """

    def __init__(
        self,
        layer: Layer,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        small = len(depths) == 3
        channels = 16 if small else 64
        if small:
            self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = Norm2d(channels)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = [f"layer{index}" for index in range(1, len(depths) + 1)]
        inputs = channels
        for index, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            width = channels * 2**index
            blocks = []
            for number in range(depth):
                blocks.append(block(layer, inputs, width, 2 if index and not number else 1))
                inputs = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        # The authors' ImageNet networks have a bias here, their CIFAR ones have none.
        self.fc = nn.Conv2d(inputs, classes, 1, bias=not small)
        self.bn2 = Norm2d(classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]``, normalised images of any size, to logits ``[N, classes]``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.bn2(self.fc(x)).flatten(1)


def _shortcut(layer: Layer, inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(layer(inputs, outputs, 1, stride, 0), Norm2d(outputs))
