"""Building kernels: what the modes allow, what is said where there is no compiler, when to build anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from papershelf import native

SOURCE = "int answer() { return 42; }\n"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of kernels (that register nothing) and an empty cache; mode ``require``."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PAPERSHELF_NATIVE", "require")
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "op.cpp").write_text(SOURCE)
    return folder


def kernels(folder: Path, namespace: str = "papershelf_test") -> native.Kernels:
    return native.Kernels(namespace, folder, cpu=["op.cpp"], cuda=[])


def test_builds_once_and_then_finds_what_was_built(sources, monkeypatch):
    built = kernels(sources)
    assert built.load()
    library = built.library("require")
    assert library.is_file()
    assert [file.name for file in library.parent.iterdir()] == [library.name]  # nothing is left lying about
    for name, value in {"CXX": "c++", "PAPERSHELF_CXXFLAGS": "-g"}.items():  # parts of the key
        monkeypatch.setenv(name, value)
        assert kernels(sources).library("require") != library
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "")  # no compiler from here on
    assert kernels(sources).load("cpu")
    assert not kernels(sources).load("meta")


def test_a_changed_source_or_header_makes_another_library(sources):
    before = kernels(sources).library()
    assert kernels(sources).library() == before
    (sources / "op.h").write_text("// new\n")
    header = kernels(sources).library()
    (sources / "op.cpp").write_text(SOURCE + "// changed\n")
    assert len({before, header, kernels(sources).library()}) == 3
    others = native.Kernels("papershelf_test", sources, cpu=["other.cpp"], cuda=[])
    assert others.library() != kernels(sources).library()
    assert kernels(sources).library("cuda-on-cpu") != kernels(sources).library("auto")


def test_an_unknown_mode_names_the_known_ones(sources, monkeypatch):
    monkeypatch.setenv("PAPERSHELF_NATIVE", "sometimes")
    with pytest.raises(native.NativeBuildError, match="'sometimes': expected one of auto, off, require, cuda-on-cpu"):
        kernels(sources).load()


def test_cuda_code_runs_on_gpus_and_in_the_mode_for_it_on_cpus(monkeypatch):
    monkeypatch.delenv("PAPERSHELF_NATIVE", raising=False)
    assert native.runs_cuda_code("cuda:1")
    assert not native.runs_cuda_code(torch.device("cpu"))
    monkeypatch.setenv("PAPERSHELF_NATIVE", "cuda-on-cpu")
    assert native.runs_cuda_code("cpu")


def test_off_builds_nothing(sources, monkeypatch):
    monkeypatch.setenv("PAPERSHELF_NATIVE", "off")
    off = kernels(sources)
    assert not off.load()
    assert not off.library().parent.exists()


def test_without_a_compiler_it_says_what_to_install_once(sources, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PAPERSHELF_NATIVE", "auto")
    lacking = kernels(sources)
    assert not lacking.load()
    assert not lacking.load()
    assert len(caplog.records) == 1
    assert "apt install g++" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_where_kernels_are_required_their_lack_is_an_error_every_time(sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    lacking = kernels(sources)
    for _ in range(2):
        with pytest.raises(native.NativeBuildError, match="papershelf_test: no C\\+\\+ compiler found"):
            lacking.load()


def test_a_source_that_does_not_compile_is_quoted(sources, monkeypatch, caplog):
    (sources / "op.cpp").write_text("int answer() { return fortytwo; }\n")
    monkeypatch.setenv("PAPERSHELF_NATIVE", "auto")
    assert not kernels(sources, "papershelf_broken").load()
    message = caplog.records[0].getMessage()
    assert "fortytwo" in message
    assert "\n" not in message


def test_processes_that_build_at_the_same_time_do_not_disturb_each_other(sources):
    program = (
        "from pathlib import Path; from papershelf import native; "
        f"assert native.Kernels('papershelf_test', Path({str(sources)!r}), ['op.cpp'], []).load()"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in "ab"
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list(kernels(sources).library("require").parent.iterdir())) == 1


def test_loading_is_a_constant_to_torch_compile(sources):
    built = kernels(sources)
    compiled = torch.compile(lambda x: x + 1 if built.load() else x, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 1
