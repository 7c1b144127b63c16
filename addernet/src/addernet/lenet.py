"""LeNet-5 with batch norms for MNIST (AdderNet, section 4.1).

C1, C3, C5 and F6 of LeCun et al. ("Gradient-based learning applied to document recognition", 1998) with 6, 16, 120
and 84 channels, C5 as a 5x5 layer on 5x5 pixels and F6 as a 1x1 layer. C1 and the classifier stay ordinary.
"""

from __future__ import annotations

import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor, fx, nn

from addernet.resnet import Layer, Norm2d
from addernet.vgg import of_size

fx.wrap("of_size")
INPUT_SIZE = 32  # C5 leaves one pixel of that; MNIST's 28x28 are padded by 2


class LeNet(nn.Module):
    """LeNet-5 with batch norms.

    Args:
        layer: makes its adder layers, or convolutions without bias.
        classes: number of outputs.
        in_channels: of the images, 1 for MNIST.
        input_size: side of the images in pixels; 32 is the only one.

    Raises:
        UserError: ``input_size`` is another.
    """

    def __init__(self, layer: Layer, classes: int, in_channels: int = 1, input_size: int = INPUT_SIZE) -> None:
        super().__init__()
        if input_size != INPUT_SIZE:
            raise UserError(f"lenet takes images of {INPUT_SIZE}x{INPUT_SIZE} pixels, got {input_size}: pad or resize")
        self.conv1 = nn.Conv2d(in_channels, 6, 5, bias=False)
        self.bn1 = Norm2d(6)
        self.conv2 = layer(6, 16, 5)
        self.bn2 = Norm2d(16)
        self.conv3 = layer(16, 120, 5)
        self.bn3 = Norm2d(120)
        self.conv4 = layer(120, 84, 1)
        self.bn4 = Norm2d(84)
        # Not in the paper: activations, poolings and what follows the last layer. ReLU and max pooling, and a
        # batch norm over the classes as in the authors' residual networks.
        self.fc = nn.Linear(84, classes, bias=False)
        self.bn5 = nn.BatchNorm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, 32, 32]``, normalised, to logits ``[N, classes]``."""
        x = of_size(x, INPUT_SIZE)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.bn5(self.fc(x.flatten(1)))
