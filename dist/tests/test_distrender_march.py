"""The marching step as an operator against the loop in PyTorch: same rules, same depths, same number of queries."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distrender import marching_kernels
from distrender.marching import CROSSED, HIT, MarchOptions, ball_interval, march_reference
from distrender.marching_kernels import march
from papershelf import native

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
RAYS = 96 if os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu" else 3000
CSRC = Path(marching_kernels.__file__).parent / "csrc"
pytestmark = pytest.mark.skipif(not marching_kernels._kernels.load("cpu"), reason="kernels cannot be built here")


@pytest.fixture(params=DEVICES)
def device(request):
    if not marching_kernels._kernels.load(request.param):
        pytest.skip(f"there is no kernel for {request.param}")
    return torch.device(request.param)


def make_rays(device, dtype=torch.float64, n=RAYS, seed=0):
    """From around the unit ball into it, some past it, some from inside."""
    rng = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    origins *= torch.where(torch.rand(n, 1, generator=rng) < 0.1, 0.3, 2) / origins.norm(dim=1, keepdim=True)
    aims = torch.randn(n, 3, generator=rng, dtype=torch.float64) * 0.45
    directions = (aims - origins) / (aims - origins).norm(dim=1, keepdim=True)
    return origins.to(device, dtype), directions.to(device, dtype)


def bumpy(p):
    """A torus with waves on it; too steep in places."""
    x, y, z = p.unbind(-1)
    return torch.hypot(torch.hypot(x, z) - 0.55, y) - 0.22 + 0.03 * torch.sin(9 * x + 5 * z)


class Rough:
    """A field whose approximation is off by up to ``error``; counts what it is asked."""

    def __init__(self, error=1e-3):
        self.error, self.exact, self.rough = error, 0, 0

    def __call__(self, p):
        self.exact += len(p)
        return bumpy(p)

    def approximate(self, p):
        self.rough += len(p)
        return bumpy(p) + self.error * torch.sin(60 * p[:, 0] + 40 * p[:, 1])


def both(sdf, origins, directions, options, start=None, slope=None):
    if start is None:
        start = ball_interval(origins, directions, options.bound)[0]
    return (
        march(sdf, origins, directions, start, options, slope),
        march_reference(sdf, origins, directions, start, options, slope),
    )


def assert_same(found, expected, atol=1e-9):
    assert torch.equal(found.state, expected.state)
    assert found.queries == expected.queries
    for name in ("depth", "min_sdf", "min_depth"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=atol, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        MarchOptions(),
        MarchOptions(finish="secant"),
        MarchOptions(finish="bisect"),
        MarchOptions(steps=7),
        MarchOptions(steps=1, finish="secant"),
        MarchOptions(ratio=1.0, clamp=1.0, threshold=1e-3, bound=0.8),
        MarchOptions(ratio=1.95, clamp=0.4, finish="bisect", finish_below=0.2),
        MarchOptions(ratio=1.0, finish="secant", finish_below=0.2, threshold=1e-9),
        MarchOptions(finish="secant", approximate_above=0.01),
        MarchOptions(steps=9, approximate_above=0.05),
    ],
    ids=str,
)
def test_every_rule_is_that_of_the_loop_in_double(device, options):
    found, expected = both(Rough(), *make_rays(device), options)
    assert_same(found, expected)
    assert (expected.state == HIT).any() or options.steps == 1


@pytest.mark.parametrize("approximate_above", [0.0, 0.01])
def test_in_single_precision_but_for_rounding(device, approximate_above):
    options = MarchOptions(finish="secant", approximate_above=approximate_above)
    found, expected = both(Rough(), *make_rays(device, torch.float32), options)
    alike = found.state == expected.state
    assert alike.float().mean() > 0.995
    assert found.queries == pytest.approx(expected.queries, rel=0.003)
    hit = (expected.state == HIT) & alike
    assert ((found.depth - expected.depth)[hit].abs() < 1e-5).float().mean() > 0.99


def test_depths_and_slopes_to_start_from(device):
    origins, directions = make_rays(device)
    near, far = ball_interval(origins, directions, 1.0)
    start = near + torch.linspace(0, 1.2, len(near), dtype=near.dtype, device=device) * (far - near)
    start[::7] = torch.inf
    slope = torch.linspace(-1, 0.2, len(near), dtype=near.dtype, device=device)
    slope[::5] = torch.nan
    assert_same(*both(bumpy, origins, directions, MarchOptions(finish="secant"), start, slope))


def test_rays_that_cross_without_converging_are_told(device):
    found, expected = both(lambda p: bumpy(p).sign() * 0.05, *make_rays(device), MarchOptions(finish="bisect"))
    assert_same(found, expected)
    assert (found.state == CROSSED).sum() > RAYS / 4


@pytest.mark.parametrize("n", [0, 1, 31, 33])
def test_few_rays(device, n):
    assert_same(*both(bumpy, *make_rays(device, n=n), MarchOptions()))


def test_strided_rays(device):
    origins, directions = make_rays(device, n=60)
    assert_same(*both(bumpy, origins.T.contiguous().T, directions[:1].expand(60, 3), MarchOptions()))


def test_what_is_not_a_number_misses(device):
    origins, directions = make_rays(device, n=40)
    directions[::3] = torch.nan
    start = torch.full_like(origins[:, 0], 0.5)
    found = march(lambda p: torch.where(p[:, 0] > 0, torch.nan, bumpy(p)), origins, directions, start, MarchOptions())
    assert (found.state[::3] != HIT).all()
    assert (found.depth[::3] == torch.inf).all()


def test_an_approximation_is_asked_far_from_the_surface_only(device):
    """And changes neither the hits nor, beyond what the threshold allows, their depths."""
    rays = make_rays(device)
    start = ball_interval(*rays, 1.0)[0]
    exact, mixed = Rough(), Rough()
    options = MarchOptions(ratio=1.0, finish="secant", steps=200)
    expected = march(exact, *rays, start, options)
    found = march(mixed, *rays, start, replace(options, approximate_above=0.01))
    assert exact.rough == 0
    assert mixed.exact + mixed.rough == found.queries
    assert mixed.exact < 0.7 * exact.exact
    assert (found.state != expected.state).sum() <= 2
    hit = (found.state == HIT) & (expected.state == HIT)
    assert (found.depth - expected.depth)[hit].abs().quantile(0.99) < 5e-5
    # Samples below 0.01 are exact; others are off by what the approximation is.
    value = bumpy(rays[0] + found.min_depth[:, None] * rays[1])
    asked = found.min_sdf.isfinite()
    off = (found.min_sdf - value)[asked].abs()
    assert off.max() <= 1e-3
    assert off[(found.min_sdf[asked].abs() < 0.01)].max() < 1e-12


def test_an_approximation_that_is_no_number_is_asked_for_exactly(device):
    """As halves are that overflowed."""
    field, rays = Rough(), make_rays(device)
    field.approximate = lambda p: torch.where(p[:, 0] > 0, torch.nan, bumpy(p))
    options = MarchOptions(finish="secant", approximate_above=0.01)
    found, expected = both(field, *rays, options)
    assert_same(found, expected)
    plain = march(bumpy, *rays, ball_interval(*rays, 1.0)[0], options)
    assert torch.equal(found.state, plain.state)
    torch.testing.assert_close(found.depth, plain.depth, atol=1e-9, rtol=0)


def test_fields_without_an_approximation_and_marches_that_ask_all_rays_go_without():
    field, rays = Rough(), make_rays("cpu", n=50)
    without = march_reference(bumpy, *rays, torch.zeros(50, dtype=torch.float64), MarchOptions(approximate_above=0.02))
    with_kernel = march(bumpy, *rays, torch.zeros(50, dtype=torch.float64), MarchOptions(approximate_above=0.02))
    assert_same(with_kernel, without)  # a field that has no approximation is asked itself
    march_reference(field, *rays, torch.zeros(50, dtype=torch.float64), MarchOptions(dynamic=False))
    assert field.rough == 0


def test_what_no_kernel_serves(monkeypatch):
    rays, start = make_rays("cpu", n=4), torch.zeros(4, dtype=torch.float64)
    assert march(bumpy, *rays, start, MarchOptions()) is not None
    assert march(bumpy, *rays, start, MarchOptions(dynamic=False)) is None
    assert march(bumpy, *rays, start, MarchOptions(samples=2)) is None
    monkeypatch.setenv("PAPERSHELF_NATIVE", "off")
    monkeypatch.setattr(marching_kernels, "_kernels", native.Kernels("distrender_march", CSRC, [], []))
    assert march(bumpy, *rays, start, MarchOptions()) is None


RULES = (0.01, 50, 1.5, 0.1, 5e-5, 1, 0.03, 1e-6)


def operands(device, dtype, n=9):
    origins, directions = make_rays(device, dtype, n=n)
    near, far = ball_interval(origins, directions, 1.0)
    walks = torch.full((len(marching_kernels.ROWS), n), 0.5, dtype=dtype, device=device)
    state = torch.zeros(n, dtype=torch.int8, device=device)
    rays = torch.tensor([0, 3, 4, 7], dtype=torch.int32, device=device)
    values = torch.tensor([0.3, 1e-6, 0.2, 0.001], dtype=dtype, device=device)
    return walks, state, origins, directions, -torch.ones_like(near), near, far, rays, values, 2, *RULES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_is_registered_as_it_should_be(device, dtype):
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.distrender.march_step, operands(device, dtype), test_utils=checks)


def test_the_operator_refuses_what_does_not_fit(device):
    given = list(operands(device, torch.float32))

    def call(place, value):
        return torch.ops.distrender.march_step(*given[:place], value, *given[place + 1 :])

    for place, value, message in [
        (0, given[0][:3], "walks has the wrong shape"),
        (2, given[2].double(), "walks has the wrong shape"),
        (3, given[3][:2], "directions has the wrong"),
        (7, given[7].long(), "rays has the wrong"),
        (8, given[8][:1], "values has the wrong"),
        (9, 5, "too many rays"),
        (15, 7, "no such finish"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(place, value)


def test_header_and_python_agree_on_rows():
    text = (CSRC / "march.h").read_text()
    assert re.search(r"enum class Row : int32_t \{(.*?)\}", text)[1].strip().split(", ") == list(marching_kernels.ROWS)
    assert int(re.search(r"kRows = (\d+)", text)[1]) == len(marching_kernels.ROWS)
