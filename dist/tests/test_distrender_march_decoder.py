"""The march through a decoder in one kernel, on a GPU or its code on CPU threads, against the loop in PyTorch."""

import os
from dataclasses import replace

import pytest
import torch
from distrender import decoder_kernels, marching_kernels
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.marching import CROSSED, HIT, MarchOptions, ball_interval, march_reference
from distrender.marching_kernels import march

ON_CPU_THREADS = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not ON_CPU_THREADS, reason="not the CUDA kernels")),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
EXACT = MarchOptions(steps=60, ratio=1.0, finish="secant")


@pytest.fixture(params=DEVICES)
def device(request):
    assert marching_kernels._kernels.load(request.param)
    return torch.device(request.param)


def rough_ball(device, directions=30, radius=0.6, scale=1.0):
    """A decoder that gives twice the mean of |u . p| over some u, minus the radius: a ball with many corners."""
    torch.manual_seed(0)
    config = DecoderConfig(latent=2, hidden=2 * directions, layers=2, skip=())
    decoder = DeepSDFDecoder(config)
    u = torch.nn.functional.normalize(torch.randn(directions, 3), dim=1)
    with torch.no_grad():
        for linear in decoder.children():
            linear.weight.zero_(), linear.bias.zero_()
        decoder.lin0.weight[:, 2:] = torch.cat([u, -u])
        decoder.lin1.weight.copy_(torch.eye(2 * directions))
        decoder.lin2.weight.fill_(2 * scale / directions)
        decoder.lin2.bias.fill_(-radius * scale)
    return decoder.with_code(torch.zeros(2)).to(device)


def plain(sdf):
    return lambda points: sdf.decoder(sdf.latent, points)


def make_rays(device, n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=rng)
    origins *= 2.2 / origins.norm(dim=1, keepdim=True)
    aims = torch.randn(n, 3, generator=rng) * 0.5
    return origins.to(device), torch.nn.functional.normalize(aims - origins, dim=1).to(device)


def starts(rays, options):
    return ball_interval(*rays, options.bound)[0]


def assert_alike(found, expected, apart=1e-5):
    alike = found.state == expected.state
    assert alike.float().mean() > 0.98
    assert found.queries == pytest.approx(expected.queries, rel=0.01)
    hit = alike & (expected.state == HIT)
    for name in ("depth", "min_depth"):
        close = (getattr(found, name) - getattr(expected, name))[hit].abs() < apart
        assert (~close).sum() <= 0.03 * len(close)
    missed = alike & (expected.state != HIT) & expected.min_sdf.isfinite()
    torch.testing.assert_close(found.min_sdf[missed], expected.min_sdf[missed], atol=20 * apart, rtol=0)


@pytest.mark.parametrize("n", [1, 33, 64, 65, 150])
@torch.no_grad()
def test_any_number_of_rays(device, n):
    """Up to 64 rays tiles are small there; of 150 some wait until others have ended."""
    sdf, rays = rough_ball(device), make_rays(device, n)
    start = starts(rays, EXACT)
    found, expected = march(sdf, *rays, start, EXACT), march_reference(plain(sdf), *rays, start, EXACT)
    assert_alike(found, expected)
    assert n < 33 or 0.3 < (expected.state == HIT).float().mean() < 0.9


@pytest.mark.parametrize(
    "options",
    [
        MarchOptions(),
        MarchOptions(finish="bisect", steps=9),
        MarchOptions(steps=1),
        MarchOptions(ratio=1.9, clamp=0.5, bound=0.8, finish="secant", finish_below=0.2),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_rules_are_those_of_the_loop(device, options):
    sdf, rays = rough_ball(device, directions=40, scale=1.5), make_rays(device, 90)
    near, far = ball_interval(*rays, options.bound)
    start = near + torch.linspace(-0.2, 1.2, len(near), device=device).clamp(min=0) * (far - near)
    start[::9] = torch.inf
    slope = torch.full_like(start, -0.8)
    slope[::5] = torch.nan
    found = march(sdf, *rays, start, options, slope)
    assert_alike(found, march_reference(plain(sdf), *rays, start, options, slope), apart=1e-4)


@torch.no_grad()
def test_halves_far_from_the_surface_change_next_to_nothing(device, monkeypatch):
    sdf, rays = rough_ball(device), make_rays(device, 150)
    start = starts(rays, EXACT)
    expected = march(sdf, *rays, start, EXACT)
    counts, through = [], torch.ops.distrender.march_decoder

    def counted(*arguments):
        room = through(*arguments)
        counts.append(room[:3].tolist())
        return room

    monkeypatch.setattr(marching_kernels.torch.ops.distrender, "march_decoder", counted)
    found = march(sdf, *rays, start, replace(EXACT, approximate_above=0.01))
    assert (found.state != expected.state).sum() <= 1
    both = (found.state == HIT) & (expected.state == HIT)
    assert (found.depth - expected.depth)[both].abs().quantile(0.97) < 2e-5
    dropped, begun, finished = counts[0]  # kernels may ask for more rays than there are
    assert both.sum() <= dropped < 150
    assert begun >= 140
    assert finished >= dropped
    # Whatever was small was asked for exactly.
    missed = (found.state != HIT) & found.min_sdf.isfinite()
    assert (found.min_sdf - sdf(rays[0] + found.min_depth[:, None] * rays[1]))[missed].abs().max() < 1e-3


@torch.no_grad()
def test_what_overflows_halves_is_asked_for_exactly(device):
    sdf, rays = rough_ball(device), make_rays(device, 40)
    expected = march(sdf, *rays, starts(rays, EXACT), EXACT)
    sdf.decoder.lin0.weight.mul_(2e5)
    sdf.decoder.lin2.weight.div_(2e5)
    found = march(sdf, *rays, starts(rays, EXACT), replace(EXACT, approximate_above=0.01))
    near, far = ball_interval(*rays, EXACT.bound)
    found.queries -= int((near < far).sum())  # the first in halves of each ray was no number
    assert_alike(found, expected)


@torch.no_grad()
def test_steep_fields_cross_and_end(device):
    sdf, rays = rough_ball(device, scale=4.0), make_rays(device, 60)
    options = MarchOptions(steps=15)
    found = march(sdf, *rays, starts(rays, options), options)
    expected = march_reference(plain(sdf), *rays, starts(rays, options), options)
    assert (found.state == CROSSED).sum() > 5
    assert (found.state != expected.state).sum() <= 1


@torch.no_grad()
def test_nothing_and_what_is_not_a_number(device):
    sdf, rays = rough_ball(device), make_rays(device, 40)
    none = march(sdf, *(part[:0] for part in rays), starts(rays, EXACT)[:0], EXACT)
    assert none.depth.shape == (0,)
    assert none.queries == 0
    directions = rays[1].clone()
    directions[::3] = torch.nan
    found = march(sdf, rays[0], directions, starts(rays, EXACT), replace(EXACT, approximate_above=0.01))
    assert (found.depth[::3] == torch.inf).all()
    rest = [i for i in range(40) if i % 3]
    whole = march(sdf, *rays, starts(rays, EXACT), replace(EXACT, approximate_above=0.01))
    assert torch.equal(found.depth[rest], whole.depth[rest])


@torch.no_grad()
def test_only_decoders_as_they_are(device, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(marching_kernels.torch.ops.distrender, "march_decoder", never)
    sdf, rays = rough_ball(device), make_rays(device, 5)
    with pytest.raises(AssertionError):
        march(sdf, *rays, starts(rays, EXACT), EXACT)
    asked = []
    handle = sdf.register_forward_hook(lambda *_: asked.append(1))
    march(sdf, *rays, starts(rays, EXACT), EXACT)
    assert asked
    handle.remove()
    march(lambda p: sdf(p), *rays, starts(rays, EXACT), EXACT)
    monkeypatch.setattr(decoder_kernels, "serves", lambda *_: False)
    march(sdf, *rays, starts(rays, EXACT), EXACT)


@torch.no_grad()
def test_the_operator_is_registered_as_it_should_be(device):
    sdf, (origins, directions) = rough_ball(device), make_rays(device, 9)
    near, far = ball_interval(origins, directions, 1.0)
    walks = torch.full((len(marching_kernels.ROWS), 9), 0.5, device=device)
    state, rays = torch.zeros(9, dtype=torch.int8, device=device), torch.arange(9, dtype=torch.int32, device=device)
    coded, half = sdf.decoder.packed(torch.float32), sdf.decoder.packed(torch.float16)
    march_tensors = (walks, state, origins, directions, -torch.ones_like(near), near, far, rays)
    network = (coded.heads(sdf.latent), coded.weights, half.weights, coded.sizes, 1)
    rules = (0.01, 5, 1.0, 0.1, 5e-5, 1, 0.03, 1e-6)
    operator = torch.ops.distrender.march_decoder
    torch.library.opcheck(operator, (*march_tensors, *network, *rules), test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(RuntimeError, match="float and half"):
        operator(*march_tensors, network[0], half.weights, *network[2:], *rules)
    with pytest.raises(RuntimeError, match="rays has the wrong"):
        operator(*march_tensors[:-1], rays.long(), *network, *rules)
    with pytest.raises(RuntimeError, match="no such finish"):
        operator(*march_tensors, *network, *rules[:5], 3, *rules[6:])
