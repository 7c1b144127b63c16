"""The context net and fusion U-Net that add detail to the blended frame (RIFE, section 3.1 and appendix).

Features of both frames are warped at four sizes and fed into a U-Net over the frames, their warped
versions, the mask and the flow; its output, in [-1, 1], is added to the blend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rife.flow_net import conv, deconv, resize
from rife.warping import warp


@dataclass(frozen=True)
class RefinementConfig:
    """What differs between the paper's refinement and v3.1's.

    Attributes:
        width: the paper's c; the U-Net's levels have 2, 4, 8 and 16 times as many channels.
        stem: v3.1 first halves its inputs with a pair of convolutions, sees only warped frames and
            flow, and its output also gives the mask.
        stride: of the first pair: 2, or 1 in RIFE-Large.
    """

    width: int = 16
    stem: bool = False
    stride: int = 2


class Refinement(nn.Module):
    """From frames, flow and mask to the residual that is added to the blended frame."""

    def __init__(self, config: RefinementConfig) -> None:
        super().__init__()
        self.config = config
        self.context = ContextNet(config)
        self.fusion = FusionNet(config)

    def forward(
        self,
        img0: Tensor,
        img1: Tensor,
        warped0: Tensor,
        warped1: Tensor,
        mask: Tensor | None,
        flow: Tensor,
        half: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the residual ``[N, 3, H, W]`` in [-1, 1] and the mask's logit ``[N, 1, H, W]``.

        Args:
            img0: ``[N, 3, H, W]``, sides multiples of 16 (32 for v3.1).
            img1: likewise.
            warped0: ``img0`` warped by ``flow[:, :2]``.
            warped1: ``img1`` warped by ``flow[:, 2:]``.
            mask: logit ``[N, 1, H, W]``; v3.1 takes none and gives its own.
            flow: ``[N, 4, H, W]`` in pixels.
            half: the same flow ``[N, 4, H/2, W/2]`` in pixels of that size, where it is at hand.
        """
        first_flow = flow  # of the size of the first level's input, or of its output where that is smaller
        if self.config.stem or self.config.stride == 2:
            first_flow = resize(flow, 0.5) * 0.5 if half is None else half
        both = self.context(torch.cat([img0, img1]), torch.cat([first_flow[:, :2], first_flow[:, 2:]]))
        context = [torch.cat(level.chunk(2), 1) for level in both]
        if self.config.stem:
            out = self.fusion(torch.cat([warped0, warped1, flow], 1), context).to(flow.dtype)
            return torch.sigmoid(out[:, :3]) * 2 - 1, out[:, 3:]
        out = self.fusion(torch.cat([img0, img1, warped0, warped1, mask, flow], 1), context).to(flow.dtype)
        return torch.sigmoid(out) * 2 - 1, mask


class ContextNet(nn.Module):
    """A pyramid of four warped feature maps of one frame."""

    def __init__(self, config: RefinementConfig) -> None:
        super().__init__()
        c = config.width
        self.stem = _pair(3, c) if config.stem else None
        inputs = (c if config.stem else 3, c, 2 * c, 4 * c)
        strides = (config.stride, 2, 2, 2)
        self.levels = nn.ModuleList(
            _pair(i, o, s) for i, o, s in zip(inputs, (c, 2 * c, 4 * c, 8 * c), strides, strict=True)
        )

    def forward(self, frame: Tensor, flow: Tensor) -> list[Tensor]:
        """``frame`` ``[N, 3, H, W]``; ``flow`` ``[N, 2, ...]`` of the first level's size (v3.1: the stem's)."""
        x = frame.to(self.levels[0][0][0].weight.dtype)
        if self.stem is not None:
            x, flow = self.stem(x), resize(flow, 0.5) * 0.5
        features = []
        for level in self.levels:
            x = level(x)
            if features:
                flow = resize(flow, 0.5) * 0.5
            features.append(warp(x, flow))
        return features


class FusionNet(nn.Module):
    """The U-Net; ``context`` enters after each halving."""

    def __init__(self, config: RefinementConfig) -> None:
        super().__init__()
        c = config.width
        self.stem = _pair(10, c) if config.stem else None
        down = ((c if config.stem else 17, 2 * c), (4 * c, 4 * c), (8 * c, 8 * c), (16 * c, 16 * c))
        strides = (config.stride, 2, 2, 2)
        self.down = nn.ModuleList(_pair(i, o, s) for (i, o), s in zip(down, strides, strict=True))
        self.up = nn.ModuleList(deconv(i, o) for i, o in ((32 * c, 8 * c), (16 * c, 4 * c), (8 * c, 2 * c), (4 * c, c)))
        # Not in the paper: RIFE-Large's first pair keeps the size, so its last convolution halves it.
        self.out = nn.ConvTranspose2d(c, 4, 4, 2, 1) if config.stem else nn.Conv2d(c, 3, 3, 2 // config.stride, 1)

    def forward(self, x: Tensor, context: list[Tensor]) -> Tensor:
        """``[N, 17 or 10, H, W]`` to ``[N, 3 or 4, H, W]``."""
        x = x.to(self.out.weight.dtype)
        if self.stem is not None:
            x = self.stem(x)
        skips = []
        for down, features in zip(self.down, context, strict=True):
            x = down(x)
            skips.append(x)
            x = torch.cat([x, features], 1)
        for up, skip in zip(self.up, (*reversed(skips[:-1]), None), strict=True):
            x = up(x)
            if skip is not None:
                x = torch.cat([x, skip], 1)
        return self.out(x)


def _pair(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, stride), conv(outputs, outputs))
