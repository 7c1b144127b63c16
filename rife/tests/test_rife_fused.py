"""The inference kernels against the plain steps they stand for, and the prepared network against the plain one."""

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rife.flow_net import resize, shrink_planes
from rife.interpolator import Interpolator, Member
from rife.model import Rife
from rife.prepared import Prepared, supports
from rife.presets import PRESETS, V4_0, V4_6
from rife.warping import warp_blend_reference, warp_reference

from rife import fused

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
ON_CPU_THREADS = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"  # a thread for each pixel: small ones only
pytestmark = pytest.mark.skipif(not fused.available("cpu"), reason="kernels cannot be built here")


@pytest.fixture(autouse=True, params=DEVICES)
def device(request):
    assert fused.available(request.param)
    return torch.device(request.param)


def scene(device, times=2, height=16, width=24, seed=0):
    """Two smooth frames, an estimate with flows that leave the picture, and times."""
    rng = torch.Generator().manual_seed(seed)
    frames = [torch.rand(3, height, width, generator=rng) for _ in range(2)]
    state = torch.randn(times, height, width, 5, generator=rng) * 3
    t = torch.rand(times, generator=rng)
    padded = [fused.pad_frame(frame, height, width).to(device) for frame in frames]
    return [frame.to(device)[None] for frame in frames], padded, state.to(device), t.to(device)


def planes_of(frames, state, t):
    n = t.shape[0]
    img0, img1 = (frame.expand(n, -1, -1, -1) for frame in frames)
    flow, mask = state[..., :4].permute(0, 3, 1, 2), state[..., 4:].permute(0, 3, 1, 2)
    warped = {"warped0": warp_reference(img0, flow[:, :2]), "warped1": warp_reference(img1, flow[:, 2:])}
    return {"img0": img0, "img1": img1, "t": t.view(-1, 1, 1, 1), "mask": mask, "flow": flow, **warped}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("names", [V4_0.later, ("flow",), ("img1", "warped1", "img0", "mask")])
def test_assemble_is_warp_shrink_and_join(device, names, scale, dtype):
    frames, padded, state, t = scene(device)
    plain = shrink_planes(planes_of(frames, state, t), names, scale)
    expected = torch.cat([plain[name] for name in names], 1)
    got = fused.assemble(*padded, state, t, names, scale, dtype)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.float(), expected, atol=8 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_zeros_fill_the_channels_that_are_asked_for(device):
    _, padded, state, t = scene(device)
    some = fused.assemble(*padded, state, t, V4_0.later, 2, torch.float32)
    more = fused.assemble(*padded, state, t, V4_0.later, 2, torch.float32, 16)
    assert torch.equal(more[:, :12], some)
    assert more.shape[1] == 16
    assert not more[:, 12:].any()


def test_the_first_block_needs_no_estimate(device):
    frames, padded, _, t = scene(device)
    got = fused.assemble(*padded, None, t, V4_0.first, 2, torch.float32)
    small = [resize(frame, 0.5).expand(2, -1, -1, -1) for frame in frames]
    torch.testing.assert_close(got, torch.cat([*small, t.view(-1, 1, 1, 1).expand(2, 1, 8, 12)], 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1, 2, 8])
@pytest.mark.parametrize("shuffle", [False, True])
def test_add_upsampled_is_enlarge_and_add(device, factor, shuffle, dtype):
    state = scene(device, height=16, width=32)[2]
    small = (16 // factor // (1 + shuffle), 32 // factor // (1 + shuffle))
    change = torch.randn(2, 24 if shuffle else 5, *small, device=device).to(dtype)
    change = change.contiguous(memory_format=torch.channels_last)
    large = resize(F.pixel_shuffle(change.float(), 2) if shuffle else change.float(), factor)[:, :5]
    large[:, :4] *= factor
    expected = state + large.permute(0, 2, 3, 1)
    fused.add_upsampled(state, change, factor, shuffle=shuffle)
    torch.testing.assert_close(state, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_blend_pair_is_equation_1_without_the_padding(device, dtype):
    frames, padded, state, t = scene(device)
    planes = planes_of(frames, state, t)
    expected = warp_blend_reference(planes["img0"], planes["img1"], planes["flow"], planes["mask"])
    residual = None
    if dtype is not None:
        residual = torch.randn(2, 3, 16, 24, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        expected = expected + 2 * torch.sigmoid(residual.float()) - 1
    got = fused.blend_pair(*padded, state, residual, 13, 21)
    torch.testing.assert_close(got, expected[..., :13, :21], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=5 if ON_CPU_THREADS else 25, deadline=None)
@given(st.integers(1, 2), st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.tuples(*[st.booleans()] * 3))
def test_activate_is_prelu_with_bias_and_residuals(dtype, n, channels, height, width, terms):
    x, before, after = (
        torch.randn(n, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    bias, slope = torch.randn(2, channels)
    expected = x.float()
    if terms[0]:
        expected = expected + bias.view(1, -1, 1, 1)
    if terms[1]:
        expected = expected + before.float()
    expected = F.prelu(expected, slope)
    if terms[2]:
        expected = expected + after.float()
    fused.activate(
        x, bias if terms[0] else None, slope, before=before if terms[1] else None, after=after if terms[2] else None
    )
    torch.testing.assert_close(x.float(), expected, atol=2 * TOLERANCE[dtype], rtol=2 * TOLERANCE[dtype])


def test_opcheck(device):
    _, padded, state, t = scene(device)
    checks = ("test_schema", "test_faketensor")
    codes = [fused.PLANES.index(name) for name in V4_0.later]
    ops = torch.ops.rife_fused
    torch.library.opcheck(ops.assemble, (*padded, state, t, codes, 2, 16, torch.float32), test_utils=checks)
    torch.library.opcheck(ops.blend_pair, (*padded, state, None, 16, 24), test_utils=checks)
    change = torch.randn(2, 5, 8, 12, device=device).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(ops.add_upsampled, (state, change, 2, False), test_utils=checks)
    slope = torch.rand(5, device=device)
    torch.library.opcheck(ops.activate, (change, slope, slope, None, change.clone()), test_utils=checks)


def test_nan_flow_stays_inside_the_frames(device):
    _, padded, state, t = scene(device)
    state[0, 3, 4, :4] = float("nan")
    state[0, 5, 6, :4] = 1e30
    assert fused.assemble(*padded, state, t, V4_0.later, 1, torch.float32).shape == (2, 12, 16, 24)
    assert fused.blend_pair(*padded, state, None, 16, 24).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p, s, t: fused.assemble(p[0].double(), p[1], s, t, ("flow",), 1, torch.float32), "img0 must be"),
        (lambda p, s, t: fused.assemble(*p, s, t, ("flow",), 1, torch.float64), "float16, bfloat16 or float32"),
        (
            lambda p, s, t: fused.add_upsampled(s, torch.zeros(2, 3, 3, 5, device=s.device).permute(0, 3, 1, 2), 2),
            "does not fit",
        ),
        (lambda p, s, t: fused.add_upsampled(s, torch.zeros(2, 5, 8, 12, device=s.device), 2), "channels_last"),
        (lambda p, s, t: fused.blend_pair(*p, s, None, 99, 24), "more than there is"),
    ],
)
def test_wrong_tensors_are_refused(device, call, said):
    _, padded, state, t = scene(device)
    with pytest.raises((TypeError, ValueError), match=said):
        call(padded, state, t)


# ----------------------------------------------------------------------------- the prepared network


def random_model(config, seed=0):
    """Small, with motions of some pixels."""
    torch.manual_seed(seed)
    model = Rife(replace(config, widths=(8,) * len(config.widths))).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.head[0].weight, std=0.2)
    return model


@pytest.mark.parametrize("config", [V4_0, V4_6], ids=lambda c: c.name)
@pytest.mark.parametrize("ensemble", [False, True])
def test_prepared_is_the_plain_network(device, config, ensemble):
    if ON_CPU_THREADS and config is V4_0:
        pytest.skip("128 x 128 pixels take minutes with a thread for each")
    model, side = random_model(config), config.padding
    frames = [frame[0] for frame in scene(device, height=side - 5, width=side - 9)[0]]
    times = [0.5] if ON_CPU_THREADS else [0.25, 0.6]
    plain = Interpolator([(model, Member("", ensemble))], device=device, plain=True, precision="float32")
    fast = Interpolator([(model, Member("", ensemble))], device=device, precision="float32")
    with torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(fast.between(*frames, times), plain.between(*frames, times), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(ON_CPU_THREADS, reason="minutes with a thread for each pixel")
@pytest.mark.parametrize("config", [V4_0, V4_6], ids=lambda c: c.name)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_the_whole(device, config, precision):
    if precision == "float16" and device.type == "cpu":
        pytest.skip("a processor's half precision is bfloat16")
    side = config.padding
    frames = [frame[0] for frame in scene(device, height=side, width=side)[0]]
    whole, half = (
        Interpolator([(random_model(config), Member(""))], device=device, precision=name).between(*frames, [0.4])
        for name in ("float32", precision)
    )
    assert (whole - half).square().mean().sqrt() < 0.02


@pytest.mark.skipif(ON_CPU_THREADS, reason="minutes with a thread for each pixel")
def test_wide_motion_starts_anew_for_those_times_that_need_it(device):
    model = random_model(V4_0)
    torch.nn.init.normal_(model.blocks[1].head[0].weight, std=4)
    frames = [frame[0] for frame in scene(device, height=256, width=256)[0]]
    network = Prepared(model.to(device), device)
    pair = [network.frame(frame) for frame in frames]
    plain = Interpolator([(model, Member(""))], device=device, plain=True, precision="float32")
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        narrow = Prepared(model, device)
        narrow.config = replace(model.config, wide_motion=False)
        times = [0.1, 0.5, 0.9]
        assert not torch.equal(network.between(*pair, times), narrow.between(*pair, times))  # the rule does fire
        torch.testing.assert_close(network.between(*pair, times), plain.between(*frames, times), atol=1e-3, rtol=1e-3)


def test_what_can_be_prepared():
    can = {name for name, config in PRESETS.items() if supports(config, 1)}
    assert can == {"v4.0", "v4.6"}
    assert supports(V4_6, 0.5)
    assert not supports(V4_6, 2)  # a block at twice the frame's size


def test_neighbouring_pairs_share_a_frame(device):
    if ON_CPU_THREADS:
        pytest.skip("minutes with a thread for each pixel")
    interpolator = Interpolator([(random_model(V4_0), Member(""))], device=device, precision="float32")
    a, b = (frame[0] for frame in scene(device, height=128, width=128)[0])
    c = a.flip(-1)
    network = interpolator.networks[0][0]
    made = []
    original = network.network.frame
    network.network.frame = lambda rgb: made.append(rgb) or original(rgb)
    interpolator.between(a, b, [0.5])
    interpolator.between(b, c, [0.5])
    assert len(made) == 3
    assert len(network.kept) == 2
