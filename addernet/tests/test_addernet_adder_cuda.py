"""The CUDA kernels of the adder layer against its definition in float64, on a GPU or with their code on the CPU.

With ``PAPERSHELF_NATIVE=cuda-on-cpu`` every CUDA thread is a thread of the processor, so the shapes are tiny; the
code takes the GPU to have 2 multiprocessors then, and deals tiles out accordingly. Without either, the cases named
``cpu`` test the CPU's kernels through the same operators.
"""

import os
from dataclasses import dataclass

import pytest
import torch
from addernet.adder import _kernels, adder2d, adder2d_reference, input_gradient_reference
from hypothesis import given, settings
from hypothesis import strategies as st

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
DEVICES = ["cpu", CUDA]
ON_CPU = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"
LAST = torch.channels_last
# By x's dtype, what y and dX may be off by relative to the largest value. Halves are summed up 16 at a time in
# halves; bfloat16 is exact in float, but dX is stored in it.
TOLERANCE = {
    torch.float32: (5e-6, 5e-6),
    torch.float64: (1e-13, 1e-13),
    torch.float16: (3e-3, 4e-3),
    torch.bfloat16: (5e-6, 6e-3),
}


@dataclass(frozen=True)
class Case:
    """x ``[n, c, h, w]`` and ``o`` filters of ``kernel``; what is not said is the ordinary layer."""

    n: int = 1
    c: int = 16
    h: int = 6
    w: int = 6
    o: int = 16
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def window(self):
        return self.stride, self.padding, self.dilation, self.groups


@pytest.fixture(autouse=True)
def _built():
    if not _kernels.load():
        pytest.skip("kernels are switched off or cannot be built here")


def operands(case, dtype, device, seed=0):
    rng = torch.Generator().manual_seed(seed)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(case.n, case.c, case.h, case.w, generator=rng, dtype=torch.float64)
    filters = torch.randn(case.o, case.c // case.groups, *case.kernel, generator=rng, dtype=torch.float64)
    return x.to(device, dtype, memory_format=LAST), filters.to(device, precision, memory_format=LAST)


def results(case, x, filters, g=None):
    """y, dX, and the gradient they are for; from the kernels themselves where those take x's dtype."""
    if x.is_cuda or ON_CPU:
        forward, backward = torch.ops.addernet.forward_kernel, torch.ops.addernet.input_gradient_kernel
        x, filters = (t.contiguous(memory_format=LAST) for t in (x, filters))
    else:
        forward, backward = torch.ops.addernet.forward, torch.ops.addernet.input_gradient
    y = forward(x, filters, *case.window)
    if g is None:
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = g.to(y).contiguous(memory_format=LAST)
    return y, backward(g, x, filters, *case.window), g


def assert_near_float64(case, dtype, device, seed=0):
    x, filters = operands(case, dtype, device, seed)
    y, d_x, g = results(case, x, filters)
    assert y.dtype == filters.dtype
    assert d_x.dtype == dtype
    exact = x.double(), filters.double()
    want_y = adder2d_reference(*exact, *case.window)
    want_d_x = input_gradient_reference(g.double(), *exact, *case.window)
    for ours, theirs, tolerance in zip((y, d_x), (want_y, want_d_x), TOLERANCE[dtype], strict=True):
        assert ours.shape == theirs.shape
        scale = theirs.abs().max().clamp(min=1).item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)


SHAPES = {
    "one pixel": Case(h=1, w=1, kernel=(1, 1), padding=(0, 0)),
    "one pixel under a large filter": Case(h=1, w=1),
    "around chunks of 4 and 8": Case(c=12, o=20, h=5, w=3),
    "odd": Case(n=3, c=5, h=13, w=9, o=7, stride=(2, 2), padding=(2, 2)),
    "one channel": Case(c=1, o=1, h=7, w=5),
    "filters that are not square": Case(c=4, o=4, h=7, w=9, kernel=(1, 5), stride=(2, 3), padding=(0, 3)),
    "groups": Case(n=2, c=16, o=8, groups=2),
    "groups of odd size": Case(c=6, o=9, groups=3),
    "depthwise": Case(c=8, o=8, groups=8),
    "stride leaves positions out": Case(c=8, h=9, w=7, o=8, kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    "stride beyond the picture": Case(c=8, h=3, w=2, o=8, stride=(5, 4)),
    "dilation": Case(c=8, h=9, w=9, o=8, padding=(2, 2), dilation=(2, 2)),
    "dilation and stride with a divisor in common": Case(
        c=8, h=11, w=10, o=8, stride=(4, 2), padding=(3, 2), dilation=(2, 4)
    ),
    "mostly padding": Case(c=8, h=2, w=2, o=8, padding=(4, 4)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_equals_float64(case, dtype, device):
    assert_near_float64(case, dtype, device)


# On 2 multiprocessors the first four are dealt out in tiles of 128 x 64 (64 x 64 where there are two arrays of
# sums), 128 x 32, 128 x 16 and 32 x 32; rows and columns are left over. On a larger GPU, the large shapes below are.
TILES = {
    "128 x 64": Case(n=2, c=8, h=13, w=20, o=60, kernel=(1, 1), padding=(0, 0)),
    "128 x 32": Case(n=2, c=8, h=13, w=20, o=28, kernel=(1, 1), padding=(0, 0)),
    "128 x 16": Case(n=4, c=8, h=13, w=20, o=12, kernel=(1, 1), padding=(0, 0)),
    "32 x 32": Case(n=1, c=8, h=9, w=20, o=28, kernel=(1, 1), padding=(0, 0)),
    "128 x 64 of dX": Case(n=2, c=60, h=13, w=20, o=8, kernel=(1, 1), padding=(0, 0)),
    "128 x 32 of dX": Case(n=2, c=28, h=13, w=20, o=8, kernel=(1, 1), padding=(0, 0)),
    "128 x 16 of dX": Case(n=4, c=12, h=13, w=20, o=8, kernel=(1, 1), padding=(0, 0)),
    "32 x 32 of dX": Case(n=1, c=28, h=9, w=20, o=8, kernel=(1, 1), padding=(0, 0)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", TILES.values(), ids=TILES)
def test_every_shape_of_tile(case, dtype, device):
    assert_near_float64(case, dtype, device)


LARGE = {
    "128 x 64": Case(n=160, c=32, h=14, w=14, o=256),
    "128 x 32": Case(n=64, c=32, h=16, w=16, o=32),
    "128 x 16": Case(n=64, c=16, h=32, w=32, o=16),
    "strided": Case(n=64, c=64, h=17, w=17, o=128, stride=(2, 2)),
    "many groups": Case(n=16, c=96, h=19, w=19, o=48, groups=12),
}


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_large_layers(case, dtype, device):
    assert_near_float64(case, dtype, device)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = tuple(p - 1 for p in draw(pairs))
    least = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    h, w = (max(1, smallest) + draw(st.integers(0, 5)) for smallest in least)
    c, o = (groups * draw(st.integers(1, 9)) for _ in range(2))
    case = Case(draw(st.integers(1, 2)), c, h, w, o, kernel, stride, padding, dilation, groups)
    dtype = draw(st.sampled_from(sorted(TOLERANCE, key=str)))
    assert_near_float64(case, dtype, "cuda" if torch.cuda.is_available() else "cpu", seed=draw(st.integers(0, 99)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_exact_on_whole_numbers(dtype, device):
    """Sums of small whole numbers, and of differences that are 0 or beyond the clamp, are exact in any dtype."""
    case = Case(c=8, o=8)
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (1, 8, 6, 6), generator=rng).to(device, dtype, memory_format=LAST)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    filters = torch.randint(-3, 4, (8, 8, 3, 3), generator=rng).to(device, precision, memory_format=LAST)
    g = torch.randint(-2, 3, (1, 8, 6, 6), generator=rng)
    y, d_x, g = results(case, x, filters, g)
    assert torch.equal(y.double(), adder2d_reference(x.double(), filters.double(), *case.window))
    assert torch.equal(
        d_x.double(),
        input_gradient_reference(g.double(), x.double(), filters.double(), *case.window).to(dtype).double(),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exponent", [-40, -12, 17, 100])
def test_gradients_of_any_size_for_halves(exponent, device):
    """A loss may be scaled, and y's gradient lie far outside half's range: dX follows as far as it can hold it."""
    case = Case(c=16, o=24)
    x, filters = operands(case, torch.float16, device)
    g = torch.randn(1, 24, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g[:, :, :2, :2] = 0
    want = results(case, x, filters, g)[1].double() * 2.0**exponent
    got = results(case, x, filters, g * 2.0**exponent)[1].double()
    held = want.abs() < 6e4
    torch.testing.assert_close(got[held], want[held], rtol=2e-3, atol=2.0**-24)
    assert torch.equal(got[want.abs() > 7e4], want[want.abs() > 7e4].sign() * torch.inf)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nan_stays_where_it_is(dtype, device):
    case = Case(c=8, o=8)
    x, filters = operands(case, dtype, device)
    x[0, 3, 4, 4] = float("nan")
    y, d_x, _ = results(case, x, filters)
    assert y.isnan().nonzero()[:, 2:].unique(dim=0).tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]
    if x.is_cuda or ON_CPU:  # saturation would hide it there
        assert d_x.isnan().nonzero().tolist() == [[0, 3, 4, 4]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_unaligned_memory(dtype, device):
    """Tensors that begin in the middle of 16 bytes take the path of single elements."""
    case = Case(c=8, o=8)
    x, filters = operands(case, dtype, device)
    shifted = []
    for t in (x, filters):
        room = torch.empty(t.numel() + 1, dtype=t.dtype, device=device)[1:]
        n, c, h, w = t.shape
        shifted.append(room.view(n, h, w, c).permute(0, 3, 1, 2).copy_(t))
    for ours, theirs in zip(results(case, *shifted), results(case, x, filters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_layer_trains_in_every_dtype_and_layout(dtype, device):
    case = Case(n=2, c=16, o=24, stride=(2, 2))
    x, filters = operands(case, dtype, device)
    want = None
    for memory_format in (LAST, torch.contiguous_format):
        leaves = [t.contiguous(memory_format=memory_format).requires_grad_() for t in (x, filters)]
        y = adder2d(*leaves, None, case.stride, case.padding)
        y.square().sum().backward()
        got = [y.detach(), *(leaf.grad for leaf in leaves)]
        assert [t.dtype for t in got] == [filters.dtype, dtype, filters.dtype]
        assert y.is_contiguous(memory_format=memory_format)
        want = want or got
        for ours, theirs in zip(got[:2], want[:2], strict=True):
            assert torch.equal(ours, theirs)
