"""Training on the lights that LCNet finds: what is found, kept, gone on with, replaced, and told by the weights."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papershelf.errors import UserError
from papershelf.images import write_image
from papershelf.processes import Place
from psfcn import checkpoints, found_lights
from psfcn.captures import Capture
from psfcn.cli import main
from psfcn.crops import Samples, photographs
from psfcn.estimation import find_lights
from psfcn.found_lights import FoundSamples
from psfcn.lcnet import STRONGEST, WEAKEST, LCNet
from psfcn.lcnet_training import lit
from psfcn.recipes import recipe
from psfcn.training import train
from psfcn_spheres import make_folder, sphere_sample

CPU = Place(torch.device("cpu"))
SMALL = {"batch": 2, "lights": (3, 4), "crop": (8, 8), "side": (8, 16), "noise": 0.002}
pytestmark = pytest.mark.usefixtures("_without_pictures")


@pytest.fixture
def _without_pictures(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spheres")
    options = {"size": 16, "lights": 5}
    return make_folder(folder / "train", 3, **options), make_folder(folder / "held-out", 1, first=100, **options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """LCNet as it is before it has learnt anything."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "lcnet.safetensors"
    checkpoints.save(LCNet(), file)
    return file


@pytest.fixture(scope="module")
def found(folders, weights, tmp_path_factory):
    sets = found_lights.sets(weights, *folders, tmp_path_factory.mktemp("run"), 0)
    found_lights.prepare(sets, weights, CPU, lambda: False)
    return sets


def go(folders, run, config, **options):
    return train(config, folders[0], run, validation=folders[1], device="cpu", **options)


def test_lights_are_those_lcnet_finds_in_the_whole_object_and_images_are_divided_by_its_intensities(found, weights):
    network = checkpoints.load(weights)
    for number in range(3):
        true, sample = Samples.load(found[0], number), found[0].load(number)
        shown = lit(true, np.random.default_rng([0, number]), np.arange(5))
        assert ((shown.intensities >= WEAKEST) & (shown.intensities <= STRONGEST)).all()
        bright = photographs(true, slice(None)) * shown.intensities[:, None, None, None]
        capture = Capture(bright.permute(0, 2, 3, 1).numpy(), true.mask, tuple("abcde"), None, None, ())
        expected, _ = find_lights(capture, network)  # as `psfcn predict --uncalibrated` does
        np.testing.assert_allclose(sample.lights, expected.lights, atol=2e-3)
        divided = photographs(sample, slice(None)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(divided, expected.images, rtol=2e-3, atol=1e-5)
        assert np.array_equal(sample.normal, true.normal)


def test_a_network_that_sees_the_truth_changes_nothing(folders, weights, tmp_path, monkeypatch):
    truth = {}

    def remembered(sample, rng, chosen):
        item = lit(sample, rng, chosen)
        truth["now"] = item.lights[None], item.intensities[None]
        return item

    monkeypatch.setattr(found_lights, "lit", remembered)
    monkeypatch.setattr(found_lights, "decode", lambda _: truth["now"])
    sets = found_lights.sets(weights, *folders, tmp_path, 0)
    found_lights.prepare(sets, weights, CPU, lambda: False)
    assert sets[0].errors() == pytest.approx((0, 0), abs=0.05)
    for number in range(3):
        true, sample = Samples.load(sets[0], number), sets[0].load(number)
        np.testing.assert_array_equal(sample.lights, true.lights)
        np.testing.assert_allclose(sample.intensities, true.intensities, rtol=1e-6)


def test_lights_depend_on_seed_and_sample_alone(found, folders, weights, tmp_path):
    def tables(seed):
        sets = found_lights.sets(weights, *folders, tmp_path, seed)
        found_lights.prepare(sets, weights, CPU, lambda: False)
        return [samples.row(number) for samples in sets for number in range(len(samples))]

    same, other = tables(0), tables(1)
    expected = [samples.row(number) for samples in found for number in range(len(samples))]
    assert all(np.array_equal(a, b) for a, b in zip(same, expected, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(same[:3], other[:3], strict=True))
    assert np.array_equal(same[3], other[3])  # held-out samples are the same in every run


def test_finding_stops_when_asked_and_goes_on(folders, weights, tmp_path, monkeypatch):
    config, run = recipe("psfcn-n", **SMALL, steps=1, epochs=1), tmp_path / "run"
    find, seen = FoundSamples.find, []

    def find_then_ctrl_c(self, number, *rest):
        seen.append((self.found.name, number))
        find(self, number, *rest)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FoundSamples, "find", find_then_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="lights of 2 of 4 samples; the same command goes on"):
        go(folders, run, config, lcnet=weights)
    dates = {file: file.stat().st_mtime_ns for file in run.rglob("*.npy")}
    assert len(dates) == 2
    go(folders, run, config, lcnet=weights)
    assert len(list(run.rglob("*.npy"))) == 4
    assert all(file.stat().st_mtime_ns == date for file, date in dates.items())


@pytest.mark.parametrize("network", ["psfcn-n", "upsfcn"])
def test_a_run_says_whose_lights_it_was_trained_on(folders, weights, tmp_path, network):
    config, run = recipe(network, **SMALL, steps=2, epochs=2), tmp_path / "run"
    figures = go(folders, run, config, lcnet=weights)
    about = checkpoints.load(run / "model.safetensors").metadata
    assert about["lights"] == "lcnet"
    assert about["lights_by"].startswith("lcnet-")
    plain = go(folders, tmp_path / "plain", config)
    assert "lights" not in checkpoints.load(tmp_path / "plain" / "model.safetensors").metadata
    assert figures["train_loss"] != plain["train_loss"]
    # The classical methods beside it have the same lights, and those of a random network are of no use.
    assert figures["least_squares_mae_all"] > plain["least_squares_mae_all"] + 10


def test_a_run_goes_on_with_the_same_lights_only(folders, weights, tmp_path):
    config, run = recipe("psfcn-n", **SMALL, steps=1, epochs=1), tmp_path / "run"
    more = dataclasses.replace(config, steps=2)
    go(folders, run, config, lcnet=weights)
    other = tmp_path / "other.safetensors"
    checkpoints.save(LCNet(), other)
    before = {*run.rglob("*.npy")}
    with pytest.raises(UserError, match=r"was made with lights_by lcnet-\w+-seed-0 \(now lcnet-\w+-seed-0\)"):
        go(folders, run, more, lcnet=other, resume=True)
    with pytest.raises(UserError, match=r"was made with lights_by lcnet-\w+-seed-0 \(now None\)"):
        go(folders, run, more, resume=True)
    assert {*run.rglob("*.npy")} == before  # refused before an hour of looking
    assert go(folders, run, more, lcnet=weights, resume=True)["step"] == 2


def test_a_run_from_before_there_was_a_choice_goes_on(folders, tmp_path):
    config = recipe("psfcn-n", **SMALL, steps=1, epochs=1)
    go(folders, tmp_path, config)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["data"]["lights_by"]
    torch.save(state, tmp_path / "last.pt")
    assert go(folders, tmp_path, dataclasses.replace(config, steps=2), resume=True)["step"] == 2


def test_lights_of_other_samples_are_refused(found, weights, tmp_path):
    data = make_folder(tmp_path / "set", 1, size=16, lights=5)
    samples = FoundSamples(data, found[0].found, 0)
    samples.load(0)
    sphere_sample(7, 16, 5).save(data / "000000.npz")
    with pytest.raises(UserError, match=r"000000\.npy is not of .*000000\.npz, which is another sample by now; remove"):
        samples.load(0)
    with pytest.raises(UserError, match=r"000000\.npy cannot be read \(.*\); remove it and go on"):
        FoundSamples(data, tmp_path / "none", 0).load(0)


def test_train_and_predict_without_known_lights(folders, weights, tmp_path):
    def run(*words):
        return CliRunner().invoke(main, [*map(str, words)])

    options = ["--batch", 2, "--lights", 3, "--crop", 8, "--side", 16, "--steps", 1, "--epochs", 1, "--threads", 1]
    options += ["--data", folders[0], "--validation", folders[1], "--device", "cpu", "-o", tmp_path / "run"]
    threads = torch.get_num_threads()
    try:
        result = run("train", "psfcn-n", "--lcnet", weights, *options)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert "lights by LCNet: " in result.stderr
    photos = tmp_path / "ball"
    photos.mkdir()
    sample = sphere_sample(3, 24, 5)
    for number, image in enumerate(sample.images):
        write_image(photos / f"{number}.png", image)
    write_image(photos / "mask.png", sample.mask[..., None] * np.uint8(255))
    trained = tmp_path / "run" / "model.safetensors"
    words = [photos, "--uncalibrated", "--lcnet", weights, "--weights", trained, "--method", "psfcn"]
    result = run("predict", *words, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["network"] == 1
    assert {"lights.txt", "normal.npy"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_flags_and_files_that_do_not_fit(folders, weights, tmp_path):
    options = ["--data", str(folders[0]), "--validation", str(folders[1]), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(main, ["train", "lcnet", "--lcnet", str(weights), *options])
    assert result.exit_code == 2
    assert "LCNet itself learns from the true lights" in " ".join(result.stderr.split())
    result = CliRunner().invoke(main, ["train", "psfcn-n", "--lcnet", str(tmp_path / "no.safetensors"), *options])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no.safetensors" in result.stderr
