"""The command that changes formats: ``dist-render convert``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from distrender.cli_render import code_option, epoch_option, threads_option

in_output = partial(click.option, cls=Section, section="Output")
in_cameras = partial(click.option, cls=Section, section="Cameras")

CONVERT_EXAMPLES = """
Examples:
  dist-render convert experiment/ -o decoder.safetensors
  dist-render convert decoder.safetensors -o experiment/
  dist-render convert experiment/ --dialect plain -o weights.pth
  dist-render convert bunny.obj --to grid -o bunny.npz
  dist-render convert bunny.obj --to samples -o SdfSamples/set/class/bunny.npz
  dist-render convert dinoSR_par.txt -o cameras.json
  dist-render convert cameras.json -o colmap/
"""


@click.command("convert", cls=SectionedCommand, context_settings=SETTINGS, epilog=CONVERT_EXAMPLES)
@click.argument("source", metavar="IN")
@code_option
@epoch_option
@in_output("-o", "--output", required=True, type=click.Path(path_type=Path), help="Its ending says what to make.")
@in_output("--to", type=click.Choice(["grid", "samples"]), help="What kind of .npz.")
@in_output("--dialect", type=click.Choice(["deepsdf", "newer", "plain"]), default="deepsdf", help="Of a .pth's names.")
@in_output("--resolution", type=click.IntRange(2), default=160, help="A grid's samples along each axis.")
@in_output("--count", type=click.IntRange(2), default=525_000, help="Of --to samples.")
@in_output("--seed", type=int, default=0, help="Of where samples lie.")
@in_cameras("--size", type=(int, int), metavar="H W", help="Of the pictures, where a file does not tell.")
@threads_option
@verbose_option()
def convert_command(source: str, output: Path, threads: int | None, **options: object) -> None:
    """Write IN in another format: decoders, grids, samples of distances, cameras.

    Decoders become .safetensors (ours, with codes), .pth or a folder that DeepSDF's own code loads; meshes, expressions
    and decoders with a --code become an .npz; cameras become .json, .npz (IDR), *_par.txt (Middlebury) or a folder
    (COLMAP). For surfaces see `dist-render mesh`.
    """
    if options["size"] and min(options["size"]) < 1:
        raise click.BadParameter("pictures have a height and a width from 1 on", param_hint="--size")
    from distrender.conversion import ConvertOptions, convert

    if threads:
        import torch

        torch.set_num_threads(threads)
    click.echo(convert(source, output, ConvertOptions(**options)))


COMMANDS = (convert_command,)
