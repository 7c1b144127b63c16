"""Sphere tracing against shapes whose depth is known, and each of its tricks against the plain loop."""

import math
from dataclasses import replace

import pytest
import torch
from distrender.tracing import MarchOptions, sphere_trace
from papershelf.errors import UserError

NAIVE = MarchOptions(ratio=1.0, dynamic=False)
DYNAMIC = MarchOptions(ratio=1.0)
AGGRESSIVE = MarchOptions()
SECANT = MarchOptions(finish="secant")
BISECT = MarchOptions(finish="bisect")
EVERY = [NAIVE, DYNAMIC, AGGRESSIVE, SECANT, BISECT]


def rays(size, dtype=torch.float32, distance=2.5, spread=0.45):
    """``size`` x ``size`` rays from a point on the z axis that cover the unit ball."""
    u = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * spread
    y, x = torch.meshgrid(u, u, indexing="ij")
    d = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)
    return torch.tensor([0.0, 0.0, -distance]).expand_as(d).to(dtype), d.to(dtype)


def sphere(p):
    return p.norm(dim=-1) - 0.5


def torus(p):
    """Tilted, so that rays see through its hole and graze its inside."""
    x, y, z = p.unbind(-1)
    y, z = 0.6 * y + 0.8 * z, 0.6 * z - 0.8 * y
    return torch.hypot(torch.hypot(x, z) - 0.55, y) - 0.2


def box(p):
    q = p.abs() - torch.tensor([0.5, 0.3, 0.4], dtype=p.dtype)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def sphere_depth(o, d, radius=0.5):
    along = (o * d).sum(-1)
    under = along**2 - (o * o).sum(-1) + radius**2
    return torch.where(under > 0, -along - under.clamp(min=0).sqrt(), torch.inf)


class Counting:
    """A field that counts what it is asked."""

    def __init__(self, sdf):
        self.sdf, self.points, self.calls = sdf, 0, 0

    def __call__(self, p):
        self.points += len(p)
        self.calls += 1
        return self.sdf(p)


@pytest.mark.parametrize("options", EVERY)
def test_depth_mask_point_and_normal_of_a_sphere(options):
    o, d = rays(32)
    hit = sphere_trace(sphere, o, d, options)
    expected = sphere_depth(o.double(), d.double())
    assert torch.equal(hit.mask, expected.isfinite())
    assert torch.equal(hit.mask, hit.depth.isfinite())
    error = (hit.depth - expected)[hit.mask].abs()
    assert error.mean() < 1e-4
    assert error.max() < 5e-3  # where a ray grazes, |f| < 5e-5 is far from the surface along the ray
    expected_point = o + torch.where(hit.mask, expected, 0)[..., None] * d
    assert (hit.point - o - hit.depth[..., None] * d)[hit.mask].abs().max() < 1e-6
    cosine = (hit.normal * torch.nn.functional.normalize(expected_point, dim=-1))[hit.mask].sum(-1)
    assert cosine.quantile(0.05) > math.cos(math.radians(0.1))
    assert not hit.point[~hit.mask].any()
    assert not hit.normal[~hit.mask].any()
    assert hit.missed == 0


@pytest.mark.parametrize("sdf", [sphere, torus, box])
def test_secant_depths_within_a_ten_thousandth_and_silhouette(sdf):
    o, d = rays(64)
    hit = sphere_trace(sdf, o, d, SECANT)
    reference = sphere_trace(sdf, o.double(), d.double(), MarchOptions(1000, 1.0, threshold=1e-9, finish="secant"))
    both = hit.mask & reference.mask
    error = (hit.depth - reference.depth)[both].abs()
    assert error.mean() < 3e-5
    assert error.quantile(0.98) < 1e-5  # the others graze: |f| < 5e-5 is far from the surface along such a ray
    assert both.sum() >= 0.999 * (hit.mask | reference.mask).sum()
    assert (hit.normal * reference.normal)[both].sum(-1).quantile(0.02) > math.cos(math.radians(0.1))


@pytest.mark.parametrize("sdf", [sphere, torus])
def test_each_trick_queries_less_and_hits_as_much(sdf):
    o, d = rays(96)
    hits = [sphere_trace(sdf, o, d, options, gradient="none") for options in (NAIVE, DYNAMIC, AGGRESSIVE, SECANT)]
    queries = [hit.queries for hit in hits]
    assert queries == sorted(queries, reverse=True)
    assert queries[1] < queries[0] / 2
    assert queries[2] < queries[1] * 0.85
    reference = sphere_trace(sdf, o, d, replace(DYNAMIC, steps=400), gradient="none").mask
    rates = [((hit.mask & reference).sum() / reference.sum()).item() for hit in hits]
    assert rates == sorted(rates)
    assert rates[0] > 0.98  # at 96 pixels more rays graze than at 512, and 50 plain steps do not get there
    assert rates[2] > 0.996
    for hit in hits:
        assert not (hit.mask & ~reference).any()


@pytest.mark.parametrize("options", EVERY)
def test_every_query_is_counted(options):
    o, d = rays(16)
    field = Counting(torus)
    assert sphere_trace(field, o, d, options, gradient="none").queries == field.points


def test_naive_asks_for_all_rays_that_meet_the_ball_at_every_step():
    o, d = rays(16)
    along = (o * d).sum(-1)
    meeting = int(((o - along[..., None] * d).square().sum(-1) < 1).sum())
    assert meeting < 16 * 16
    hit = sphere_trace(sphere, o, d, replace(NAIVE, steps=20))
    assert hit.queries == 20 * meeting
    fewer = sphere_trace(sphere, o, d, replace(DYNAMIC, steps=20))
    # But for rounding: one marches in PyTorch, the other in the kernel.
    torch.testing.assert_close(hit.depth, fewer.depth, atol=1e-6, rtol=0)
    torch.testing.assert_close(hit.min_sdf, fewer.min_sdf, atol=1e-6, rtol=0)


def test_many_points_are_asked_for_in_parts(monkeypatch):
    o, d = rays(12)
    whole = sphere_trace(sphere, o, d, gradient="none")
    monkeypatch.setattr("distrender.marching.POINTS_AT_ONCE", 10)
    field = Counting(sphere)
    parts = sphere_trace(field, o, d, gradient="none")
    assert torch.equal(parts.depth, whole.depth)
    assert field.calls >= field.points / 10


@pytest.mark.parametrize("finish", ["secant", "bisect"])
@pytest.mark.parametrize("steep", [0.15, 0.85, 3.0, 9.0])
def test_a_finish_is_safe_on_fields_that_are_no_distances(finish, steep):
    """Slopes of 3 and 9 throw the paper's steps back and forth; those of trained networks are 0.1 to 0.85."""
    o, d = rays(24, torch.float64)
    hit = sphere_trace(lambda p: torch.tanh(steep * sphere(p)), o, d, MarchOptions(steps=200, finish=finish))
    expected = sphere_depth(o, d)
    assert torch.equal(hit.mask, expected.isfinite())
    error = (hit.depth - expected)[hit.mask].abs()
    assert error.quantile(0.9) < (2e-4 / steep if finish == "bisect" else 2e-6)  # the others graze
    assert hit.missed == 0
    if steep > 3:
        plain = sphere_trace(lambda p: torch.tanh(steep * sphere(p)), o, d, MarchOptions(steps=200))
        assert plain.missed > 0.5 * int(expected.isfinite().sum())


def test_rays_that_cross_a_jump_are_reported_as_missed():
    o, d = rays(16)
    hit = sphere_trace(lambda p: torch.where(sphere(p) > 0, 0.05, -0.05), o, d, BISECT)
    inside = sphere_depth(o, d).isfinite()
    assert hit.missed == inside.sum()
    assert not hit.mask.any()


def test_a_bracket_closes_on_a_kink():
    """Nearly flat on one side and steep on the other: plain interpolation would crawl."""
    o, d = rays(8, torch.float64, spread=0.1)

    def kinked(p):
        f = sphere(p)
        return torch.where(f > 0, f * 1e-3 + 1e-4, f * 20)

    hit = sphere_trace(
        lambda p: kinked(p) - 1e-4,
        o,
        d,
        MarchOptions(threshold=1e-7, clamp=10.0, finish="secant"),
        start=torch.full(o.shape[:-1], 1.9, dtype=torch.float64),
    )
    assert hit.missed == 0


def test_a_ray_that_starts_inside_goes_back_to_the_surface():
    o, d = rays(8, spread=0.1)
    start = torch.full(o.shape[:-1], 2.1)  # the surface is at 2.0
    for options in (AGGRESSIVE, SECANT, BISECT):
        hit = sphere_trace(sphere, o, d, options, start=start)
        assert (hit.depth - sphere_depth(o, d)).abs().max() < 2e-4


def test_a_camera_inside_the_shape_sees_nothing():
    _, d = rays(4)
    hit = sphere_trace(sphere, torch.zeros_like(d), d)
    assert not hit.mask.any()
    assert torch.equal(hit.min_sdf, torch.full((4, 4), -0.5))


def test_smallest_distance_of_missing_rays():
    o, d = rays(48, torch.float64, spread=0.5)
    hit = sphere_trace(sphere, o, d)
    middle = -(o * d).sum(-1, keepdim=True)
    off_axis = (o + middle * d).norm(dim=-1)
    past = off_axis > 1
    assert past.any()
    torch.testing.assert_close(hit.min_sdf[past], off_axis[past] - 1)
    torch.testing.assert_close(hit.min_point[past], (o + middle * d)[past])
    missing = ~past & ~hit.mask
    assert (hit.min_sdf - (off_axis - 0.5))[missing].min() > -1e-12
    torch.testing.assert_close(sphere(hit.min_point)[missing], hit.min_sdf[missing])


def test_start_of_infinity_is_never_queried():
    o, d = rays(8, spread=0.1)
    start = torch.full(o.shape[:-1], torch.inf)
    hit = sphere_trace(sphere, o, d, start=start)
    assert hit.queries == 0
    assert not hit.mask.any()
    assert torch.equal(hit.min_sdf, start)


def test_nan_ends_a_ray():
    o, d = rays(8)
    hit = sphere_trace(lambda p: torch.where(p[:, 0] > 0, torch.nan, sphere(p)), o, d)
    assert not hit.mask[..., 4:].any()
    assert hit.mask[..., :4].any()


def test_no_rays_and_single_rays():
    empty = torch.zeros(0, 3)
    assert sphere_trace(sphere, empty, empty).depth.shape == (0,)
    one = sphere_trace(sphere, torch.tensor([0.0, 0.0, -2.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert one.depth.shape == ()
    assert one.normal.shape == (3,)
    assert abs(one.depth.item() - 1.5) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 on, got 0"),
        ({"ratio": 2.0}, "ratio must be below 2"),
        ({"threshold": 0.0}, "threshold must be above 0, got 0.0"),
        ({"finish": "newton"}, "finish must be none, secant or bisect, got 'newton'"),
    ],
)
def test_options_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        MarchOptions(**change)


def test_arguments_are_checked():
    o, d = rays(4)
    with pytest.raises(UserError, match=r"must both be \[\.\.\., 3\]"):
        sphere_trace(sphere, o, d[0])
    with pytest.raises(UserError, match="float32 or float64"):
        sphere_trace(sphere, o, d.double())
    with pytest.raises(UserError, match="start must be"):
        sphere_trace(sphere, o, d, start=torch.zeros(4))
    with pytest.raises(UserError, match="gradient must be"):
        sphere_trace(sphere, o, d, gradient="exact")
    with pytest.raises(UserError, match=r"into \[\d+\], got \[\d+, 1\]"):
        sphere_trace(lambda p: sphere(p)[:, None], o, d)
