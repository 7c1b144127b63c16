"""Coarse to fine against tracing every pixel: fewer queries, the same picture."""

from dataclasses import replace

import pytest
import torch
from distrender.cameras import Camera
from distrender.pyramid import FEWEST, FEWEST_LEVELS, FEWEST_STEPS, trace_image
from distrender.tracing import MarchOptions, sphere_trace
from papershelf.errors import UserError

PAPER = MarchOptions()
FINE = MarchOptions(steps=1000, ratio=1.0, finish="secant")


def sphere(p):
    return p.norm(dim=-1) - 0.5


def torus(p):
    return torch.hypot(torch.hypot(p[:, 0], p[:, 2]) - 0.55, p[:, 1]) - 0.2


def needle(p):
    """A stick of half a pixel of a 96-pixel image, and of an eighth of a block of 4."""
    along = p[:, 0].clamp(-0.6, 0.6)
    return torch.stack([p[:, 0] - along, p[:, 1], p[:, 2]], -1).norm(dim=-1) - 0.006


class Counting:
    def __init__(self, sdf):
        self.sdf, self.points = sdf, 0

    def __call__(self, p):
        self.points += len(p)
        return self.sdf(p)


@pytest.mark.parametrize("sdf", [sphere, torus])
def test_fewer_queries_and_no_fewer_hits(sdf):
    camera = Camera.orbit(1, size=(96, 96))
    reference = sphere_trace(sdf, *camera.rays(), replace(PAPER, ratio=1.0, steps=400), gradient="none").mask
    aggressive = sphere_trace(sdf, *camera.rays(), PAPER, gradient="none")
    paper = trace_image(sdf, camera, PAPER, gradient="none")
    fewest = trace_image(sdf, camera, FEWEST, levels=FEWEST_LEVELS, steps=FEWEST_STEPS, gradient="none")
    assert paper.queries < 0.8 * aggressive.queries
    assert fewest.queries < 0.5 * paper.queries
    for hit, rate in ((paper, 0.995), (fewest, 0.997)):  # at 96 pixels more rays graze than at 512
        assert (hit.mask & reference).sum() >= rate * reference.sum()
        assert not (hit.mask & ~reference).any()
        assert hit.missed == 0


@pytest.mark.parametrize("levels", [(4, 2, 1), (8, 4, 2, 1), (16, 1), (1,)])
def test_every_depth_is_that_of_the_pixels_own_ray(levels):
    """The views have odd sizes, so that blocks reach over the image's edge; one sees the torus from within the ball."""
    eyes = torch.tensor([[1.0, 1.2, 1.9], [0.0, 0.9, 0.1]], dtype=torch.float64)
    camera = Camera.look_at(eyes, focal=40.0, size=(37, 45))
    steps = (8,) * (len(levels) - 1) + (300,)
    hit = trace_image(torus, camera, FEWEST, levels=levels, steps=steps, gradient="none")
    alone = sphere_trace(torus, *camera.rays(), FINE, gradient="none")
    assert hit.depth.shape == (2, 37, 45)
    assert hit.normal.shape == (2, 37, 45, 3)
    assert (hit.mask != alone.mask).sum() <= 2  # rays that graze
    both = hit.mask & alone.mask
    error = (hit.depth - alone.depth)[both].abs()
    assert error.quantile(0.98) < 1e-5
    assert error.max() < 0.02  # no pixel sees through to what lies behind


def test_what_is_thinner_than_a_block_is_not_lost():
    camera = Camera.orbit(1, elevation=5, first=20, size=(96, 96))
    alone = sphere_trace(needle, *camera.rays(), FINE, gradient="none").mask
    hit = trace_image(needle, camera, FEWEST, levels=(16, 4, 1), steps=(10, 6, 100), gradient="none")
    assert 20 < alone.sum() < 96 * 3
    assert torch.equal(hit.mask, alone)


def test_every_query_is_counted():
    camera = Camera.orbit(2, size=(20, 20))
    for options in (PAPER, replace(FEWEST, closest=2)):
        field = Counting(torus)
        assert trace_image(field, camera, options, gradient="none").queries == field.points


def test_smallest_distances_of_rays_that_cones_proved_to_miss():
    camera = Camera.orbit(1, size=(32, 32)).to(torch.float64)
    origins, directions = camera.rays()
    foot = -(origins * directions).sum(-1, keepdim=True)
    off_axis = (origins + foot * directions).norm(dim=-1)
    passing = (off_axis > 0.51) & (off_axis < 1)
    rough = trace_image(sphere, camera, FEWEST, gradient="none")
    exact = trace_image(sphere, camera, replace(FEWEST, closest=3), gradient="none")
    expected = (off_axis - 0.5)[passing]
    assert (exact.min_sdf[passing] - expected).abs().max() < 1e-4
    assert rough.min_sdf[passing].isfinite().all()
    assert (rough.min_sdf[passing] > expected - 0.2).all()  # rays of a block are 0.15 from its middle
    assert exact.queries > rough.queries
    torch.testing.assert_close(sphere(exact.min_point[passing]), exact.min_sdf[passing])


def test_gradients_are_those_of_the_pixels_own_rays():
    camera = Camera.orbit(1, size=(24, 24)).to(torch.float64)
    options = MarchOptions(ratio=1.0, threshold=1e-9, finish="secant", closest=3)
    found = []
    for trace in (
        lambda f: trace_image(f, camera, options, steps=(3, 3, 300)),
        lambda f: sphere_trace(f, *camera.rays(), replace(options, steps=300)),
    ):
        radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        hit = trace(lambda p, radius=radius: p.norm(dim=-1) - radius)
        silhouette = hit.min_sdf[~hit.mask].square().sum()
        found.append(torch.autograd.grad(hit.depth[hit.mask].sum() + silhouette, radius)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def test_an_approximation_far_from_the_surface_leaves_the_picture_as_it_is():
    class Rough(Counting):
        exactly = 0

        def __call__(self, p):
            self.exactly += len(p)
            return super().__call__(p)

        def approximate(self, p):
            return super().__call__(p) + 2e-3 * torch.sin(40 * p[:, 0] + 30 * p[:, 2])

    camera = Camera.orbit(1, size=(64, 64))
    field, options = Rough(torus), MarchOptions(ratio=1.0, finish="secant", closest=2)
    plain = trace_image(torus, camera, options, steps=(3, 3, 200), gradient="none")
    mixed = trace_image(field, camera, replace(options, approximate_above=0.02), steps=(3, 3, 200), gradient="none")
    assert torch.equal(mixed.mask, plain.mask)
    assert (mixed.depth - plain.depth)[plain.mask].abs().quantile(0.98) < 1e-5
    asked = mixed.min_point.norm(dim=-1) < 0.999  # others pass the ball
    torch.testing.assert_close(mixed.min_sdf[asked], torus(mixed.min_point[asked]), atol=1e-6, rtol=0)
    assert mixed.queries == field.points
    assert field.exactly < 0.8 * field.points


def test_levels_and_steps_are_checked():
    camera = Camera.orbit(1, size=(8, 8))
    for levels in [(4, 3, 1), (4, 2), (2, 4, 1), ()]:
        with pytest.raises(UserError, match="levels must each be a multiple of the next"):
            trace_image(sphere, camera, levels=levels, steps=(3,) * len(levels))
    with pytest.raises(UserError, match="a number from 1 on for each of 3 levels"):
        trace_image(sphere, camera, steps=(3, 47))
    with pytest.raises(UserError, match="gradient must be"):
        trace_image(sphere, camera, gradient="exact")
