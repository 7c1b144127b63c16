"""The adder operation: equal to slow, obvious formulas over all shapes, with the paper's surrogate gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from addernet.adder import adder2d, adder2d_reference, filter_gradient, input_gradient_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papershelf import native
from papershelf.errors import UserError
from torch import Tensor

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
DEVICES = ["cpu", CUDA]
# n, c, h, w, o, kernel, stride, padding, dilation, groups
CASES = [
    (2, 5, 13, 9, 7, (3, 3), (2, 2), (2, 2), (1, 1), 1),
    (1, 16, 9, 11, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (3, 8, 6, 6, 12, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (2, 7, 1, 1, 5, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (1, 6, 10, 7, 8, (3, 2), (1, 2), (1, 0), (2, 3), 2),
    (1, 4, 5, 5, 4, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    (1, 33, 4, 20, 66, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 3, 8, 8, 40, (5, 5), (3, 3), (4, 4), (1, 1), 1),
]


def patches_of(x: Tensor, weight: Tensor, stride, padding, dilation) -> Tensor:
    """``[N, 1, K, P]``."""
    return F.unfold(x, weight.shape[2:], dilation, padding, stride)[:, None]


def slow(x: Tensor, weight: Tensor, stride, padding, dilation, groups) -> Tensor:
    """Eq. (2) as it stands, by broadcasting."""
    h, w = (
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    )
    parts = [
        -(patches_of(part, filters, stride, padding, dilation) - filters.flatten(1)[None, :, :, None]).abs().sum(2)
        for part, filters in zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
    ]
    return torch.cat(parts, 1).view(x.shape[0], -1, h, w)


def slow_gradients(grad: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups) -> tuple[Tensor, Tensor]:
    """Eq. (6) and (5), term by term."""
    dx, dw = [], []
    for part, filters, g in zip(x.chunk(groups, 1), weight.chunk(groups), grad.chunk(groups, 1), strict=True):
        difference = patches_of(part, filters, stride, padding, dilation) - filters.flatten(1)[None, :, :, None]
        g = g.flatten(2)[:, :, None]  # [N, O, 1, P]
        columns = ((-difference).clamp(-1, 1) * g).sum(1)
        dx.append(F.fold(columns, x.shape[2:], filters.shape[2:], dilation, padding, stride))
        dw.append((difference * g).sum((0, 3)).view_as(filters))
    return torch.cat(dx, 1), torch.cat(dw)


def make(case, device="cpu", dtype=torch.float32, seed=0) -> tuple[Tensor, Tensor, tuple]:
    n, c, h, w, o, kernel, *window = case
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=rng).to(device, dtype)
    weight = torch.randn(o, c // window[-1], *kernel, generator=rng).to(device, dtype)
    return x, weight, tuple(window)


def off(value: Tensor, exact: Tensor) -> float:
    """Largest difference, of the largest exact value."""
    return ((value.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_formulas(case, device):
    x, weight, window = make(case, device)
    x.requires_grad_(), weight.requires_grad_()
    y = adder2d(x, weight, None, *window)
    g = torch.randn_like(y)
    y.backward(g)
    wide = (x.detach().double(), weight.detach().double())
    dx, dw = slow_gradients(g.double(), *wide, *window)
    assert off(y, slow(*wide, *window)) < 1e-5
    assert off(x.grad, dx) < 1e-5
    assert off(weight.grad, dw) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_any_shape(device, data):
    groups = data.draw(st.integers(1, 3))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = (data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    h, w = (
        data.draw(st.integers(max(1, r - 2 * p), max(1, r - 2 * p) + 9)) for r, p in zip(reach, padding, strict=True)
    )
    c, o = (groups * data.draw(st.integers(1, 20)) for _ in range(2))
    n = data.draw(st.integers(0, 2))
    x, weight, window = make((n, c, h, w, o, kernel, stride, padding, dilation, groups), device)
    y = torch.ops.addernet.forward(x, weight, *window)
    g = torch.randn_like(y)
    dx = torch.ops.addernet.input_gradient(g, x, weight, *window)
    assert y.shape == F.conv2d(x, weight, None, *window).shape
    assert dx.shape == x.shape
    if n:
        wide = (x.double(), weight.double())
        assert off(y, slow(*wide, *window)) < 1e-5
        exact = slow_gradients(g.double(), *wide, *window)[0]
        assert (dx - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_float64_is_exact(case, device):
    x, weight, window = make(case, device, torch.float64)
    y = adder2d(x, weight, None, *window)
    g = torch.randn_like(y)
    assert off(y, slow(x, weight, *window)) < 1e-13
    exact_x, exact_w = slow_gradients(g, x, weight, *window)
    assert off(torch.ops.addernet.input_gradient(g, x, weight, *window), exact_x) < 1e-13
    assert off(filter_gradient(g, x, weight, *window), exact_w) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_references_equal_the_formulas(case):
    x, weight, window = make(case, dtype=torch.float64)
    y = adder2d_reference(x, weight, *window)
    g = torch.randn_like(y)
    assert off(y, slow(x, weight, *window)) < 1e-13
    assert off(input_gradient_reference(g, x, weight, *window), slow_gradients(g, x, weight, *window)[0]) < 1e-13


def test_by_hand():
    # One channel, one 1x1 filter of value 2: minus the distance of each pixel to 2.
    x = torch.tensor([[[[0.0, 2.0], [5.0, -1.0]]]], requires_grad=True)
    weight = torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    y = adder2d(x, weight)
    assert torch.equal(y, -torch.tensor([[[[2.0, 0.0], [3.0, 3.0]]]]))
    y.backward(torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]]))
    # 2 - x is 2, 0, -3, 3, clipped to 1, 0, -1, 1; x - 2 is not clipped.
    assert torch.equal(x.grad, torch.tensor([[[[1.0, 0.0], [-100.0, 1000.0]]]]))
    assert weight.grad.item() == -2 * 1 + 0 + 3 * 100 - 3 * 1000


def test_padding_counts():
    # A filter of ones over a single 0 pixel: 8 of the 9 taps lie on the padding and cost 1 each as well.
    y = adder2d(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 3, 3), padding=1)
    assert y.item() == -9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(device, dtype):
    x, weight, window = make(CASES[1], device)
    x, weight = x.to(dtype).requires_grad_(), weight.requires_grad_()
    y = adder2d(x, weight, None, *window)
    y.backward(torch.ones_like(y))
    # float16 kernels on a GPU round the filters as well.
    tolerance = 1e-5 if device == "cpu" else 3e-3
    assert y.dtype == torch.float32
    assert off(y, slow(x.detach().double(), weight.detach().double(), *window)) < tolerance
    assert x.grad.dtype == dtype
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides(device):
    x, weight, window = make(CASES[1], device)
    y = adder2d(x, weight, None, *window)
    assert y.is_contiguous()
    last = adder2d(x.contiguous(memory_format=torch.channels_last), weight, None, *window)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, y)
    wide = torch.randn(1, 32, 20, 22, device=device)
    wide[:, ::2, 1:19:2, :22:2] = x
    assert torch.equal(adder2d(wide[:, ::2, 1:19:2, :22:2], weight, None, *window), y)
    turned = weight.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    assert torch.equal(adder2d(x, turned, None, *window), y)
    even = adder2d(x[:, :1].expand_as(x), weight, None, *window)
    assert torch.equal(even, adder2d(x[:, :1].repeat(1, 16, 1, 1), weight, None, *window))


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device):
    x = torch.zeros(0, 4, 5, 5, device=device, requires_grad=True)
    weight = torch.ones(6, 4, 3, 3, device=device, requires_grad=True)
    y = adder2d(x, weight, padding=1)
    y.sum().backward()
    assert y.shape == (0, 6, 5, 5)
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_not_a_number_stays_one(device):
    x, weight, window = make(CASES[1], device)
    x[0, 3, 4, 5] = torch.nan
    y = adder2d(x, weight, None, *window)
    assert y[0, :, 3:6, 4:7].isnan().all()
    assert y.isnan().sum() == 16 * 9


@pytest.mark.parametrize("device", DEVICES)
def test_operator_contract(device):
    for case in CASES[1:5:3]:
        x, weight, window = make(case, device)
        arguments = (x.requires_grad_(), weight.requires_grad_(), *window)
        torch.library.opcheck(torch.ops.addernet.forward, arguments)
        g = torch.randn_like(torch.ops.addernet.forward(*arguments)).detach()
        torch.library.opcheck(torch.ops.addernet.input_gradient, (g, x.detach(), weight.detach(), *window))


def test_gradients_are_those_of_a_potential():
    """Within HardTanh's range both surrogate gradients are derivatives of -(x - w)^2 / 2, which gradcheck knows."""

    class Surrogate(torch.autograd.Function):
        """Minus half the squared distance, with adder2d's backward."""

        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            difference = F.unfold(x, 3, padding=1)[:, None] - weight.flatten(1)[None, :, :, None]
            return -(difference**2 / 2).sum(2).view(1, 4, 5, 4)

        @staticmethod
        def backward(ctx, grad):
            x, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            with torch.enable_grad():
                return torch.autograd.grad(adder2d(x, weight, padding=1), (x, weight), grad)

    x = (torch.rand(1, 3, 5, 4, dtype=torch.float64) * 0.4).requires_grad_()
    weight = (torch.rand(4, 3, 3, 3, dtype=torch.float64) * 0.4).requires_grad_()
    assert torch.autograd.gradcheck(Surrogate.apply, (x, weight))


def test_compiles_and_exports():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3))

        def forward(self, x):
            return adder2d(x, self.weight, padding=1, stride=2).relu() - 1

    torch._dynamo.reset()  # nothing of other tests counts against the limit of recompilations
    small, x = Small(), torch.randn(2, 3, 8, 8)
    expected = small(x)
    expected.sum().backward()
    gradient, small.weight.grad = small.weight.grad, None
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)(x)
    compiled.sum().backward()
    assert torch.equal(compiled, expected)
    assert torch.equal(small.weight.grad, gradient)
    program = torch.export.export(small, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    assert torch.equal(program.module()(torch.cat([x, x])), torch.cat([expected, expected]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 8, 8)}, r"x must be floating point \[N, C, H, W\]"),
        ({"x": torch.zeros(1, 4, 8, 8, dtype=torch.int32)}, "x must be floating point"),
        ({"weight": torch.zeros(2, 3, 3, 3)}, "x has 4 channels"),
        ({"weight": torch.zeros(2, 4, 3)}, "weight must be"),
        ({"groups": 3}, "x has 4 channels"),
        ({"stride": 0}, "stride must be"),
        ({"padding": -1}, "padding must be"),
        ({"dilation": (1, 2, 3)}, "dilation must be"),
        ({"bias": torch.zeros(3)}, r"bias must be \[2\]"),
        ({"dilation": 5}, "smaller than a filter"),
    ],
)
def test_wrong_shapes_are_told(arguments, message):
    fitting = {"x": torch.zeros(1, 4, 8, 8), "weight": torch.zeros(2, 4, 3, 3)}
    with pytest.raises(UserError, match=message):
        adder2d(**(fitting | arguments))


def test_without_kernels(monkeypatch):
    x, weight, window = make(CASES[0])
    expected = adder2d(x, weight, None, *window)
    g = torch.randn_like(expected)
    gradient = torch.ops.addernet.input_gradient(g, x, weight, *window)
    monkeypatch.setattr("addernet.adder._kernels", native.Kernels("addernet_none", Path("none"), [], []))
    monkeypatch.setenv("PAPERSHELF_NATIVE", "off")
    torch.testing.assert_close(adder2d(x, weight, None, *window), expected)
    torch.testing.assert_close(torch.ops.addernet.input_gradient(g, x, weight, *window), gradient)


def test_threads_change_no_bit():
    x, weight, window = make((3, 20, 17, 13, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(adder2d(x, weight, None, *window))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.slow  # two builds
@pytest.mark.skipif(os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu", reason="of the CPU's kernels")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx"])
def test_processors_with_less(flags):
    tests = [__file__, "-m", "not slow", "-k", "formulas or any_shape or exact"]
    env = os.environ | {"PAPERSHELF_CXXFLAGS": flags, "PAPERSHELF_NATIVE": "require"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
