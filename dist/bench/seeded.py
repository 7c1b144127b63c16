"""Decoders that need no training: random weights from a seed, arranged so that the zero set is nearly a sphere.

Geometric initialisation (Atzmon and Lipman, "SAL", arXiv:1911.10414, theorem 1): with weights N(0, 2/out) and no biases
a ReLU layer keeps lengths, and a last layer of sqrt(pi / n) everywhere adds them up to about |x|; its bias is minus the
radius. Here the inputs of ``lin0`` and of the skip layer that carry the code are random too, but small, so that
the code bends the sphere.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from torch import Tensor


@torch.no_grad()
def sphere_decoder(
    config: DecoderConfig | None = None, radius: float = 0.6, bend: float = 0.02, seed: int = 0
) -> tuple[DeepSDFDecoder, Tensor]:
    """A decoder, float32, and a code ``[latent]`` whose shape is a bent sphere of about this radius."""
    config = config or DecoderConfig()
    generator = torch.Generator().manual_seed(seed)
    decoder = DeepSDFDecoder(replace(config, final_tanh=0)).eval()
    for k, shape in enumerate(config.shapes()):
        linear = decoder.get_submodule(f"lin{k}")
        linear.bias.zero_()
        linear.weight.copy_(math.sqrt(2 / shape.out) * torch.randn(linear.weight.shape, generator=generator))
        if shape.code:
            linear.weight[:, shape.previous : shape.previous + config.latent] *= bend
    last = decoder.get_submodule(f"lin{config.layers}")
    last.weight.fill_(math.sqrt(math.pi / last.in_features))
    code = torch.randn(config.latent, generator=generator)
    # What layers see again adds to the slope, and so does chance: measured on the sphere, and set to one.
    on_sphere = radius * F.normalize(torch.randn(512, 3, generator=generator), dim=-1)
    last.weight *= radius / decoder(code, on_sphere).mean()
    last.bias.fill_(-radius)
    finished = DeepSDFDecoder(config).eval()
    finished.load_state_dict(decoder.state_dict())
    return finished, code
