"""Times taken turn by turn."""

import subprocess

import pytest
from papershelf.measuring import commit, interleaved, processor


def test_calls_take_turns_and_are_counted():
    clock = [0.0]
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    found = interleaved({"a": call("a", 0.002), "b": call("b", 0.1)}, rounds=3, timer=lambda: clock[0])
    assert "".join(order) == "aaabbb" + ("a" * 10 + "b") * 3 or "".join(order) == "aaabbb" + ("a" * 9 + "b") * 3
    assert found["a"] == {"ms": pytest.approx(2), "iqr_ms": pytest.approx(0), "min_ms": pytest.approx(2)}
    assert found["b"]["ms"] == pytest.approx(100)


def test_the_commit_is_git_s_unless_given(monkeypatch, tmp_path):
    monkeypatch.setenv("COMMIT", "abc")
    assert commit() == "abc"
    monkeypatch.delenv("COMMIT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    subprocess.run(["git", "init", "-q"], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert len(commit()) == 12


def test_the_processor_has_a_name():
    assert processor()
