"""LCNet: its size, bins and angles by the spec's definitions, how scores become lights, and what it is shown."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from psfcn import lcnet
from psfcn.lcnet import LCNet, Logits, angles_of, bins_of, decode, directions_of, inputs, loss


def some_lights(count=50, seed=0):
    lights = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    lights[:, 2] = lights[:, 2].abs() + 0.05
    return F.normalize(lights, dim=1)


def test_it_has_the_papers_parameters_under_the_released_names():
    model = LCNet()
    assert sum(p.numel() for p in model.parameters()) == 4_409_692
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(shapes) == 2 * (7 + 4 + 6)
    assert shapes["featExtractor.conv1.0.weight"] == (64, 4, 3, 3)
    assert shapes["featExtractor.conv7.0.bias"] == (256,)
    assert shapes["classifier.conv1.0.weight"] == (256, 512, 3, 3)
    assert shapes["classifier.dir_x_est.0.0.weight"] == (64, 256, 1, 1)
    assert shapes["classifier.dir_y_est.1.0.weight"] == (36, 64, 1, 1)
    assert shapes["classifier.int_est.1.0.bias"] == (20,)


def test_it_is_the_plain_forward():
    torch.manual_seed(0)
    model = LCNet().eval()
    state = model.state_dict()
    generator = torch.Generator().manual_seed(1)
    images, mask = torch.rand(1, 2, 3, 128, 128, generator=generator), torch.ones(1, 1, 128, 128)
    mask[..., :40] = 0

    def conv(x, name, stride=1, padding=1, active=True):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)
        return F.leaky_relu(x, 0.1) if active else x

    with torch.no_grad():
        found = model(images, mask)
        local = []
        for image in images[0]:
            x = torch.cat([image[None], mask], 1)
            for number, stride in enumerate((2, 2, 1, 2, 1, 2, 1), 1):
                x = conv(x, f"featExtractor.conv{number}.0", stride)
            assert x.shape == (1, 256, 8, 8)
            local.append(x)
        joint = torch.max(*local)
        for number, own in enumerate(local):
            x = torch.cat([own, joint], 1)
            for layer, stride in enumerate((1, 2, 2, 2), 1):
                x = conv(x, f"classifier.conv{layer}.0", stride)
            for scores, head in zip(found, ("dir_x_est", "dir_y_est", "int_est"), strict=True):
                hidden = conv(x, f"classifier.{head}.0.0", padding=0)
                expected = conv(hidden, f"classifier.{head}.1.0", padding=0, active=False).flatten()
                torch.testing.assert_close(scores[0, number], expected, rtol=1e-4, atol=1e-5)


def test_angles_are_the_papers():
    known = torch.tensor([[0.0, 0, 1], [1, 0, 0], [-1, 0, 1], [0, 1, 0], [0, -1, 1], [1, 1, 1]])
    azimuth, elevation = angles_of(F.normalize(known, dim=1))
    last = math.degrees(math.atan(1 / math.sqrt(2)))
    torch.testing.assert_close(azimuth, torch.tensor([0.0, 90, -45, 0, 0, 45]))
    torch.testing.assert_close(elevation, torch.tensor([0.0, 0, 0, 90, -45, last]))
    lights = some_lights()
    torch.testing.assert_close(directions_of(*angles_of(lights)), lights)


def test_bins_by_hand():
    lights = directions_of(torch.tensor([-90.0, -88, -85, 0, 89.9, 90]), torch.tensor([2.0, -3, 0, 84, 0, 0]))
    azimuth, elevation, intensity = bins_of(lights, torch.tensor([0.2, 0.28, 0.3, 1.1001, 1.99, 2.5]))
    assert azimuth.tolist()[1:2] + azimuth.tolist()[3:] == [0, 18, 35, 35]
    assert elevation.tolist()[:2] + elevation.tolist()[3:4] == [18, 17, 34]
    assert intensity.tolist() == [0, 0, 1, 10, 19, 19]


def test_the_best_bins_centre_is_at_most_half_a_bin_off():
    lights, intensities = some_lights(200), torch.rand(200) * 1.8 + 0.2
    bins = bins_of(lights, intensities)
    sharp = Logits(*(50 * F.one_hot(b, n).float()[None] for b, n in zip(bins, (36, 36, 20), strict=True)))
    for how in ("centre", "soft"):
        directions, strengths = decode(sharp, how)
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 200))
        for found, true in zip(angles_of(directions[0]), angles_of(lights), strict=True):
            assert (found - true).abs().max() <= 2.5001
        assert (strengths[0] - intensities).abs().max() <= 0.04501


def test_a_soft_maximum_goes_below_half_a_bin():
    """Scores of a network that knows how near the next bin is: their mean is the angle itself."""
    place = torch.linspace(3.5, 32.4, 40)
    centres = torch.arange(36) + 0.5
    near = (1 - (place[:, None] - centres).abs()).clamp(min=1e-9).log()[None]
    flat = torch.zeros(1, 40, 36)
    flat[..., 18] = 50
    directions, _ = decode(Logits(near, flat, near[..., :20]), "soft")
    true = directions_of(place * 5 - 90, torch.full((40,), 2.5))
    assert torch.rad2deg(torch.acos((directions[0] * true).sum(-1).clamp(-1, 1))).max() < 0.05
    coarse, _ = decode(Logits(near, flat, near[..., :20]), "centre")
    assert torch.rad2deg(torch.acos((coarse[0] * true).sum(-1).clamp(-1, 1))).max() > 2
    second = near.clone()
    second[..., 0] = second.amax(-1) - 0.5  # another mode far off draws nothing
    torch.testing.assert_close(decode(Logits(second, flat, flat[..., :20]))[0], directions)
    with pytest.raises(ValueError, match="how must be one of soft, centre, got 'hard'"):
        decode(Logits(near, flat, flat), "hard")


def test_the_loss_is_three_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    logits = Logits(*(torch.randn(2, 3, bins, generator=generator) for bins in (36, 36, 20)))
    lights, intensities = some_lights(6).view(2, 3, 3), torch.rand(2, 3, generator=generator) + 0.5
    expected = 0.0
    for scores, bins in zip(logits, bins_of(lights, intensities), strict=True):
        for n in range(2):
            for q in range(3):
                expected -= scores[n, q].log_softmax(0)[bins[n, q]].item() / 6
    assert loss(logits, lights, intensities).item() == pytest.approx(expected, rel=1e-5)


def test_any_order_of_photographs_gives_the_same_lights():
    torch.manual_seed(0)
    model = LCNet().eval()
    images, mask = torch.rand(1, 5, 3, 128, 128), torch.ones(1, 1, 128, 128)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for found, expected in zip(model(images[:, order], mask), model(images, mask), strict=True):
            assert torch.equal(found, expected[:, order])


def test_it_is_shown_the_object_in_a_square_at_one_exposure():
    images, mask = torch.zeros(3, 3, 60, 200), torch.zeros(60, 200, dtype=torch.bool)
    mask[10:50, 100:180] = True
    images[:] = torch.linspace(0, 1, 200)  # a ramp over x
    shown, inside = inputs(images, mask)
    assert shown.shape == (3, 3, 128, 128)
    assert inside.shape == (1, 128, 128)
    rows, columns = (np.flatnonzero(inside[0].any(dim).numpy()) for dim in (1, 0))
    assert 5 <= columns[0] <= 7
    assert 120 <= columns[-1] <= 122
    assert rows[-1] - rows[0] + 1 == pytest.approx((columns[-1] - columns[0] + 1) / 2, abs=2)
    assert rows[0] == pytest.approx(127 - rows[-1], abs=1)
    assert shown[(inside == 0).expand(3, 3, -1, -1)].abs().max() == 0
    assert shown.sum() / (9 * inside.sum()) == pytest.approx(lcnet.LEVEL)
    middle = shown[0, 0, 64, columns[0] + 3 : columns[-1] - 3]
    assert (middle.diff() > 0).all()
    torch.testing.assert_close(inputs(7 * images, mask)[0], shown)
    with pytest.raises(ValueError, match="the mask must not be empty"):
        inputs(images, mask & False)


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        ((1, 2, 3, 64, 64), (1, 1, 64, 64), r"images must be \[N, Q, 3, 128, 128\]"),
        ((1, 2, 3, 128, 128), (2, 1, 128, 128), r"mask must be \[1, 1, 128, 128\], got \[2, 1, 128, 128\]"),
    ],
)
def test_shapes_that_do_not_fit(images, mask, message):
    with pytest.raises(ValueError, match=message):
        LCNet()(torch.zeros(images), torch.zeros(mask))
