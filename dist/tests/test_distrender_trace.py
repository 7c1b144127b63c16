"""The tracing kernels against the marching loop in PyTorch: same rules, same depths, same number of queries."""

import os
import re
from pathlib import Path

import pytest
import torch
from distrender import tracing_kernels
from distrender.analytic import (
    AnalyticSDF,
    Box,
    Capsule,
    Cone,
    Cylinder,
    Difference,
    Ellipsoid,
    Intersection,
    Plane,
    Rotate,
    RoundBox,
    Scale,
    Shell,
    SmoothDifference,
    SmoothIntersection,
    Sphere,
    Torus,
    Translate,
    Union,
    smooth_union,
    union,
)
from distrender.grid import GridSDF
from distrender.tape import Op
from distrender.tracing import HIT, MarchOptions, ball_interval, march_reference
from distrender.tracing_kernels import march
from papershelf import native

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
ON_CPU_THREADS = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"  # slow: fewer rays
RAYS = 300 if ON_CPU_THREADS else 2000
CSRC = Path(tracing_kernels.__file__).parent / "csrc"
pytestmark = pytest.mark.skipif(not tracing_kernels._kernels.load("cpu"), reason="kernels cannot be built here")

EVERYTHING = smooth_union(
    SmoothDifference(
        Translate(Union(RoundBox(0.5, 0.4, 0.3, 0.05), Cone(0.3, 0.4, 0.1)), 0.1, 0.2, -0.1), Torus(0.4, 0.15), 0.1
    ),
    Rotate(SmoothIntersection(Scale(Capsule(0.3, 0.2), 1.5), Cylinder(0.4, 0.3), 0.2), 0.3, 0.5, -0.2),
    Shell(Difference(Intersection(Ellipsoid(0.7, 0.5, 0.4), Plane(1, 2, 0.5, 0.2)), Box(0.3, 0.3, 0.5)), 0.02),
    Translate(Sphere(0.2), -0.5, 0.5, 0.5),
    k=0.15,
)
SHAPES = {
    "sphere": Sphere(0.7),
    "box": Box(0.5, 0.3, 0.6),
    "round box": RoundBox(0.5, 0.3, 0.6, 0.1),
    "torus": Torus(0.6, 0.25),
    "capsule": Capsule(0.4, 0.3),
    "cylinder": Cylinder(0.5, 0.4),
    "cone": Cone(0.5, 0.6, 0.2),
    "ellipsoid": Ellipsoid(0.8, 0.4, 0.3),
    "plane": Plane(1, 2, 3, 0.1),
    "difference": Difference(Box(0.5, 0.5, 0.5), Sphere(0.6)),
    "everything": EVERYTHING,
}


@pytest.fixture(params=DEVICES)
def device(request):
    assert tracing_kernels._kernels.load(request.param)
    return torch.device(request.param)


def make_rays(device, dtype=torch.float64, n=RAYS, seed=0):
    """From around the unit ball into it, some past it, some from inside."""
    rng = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    origins *= torch.where(torch.rand(n, 1, generator=rng) < 0.1, 0.3, 2) / origins.norm(dim=1, keepdim=True)
    aims = torch.randn(n, 3, generator=rng, dtype=torch.float64) * 0.45
    directions = (aims - origins) / (aims - origins).norm(dim=1, keepdim=True)
    return origins.to(device, dtype), directions.to(device, dtype)


def field_of(name, device, dtype=torch.float64):
    if name == "grid":
        axis = torch.linspace(-1.05, 1.05, 20, dtype=torch.float64)
        z, y, x = torch.meshgrid(axis, axis[:18] * 19 / 17 - 1.05 * 2 / 17, axis, indexing="ij")
        values = ((x * x + z * z).sqrt() - 0.55).square().add(y * y).sqrt() - 0.22 + 0.02 * torch.sin(9 * x + 5 * z)
        return GridSDF(values).to(device, dtype)
    if name == "compact":
        return field_of("grid", device, dtype).compact()
    return AnalyticSDF(SHAPES[name]).to(device, dtype)


def both(sdf, origins, directions, options, start=None, slope=None):
    if start is None:
        start = ball_interval(origins, directions, options.bound)[0]
    with torch.no_grad():
        expected = march_reference(sdf, origins, directions, start, options, slope)
    return march(sdf, origins, directions, start, options, slope), expected


def assert_same(found, expected, atol=1e-9):
    depth, min_sdf, min_depth, state, queries = found
    assert torch.equal(state, expected.state)
    assert queries == expected.queries
    torch.testing.assert_close(depth, expected.depth, atol=atol, rtol=0)
    torch.testing.assert_close(min_sdf, expected.min_sdf, atol=atol, rtol=0)
    torch.testing.assert_close(min_depth, expected.min_depth, atol=atol, rtol=0)


@pytest.mark.parametrize("name", [*SHAPES, "grid", "compact"])
def test_same_as_the_loop_in_double(device, name):
    found, expected = both(field_of(name, device), *make_rays(device), MarchOptions())
    assert_same(found, expected)
    assert (expected.state == HIT).float().mean() > 0.2


@pytest.mark.parametrize("name", ["difference", "everything", "grid"])
@pytest.mark.parametrize(
    "options",
    [
        MarchOptions(finish="secant"),
        MarchOptions(finish="bisect"),
        MarchOptions(steps=7),
        MarchOptions(steps=1, finish="secant"),
        MarchOptions(ratio=1.0, clamp=1.0, threshold=1e-3, bound=0.8),
        MarchOptions(ratio=1.95, clamp=0.4, finish="bisect", finish_below=0.2),
        MarchOptions(ratio=1.0, finish="secant", finish_below=0.2, threshold=1e-9),
    ],
    ids=str,
)
def test_every_rule_is_the_same_in_double(device, name, options):
    assert_same(*both(field_of(name, device), *make_rays(device), options))


@pytest.mark.parametrize("finish", ["none", "secant"])
@pytest.mark.parametrize("name", ["sphere", "everything", "grid", "compact"])
def test_in_single_precision_but_for_rounding(device, name, finish):
    options = MarchOptions(finish=finish)
    rays = make_rays(device, torch.float32)
    found, expected = both(field_of(name, device, torch.float32), *rays, options)
    alike = found[3] == expected.state
    assert alike.float().mean() > 0.995
    assert found[4] == pytest.approx(expected.queries, rel=0.003)
    near = (found[0] - expected.depth).abs() < 1e-5
    hit = (expected.state == HIT) & alike
    # A ray may converge a step earlier or later; without a finish that is worth up to the threshold over the slope.
    assert near[hit].float().mean() > 0.99
    torch.testing.assert_close(found[0][hit], expected.depth[hit], atol=2e-3, rtol=0)


@pytest.mark.parametrize("finish", ["none", "secant"])
def test_compact_grids_change_depths_by_less_than_the_threshold_is_worth(device, finish):
    """Rounding to halves moves the surface by up to 2^-11 of a cell over the slope; a ray may end a step later."""
    axis = torch.linspace(-1.05, 1.05, 64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    grid = GridSDF(torch.hypot(torch.hypot(x, z) - 0.6, y) - 0.25).to(device)
    rays = make_rays(device, torch.float32)
    start = ball_interval(*rays, 1.0)[0]
    options = MarchOptions(finish=finish, ratio=1.0)
    exact, compact = (march(field, *rays, start, options) for field in (grid, grid.compact()))
    assert (exact[3] != compact[3]).float().mean() < 0.005
    both_hit = (exact[3] == HIT) & (compact[3] == HIT)
    apart = (exact[0] - compact[0])[both_hit].abs()
    assert apart.median() < (5e-6 if finish == "secant" else 5e-5)
    assert apart.quantile(0.98) < 2e-4
    assert compact[4] == pytest.approx(exact[4], rel=0.01)


def test_fields_that_are_no_distances_cross_and_are_reported(device):
    """A steep field: steps jump over the surface and back; without a finish some never converge."""
    grid = field_of("grid", device)
    with torch.no_grad():
        grid.values.mul_(3.1)
    rays = make_rays(device)
    plain, expected = both(grid, *rays, MarchOptions(steps=20))
    assert_same(plain, expected)
    assert (plain[3] == 2).sum() > 10
    finished, expected = both(grid, *rays, MarchOptions(steps=20, finish="secant"))
    assert_same(finished, expected)
    assert (finished[3] == 2).sum() < (plain[3] == 2).sum() / 4


def test_depths_to_start_from(device):
    sdf, (origins, directions) = field_of("everything", device), make_rays(device)
    near, far = ball_interval(origins, directions, 1.0)
    start = near + torch.linspace(0, 1.2, len(near), dtype=near.dtype, device=device) * (far - near)
    start[::7] = torch.inf
    assert_same(*both(sdf, origins, directions, MarchOptions(), start))
    slope = torch.linspace(-1, 0.2, len(near), dtype=near.dtype, device=device)
    slope[::5] = torch.nan
    near_surface = both(sdf, origins, directions, MarchOptions(), start)[1].min_depth - 0.02
    options = MarchOptions(finish="secant")
    found, expected = both(sdf, origins, directions, options, near_surface, slope)
    assert_same(found, expected)
    assert found[4] != both(sdf, origins, directions, options, near_surface)[1].queries


def test_spheres_are_met_where_they_are(device):
    sdf = AnalyticSDF(Translate(Sphere(0.5), 0.1, 0.2, 0.3)).to(device)
    origins, directions = make_rays(device, torch.float32)
    depth, min_sdf, _, state, _ = march(
        sdf, origins, directions, torch.zeros(len(origins), device=device), MarchOptions(finish="secant")
    )
    hit = state == HIT
    points = origins + depth[:, None] * directions
    centre = torch.tensor([0.1, 0.2, 0.3], device=device)
    radius = (points[hit] - centre).norm(dim=1)
    torch.testing.assert_close(radius, torch.full_like(radius, 0.5), atol=5e-5, rtol=0)
    assert torch.equal(depth.isfinite(), hit)
    assert (min_sdf[hit].abs() < 5e-5).all()


@pytest.mark.parametrize("name", ["sphere", "grid", "compact"])
@pytest.mark.parametrize("n", [0, 1, 15, 31, 32, 33, 65])
def test_few_rays(device, name, n):
    assert_same(*both(field_of(name, device), *make_rays(device, n=n), MarchOptions()))


def test_more_rays_than_a_launch_has_threads(device):
    n = 1500 if ON_CPU_THREADS else 4000
    assert_same(*both(field_of("torus", device), *make_rays(device, n=n), MarchOptions(steps=12)))


def test_strided_rays(device):
    origins, directions = make_rays(device, n=60)
    strided = origins.T.contiguous().T
    assert not strided.is_contiguous()
    one = directions[:1].expand(60, 3)
    assert_same(*both(field_of("torus", device), strided, one, MarchOptions()))


@pytest.mark.parametrize("name", ["everything", "grid", "compact"])
def test_what_is_not_a_number_misses(device, name):
    origins, directions = make_rays(device, n=40)
    start = torch.full_like(origins[:, 0], 0.5)
    directions[::3] = torch.nan
    directions[1::3, 0] = torch.inf
    depth, _, _, state, _ = march(field_of(name, device), origins, directions, start, MarchOptions())
    assert (state.view(-1)[::3] != HIT).all()
    assert (depth[::3] == torch.inf).all()


@pytest.mark.skipif(ON_CPU_THREADS, reason="its threads are the GPU's")
def test_several_threads_find_the_same():
    sdf, (origins, directions) = field_of("everything", "cpu"), make_rays("cpu", n=3000)
    start = ball_interval(origins, directions, 1.0)[0]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(march(sdf, origins, directions, start, MarchOptions()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))
    assert found[0][4] == found[1][4]


def deep(n):
    """A tree that needs n distances at once."""
    return Sphere(0.1) if n == 1 else Union(Sphere(0.1 * n), deep(n - 1))


def nested(n):
    """A tree that needs n points at once."""
    return Sphere(0.5) if n == 1 else Translate(nested(n - 1), 0.01, 0, 0)


@pytest.mark.parametrize(
    "fits",
    [deep(8), nested(8), union(*[Sphere(0.2)] * 128), union(*[RoundBox(0.2, 0.2, 0.2, 0.01)] * 128)],
    ids=["distances", "points", "instructions", "constants"],
)
def test_the_largest_tapes_are_served(device, fits):
    assert_same(*both(AnalyticSDF(fits).to(device).double(), *make_rays(device, n=40), MarchOptions()))


@pytest.mark.parametrize(
    "beyond",
    [deep(9), nested(9), union(*[Sphere(0.2)] * 129)],
    ids=["distances", "points", "instructions"],
)
def test_larger_tapes_are_left_to_the_loop(beyond):
    rays = make_rays("cpu", torch.float32, n=4)
    assert march(AnalyticSDF(beyond), *rays, torch.zeros(4), MarchOptions()) is None


def test_what_no_kernel_serves():
    sdf, rays, start = field_of("sphere", "cpu", torch.float32), make_rays("cpu", torch.float32, n=4), torch.zeros(4)
    assert march(sdf, *rays, start, MarchOptions()) is not None
    assert march(lambda p: p.norm(dim=-1) - 0.5, *rays, start, MarchOptions()) is None
    assert march(sdf, *rays, start, MarchOptions(dynamic=False)) is None
    assert march(sdf, *rays, start, MarchOptions(samples=2)) is None
    assert march(sdf, *make_rays("cpu", n=4), start.double(), MarchOptions()) is None
    asked = []
    handle = sdf.register_forward_hook(lambda *_: asked.append(1))
    assert march(sdf, *rays, start, MarchOptions()) is None
    handle.remove()
    assert march(sdf, *rays, start, MarchOptions()) is not None

    class Mine(AnalyticSDF):
        def forward(self, points):
            return super().forward(points) + 0.1

    assert march(Mine(Sphere(0.5)), *rays, start, MarchOptions()) is None


def test_without_kernels_there_is_none(monkeypatch):
    monkeypatch.setenv("PAPERSHELF_NATIVE", "off")
    monkeypatch.setattr(tracing_kernels, "_kernels", native.Kernels("distrender", CSRC, [], []))
    rays = make_rays("cpu", torch.float32, n=4)
    assert march(field_of("sphere", "cpu", torch.float32), *rays, torch.zeros(4), MarchOptions()) is None


RULES = (50, 1.5, 0.1, 5e-5, 1, 0.03, 1e-6)


def operands(device, name, dtype):
    origins, directions = make_rays(device, dtype, n=8)
    near, far = ball_interval(origins, directions, 1.0)
    sdf = field_of(name, device, dtype)
    return sdf, (origins, directions, near, -torch.ones_like(near), near, far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_sound(device, dtype):
    checks = ("test_schema", "test_faketensor")
    sdf, rays = operands(device, "torus", dtype)
    torch.library.opcheck(
        torch.ops.distrender.trace_analytic, (*rays, sdf.tape, sdf.constants().detach(), *RULES), test_utils=checks
    )
    sdf, rays = operands(device, "grid", dtype)
    torch.library.opcheck(
        torch.ops.distrender.trace_grid, (*rays, sdf.values.detach(), -1.05, 1.05, *RULES), test_utils=checks
    )
    compact = sdf.compact()
    torch.library.opcheck(
        torch.ops.distrender.trace_bricks,
        (*rays, compact.bricks, *compact.size, -1.05, 1.05, *RULES),
        test_utils=checks,
    )


def test_operators_refuse_what_does_not_fit(device):
    sdf, (origins, *others) = operands(device, "grid", torch.float32)
    values = sdf.values.detach()

    def call(*rays, values=values):
        return torch.ops.distrender.trace_grid(*rays, values, -1.05, 1.05, *RULES)

    with pytest.raises(RuntimeError, match="rays' dtype"):
        call(origins, *others, values=values.double())
    with pytest.raises(RuntimeError, match="must be contiguous"):
        call(origins, *others, values=values.mT)
    with pytest.raises(RuntimeError, match="at least 2"):
        call(origins, *others, values=values[:1])
    with pytest.raises(RuntimeError, match=r"\[N, 3\]"):
        call(origins[:2], *others)
    with pytest.raises(RuntimeError, match="float or double"):
        call(origins.half(), *others, values=values.half())
    compact = sdf.compact()
    for bricks, size in [
        (compact.bricks.float(), compact.size),
        (compact.bricks, (20, 18, 21)),
        (compact.bricks, (1, 18, 20)),
        (compact.bricks.flatten(3), compact.size),
        (compact.bricks.mT, compact.size),
    ]:
        with pytest.raises(RuntimeError, match="bricks must be half"):
            torch.ops.distrender.trace_bricks(origins, *others, bricks, *size, -1.05, 1.05, *RULES)
    tape = torch.zeros(257, 3, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match="too long"):
        torch.ops.distrender.trace_analytic(origins, *others, tape, origins.flatten(), *RULES)


def test_header_and_python_agree_on_numbers():
    text = (CSRC / "trace.h").read_text()
    names = re.findall(r"\bk(\w+),", re.search(r"enum Op : int32_t \{(.*?)\}", text, re.S)[1])
    assert [name.lower() for name in names] == [op.name.replace("_", "").lower() for op in Op]
    limits = dict(re.findall(r"k(Slots|Depth|Instructions|Constants) = (\d+)", text))
    assert {name.upper(): int(value) for name, value in limits.items()} == {
        name: getattr(tracing_kernels, name) for name in ("SLOTS", "DEPTH", "INSTRUCTIONS", "CONSTANTS")
    }
    finishes = re.search(r"enum Finish : int32_t \{(.*?)\}", text)[1].replace("k", "").lower().split(", ")
    assert [finish.strip() for finish in finishes] == list(tracing_kernels.FINISHES)
