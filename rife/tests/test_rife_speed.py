"""``rife bench`` at tiny sizes."""

import json
import time

import pytest
import torch
from click.testing import CliRunner
from rife.cli_study import bench_command
from rife.interpolator import Interpolator, Member
from rife.speed import STEP, SpeedReport, _MovingPicture, measure, plain_eager

from rife import checkpoints


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setattr("rife.speed.SIZES", {"360p": (32, 64), "720p": (64, 96), "1080p": (96, 128)})
    monkeypatch.setattr("rife.speed.MOST_ROUNDS", 3)


def test_every_size_is_timed(averaging):
    options = ["--weights", str(averaging), "--device", "cpu", "--json", "--seconds", "20"]
    result = CliRunner().invoke(bench_command, options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["size"] for row in report["speeds"]] == ["360p", "720p", "1080p"]
    for row in report["speeds"]:
        assert len(row["seconds"]) == len(row["eager_seconds"]) == 3
        middle = sorted(row["seconds"])[1]
        assert row["new_frames_a_second"] == pytest.approx(1 / middle)
        assert row["times_eager"] == pytest.approx(sorted(row["eager_seconds"])[1] / middle)
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["machine"]["precision"] in ("float32", "bfloat16")


def test_the_table(averaging):
    result = CliRunner().invoke(bench_command, ["--weights", str(averaging), "--device", "cpu", "--size", "360p"])
    head, titles, row = result.stdout.splitlines()
    assert head.startswith("device cpu (")
    assert titles.split() == ["mode", "size", "new", "frames/s", "range", "eager", "times", "rounds"]
    assert row.split()[1] == "360p"


def test_what_does_not_fit_in_the_time_is_left_out(averaging, monkeypatch):
    def slow(networks, a, b):
        time.sleep(0.15 * a.shape[1] / 32)
        return a

    monkeypatch.setattr("rife.speed.plain_eager", slow)
    report = measure(["fast"], ["360p", "1080p"], weights_file=averaging, device="cpu", budget=0.9)
    small, large = report.speeds
    assert small.seconds
    assert not large.seconds
    assert "left out: it would take" in large.note
    assert isinstance(report, SpeedReport)
    assert "left out" in report.table()
    assert "times_eager" not in report.as_json()["speeds"][1]


def test_the_baseline_makes_the_same_frames(averaging):
    a, b = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    member = Member("averaging", ensemble=True, turned=True)
    ours = Interpolator([(checkpoints.load(averaging), member)], device="cpu").between(a, b, [0.5])
    eager = plain_eager([(checkpoints.load(averaging), member)], a, b)
    torch.testing.assert_close(eager, ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(eager[0], (a + b) / 2, atol=1e-5, rtol=0)


def test_the_picture_slides():
    picture = _MovingPicture(32, 48, torch.device("cpu"))
    a, b = picture.next_pair()
    c, d = picture.next_pair()
    assert c is b  # as in a video
    y, x = STEP
    for before, after in ((a, b), (c, d)):
        assert torch.equal(before[:, y:, x:], after[:, :-y, :-x])
        assert not torch.equal(before, after)
