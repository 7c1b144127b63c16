"""Tiles cover a frame, keep to the budget, and mix without a seam."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rife.interpolator import Interpolator
from rife.tiling import OVERLAP, free_memory, spans, tiled, tiles


@given(st.integers(2, 4000), st.integers(1, 6), st.integers(0, 64))
def test_spans_cover_and_their_weights_add_up_to_one(size, parts, overlap):
    if size < parts * (2 * overlap + 2):
        return
    made = spans(size, parts, overlap)
    assert (made[0].begin, made[-1].end) == (0, size)
    assert all(a.end - b.begin >= overlap - 1 for a, b in pairwise(made))
    total = torch.zeros(size)
    for span in made:
        total[span.begin : span.end] += span.weights()
    torch.testing.assert_close(total, torch.ones(size))


@given(st.integers(64, 5000), st.integers(64, 9000), st.integers(10**5, 10**8))
def test_tiles_keep_to_the_budget_where_they_can(height, width, pixels):
    grid = tiles(height, width, pixels)
    largest = max((rows.end - rows.begin) * (columns.end - columns.begin) for rows, columns in grid)
    assert largest <= max(pixels, (3 * OVERLAP) ** 2 + 1, min(height, width) * 3 * OVERLAP)
    if height * width <= pixels:
        assert len(grid) == 1


def test_tiling_a_pointwise_function_changes_nothing():
    a, b = torch.rand(2, 3, 700, 900)
    out = tiled(
        lambda x, y, ts: torch.stack([torch.lerp(x, y, t) for t in ts]),
        a,
        b,
        [0.25, 0.5],
        tiles(700, 900, 2 * 10**5, 64),
    )
    torch.testing.assert_close(out, torch.stack([torch.lerp(a, b, 0.25), torch.lerp(a, b, 0.5)]))


def test_the_interpolator_tiles_what_does_not_fit(averaging):
    a, b = torch.rand(2, 3, 600, 800)
    whole = Interpolator.from_file(averaging, device="cpu")
    small = Interpolator.from_file(averaging, device="cpu", memory=1)  # byte: the smallest tiles there are
    assert len(small.grid(600, 800)) > 1
    assert len(whole.grid(600, 800)) == 1
    torch.testing.assert_close(small.between(a, b, [0.5]), whole.between(a, b, [0.5]))


@pytest.mark.parametrize("name", ["cpu"])
def test_free_memory_is_some(name):
    assert 2**20 < free_memory(torch.device(name)) < 2**50
