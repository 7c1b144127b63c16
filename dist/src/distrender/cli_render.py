"""The commands that show a shape: ``dist-render render`` and ``dist-render mesh``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
in_shape = partial(click.option, cls=Section, section="Shape")
in_camera = partial(click.option, cls=Section, section="Camera")
in_picture = partial(click.option, cls=Section, section="Picture")
in_march = partial(click.option, cls=Section, section="Tracing")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

code_option = in_shape("--code", default="0", help="Number or name of a decoder's shape, or a .npy of its code.")
epoch_option = in_shape("--epoch", default="latest", help="Of a DeepSDF experiment's folder.")
grid_option = in_shape("--grid", type=click.IntRange(2), default=160, help="A mesh's samples along each axis.")
threads_option = in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")

RENDER_EXAMPLES = """
Examples:
  dist-render render bunny.obj -o bunny.png
  dist-render render "difference(sphere(0.8), torus(0.75, 0.25))" -o cut.png
  dist-render render bunny.obj --what normal --size 1024 -o normal.png
  dist-render render experiment/ --code 3 --orbit 90 -o turn.mp4
  dist-render render bunny.obj --what depth -o depth.npy
"""


@dataclass(frozen=True)
class View:
    """Where pictures are taken from."""

    size: int = 512  # section 4.1
    distance: float = 2.5
    azimuth: float = 30.0
    elevation: float = 20.0
    orbit: int | None = None


@click.command("render", cls=SectionedCommand, context_settings=SETTINGS, epilog=RENDER_EXAMPLES)
@click.argument("shape")
@code_option
@epoch_option
@grid_option
@in_camera("--size", type=click.IntRange(1), default=View.size, help="Pixels along each side.")
@in_camera("--distance", type=click.FloatRange(0, min_open=True), default=View.distance, help="From the origin.")
@in_camera("--azimuth", type=float, default=View.azimuth, help="Degrees around the y axis, from z towards x.")
@in_camera("--elevation", type=click.FloatRange(-89.9, 89.9), default=View.elevation, help="Degrees above.")
@in_camera("--camera", type=PATH, help="Views of this file instead: cameras.npz, a Middlebury par, our .json.")
@in_camera("--orbit", type=click.IntRange(2), metavar="N", help="N views around the y axis, as a video.")
@in_picture("--what", type=click.Choice(["shaded", "depth", "normal", "silhouette"]), default="shaded", help="To show.")
@in_march("--steps", type=click.IntRange(1), help="Queries on a ray. [default: 50 if plain, else as it takes]")
@in_march("--plain", is_flag=True, help="March as the paper does: no secant finish, and not coarse to fine.")
@in_march(
    "--precision",
    type=click.Choice(["mixed", "float32"]),
    default="mixed",
    help="Of decoders: mixed asks in 16 bits far from the surface, where processors are faster so.",
)
@in_output("-o", "--output", required=True, type=PATH, help="A .png or .jpg; .npy or .exr for depth; .mp4 for --orbit.")
@in_run("--json", "as_json", is_flag=True, help="Print counts as JSON.")
@threads_option
@verbose_option()
def render_command(
    shape: str,
    code: str,
    epoch: str,
    grid: int,
    camera: Path | None,
    what: str,
    steps: int | None,
    plain: bool,
    precision: str,
    output: Path,
    as_json: bool,
    threads: int | None,
    **view: object,
) -> None:
    """Take a picture of SHAPE, or a video around it.

    SHAPE is a mesh (.obj, .ply, .stl, .off, .glb), turned into a grid of signed distances in the unit ball; such a grid
    (.npz); a trained decoder (.safetensors, or a DeepSDF experiment's folder) with a --code; or an expression of
    primitives.
    """
    from distrender import rendering

    if threads:
        import torch

        torch.set_num_threads(threads)
    options = rendering.Options(
        what=what,
        steps=steps,
        plain=plain,
        precision=precision,
        output=output,
        camera=camera,
        **asdict(View(**view)),
    )
    report = rendering.render(shape, options, code=code, epoch=epoch, grid=grid)
    if as_json:
        click.echo(json.dumps(report))
    else:
        missed = f", {report['missed']} rays did not converge" if report["missed"] else ""
        click.echo(
            f"{output}: {report['views']} views, {report['queries']:,} queries, "
            f"{100 * report['covered']:.1f} % covered{missed}, {report['seconds']:.2f} s"
        )


MESH_EXAMPLES = """
Examples:
  dist-render mesh "smooth_union(sphere(0.4), translate(sphere(0.3), 0.4, 0, 0), k=0.1)" -o blob.obj
  dist-render mesh experiment/ --code 3 --resolution 256 -o shape.ply
"""


@click.command("mesh", cls=SectionedCommand, context_settings=SETTINGS, epilog=MESH_EXAMPLES)
@click.argument("shape")
@code_option
@epoch_option
@grid_option
@in_output("--resolution", type=click.IntRange(2), default=128, help="Samples along each axis.")
@in_output("-o", "--output", required=True, type=PATH, help="A .obj, .ply, .stl, .off or .glb.")
@threads_option
@verbose_option()
def mesh_command(
    shape: str, code: str, epoch: str, grid: int, resolution: int, output: Path, threads: int | None
) -> None:
    """Write the surface of SHAPE (see `render`) as a triangle mesh."""
    import torch

    from distrender.meshing import mesh, write_mesh
    from distrender.shape_files import open_shape

    if threads:
        torch.set_num_threads(threads)
    vertices, faces = mesh(open_shape(shape, code, grid, epoch), resolution)
    write_mesh(output, vertices, faces)
    click.echo(f"{output}: {len(vertices):,} vertices, {len(faces):,} faces")


COMMANDS = (render_command, mesh_command)
