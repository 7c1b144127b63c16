"""Procedural shapes: within the ball and close to filling it, one solid, repeatable, held-out ones apart."""

import numpy as np
import pytest
import torch
from distrender.procedural import FAMILIES, HELD_OUT_FROM, held_out, shape, training_set, tree
from papershelf.errors import UserError

POINTS = torch.from_numpy(np.random.default_rng(0).uniform(-1.3, 1.3, (30_000, 3)).astype(np.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_ball_and_close_to_filling_it(family):
    for seed in (*range(6), HELD_OUT_FROM):
        with torch.no_grad():
            values = shape(family, seed)(POINTS)
        inside = POINTS[values < 0]
        assert len(inside) > 150
        assert inside.norm(dim=1).max() < 1 / 1.03 + 1e-4
        assert inside.norm(dim=1).max() > 0.8
        # Centred on its height, so that all of a family stand alike.
        assert abs(inside[:, 1].max() + inside[:, 1].min()) < 0.12


@pytest.mark.parametrize("family", FAMILIES)
def test_distances_are_bounds_of_distances(family):
    sdf = shape(family, 3)
    with torch.no_grad():
        values = sdf(POINTS)
        # No two values differ by more than their points are apart, so that no step outside is too long.
        moved = POINTS + 0.05 * torch.nn.functional.normalize(POINTS.roll(1, 0) - POINTS)
        difference = (sdf(moved) - values).abs()
    # The ellipsoid's bound of bowls and of a bottle's dent is steeper inside it.
    assert (difference <= 0.05 + 1e-5).float().mean() > 0.995


def test_the_same_seed_gives_the_same_shape_and_another_seed_another():
    for family in FAMILIES:
        assert tree(family, 5) == tree(family, 5)
        assert tree(family, 5) != tree(family, 6)


def test_families_do_not_share_their_numbers():
    first = {family: str(tree(family, 0)) for family in FAMILIES}
    assert len(set(first.values())) == len(FAMILIES)


def test_held_out_shapes_are_fifty_of_all_families_and_never_trained_on():
    held = held_out()
    assert len(set(held)) == 50
    assert {family for family, _ in held} == set(FAMILIES)
    assert min(seed for _, seed in held) >= HELD_OUT_FROM
    assert not set(held) & set(training_set(10_000))
    assert training_set(10) == training_set(20)[:10]


def test_what_there_is_not():
    with pytest.raises(UserError, match="no family 'car' of shapes; there are mug"):
        shape("car", 0)
    with pytest.raises(UserError, match="0 or more"):
        shape("mug", -1)
