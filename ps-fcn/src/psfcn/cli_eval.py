"""``psfcn eval``: normals against the true ones, on DiLiGenT, on other data sets, and on rendered objects."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from psfcn.cli_predict import METHODS, PATH, network_for
from psfcn.cli_render import Names

LEARNT = ("psfcn", "auto")
CLASSICAL = ("robust", "ls", "trimmed")
RESULTS = "results.json"
NARROWEST = 80  # columns of a table
MOST_NOTES = 12  # shown
in_data = partial(click.option, cls=Section, section="Images")
in_method = partial(click.option, cls=Section, section="Methods")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  psfcn eval DiLiGenT/pmsData -o results/
  psfcn eval DiLiGenT/ --objects ball,cat --lights 10 --method auto,ls
  psfcn eval DiLiGenT/ --uncalibrated --method psfcn,auto
  psfcn render -o test/ --test-set --size 64 && psfcn eval test/ --lights 32
"""


@click.command("eval", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("folders", metavar="FOLDER..", nargs=-1, required=True, type=PATH)
@in_data("--objects", metavar="A,B,..", help="Only these. [default: all]")
@in_data("--lights", type=click.IntRange(1), help="How many images of each object, chosen by --seed. [default: all]")
@in_data("--skip-damaged", is_flag=True, help="Leave out the first 20 images of DiLiGenT's bear.")
@in_data("--gamma", default="linear", help="What the images are encoded with: linear, srgb, or a power such as 2.2.")
@in_data("--flip-lights", default="", metavar="AXES", help="Turn the sign of these axes of the lights, such as y.")
@in_data("--uncalibrated", is_flag=True, help="Find the lights in the images (LCNet), and measure them.")
@in_method(
    "--method",
    "methods",
    type=Names(METHODS),
    metavar="A,B,..",
    help=f"Of {', '.join(METHODS)}. [default: {', '.join(LEARNT + CLASSICAL)}]",
)
@in_method("--weights", type=PATH, help="Of PS-FCN, .safetensors or a released .pth. [default: those that ship]")
@in_method("--lcnet", type=PATH, help="Weights of LCNet for --uncalibrated. [default: those that ship]")
@in_method("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Of the network.")
@in_output("-o", "--output", type=PATH, help="Folder for a sheet and maps of the error of each object, and results.")
@in_output("--published/--no-published", default=True, help="Others' figures for DiLiGenT's objects, below ours.")
@in_output("--json", "as_json", is_flag=True, help="Print results.json instead of tables.")
@in_run("--seed", type=click.IntRange(0), default=0, help="Another one chooses other --lights.")
@in_run("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the network computes.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@verbose_option()
def eval_command(
    folders: tuple[Path, ...],
    objects: str | None,
    lights: int | None,
    skip_damaged: bool,
    gamma: str,
    flip_lights: str,
    uncalibrated: bool,
    methods: tuple[str, ...] | None,
    weights: Path | None,
    lcnet: Path | None,
    precision: str,
    output: Path | None,
    published: bool,
    as_json: bool,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Measure methods on objects whose normals are known: mean angular error in degrees, object by object.

    FOLDER is DiLiGenT (pmsData or its parent), a folder with objects.txt, one of `psfcn render` (either layout), or one
    object's. The truth is Normal_gt.mat, or normal.png; where it is zero nothing is measured.
    """
    if lcnet and not uncalibrated:
        raise click.UsageError("--lcnet is for --uncalibrated; add it, or leave --lcnet out")
    if weights and methods and not set(methods) & set(LEARNT):
        raise click.UsageError("--weights is for the methods psfcn and auto; add one, or leave --weights out")
    import torch
    from papershelf.devices import device_named
    from papershelf.errors import UserError
    from papershelf.files import atomic_path
    from papershelf.images import write_image
    from tqdm import tqdm

    from psfcn import checkpoints, evaluation, evaluation_pictures, evaluation_sets
    from psfcn.captures import ReadOptions
    from psfcn.published import OBJECTS

    if threads:
        torch.set_num_threads(threads)
    place = device_named(device)
    methods = tuple(dict.fromkeys(methods or LEARNT + CLASSICAL))
    wanted = next((method for method in LEARNT if method in methods), None)
    network = network_for(wanted, weights) if wanted else None
    finder = checkpoints.load(lcnet or checkpoints.default_weights("lcnet"), "lcnet") if uncalibrated else None
    options = ReadOptions(gamma=gamma, flip_lights=flip_lights)
    entries = evaluation_sets.find(folders, [name for name in (objects or "").split(",") if name])
    if output:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {output}: {error.strerror}; choose another by -o") from error

    settings = {
        "lights": lights,
        "seed": seed,
        "gamma": gamma,
        "flip_lights": flip_lights,
        "uncalibrated": uncalibrated,
        "precision": precision,
        "device": str(place),
        "network": network.metadata if network else None,
        "lcnet": finder.metadata if finder else None,
    }
    outcomes, described, diligent = {}, {}, []
    with tqdm(total=len(entries) * len(methods), unit="method", file=sys.stderr, disable=None) as bar:
        for entry in entries:
            bar.set_description(entry.name)
            try:
                subject = evaluation_sets.load(entry, lights, seed, skip_damaged=skip_damaged, options=options)
                outcome = evaluation.evaluate(
                    subject,
                    methods,
                    network,
                    finder,
                    precision=precision,
                    device=place,
                    progress=lambda _: bar.update(),
                )
            except UserError as error:
                raise UserError(f"{entry.name}: {error}") from error
            if subject.diligent and entry.name in OBJECTS:
                diligent.append(entry.name)
            pictures = {}
            if output:
                stem = entry.name.replace("/", "_")
                pictures = evaluation_pictures.pictures(entry.name, subject, outcome)
                pictures = {f"{stem}_{kind}.png": picture for kind, picture in pictures.items()}
                for name, picture in pictures.items():
                    write_image(output / name, picture)
            outcomes[entry.name] = replace(outcome, normals={}, errors={})  # maps of all objects would fill the memory
            described[entry.name] = _described(entry.path, subject, outcome, [*pictures])
            report = _report(settings, described, evaluation.averages(outcomes), diligent if published else [])
            if output:  # after each object: a run that is broken off leaves what it has
                with atomic_path(output / RESULTS) as part:
                    part.write_text(json.dumps(report, indent=1) + "\n")
    _say(described)
    if as_json:
        click.echo(json.dumps(report))
        return
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    click.echo(evaluation.tables(outcomes, diligent if published else [], lights=lights, width=width))
    if output:
        click.echo(f"\n{output}: {RESULTS}, and a sheet and maps of the errors of each object")


def _described(path: Path, subject, outcome, files: list[str]) -> dict:
    described = {
        "path": str(path),
        "images": len(subject.capture.images),
        "pixels": int(subject.measured.sum()),
        "pixels_without_truth": int(subject.capture.mask.sum() - subject.measured.sum()),
        "degrees": {method: round(mean, 4) for method, mean in outcome.means.items()},
        "notes": list(subject.notes),
    }
    if outcome.lights:
        described["lights"] = {kind: round(value, 5) for kind, value in outcome.lights.items()}
    return described | ({"files": files} if files else {})


def _report(settings: dict, described: dict[str, dict], averages: dict[str, float], diligent: list[str]) -> dict:
    from psfcn import published

    report = {
        "settings": settings,
        "objects": described,
        "average": {method: round(mean, 4) for method, mean in averages.items()},
    }
    lights = [one["lights"] for one in described.values() if "lights" in one]
    if lights:
        report["average_lights"] = {
            kind: round(sum(one[kind] for one in lights) / len(lights), 5) for kind in ("direction", "intensity")
        }
    rows = published.rows(diligent, settings["lights"])
    if rows:
        report["published"] = {
            "source": published.SOURCE,
            "degrees": {label: cells for label, cells, _ in rows},
            "average": {label: round(average, 4) for label, _, average in rows},
        }
    return report


def _say(described: dict[str, dict]) -> None:
    """Each note once, with the objects that it is about."""
    about: dict[str, list[str]] = {}
    for name, one in described.items():
        for note in one["notes"]:
            about.setdefault(note, []).append(name)
    for note, names in [*about.items()][:MOST_NOTES]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        click.echo(f"note: {', '.join(names[:3])}{more}: {note}", err=True)
    if len(about) > MOST_NOTES:
        click.echo(f"note: {len(about) - MOST_NOTES} notes more, in {RESULTS} and --json", err=True)


COMMANDS = (eval_command,)
