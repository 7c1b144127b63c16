"""Data sets: what is recognised, that pixels and labels arrive as they were written, and what is refused."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from addernet.datasets import PHOTO_MEAN, Files, Images, open_data
from addernet_image_sets import COLORS, make_cifar, make_folder, make_tar, picture
from papershelf.errors import UserError
from papershelf.images import read_image, write_image

DATA = os.environ.get("PAPERSHELF_DATA")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, classes, binary):
    folder, held = make_cifar(tmp_path / "set", classes=classes, binary=binary)
    data = open_data(folder)
    assert data.name == f"CIFAR-{classes}"
    assert data.classes == tuple(f"kind_{k}" for k in range(classes))
    for split, names in (("train", list(held)[:-1]), ("test", list(held)[-1:])):
        assert np.array_equal(data.parts[split].pixels, np.concatenate([held[name][0] for name in names]))
        assert data.parts[split].labels.tolist() == np.concatenate([held[name][1] for name in names]).tolist()
    assert data.mean[0] == pytest.approx(0.5, abs=0.02)
    assert data.image_size == 32


def test_cifar_in_the_folder_above_and_a_part_of_it(tmp_path):
    _, held = make_cifar(tmp_path / "cifar-10-batches-py")
    data = open_data(tmp_path, ("test",), limit=3)
    assert list(data.parts) == ["test"]
    pixels, labels = held["test_batch"]
    assert np.array_equal(data.parts["test"].pixels, pixels[[0, 2, 5]])
    assert data.parts["test"].labels.tolist() == labels[[0, 2, 5]].tolist()


def test_pickles_as_python_2_and_old_numpy_wrote_them(tmp_path):
    """As the real files are: byte strings, numpy's old module, numbers where numpy now wants truth values."""
    folder, held = make_cifar(tmp_path / "set")
    for name, (pixels, labels) in held.items():
        planes = pixels.transpose(0, 3, 1, 2).tobytes()
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        state = b"(K\x01K" + bytes([len(pixels)]) + b"M\x00\x0c\x86" + dtype + b"\x89T"
        state += len(planes).to_bytes(4, "little") + planes + b"tb"
        numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
        (folder / name).write_bytes(b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + numbers + b"u.")
    data = open_data(folder)
    assert np.array_equal(data.parts["test"].pixels, held["test_batch"][0])
    assert data.parts["train"].labels.tolist() == np.concatenate([held[name][1] for name in list(held)[:-1]]).tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize("content", [Evil(), {b"data": Evil()}, OrderedDict()])
def test_pickles_that_call_something_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder, _ = make_cifar(tmp_path / "set")
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"test_batch asks for \w+\.\w+, which CIFAR's files do not need"):
        open_data(folder)
    assert not Path("was-here").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "data_batch_3").unlink(), "cannot read .*data_batch_3: No such file"),
        (lambda f: (f / "test_batch").write_bytes(b"\x80\x02}q"), "test_batch is damaged"),
        (lambda f: (f / "test_batch").write_bytes(pickle.dumps([1])), "holds a list, expected a dictionary"),
        (lambda f: (f / "test_batch").write_bytes(pickle.dumps({b"data": 1})), "holds no data"),
        (lambda f: (f / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"x"]})), "names 1 classes"),
    ],
)
def test_damaged_cifar(tmp_path, change, message):
    folder, _ = make_cifar(tmp_path / "set")
    change(folder)
    with pytest.raises(UserError, match=message):
        open_data(folder)


def test_damaged_binary_cifar(tmp_path):
    folder, _ = make_cifar(tmp_path / "set", binary=True)
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match="expected a multiple of 3073"):
        open_data(folder)
    (folder / "test_batch.bin").write_bytes(b"\x0a" + content[1:])
    with pytest.raises(UserError, match=r"labels from \d to 10; CIFAR-10 has 10 classes"):
        open_data(folder)


@pytest.mark.parametrize("kind", ["folder", "set.tar", "set.tar.gz", "set.tar.xz"])
@pytest.mark.parametrize("test_name", ["test", "val"])
def test_small_images(tmp_path, kind, test_name):
    source = path = make_folder(tmp_path / "folder", train=3, test=2, test_name=test_name)
    if kind != "folder":
        path = make_tar(tmp_path / kind, source, prefix="some/where/")
    data = open_data(path)
    assert data.classes == ("blue", "green", "red")
    assert {split: len(part) for split, part in data.parts.items()} == {"train": 9, "test": 6}
    assert data.parts["train"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for k, color in enumerate(COLORS.values()):
        assert np.array_equal(data.parts["train"].pixels[3 * k + 1], picture(1000 * k + 1, color))  # RGB, not BGR
    values = data.parts["train"].pixels / 255
    assert data.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-4)
    assert data.std == pytest.approx(values.std((0, 1, 2)), abs=1e-4)


def test_a_limit_spreads_over_the_classes(tmp_path):
    data = open_data(make_folder(tmp_path / "set", train=5, test=1), limit=6)
    assert data.parts["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(data.parts["test"]) == 3


def test_larger_images_stay_in_their_files(tmp_path):
    root = make_folder(tmp_path / "set", train=2, test=1, size=(70, 90))
    data = open_data(root)
    train = data.parts["train"]
    assert isinstance(train, Files)
    assert data.image_size is None
    assert data.mean == PHOTO_MEAN
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(read_image(train.paths[5]), picture(2001, COLORS["red"], 70, 90))
    with pytest.raises(UserError, match="images of 90 pixels; those over 64 are read from a folder: unpack"):
        open_data(make_tar(tmp_path / "set.tar", root))


def test_grey_deep_and_transparent_images_become_rgb(tmp_path):
    root = make_folder(tmp_path / "set", train=1, test=1)
    grey = picture(0, (90, 90, 90))[..., :1]
    write_image(root / "train/red/000.png", grey)
    write_image(root / "train/blue/000.png", np.concatenate([picture(1, (9, 99, 199)), grey], axis=2))
    write_image(root / "train/green/000.png", picture(2, (9, 99, 199)).astype(np.uint16) * 257)
    blue, green, red = open_data(root).parts["train"].pixels
    assert np.array_equal(red, grey.repeat(3, 2))
    assert np.array_equal(blue, picture(1, (9, 99, 199)))
    assert np.array_equal(green, picture(2, (9, 99, 199)))


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; expected a folder or tar of train/CLASS"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no images in train/CLASS; expected .*cifar-10-batches-py"):
        open_data(tmp_path)
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(UserError, match="is no archive that can be read"):
        open_data(tmp_path / "text.tar.gz")
    root = make_folder(tmp_path / "set", train=1, test=1)
    archive = make_tar(tmp_path / "set.tar.gz", root)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match="is damaged or cut off"):
        open_data(archive)
    (root / "test" / "violet").mkdir()
    write_image(root / "test" / "violet" / "0.png", picture(0, (200, 40, 200)))
    with pytest.raises(UserError, match="test has classes that training has not: violet"):
        open_data(root)
    assert open_data(root, ("train",)).classes == ("blue", "green", "red")
    assert isinstance(open_data(root, ("train",)).parts["train"], Images)


def test_images_that_do_not_fit_are_named(tmp_path):
    root = make_folder(tmp_path / "set", train=2, test=1)
    write_image(root / "train/red/000.png", picture(0, (0, 0, 0), 30, 20))
    with pytest.raises(UserError, match=r"train/red/000\.png is 20x30 and others are 32x32"):
        open_data(root)
    (root / "train/red/000.png").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(UserError, match=r"cannot read .*train/red/000\.png: it is damaged"):
        open_data(root)
    with pytest.raises(UserError, match=r"cannot read .*set\.tar/train/red/000\.png: it is damaged"):
        open_data(make_tar(tmp_path / "set.tar", root))


@pytest.mark.skipif(not DATA, reason="PAPERSHELF_DATA is unset")
def test_real_cifar_10_out_of_a_tar():
    data = open_data(Path(DATA) / "cifar10" / "cifar10_jpeg.tar.gz", limit=50)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(data.parts["train"].labels).tolist() == [5] * 10
    assert data.parts["test"].pixels.shape == (50, 32, 32, 3)
    assert np.allclose(data.mean, (0.49, 0.48, 0.45), atol=0.05)
