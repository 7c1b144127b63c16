"""PS-FCN's convolutions with a half to a quarter of the multiplications: Winograd's minimal filtering.

From Lavin and Gray, arXiv:1509.09308. A tile of outputs is a polynomial product; taken by its values at a few points
(Toom and Cook), n outputs of r taps need n + r - 1 products along a side, where sliding needs n r:

    y = A^T ((G g G^T) * (B^T d B)) A        g: weights, d: a tile's inputs, * elementwise and summed over channels

==========================  ===================  =========================  ================
layer                       points, and infinity  products for an output     in place of
==========================  ===================  =========================  ================
3x3, float32: 4x4 outputs   0, +-5/8, +-3/2      2.25                       9
3x3, bfloat16: 2x2 outputs  0, 1, -1             4                          9
transposed 4x4, stride 2    0, 1, -1             1.78                       4
==========================  ===================  =========================  ================

A transposed convolution is four of 2x2 taps, one for each of the pixels that an input becomes; 3x3 outputs are taken of
each. The points of 4x4 outputs were searched for: with them float32 errs about as much as sliding does. In bfloat16 the
transforms are float32 and rounded once, and larger tiles would err three times as much.

The kernel (``csrc/winograd_cpu.cpp``) is for CPUs and channels_last, adds bias and LeakyReLU, and can keep a running
maximum of its results. There is no gradient: training uses PyTorch's convolutions.
"""

from __future__ import annotations

from pathlib import Path

import torch
from papershelf import native
from torch import Tensor, nn

_kernels = native.Kernels(
    "psfcn_winograd", Path(__file__).parent / "csrc", cpu=["winograd.cpp", "winograd_cpu.cpp"], cuda=[]
)
PANEL = 32  # outputs that are packed together: kPanel of csrc/winograd.h
POINTS = {4: (0, 1, -1), 6: (0, 0.625, -0.625, 1.5, -1.5)}  # by the number of products along a side, infinity's too
TILE = {torch.float32: 4, torch.bfloat16: 2}  # outputs along a side: kTile
TILE_TWICE = 3  # and of transposed ones: kTileTwice
# A transposed convolution's taps, from the first input to the second, for even and for odd outputs.
TAPS = ((3, 1), (2, 0))

torch.library.define(
    "psfcn_winograd::conv", "(Tensor x, Tensor weights, Tensor? bias, bool twice, float slope) -> Tensor"
)
torch.library.define(
    "psfcn_winograd::conv_maximum", "(Tensor(a!) most, Tensor x, Tensor weights, Tensor? bias, float slope) -> ()"
)


@torch.library.register_fake("psfcn_winograd::conv")
def _(x: Tensor, weights: Tensor, bias: Tensor | None, twice: bool, slope: float) -> Tensor:
    scale = 2 if twice else 1
    shape = len(x), weights.shape[1] * PANEL, x.shape[2] * scale, x.shape[3] * scale
    return x.new_empty(shape).to(memory_format=torch.channels_last)


@torch.library.register_fake("psfcn_winograd::conv_maximum")
def _(most: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None, slope: float) -> None:
    return None


def available() -> bool:
    """Whether the kernel is there, after building it if need be."""
    return _kernels.load("cpu")


class Convolution:
    """A convolution and the LeakyReLU behind it, with its weights packed for the kernel.

    Args:
        layer: ``nn.Conv2d`` of 3x3 taps with stride 1 and padding 1, or ``nn.ConvTranspose2d`` of 4x4 with stride 2 and
            padding 1, with channels in multiples of 32.
        dtype: float32 or bfloat16, of inputs and outputs; sums are float32.
        slope: of what is below zero; 1 for no activation.

    Raises:
        ValueError: another kind of layer, or another dtype.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype, slope: float) -> None:
        self.twice = isinstance(layer, nn.ConvTranspose2d)
        form = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
        wanted = ((4, 4), (2, 2)) if self.twice else ((3, 3), (1, 1))
        if form != (*wanted, (1, 1), (1, 1), 1, "zeros") or layer.in_channels % PANEL or layer.out_channels % PANEL:
            raise ValueError(f"there is no kernel for {layer}")
        if dtype not in TILE:
            raise ValueError(f"there are kernels for float32 and bfloat16, not for {dtype}")
        weight = layer.weight.detach()
        if self.twice:
            weight = weight.transpose(0, 1)
            parts = torch.stack([weight[:, :, rows][..., columns] for rows in TAPS for columns in TAPS])
        else:
            parts = weight[None]
        self.weights = pack(parts, TILE_TWICE if self.twice else TILE[dtype], dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().float().contiguous()
        self.slope, self.outputs = slope, layer.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` channels_last to ``[N, K, H, W]``, or of twice that height and width where transposed."""
        return torch.ops.psfcn_winograd.conv(x, self.weights, self.bias, self.twice, self.slope)

    def raise_maximum(self, most: Tensor, x: Tensor) -> None:
        """Make ``most`` ``[1, K, H, W]`` the larger of itself and what every image of ``x`` gives."""
        torch.ops.psfcn_winograd.conv_maximum(most, x, self.weights, self.bias, self.slope)


def pack(weight: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """G g G^T, in the kernel's order.

    Args:
        weight: ``[parts, K, C, taps, taps]``.
        tile: outputs along a side.
        dtype: of the result.

    Returns:
        ``[parts, K / 32, side^2, C, 32]``; in bfloat16 ``[.., C / 2, 32, 2]``. ``side`` is tile + taps - 1.
    """
    parts, outputs, inputs, taps, _ = weight.shape
    at = torch.tensor(POINTS[tile + taps - 1], dtype=torch.float64)
    apart = (at[:, None] - at).fill_diagonal_(1).prod(1, keepdim=True)
    by = torch.cat([at[:, None] ** torch.arange(taps) / apart, torch.eye(taps, dtype=torch.float64)[-1:]])
    pairs = 2 if dtype == torch.bfloat16 else 1
    # [parts, panels, PANEL, C / pairs, pairs, taps^2] -> [parts, panels, taps^2, C / pairs, PANEL, pairs]
    ordered = weight.float().reshape(parts, outputs // PANEL, PANEL, inputs // pairs, pairs, taps * taps)
    ordered = ordered.permute(0, 1, 5, 3, 2, 4)
    return (torch.kron(by, by).float() @ ordered.flatten(3)).view(*ordered.shape[:2], -1, *ordered.shape[3:]).to(dtype)
