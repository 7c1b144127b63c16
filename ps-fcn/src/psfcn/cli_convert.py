"""``psfcn convert``: files of networks and of lights into other forms."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from psfcn.cli_render import PATH
from psfcn.cli_train import NETWORKS

WEIGHTS = (".safetensors", ".pth", ".pt", ".tar")  # psfcn.checkpoints.SUFFIXES; a test compares them

in_network = partial(click.option, cls=Section, section="Networks")
in_lights = partial(click.option, cls=Section, section="Lights")
in_output = partial(click.option, cls=Section, section="Output")

EXAMPLES = """
Examples:
  psfcn convert PS-FCN_B_S_32.pth.tar -o psfcn.safetensors
  psfcn convert PS-FCN_normalize.pth.tar --kind psfcn-n -o psfcn-n.safetensors
  psfcn convert run/model.safetensors -o for-the-released-code.pth
  psfcn convert lights.yml -o light_directions.txt
  psfcn convert light_directions.txt --images photos/ -o photos.lp
"""


@click.command("convert", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("source", type=PATH)
@in_network(
    "--kind", type=click.Choice(NETWORKS), help="What it is. [default: seen from the file; psfcn-n must be named]"
)
@in_network("--full", is_flag=True, help="Keep single precision in a .safetensors.")
@in_lights("--images", type=PATH, metavar="FOLDER", help="Photographs in the lights' order, for an .lp to name.")
@in_output("-o", "--output", required=True, type=PATH, help="Weights: .safetensors, .pth. Lights: .txt, .lp, .yml.")
@verbose_option()
def convert_command(source: Path, kind: str | None, full: bool, images: Path | None, output: Path) -> None:
    """Bring a file of weights, or of light directions, into another form.

    Weights: the released code's .pth (.pth.tar) into ours and back. Lights: .txt, .lp, .npy, or OpenCV's .yml into
    .txt, .lp or .yml.
    """
    weights = source.suffix in WEIGHTS
    if weights != (output.suffix in WEIGHTS):
        raise click.UsageError(f"{source} and {output} are not of a kind: weights become weights, and lights lights")
    if weights and images:
        raise click.UsageError("--images is for light files")
    if not weights and (kind or full):
        raise click.UsageError("--kind and --full are for files of weights")
    click.echo(_weights(source, kind, full, output) if weights else _lights(source, images, output))


def _weights(source: Path, kind: str | None, full: bool, output: Path) -> str:
    from psfcn import checkpoints

    network = checkpoints.load(source, kind)
    about = {"converted": shlex.join(["psfcn", *sys.argv[1:]]), **network.metadata}
    checkpoints.save(network, output, about, full=full)
    return f"{output}: {checkpoints.kind_of(network)}, {output.stat().st_size / 1e6:.1f} MB"


def _lights(source: Path, images: Path | None, output: Path) -> str:
    from psfcn.light_files import natural_order, read_lights, write_lights

    lights = read_lights(source)
    names = lights.names
    if images:
        names = tuple(sorted((path.name for path in images.glob("*.*") if path.is_file()), key=natural_order))
    write_lights(output, lights.directions, names)
    return f"{output}: {len(lights.directions)} lights"


COMMANDS = (convert_command,)
