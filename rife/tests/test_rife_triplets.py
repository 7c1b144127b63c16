"""Training samples: the layout of Vimeo90K, augmentation, and that a draw depends on nothing but its number."""

from collections import Counter

import numpy as np
import pytest
import torch
from papershelf.errors import UserError
from papershelf.images import write_image
from rife.triplets import Draws, Sequences, TrainingSamples, ValidationSamples, augmented
from torch.utils.data import DataLoader


def texture(seed, height=96, width=160):
    """A soft random picture, ``[height, width, 3]`` in [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, height // 8, width // 8)))
    soft = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return soft[0].permute(1, 2, 0).clamp(0, 1).numpy()


def make_set(root, count=3, length=3, size=(72, 80)):
    """Sequences of noise in which every image differs; ``size`` is height and width."""
    prefix = {3: "tri", 7: "sep"}[length]
    names = [f"00001/{k + 1:04d}" for k in range(count)]
    rng = np.random.default_rng(0)
    for name in names:
        (root / "sequences" / name).mkdir(parents=True)
        for number in range(1, length + 1):
            write_image(root / "sequences" / name / f"im{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (root / f"{prefix}_trainlist.txt").write_text("\n".join(names) + "\n\n")
    (root / f"{prefix}_testlist.txt").write_text(names[-1] + "\n")
    return root


class Chances:
    """Stands in for a random generator: fixed crop, chances and turn."""

    def __init__(self, y=0, x=0, chances=(1, 1, 1, 1), turn=0):
        self.integers_left, self.chances = [y, x, turn], chances

    def integers(self, _):
        return self.integers_left.pop(0)

    def random(self, count):
        assert count == len(self.chances)
        return np.array(self.chances)


@pytest.fixture
def frames():
    return np.random.default_rng(1).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("chances", "expected", "time"),
    [
        ((1, 1, 1, 1), lambda f: f, 0.25),
        ((0, 1, 1, 1), lambda f: f[..., ::-1], 0.25),  # BGR
        ((1, 0, 1, 1), lambda f: f[:, ::-1], 0.25),  # upside down
        ((1, 1, 0, 1), lambda f: f[:, :, ::-1], 0.25),  # left to right
        ((1, 1, 1, 0), lambda f: f[::-1], 0.75),  # backwards: the middle is as far from the other end
    ],
)
def test_each_augmentation(frames, chances, expected, time):
    out, t = augmented(frames, 0.25, 8, Chances(1, 3, chances))
    assert np.array_equal(out, expected(frames[:, 1:9, 3:11]))
    assert t == time


def test_quarter_turns_keep_the_frames_together(frames):
    for turn in range(4):
        out, _ = augmented(frames, 0.5, 8, Chances(turn=turn))
        for before, after in zip(frames, out, strict=True):
            assert np.array_equal(after, np.rot90(before[:8, :8], turn))


def test_every_augmentation_happens_about_as_often_as_it_should(frames):
    """Half of the time each, every turn a quarter; 400 draws, four standard deviations."""
    frames = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    seen = Counter()
    for k in range(400):
        out, t = augmented(frames, 0.25, 2, np.random.default_rng(k))
        seen["backwards"] += t == 0.75
        seen["reversed channels"] += int(out[0, 0, 0, 0]) > int(out[0, 0, 0, 2])
        seen[tuple(out[1, :, :, 1].flatten().tolist())] += 1
    assert abs(seen.pop("backwards") - 200) < 40
    assert abs(seen.pop("reversed channels") - 200) < 40
    assert len(seen) == 8  # every way a square can lie
    assert all(abs(count - 50) < 27 for count in seen.values())


def test_crops_reach_every_border():
    frames = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5, 1)
    corners = {int(augmented(frames, 0.5, 3, np.random.default_rng(k))[0].min()) % 20 for k in range(100)}
    assert {corner // 5 for corner in corners} == {0, 1}
    assert {corner % 5 for corner in corners} == {0, 1, 2}


def test_a_triplet_as_it_is_without_augmentation(tmp_path):
    sequences = Sequences(make_set(tmp_path), "train", 3)
    sample = TrainingSamples(sequences, 64, 0, augment=False)[(5, 1)]
    expected = sequences.frames(1, (0, 1, 2))[:, 4:68, 8:72].transpose(0, 3, 1, 2)
    for tensor, image in zip((sample.img0, sample.gt, sample.img1), expected, strict=True):
        assert np.array_equal(tensor, image)
    assert sample.t == 0.5


def test_septuplets_give_any_three_frames_in_order_and_their_time(tmp_path):
    sequences = Sequences(make_set(tmp_path, count=1, length=7), "train", 7)
    whole = [sequences.frames(0, (k, k, k))[0, 4:68, 8:72].transpose(2, 0, 1) for k in range(7)]
    samples, seen = TrainingSamples(sequences, 64, 0, augment=False), set()
    for number in range(60):
        sample = samples[(number, 0)]
        n0, n1, n2 = (
            next(k for k in range(7) if np.array_equal(x, whole[k])) for x in (sample.img0, sample.gt, sample.img1)
        )
        assert n0 < n1 < n2
        assert sample.t.item() == pytest.approx((n1 - n0) / (n2 - n0))
        seen.add((n0, n1, n2))
    assert len(seen) > 20  # of 35


def test_validation_takes_whole_frames_at_every_time(tmp_path):
    triplets = ValidationSamples(Sequences(make_set(tmp_path / "3"), "test", 3))
    assert len(triplets) == 1
    assert triplets[0].gt.shape == (3, 72, 80)
    assert triplets[0].t == 0.5
    septuplets = ValidationSamples(Sequences(make_set(tmp_path / "7", count=5, length=7), "train", 7))
    assert [septuplets[k].t.item() for k in range(5)] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_draws_take_every_sequence_equally_often_and_in_a_new_order_each_time():
    batches = list(Draws(5, 4, range(10), seed=0))
    numbers = [number for batch in batches for number, _ in batch]
    indices = [index for batch in batches for _, index in batch]
    assert numbers == list(range(40))
    passes = [tuple(indices[k : k + 5]) for k in range(0, 40, 5)]
    assert all(sorted(p) == list(range(5)) for p in passes)
    assert len(set(passes)) > 4
    assert batches != list(Draws(5, 4, range(10), seed=1))


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = Draws(2, 7, range(1), seed=0)
    assert sorted(index for _, index in batch)[:4] == [0, 0, 0, 1]


def test_resumed_and_shared_draws_are_those_of_a_single_run():
    whole = list(Draws(5, 4, range(6), seed=3))
    assert list(Draws(5, 4, range(2, 6), seed=3)) == whole[2:]
    halves = [Draws(5, 4, range(6), seed=3, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert len(halves[0]) == 6


def test_samples_depend_on_seed_and_number_alone_also_in_workers(tmp_path):
    sequences = Sequences(make_set(tmp_path), "train", 3)
    draws = Draws(len(sequences), 2, range(3), seed=7)

    def read(workers, seed=7):
        return list(DataLoader(TrainingSamples(sequences, 64, seed), batch_sampler=draws, num_workers=workers))

    one, again, workers, other = read(0), read(0), read(2), read(0, seed=8)
    for a, b, c in zip(one, again, workers, strict=True):
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c, strict=True))
    assert not torch.equal(one[0].img0, other[0].img0)
    assert one[0].img0.shape == (2, 3, 64, 64)
    assert one[0].t.shape == (2,)


def test_faults_of_a_data_set_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"tri_trainlist.txt: No such file .* `rife dataset --length 3` makes one"):
        Sequences(tmp_path, "train", 3)
    root = make_set(tmp_path / "set")
    with pytest.raises(UserError, match="it holds sequences of 3 instead"):
        Sequences(root, "train", 7)
    with pytest.raises(UserError, match="72, smaller than the crop of 96"):
        TrainingSamples(Sequences(root, "train", 3), 96, 0)[(0, 0)]
    folder = root / "sequences" / "00001" / "0001"
    write_image(folder / "im2.png", np.zeros((64, 80, 3), np.uint8))
    with pytest.raises(UserError, match=r"differ in size \(80x72, 80x64, 80x72\)"):
        Sequences(root, "train", 3).frames(0, (0, 1, 2))
    write_image(folder / "im2.png", np.zeros((72, 80, 3), np.uint16))
    with pytest.raises(UserError, match="expected 8-bit RGB"):
        Sequences(root, "train", 3).frames(0, (0, 1, 2))
    (folder / "im2.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*im2\.png"):
        Sequences(root, "train", 3).frames(0, (0, 1, 2))
    (root / "tri_testlist.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no sequences"):
        Sequences(root, "test", 3)
