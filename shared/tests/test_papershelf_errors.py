"""How a command ends: in one line and with its exit code, as a program and not only in a test runner."""

import subprocess
import sys
import textwrap

import click
import pytest
from click.testing import CliRunner
from papershelf.errors import Command, Group, UserError

PROGRAM = """
    import sys
    import click
    from papershelf.errors import Command, Group, UserError

    def act(what):
        if what == "mistake":
            raise UserError("expected a video, got a cat; name a video")
        if what == "ctrl-c":
            raise KeyboardInterrupt
        if what == "ctrl-c with a word":
            raise KeyboardInterrupt("stopped; out.mp4 holds the first 3 s")
        if what == "bug":
            raise ZeroDivisionError
        if what == "pour":
            while True:
                sys.stdout.buffer.write(b"x" * 65536)
        click.echo(what)

    @click.command(cls=Command)
    @click.argument("what")
    def single(what):
        act(what)

    @click.group(cls=Group)
    def main():
        pass

    @main.command()
    @click.argument("what")
    def plain(what):
        act(what)

    main.add_command(single)
    {start}()
"""

FORMS = {"single": [], "main": ["plain"], "main with a Command": ["single"]}


@pytest.fixture(params=FORMS)
def program(request, tmp_path):
    source = tmp_path / "program.py"
    source.write_text(textwrap.dedent(PROGRAM).format(start=request.param.split()[0]))
    return [sys.executable, source, *FORMS[request.param]]


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("mistake", 1, "Error: expected a video, got a cat; name a video\n"),
        ("ctrl-c", 130, "Interrupted.\n"),
        ("ctrl-c with a word", 130, "stopped; out.mp4 holds the first 3 s\n"),
        ("done", 0, ""),
    ],
)
def test_one_line_and_a_code(program, what, code, line):
    ran = subprocess.run([*program, what], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (code, line)
    assert ran.stdout == ("done\n" if what == "done" else "")


def test_a_wrong_option_is_usage(program):
    ran = subprocess.run([*program, "x", "--nope"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("Usage:")
    assert "--nope" in ran.stderr.splitlines()[-1]


def test_a_bug_keeps_its_traceback(program):
    ran = subprocess.run([*program, "bug"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr


def test_a_reader_that_goes_away_ends_it_quietly(program):
    with subprocess.Popen([*program, "pour"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(30) == 1


@pytest.mark.parametrize("kind", [Group, Command])
def test_the_cause_is_kept_for_who_calls_it_from_python(kind):
    @click.command(cls=Command) if kind is Command else click.group(cls=Group, invoke_without_command=True)
    def main():
        raise UserError("why")

    with pytest.raises(click.ClickException) as error:
        main.main([], standalone_mode=False)
    assert isinstance(error.value.__cause__, UserError)
    assert CliRunner().invoke(main, []).output == "Error: why\n"


def test_errors_and_files_import_at_once():
    heavy = "import sys, papershelf.errors, papershelf.files; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
