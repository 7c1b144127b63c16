"""The command that reconstructs a shape from views: ``dist-render fit``."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
in_views = partial(click.option, cls=Section, section="Views")
in_shape = partial(click.option, cls=Section, section="Shape")
in_recipe = partial(click.option, cls=Section, section="Recipe")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  dist-render fit dinoSR_par.txt dino_sparse_ring/ -o dino/
  dist-render fit cameras.npz image/ --masks mask/ --resolution 192 -o run/
  dist-render fit sparse/ photos/ --silhouettes-only --format obj -o run/
  dist-render fit cameras.json renders/ --decoder procedural -o run/
  dist-render fit dinoSR_par.txt dino_sparse_ring/ -o dino/ --resume
"""


@click.command("fit", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("cameras", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGES...")
@in_views("--masks", type=PATH, help="Folder of silhouettes, bright on the shape, named as the pictures.")
@in_views("--threshold", type=click.FloatRange(0, 1), help="Of a silhouette against a uniform background. [found]")
@in_views("--faults", type=click.IntRange(0), help="Views that may lack one dark part. [a fifth if found, else none]")
@in_views("--centre", type=(float, float, float), metavar="X Y Z", help="Of the ball that holds the scene. [found]")
@in_views("--radius", type=click.FloatRange(0, min_open=True), help="Of that ball, in the cameras' units. [found]")
@in_shape("--decoder", help="Fit a code: the word procedural, a .safetensors, .pth, or DeepSDF's folder.")
@in_shape("--resolution", type=click.IntRange(8), default=128, help="Samples along each axis of the grid and mesh.")
@in_shape("--format", "ending", type=click.Choice(["ply", "obj"]), default="ply", help="Of the meshes.")
@in_recipe("--silhouettes-only", is_flag=True, help="Leave out what the images show within the outlines.")
@in_recipe("--compare", type=click.Choice(["ncc", "l1"]), default="ncc", help="Images, by patches or pixels (paper).")
@in_recipe("--steps", type=click.IntRange(1), help="For silhouettes: of each grid, or of the code. [150; 200]")
@in_recipe("--image-steps", type=click.IntRange(0), help="For images. [default: 450]")
@in_recipe("--rate", type=click.FloatRange(0, min_open=True), help="Of Adam. [0.1 of the grid's step; code 1e-2]")
@in_recipe("--photometric", type=click.FloatRange(0), default=5.0, help="Weight of the images (section 4.4).")
@in_recipe("--area", type=click.FloatRange(0), default=0.15, help="Weight of a grid's surface area.")
@in_recipe("--laplacian", type=click.FloatRange(0), default=0.01, help="Weight of a grid's roughness.")
@in_recipe("--seed", type=int, default=0, help="Of all that is drawn.")
@in_run("-o", "--output", "run", required=True, type=PATH, help="Folder for all that comes of it.")
@in_run("--every", type=click.IntRange(0), default=100, help="Steps between overlays; 0: at the end only.")
@in_run("--resume", is_flag=True, help="Go on from the state saved there; the other options must be the same.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbose_option(cls=Section, section="This run")
def fit_command(
    cameras: Path,
    images: tuple[Path, ...],
    masks: Path | None,
    threshold: float | None,
    faults: int | None,
    centre: tuple[float, float, float] | None,
    radius: float | None,
    decoder: str | None,
    ending: str,
    silhouettes_only: bool,
    steps: int | None,
    image_steps: int | None,
    rate: float | None,
    run: Path,
    every: int,
    resume: bool,
    threads: int | None,
    as_json: bool,
    **recipe: object,
) -> None:
    """Reconstruct a shape from posed pictures of it: from their silhouettes, and from what they show within.

    CAMERAS is a Middlebury par, IDR's cameras.npz, COLMAP's text model (its folder) or our .json; IMAGES are the
    pictures or a folder of them, named as the cameras are or in their order. Silhouettes are given (--masks), the
    alpha channel, or what differs from a uniform background.

    The run's folder gets the mesh (in the cameras' world coordinates), the grid or code, an overlay picture of
    every view, report.json and metrics.jsonl. Ctrl-C saves before it stops.
    """
    import torch

    from distrender import posed_images
    from distrender.fit_plan import FitConfig
    from distrender.fit_run import Scene, fit

    if threads:
        torch.set_num_threads(threads)
    given = {
        "code_steps" if decoder else "steps": steps,
        "code_rate" if decoder else "rate": rate,
        "image_steps": 0 if silhouettes_only else image_steps,
    }
    views = posed_images.load(cameras, images, masks, threshold)
    given["faults"] = len(views.masks) // 5 if faults is None and views.found else faults
    config = FitConfig(**recipe, **{name: value for name, value in given.items() if value is not None})
    click.echo(views.note, err=True)
    scene = Scene.of(views, centre, radius, decoder=decoder is not None)
    report = fit(
        scene,
        config,
        run,
        decoder=decoder,
        ending=f".{ending}",
        every=every,
        resume=resume,
        command=shlex.join(["dist-render", *sys.argv[1:]]),
    )
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    iou, hull = report["iou"]["shape"], report["iou"]["hull"]
    click.echo(
        f"{report['mesh']}: silhouette IoU of {len(report['views'])} views median {iou['median']:.4f}, least "
        f"{iou['min']:.4f} (visual hull {hull['median']:.4f}, {hull['min']:.4f}), {report['steps']} steps in "
        f"{report['seconds']:.0f} s"
    )


COMMANDS = (fit_command,)
