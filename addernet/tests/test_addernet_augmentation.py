"""Augmentation: whole batches equal to images one by one, the same chances whoever draws them."""

import numpy as np
import pytest
import torch
from addernet.augmentation import PAD, Chances, chances, crop_and_mirror, cut_out, normalized, random_part
from addernet.batches import for_network
from addernet_image_sets import picture

from addernet import augmentation

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 7), (1, 1)])
def test_crops_of_a_batch_are_those_of_its_images(height, width):
    pixels = np.random.default_rng(0).integers(1, 256, (40, height, width, 3)).astype(np.uint8)
    drawn = chances(40, seed=1, epoch=2)
    result = crop_and_mirror(torch.from_numpy(pixels), drawn)
    for image, top, left, mirrored, made in zip(
        pixels, drawn.top, drawn.left, drawn.mirrored, result.numpy(), strict=True
    ):
        canvas = np.zeros((height + 2 * PAD, width + 2 * PAD, 3), np.uint8)
        canvas[PAD : PAD + height, PAD : PAD + width] = image
        crop = canvas[top : top + height, left : left + width]
        assert np.array_equal(made, crop[:, ::-1] if mirrored else crop)


def test_every_crop_and_both_sides_occur_equally_often():
    drawn = chances(81 * 200, seed=0, epoch=0)
    counts = torch.zeros(9, 9).index_put((drawn.top, drawn.left), torch.ones(()), accumulate=True)
    assert counts.min() > 120
    assert counts.max() < 280
    assert drawn.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.order.sort().values.tolist() == list(range(81 * 200))


def test_chances_depend_on_seed_and_epoch_only():
    a, again = chances(100, 3, 4), chances(100, 3, 4)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(again).values(), strict=True))
    for other in (chances(100, 3, 5), chances(100, 4, 4)):
        assert not torch.equal(a.order, other.order)
        assert not torch.equal(a.top, other.top)
    part = a.at(slice(10, 14), CPU)
    assert torch.equal(part.hole, a.hole[10:14])


@pytest.mark.parametrize("side", [1, 2, 7, 50])
def test_cutout_erases_a_square_that_may_reach_over_the_edge(side):
    x = torch.rand(30, 3, 9, 12) + 1
    hole = chances(30, 0, 0).hole
    result = cut_out(x, hole, side)
    for before, after, (down, right) in zip(x, result, hole, strict=True):
        expected = before.clone()
        top, left = int(down * 9) - side // 2, int(right * 12) - side // 2
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert torch.equal(after, expected)


def test_normalized():
    pixels = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    x = normalized(pixels, mean, std)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_random_parts_of_photographs(monkeypatch):
    rows, columns = np.mgrid[:60, :100]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    taken = []
    monkeypatch.setattr(augmentation, "resized", lambda part, size: taken.append(part) or part)
    parts = [random_part(image, 24, np.random.default_rng(k)) for k in range(300)]
    shares = [part.shape[0] * part.shape[1] / 6000 for part in taken]
    assert min(shares) > 0.07
    assert max(shares) <= 1
    assert np.mean(shares) > 0.3
    aspects = [part.shape[1] / part.shape[0] for part in taken]
    assert min(aspects) > 0.7
    assert max(aspects) < 1.45
    mirrored = [part[0, 0, 1] > part[0, -1, 1] for part in parts]
    assert 0.4 < np.mean(mirrored) < 0.6
    again = random_part(image, 24, np.random.default_rng(7))
    assert np.array_equal(again, parts[7])


def test_a_thin_photograph_gives_its_middle():
    image = np.zeros((4, 400, 3), np.uint8)
    image[:, 198:202] = 255
    assert random_part(image, 4, np.random.default_rng(0)).min() == 255


def test_images_of_any_size_become_the_networks():
    image = picture(0, (100, 100, 100), 32, 32)
    assert np.array_equal(for_network(image, 32), image)
    wide = np.concatenate([np.zeros((32, 9, 3), np.uint8), image, np.zeros((32, 9, 3), np.uint8)], axis=1)
    assert np.array_equal(for_network(wide, 32), image)
    assert np.array_equal(for_network(image.repeat(3, 0).repeat(3, 1), 32), image)  # smaller: the mean over areas
    photograph = np.zeros((256, 256, 3), np.uint8)
    photograph[16:-16, 16:-16] = 255
    assert for_network(photograph, 224).min() == 255  # 7/8 of it, as photographs are tested
    assert for_network(image[:1, :1], 32).shape == (32, 32, 3)


def test_chances_are_taken_at_places_of_the_order():
    drawn = Chances(*(torch.arange(5) for _ in range(5)))
    assert drawn.at(slice(1, 3), CPU).order.tolist() == [1, 2]
