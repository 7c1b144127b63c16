"""What `addernet bench` prints. How fast anything is, no test asserts."""

import json

import pytest
from addernet.speed import run
from papershelf.errors import UserError

from addernet import speed


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(speed, "IMAGES_TAPS", 1e5)


def test_a_table_with_a_row_for_each_pass():
    table = run(("4-5-6x7",), 1, 1e-3, False).splitlines()
    assert len(table) == 4
    assert [line.split()[3] for line in table[1:]] == ["forward", "dX", "dW"]


def test_json_holds_the_same():
    report = json.loads(run(("4-5-6x7",), 1, 1e-3, True))
    assert report["machine"]["threads"] == 1
    for row in report["results"]:
        rates = row["gtaps_per_second"]
        assert rates["adder2d"] > 0
        assert row["ours"]["of broadcasting"] == pytest.approx(rates["adder2d"] / rates["broadcasting"])


@pytest.mark.parametrize("layer", ["16-16", "a-b-3x3", "0-4-3x3"])
def test_a_layer_written_otherwise_is_told(layer):
    with pytest.raises(UserError, match="C-O-HxW"):
        run((layer,), 1, 1e-3, False)
