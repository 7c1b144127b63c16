"""Cut detection on small made sequences, and the reading of cut lists."""

import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from rife.cuts import CutDetector, CutList, read_cut_list

DATA = os.environ.get("PAPERSHELF_DATA")


def scenery(seed: int, size: tuple[int, int] = (108, 320)) -> torch.Tensor:
    """[3, *size]: soft coloured blobs of several sizes, as different from another seed's as two places are."""
    random = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, *size)
    for cells, weight in ((2, 1.0), (5, 0.8), (12, 0.5), (30, 0.3)):
        grid = torch.randn(1, 3, cells, cells * size[1] // size[0], generator=random)
        total += weight * F.interpolate(grid, size, mode="bicubic")
    return torch.sigmoid(total[0] * 1.5)


def still(seed: int, count: int) -> list[torch.Tensor]:
    """A shot in which only the grain moves."""
    random = torch.Generator().manual_seed(seed)
    picture = scenery(seed)[..., :192]
    return [picture + 0.01 * torch.randn(picture.shape, generator=random) for _ in range(count)]


def pan(seed: int, count: int, step: int) -> list[torch.Tensor]:
    picture = scenery(seed, (108, 192 + step * count))
    return [picture[..., n * step : n * step + 192] for n in range(count)]


def kinds(frames: list[torch.Tensor], **options: float) -> list[str]:
    detector = CutDetector(**options)
    decisions = [decision for frame in frames for decision in detector.push(frame)] + detector.finish()
    assert len(decisions) == max(len(frames) - 1, 0)
    assert all(d.cut == (d.kind == "cut") and d.hold == (d.kind in ("cut", "flash")) for d in decisions)
    assert all(0 <= d.score <= 1 for d in decisions)
    return [decision.kind for decision in decisions]


def cuts(frames: list[torch.Tensor]) -> list[int]:
    return [n for n, kind in enumerate(kinds(frames), start=1) if kind == "cut"]


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_between_stills_is_found(seed):
    assert cuts(still(2 * seed, 6) + still(2 * seed + 1, 6)) == [6]


def test_several_cuts_and_the_first_and_last_pair():
    assert cuts(still(1, 1) + still(2, 5) + still(3, 4) + still(4, 1)) == [1, 6, 10]


@pytest.mark.parametrize("step", [4, 9, 16])
def test_a_cut_inside_fast_pans_is_found_and_the_pans_are_not(step):
    assert cuts(pan(5, 10, step) + pan(6, 10, step)) == [10]


@pytest.mark.parametrize("step", [1, 6, 12, 18])
def test_a_pan_is_no_cut(step):
    assert cuts(pan(7, 14, step)) == []


def test_a_pan_that_starts_and_stops_is_no_cut():
    moving = pan(8, 12, 8)
    assert cuts([moving[0]] * 5 + moving + [moving[-1]] * 5) == []


@pytest.mark.parametrize("gain", [0.55, 0.75, 1.2, 1.5])
def test_an_exposure_jump_is_no_cut(gain):
    frames = still(9, 14)
    assert cuts(frames[:7] + [(frame * gain).clamp(0, 1) for frame in frames[7:]]) == []


@pytest.mark.parametrize("steps", [5, 8, 16])
@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_a_fade_is_no_cut(steps, colour):
    frames = still(10, 6 + steps) + still(11, 6 + steps)
    light = [1.0] * 6 + [1 - (k + 1) / steps for k in range(steps)]
    light += light[::-1]
    assert cuts([colour + (frame - colour) * part for frame, part in zip(frames, light, strict=True)]) == []


@pytest.mark.parametrize("steps", [5, 12])
def test_a_dissolve_is_no_cut(steps):
    a, b = still(12, 1)[0], still(13, 1)[0]
    mixed = [torch.lerp(a, b, k / steps) for k in range(steps + 1)]
    assert cuts([a] * 6 + mixed + [b] * 6) == []


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_a_flash_is_told_from_a_cut(length, strength):
    frames = still(14, 14)
    for n in range(6, 6 + length):
        frames[n] = frames[n] + (1 - frames[n]) * strength
    found = kinds(frames)
    assert "cut" not in found
    assert {n for n, kind in enumerate(found, start=1) if kind == "flash"} == {6, 6 + length}


def test_a_flash_does_not_hide_the_cut_after_it():
    frames = still(15, 10) + still(16, 8)
    frames[4] = torch.ones_like(frames[4])
    assert cuts(frames) == [10]


def test_three_frames_of_something_else_are_a_shot():
    assert cuts(still(17, 6) + still(18, 3) + still(17, 6)) == [6, 9]


def test_equal_frames_are_static_and_do_not_hide_what_a_shot_moves_like():
    frames = [frame for frame in pan(19, 10, 14) for _ in range(2)]  # each frame shown twice
    assert kinds(frames) == ["static", "motion"] * 9 + ["static"]
    doubled = [frame for frame in pan(20, 6, 14) + pan(21, 6, 14) for _ in range(2)]
    assert cuts(doubled) == [12]


def test_dark_films_and_black_bars_hide_no_cut():
    frames = still(22, 6) + still(23, 6)
    assert cuts([frame * 0.2 for frame in frames]) == [6]
    barred = [frame.clone() for frame in frames]
    for frame in barred:
        frame[:, :20], frame[:, -20:] = 0, 0
    assert cuts(barred) == [6]


def test_the_threshold_moves_the_decision():
    frames = still(24, 6) + [torch.lerp(*still(25, 2), 0.5) * 0.35 + still(24, 1)[0] * 0.65] * 6
    assert kinds(frames, threshold=0.05)[5] == "cut"
    assert kinds(frames, threshold=1.0)[5] == "motion"
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="cut threshold"):
            CutDetector(wrong)


def test_a_detector_is_ready_for_another_video_after_finish():
    detector = CutDetector()
    first = [d for frame in still(26, 5) for d in detector.push(frame)] + detector.finish()
    second = [d for frame in still(27, 5) for d in detector.push(frame)] + detector.finish()
    assert [d.kind for d in first + second] == ["motion"] * 8


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 7))
def test_any_size_and_length_gives_a_decision_a_pair(height, width, count):
    random = torch.Generator().manual_seed(height * width)
    kinds([torch.rand(3, height, width, generator=random) for _ in range(count)])


def test_decisions_come_two_frames_late_at_most():
    detector, decided = CutDetector(), 0
    for pushed, frame in enumerate(still(28, 8), start=1):
        decided += len(detector.push(frame))
        assert decided == max(pushed - 3, 0)


def test_values_beyond_the_nominal_range_are_taken():
    frames = [frame * 6 - 1 for frame in still(29, 5)]
    assert len(kinds(frames)) == 4


@pytest.mark.skipif(DATA is None, reason="PAPERSHELF_DATA is not set")
@pytest.mark.parametrize("name", ["cup.mp4", "bigbuckbunny.mp4", "tree.avi"])
def test_real_clips_of_one_shot_have_no_cut(name):
    import av

    with av.open(str(Path(DATA) / "video" / name)) as container:
        frames = [
            torch.from_numpy(frame.reformat(width=192, height=108, format="rgb24").to_ndarray()).permute(2, 0, 1) / 255
            for frame in container.decode(video=0)
        ]
    assert cuts(frames[:70]) == []
    half = frames[:20] + [frame.flip(-1).roll(1, 0) for frame in frames[50:60]]  # mirrored, other colours: elsewhere
    assert cuts(half) == [20]


# Cut lists


def test_a_cut_list_of_frames_and_times(tmp_path):
    path = tmp_path / "cuts.txt"
    path.write_text(
        "# of the trailer\n120\nframe 300\n\n12.345  # seconds\n1:02.5\n01:00:00.250\n7s\n", encoding="utf-8"
    )
    found = read_cut_list(path)
    assert found.frames == {120, 300}
    assert found.times == (7, Fraction("12.345"), Fraction("62.5"), Fraction("3600.25"))


def test_a_table_of_pyscenedetect(tmp_path):
    path = tmp_path / "scenes.csv"
    path.write_text(
        "Timecode List:,00:00:01.201\n"
        "Scene Number,Start Frame,Start Timecode,Start Time (seconds),End Frame\n"
        "1,1,00:00:00.000,0.000,30\n"
        "2,31,00:00:01.201,1.201,60\n"
    )
    assert read_cut_list(path).times == (0, Fraction("1.201"))
    path.write_text("Scene Number,Start Frame\n1,1\n")
    with pytest.raises(UserError, match=r"line 2.*Start Timecode"):
        read_cut_list(path)


@pytest.mark.parametrize("line", ["-3", "one", "12:3x", "1:2:3:4", "3.5.2", "frame 1.5"])
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "cuts.txt"
    path.write_text(f"10\n{line}\n")
    with pytest.raises(UserError, match="line 2") as caught:
        read_cut_list(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_list_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_cut_list(tmp_path / "none.txt")
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(UserError, match="cannot read"):
        read_cut_list(tmp_path / "video.mp4")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.sampled_from([Fraction(24000, 1001), Fraction(25), Fraction(60000, 1001)]))
def test_a_time_rounded_to_milliseconds_hits_its_own_frame_only(number, rate):
    written = Fraction(round(number / rate * 1000), 1000)
    cut_list = CutList(frozenset(), (written,))
    hit = [n for n in range(1, 402) if cut_list.holds(n, (n - 1) / rate, n / rate)]
    assert hit == [number]


def test_a_frame_number_hits_that_frame():
    cut_list = CutList(frozenset({7}), ())
    assert cut_list.holds(7, Fraction(6, 25), Fraction(7, 25))
    assert not cut_list.holds(8, Fraction(7, 25), Fraction(8, 25))
