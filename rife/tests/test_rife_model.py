"""Every release against a plain forward of its own, and the paper's training forward."""

import dataclasses
import subprocess
import sys

import pytest
import rife_plain_networks as plain
import torch
from papershelf.errors import UserError
from rife.checkpoints import rename
from rife.model import Rife, leakage_distillation
from rife.presets import PAPER, PAPER_LARGE, PRESETS, RIFEM, RIFEM_LARGE, V3_1, V3_8, V4_0, V4_6, V4_25

import rife

WIDTHS = {3: (16, 12, 8), 4: (16, 12, 10, 8), 5: (16, 12, 10, 8, 6)}


def small(name, seed=0, wide_motion=False):
    """A release with narrow blocks and random weights, and the same weights by their official names."""
    config = PRESETS[name]
    # v4.0 needs its padding only for wide motion, and small frames are quick
    padding = 32 if name == "v4.0" and not wide_motion else config.padding
    config = dataclasses.replace(config, widths=WIDTHS[len(config.widths)], padding=padding)
    weights = plain.official_weights(name.removesuffix("-large"), config.widths, seed)
    model = Rife(config).double()
    model.load_state_dict(rename(weights))
    return model.eval(), weights


def pair(model, scale=1.0, n=1, seed=1):
    """Smooth random frames of the smallest size allowed, not square."""
    multiple = model.padding_multiple(scale)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(
        2,
        n,
        3,
        multiple // 4,
        2 * multiple // 4 if multiple < 64 else multiple // 4,
        generator=generator,
        dtype=torch.float64,
    )
    return [plain.up(frames, 4) for frames in noise]


def agree(prediction, expected):
    frame, flow, mask = expected
    assert 0.5 < flow.abs().max() < 1000  # the random weights move something, and not all of it to the border
    torch.testing.assert_close(prediction.flow, flow, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.frame, frame, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.mask, mask, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1, 2])
@pytest.mark.parametrize("name", ["paper", "paper-large"])
def test_paper(name, scale):
    model, weights = small(name)
    frames = pair(model, scale)
    agree(model(*frames, scale=scale, clamp=False), plain.paper(weights, *frames, None, scale, name != "paper"))


@pytest.mark.parametrize(("t", "scale"), [(0.5, 1), (0.2, 1), (0.2, 0.5), (0.9, 2)])
@pytest.mark.parametrize("name", ["rifem", "rifem-large"])
def test_rifem(name, t, scale):
    model, weights = small(name)
    frames = pair(model, scale)
    agree(model(*frames, t, scale=scale, clamp=False), plain.paper(weights, *frames, t, scale, name != "rifem"))


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize(("t", "scale"), [(0.5, 1), (0.2, 1), (0.2, 0.5), (0.9, 2)])
@pytest.mark.parametrize("name", ["v4.0", "v4.6"])
def test_v4(name, t, scale, ensemble):
    model, weights = small(name)
    frames = pair(model, scale)
    expected = plain.v4(weights, *frames, t, scale, ensemble, refine=name == "v4.0")
    agree(model(*frames, t, scale=scale, ensemble=ensemble, clamp=False), expected)


@pytest.mark.parametrize(("t", "scale"), [(0.5, 1), (0.2, 0.5), (0.9, 2)])
@pytest.mark.parametrize("name", ["v4.7", "v4.10", "v4.25"])
def test_v4_with_encoder(name, t, scale):
    model, weights = small(name)
    frames = pair(model, scale)
    expected = plain.v4_encoded(weights, *frames, t, scale, carried=name == "v4.25")
    agree(model(*frames, t, scale=scale, clamp=False), expected)


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_v3_1(scale):
    model, weights = small("v3.1")
    frames = pair(model, scale)
    agree(model(*frames, scale=scale, clamp=False), plain.v3_1(weights, *frames, scale))


@pytest.mark.parametrize("scale", [0.5, 1, 2])
@pytest.mark.parametrize("name", ["v3.5", "v3.8"])
def test_v3_symmetric(name, scale):
    model, weights = small(name)
    frames = pair(model, scale)
    agree(model(*frames, scale=scale, clamp=False), plain.v3_symmetric(weights, *frames, scale, name))


def test_float32_is_within_1e_4_of_float64():
    for name in PRESETS:
        model, _ = small(name)
        frames = pair(model)
        exact = model(*frames).frame
        single = model.float()(*(frame.float() for frame in frames)).frame
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("ensemble", [False, True])
def test_v4_0_starts_anew_at_double_scales_where_both_flows_move_far(ensemble):
    model, weights = small("v4.0", wide_motion=True)
    weights["block1.lastconv.weight"] *= 20
    model.load_state_dict(rename(weights))
    frames = pair(model)
    agree(
        model(*frames, 0.3, ensemble=ensemble, clamp=False),
        plain.v4(weights, *frames, 0.3, ensemble=ensemble, refine=True, doubled=True),
    )
    model.config = dataclasses.replace(model.config, wide_motion=False)
    agree(
        model(*frames, 0.3, ensemble=ensemble, clamp=False),
        plain.v4(weights, *frames, 0.3, ensemble=ensemble, refine=True),
    )


def test_v4_0_decides_on_wide_motion_pair_by_pair():
    model, weights = small("v4.0", wide_motion=True)
    weights["block1.lastconv.weight"] *= 2.8  # moves by 30 pixels in one pair and by 34 in the other
    model.load_state_dict(rename(weights))
    bright = pair(model)
    dark = [frame * 0 for frame in bright]
    for frames, doubled in ((bright, False), (dark, True)):
        agree(model(*frames, clamp=False), plain.v4(weights, *frames, 0.5, refine=True, doubled=doubled))
    together = model(*(torch.cat(frames) for frames in zip(bright, dark, strict=True)))
    for i, frames in enumerate((bright, dark)):
        torch.testing.assert_close(together.flow[i : i + 1], model(*frames).flow)
        torch.testing.assert_close(together.frame[i : i + 1], model(*frames).frame)


@pytest.mark.parametrize("name", ["rifem", "v4.0", "v4.6", "v4.25"])
def test_several_times_of_one_pair_in_a_batch(name):
    model, _ = small(name)
    frames = pair(model)
    times = [0.125, 0.5, 0.75]
    batch = [frame.expand(3, -1, -1, -1) for frame in frames]
    together = model(*batch, torch.tensor(times, dtype=torch.float64).view(3, 1, 1, 1)).frame
    apart = torch.cat([model(*frames, t).frame for t in times])
    torch.testing.assert_close(together, apart)
    assert (apart[0] - apart[2]).abs().max() > 0.01


@pytest.mark.parametrize(("name", "ensemble"), [("v4.6", True), ("v4.7", True), ("v3.8", False)])
def test_both_directions_averaged_do_not_depend_on_the_order_of_the_frames(name, ensemble):
    model, _ = small(name)
    a, b = pair(model)
    t = 0.25 if model.config.timestep else 0.5
    ahead, back = model(a, b, t, ensemble=ensemble), model(b, a, 1 - t, ensemble=ensemble)
    torch.testing.assert_close(ahead.frame, back.frame)
    torch.testing.assert_close(ahead.flow, plain.swap(back.flow))
    torch.testing.assert_close(ahead.mask, 1 - back.mask)


def test_clamp():
    model, _ = small("v4.0")
    frames = [frame * 1.5 - 0.25 for frame in pair(model)]
    free = model(*frames, clamp=False).frame
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(model(*frames).frame, free.clamp(0, 1))


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_and_dtypes(name):
    model, _ = small(name)
    model = model.float()
    frames = [frame.float() for frame in pair(model, n=2)]
    n, _, h, w = frames[0].shape
    for prediction in (model(*frames), model.to(torch.bfloat16)(*frames)):
        assert prediction.frame.shape == (n, 3, h, w)
        assert prediction.flow.shape == (n, 4, h, w)
        assert prediction.mask.shape == (n, 1, h, w)
        assert {x.dtype for x in vars(prediction).values()} == {torch.float32}


def test_weights_in_half_precision_leave_coordinates_exact():
    model, _ = small("v4.6")
    frames = [frame.float() for frame in pair(model)]
    full, half = model.float()(*frames), model.to(torch.bfloat16)(*frames)
    assert 0 < (full.frame - half.frame).abs().mean() < 0.02
    assert len(half.flow.unique()) > 1000  # bfloat16 has 512 values between 0.5 and 2


@pytest.mark.parametrize("name", PRESETS)
def test_channels_last_changes_nothing(name):
    model, _ = small(name)
    frames = pair(model)
    expected = model(*frames).frame
    model = model.to(memory_format=torch.channels_last)
    frames = [frame.contiguous(memory_format=torch.channels_last) for frame in frames]
    torch.testing.assert_close(model(*frames).frame, expected)


def _count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        model, any_time, large = Rife(PAPER), Rife(RIFEM), Rife(PAPER_LARGE)
    counts = [_count(m) for m in (*model.blocks, model.teacher, model.refinement.context, model.refinement.fusion)]
    assert [round(count / 1e6, 3) for count in counts] == [4.437, 1.748, 0.635, 0.637, 0.294, 2.958]
    assert _count(large) == _count(model)
    assert _count(any_time) - _count(model) == 9 * (120 + 75 + 45 + 45)  # one more plane into each block


@pytest.mark.parametrize(
    ("config", "count"), [(V4_0, 8738588), (V4_6, 5306256), (V3_8, 3038015), (V3_1, 4549452 + 1191776 + 11838084)]
)
def test_parameter_counts_of_official_files(config, count):
    with torch.device("meta"):
        assert _count(Rife(config)) == count


@pytest.mark.parametrize("name", ["paper", "rifem", "paper-large", "rifem-large"])
def test_teacher_and_distillation(name):
    model, weights = small(name)
    img0, img1 = pair(model, n=2)
    gt, t = pair(model, n=2, seed=2)[0], 0.3 if model.config.timestep else 0.5
    out = model.forward_train(img0, img1, gt, t)
    merged, frame, merged_teacher, flows, flow_teacher = plain.paper(
        weights, img0, img1, t if model.config.timestep else None, large="large" in name, gt=gt
    )
    loss = 0
    for flow, student in zip(flows, merged, strict=True):
        better = (student - gt).abs().sum(1) / 3 > (merged_teacher - gt).abs().sum(1) / 3 + 0.01
        assert better.any()
        assert not better.all()
        loss += torch.where(better, ((flow_teacher - flow) ** 2).sum(1).div(4).sqrt(), 0).mean()
    for ours, expected in [*zip(out.merged, merged, strict=True), *zip(out.flows, flows, strict=True)]:
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(out.frame, frame.clamp(0, 1))
    torch.testing.assert_close(out.merged_teacher, merged_teacher)
    torch.testing.assert_close(out.flow_teacher, flow_teacher)
    torch.testing.assert_close(out.loss_distill, loss)


@pytest.mark.parametrize("config", [PAPER, RIFEM, RIFEM_LARGE, V4_0], ids=lambda config: config.name)
def test_training_reaches_every_parameter(config):
    torch.manual_seed(0)
    model = Rife(dataclasses.replace(config, widths=WIDTHS[len(config.widths)]))
    img0, img1, gt = (frame.float() for frame in (*pair(model), pair(model, seed=2)[0]))
    out = model.forward_train(img0, img1, gt)
    loss = (out.frame - gt).abs().mean() + (out.merged_teacher - gt).abs().mean() + out.loss_distill
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_distillation_pulls_the_student_and_leaves_the_teacher():
    gt = torch.zeros(1, 3, 1, 2)
    good, bad = torch.zeros_like(gt), torch.tensor([1.0, 0.005]).expand_as(gt)  # worse by more than 0.01 in pixel 0
    student = torch.tensor([3.0, 7.0]).expand(1, 4, 1, 2).clone().requires_grad_()
    teacher = torch.ones(1, 4, 1, 2, requires_grad=True)
    loss = leakage_distillation([student], [bad], teacher, good, gt)
    loss.backward()
    assert loss.item() == pytest.approx((3 - 1) / 2)  # of two pixels, one counts: root of the mean of four squares
    assert teacher.grad is None
    torch.testing.assert_close(student.grad[0, :, 0], torch.tensor([[1 / 8, 0.0]]).expand(4, 2))


def test_distillation_has_a_gradient_where_student_and_teacher_agree():
    flow = torch.ones(1, 4, 2, 2, requires_grad=True)
    frame = torch.ones(1, 3, 2, 2)
    leakage_distillation([flow], [frame], torch.ones(1, 4, 2, 2), frame * 0, frame * 0).backward()
    assert torch.equal(flow.grad, torch.zeros_like(flow))


@pytest.mark.parametrize(
    ("config", "scale", "multiple"), [(V4_0, 1, 128), (V4_6, 1, 32), (V4_6, 0.5, 64), (V4_25, 2, 64)]
)
def test_padding_multiple(config, scale, multiple):
    with torch.device("meta"):
        assert Rife(config).padding_multiple(scale) == multiple


def test_what_a_user_can_get_wrong():
    frame = torch.rand(1, 3, 64, 64)
    v4, v3, v4_25 = (Rife(dataclasses.replace(c, widths=WIDTHS[len(c.widths)])) for c in (V4_6, V3_8, V4_25))
    for call, message in [
        (lambda: v4(frame[..., :40], frame[..., :40]), "multiples of 32, got 40x64"),
        (lambda: v4(frame, frame[..., :32]), r"\[1, 3, 64, 64\] and \[1, 3, 64, 32\]"),
        (lambda: v4(frame, frame, scale=0.7), "scale must be one of 0.125"),
        (lambda: v4(frame, frame, torch.rand(2, 1, 1, 1)), r"t must be a number or \[1, 1, 1, 1\]"),
        (lambda: v3(frame, frame, 0.25), "only the middle, t = 0.5; got 0.25"),
        (lambda: v4_25(frame, frame, ensemble=True), "no ensemble"),
        (lambda: v4.forward_train(frame, frame, frame), "use one of paper, rifem"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_public_names_come_when_asked_for():
    code = "import sys, rife; assert 'torch' not in sys.modules; assert [getattr(rife, name) for name in rife.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'rifle'"):
        rife.rifle  # noqa: B018
