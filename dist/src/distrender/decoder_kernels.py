"""A decoder with one code, for many points at once, in one operator: tiles of points through all layers in the cache.

PyTorch goes layer by layer, so that the numbers of all points travel to memory and back between any two; here a tile
of points goes through the whole network (``csrc/decoder_cpu.cpp``; ``csrc/decoder_tile.h`` on a GPU). Weights are
packed once for a decoder, whatever the code: a code only changes the biases. There are kernels for ReLU in float32, and
with weights and the numbers between layers in 16 bits, for steps that are still far from a surface: bfloat16, good to
about 1e-3, and on a GPU halves, good to about 1e-4 as long as no number between layers exceeds 65504.
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
    "distrender_decoder", Path(__file__).parent / "csrc", cpu=["decoder.cpp", "decoder_cpu.cpp"], cuda=["decoder.cu"]
)
BLOCK = 14  # outputs that are packed together for a CPU: kBlock of csrc/decoder.h
COLUMNS, WARPS, LAYERS = 64, 8, 32  # on a GPU: outputs of a warp, and at most so many: csrc/decoder_tile.h
AMPERE = (8, 0)  # the first GPUs with the shared memory and the instructions that are needed
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
    device = tensors[0].device if tensors else torch.device("cpu")
    if config.activation != "relu" or any(t.dtype != torch.float32 or t.device != device for t in tensors):
        return False
    if native.runs_cuda_code(device):
        widest = max(s.out for s in config.shapes())
        if widest > COLUMNS * WARPS or config.layers >= LAYERS:
            return False
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
            return False
    return device.type in ("cpu", "cuda") and _kernels.load(device)


def rough_dtype(device: torch.device) -> torch.dtype | None:
    """The 16 bits in which kernels for ``device`` are faster than in float32, if any."""
    if native.runs_cuda_code(device):
        return torch.float16
    return torch.bfloat16 if MULTIPLIES_BFLOAT16 else None


def decode(packed: Packed, latent: Tensor, points: Tensor) -> Tensor:
    """Distances ``[...]`` at ``points`` ``[..., 3]`` for a code ``[latent]``, without gradients."""
    heads = packed.heads(latent)
    flat = points.reshape(-1, 3).contiguous()
    distances = torch.ops.distrender.decode(flat, heads, packed.weights, packed.sizes, packed.config.final_tanh)
    return distances.view(points.shape[:-1])


class Packed:
    """A decoder's weights in the order in which the kernel reads them.

    Args:
        decoder: float32, on the device that will read them.
        dtype: of the weights and of the numbers between layers: float32, bfloat16 or, for CUDA kernels, float16.
    """

    def __init__(self, decoder: DeepSDFDecoder, dtype: torch.dtype = torch.float32):
        self.config = decoder.config
        self.sizes = [n for s in self.config.shapes() for n in (s.previous, int(s.point), s.out)]
        self.state = _state(decoder)
        self._kept: tuple[Tensor, int, Tensor] | None = None  # a code, its version, its heads
        # Detached, they share the parameters' memory; a parameter that is replaced makes `fits` say no.
        self.linears = [
            (linear.weight.detach(), linear.bias.detach())
            for linear in (decoder.get_submodule(f"lin{k}") for k in range(self.config.layers + 1))
        ]
        self.for_cuda = native.runs_cuda_code(self.linears[0][0].device)
        weights = [
            weight[:, : s.previous].to(dtype) for s, (weight, _) in zip(self.config.shapes(), self.linears, strict=True)
        ]
        self.weights = _slabs(weights[:-1]) if self.for_cuda else torch.cat([_blocks(weight) for weight in weights])

    def fits(self, decoder: DeepSDFDecoder) -> bool:
        """Whether the decoder's weights are still those that were packed."""
        return self.state is not None and self.state == _state(decoder)

    def heads(self, latent: Tensor) -> Tensor:
        """Of every output the bias with the code in it and the factors of x, y and z, in the kernel's order.

        Kept until another code is asked for or this one changes: they take longer than a few points do.
        """
        if latent.is_inference():
            return self._heads_of(latent)
        if self._kept is None or self._kept[0] is not latent or self._kept[1] != latent._version:
            self._kept = latent, latent._version, self._heads_of(latent.detach())
        return self._kept[2]

    def _heads_of(self, latent: Tensor) -> Tensor:
        pieces = []
        for k, (s, (weight, bias)) in enumerate(zip(self.config.shapes(), self.linears, strict=True)):
            if s.code:
                bias = F.linear(latent, weight[:, s.previous : s.previous + self.config.latent], bias)
            point = weight[:, -3:] if s.point else bias.new_zeros(s.out, 3)
            head = torch.cat([bias[:, None], point], 1)
            if not self.for_cuda:
                head = F.pad(head, (0, 0, 0, -s.out % BLOCK)).view(-1, BLOCK, 4).transpose(1, 2)
            elif k < self.config.layers:
                head = F.pad(head, (0, 0, 0, -s.out % COLUMNS))
            else:  # the last layer's weights come behind
                head = torch.cat([head, F.pad(weight[:, : s.previous], (0, -s.previous % 8))], 1)
            pieces.append(head.flatten())
        return torch.cat(pieces)


def _blocks(weight: Tensor) -> Tensor:
    """A layer's weights ``[out, in]`` for a CPU: [blocks, inputs, BLOCK], or with pairs of inputs last."""
    pairs = 4 // weight.element_size()
    padded = F.pad(weight, (0, -weight.shape[1] % pairs, 0, -len(weight) % BLOCK))
    return padded.view(len(padded) // BLOCK, BLOCK, padded.shape[1] // pairs, pairs).transpose(1, 2).flatten()


def _slabs(weights: list[Tensor]) -> Tensor:
    """All hidden layers' weights ``[out, in]`` for a GPU: by warp, layer and slab as csrc/decoder_slabs.h says."""
    warps: list[list[Tensor]] = [[] for _ in range(0, max(len(weight) for weight in weights), COLUMNS)]
    for weight in weights:
        depth = 16 if weight.element_size() == 2 else 4
        padded = F.pad(weight, (0, -weight.shape[1] % depth, 0, -len(weight) % COLUMNS))
        shape = len(padded) // COLUMNS, 4, 2
        if depth == 16:  # [warp, q, n of two, g, slab, t, input] -> [warp, slab, q, g, t, n, input]
            ordered = padded.view(*shape, 8, -1, 4, 4).permute(0, 4, 1, 3, 5, 2, 6)
        else:  # [warp, q, n of two, t, e, slab, input] -> [warp, slab, input, q, t, n, e]
            ordered = padded.view(*shape, 4, 2, -1, 4).permute(0, 5, 6, 1, 3, 2, 4)
        for warp, own in enumerate(ordered):
            warps[warp].append(own.flatten())
    return torch.cat([piece for pieces in warps for piece in pieces])


def _state(decoder: DeepSDFDecoder) -> list[tuple[int, int]] | None:
    """What changes when a weight does; None where PyTorch does not tell."""
    parameters = list(decoder.parameters())
    if any(p.is_inference() for p in parameters):
        return None
    return [(p.data_ptr(), p._version) for p in parameters]
