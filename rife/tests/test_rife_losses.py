"""Each term of the training loss against a slow independent version, and its gradient in every parameter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from papershelf.errors import UserError
from rife.losses import laplacian_loss, laplacian_pyramid, rife_loss
from rife.model import Rife, TrainingOutput, leakage_distillation
from rife.presets import PAPER, RIFEM
from rife.refinement import RefinementConfig
from scipy.ndimage import convolve1d

SMALL = {"widths": (8, 8, 8), "refinement": RefinementConfig(width=4)}


def blur(plane):
    for axis in (0, 1):
        plane = convolve1d(plane, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
    return plane


def slow_pyramid(plane):
    """One channel ``[H, W]`` in float64, by scipy."""
    bands = []
    for _ in range(5):
        small = blur(plane)[::2, ::2]
        spread = np.zeros_like(plane)
        spread[::2, ::2] = small
        bands.append(plane - 4 * blur(spread))
        plane = small
    return bands


def slow_loss(a, b):
    """Mean over the planes of each level, summed over the levels."""
    pairs = [
        (slow_pyramid(p), slow_pyramid(q))
        for p, q in zip(a.double().flatten(0, 1).numpy(), b.double().flatten(0, 1).numpy(), strict=True)
    ]
    return sum(np.mean([np.abs(p[level] - q[level]).mean() for p, q in pairs]) for level in range(5))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 3, 64, 96)])
def test_pyramid_and_loss_equal_the_slow_version(shape):
    torch.manual_seed(0)
    a, b = torch.rand(shape), torch.rand(shape)
    for level, band in enumerate(laplacian_pyramid(a)):
        assert band.shape == (*shape[:2], shape[2] >> level, shape[3] >> level)
        expected = torch.from_numpy(slow_pyramid(a[0, 0].double().numpy())[level])
        torch.testing.assert_close(band[0, 0].double(), expected, atol=2e-6, rtol=0)
    assert laplacian_loss(a, b).item() == pytest.approx(slow_loss(a, b), rel=1e-5)


def test_a_flat_difference_costs_nothing_since_the_last_low_pass_is_unused():
    a = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    assert laplacian_loss(a, a + 0.3).item() < 1e-14
    assert laplacian_loss(a, a).item() == 0


def test_loss_stays_float32_under_autocast():
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = laplacian_loss(a, b)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, laplacian_loss(a, b))


def test_gradient_of_the_loss():
    torch.manual_seed(0)
    a = torch.rand(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    b, direction, step = torch.rand_like(a), torch.randn_like(a), 1e-7
    laplacian_loss(a, b).backward()
    with torch.no_grad():
        change = (laplacian_loss(a + step * direction, b) - laplacian_loss(a - step * direction, b)) / (2 * step)
    assert (a.grad * direction).sum().item() == pytest.approx(change.item(), rel=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (32, 32), (64, 72)])
def test_sizes_without_five_levels_are_refused(size):
    with pytest.raises(UserError, match="multiples of 32 and at least 64"):
        laplacian_loss(torch.zeros(1, 3, *size), torch.zeros(1, 3, *size))
    with pytest.raises(UserError, match="of one size"):
        laplacian_loss(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64))


def slow_distillation(output, gt):
    """Pixel by pixel, as the specification says it: no tensor operation over more than one pixel."""
    flow_tea = output.flow_teacher.detach()
    n, _, h, w = gt.shape
    total = 0.0
    for flow, merged in zip(output.flows, output.merged, strict=True):
        for i, y, x in np.ndindex(n, h, w):
            error = (merged[i, :, y, x] - gt[i, :, y, x]).abs().mean()
            error_teacher = (output.merged_teacher[i, :, y, x] - gt[i, :, y, x]).abs().mean()
            if error > error_teacher + 0.01:
                difference = flow_tea[i, :, y, x] - flow[i, :, y, x]
                total += (difference**2).mean().sqrt().item() / (n * h * w)
    return total


@pytest.mark.parametrize(("config", "t", "weight"), [(PAPER, 0.5, 0.01), (RIFEM, 0.3, 0.002)])
def test_the_whole_loss_is_the_sum_of_its_terms(config, t, weight):
    torch.manual_seed(0)
    model = Rife(replace(config, **SMALL))
    img0, img1, gt = torch.rand(3, 1, 3, 64, 64).unbind()
    with torch.no_grad():
        output = model.forward_train(img0, img1, gt, t)
        # Random weights hardly move anything: a better teacher that disagrees gives the last term a value.
        better = gt + 0.02 * torch.rand_like(gt)
        output = replace(output, merged_teacher=better, flow_teacher=3 * torch.rand(1, 4, 64, 64))
        distill = slow_distillation(output, gt)
        assert distill > 0.1
        loss_distill = leakage_distillation(output.flows, output.merged, output.flow_teacher, output.merged_teacher, gt)
        losses = rife_loss(replace(output, loss_distill=loss_distill), gt, weight)
    student, teacher = slow_loss(output.frame, gt), slow_loss(output.merged_teacher, gt)
    assert losses.student.item() == pytest.approx(student, rel=1e-5)
    assert losses.teacher.item() == pytest.approx(teacher, rel=1e-5)
    assert losses.distill.item() == pytest.approx(distill, rel=1e-5)
    assert losses.total.item() == pytest.approx(student + teacher + weight * distill, rel=1e-5)


def test_a_perfect_prediction_costs_nothing():
    gt = torch.rand(1, 3, 64, 64)
    flow = torch.zeros(1, 4, 64, 64)
    losses = rife_loss(TrainingOutput([gt] * 3, gt, gt, [flow] * 3, flow, torch.zeros(())), gt, 0.01)
    assert [term.item() for term in losses] == [0, 0, 0, 0]


@pytest.mark.parametrize(("config", "t"), [(PAPER, 0.5), (RIFEM, 0.3)])
def test_every_parameter_gets_a_gradient(config, t):
    torch.manual_seed(0)
    model = Rife(replace(config, **SMALL))
    img0, img1, gt = torch.rand(3, 1, 3, 64, 64).unbind()
    rife_loss(model.forward_train(img0, img1, gt, t), gt, 0.01).total.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def test_the_student_learns_from_each_term_and_the_teacher_not_from_distillation():
    torch.manual_seed(0)
    model = Rife(replace(PAPER, **SMALL))
    img0, img1, gt = torch.rand(3, 1, 3, 64, 64).unbind()
    reached = {}
    for term in ("student", "teacher", "distill"):
        output = model.forward_train(img0, img1, gt)
        if term == "distill":  # as if the teacher were perfect: the student learns from it at almost every pixel
            output = replace(
                output, loss_distill=leakage_distillation(output.flows, output.merged, output.flow_teacher, gt, gt)
            )
        model.zero_grad(set_to_none=True)
        getattr(rife_loss(output, gt, 0.01), term).backward()
        reached[term] = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached["student"] == {"blocks", "refinement"}
    assert reached["teacher"] == {"blocks", "teacher"}
    assert reached["distill"] == {"blocks"}
