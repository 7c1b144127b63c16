"""Every network of the paper by its name, of adder layers or of convolutions (AdderNet, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from papershelf.errors import UserError
from torch import nn

from addernet.layer import ETA, Adder2d
from addernet.lenet import LeNet
from addernet.resnet import DEPTHS, ResNet
from addernet.vgg import VggSmall

Op = Literal["adder", "conv"]
ARCHITECTURES = (*DEPTHS, "vgg-small", "lenet")
IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101")  # made for 224x224 pixels, the others for 32x32


@dataclass(frozen=True)
class Architecture:
    """What a network is, apart from its parameters.

    Attributes:
        arch: one of ``ARCHITECTURES``.
        op: what its inner layers are: ``"adder"``, or ``"conv"`` for the twin to compare with.
        classes: number of outputs.
        in_channels: of the images.
        input_size: side in pixels of the images it is meant for; residual networks take any other too.
    """

    arch: str
    op: Op = "adder"
    classes: int = 10
    in_channels: int = 3
    input_size: int = 32


def build(
    arch: str,
    *,
    op: Op = "adder",
    classes: int = 10,
    in_channels: int = 3,
    input_size: int | None = None,
    eta: float = ETA,
    local_rate: Literal["optimizer", "backward", "off"] = "optimizer",
) -> nn.Module:
    """A network with fresh parameters, in training mode and in the channels-last memory format.

    Args:
        arch: one of ``ARCHITECTURES``.
        op: its inner layers; the stem and the classifier are ordinary in both.
        classes: number of outputs.
        in_channels: of the images: 3 for RGB, 1 for grey.
        input_size: side of the images in pixels; by default 32, or 224 for ResNet-18, 34, 50 and 101.
        eta: of the adder layers' local learning rate.
        local_rate: where that is applied, see :class:`addernet.layer.Adder2d`.

    Returns:
        The module; ``module.config`` is its :class:`Architecture`.

    Raises:
        UserError: an argument is unknown or does not fit.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"no architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    if op not in get_args(Op):
        raise UserError(f"op must be one of {', '.join(get_args(Op))}, got {op!r}")
    if input_size is None:
        input_size = 224 if arch in IMAGENET else 32
    for name, value in (("classes", classes), ("in_channels", in_channels), ("input_size", input_size)):
        if value < 1:
            raise UserError(f"{name} must be 1 or more, got {value}")
    layer = partial(Adder2d, eta=eta, local_rate=local_rate) if op == "adder" else partial(nn.Conv2d, bias=False)
    if arch in DEPTHS:
        model: nn.Module = ResNet(layer, *DEPTHS[arch], classes, in_channels)
    elif arch == "vgg-small":
        model = VggSmall(layer, classes, in_channels, input_size)
    else:
        model = LeNet(layer, classes, in_channels, input_size)
    for module in model.modules():
        # Not in the paper: how ordinary layers start. He et al.'s way, as in the authors' ResNet-50; adder
        # filters are N(0, 1) already.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    model.config = Architecture(arch, op, classes, in_channels, input_size)
    return model.to(memory_format=torch.channels_last)
