"""The adder layer (AdderNet, section 3): ``torch.nn.Conv2d`` without multiplications."""

from __future__ import annotations

import math
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import Tensor, nn

from addernet.adder import adder2d

ETA = 0.2  # section 3.3: the one hyper-parameter of the local learning rate
LOCAL_RATES = ("optimizer", "backward", "off")


class Adder2d(nn.Module):
    """Stands where an ``nn.Conv2d`` stood; follow it by a batch norm, since all that it returns is below zero.

    Args:
        in_channels: C of the input ``[N, C, H, W]``.
        out_channels: O of the output ``[N, O, Ho, Wo]``, which is float32 for half precision inputs too.
        kernel_size: of the filters, one number or (height, width).
        stride: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``: zeros, which count as pixels of value 0, or ``"same"`` or ``"valid"``.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: whether a bias is added; the batch norm that follows has one already.
        eta: of the adaptive local learning rate (section 3.3).
        local_rate: where that rate is applied. ``"optimizer"``: in the optimizer's step, once
            ``addernet.attach(optimizer, model)`` was called, on the gradient as it is after accumulation,
            reduction over processes, and unscaling. ``"backward"``: in every backward pass, as the authors'
            code has it. ``"off"``: nowhere.

    Raises:
        UserError: ``local_rate`` or ``padding`` is unknown, or groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        eta: float = ETA,
        local_rate: Literal["optimizer", "backward", "off"] = "optimizer",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if local_rate not in LOCAL_RATES:
            raise UserError(f"local_rate must be one of {', '.join(LOCAL_RATES)}, got {local_rate!r}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f"groups must divide in_channels and out_channels, got {groups}, {in_channels}, {out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = self._padding(padding)
        self.eta, self.local_rate = eta, local_rate
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.reset_parameters()

    def _padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int]:
        if not isinstance(padding, str):
            return _pair(padding)
        if padding == "valid":
            return 0, 0
        reach = [step * (taps - 1) for step, taps in zip(self.dilation, self.kernel_size, strict=True)]
        if padding != "same" or self.stride != (1, 1) or any(r % 2 for r in reach):
            raise UserError(
                f"padding must be numbers, 'valid', or 'same' with stride 1 and odd kernels; got {padding!r} with "
                f"stride {self.stride}, kernel_size {self.kernel_size}, dilation {self.dilation}"
            )
        return reach[0] // 2, reach[1] // 2

    def reset_parameters(self) -> None:
        """Filters from N(0, 1), as in the authors' code; bias 0."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, O, Ho, Wo]``."""
        weight = self.weight
        if self.local_rate == "backward" and weight.requires_grad and torch.is_grad_enabled():
            weight = _NormalizedGradient.apply(weight, self.eta)
        return adder2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        shown = [("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1), ("local_rate", "optimizer")]
        text += "".join(f", {name}={getattr(self, name)!r}" for name, usual in shown if getattr(self, name) != usual)
        return text + (", bias=True" if self.bias is not None else "")


def normalize_gradient(grad: Tensor, eta: float) -> Tensor:
    """Section 3.3: eta sqrt(k) / ||g||_2 times a layer's filter gradient g of k elements."""
    norm = torch.linalg.vector_norm(grad, dtype=torch.float64 if grad.dtype == torch.float64 else torch.float32)
    return grad * (eta * math.sqrt(grad.numel()) / norm.clamp(min=1e-12)).to(grad.dtype)


class _NormalizedGradient(torch.autograd.Function):
    """The filters as they are; their gradient normalised."""

    @staticmethod
    def forward(ctx, weight: Tensor, eta: float) -> Tensor:
        ctx.eta = eta
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return normalize_gradient(grad, ctx.eta), None


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
