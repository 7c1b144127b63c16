"""The command that finds cameras: ``dist-render pose``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from distrender.cli_render import code_option, epoch_option, grid_option, threads_option

PATH = click.Path(path_type=Path)
in_seen = partial(click.option, cls=Section, section="What was seen")
in_camera = partial(click.option, cls=Section, section="Camera to begin with")
in_search = partial(click.option, cls=Section, section="Search")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

POOR = 0.1  # of the score, as 1 - IoU

POSE_EXAMPLES = """
Examples:
  dist-render pose bunny.obj silhouette.png -o pose.json --overlay overlay.png
  dist-render pose bunny.obj depth.png --depth-scale 0.001 --depth-is z --camera camera.json -o pose.json
  dist-render pose procedural depth.npy --code 3 --free scale -o pose.json
  dist-render pose bunny.obj photo.png --azimuth 40 --elevation 10 --near -o pose.json
  dist-render render bunny.obj --camera pose.json -o again.png
"""


@click.command("pose", cls=SectionedCommand, context_settings=SETTINGS, epilog=POSE_EXAMPLES)
@click.argument("shape")
@click.argument("picture", type=PATH)
@code_option
@epoch_option
@grid_option
@in_seen("--mask", metavar="FILE|none", help="Silhouette beside depths; none: depths are no silhouette.")
@in_seen("--normals", type=PATH, help="A picture as `render --what normal` writes it, beside the other.")
@in_seen("--depth-scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Scene units of the file's one.")
@in_seen("--depth-is", type=click.Choice(["ray", "z"]), default="ray", help="Along the ray, or the optical axis.")
@in_camera("--camera", type=PATH, help="Of this file: our .json, cameras.npz, a Middlebury par, COLMAP's text.")
@in_camera("--view", default="0", help="Number or name of the file's view.")
@in_camera("--focal", type=click.FloatRange(0, min_open=True), help="In pixels. [default: 150/137 of the height]")
@in_camera("--distance", type=click.FloatRange(0, min_open=True), default=2.5, help="From the origin.")
@in_camera("--azimuth", type=float, default=30.0, help="Degrees around the y axis, from z towards x.")
@in_camera("--elevation", type=click.FloatRange(-89.9, 89.9), default=20.0, help="Degrees above.")
@in_search("--near", is_flag=True, help="Begin at this camera only, not all around.")
@in_search("--free", multiple=True, type=click.Choice(["focal", "scale"]), help="Look for this too; may be repeated.")
@in_search("--rolls", type=click.IntRange(1), default=1, help="Turns of the picture tried, if up is not known.")
@in_search("--refined", type=click.IntRange(1), help="Starts that are refined. [default: 6, or 3 a roll]")
@in_output("-o", "--output", required=True, type=PATH, help="The camera, a .json that `render --camera` reads.")
@in_output("--overlay", type=PATH, help="A picture of what was given with what was found.")
@in_run("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@threads_option
@verbose_option()
def pose_command(
    shape: str,
    picture: Path,
    code: str,
    epoch: str,
    grid: int,
    near: bool,
    free: tuple[str, ...],
    rolls: int,
    refined: int | None,
    as_json: bool,
    threads: int | None,
    **files: object,
) -> None:
    """Find the camera from which SHAPE looks as in PICTURE.

    SHAPE is what `render` takes. PICTURE is a silhouette (bright or opaque on the shape, or dark on a bright border),
    or depths (.npy, .exr, 16-bit .png). The intrinsics are those of the camera to begin with, unless freed.
    """
    if files["depth_is"] == "z" and "focal" in free:
        raise click.UsageError("--depth-is z needs a known focal length: leave out --free focal")
    import torch

    from distrender import pose_job
    from distrender.pose_search import PoseOptions

    if threads:
        torch.set_num_threads(threads)
    options = PoseOptions(focal="focal" in free, scale="scale" in free, rolls=rolls, refined=refined)
    job = pose_job.JobOptions(search=not near, **files)
    report = pose_job.run(shape, picture, job, options, code=code, epoch=epoch, grid=grid)
    for warning in warnings(report, options.alike):
        click.echo(f"Warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    fit = [f"IoU {report['iou']:.4f}"] if report["iou"] is not None else []
    fit += [f"depth off by {report['depth_error']:.2g}"] if report["depth_error"] is not None else []
    fit += [f"normals by {report['normal_error_degrees']:.2g} degrees"] if report["normal_error_degrees"] else []
    scale = f", scale {report['scale']:.4f}" if "scale" in free else ""
    click.echo(
        f"{job.output}: {', '.join(fit)}; azimuth {report['azimuth']:.2f}, elevation {report['elevation']:.2f}, "
        f"roll {report['roll']:.2f}, distance {report['distance']:.4f}, focal {report['focal']:.1f}{scale}"
    )


def warnings(report: dict, alike: float) -> list[str]:
    """What to doubt about a pose, each in a line."""
    found = []
    if report["score"] > POOR:
        found.append(
            f"poor fit (score {report['score']:.2f}, 0 is perfect): check the shape, its frame and the focal length, "
            "or try --rolls 8 or a larger --refined"
        )
    second = report["second"]
    if second and second["worse_by"] < alike:
        found.append(
            f"ambiguous: azimuth {second['azimuth']:.1f}, elevation {second['elevation']:.1f}, roll "
            f"{second['roll']:.1f} degrees explains the picture nearly as well (worse by {second['worse_by']:.4f})"
        )
    elif report["ambiguous"]:
        found.append(f"ambiguous: a turn by {report['loose_degrees']:.0f} degrees would hardly show in the picture")
    return found


COMMANDS = (pose_command,)
