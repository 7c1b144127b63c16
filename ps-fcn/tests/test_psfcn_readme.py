"""What README.md tells people to type is typed, at a small size; what its tables name is there."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from papershelf.images import write_image
from psfcn.cli import main
from psfcn_spheres import make_folder, sphere_sample

FOLDER = Path(__file__).resolve().parents[1]
PAGE = (FOLDER / "README.md").read_text()
# Options that make a command small: those that must be given are put in, the others only change what is there.
GIVEN = {"train": {"--batch": 2, "--lights": "3..4", "--crop": 8, "--side": "8..16", "--steps": 2, "--epochs": 1}}
SMALLER = {"render": {"--size": 16, "--count": 3, "--lights": 8}, "train": {"--generate": 3, "--minutes": None}}
# The first two are how one comes here, torchrun has a test of its own, scripts of bench/ need hours or data.
NOT_RUN = ("make", "pip", "torchrun", "python")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def rows(heading):
    """The cells of the table under a heading, or of the first after these words."""
    table = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(heading) :], re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def small(words):
    """A command with the sizes of this test."""
    name, *rest = words
    given, smaller = GIVEN.get(name, {}), SMALLER.get(name, {})
    kept, place = [name], 0
    while place < len(rest):
        word = rest[place]
        place += 1 + (word in given or word in smaller)
        if word in smaller and smaller[word] is not None:
            kept += [word, str(smaller[word])]
        elif word not in given and word not in smaller:
            kept.append(word)
    return kept + [str(word) for option in given.items() for word in option]


@pytest.fixture
def desk(tmp_path):
    """A folder with what the page takes to be there: photographs, their lights and mask, samples."""
    sample = sphere_sample(2, 24, 8)
    (tmp_path / "imgs").mkdir()
    for number, image in enumerate(sample.images):
        write_image(tmp_path / "imgs" / f"{number:02}.png", image)
    write_image(tmp_path / "mask.png", sample.mask[..., None] * np.uint8(255))
    np.savetxt(tmp_path / "lights.txt", sample.lights)
    make_folder(tmp_path / "train", 3, size=16)
    return tmp_path


def test_commands_are_made_small():
    words = shlex.split("train psfcn-n --generate 200 --minutes 3 --lights 6..16 --turn -o trial/")
    assert " ".join(small(words)) == (
        "train psfcn-n --generate 3 --turn -o trial/ --batch 2 --lights 3..4 --crop 8 --side 8..16 --steps 2 --epochs 1"
    )
    assert small(["predict", "imgs/", "--depth"]) == ["predict", "imgs/", "--depth"]


@pytest.mark.slow
def test_what_the_page_types_works(desk):
    typed = 0
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True) or [NOT_RUN[0]]
            if Path(program).name in NOT_RUN:
                continue
            assert Path(program).name == "psfcn", line
            command = [Path(sys.executable).with_name("psfcn"), *small(words)]
            ran = subprocess.run(command, cwd=desk, capture_output=True, text=True)
            assert ran.returncode == 0, f"{line}\n{ran.stderr}"
            typed += 1
    for block in blocks("python"):
        ran = subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=desk, capture_output=True, text=True)
        assert ran.returncode == 0, f"{block}\n{ran.stderr}"
    assert typed


def test_its_table_names_every_command_and_options_that_they_have():
    named = {}
    for command, about in rows("| command |"):
        name = shlex.split(command.strip("`"))[0]
        named[name] = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", f"{command} {about}")
    assert named.keys() == main.commands.keys()
    for name, options in named.items():
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {*options} <= known, name


@pytest.mark.parametrize("path", sorted({p for row in rows("## Paper -> code") for p in re.findall("`(.+?)`", row[1])}))
def test_the_code_that_it_leads_to_is_there(path):
    module, _, name = path.partition(".")
    found = importlib.import_module(f"psfcn.{module}")
    assert not name or hasattr(found, name)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`?(ps-fcn/[\w/.-]+)", PAGE))))
def test_files_that_it_names_are_there(path):
    assert (FOLDER.parent / path.rstrip(".")).exists()
