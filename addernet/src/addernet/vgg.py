"""VGG-small (AdderNet, section 4.2 and table 2): six 3x3 layers and one classifier.

The network is the one that the literature on binary networks compares on CIFAR: 2 x 128, 2 x 256 and 2 x 512
channels, each pair followed by max pooling. The first layer and the classifier stay ordinary.
"""

from __future__ import annotations

from papershelf.errors import UserError
from torch import Tensor, fx, nn

from addernet.resnet import Layer, Norm2d

WIDTHS = (128, 128, 256, 256, 512, 512)
SHRINK = 8  # three poolings


class VggSmall(nn.Module):
    """VGG-small.

    Args:
        layer: makes its adder layers, or convolutions without bias.
        classes: number of outputs.
        in_channels: of the images.
        input_size: side of the images in pixels, a multiple of 8.

    Raises:
        UserError: ``input_size`` is not a multiple of 8.
    """

    def __init__(self, layer: Layer, classes: int, in_channels: int = 3, input_size: int = 32) -> None:
        super().__init__()
        if input_size < SHRINK or input_size % SHRINK:
            raise UserError(f"vgg-small takes images whose side is a multiple of {SHRINK}, got {input_size}")
        self.input_size = input_size
        parts: list[nn.Module] = []
        inputs = in_channels
        for index, width in enumerate(WIDTHS):
            first = nn.Conv2d(inputs, width, 3, 1, 1, bias=False) if index == 0 else layer(inputs, width, 3, 1, 1)
            parts += [first, Norm2d(width), nn.ReLU()]
            if index % 2:
                parts.append(nn.MaxPool2d(2))
            inputs = width
        self.features = nn.Sequential(*parts)
        # Not in the paper: the classifier. One layer, as in the networks compared with there, and a batch norm
        # over the classes, as the authors' residual networks have it.
        self.fc = nn.Linear(inputs * (input_size // SHRINK) ** 2, classes, bias=False)
        self.bn = nn.BatchNorm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, input_size, input_size]``, normalised, to logits ``[N, classes]``."""
        x = self.features(of_size(x, self.input_size))
        return self.bn(self.fc(x.flatten(1)))


@fx.wrap  # one node for whoever traces a network
def of_size(x: Tensor, side: int) -> Tensor:
    """``x``, unless its pixels are not ``side`` times ``side``."""
    if x.shape[2] != side or x.shape[3] != side:
        raise UserError(f"this network takes images of {side}x{side} pixels, got {x.shape[3]}x{x.shape[2]}: resize")
    return x
