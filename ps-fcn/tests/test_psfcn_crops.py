"""Crops of samples: one geometry for images, normals and lights; drawn from the seed alone; what the recipe changes."""

import dataclasses

import numpy as np
import pytest
import torch
from papershelf.errors import UserError
from psfcn import classical
from psfcn.crops import Crops, Samples, random_crop
from psfcn.recipes import recipe
from psfcn_spheres import make_folder, sphere_sample

PLAIN = recipe("psfcn-n", noise=0.0, side=(16, 64), crop=(16, 16), lights=(6, 6))


def lambertian(number=0, size=40, lights=8):
    """A sphere without a highlight, of which least squares knows every normal that all lights reach."""
    sample = sphere_sample(number, size, lights)
    shading = np.maximum(sample.normal.astype(np.float32) @ sample.lights.T, 0).transpose(2, 0, 1)
    images = np.rint(shading[..., None] * sample.intensities[:, None, None] * 60000).astype(np.uint16)
    return dataclasses.replace(sample, images=images.clip(0, 65535))


def error(crop):
    """The mean angle between a crop's normals and what least squares finds in the pixels that all lights reach."""
    images = crop.images.permute(0, 2, 3, 1).numpy()
    lit = (images.min((0, 3)) > 0) & (crop.mask[0].numpy() > 0)
    found = classical.solve(images, crop.lights.numpy(), lit, "ls").normals[lit]
    cosine = (found * crop.normal.permute(1, 2, 0).numpy()[lit]).sum(-1)
    return np.rad2deg(np.arccos(cosine.clip(-1, 1))).mean(), lit.sum()


@pytest.mark.parametrize("turn", [False, True])
def test_images_normals_and_lights_stay_together(turn):
    config = dataclasses.replace(PLAIN, turn=turn, side=(20, 40))
    seen = []
    for seed in range(16):
        crop = random_crop(lambertian(seed), np.random.default_rng(seed), 6, 16, config)
        assert crop.images.shape == (6, 3, 16, 16)
        assert crop.normal.shape == (3, 16, 16)
        torch.testing.assert_close(crop.normal.norm(dim=0), crop.mask[0])
        angle, pixels = error(crop)
        if pixels > 20:
            seen.append(angle)
    assert len(seen) > 10
    assert max(seen) < 2.5  # what resizing mixes; a normal that is mirrored, or a light, would be tens of degrees off


def test_all_eight_turns_come_up():
    config = dataclasses.replace(PLAIN, turn=True)
    sample = sphere_sample(0, 16, 6)
    crops = [random_crop(sample, np.random.default_rng(seed), 6, 16, config) for seed in range(60)]
    corners = {tuple(crop.lights.sum(0).mul(1e4).round().tolist()) for crop in crops}
    assert len(corners) == 8


def test_images_are_divided_by_the_lights_intensities():
    sample = sphere_sample(3, 16, 6)
    crop = random_crop(sample, np.random.default_rng(0), 6, 16, PLAIN)
    order = [int(np.flatnonzero((sample.lights == light.numpy()).all(1))[0]) for light in crop.lights]
    assert sorted(order) == list(range(6))
    expected = sample.images[order] / 65535.0 / sample.intensities[order][:, None, None]
    np.testing.assert_allclose(crop.images.permute(0, 2, 3, 1), expected, atol=1e-6)
    np.testing.assert_array_equal(crop.mask[0], sample.mask)


def test_sides_are_those_of_the_recipe():
    """A crop of 16 pixels from an image of 40 whose side becomes 20 to 40 shows 40 to 80% of its width."""
    ramp = np.tile(np.arange(40, dtype=np.uint16) * 1000, (3, 40, 1))[..., None].repeat(3, 3)
    ones = np.ones_like
    sample = dataclasses.replace(
        sphere_sample(0, 40, 3), images=ramp, mask=ones(ramp[0, ..., 0], bool), intensities=ones([[1.0] * 3] * 3, "f4")
    )
    config = dataclasses.replace(PLAIN, side=(20, 64))
    widths = []
    for seed in range(200):
        crop = random_crop(sample, np.random.default_rng(seed), 3, 16, config)
        per_pixel = crop.images[0, 0, 8].diff().median().item() * 65535 / 1000
        widths.append(16 * per_pixel / 40)
    assert min(widths) == pytest.approx(0.4, abs=0.03)
    assert max(widths) == pytest.approx(0.8, abs=0.03)


def test_what_the_recipe_adds():
    sample = sphere_sample(1, 16, 6)

    def crop(**changes):
        return random_crop(sample, np.random.default_rng(0), 6, 16, dataclasses.replace(PLAIN, **changes))

    plain, inside = crop(), crop().mask > 0
    noisy = (crop(noise=0.02).images - plain.images)[:, :, inside[0]]
    assert 0.018 < noisy.max() <= 0.02
    assert -0.018 > noisy.min() >= -0.02
    assert abs(noisy.mean()) < 0.001
    assert (crop(noise=0.02).images[:, :, ~inside[0]] == 0).all()
    gains = (crop(gain=0.1).images.sum((1, 2, 3)) / plain.images.sum((1, 2, 3))).numpy()
    assert 0.03 < gains.std() < 0.3
    angles = torch.rad2deg(torch.acos((crop(aim=2.0).lights * plain.lights).sum(1)))
    assert 0.5 < angles.mean() < 6
    torch.testing.assert_close(crop(aim=2.0).lights.norm(dim=1), torch.ones(6))
    factors = crop(colour=True).images.sum((0, 2, 3)) / plain.images.sum((0, 2, 3))
    assert ((factors > 0.2) & (factors < 2)).all()
    assert factors.std() > 0.1


def test_a_place_with_enough_of_the_object_is_looked_for():
    sample = sphere_sample(0, 64, 6)
    mask = np.zeros_like(sample.mask)
    mask[40:60, 40:60] = True
    sample = dataclasses.replace(sample, mask=mask)
    config = dataclasses.replace(PLAIN, side=(64, 64))
    shares = [random_crop(sample, np.random.default_rng(seed), 6, 16, config).mask.mean().item() for seed in range(30)]
    assert np.mean(np.array(shares) > 0.2) > 0.6


def test_crops_depend_on_seed_step_and_place_alone(tmp_path):
    folder = make_folder(tmp_path / "set", 5)
    config = recipe("psfcn-n", batch=2, lights=(3, 6), crop=(8, 16), turn=True, aim=1.0, gain=0.1)
    crops, again = Crops(Samples(folder), config), Crops(Samples(folder), config)
    keys = [(step, place) for step in range(6) for place in range(2)]
    found = [crops[key] for key in keys]
    for key, crop in [*zip(keys, found, strict=True)][::-1]:
        assert all(torch.equal(a, b) for a, b in zip(again[key], crop, strict=True))
    sizes = [(len(crop.lights), crop.mask.shape[-1]) for crop in found]
    assert sizes[::2] == sizes[1::2]  # the same within a batch
    assert len(set(sizes)) > 3
    assert {side for _, side in sizes} <= {8, 12, 16}
    other = Crops(Samples(folder), dataclasses.replace(config, seed=1))
    assert not all(torch.equal(other[key].lights, crop.lights) for key, crop in zip(keys, found, strict=True))


def test_each_pass_takes_every_sample_once_in_another_order(tmp_path):
    samples = Samples(make_folder(tmp_path / "set", 6))
    first = [samples.drawn(0, number, 3).lights.tobytes() for number in range(6)]
    second = [samples.drawn(0, number, 3).lights.tobytes() for number in range(6, 12)]
    assert set(first) == set(second)
    assert len(set(first)) == 6
    assert first != second


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"holds no samples \(\*\.npz\); make some with: psfcn render -o"):
        Samples(tmp_path)
    samples = Samples(make_folder(tmp_path / "set", 2, lights=4))
    with pytest.raises(UserError, match="has 4 lights, and 5 are asked for; render with --lights 5, or train with"):
        samples.drawn(0, 0, 5)
