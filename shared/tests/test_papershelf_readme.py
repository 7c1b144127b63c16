"""What the READMEs tell people to type exists: make targets, commands, their options, files, links."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md")])
PROMISED = ["install", "lint", "format", "test", "test-slow", "check", "wheels", "clean"]
PROMISED += ["cuda-check", "cuda-sanitize", "gpu-check", "rife", "rife-test", "rife-bench"]
SCRIPTS = {
    name
    for project in ROOT.glob("*/pyproject.toml")
    for name in tomllib.loads(project.read_text())["project"].get("scripts", {})
}


def shell_lines(text: str) -> list[str]:
    """The lines of the ``sh`` blocks, continued ones joined, comments and prompts gone."""
    lines = "\n".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.S | re.M)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def commands() -> list[tuple[Path, list[str]]]:
    """Every command of every page, as words, without what a shell does with it (pipes, variables)."""
    found = []
    for page in PAGES:
        for line in shell_lines(page.read_text()):
            for part in re.split(r"&&|\||;|>", line):
                words = [w for w in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", w)]
                if words:
                    found.append((page, words))
    return found


def as_test_id(value) -> str | None:
    return " ".join(value) if isinstance(value, list) else value.parent.name


COMMANDS = [(page, words) for page, words in commands() if Path(words[0]).name in SCRIPTS]


def test_the_pages_have_commands():
    assert (ROOT / "README.md", ["make", "install"]) in commands()
    assert any(page == ROOT / "README.md" and Path(words[0]).name == "rife-interp" for page, words in commands())


TARGETS = {word for _, words in commands() if words[0] == "make" for word in words[1:]}


@pytest.mark.parametrize("target", sorted({*PROMISED, *TARGETS}))
def test_the_make_target_exists(target):
    ran = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=as_test_id)
def test_the_command_and_its_options_exist(page, words):
    program = Path(sys.executable).parent / Path(words[0]).name
    # click looks at all the words before it heeds --help, and refuses those it does not know.
    ran = subprocess.run([program, *words[1:], "--help"], capture_output=True, text=True)
    assert ran.returncode == 0, f"{page}: {ran.stderr}"
    assert ran.stdout.startswith("Usage: ")


def test_ci_installs_and_tests_as_the_pages_say():
    steps = (ROOT / ".ci" / "run").read_text()
    for command in ("make install", "make lint", "make test", "make cuda-check"):
        assert f"step {command}\n" in steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_every_tool_is_in_the_table_and_none_is_claimed_that_is_not():
    table = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (?:\[(\S+)\]\(\S+\)|(\S+)) \|.*\| (here|not yet) \|$", table, re.M)
    here = {linked for linked, _, state in rows if state == "here"}
    assert here == {project.parent.name for project in ROOT.glob("*/pyproject.toml")} - {"shared"}
    assert len(rows) == 10


def test_the_citation_file_is_one():
    text = (ROOT / "CITATION.cff").read_text()
    for key in ("cff-version", "message", "title", "authors"):  # what the format requires
        assert re.search(rf"^{key}:", text, re.M)
