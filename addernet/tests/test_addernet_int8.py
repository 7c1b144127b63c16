"""Adder layers on bytes: every path of the kernels against plain PyTorch, and numbers worked out by hand."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from addernet.int8 import (
    Grid,
    adder2d_int8,
    adder2d_int8_reference,
    layer_reference,
    pack,
    quantize,
    quantize_reference,
    unpack,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError

from addernet import int8

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
MODE = os.environ.get("PAPERSHELF_NATIVE", "auto")
# n, c, o, h, w, kernel, stride, padding, dilation, groups
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, 0, 1, 1),
    (2, 5, 7, 13, 9, 3, 2, 2, 1, 1),
    (2, 16, 16, 8, 8, 3, 1, 1, 1, 1),
    (3, 16, 40, 7, 5, 1, 2, 0, 1, 1),  # read in place, with a stride
    (1, 32, 17, 5, 11, 3, 1, 0, 1, 1),  # read in place, several taps
    (3, 12, 18, 9, 9, 3, 1, 2, 2, 3),
    (1, 16, 16, 9, 9, 3, 1, 0, 2, 2),  # groups read in place
    (1, 8, 72, 6, 21, 3, 1, 1, 1, 1),  # blocks of 4, 4 and 1
    (2, 24, 48, 3, 1, 3, 1, 1, 1, 1),
    (1, 8, 8, 5, 5, 5, 1, 2, 1, 1),
    (1, 6, 6, 7, 7, 3, 1, 1, 1, 6),
]


@pytest.fixture(params=DEVICES)
def device(request):
    assert int8._kernels.load(request.param), "the kernels cannot be built here"
    return torch.device(request.param)


def operands(device, n, c, o, h, w, kernel, stride, padding, dilation, groups, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, c, h, w), generator=rng, dtype=torch.uint8).to(device)
    weight = torch.randint(0, 256, (o, c // groups, kernel, kernel), generator=rng, dtype=torch.uint8).to(device)
    return x, weight, ((stride, stride), (padding, padding), (dilation, dilation), groups)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_the_references(device, shape):
    x, weight, window = operands(device, *shape)
    for zero_point in (0, 37, 255):
        got = adder2d_int8(x, weight, zero_point, *window)
        assert got.dtype == torch.int32
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, adder2d_int8_reference(x, weight, zero_point, *window))


@settings(max_examples=4 if MODE == "cuda-on-cpu" else 60)
@given(st.data())
def test_sums_of_any_shape(data):
    groups, kernel, dilation, padding = (data.draw(st.integers(*r)) for r in ((1, 3), (1, 4), (1, 2), (0, 3)))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    size = [data.draw(st.integers(least, least + 20)) for _ in range(2)]
    c, o = (groups * data.draw(st.integers(1, 24)) for _ in range(2))
    shape = (data.draw(st.integers(1, 3)), c, o, *size, kernel, data.draw(st.integers(1, 3)), padding, dilation, groups)
    x, weight, window = operands("cpu", *shape)
    assert torch.equal(adder2d_int8(x, weight, 99, *window), adder2d_int8_reference(x, weight, 99, *window))


def test_padding_is_a_pixel_of_value_zero(device):
    x = torch.tensor([[[[10]]]], dtype=torch.uint8, device=device)
    weight = torch.tensor([[[[3, 5, 8]]]], dtype=torch.uint8, device=device)
    got = adder2d_int8(x, weight, 6, (1, 1), (0, 1))
    assert got.tolist() == [[[[abs(6 - 3) + abs(10 - 5) + abs(6 - 8)]]]]


def test_largest_sums(device):
    channels = 32 if MODE == "cuda-on-cpu" else 4096  # the sums pass 2^23, where float32 would round
    x = torch.full((1, channels, 5, 5), 255, dtype=torch.uint8, device=device)
    weight = torch.zeros(3, channels, 3, 3, dtype=torch.uint8, device=device)
    assert adder2d_int8(x, weight, 0).unique().tolist() == [255 * 9 * channels]


def test_any_strides(device):
    x, weight, window = operands(device, 2, 16, 9, 12, 10, 3, 1, 1, 1, 1)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    for view in (x[:, ::2, 1:9, 2:], channels_last[:, 4:, ::2], x.mT, x[:1].expand(3, -1, -1, -1)):
        filters = weight[:, : view.shape[1]]
        got = adder2d_int8(view, filters, 7, *window)
        assert torch.equal(got, adder2d_int8_reference(view.contiguous(), filters.contiguous(), 7, *window))


def test_no_images(device):
    x, weight, window = operands(device, 0, 8, 5, 6, 7, 3, 1, 1, 1, 1)
    assert adder2d_int8(x, weight, 0, *window).shape == (0, 5, 6, 7)
    empty = torch.empty(0, 5, 6, 7, device=device)
    assert quantize(empty, Grid(1.0, 0)).shape == (0, 5, 6, 7)


@pytest.mark.parametrize(("o", "c", "groups"), [(16, 16, 1), (7, 5, 1), (18, 12, 3)])
def test_unpack_undoes_pack(o, c, groups):
    weight = torch.randint(0, 256, (o, c // groups, 3, 2), dtype=torch.uint8)
    filters = pack(weight, groups)
    assert filters.shape[-2:] == (8, 8)
    assert filters.is_contiguous()
    assert torch.equal(unpack(filters, o, c), weight)
    assert int(filters.long().sum()) == int(weight.long().sum())  # what was added is zero


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SHAPES[5], SHAPES[7]], ids=str)
def test_layer_is_norm_shortcut_relu_and_grid(device, shape, shortcut, relu):
    x, weight, window = operands(device, *shape)
    rng = torch.Generator().manual_seed(1)
    scale, offset = (torch.randn(len(weight), generator=rng).to(device) for _ in range(2))
    scale, offset = scale / 500, offset * 3
    like = adder2d_int8_reference(x, weight, 37, *window)
    residual = torch.randn(like.shape, generator=rng).to(device) if shortcut else None
    rest = (pack(weight, window[-1]), 37, *window, scale, offset, residual, relu)
    run = torch.ops.addernet.int8_layer
    expected, expected_bytes = layer_reference(x, *rest, True, 8.0, 77)
    floats, bytes_ = run(x, *rest, True, 8.0, 77)
    torch.testing.assert_close(floats, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(bytes_, quantize_reference(floats, 8.0, 77))
    assert (bytes_.int() - expected_bytes.int()).abs().max() <= 1  # one rounding in a fused multiply and add
    only_floats, nothing = run(x, *rest, True, 0.0, 0)
    assert torch.equal(only_floats, floats)
    assert nothing.numel() == 0
    nothing, only_bytes = run(x, *rest, False, 8.0, 77)
    assert torch.equal(only_bytes, bytes_)
    assert nothing.numel() == 0


def test_quantize_rounds_saturates_and_knows_nan(device):
    grid = Grid(0.5, 10)
    values = [0.0, 0.25, 0.75, 1.25, -0.25, -5.0, -5.3, -99.0, 122.5, 122.7, 1e30, -1e30, torch.inf, -torch.inf]
    x = torch.tensor([*values, torch.nan], device=device).view(1, 3, 1, 5)
    expected = [10, 10, 12, 12, 10, 0, 0, 0, 255, 255, 255, 0, 255, 0, 0]
    assert quantize(x, grid).flatten().tolist() == expected
    assert quantize_reference(x, 2.0, 10).flatten().tolist() == expected


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_quantize_is_the_references(device, zero_point):
    x = torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(0)).to(device) * 3
    grid = Grid(0.0173, zero_point)
    got = quantize(x, grid)
    assert torch.equal(got, quantize_reference(x, 1 / grid.step, zero_point))
    inside = (x > grid.low) & (x < grid.high)
    assert ((grid.values(got) - x).abs()[inside] <= grid.step * 0.5001).all()


def test_operators_keep_pytorchs_rules(device):
    x, weight, window = operands(device, 2, 5, 7, 6, 5, 3, 1, 1, 1, 1)
    window = [list(part) if isinstance(part, tuple) else part for part in window]
    scale, offset, residual = (torch.rand(s, device=device) for s in ((7,), (7,), (2, 7, 6, 5)))
    torch.library.opcheck(torch.ops.addernet.int8_forward, (x, weight, 9, *window))
    epilogue = scale, offset, residual, True
    for want_float, step in ((True, 2.0), (True, 0.0), (False, 2.0)):
        args = (x, pack(weight), 9, *window, *epilogue, want_float, step, 3)
        torch.library.opcheck(torch.ops.addernet.int8_layer, args)
    torch.library.opcheck(torch.ops.addernet.int8_quantize, (residual, 2.0, 3))


def test_compiles_into_one_graph(device):
    x, weight, window = operands(device, 2, 8, 8, 6, 5, 3, 1, 1, 1, 1)
    compiled = torch.compile(adder2d_int8, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, 9, *window), adder2d_int8(x, weight, 9, *window))


def test_the_same_without_kernels(monkeypatch):
    x, weight, window = operands("cpu", *SHAPES[1])
    scale, offset = torch.rand(7), torch.rand(7)

    def results():
        args = (pack(weight), 37, *window, scale, offset, None, True, True, 0.01, 3)
        return adder2d_int8(x, weight, 37, *window), torch.ops.addernet.int8_layer(x, *args)[0]

    native = results()
    monkeypatch.setattr(int8, "_kernels", SimpleNamespace(load=lambda device: False))
    plain = results()
    assert torch.equal(native[0], plain[0])
    torch.testing.assert_close(native[1], plain[1])


BYTES = torch.zeros(2, 8, 5, 5, dtype=torch.uint8)
FILTERS = torch.zeros(4, 8, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BYTES.float(), FILTERS, 0), "uint8"),
        ((BYTES, FILTERS.char(), 0), "uint8"),
        ((BYTES[0], FILTERS, 0), r"\[N, C, H, W\]"),
        ((BYTES[:, :7], FILTERS, 0), "must have 8 channels"),
        ((BYTES, FILTERS, 0, (1, 1), (0, 0), (1, 1), 3), "groups=3"),
        ((BYTES, FILTERS, 256), "zero point must be a byte"),
        ((BYTES, FILTERS, 0, (0, 1)), "stride must be two numbers from 1 on"),
        ((BYTES, FILTERS, 0, (1, 1), (0, 0), (3, 3)), "smaller than filters"),
    ],
)
def test_what_does_not_fit_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        adder2d_int8(*arguments)


@pytest.mark.parametrize(("step", "zero_point"), [(0.0, 0), (-1.0, 0), (torch.nan, 0), (1.0, 256), (1.0, -1)])
def test_a_grid_that_is_none(step, zero_point):
    with pytest.raises(UserError, match="a grid needs"):
        Grid(step, zero_point)


def test_a_grid_spans_a_range_and_holds_zero():
    assert Grid.between(0.0, 5.1) == Grid(5.1 / 255, 0)
    assert Grid.between(2.0, 5.1) == Grid(5.1 / 255, 0)
    assert Grid.between(-1.0, 0.0).zero_point == 255
    assert Grid.between(0.0, 0.0) == Grid(1.0, 0)
    grid = Grid.between(-1.0, 3.0)
    assert grid.low == pytest.approx(-1.0, abs=grid.step / 2)
    assert grid.high == pytest.approx(3.0, abs=grid.step / 2)


@pytest.mark.slow  # two builds
@pytest.mark.skipif(MODE == "cuda-on-cpu", reason="of the CPU's kernels")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2"])
def test_processors_with_less(flags):
    tests = [__file__, "-m", "not slow", "-k", "sums or layer or quantize or strides"]
    env = os.environ | {"PAPERSHELF_CXXFLAGS": flags, "PAPERSHELF_NATIVE": "require"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
