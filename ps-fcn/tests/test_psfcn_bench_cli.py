"""``psfcn bench``: what it counts, and what it prints."""

import json
import time
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from papershelf.errors import UserError
from psfcn import speed
from psfcn.cli import main

TINY = ["bench", "--size", "10", "--images", "3", "--threads", "1", "--rounds", "2"]


def run(*arguments, fine=True):
    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(main, list(arguments))
    finally:
        torch.set_num_threads(before)
    assert (done.exit_code == 0) is fine, done.output
    return done


def test_it_counts_what_the_layers_multiply():
    # Of the extractor at 4x4 pixels, by hand: outputs times taps and input channels.
    extractor = (
        16 * 64 * 54 + 4 * 128 * 576 + 4 * 128 * 1152 + 256 * 1152 + 256 * 2304 + 16 * 128 * 256 + 4 * 128 * 1152
    )
    regressor = 2 * 4 * 128 * 1152 + 4 * 16 * 64 * 128 + 16 * 3 * 576
    assert speed.multiply_adds(4, 5) == 5 * extractor + regressor
    assert speed.multiply_adds(3, 5) == speed.multiply_adds(4, 5)
    assert speed.multiply_adds(256, 32) == pytest.approx(392.3e9, rel=1e-3)


def test_the_convolutions_alone_are_all_of_them():
    model = speed.network()
    seen = []
    for layer in model.modules():
        layer.register_forward_hook(lambda layer, x, y: seen.append((layer, len(x[0]), tuple(y.shape[2:]))))
    speed.convolutions(model, 8, 11, torch.float32, torch.channels_last)()
    names = {module: name for name, module in model.named_modules()}
    counted = Counter()
    for layer, number, shape in seen:
        counted[names[layer], shape] += number
    seen.clear()
    with torch.no_grad():
        model(torch.rand(1, 11, 3, 8, 8), torch.rand(1, 11, 3), None)
    convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    forward = {(names[layer], shape): number for layer, number, shape in seen if isinstance(layer, convolutions)}
    assert counted == forward


def test_json():
    report = json.loads(run(*TINY, "--no-memory", "--json").stdout)
    assert report["machine"]["threads"] == 1
    assert (report["size"], report["images"], report["clock"]) == (10, 3, "wall")
    assert list(report["seconds"]) == ["float32", "bfloat16"]
    for precision, rows in report["seconds"].items():
        alone = min(row["median"] for name, row in rows.items() if name.startswith("convolutions"))
        assert report["of_convolutions"][precision] == pytest.approx(alone / rows["psfcn"]["median"], abs=2e-3)
        assert all(0 < row["min"] <= row["median"] for row in rows.values())
        assert ("released" in rows) == (precision == "float32")


def test_table():
    lines = run(*TINY, "--no-memory", "--precision", "bfloat16", "--cpu-time").stdout.splitlines()
    assert "10x10, 3 photographs" in lines[1]
    assert [line[11:39].strip() for line in lines[3:]] == [
        "psfcn",
        "convolutions",
        "convolutions, channels_last",
        "sliding, at matmul rate",
    ]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_photographs():
    few, many = (speed.peak_memory(64, number, "float32") for number in (8, 400))
    photograph, features = 64 * 64 * 3 * 4, 64 * 64 * 64 * 4  # features: conv1's, the most there is of one photograph
    assert few > features
    assert many < few + 392 * photograph / 2


def test_it_measures_with_the_clock_that_was_asked_for(monkeypatch):
    clocks = []
    monkeypatch.setattr(
        speed.measuring,
        "interleaved",
        lambda calls, rounds, timer: (
            clocks.append(timer) or {name: {"ms": 2.0, "iqr_ms": 0.1, "min_ms": 1.0} for name in calls}
        ),
    )
    report = speed.measure(4, 1, ["float32"], cpu_time=True, memory=False)
    assert clocks == [time.process_time] * 2
    assert report.clock == "cpu"
    assert report.matmul_rate["float32"] == speed.MATRIX**3 / 1e-3
    with pytest.raises(UserError, match="leave --cpu-time out"):
        speed.measure(4, 1, device="cuda", cpu_time=True)


def test_flags_that_have_no_meaning():
    done = run("bench", "--precision", "float32,half", fine=False)
    assert done.exit_code == 2
    assert "expected some of float32, bfloat16, got 'half'" in done.output
