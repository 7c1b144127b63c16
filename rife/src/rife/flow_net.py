r"""IFNet's blocks (RIFE, section 3.2 and figure 4), one class for every published variant.

An IFBlock looks at both frames at 1/K of their size (K = ``scale``), together with the flow so far,
and says how flow and blending mask should change. What differs between releases is data:

========  =============  ==================================  ======================================
style     activation     body                                head (what turns features into flow)
========  =============  ==================================  ======================================
PAPER     PReLU          8 convolutions, one outer residual  transposed conv, at half the input size
PAIRS     PReLU          pairs, a residual around each       one or two transposed convs, see below
RESIDUAL  LeakyReLU 0.2  8 scaled residual convolutions      transposed conv and pixel shuffle
========  =============  ==================================  ======================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOW, MASK = 4, 1  # channels that every block gives: (u, v) towards each frame, and the mask's logit


@dataclass(frozen=True)
class BlockStyle:
    """How an :class:`IFBlock` is built; the constants below are all there are.

    Attributes:
        body: ``chain``, ``pairs`` or ``residual``, see the table above.
        depth: how many convolutions, pairs or residual convolutions.
        deconvs: transposed convolutions in the head: one leaves half the input size, two the whole.
        split_mask: flow and mask come from two heads.
        shuffle: the head ends in a pixel shuffle, and leaves the whole input size.
        stem_stride: of the first convolution: 2, or 1 in RIFE-Large (section 4.3).
        half_flow: the flow stays at half the frame's size, in pixels of that size.
    """

    body: str = "chain"
    depth: int = 8
    deconvs: int = 1
    split_mask: bool = False
    shuffle: bool = False
    stem_stride: int = 2
    half_flow: bool = False

    @property
    def shrink(self) -> float:
        """How many times smaller the head's output is than what the block returns at scale 1."""
        head_size = self.stem_stride * 2 / (2**self.deconvs * (2 if self.shuffle else 1))
        return head_size / 2 if self.half_flow else head_size


PAPER = BlockStyle()
PAPER_LARGE = BlockStyle(stem_stride=1)
PAIRS_3_1 = BlockStyle(body="pairs", depth=3, half_flow=True)
PAIRS_3_5 = BlockStyle(body="pairs", depth=4, split_mask=True)
PAIRS_3_8 = BlockStyle(body="pairs", depth=4, split_mask=True, deconvs=2)
RESIDUAL = BlockStyle(body="residual", shuffle=True)


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear, pixel centres aligned as areas (``align_corners=False``), no blur when shrinking."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def precise(dtype: torch.dtype) -> torch.dtype:
    """What flow is kept in beside tensors of ``dtype``."""
    return torch.promote_types(dtype, torch.float32)


def shrink_planes(planes: Mapping[str, Tensor], names: Sequence[str], scale: float) -> dict[str, Tensor]:
    """A block's inputs at 1/``scale`` of their size; flow is a length, so its values shrink as well.

    Args:
        planes: name -> ``[N, C, H, W]``, or ``[N, 1, 1, 1]`` for the constant timestep plane ``t``.
        names: which of them, in the order of the block's input channels.
        scale: power of two; below 1 the planes grow.
    """
    small = {name: resize(planes[name], 1 / scale) for name in names if name != "t"}
    if "flow" in small:
        small["flow"] = small["flow"] / scale
    if "t" in names:
        n, _, h, w = next(iter(small.values())).shape
        small["t"] = planes["t"].expand(n, 1, h, w)
    return {name: small[name] for name in names}


def conv(inputs: int, outputs: int, stride: int = 1, *, leaky: bool = False) -> nn.Sequential:
    """The paper's ``conv``: 3x3 and a PReLU per channel; the later releases use LeakyReLU."""
    activation = nn.LeakyReLU(0.2) if leaky else nn.PReLU(outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), activation)


def deconv(inputs: int, outputs: int) -> nn.Sequential:
    """The paper's ``deconv``: twice the size, and a PReLU per channel."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.PReLU(outputs))


class IFBlock(nn.Module):
    """From frames and flow at 1/``scale`` to changes of flow and mask at full size."""

    def __init__(self, inputs: int, width: int, style: BlockStyle, outputs: int = FLOW + MASK) -> None:
        super().__init__()
        self.style = style
        leaky = style.body == "residual"
        self.stem = nn.Sequential(
            conv(inputs, width // 2, style.stem_stride, leaky=leaky), conv(width // 2, width, 2, leaky=leaky)
        )
        part = {"chain": conv, "pairs": _ResidualPair, "residual": _ScaledResidual}[style.body]
        self.body = nn.Sequential(*(part(width, width) for _ in range(style.depth)))
        if style.split_mask:
            self.head, self.mask_head = _head(width, FLOW, style), _head(width, outputs - FLOW, style)
        else:
            self.head = _head(width, outputs, style)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        """One refinement step.

        Args:
            x: ``[N, inputs, H/scale, W/scale]``, the planes of :func:`shrink_planes` joined.
            scale: what they were shrunk by.

        Returns:
            ``[N, outputs, H, W]``: 4 channels of flow in pixels of the full size (at half the size for
            v3.1, in its pixels), the mask's logit and whatever else the head gives; never narrower than
            float32, since flow in half precision loses whole pixels.
        """
        features = self.stem(x.to(self.stem[0][0].weight.dtype))
        features = features + self.body(features) if self.style.body == "chain" else self.body(features)
        out = self.head(features)
        if self.style.split_mask:
            out = torch.cat([out, self.mask_head(features)], 1)
        grow = scale * self.style.shrink
        out = resize(out.to(precise(x.dtype)), grow)
        return torch.cat([out[:, :FLOW] * grow, out[:, FLOW:]], 1)


class FrameEncoder(nn.Module):
    """Features of one frame that v4.7 and later warp beside it: four convolutions, or two in v4.7."""

    def __init__(self, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, hidden, 3, 2, 1)]
        if depth > 2:
            layers += [nn.LeakyReLU(0.2)]
            for _ in range(depth - 2):
                layers += [nn.Conv2d(hidden, hidden, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(hidden, outputs, 4, 2, 1))

    def forward(self, frame: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, outputs, H, W]``, in the frame's dtype."""
        return self.layers(frame.to(self.layers[0].weight.dtype)).to(frame.dtype)


class _ResidualPair(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class _ScaledResidual(nn.Module):
    """``leaky(conv(x) * beta + x)``, beta learned per channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.beta = nn.Parameter(torch.ones(1, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x) * self.beta + x, 0.2)


def _head(width: int, outputs: int, style: BlockStyle) -> nn.Sequential:
    if style.shuffle:
        return nn.Sequential(nn.ConvTranspose2d(width, 4 * outputs, 4, 2, 1), nn.PixelShuffle(2))
    if style.deconvs == 2:
        return nn.Sequential(*deconv(width, width // 2), nn.ConvTranspose2d(width // 2, outputs, 4, 2, 1))
    return nn.Sequential(nn.ConvTranspose2d(width, outputs, 4, 2, 1))
