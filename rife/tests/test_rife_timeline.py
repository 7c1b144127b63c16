"""The timeline against a slow statement of its definition, for any source times and any rate."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papershelf.errors import UserError
from rife.timeline import Timeline, parse_factor, parse_rate, slowed

fractions = st.fractions(min_value=Fraction(1, 100), max_value=10, max_denominator=90000)
rates = st.one_of(
    st.sampled_from([Fraction(n) for n in (24, 25, 30, 50, 60, 120, 144)]),
    st.sampled_from([Fraction(n * 1000, 1001) for n in (24, 30, 60, 120)]),
    st.fractions(min_value=1, max_value=240, max_denominator=1001),
)
starts = st.fractions(min_value=-3, max_value=3, max_denominator=48000)


@st.composite
def source_times(draw):
    """A variable-rate source: its start, then one to twenty positive durations, the last frame's last."""
    times = [draw(starts)]
    for step in draw(st.lists(fractions, min_size=1, max_size=20)):
        times.append(times[-1] + step)
    return times


def all_slots(timeline, times):
    slots = [slot for a, b in pairwise(times[:-1]) for slot in timeline.between(a, b)]
    return slots + timeline.held(times[-2], times[-1])


@given(source_times(), rates)
def test_every_output_frame_once_and_in_order(times, fps):
    timeline = Timeline(fps, times[0])
    slots = all_slots(timeline, times)
    duration = times[-1] - times[0]
    assert [s.index for s in slots] == list(range(math.ceil(duration * fps)))
    assert all(s.time == times[0] + Fraction(s.index) / fps for s in slots)
    assert len(slots) == timeline.count(times[-1])
    assert 0 <= len(slots) / fps - duration < 1 / fps  # the duration within one frame, never shorter


@given(source_times(), rates)
def test_alpha_places_the_frame_and_exact_hits_are_zero(times, fps):
    for a, b in pairwise(times):
        for slot in Timeline(fps, times[0]).between(a, b):
            assert a + slot.alpha * (b - a) == slot.time
            assert 0 <= slot.alpha < 1
            assert (slot.alpha == 0) == (slot.time in times)


@given(source_times(), rates)
def test_the_last_frame_is_held(times, fps):
    held = Timeline(fps, times[0]).held(times[-2], times[-1])
    assert all(slot.alpha == 0 and times[-2] <= slot.time < times[-1] for slot in held)


@given(source_times(), rates, st.fractions(min_value=Fraction(1, 4), max_value=8, max_denominator=12))
def test_slow_motion_keeps_what_is_between_what(times, fps, factor):
    slow = [slowed(t, times[0], factor) for t in times]
    assert slow[0] == times[0]
    assert slow[-1] - slow[0] == factor * (times[-1] - times[0])
    # Slowing down by n at a rate of fps asks for the same instants as n * fps at normal speed.
    fast = [(s.index, s.alpha) for s in all_slots(Timeline(fps * factor, times[0]), times)]
    assert [(s.index, s.alpha) for s in all_slots(Timeline(fps, times[0]), slow)] == fast


@pytest.mark.parametrize("fps", [Fraction(60), Fraction(24)])
def test_two_hours_of_23976_do_not_drift(fps):
    frames = 2 * 3600 * 24
    step = Fraction(1001, 24000)
    timeline, expected = Timeline(fps), 0
    for i in range(frames):
        for slot in timeline.between(i * step, (i + 1) * step):
            assert slot.index == expected
            assert slot.time == Fraction(expected) / fps
            expected += 1
    assert expected == math.ceil(frames * step * fps)
    assert 0 <= expected / fps - frames * step < 1 / fps


def test_doubling_a_regular_source_hits_every_source_frame():
    slots = all_slots(Timeline(Fraction(48)), [Fraction(i, 24) for i in range(5)])
    assert [s.alpha for s in slots] == [0, Fraction(1, 2)] * 3 + [0, 0]  # the last one is held


def test_fewer_frames_than_the_source():
    slots = all_slots(Timeline(Fraction(24)), [Fraction(i, 50) for i in range(51)])
    assert len(slots) == 24
    assert slots[12].time == Fraction(1, 2)
    assert slots[12].alpha == 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60", 60),
        ("12.5", Fraction(25, 2)),
        ("59.94", Fraction(60000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("2x", 50),
        ("x2.5", Fraction(125, 2)),
        ("X2", 50),
        (" 5/2x ", Fraction(125, 2)),
    ],
)
def test_rates_as_people_write_them(text, rate):
    assert parse_rate(text, Fraction(25)) == rate


@pytest.mark.parametrize("text", ["", "fast", "-5", "0", "0x", "1e9", "2000", "60fps", "1/0", "x", "5//2", "inf"])
def test_a_bad_rate_is_one_clear_line(text):
    with pytest.raises(UserError) as error:
        parse_rate(text, Fraction(25))
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_multiple_of_nothing():
    with pytest.raises(UserError, match="states no frame rate"):
        parse_rate("2x")


def test_factors():
    assert parse_factor("2.5") == Fraction(5, 2)
    for text in ("0", "-1", "slow"):
        with pytest.raises(UserError, match="factor above 0"):
            parse_factor(text)


def test_source_times_must_increase():
    with pytest.raises(ValueError, match="must increase"):
        Timeline(Fraction(60)).between(Fraction(1), Fraction(1))
