"""rife::warp_blend, both frames warped and mixed in one pass, against its PyTorch definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from rife.warping import _kernels, warp, warp_blend, warp_blend_reference

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
DEVICES = ["cpu", CUDA]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
FORMATS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def _built():
    if not _kernels.load():
        pytest.skip("kernels are switched off or cannot be built here")


def inputs(n=2, c=3, h=5, w=9, *, device="cpu", dtype=torch.float64, layout="planar", reach=3.0, seed=0):
    """Two images, flow without kinks, mask logits of all sizes."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(2, n, c, h, w, generator=rng, dtype=torch.float64)
    flow = (torch.rand(n, 4, h, w, generator=rng, dtype=torch.float64) * 2 - 1) * reach
    flow = flow.floor() + 0.1 + 0.8 * (flow - flow.floor())
    mask = torch.randn(n, 1, h, w, generator=rng, dtype=torch.float64) * 4
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    img0, img1 = (image.to(device, dtype, memory_format=FORMATS[layout]) for image in images)
    return img0, img1, *(t.float().to(device, precision) for t in (flow, mask))


def with_gradients(function, operands, seed=1):
    operands = [t.detach().clone().requires_grad_() for t in operands]
    out = function(*operands)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    g = g.to(operands[0].device, torch.bfloat16).to(out.dtype)  # the same numbers for every dtype
    return out, *torch.autograd.grad(out, operands, g)


def assert_near_float64(operands):
    exact = [t.double() for t in operands]
    want = with_gradients(warp_blend_reference, exact)
    for ours, theirs in zip(with_gradients(warp_blend, operands), want, strict=True):
        scale = theirs.abs().max().clamp(min=1).item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCE[operands[0].dtype] * scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 3, 33), (1, 16, 2, 9), (1, 21, 9, 2)])
def test_equals_reference_and_so_do_its_gradients(shape, dtype, layout, device):
    operands = inputs(*shape, dtype=dtype, layout=layout, device=device)
    out = warp_blend(*operands)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=FORMATS[layout])
    assert_near_float64(operands)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 6), st.integers(1, 40)),
    layout=st.sampled_from(sorted(FORMATS)),
    reach=st.sampled_from([0.4, 3.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape(shape, layout, reach, seed):
    assert_near_float64(inputs(*shape, dtype=torch.float32, layout=layout, reach=reach, seed=seed))


def test_images_in_two_layouts():
    img0, img1, flow, mask = inputs(dtype=torch.float32)
    want = warp_blend(img0, img1, flow, mask)
    last = torch.channels_last
    assert torch.equal(warp_blend(img0, img1.to(memory_format=last), flow, mask), want)
    torch.testing.assert_close(warp_blend(img0.to(memory_format=last), img1, flow, mask), want)


@pytest.mark.parametrize("device", DEVICES)
def test_a_sure_mask_takes_one_image(device):
    img0, img1, flow, mask = inputs(dtype=torch.float32, device=device)
    assert torch.equal(warp_blend(img0, img1, flow, torch.full_like(mask, 100.0)), warp(img0, flow[:, :2]))
    torch.testing.assert_close(warp_blend(img0, img1, flow, torch.full_like(mask, -100.0)), warp(img1, flow[:, 2:]))
    same = warp_blend(img0, img0, torch.zeros_like(flow), mask)
    torch.testing.assert_close(same, img0)


def test_mask_is_a_sigmoid_to_the_last_bits():
    """The CPU kernel has its own exponential, since the library's keeps loops from being vectorised."""
    logits = torch.linspace(-110, 110, 4001).reshape(1, 1, 1, -1)
    one, zero, flow = torch.ones_like(logits), torch.zeros_like(logits), torch.zeros(1, 4, 1, 4001)
    got = warp_blend(one, zero, flow, logits)
    torch.testing.assert_close(got.double(), logits.double().sigmoid(), rtol=4e-7, atol=1e-37)
    assert warp_blend(one, zero, flow, logits * torch.nan).isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    operands = [t.requires_grad_() for t in inputs(1, 2, 2, 3, device=device)]
    assert torch.autograd.gradcheck(warp_blend, operands, nondet_tol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout, device):
    operands = [t.requires_grad_() for t in inputs(1, 4, 3, 5, device=device, layout=layout)]
    torch.library.opcheck(torch.ops.rife.warp_blend, operands)
    detached = [t.detach() for t in operands]
    for wanted in [(True, True), (True, False), (False, True)]:
        torch.library.opcheck(torch.ops.rife.warp_blend_backward, (detached[0], *detached, *wanted))


def test_gradients_of_flow_alone():
    """As in training, where nobody asks for the gradient of a frame."""
    operands = inputs()
    all_of_them = with_gradients(warp_blend, operands)
    for tensor in operands[2:]:
        tensor.requires_grad_()
    g = torch.randn(operands[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    warp_blend(*operands).backward(g.bfloat16().double())
    assert operands[0].grad is None
    torch.testing.assert_close(operands[2].grad, all_of_them[3])
    torch.testing.assert_close(operands[3].grad, all_of_them[4])


def test_empty():
    out = with_gradients(warp_blend, inputs(0, 3, 4, 5))
    assert [list(t.shape) for t in out] == [[0, 3, 4, 5]] * 3 + [[0, 4, 4, 5], [0, 1, 4, 5]]


def test_compiles_without_a_graph_break():
    operands = inputs(dtype=torch.float32)
    compiled = torch.compile(warp_blend, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(with_gradients(compiled, operands), with_gradients(warp_blend, operands))


def test_what_does_not_fit_is_said():
    img0, img1, flow, mask = inputs()
    with pytest.raises(UserError, match=r"flow must be \[2, 4, 5, 9\] to fit image \[2, 3, 5, 9\], got \[2, 2, 5, 9\]"):
        warp_blend(img0, img1, flow[:, :2], mask)
    with pytest.raises(UserError, match=r"mask_logit must be \[2, 1, 5, 9\]"):
        warp_blend(img0, img1, flow, mask[:, :0])
    with pytest.raises(UserError, match=r"both images must be alike, got .*float64 .* and .*float32"):
        warp_blend(img0, img1.float(), flow, mask)
