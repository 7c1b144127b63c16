"""Overlays that stand still over a moving picture."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from papershelf.metrics import psnr
from rife.overlays import AROUND, OverlayTracker, lock_overlay

SIZE = (96, 160)


def scenery(shift: int) -> torch.Tensor:
    """[3, *SIZE]: a soft picture, moved to the left by ``shift`` pixels."""
    random = torch.Generator().manual_seed(3)
    grid = torch.rand(1, 3, 12, 60, generator=random)
    wide = F.interpolate(grid, (SIZE[0], 480), mode="bilinear", align_corners=False)[0]
    return 0.2 + 0.6 * wide[:, :, shift : shift + SIZE[1]]


def writing() -> torch.Tensor:
    """[*SIZE]: opacity of white letters."""
    canvas = np.zeros(SIZE, np.uint8)
    cv2.putText(canvas, "NEWS", (20, 85), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 3, cv2.LINE_AA)
    return torch.from_numpy(canvas / 255).float()


def overlaid(shift: int, opacity: float = 1.0) -> torch.Tensor:
    return torch.lerp(scenery(shift), torch.ones(3, *SIZE), writing() * opacity)


def grain(seed: int, codes: float) -> torch.Tensor:
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(seed)) * codes / 255


def learned(frames: list[torch.Tensor]) -> torch.Tensor:
    """The mask of the last pair."""
    tracker = OverlayTracker()
    return [tracker.mask(a, b) for a, b in pairwise(frames)][-1]


@pytest.mark.parametrize("codes", [0, 1])
def test_writing_over_a_pan_is_found_and_the_pan_is_not(codes):
    mask = learned([overlaid(6 * n) + grain(n, codes) for n in range(6)])
    solid = -F.max_pool2d(-writing()[None], 3, 1, 1)[0] > 0.99
    assert mask[solid].mean() > 0.9
    far = F.max_pool2d(writing()[None], 13, 1, 6)[0] == 0
    assert mask[far].mean() < 0.01


def test_a_wobbling_overlay_is_put_right():
    frames = [overlaid(12 * n) for n in range(6)]
    mask = learned(frames)
    # A network that takes the writing along with the background.
    wrong, truth = overlaid(54).roll(-3, 2), overlaid(54)
    locked = lock_overlay(wrong[None], frames[4], frames[5], [0.5], mask)[0]
    near = (F.max_pool2d(writing()[None], 5, 1, 2)[0] > 0).expand(3, -1, -1)
    errors = [((x - truth)[near] ** 2).mean().item() for x in (wrong, locked)]
    assert errors[1] < errors[0] / 20
    away = (F.max_pool2d(writing()[None], 4 * AROUND + 1, 1, 2 * AROUND)[0] == 0).expand(3, -1, -1)
    assert torch.equal(locked[away], wrong[away])


def test_a_right_answer_is_not_worsened():
    frames = [overlaid(8 * n) for n in range(6)]
    truth = overlaid(36)
    locked = lock_overlay(truth[None], frames[4], frames[5], [0.5], learned(frames))[0]
    assert psnr(locked[None], truth[None]) > 45


def test_nothing_is_done_without_an_overlay():
    frames = [scenery(6 * n) for n in range(6)]
    mask, made = learned(frames), torch.rand(2, 3, *SIZE)
    assert mask.max() == 0
    assert lock_overlay(made, frames[4], frames[5], [0.25, 0.5], mask) is made


def test_a_pixel_is_trusted_after_three_pairs():
    tracker = OverlayTracker()
    masks = [tracker.mask(overlaid(6 * n), overlaid(6 * n + 6)) for n in range(4)]
    solid = -F.max_pool2d(-writing()[None], 3, 1, 1)[0] > 0.99
    assert [round(mask[solid].mean().item(), 1) for mask in masks] == [0, 0.5, 1, 1]


def test_an_overlay_outlives_a_cut_and_the_picture_before_it_does_not():
    before, after = overlaid(0), torch.lerp(1 - scenery(200), torch.ones(3, *SIZE), writing())
    tracker = OverlayTracker()
    for _ in range(5):
        tracker.mask(before, before)
    tracker.mask(before, after)
    mask = tracker.mask(after, after.roll(0))
    solid = -F.max_pool2d(-writing()[None], 3, 1, 1)[0] > 0.99
    assert mask[solid].mean() > 0.9
    assert mask[: SIZE[0] // 2].mean() < 0.01


def test_a_subtitle_that_goes_is_not_kept():
    tracker = OverlayTracker()
    for n in range(5):
        tracker.mask(overlaid(6 * n), overlaid(6 * n + 6))
    assert tracker.mask(overlaid(30), scenery(36)).max() < 0.05


def test_each_time_gets_its_own_mixture():
    a, b = overlaid(0), overlaid(0) + 4 / 255  # an overlay that brightens a little
    tracker = OverlayTracker()
    for _ in range(4):
        mask = tracker.mask(a, b)
    locked = lock_overlay(torch.zeros(2, 3, *SIZE), a, b, [0.25, 0.75], mask)
    spot = (mask > 0.999).expand(3, -1, -1)
    assert spot.any()
    for frame, t in zip(locked, (0.25, 0.75), strict=True):
        assert torch.allclose(frame[spot], torch.lerp(a, b, t)[spot], atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_any_size_keeps_shape_and_range(height, width, count):
    random = torch.Generator().manual_seed(height * 41 + width)
    a = torch.rand(3, height, width, generator=random)
    tracker = OverlayTracker()
    for _ in range(4):
        mask = tracker.mask(a, a)
    assert mask.shape == (height, width)
    assert 0 <= mask.min() <= mask.max() <= 1
    made = torch.rand(count, 3, height, width, generator=random)
    locked = lock_overlay(made, a, a, [0.5] * count, mask)
    assert locked.shape == made.shape
    # Between what was made and what was given, pixel by pixel.
    low, high = torch.minimum(made, a), torch.maximum(made, a)
    assert ((locked >= low - 1e-6) & (locked <= high + 1e-6)).all()


def test_frames_of_other_sizes_are_refused():
    tracker = OverlayTracker()
    with pytest.raises(UserError, match="one size"):
        tracker.mask(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))
    tracker.mask(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(UserError, match=r"video of \[8, 8\]"):
        tracker.mask(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
