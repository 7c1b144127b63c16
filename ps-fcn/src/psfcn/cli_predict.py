"""``psfcn predict``: photographs to normals, and to what can be made of them."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
KIND = "psfcn-n"  # that ships
METHODS = ("auto", "psfcn", "robust", "ls", "trimmed", "l1", "sbl")
in_data = partial(click.option, cls=Section, section="Photographs and lights")
in_method = partial(click.option, cls=Section, section="Method")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  psfcn predict imgs/ lights.txt
  psfcn predict cat.txt lights.txt --mask mask.png -o cat/ --depth --mesh ply
  psfcn predict dome.lp --method robust
  psfcn predict ballPNG/ --method ls -o ball/
"""


@click.command("predict", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("images", type=PATH)
@click.argument("lights", type=PATH, required=False)
@in_data("--mask", type=PATH, help="Picture of the object in white. [default: the folder's, or a proposed one]")
@in_data("--intensities", type=PATH, help="Light intensities, r g b a line. [default: light_intensities.txt, if there]")
@in_data("--gamma", default="linear", help="What the images are encoded with: linear, srgb, or a power such as 2.2.")
@in_data("--flip-lights", default="", metavar="AXES", help="Turn the sign of these axes of the lights, such as y.")
@in_data("--uncalibrated", is_flag=True, help="Find the lights in the photographs (LCNet).")
@in_method(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    help="Auto: network and robust, by what each explains; the network alone where lights are found.",
)
@in_method("--weights", type=PATH, help="Of PS-FCN, .safetensors or a released .pth. [default: those that ship]")
@in_method("--lcnet", type=PATH, help="Weights of LCNet for --uncalibrated. [default: those that ship]")
@in_method("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Of the network.")
@in_output("-o", "--output", type=PATH, default=Path("result"), help="Folder for the results.")
@in_output("--depth", is_flag=True, help="Integrate the normals: depth.npy and depth.png.")
@in_output("--mesh", type=click.Choice(["ply", "obj"]), help="Write a mesh of the depth.")
@in_output("--focal", type=click.FloatRange(0, min_open=True), help="Pixels, for depth in perspective.")
@in_output("--smooth", is_flag=True, help="Integrate without looking for jumps of the depth.")
@in_run("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the network computes.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@verbose_option()
def predict_command(
    images: Path,
    lights: Path | None,
    mask: Path | None,
    intensities: Path | None,
    gamma: str,
    flip_lights: str,
    uncalibrated: bool,
    method: str,
    weights: Path | None,
    lcnet: Path | None,
    precision: str,
    output: Path,
    depth: bool,
    mesh: str | None,
    focal: float | None,
    smooth: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn photographs of one object under different lights into a map of its normals.

    IMAGES is a folder, a text file that lists the images, or an .lp file; LIGHTS a file with a direction `x y z` a line
    (x right, y up, z to the viewer), for folders that hold none. What looks wrong with them is said, and what to do.
    """
    if uncalibrated and lights:
        raise click.UsageError("--uncalibrated finds the lights itself; leave LIGHTS or --uncalibrated out")
    if lcnet and not uncalibrated:
        raise click.UsageError("--lcnet is for --uncalibrated; add it, or leave --lcnet out")
    if weights and method not in ("auto", "psfcn"):
        raise click.UsageError(f"--weights is for the methods auto and psfcn, not {method}; leave it out")
    import torch
    from papershelf.devices import device_named

    from psfcn import captures, checkpoints, estimation, result_files
    from psfcn.angles import mean_degrees
    from psfcn.integration import Perspective
    from psfcn.light_files import write_lights, write_text

    if threads:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    place = device_named(device)
    network = network_for(method, weights)
    options = captures.ReadOptions(
        lights=lights, intensities=intensities, mask=mask, gamma=gamma, flip_lights=flip_lights
    )
    capture = captures.read(images, options)
    for note in capture.notes:
        click.echo(f"note: {note}", err=True)
    strengths = None
    if uncalibrated:
        finder = checkpoints.load(lcnet or checkpoints.default_weights("lcnet"), "lcnet")
        capture, strengths = estimation.find_lights(capture, finder)
    found = estimation.estimate(
        capture,
        method,
        network,
        lights_found=uncalibrated,
        precision=precision,
        device=place,
        progress=_progress(),
    )
    if found.worse:
        click.echo(
            f"note: robust least squares explains {100 * found.worse:.0f} % of the object so much better than the "
            "network that its normals count for more there",
            err=True,
        )
    written = result_files.write_maps(output, capture, found, images.resolve().name)
    if depth or mesh:
        height, width = capture.mask.shape
        camera = Perspective(focal, (width / 2, height / 2)) if focal else None
        suffix = f".{mesh}" if mesh else None
        written += result_files.write_surface(output, suffix, capture, found, camera, jumps=not smooth)
    if strengths is not None:
        write_lights(output / "lights.txt", capture.lights)
        write_text(output / "light_intensities.txt", [f"{s:.6g}" for s in strengths])
        written += [output / "lights.txt", output / "light_intensities.txt"]
    inside = capture.mask
    report = {
        "output": str(output),
        "files": [file.name for file in written],
        "images": len(capture.images),
        "size": list(inside.shape),
        "pixels": int(inside.sum()),
        "method": method,
        "network": round(found.learnt, 4),
        "confidence": round(float(found.confidence[inside].mean()), 4),
        "seconds": round(time.perf_counter() - start, 3),
        "notes": list(capture.notes),
    }
    if capture.normals is not None and capture.normals.any():
        report["error_degrees"] = round(mean_degrees(found.normals, capture.normals, inside), 4)
    if as_json:
        click.echo(json.dumps(report))
        return
    error = f", {report['error_degrees']:.2f} degrees off the true normals" if "error_degrees" in report else ""
    click.echo(
        f"{output}: normals of {report['pixels']:,} pixels from {report['images']} images, mean confidence "
        f"{report['confidence']:.2f}{error}, {report['seconds']:.1f} s"
    )


def network_for(method: str, weights: Path | None):
    """The network that the method takes, None if none."""
    from papershelf.errors import UserError

    from psfcn import checkpoints
    from psfcn.networks import PSFCN

    if method not in ("auto", "psfcn"):
        return None
    network = checkpoints.load(weights or checkpoints.default_weights(KIND))
    if not isinstance(network, PSFCN):
        raise UserError(f"{weights} holds LCNet, which finds lights; give it by --lcnet, and PS-FCN's by --weights")
    return network


def _progress():
    """A bar of the network's tiles, which is there once the first is done."""
    from tqdm import tqdm

    bar = None

    def update(done: int, of: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=of, unit="tile", file=sys.stderr, disable=None)
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return update


COMMANDS = (predict_command,)
