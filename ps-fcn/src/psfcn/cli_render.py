"""``psfcn render``: photometric-stereo samples to train and test on."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from psfcn.render_options import MATERIALS, SHAPES, Options

PATH = click.Path(path_type=Path)
in_samples = partial(click.option, cls=Section, section="Samples")
in_lights = partial(click.option, cls=Section, section="Lights")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

RANDOM = ("count", "split", "shapes", "materials", "noise", "lights", "clustered", "rings", "intensities", "seed")
EXAMPLES = """
Examples:
  psfcn render -o train/ --count 4000 --size 64 --lights 32 --sheet train.png
  psfcn render -o wide/ --lights 6..96 --clustered 0.25 --rings 0.1 --noise 0.005
  psfcn render -o lcnet/ --intensities --materials measured,ggx --meshes meshes/
  psfcn render -o test/ --test-set --size 128 --meshes meshes/
"""


class Names(click.ParamType):
    """Some of a few names, joined by commas."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(str(value).split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


class Span(click.ParamType):
    """A whole number, or two as in 6..96."""

    name = "A or A..B"

    def __init__(self, least: int, what: str) -> None:
        self.least, self.what = least, what

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, _, high = str(value).partition("..")
        if not (low.isdecimal() and (high or low).isdecimal()):
            self.fail(f"{value!r} is neither a number nor two as in 6..96", param, ctx)
        span = int(low), int(high or low)
        if not self.least <= span[0] <= span[1]:
            self.fail(f"{value!r}: expected at least {self.least} {self.what}, and the larger number last", param, ctx)
        return span


@click.command("render", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@in_samples("--count", type=click.IntRange(1), default=1000, help="How many.")
@in_samples("--size", type=click.IntRange(8, 1024), default=Options.size, help="Pixels along each side.")
@in_samples(
    "--split",
    type=click.Choice(["train", "test"]),
    default=Options.split,
    help="Of the measured materials and the meshes: the 80 and others, or the 20 and two held out.",
)
@in_samples(
    "--shapes",
    type=Names(tuple(SHAPES)),
    metavar="A,B,..",
    help=f"Of {', '.join(SHAPES)}. [default: all but meshes, and those with --meshes]",
)
@in_samples("--meshes", type=PATH, metavar="FOLDER", help="Of .obj, .ply, .stl, .off or .glb files.")
@in_samples(
    "--materials",
    type=Names(MATERIALS),
    default=",".join(Options.materials),
    metavar="A,B,..",
    help="Painted: measured ones with another diffuse colour. Blends: two or three that vary over the surface.",
)
@in_samples("--noise", type=click.FloatRange(0, 1), default=Options.noise, help="Standard deviation, white being 1.")
@in_samples("--test-set", is_flag=True, help="The 60 fixed objects of the test instead; 96 lights each.")
@in_lights("--lights", type=Span(3, "lights"), default=f"{Options.lights[0]}", help="Of each sample.")
@in_lights(
    "--clustered",
    type=click.FloatRange(0, 1),
    default=Options.clustered,
    help="Share of samples whose lights are all within 45 degrees.",
)
@in_lights("--rings", type=click.FloatRange(0, 1), default=Options.rings, help="Share whose lights stand in rings.")
@in_lights("--intensities", is_flag=True, help="Lights of intensity U(0.2, 2) each, instead of 1.")
@in_output("-o", "--output", required=True, type=PATH, help="Folder; what is in it already is not rendered again.")
@in_output(
    "--layout",
    type=click.Choice(["npz", "diligent"]),
    default="npz",
    help="A file each for training, or a folder each with 16-bit PNGs.",
)
@in_output("--sheet", type=PATH, metavar="FILE", help="A .png or .jpg that shows the first 24.")
@in_run("--seed", type=click.IntRange(0), default=0, help="Another one gives other samples.")
@in_run("--workers", type=click.IntRange(1), help="Processes. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print counts as JSON.")
@verbose_option()
def render_command(
    count: int,
    shapes: tuple[str, ...] | None,
    meshes: Path | None,
    test_set: bool,
    output: Path,
    layout: str,
    sheet: Path | None,
    seed: int,
    workers: int | None,
    as_json: bool,
    **drawn: object,
) -> None:
    """Render random objects under many lights, with their true normals, to train and test on.

    Shapes are blobs, solids, height fields, spheres and your meshes; materials are fits of the 100 measured ones of
    MERL, random microfacet ones, and blends. With cast shadows, in 16 bits, the same for the same seed.
    """
    if test_set:
        _check_fixed(click.get_current_context())
    if shapes is None:
        shapes = tuple(shape for shape in SHAPES if shape != "meshes" or meshes)
    elif "meshes" in shapes and not meshes:
        raise click.UsageError("--shapes meshes needs --meshes FOLDER")
    from psfcn.sample_folders import render_folder

    report = render_folder(
        output,
        Options(shapes=shapes, meshes=meshes, **drawn),
        count=count,
        seed=seed,
        layout=layout,
        test_set=test_set,
        workers=workers or os.cpu_count() or 1,
        sheet=sheet,
    )
    if report["held_out"] and not test_set:
        click.echo(f"Held out for tests and left out: {', '.join(report['held_out'])}", err=True)
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"{output}: {report['rendered']} samples rendered, {report['kept']} kept, {report['seconds']:.1f} s")


def _check_fixed(context: click.Context) -> None:
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name in RANDOM and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"the --test-set is fixed but for its --size; leave out {', '.join(given)}")


COMMANDS = (render_command,)
