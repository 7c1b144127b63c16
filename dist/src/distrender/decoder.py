"""DeepSDF's decoder: a network that gives the signed distance of a shape from a latent code and a point.

Park et al., "DeepSDF" (CVPR 2019, arXiv:1901.05103), section 4 and its supplement's figure of the network; it is
the shape that DIST renders (section 3.1). The published size is the default: ``lin0`` to ``lin7`` of 512 numbers
with ReLU, a code of 256, the input once more before ``lin4`` (so ``lin3`` gives only 253), ``lin8`` for the
distance, tanh at the end.

While one shape is rendered its code does not change, so what ``lin0`` and ``lin4`` make of it is added to their
biases once: :class:`CodedSDF`, 14% fewer multiplications a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor, nn

from distrender import decoder_kernels

ACTIVATIONS = ("relu", "softplus")
SHARPNESS = 100.0  # of softplus, a ReLU with its corner rounded off over 1 / SHARPNESS


@dataclass(frozen=True)
class LayerShape:
    """What one linear layer sees: ``previous`` numbers, then perhaps the code, then perhaps the point."""

    previous: int
    code: bool
    point: bool
    out: int


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture; the defaults are DeepSDF's published one.

    Args:
        latent: numbers in a code.
        hidden: what each layer but the first takes in, all parts together.
        layers: hidden ones; the one that gives the distance comes after them.
        skip: which layers see code and point again, counted from 0.
        xyz_in_all: every layer sees the point again.
        activation: between layers, ``"relu"`` or ``"softplus"`` (smooth, for losses on the gradient).
        final_tanh: how often tanh is applied at the end: 0, 1, or 2 (DeepSDF's ``use_tanh`` adds one).

    Raises:
        UserError: there is no such network.
    """

    latent: int = 256
    hidden: int = 512
    layers: int = 8
    skip: tuple[int, ...] = (4,)
    xyz_in_all: bool = False
    activation: str = "relu"
    final_tanh: int = 1

    def __post_init__(self) -> None:
        if self.latent < 0 or self.hidden < 1 or self.layers < 1 or self.final_tanh not in (0, 1, 2):
            raise UserError(
                "a decoder needs latent >= 0, hidden >= 1, layers >= 1 and final_tanh of 0, 1 or 2, got "
                f"{self.latent}, {self.hidden}, {self.layers} and {self.final_tanh}"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if any(not 1 <= k <= self.layers for k in self.skip):
            raise UserError(f"layers that can see the input again are 1 to {self.layers}, got skip={self.skip}")
        if self.skip and self.hidden <= self.latent + 3:
            raise UserError(
                f"with skip={self.skip} hidden must exceed latent + 3 = {self.latent + 3}, got {self.hidden}"
            )

    def shapes(self) -> list[LayerShape]:
        """Of ``lin0`` and those that follow; the last gives the distance."""
        code = [k == 0 or k in self.skip for k in range(self.layers + 1)]
        point = [seen or self.xyz_in_all for seen in code]
        rest = [self.hidden - self.latent * code[k] - 3 * point[k] for k in range(1, self.layers + 1)]
        return [LayerShape(*sizes) for sizes in zip([0, *rest], code, point, [*rest, 1], strict=True)]

    def macs(self, folded: bool = False) -> int:
        """Multiplications with an addition that one point takes; ``folded``: what the code gives is in the biases."""
        return sum(s.out * (s.previous + self.latent * (s.code and not folded) + 3 * s.point) for s in self.shapes())


class DeepSDFDecoder(nn.Module):
    """Signed distance of many shapes: ``decoder(latent, points)``, its layers called as in DeepSDF's files."""

    def __init__(self, config: DecoderConfig | None = None):
        super().__init__()
        self.config = config or DecoderConfig()
        self._packed: dict[torch.dtype, decoder_kernels.Packed] = {}
        for k, s in enumerate(self.config.shapes()):
            self.add_module(f"lin{k}", nn.Linear(s.previous + self.config.latent * s.code + 3 * s.point, s.out))

    def forward(self, latent: Tensor, points: Tensor) -> Tensor:
        """Distances of points to the shapes of codes, in what of float32 and float64 is wider among all of them.

        Args:
            latent: ``[L]`` for all points, or ``[..., L]`` that broadcasts against the points: ``[N, L]`` with
                ``[N, 3]``, ``[S, 1, L]`` with ``[S, P, 3]``.
            points: ``[..., 3]``.

        Returns:
            Shape of ``points`` without the last dimension; negative inside.
        """
        return evaluate(self.config, self.folded(latent, points.dtype), points)

    def folded(self, latent: Tensor, dtype: torch.dtype | None = None) -> list[tuple[Tensor, Tensor]]:
        """Weights without the code's columns, ``[out, previous + 3 * point]``, and biases with the code in them.

        A bias is ``[out]`` or, where the layer sees a code of shape ``[..., L]``, ``[..., out]``. All differentiable.

        Raises:
            UserError: the code is not of this decoder's size.
        """
        size = self.config.latent
        if latent.ndim < 1 or latent.shape[-1] != size:
            raise UserError(f"this decoder's codes have {size} numbers, got {list(latent.shape)}; give [..., {size}]")
        precision = torch.promote_types(latent.dtype, self.lin0.weight.dtype)
        precision = precision if dtype is None else torch.promote_types(precision, dtype)
        layers = []
        for k, s in enumerate(self.config.shapes()):
            linear = self.get_submodule(f"lin{k}")
            weight, bias = linear.weight.to(precision), linear.bias.to(precision)
            if s.code:
                bias = F.linear(latent.to(precision), weight[:, s.previous : s.previous + size], bias)
                weight = torch.cat([weight[:, : s.previous], weight[:, -3:]], 1)
            layers.append((weight, bias))
        return layers

    def packed(self, dtype: torch.dtype) -> decoder_kernels.Packed:
        """The weights as the kernels want them, packed anew after they changed (but not by way of ``.data``)."""
        packed = self._packed.get(dtype)
        if packed is None or not packed.fits(self):
            packed = self._packed[dtype] = decoder_kernels.Packed(self, dtype)
        return packed

    def with_code(self, latent: Tensor) -> CodedSDF:
        """The signed distance function of one shape; gradients flow to ``latent`` ``[L]`` and to the decoder."""
        return CodedSDF(self, latent)


class CodedSDF(nn.Module):
    """The shape of one code as a function ``[..., 3] -> [...]``; without gradients it takes the faster kernels."""

    def __init__(self, decoder: DeepSDFDecoder, latent: Tensor):
        super().__init__()
        if latent.shape != (decoder.config.latent,):
            raise UserError(f"a shape has one code of [{decoder.config.latent}] numbers, got {list(latent.shape)}")
        self.decoder = decoder
        if isinstance(latent, nn.Parameter):
            self.latent = latent
        else:
            self.register_buffer("latent", latent)

    def forward(self, points: Tensor) -> Tensor:
        """Signed distances of ``points`` ``[..., 3]``; under ``torch.no_grad()`` by the kernels, if there are any."""
        if torch.is_grad_enabled() or not self._has_kernel(points):
            return self.decoder(self.latent, points)
        return decoder_kernels.decode(self.decoder.packed(torch.float32), self.latent, points)

    def approximate(self, points: Tensor) -> Tensor:
        """The same without gradients, good to about 1e-3 and faster: in bfloat16, on a GPU in halves.

        Where processors do not multiply these it is :meth:`forward`. For steps that are far from a surface.
        """
        dtype = decoder_kernels.rough_dtype(points.device)
        with torch.no_grad():
            if dtype is None or not self._has_kernel(points):
                return self(points)
            return decoder_kernels.decode(self.decoder.packed(dtype), self.latent, points)

    def has_faster_approximation(self) -> bool:
        """Whether :meth:`approximate` is anything else than :meth:`forward` where this decoder is."""
        return decoder_kernels.rough_dtype(self.latent.device) is not None and self._has_kernel(self.latent)

    def _has_kernel(self, points: Tensor) -> bool:
        return decoder_kernels.serves(self.decoder.config, points, self.latent, self.decoder.lin0.weight)


def evaluate(config: DecoderConfig, layers: list[tuple[Tensor, Tensor]], points: Tensor) -> Tensor:
    """The network once the code is in its biases, as :meth:`DeepSDFDecoder.folded` gives it."""
    shapes = config.shapes()
    points = points.to(layers[0][0].dtype)
    x = points
    for k, (s, (weight, bias)) in enumerate(zip(shapes, layers, strict=True)):
        if k > 0 and s.point:
            x = torch.cat([x, points], -1)
        # One bias for all points goes into the product; codes of several shapes give each its own.
        x = F.linear(x, weight, bias) if bias.ndim == 1 else F.linear(x, weight) + bias
        if k < config.layers:
            x = F.relu(x) if config.activation == "relu" else F.softplus(x, SHARPNESS)
    for _ in range(config.final_tanh):
        x = torch.tanh(x)
    return x.squeeze(-1)
