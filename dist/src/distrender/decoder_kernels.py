"""A decoder with one code, for many points at once, in one operator: tiles of points through all layers in the cache.

PyTorch goes layer by layer, so that the numbers of all points travel to memory and back between any two; here 128
points go through the whole network (``csrc/decoder_cpu.cpp``). Weights are packed once for a decoder, whatever the
code: a code only changes the biases. There are kernels for ReLU in float32, and with weights and the numbers between
layers in bfloat16, good to about 1e-3, for steps that are still far from a surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from papershelf import native
from torch import Tensor

if TYPE_CHECKING:
    from distrender.decoder import DecoderConfig, DeepSDFDecoder

_kernels = native.Kernels(
    "distrender_decoder", Path(__file__).parent / "csrc", cpu=["decoder.cpp", "decoder_cpu.cpp"], cuda=[]
)
BLOCK = 14  # outputs that are packed together: kBlock of csrc/decoder.h
# Without such instructions bfloat16 is slower than float32. Older releases of PyTorch do not tell.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))

torch.library.define(
    "distrender::decode", "(Tensor points, Tensor heads, Tensor weights, SymInt[] sizes, SymInt tanh) -> Tensor"
)


@torch.library.register_fake("distrender::decode")
def _(points: Tensor, heads: Tensor, weights: Tensor, sizes: Sequence[int], tanh: int) -> Tensor:
    return points.new_empty(points.shape[0])


def serves(config: DecoderConfig, *tensors: Tensor) -> bool:
    """Whether there is a kernel for this network in float32 on the tensors' device, after building it if need be."""
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return fits and config.activation == "relu" and _kernels.load("cpu")


def decode(packed: Packed, latent: Tensor, points: Tensor) -> Tensor:
    """Distances ``[...]`` at ``points`` ``[..., 3]`` for a code ``[latent]``, without gradients."""
    heads = packed.heads(latent)
    flat = points.reshape(-1, 3).contiguous()
    distances = torch.ops.distrender.decode(flat, heads, packed.weights, packed.sizes, packed.config.final_tanh)
    return distances.view(points.shape[:-1])


class Packed:
    """A decoder's weights in the order in which the kernel reads them.

    Args:
        decoder: float32, on the CPU.
        dtype: of the weights and of the numbers between layers: float32 or bfloat16.
    """

    def __init__(self, decoder: DeepSDFDecoder, dtype: torch.dtype = torch.float32):
        self.config = decoder.config
        self.sizes = [n for s in self.config.shapes() for n in (s.previous, int(s.point), s.out)]
        self.state = _state(decoder)
        # Detached, they share the parameters' memory; a parameter that is replaced makes `fits` say no.
        self.linears = [
            (linear.weight.detach(), linear.bias.detach())
            for linear in (decoder.get_submodule(f"lin{k}") for k in range(self.config.layers + 1))
        ]
        pieces = []
        for s, (weight, _) in zip(self.config.shapes(), self.linears, strict=True):
            weight = weight[:, : s.previous].to(dtype)
            pairs = 2 if dtype == torch.bfloat16 else 1
            padded = F.pad(weight, (0, -s.previous % pairs, 0, -s.out % BLOCK))
            # [blocks, outputs, inputs, pair] -> [blocks, inputs, outputs, pair]
            pieces.append(
                padded.view(len(padded) // BLOCK, BLOCK, padded.shape[1] // pairs, pairs).transpose(1, 2).flatten()
            )
        self.weights = torch.cat(pieces)

    def fits(self, decoder: DeepSDFDecoder) -> bool:
        """Whether the decoder's weights are still those that were packed."""
        return self.state is not None and self.state == _state(decoder)

    def heads(self, latent: Tensor) -> Tensor:
        """For every layer and block of outputs ``[4, BLOCK]``: biases with the code in them, factors of x, y and z."""
        pieces = []
        for s, (weight, bias) in zip(self.config.shapes(), self.linears, strict=True):
            if s.code:
                bias = F.linear(latent, weight[:, s.previous : s.previous + self.config.latent], bias)
            point = weight[:, -3:] if s.point else bias.new_zeros(s.out, 3)
            head = F.pad(torch.cat([bias[:, None], point], 1), (0, 0, 0, -s.out % BLOCK))
            pieces.append(head.view(-1, BLOCK, 4).transpose(1, 2).flatten())
        return torch.cat(pieces)


def _state(decoder: DeepSDFDecoder) -> list[tuple[int, int]] | None:
    """What changes when a weight does; None where PyTorch does not tell."""
    parameters = list(decoder.parameters())
    if any(p.is_inference() for p in parameters):
        return None
    return [(p.data_ptr(), p._version) for p in parameters]
