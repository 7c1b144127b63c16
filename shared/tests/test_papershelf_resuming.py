"""States of runs that are read back, and those that are not gone on from."""

import pytest
import torch
from papershelf.errors import UserError
from papershelf.resuming import read_state

HERE = {"steps": 5, "images": 7, "size": 3}


@pytest.fixture
def saved(tmp_path):
    torch.save({"config": {"steps": 5}, "data": {"images": 7}, "size": 3, "step": 2}, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_the_same_recipe_goes_on(saved):
    assert read_state(saved, HERE, ("data", "size"))["step"] == 2


@pytest.mark.parametrize(("key", "was"), [("steps", 5), ("images", 7), ("size", 3)])
def test_what_differs_is_named(saved, key, was):
    with pytest.raises(UserError, match=rf"{key} {was} \(now 9\)"):
        read_state(saved, HERE | {key: 9}, ("data", "size"))


def test_other_files_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("text")
    torch.save({"config": {}, "code": print}, tmp_path / "code.pt")
    for name, message in ("list", "no checkpoint"), ("text", "cannot be resumed"), ("code", "cannot be resumed"):
        with pytest.raises(UserError, match=message):
            read_state(tmp_path / f"{name}.pt", {}, ())
    with pytest.raises(UserError, match="cannot be resumed"):
        read_state(tmp_path / "none.pt", {}, ())
