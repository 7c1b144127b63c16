"""The command that measures: ``dist-render bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from distrender.cli_render import View, code_option, epoch_option, grid_option, in_camera, threads_option

in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  dist-render bench
  dist-render bench bunny.obj
  dist-render bench "torus(0.5, 0.2)" --size 128 --json
  dist-render bench experiment/ --code 3 --size 128 --threads 1
"""


@click.command("bench", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("shape", default="procedural")
@code_option
@epoch_option
@grid_option
@in_camera("--size", type=click.IntRange(1), default=View.size, help="Pixels along each side.")
@in_camera("--azimuth", type=float, default=View.azimuth, help="Degrees around the y axis, from z towards x.")
@in_camera("--elevation", type=click.FloatRange(-89.9, 89.9), default=View.elevation, help="Degrees above.")
@in_run("--rounds", type=click.IntRange(1), default=1, help="Runs of every row; the median of their times is shown.")
@in_run("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@threads_option
@verbose_option()
def bench_command(
    shape: str,
    code: str,
    epoch: str,
    grid: int,
    size: int,
    azimuth: float,
    elevation: float,
    rounds: int,
    as_json: bool,
    threads: int | None,
) -> None:
    """Measure what each trick of sphere tracing saves on SHAPE (see `render`; `procedural` where there is none).

    One row a trick: all rays at every step (naive), only those on their way (dynamic), steps of 1.5 distances
    (aggressive), coarse to fine, and what `render` does (ours); with queries of the field, seconds, the share of the
    hits of 400 plain steps, and the mean error of depth against these. A large decoder takes minutes at 512 pixels.
    """
    import torch

    from distrender import ladder
    from distrender.cameras import Camera
    from distrender.shape_files import open_shape

    if threads:
        torch.set_num_threads(threads)
    camera = Camera.orbit(1, View.distance, elevation, azimuth, size=(size, size))
    rungs = ladder.climb(open_shape(shape, code, grid, epoch), camera, rounds)
    if as_json:
        report = {"shape": shape, "size": size, "threads": torch.get_num_threads()}
        click.echo(json.dumps({**report, "rows": [asdict(rung) for rung in rungs]}))
    else:
        click.echo(ladder.table(rungs))


COMMANDS = (bench_command,)
