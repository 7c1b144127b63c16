"""Repeated frames, and animation on twos and threes."""

import io
import os
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from rife.duplicates import SAME, Dedup, DuplicateDetector, change

DATA = os.environ.get("PAPERSHELF_DATA")


def drawing(k: int, shift: int = 0, size: tuple[int, int] = (180, 320)) -> torch.Tensor:
    """[3, H, W]: a disc with an outline at the k-th place over a patterned background moved by ``shift``."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ground = 0.6 + 0.2 * torch.sin((x + shift) / 7) * torch.cos(y / 9)
    distance = ((x - 60 - 9 * k) ** 2 + (y - 90) ** 2).sqrt()
    picture = torch.where(distance < 40, 0.9, ground)
    picture = torch.where((distance > 38) & (distance < 41), 0.05, picture)
    return torch.stack([picture, picture * 0.9, picture * 0.8])


def coded(frames: list[torch.Tensor], crf: int) -> list[torch.Tensor]:
    """Through H.264 and back."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[-2:]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            array = (frame.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        arrays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays]


def flags(frames: list[torch.Tensor], detector: DuplicateDetector) -> list[bool]:
    return [detector.is_duplicate(a, b) for a, b in pairwise(frames)]


@pytest.mark.parametrize("size", [(180, 320), (361, 641), (720, 1283), (7, 5), (1, 1)])
def test_equal_frames_do_not_change(size):
    frame = torch.rand(3, *size)
    assert change(frame, frame.clone()) == 0
    assert DuplicateDetector(0).is_duplicate(frame, frame.clone())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 1400), st.data())
def test_a_changed_spot_is_seen_anywhere(height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    a = torch.zeros(3, height, width)
    b = a.clone()
    b[:, max(0, y - 8) : y + 9, max(0, x - 8) : x + 9] = 0.5
    assert not DuplicateDetector().is_duplicate(a, b)


def test_a_moving_mouth_in_a_still_picture_is_no_duplicate():
    a = drawing(0, size=(720, 1280))
    b = a.clone()
    b[:, 300:316, 300:330] = b[:, 302:318, 300:330] * 0.8  # 0.05 % of the picture
    assert not DuplicateDetector().is_duplicate(a, b)
    assert not DuplicateDetector(held=True).is_duplicate(a, b)


def test_a_slow_fade_and_a_slow_pan_are_no_duplicates():
    a = drawing(0)
    assert not DuplicateDetector().is_duplicate(a, a + 0.5 / 255)
    wide = F.interpolate(drawing(0)[None], scale_factor=4, mode="bicubic")[0]
    assert not DuplicateDetector().is_duplicate(wide[:, :, :-1], wide[:, :, 1:])


def test_faint_grain_makes_no_difference_and_strong_grain_none_between_drawings():
    grain = torch.randn(4, 3, 720, 1280, generator=torch.Generator().manual_seed(0)) / 255
    frames = [drawing(n // 2, size=(720, 1280)) + grain[n] * 0.5 for n in range(4)]
    assert flags(frames, DuplicateDetector()) == [True, False, True]
    frames = [drawing(n // 2, size=(720, 1280)) + grain[n] * 1.2 for n in range(4)]
    assert flags(frames, DuplicateDetector()) == [False, False, False]
    assert flags(frames, DuplicateDetector(held=True)) == [False, False, True]


@pytest.mark.parametrize("hold", [2, 3])
@pytest.mark.parametrize("crf", [16, 23, 30])
def test_held_drawings_are_found_after_coding(hold, crf):
    frames = coded([drawing(n // hold) for n in range(24)], crf)
    found = flags(frames, DuplicateDetector(held=True))
    held = [(n + 1) % hold != 0 for n in range(23)]
    assert [f for f, h in zip(found, held, strict=True) if not h] == [False] * held.count(False)
    late = list(zip(found, held, strict=True))[hold:]  # what a drawing changes is known after the first
    assert sum(f for f, h in late if h) >= 0.8 * sum(h for _, h in late)


def test_a_pan_behind_held_drawings_is_left_alone():
    frames = coded([drawing(n // 2, shift=2 * n) for n in range(16)], 23)
    assert not any(flags(frames, DuplicateDetector(held=True)))


def test_held_needs_larger_changes_around():
    spot = torch.zeros(180, 320)
    spot[::2, :16:2] = spot[1::2, 1:16:2] = 7 / 255
    subtle = [drawing(0) + spot.roll(16 * k, 1) for k in range(6)]
    assert not any(flags(subtle, DuplicateDetector(held=True)))
    assert flags([drawing(3), *subtle], DuplicateDetector(held=True))[1:] == [True] * 5


def test_wrong_use_is_said():
    with pytest.raises(UserError, match="one size"):
        change(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    for wrong in (-1, float("nan")):
        with pytest.raises(UserError, match="threshold for duplicates"):
            DuplicateDetector(wrong)
    with pytest.raises(UserError, match="at least 2 frames"):
        Dedup(1)


@pytest.mark.skipif(DATA is None, reason="PAPERSHELF_DATA is not set")
@pytest.mark.parametrize(
    ("name", "repeated"),
    [
        ("bigbuckbunny.mp4", [6, 31, 56]),  # a 24 fps film made 25 by showing one frame a second twice
        ("cup.mp4", [1, 214, 215]),
        ("carphone_pristine.mp4", []),
        ("tree.avi", []),
    ],
)
def test_repetitions_in_real_clips(name, repeated):
    with av.open(str(Path(DATA) / "video" / name)) as container:
        frames = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        detector, found, last = DuplicateDetector(), [], None
        for n, array in zip(range(60 if "bunny" in name else 300), frames, strict=False):
            frame = torch.from_numpy(array).permute(2, 0, 1) / 255
            if last is not None and detector.is_duplicate(last, frame):
                found.append(n - 1)
            last = frame
    assert found == repeated


# Dedup

RUNS = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def kept(runs: list[int], max_run: int) -> tuple[list[tuple[Fraction, int]], int]:
    """What comes out for runs of these lengths at 24 fps; a frame is its number."""
    dedup, out, number = Dedup(max_run), [], 0
    for run in runs:
        for k in range(run):
            before = len(out)
            out += dedup.push(Fraction(number, 24), number, k > 0)
            assert len(out) - before <= max_run
            number += 1
    out += dedup.finish()
    return out, dedup.dropped


@given(RUNS, st.integers(2, 4))
def test_a_short_run_gives_its_first_frame_and_a_hold_all(runs, max_run):
    expected, number = [], 0
    for k, run in enumerate(runs):
        whole = run > max_run or k == len(runs) - 1
        expected += range(number, number + run) if whole else [number]
        number += run
    out, dropped = kept(runs, max_run)
    assert [frame for _, frame in out] == expected
    assert dropped == number - len(expected)


@given(RUNS, st.integers(2, 4))
def test_times_are_kept(runs, max_run):
    out, _ = kept(runs, max_run)
    times = [time for time, _ in out]
    assert times == sorted(set(times))
    assert all(time == Fraction(frame, 24) for time, frame in out)  # nothing invented, nothing moved
    assert (times[0], times[-1]) == (0, Fraction(sum(runs) - 1, 24))
    # No gap is longer than a drawing may stay.
    assert all(b - a <= Fraction(max_run, 24) for a, b in pairwise(times))


@given(RUNS)
def test_a_run_is_held_back_no_longer_than_needed(runs):
    dedup, pending, number = Dedup(3), 0, 0
    for run in runs:
        for k in range(run):
            out = dedup.push(Fraction(number), number, k > 0)
            pending = pending + 1 - len(out) if k else 0
            assert pending <= 2
            number += 1
    assert len(dedup.finish()) == pending


def test_the_first_frame_is_a_key_whatever_its_flag():
    dedup = Dedup()
    assert dedup.push(Fraction(0), "a", True) == [(0, "a")]
    assert dedup.push(Fraction(1), "b", False) == [(1, "b")]
    assert dedup.finish() == []


def test_animation_on_twos_becomes_its_drawings():
    detector, dedup, out = DuplicateDetector(), Dedup(), []
    last = None
    for n in range(12):
        frame = drawing(n // 2)
        out += dedup.push(Fraction(n, 24), frame, last is not None and detector.is_duplicate(last, frame))
        last = frame
    out += dedup.finish()
    assert [time * 24 for time, _ in out] == [0, 2, 4, 6, 8, 10, 11]
    distinct = [key for key, _ in groupby(out, key=lambda item: item[1].sum().item())]
    assert len(distinct) == 6


def test_the_default_threshold_is_the_documented_one():
    a = drawing(0)
    checks = torch.zeros(180, 320)
    checks[:8, :8] = 1
    checks[:8:2, :8:2] = checks[1:8:2, 1:8:2] = -1
    assert DuplicateDetector().is_duplicate(a, a + checks * SAME * 0.99)
    assert not DuplicateDetector().is_duplicate(a, a + checks * SAME * 1.01)
