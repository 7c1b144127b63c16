"""Winograd's convolutions against PyTorch's in float64, and what the kernel promises beside that."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from psfcn import winograd
from psfcn.winograd import Convolution
from torch import nn

KINDS = ("conv", "transposed")
DTYPES = (torch.float32, torch.bfloat16)
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}  # root mean square, of the values' own


def made(kind="conv", inputs=32, outputs=64, bias=True, seed=0):
    torch.manual_seed(seed)
    layer = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=bias)
    return layer if kind == "conv" else nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)


def picture(*shape, dtype=torch.float32, seed=1):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def expected(layer, x, slope=0.1):
    # Built anew: a copy in float64 of PyTorch's own layer, so that no gradient or dtype of ours is looked at.
    double = made(
        "transposed" if isinstance(layer, nn.ConvTranspose2d) else "conv",
        layer.in_channels,
        layer.out_channels,
        layer.bias is not None,
    )
    double.load_state_dict(layer.state_dict())
    with torch.no_grad():
        return F.leaky_relu(double.double()(x.double()), slope)


def error(found, exact):
    return ((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([32, 96]),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.integers(1, 2),
)
def test_it_is_the_convolution(kind, dtype, height, width, inputs, outputs, bias, count):
    assert winograd.available()
    layer = made(kind, inputs, outputs, bias)
    x = picture(count, inputs, height, width, dtype=dtype)
    found, exact = Convolution(layer, dtype, 0.1)(x), expected(layer, x)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < ERRORS[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_float32_errs_no_more_than_twice_what_pytorch_does(kind):
    layer, x = made(kind, 128, 128), picture(1, 128, 40, 40)
    exact = expected(layer, x, 1)
    with torch.no_grad():
        assert error(Convolution(layer, torch.float32, 1)(x), exact) < 2 * max(error(layer(x), exact), 4e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_exact_where_the_points_are(kind):
    # 0, 1 and -1: bfloat16's convolutions, and the transposed ones; multiples of 4 keep their halves and quarters.
    layer = made(kind, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-2, 3, layer.weight.shape) * 4)
    x = torch.randint(-2, 3, (1, 32, 9, 7)).float().contiguous(memory_format=torch.channels_last)
    dtype = torch.float32 if kind == "transposed" else torch.bfloat16
    found = Convolution(layer, dtype, 1)(x.to(dtype))
    assert torch.equal(found, expected(layer, x, 1).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_maximum_is_that_of_the_results(dtype):
    layer = Convolution(made(), dtype, 0.1)
    x = picture(5, 32, 9, 14, dtype=dtype)
    most = torch.full((1, 64, 9, 14), -torch.inf, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer.raise_maximum(most, x[:2])
    layer.raise_maximum(most, x[2:])
    assert torch.equal(most, layer(x).amax(0, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_where_it_is_seen(dtype):
    layer, x = Convolution(made(), dtype, 0.1), picture(2, 32, 16, 16, dtype=dtype)
    x[0, 3, 8, 8] = torch.nan
    most = torch.zeros(1, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer.raise_maximum(most, x)
    assert most[..., 7:10, 7:10].isnan().all()
    assert not most[..., :4, :].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_neighbours_change_no_bit(kind, dtype):
    layer, x = Convolution(made(kind), dtype, 0.1), picture(3, 32, 61, 45, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([layer(x[n : n + 1]) for n in range(3)])
        torch.set_num_threads(3)
        assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(before)


def test_operators_are_declared_as_they_are():
    layer, x = Convolution(made(), torch.float32, 0.1), picture(2, 32, 8, 8)
    torch.library.opcheck(torch.ops.psfcn_winograd.conv, (x, layer.weights, layer.bias, False, 0.1))
    most = torch.zeros(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.psfcn_winograd.conv_maximum, (most, x, layer.weights, layer.bias, 0.1))


def test_what_there_is_no_kernel_for():
    with pytest.raises(ValueError, match="there is no kernel for Conv2d"):
        Convolution(nn.Conv2d(32, 32, 3, 2, 1), torch.float32, 0.1)
    with pytest.raises(ValueError, match="there is no kernel for Conv2d"):
        Convolution(nn.Conv2d(6, 64, 3, 1, 1), torch.float32, 0.1)
    with pytest.raises(ValueError, match="kernels for float32 and bfloat16"):
        Convolution(made(), torch.float64, 0.1)
    layer = Convolution(made(), torch.float32, 0.1)
    for x, message in (
        (picture(1, 32, 4, 4, dtype=torch.float64), "float32 or bfloat16"),
        (torch.zeros(1, 32, 4, 4), "channels_last"),
        (picture(1, 64, 4, 4), "do not fit"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer(x)
