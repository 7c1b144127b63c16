"""``psfcn calibrate``: light directions and intensities from photographs of a ball, or of anything by LCNet."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
MODES = ("chrome", "matt", "lcnet")  # psfcn.calibration_run.MODES; a test compares them
LIGHT_FILES = (".txt", ".lp", ".yml", ".yaml", ".xml")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
in_data = partial(click.option, cls=Section, section="Photographs")
in_method = partial(click.option, cls=Section, section="Method")
in_output = partial(click.option, cls=Section, section="Output")

EXAMPLES = """
Examples:
  psfcn calibrate chrome/ -o lights.txt --sheet found.png
  psfcn calibrate chrome.txt --mask ball.png -o lights.lp
  psfcn calibrate chrome/ --compare lights_of_last_week.txt
  psfcn calibrate gray/ --mode matt --lights lights.txt
  psfcn calibrate cat/ --mode lcnet --weights lcnet.safetensors
"""


@click.command("calibrate", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("images", type=PATH)
@in_data(
    "--mask", type=PATH, help="Picture of the ball or balls in white. [default: the folder's, or one ball is found]"
)
@in_data("--gamma", default="linear", help="What the images are encoded with: linear, srgb, or a power such as 2.2.")
@in_method("--mode", type=click.Choice(MODES), default="chrome", help="Mirror ball, matt grey ball, or any object.")
@in_method("--lights", type=PATH, help="With matt: these directions are known, find the intensities only.")
@in_method("--weights", type=PATH, help="Of LCNet, .safetensors or a released .pth. [default: those that ship]")
@in_output("-o", "--output", type=PATH, default=Path("lights.txt"), help="Directions: .txt, .lp, or OpenCV's .yml.")
@in_output("--intensities", type=PATH, help="Of matt and lcnet. [default: light_intensities.txt beside the output]")
@in_output("--sheet", type=PATH, help="A picture of the ball under each light with what was found on it.")
@in_output("--compare", type=PATH, metavar="FILE", help="Print each light's angle to that of another light file.")
@in_output("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@verbose_option()
def calibrate_command(
    images: Path,
    mask: Path | None,
    gamma: str,
    mode: str,
    lights: Path | None,
    weights: Path | None,
    output: Path,
    intensities: Path | None,
    sheet: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Find where the lights stood, from photographs of a chrome ball under each of them.

    IMAGES is a folder, a text file that lists the images, or an .lp file, as for predict; the lights come in the
    images' order. A mask with several balls gives their mean directions. A matt white or grey ball tells the lights'
    intensities as well (relative ones, their mean is 1), and so does LCNet, from photographs of any object.
    """
    if lights and mode != "matt":
        raise click.UsageError("--lights is for --mode matt; to see how far off a file is, pass it to --compare")
    if weights and mode != "lcnet":
        raise click.UsageError("--weights is for --mode lcnet; leave it out")
    if intensities and mode == "chrome":
        raise click.UsageError("a chrome ball tells no intensities; leave --intensities out, or use a matt ball")
    _ends_with("--output", output, LIGHT_FILES)
    _ends_with("--intensities", intensities, (".txt",))
    _ends_with("--sheet", sheet, PICTURES)
    from papershelf.errors import UserError
    from papershelf.images import write_image

    from psfcn import calibration_run
    from psfcn.light_files import write_lights, write_text

    if mode != "chrome":
        intensities = intensities or output.with_name("light_intensities.txt")
    for file in filter(None, (output, intensities, sheet)):  # before the work, and so that all are written or none
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: there is no folder {file.parent}; make it first")
    options = calibration_run.Options(images, mode, mask, gamma, lights, weights)
    calibration = calibration_run.calibrate(options)
    angles = None if compare is None else calibration_run.angles_to(calibration, compare)
    found, names = calibration.found, calibration.names
    picture = None
    if sheet:
        from psfcn.calibration_sheet import sheet as drawn

        picture = drawn(calibration, gamma)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    written = []
    if lights is None:
        write_lights(output, found.directions, names)
        written.append(output)
    if intensities:
        write_text(intensities, [" ".join(f"{value:.6g}" for value in row) for row in found.intensities])
        written.append(intensities)
    if picture is not None:
        write_image(sheet, picture)
        written.append(sheet)
    if as_json:
        click.echo(json.dumps(_report(calibration, mode, angles, written)))
        return
    if angles is not None:
        width = max(map(len, names))
        for k, (name, light, angle) in enumerate(zip(names, found.directions, angles, strict=True), 1):
            numbers = " ".join(f"{number:7.4f}" for number in light)
            click.echo(f"{k:3}  {name:{width}}  {numbers}  {angle:5.2f} degrees")
        click.echo(
            f"to {compare}: mean {angles.mean():.2f}, largest {angles.max():.2f} degrees ({names[angles.argmax()]})"
        )
    click.echo(f"{', '.join(map(str, written))}: {len(names)} lights{_about_balls(calibration)}")


def _ends_with(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path and path.suffix.lower() not in suffixes:
        raise click.BadParameter(f"{path} must end in one of {', '.join(suffixes)}", param_hint=option)


def _about_balls(calibration) -> str:
    balls, spread = calibration.balls, calibration.found.spread
    if not balls:
        return " as LCNet sees them"
    radii = ", ".join(f"{ball.radius:.1f}" for ball in balls)
    if len(balls) == 1:
        return f" from a ball of radius {radii} pixels"
    return f" from {len(balls)} balls of radius {radii} pixels, each within {spread.max():.2f} degrees of their mean"


def _report(calibration, mode: str, angles, written: list[Path]) -> dict:
    found = calibration.found
    rows = []
    for k, name in enumerate(calibration.names):
        row = {"name": name, "direction": [round(float(x), 8) for x in found.directions[k]]}
        if len(calibration.balls) > 1:
            row["spread_degrees"] = round(float(found.spread[k]), 4)
        if found.intensities is not None:
            row["intensity"] = [round(float(x), 6) for x in found.intensities[k]]
        if angles is not None:
            row["angle_degrees"] = round(float(angles[k]), 4)
        rows.append(row)
    balls = [{"x": round(b.x, 3), "y": round(b.y, 3), "radius": round(b.radius, 3)} for b in calibration.balls]
    return {
        "mode": mode,
        "files": [str(file) for file in written],
        "balls": balls,
        "lights": rows,
        "notes": found.notes,
    }


COMMANDS = (calibrate_command,)
