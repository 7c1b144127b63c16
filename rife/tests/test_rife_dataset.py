"""``rife dataset``: what is cut out of videos, what is left out and why, and what stands on the disk afterwards."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from papershelf.errors import UserError
from papershelf.images import read_image, write_image
from rife.cli_train import dataset
from rife.dataset import LOOK, Options, fitted, held_out, make_dataset, motion, reduced
from rife.triplets import Sequences
from test_rife_triplets import texture
from video_clips import make_clip

WHOLE = Options(size=None)


def frames_at(shifts, seed=0):
    """A texture moved to the left by each of ``shifts`` pixels, ``[64, 96, 3]`` uint8 each."""
    wide = texture(seed, 64, 96 + 16 * ((max(shifts) + 15) // 16))
    return [np.rint(wide[:, shift : shift + 96] * 255).astype(np.uint8) for shift in shifts]


def write_frames(folder, frames):
    folder.mkdir()
    for number, frame in enumerate(frames):
        write_image(folder / f"{number:03d}.png", frame)
    return folder


def test_a_moving_picture_becomes_triplets_that_are_its_frames(tmp_path):
    frames = frames_at(range(0, 20, 2))
    summary = make_dataset([write_frames(tmp_path / "in", frames)], tmp_path / "out", WHOLE)
    counts = {"frames": 10, "kept": 3, "still": 0, "wild": 0, "uneven": 0, "cuts": 0}
    assert summary.inputs == {str(tmp_path / "in"): counts}
    assert (summary.train, summary.test, summary.refused) == (2, 1, [])
    for k in range(3):
        for n in range(3):
            assert np.array_equal(
                read_image(tmp_path / f"out/sequences/00001/{k + 1:04d}/im{n + 1}.png"), frames[3 * k + n]
            )
    listed = [Sequences(tmp_path / "out", split, 3).names for split in ("train", "test")]
    assert sorted(listed[0] + listed[1]) == ["00001/0001", "00001/0002", "00001/0003"]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["options"]["length"] == 3
    assert about["train"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(("stride", "starts"), [(None, [0, 7]), (3, [0, 3, 6]), (8, [0, 8])])
def test_septuplets_and_strides(tmp_path, stride, starts):
    frames = frames_at(range(15))
    options = Options(length=7, size=None, stride=stride)
    make_dataset([write_frames(tmp_path / "in", frames)], tmp_path / "out", options)
    found = sorted((tmp_path / "out" / "sequences" / "00001").iterdir())
    assert len(found) == len(starts)
    for folder, start in zip(found, starts, strict=True):
        assert all(np.array_equal(read_image(folder / f"im{n + 1}.png"), frames[start + n]) for n in range(7))
    assert len(Sequences(tmp_path / "out", "test", 7)) == 1


def test_no_sequence_reaches_over_a_cut_and_the_next_begins_right_behind_it(tmp_path):
    frames = frames_at(range(0, 14, 2)) + frames_at(range(0, 12, 2), seed=5)
    summary = make_dataset([write_frames(tmp_path / "in", frames)], tmp_path / "out", WHOLE)
    assert summary.inputs[str(tmp_path / "in")] | {"cuts": 1, "kept": 4} == summary.inputs[str(tmp_path / "in")]
    for folder, start in zip(sorted((tmp_path / "out/sequences/00001").iterdir()), (0, 3, 7, 10), strict=True):
        assert np.array_equal(read_image(folder / "im1.png"), frames[start])


@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [
        ([0, 2, 4], "kept"),
        ([0, 0, 2], "still"),  # a repeated frame
        ([2, 2, 2], "still"),
        ([0, 10, 20], "wild"),  # a fifth of the width
    ],
)
def test_still_and_wild_sequences_are_left_out(tmp_path, shifts, verdict):
    sources = [write_frames(tmp_path / "in", frames_at(shifts)), write_frames(tmp_path / "good", frames_at([0, 1, 2]))]
    counts = make_dataset(sources, tmp_path / "out", WHOLE).inputs[str(tmp_path / "in")]
    assert [name for name in ("kept", "still", "wild", "uneven", "cuts") if counts[name]] == [verdict]


def test_videos_and_their_uneven_times(tmp_path):
    rate = Fraction(25)
    make_clip(tmp_path / "even.mp4", 6, rate=rate)
    make_clip(tmp_path / "uneven.mkv", 6, rate=rate, pts=[0, 1, 3, 4, 5, 6])
    summary = make_dataset([tmp_path / "even.mp4", tmp_path / "uneven.mkv"], tmp_path / "out", WHOLE)
    even, uneven = summary.inputs.values()
    assert (even["kept"], even["uneven"]) == (2, 0)
    assert (uneven["kept"], uneven["uneven"]) == (1, 1)
    assert sorted(p.name for p in (tmp_path / "out/sequences").iterdir()) == ["00001", "00002"]  # one for each input


def test_frames_are_reduced_to_cover_the_size_and_cut_around_the_middle():
    rgb = torch.zeros(3, 90, 200)
    rgb[:, :, 100:] = 1
    out = fitted(rgb, (60, 60), "clip")
    assert out.shape == (3, 60, 60)
    assert out[:, :, :28].max() < 0.01  # the edge stays in the middle
    assert out[:, :, 32:].min() > 0.99
    assert fitted(rgb, (200, 90), "clip") is not None
    assert torch.equal(fitted(rgb, (100, 90), "clip"), rgb[:, :, 50:150])  # no resampling where none is needed
    assert torch.equal(fitted(rgb, None, "clip"), rgb)
    with pytest.raises(UserError, match="clip: frames of 200x90 are smaller than 100x91"):
        fitted(rgb, (100, 91), "clip")


@pytest.mark.parametrize("shift", [0, 3, 8])
def test_motion_is_what_the_picture_moved(shift):
    wide = torch.from_numpy(texture(3, 48, 96)).permute(2, 0, 1).float()
    a, b = (reduced(wide[:, :36, s : s + LOOK]) for s in (10, 10 - shift))
    assert a.shape == (36, LOOK)
    assert motion(a, b) == pytest.approx(shift / LOOK, abs=0.5 / LOOK)


def test_an_unreadable_input_costs_a_line_and_nothing_else(tmp_path, capsys):
    (tmp_path / "broken.mp4").write_text("no video")
    write_frames(tmp_path / "small", [frame[:32, :32] for frame in frames_at([0, 2, 4])])
    write_frames(tmp_path / "in", frames_at(range(0, 12, 2)))
    inputs = [tmp_path / name for name in ("broken.mp4", "small", "missing.mkv", "in")]
    summary = make_dataset(inputs, tmp_path / "out", Options(size=(64, 48)))
    assert len(summary.refused) == 3
    assert summary.train + summary.test == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out:")]
    assert len(lines) == 3
    assert "smaller than 64x48" in lines[1]
    assert read_image(tmp_path / "out/sequences/00001/0001/im1.png").shape == (48, 64, 3)


def test_nothing_is_left_where_nothing_is_found_or_the_work_breaks_off(tmp_path, monkeypatch):
    source = write_frames(tmp_path / "in", frames_at([0, 0, 0]))
    with pytest.raises(UserError, match=r"not one sequence of 3 frames was found \(.*in: 3 frames, 0 kept, 1 still"):
        make_dataset([source], tmp_path / "out", WHOLE)
    moving = write_frames(tmp_path / "moving", frames_at([0, 2, 4]))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rife.dataset.held_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset([moving], tmp_path / "out", WHOLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "moving"]


def test_outputs_and_options_that_cannot_be(tmp_path):
    source = write_frames(tmp_path / "in", frames_at([0, 2, 4]))
    with pytest.raises(UserError, match="is there already"):
        make_dataset([source], source, WHOLE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is there already"):
        make_dataset([source], tmp_path / "file", WHOLE)
    for options, message in [
        (Options(length=5), "3 or 7 frames, got 5"),
        (Options(size=(0, 5)), "at least one pixel"),
        (Options(stride=0), "at least 1 frame"),
        (Options(test_share=1), "below 1"),
    ]:
        with pytest.raises(UserError, match=message):
            make_dataset([source], tmp_path / "out", options)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.floats(0.01, 0.5), st.integers(0, 2**32))
def test_what_is_held_out(counts, share, seed):
    ranges = held_out(counts, share, seed)
    assert ranges == held_out(counts, share, seed)
    sizes = [len(r) for r in ranges]
    for stretch, count in zip(ranges, counts, strict=True):
        assert stretch.start >= 0
        assert stretch.stop <= count
    if max(counts) > 1:
        assert sum(sizes) >= 1
        assert sum(sizes) < sum(counts)
    if any(round(share * count) for count in counts):
        assert sizes == [round(share * count) for count in counts]


def test_the_command(tmp_path):
    write_frames(tmp_path / "in", frames_at(range(0, 12, 2)))
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "64x48"]
    result = CliRunner().invoke(dataset, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'out'}: 1 sequences for training, 1 for validation"
    again = CliRunner().invoke(dataset, arguments)
    assert again.exit_code == 1
    assert again.output.startswith("Error: ")
    wrong = CliRunner().invoke(dataset, [*arguments, "--size", "large"])
    assert wrong.exit_code == 2
    assert "448x256, or full" in wrong.output
    out = CliRunner().invoke(
        dataset, [str(tmp_path / "in"), "-o", str(tmp_path / "second"), "--size", "full", "--json"]
    )
    assert json.loads(out.stdout)["train"] == 1
