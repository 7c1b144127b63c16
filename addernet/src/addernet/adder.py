r"""The adder operation (AdderNet, sections 3.1 and 3.2) and its gradients.

.. math::
    Y(n, o, p) &= -\sum_k |X(n, k, p) - F(o, k)| \qquad \text{(eq. 2)} \\
    \partial Y(n, o, p) / \partial F(o, k) &:= X(n, k, p) - F(o, k) \qquad \text{(eq. 5, full precision)} \\
    \partial Y(n, o, p) / \partial X(n, k, p) &:= \mathrm{HT}(F(o, k) - X(n, k, p)) \qquad \text{(eq. 6)}

where k runs over a filter's taps (channel, row, column), p over the output's positions, and HT clips to
[-1, 1]. A tap that falls on the padding sees X = 0 and contributes like any other: padding is not neutral.

The filter's gradient needs no kernel of its own: summed against the gradient ``g`` of Y it is an ordinary
convolution's minus a correction, ``conv_weight_gradient(X, g) - F * sum_p g``. The other two are computed by the
kernels in ``csrc/`` when they can be built, and by :func:`adder2d_reference` and :func:`input_gradient_reference`
when they cannot.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf import native
from papershelf.errors import UserError
from torch import Tensor

_kernels = native.Kernels(
    "addernet",
    Path(__file__).parent / "csrc",
    cpu=["adder.cpp", "adder_cpu.cpp", "adder_cpu_gradient.cpp"],
    cuda=["adder.cu"],
)
STORED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # dtypes that x may have


def adder2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Eq. (2): similarity of each patch and each filter as minus their L1 distance; stands in for ``F.conv2d``.

    Backward gives the paper's surrogate gradients (eq. 5 and 6), not the subgradient of the absolute value.
    The adaptive local learning rate of section 3.3 is not in it: see :mod:`addernet.local_rate`.

    Args:
        x: ``[N, C, H, W]``, float16, bfloat16, float32 or float64, any strides; channels last is fastest.
        weight: ``[O, C / groups, kh, kw]``, floating point.
        bias: ``[O]``, added to the output.
        stride: step of the window in pixels, one number or (vertical, horizontal).
        padding: zeros around x, in pixels; they count as pixels of value 0.
        dilation: distance of a filter's taps in pixels.
        groups: of channels, each seen by its own ``O / groups`` filters.

    Returns:
        ``[N, O, Ho, Wo]`` in x's memory format; float64 where x or the filters are, else float32: the values are
        sums of thousands of terms, which half precision does not hold, so cast after the batch norm that follows.

    Raises:
        UserError: shapes, dtypes or devices do not fit.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    _check(x, weight, bias, stride, padding, dilation, groups)
    y = torch.ops.addernet.forward(x, weight, stride, padding, dilation, groups)
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def adder2d_reference(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Eq. (2) in plain PyTorch: slower, and the oracle of tests. Not differentiable as the paper has it."""
    n, o = x.shape[0], weight.shape[0]
    precision = _precision(x, weight)
    height, width = _output_size(x, weight, stride, padding, dilation)
    if n * height * width == 0:
        return torch.zeros(n, o, height, width, dtype=precision, device=x.device)
    results = []
    for part, filters in zip(x.to(precision).chunk(groups, 1), weight.to(precision).chunk(groups), strict=True):
        patches = F.unfold(part, weight.shape[2:], dilation, padding, stride)  # [N, K, P]
        results.append(-torch.cdist(filters.flatten(1)[None], patches.mT, p=1))  # [N, O / groups, P]
    return torch.cat(results, 1).view(n, o, height, width)


def input_gradient_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Eq. (6) against the gradient ``[N, O, Ho, Wo]`` of Y in plain PyTorch: gradient of x, ``[N, C, H, W]``."""
    precision = _precision(x, weight)
    window = (weight.shape[2:], dilation, padding, stride)
    results = []
    for part, filters, g in zip(
        x.to(precision).chunk(groups, 1), weight.to(precision).chunk(groups), grad.chunk(groups, 1), strict=True
    ):
        if grad.numel() == 0:
            results.append(torch.zeros_like(part))
            continue
        patches = F.unfold(part, *window)  # [N, K, P]
        total = torch.zeros_like(patches)
        for one, g_one in zip(filters.flatten(1), g.to(precision).flatten(2).unbind(1), strict=True):
            total += (one[:, None] - patches).clamp(-1, 1) * g_one[:, None]
        results.append(F.fold(total, x.shape[2:], *window))
    return torch.cat(results, 1).to(x.dtype)


def filter_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Eq. (5) against the gradient ``[N, O, Ho, Wo]`` of Y: gradient of the filters, in their shape and dtype."""
    precision = _precision(x, weight)
    g = grad.to(precision)
    size = (stride, padding, dilation, False, (0, 0), groups, (False, True, False))
    convolution = torch.ops.aten.convolution_backward(g, x.to(precision), weight.to(precision), None, *size)[1]
    return (convolution - weight * g.sum((0, 2, 3))[:, None, None, None]).to(weight.dtype)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _precision(x: Tensor, weight: Tensor) -> torch.dtype:
    """What is computed in, and what y is stored as, whatever x and the filters are stored as."""
    return torch.float64 if torch.float64 in (x.dtype, weight.dtype) else torch.float32


def _output_size(x: Tensor, weight: Tensor, stride, padding, dilation) -> tuple[int, int]:
    height, width = (
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, pad, step, taps, jump in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    )
    return height, width


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> None:
    if x.ndim != 4 or x.dtype not in STORED:
        raise UserError(f"x must be floating point [N, C, H, W], got {x.dtype} {list(x.shape)}")
    if weight.ndim != 4 or not weight.is_floating_point() or 0 in weight.shape:
        raise UserError(
            f"weight must be floating point [O, C / groups, kh, kw], got {weight.dtype} {list(weight.shape)}"
        )
    if weight.device != x.device:
        raise UserError(f"weight is on {weight.device}, x on {x.device}")
    if groups < 1 or weight.shape[0] % groups or x.shape[1] != weight.shape[1] * groups:
        raise UserError(
            f"x has {x.shape[1]} channels, but weight {list(weight.shape)} with groups={groups} needs "
            f"{weight.shape[1] * max(groups, 1)}, and its {weight.shape[0]} filters divided evenly among the groups"
        )
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != 2 or min(value) < least:
            raise UserError(f"{name} must be one or two numbers from {least} on, got {value}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"bias must be [{weight.shape[0]}] to fit weight {list(weight.shape)}, got {list(bias.shape)}")
    if min(_output_size(x, weight, stride, padding, dilation)) < 1:
        raise UserError(
            f"x {list(x.shape)} with padding {padding} is smaller than a filter of {list(weight.shape[2:])} with "
            f"dilation {dilation}"
        )


# The operators themselves: schema, shapes for torch.compile, gradient, and what computes them without kernels.
_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
torch.library.define("addernet::forward", f"(Tensor x, Tensor weight, {_WINDOW}) -> Tensor")
torch.library.define("addernet::input_gradient", f"(Tensor grad, Tensor x, Tensor weight, {_WINDOW}) -> Tensor")
# What csrc/ registers: x dense and channels last, the filters likewise and of y's dtype. x on a CPU has that
# dtype too.
torch.library.define("addernet::forward_kernel", f"(Tensor x, Tensor filters, {_WINDOW}) -> Tensor")
torch.library.define("addernet::input_gradient_kernel", f"(Tensor grad, Tensor x, Tensor filters, {_WINDOW}) -> Tensor")


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = not x.is_contiguous() and x.stride(1) == 1
    return torch.channels_last if channels_last else torch.contiguous_format


def _operands(x: Tensor, weight: Tensor, *more: Tensor) -> list[Tensor]:
    """Tensors as the kernels take them."""
    precision = _precision(x, weight)
    stored = x.dtype if x.is_cuda and precision == torch.float32 else precision
    tensors = [t.to(precision, memory_format=torch.channels_last) for t in (weight, *more)]
    return [t.contiguous(memory_format=torch.channels_last) for t in (x.to(stored), *tensors)]


@torch.library.impl("addernet::forward", ["cpu", "cuda"])
def _forward(x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    window = (stride, padding, dilation, groups)
    if _kernels.load(x.device):
        y = torch.ops.addernet.forward_kernel(*_operands(x, weight), *window)
    else:
        y = adder2d_reference(x, weight, *window)
    return y.contiguous(memory_format=_memory_format(x))


@torch.library.impl("addernet::input_gradient", ["cpu", "cuda"])
def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    window = (stride, padding, dilation, groups)
    if _kernels.load(x.device):
        image, filters, g = _operands(x, weight, grad)
        gradient = torch.ops.addernet.input_gradient_kernel(g, image, filters, *window).to(x.dtype)
    else:
        gradient = input_gradient_reference(grad, x, weight, *window)
    return gradient.contiguous(memory_format=_memory_format(x))


@torch.library.register_fake("addernet::forward")
def _(x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *_output_size(x, weight, stride, padding, dilation))
    return torch.empty(shape, dtype=_precision(x, weight), device=x.device, memory_format=_memory_format(x))


@torch.library.register_fake("addernet::input_gradient")
def _(grad: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


def _save(ctx, inputs, output) -> None:
    x, weight, *ctx.window = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x = torch.ops.addernet.input_gradient(grad, x, weight, *ctx.window) if ctx.needs_input_grad[0] else None
    grad_weight = filter_gradient(grad, x, weight, *ctx.window) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None, None, None, None


torch.library.register_autograd("addernet::forward", _backward, setup_context=_save)
