"""PSNR and SSIM against scikit-image, and against what can be worked out by hand."""

import math

import pytest
import torch
from papershelf.errors import UserError
from papershelf.metrics import psnr, ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def pair(*shape, noise=0.1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(*shape, generator=rng)
    return a, (a + noise * torch.randn(*shape, generator=rng)).clamp(0, 1)


def oracle_ssim(a, b, peak):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    return structural_similarity(a.double().numpy(), b.double().numpy(), data_range=peak, **options)


@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 11, 40), (3, 37, 23), (4, 64, 64)])
@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_equal_scikit_image(shape, peak):
    a, b = (x * peak for x in pair(*shape))
    assert ssim(a, b, peak) == pytest.approx(oracle_ssim(a, b, peak), abs=1e-12)
    expected = peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=peak)
    assert psnr(a, b, peak) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_a_constant_error():
    a = torch.full((3, 4, 5), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-5)  # 10 log10(1 / 0.01)


def test_ssim_of_two_flat_images():
    a, b = torch.full((1, 16, 16), 0.25), torch.full((1, 16, 16), 0.75)
    c1 = 0.01**2  # no variance: only the luminance term is left
    assert ssim(a, b) == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1), abs=1e-9)


def test_the_mean_over_images_is_of_their_figures():
    a, b = pair(2, 3, 3, 16, 16)
    b[0] = a[0] * 0.5
    for metric in (psnr, ssim):
        each = [metric(a[i, j], b[i, j]) for i in range(2) for j in range(3)]
        assert metric(a, b) == pytest.approx(sum(each) / 6, abs=1e-12)


def test_equal_images():
    a, _ = pair(2, 3, 16, 16)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == 1


def test_symmetric():
    a, b = pair(3, 20, 20)
    assert psnr(a, b) == psnr(b, a)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-15)


def test_integers_do_not_wrap():
    a, b = torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([[[255, 0]]], dtype=torch.uint8)
    assert psnr(a, b, peak=255) == 0


def test_a_flat_bright_region_keeps_its_accuracy():
    # E[x²] - E[x]² in float32 would be off by more than the variance here.
    a, b = (1 + 1e-4 * x for x in pair(1, 32, 32))
    assert ssim(a, b) == pytest.approx(oracle_ssim(a, b, 1.0), abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 8, 8), (3, 8, 9)), ((8, 8), (8, 8)), ((3, 0, 8), (3, 0, 8)), ((1, 3, 8, 8), (3, 8, 8))]
)
def test_what_are_no_two_images_is_said_with_both_shapes(a, b):
    for metric in (psnr, ssim):
        with pytest.raises(UserError) as error:
            metric(torch.zeros(a), torch.zeros(b))
        assert str(list(a)) in str(error.value)
        assert str(list(b)) in str(error.value)


def test_smaller_than_the_window():
    with pytest.raises(UserError, match=r"11x11 pixels, got images of \[10, 40\]"):
        ssim(torch.zeros(3, 10, 40), torch.zeros(3, 10, 40))
