"""The commands that complete shapes: ``dist-render complete`` and ``dist-render demo``."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
in_input = partial(click.option, cls=Section, section="Input")
in_decoder = partial(click.option, cls=Section, section="Decoder")
in_recipe = partial(click.option, cls=Section, section="Recipe")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

COMPLETE_EXAMPLES = """
Examples:
  dist-render complete depth.png --depth-scale 0.001 --depth-is z --camera camera.json -o shape.ply
  dist-render complete depth.npy --camera camera.json --mask mask.png --keep 50 -o shape.ply
  dist-render complete scan.ply --decoder experiment/ --code code.npy -o shape.obj
  dist-render complete depth.exr --camera camera.json --mask depth --pictures steps/ -o shape.ply
  dist-render render procedural --code code.npy --orbit 90 -o turn.mp4
"""


@click.command("complete", cls=SectionedCommand, context_settings=SETTINGS, epilog=COMPLETE_EXAMPLES)
@click.argument("source", metavar="SEEN", type=PATH)
@in_input("--camera", type=PATH, help="That saw it: our .json, cameras.npz, a Middlebury par, COLMAP's text.")
@in_input("--view", default="0", help="Number or name of the camera file's view.")
@in_input("--mask", metavar="FILE|depth", help="Silhouette, bright on the shape; depth: wherever there is a depth.")
@in_input("--depth-scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Scene units of the file's one.")
@in_input("--depth-is", type=click.Choice(["ray", "z"]), default="ray", help="Along the ray, or the optical axis.")
@in_input("--keep", type=click.IntRange(1), metavar="N", help="Take only N of the depths or points, drawn evenly.")
@in_input("--compare", metavar="SHAPE", help="Say how far the result is from this (see `render`).")
@in_decoder("--decoder", default="procedural", help="The word procedural, a .safetensors, .pth, or DeepSDF's folder.")
@in_decoder("--epoch", default="latest", help="Of a DeepSDF experiment's folder.")
@in_recipe("--recipe", type=click.Choice(["ours", "paper"]), default="ours", help="Where all others begin.")
@in_recipe("--iterations", type=click.IntRange(0), help="Of the renderer. [default: the recipe's]")
@in_recipe("--rate", type=click.FloatRange(0, min_open=True), help="Of Adam. [default: the recipe's]")
@in_recipe("--latent", type=click.FloatRange(0), help="Weight of the code's mean square. [default: the recipe's]")
@in_recipe("--rays", type=click.IntRange(1), help="Of each kind in an iteration. [default: the recipe's]")
@in_recipe("--seed", type=int, default=0, help="Of all that is drawn.")
@in_output("-o", "--output", required=True, type=PATH, help="The mesh: .ply, .obj, .stl, .off or .glb.")
@in_output("--resolution", type=click.IntRange(2), default=128, help="The mesh's samples along each axis.")
@in_output("--code", type=PATH, metavar="FILE.npy", help="Keep the code, for --code of render and mesh.")
@in_output("--pictures", type=PATH, metavar="FOLDER", help="What was seen, and the shape on the way; sheet.png: all.")
@in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the code is looked for.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@verbose_option(cls=Section, section="This run")
def complete_command(
    recipe: str,
    iterations: int | None,
    rate: float | None,
    latent: float | None,
    rays: int | None,
    threads: int | None,
    as_json: bool,
    **files: object,
) -> None:
    """Complete a shape that was SEEN only in part: find the decoder's shape whose rendering agrees.

    SEEN is a depth picture (.png of 16 bits, .npy, .exr; 0 where there is none) with its --camera, or points (.ply,
    .obj, .xyz, .npy), with normals if the file has them and with a --camera if one is known. The shape must lie in the
    decoder's frame: in the unit ball, posed as the decoder's shapes are. It takes seconds to a minute, so there is
    nothing to resume.
    """
    from dataclasses import replace

    from distrender.completion import OURS, PAPER
    from distrender.completion_job import Options, run

    if threads:
        import torch

        torch.set_num_threads(threads)
    given = {"iterations": iterations, "rate": rate, "latent": latent, "rays": rays}
    changes = {name: value for name, value in given.items() if value is not None}
    options = Options(recipe=replace(PAPER if recipe == "paper" else OURS, **changes), **files)
    _show(run(options), options.output, as_json)


DEMO_EXAMPLE = """
Examples:
  dist-render demo -o demo/
  dist-render demo --shape 7 --points 20 --no-mask -o demo/
"""


@click.command("demo", cls=SectionedCommand, context_settings=SETTINGS, epilog=DEMO_EXAMPLE)
@in_input("--shape", type=click.IntRange(0, 49), default=0, help="Which of 50 that no decoder was trained on.")
@in_input("--points", type=click.IntRange(1), default=50, help="Depths that are kept.")
@in_input("--mask/--no-mask", "masked", default=True, help="Whether the silhouette is known.")
@in_input("--azimuth", type=float, default=35.0, help="Of the camera, degrees around the y axis.")
@in_input("--elevation", type=click.FloatRange(-89.9, 89.9), default=25.0, help="Degrees above.")
@in_output("-o", "--output", required=True, type=PATH, help="Folder for pictures, the mesh, and what was seen.")
@in_run("--seed", type=int, default=0, help="Of the depths that are kept.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@verbose_option(cls=Section, section="This run")
def demo_command(threads: int | None, as_json: bool, **choices: object) -> None:
    """Complete a made-up shape from some depths, and say how far it is from the truth. Takes under a minute."""
    from distrender.completion_job import DemoOptions, demo

    if threads:
        import torch

        torch.set_num_threads(threads)
    report, job = demo(DemoOptions(**choices))
    _show(report, job.output, as_json)
    if not as_json:
        known = ["--camera", job.camera, *(["--mask", job.mask] if job.mask else [])]
        again = shlex.join(map(str, ["dist-render", "complete", job.source, *known, "-o", "shape.ply"]))
        click.echo(f"{job.pictures / 'sheet.png'}: what was seen, the shape on the way, and the truth")
        click.echo(f"the same from the files: {again}")


def _show(report: dict, output: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report))
        return
    parts = [f"{report['points']} points", f"{report['iterations']} iterations in {report['seconds']:.1f} s"]
    if "depth" in report:
        parts.append(f"median depth error {report['depth']:.4f}, {100 * report['hit']:.0f} % of the rays hit")
    else:
        parts.append(f"mean distance of the points {report['distance']:.4f}")
    if "iou" in report:
        parts.append(f"silhouette IoU {report['iou']:.3f}")
    if "chamfer_x1000" in report:
        parts.append(f"Chamfer distance x1000 {report['chamfer_x1000']:.3f}")
    click.echo(f"{output}: {', '.join(parts)}")


COMMANDS = (complete_command, demo_command)
