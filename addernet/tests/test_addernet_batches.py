"""Batches: every image once an epoch, shared among processes, the same after a break and from any number of workers."""

import numpy as np
import pytest
import torch
from addernet.augmentation import normalized
from addernet.batches import PlainBatches, TrainingBatches, for_network
from addernet.datasets import DataSet, Images, open_data
from addernet_image_sets import make_folder
from papershelf.errors import UserError
from papershelf.images import read_image
from papershelf.processes import Place

CPU = Place(torch.device("cpu"))


def numbered(count=21):
    """Images that are their own labels."""
    labels = np.arange(count)
    pixels = np.broadcast_to(labels[:, None, None, None], (count, 8, 8, 3)).astype(np.uint8)
    return DataSet("numbers", ("a", "b"), (0.0,) * 3, (1 / 255,) * 3, {"train": Images(pixels, labels)})


def test_every_image_once_an_epoch_in_another_order():
    batches = TrainingBatches(numbered(), 8, 8, CPU, augment=False)
    epochs = []
    for epoch in range(2):
        parts = list(batches.epoch(epoch))
        assert [len(batch.labels) for batch in parts] == [8, 8, 5]
        for x, labels in parts:
            torch.testing.assert_close(x[:, 0, 3, 3], labels.float())
        epochs.append(torch.cat([batch.labels for batch in parts]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(21))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_goes_on_where_it_was_left(augment):
    batches = TrainingBatches(numbered(), 8, 8, CPU, augment=augment, cutout=3, seed=5)
    whole, rest = list(batches.epoch(1)), list(batches.epoch(1, start=2))
    assert len(rest) == 1
    assert torch.equal(rest[0].x, whole[2].x)


@pytest.mark.parametrize(("world", "parts", "last"), [(2, 1, 4), (4, 1, 0), (2, 2, 0), (1, 2, 4), (1, 1, 5)])
def test_processes_share_each_batch(world, parts, last):
    def batches(place, parts):
        return TrainingBatches(numbered(), 8, 8, place, augment=True, parts=parts)

    whole = list(batches(CPU, world * parts).epoch(0))
    shares = [list(batches(CPU._replace(rank=rank, world=world), parts).epoch(0)) for rank in range(world)]
    assert [len(batch.labels) for batch in whole] == [8, 8] + [last] * bool(last)
    for step, batch in enumerate(whole):
        joined = torch.cat([share[step].x for share in shares])
        assert torch.equal(joined, batch.x)


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match="a batch of 8 cannot be computed in 3 equal parts"):
        TrainingBatches(numbered(), 8, 8, CPU._replace(world=3))
    with pytest.raises(UserError, match="a batch of 8 cannot be computed in 8 equal parts of 2 or more"):
        TrainingBatches(numbered(), 8, 8, CPU._replace(world=2), parts=4)
    with pytest.raises(UserError, match="1 training images are too few"):
        TrainingBatches(numbered(1), 8, 8, CPU)


def test_photographs_do_not_depend_on_who_reads_them(tmp_path):
    data = open_data(make_folder(tmp_path / "set", train=3, test=2, test_name="val", size=(70, 90)))
    ways = [
        list(TrainingBatches(data, 24, 4, CPU, workers=workers, seed=1, cutout=5).epoch(0, start))
        for workers, start in ((0, 0), (1, 0), (2, 1))
    ]
    assert [tuple(batch.x.shape) for batch in ways[0]] == [(4, 3, 24, 24), (4, 3, 24, 24)]
    for a, b in [*zip(ways[0], ways[1], strict=True), (ways[0][1], ways[2][0])]:
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.labels, b.labels)
    assert ways[0][0].x.is_contiguous(memory_format=torch.channels_last)
    again = next(iter(TrainingBatches(data, 24, 4, CPU, seed=1).epoch(1)))
    assert not torch.equal(again.x, ways[0][0].x)


@pytest.mark.parametrize("world", [1, 2])
def test_photographs_for_testing(tmp_path, world):
    data = open_data(make_folder(tmp_path / "set", train=1, test=3, size=(70, 90)))
    shares = [list(PlainBatches(data, "test", 24, 4, CPU._replace(rank=r, world=world))) for r in range(world)]
    parts = [batch for turn in range(3) for share in shares for batch in share[turn : turn + 1]]
    assert torch.cat([batch.labels for batch in parts]).tolist() == data.parts["test"].labels.tolist()
    images = [for_network(read_image(path), 24) for path in data.parts["test"].paths]
    expected = normalized(torch.from_numpy(np.stack(images)), data.mean, data.std)
    assert torch.equal(torch.cat([batch.x for batch in parts]), expected)


def test_a_photograph_that_cannot_be_read_is_named_by_workers_too(tmp_path):
    root = make_folder(tmp_path / "set", train=2, test=1, size=(70, 90))
    data = open_data(root)
    (root / "train/green/001.png").write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^cannot read .*green/001\.png: it is damaged"):
            list(TrainingBatches(data, 24, 6, CPU, workers=workers).epoch(0))
