"""A file written through atomic_path is whole or not there."""

import os
import stat

import pytest
from papershelf.errors import UserError
from papershelf.files import atomic_path


@pytest.mark.parametrize("name", ["out.mp4", "a b ü.tar.gz", "no_suffix", "é" * 120 + ".png"])
def test_it_appears_at_the_end(tmp_path, name):
    final = tmp_path / name
    with atomic_path(final) as part:
        part.write_text("whole")
        assert part.parent == tmp_path
        assert part.suffixes == final.suffixes
        assert not final.exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert final.read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    final = tmp_path / "out.txt"
    final.write_text("before")

    def fail():
        with atomic_path(final) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]
    assert final.read_text() == "before"


def test_the_file_gets_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "out.txt") as part:
            part.write_text("")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o640


def test_two_at_once_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "out.txt") as a, atomic_path(tmp_path / "out.txt") as b:
        assert a != b
        a.write_text("a")
        b.write_text("b")
    assert (tmp_path / "out.txt").read_text() == "a"  # the outer block ends last


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "file.txt")
    with atomic_path(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "file.txt").read_text() == "new"


def test_a_pipe_is_handed_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with atomic_path(tmp_path / "pipe") as part:
        assert part == tmp_path / "pipe"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_relative_path_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_path("out.txt") as part:
        part.write_text("here")
    assert (tmp_path / "out.txt").read_text() == "here"


@pytest.mark.parametrize(
    ("where", "says"), [("none/out.txt", "there is no folder"), ("", "it is a folder"), ("x" * 300, "too long")]
)
def test_a_bad_place_is_said_before_any_work(tmp_path, where, says):
    with pytest.raises(UserError, match=says) as error, atomic_path(tmp_path / where):
        pytest.fail("the block must not run")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # a read-only folder does not stop root
    with pytest.raises(UserError, match="Permission denied"), atomic_path(tmp_path / "out.txt"):
        pytest.fail("the block must not run")
