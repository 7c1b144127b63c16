"""The commands that look closely: ``rife eval``, ``compare``, ``flow``, ``probe`` and ``bench``."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand
from papershelf.help_pages import verbose_option as verbose

PATH = click.Path(path_type=Path)

in_data = partial(click.option, cls=Section, section="Data")
in_picture = partial(click.option, cls=Section, section="Picture")
in_network = partial(click.option, cls=Section, section="Networks")
in_output = partial(click.option, cls=Section, section="Output")
in_run = partial(click.option, cls=Section, section="This run")


verbose_option = verbose(cls=Section, section="This run")
mode_option = in_network(
    "--mode", type=click.Choice(["fast", "balanced", "best"]), default="balanced", help="As for rife interp."
)
weights_option = in_network(
    "--weights",
    type=click.Path(exists=True, path_type=Path),
    envvar="RIFE_INTERP_WEIGHTS",
    show_envvar=True,
    help="Use this checkpoint instead of a mode's.",
)
scale_option = in_network(
    "--scale",
    type=click.Choice(["0.25", "0.5", "1", "2"]),
    default="1",
    help="Resolution at which motion is estimated; 0.5 for 4K.",
)
precision_option = in_network(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Of the convolutions; auto: float16 on a GPU, float32 on a CPU.",
)
device_option = in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the networks run.")
threads_option = in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
json_option = in_run("--json", "as_json", is_flag=True, help="Print the result as JSON.")

EVAL_EXAMPLES = """
Examples:
  rife eval vimeo_triplet/ --mode best
  rife eval snu-film/test-hard.txt --limit 20 --each
  rife eval in.mp4 --drop 4 --weights my.safetensors --json
"""


@click.command("eval", cls=SectionedCommand, context_settings=SETTINGS, epilog=EVAL_EXAMPLES)
@click.argument("data", type=PATH)
@in_data(
    "--drop", type=click.IntRange(2), metavar="N", help="Of a video, frames or HD clips keep every Nth. [default: 2]"
)
@in_data("--limit", type=click.IntRange(1), metavar="N", help="Take only N pairs of each part.")
@mode_option
@weights_option
@in_network("--ensemble", is_flag=True, help="With --weights: average with swapped inputs.")
@scale_option
@precision_option
@in_run("--each", is_flag=True, help="A line for every frame, not only the means.")
@device_option
@threads_option
@json_option
@verbose_option
def evaluate_command(data: Path, drop: int | None, limit: int | None, each: bool, as_json: bool, **networks) -> None:
    """Measure how well frames of DATA that were taken away are restored: PSNR, SSIM.

    DATA is Vimeo90K, UCF101, SNU-FILM (or one of its lists), Middlebury-Other, XVFI's X-TEST or the HD
    clips, as their authors lay them out; or any video, or a folder of frames, of which every second
    frame is kept. The paper's figures stand beside where it has any: they are for its own model.
    """
    interpolator, names = _interpolator(**networks)
    from rife.benchmarks import open_data_set
    from rife.evaluation import evaluate

    result = evaluate(open_data_set(data, drop, limit), interpolator(), names)
    click.echo(json.dumps(result.as_json(), indent=2) if as_json else result.table(each))


COMPARE_EXAMPLES = """
Examples:
  rife compare in.mp4 in_60fps.mp4
  rife compare before.mp4 after.mp4 --wipe --labels 24 60 -o wipe.mp4
"""


@click.command("compare", cls=SectionedCommand, context_settings=SETTINGS, epilog=COMPARE_EXAMPLES)
@click.argument("first", metavar="A", type=PATH)
@click.argument("second", metavar="B", type=PATH)
@in_picture("--wipe", is_flag=True, help="One picture with a moving line, A at its left, instead of two.")
@in_picture("--period", type=click.FloatRange(0.1), default=4.0, help="Seconds the line takes to and fro.")
@in_picture("--labels", nargs=2, metavar="TEXT TEXT", help='Words on the two; "" for none. [default: the file names]')
@in_picture("--height", type=click.IntRange(16), help="Of the pictures. [default: the larger one's]")
@in_picture("--input-fps", metavar="RATE", help="Rate of inputs that are folders of images; 24 unless given.")
@in_output("-o", "--output", type=PATH, help="Video file. [default: A_vs_B beside A]")
@in_output("-y", "--overwrite", is_flag=True, help="Replace the output file if it exists.")
@in_output("--codec", type=click.Choice(["h264", "hevc", "av1", "vp9", "prores", "ffv1"]), help="As for rife interp.")
@in_output("--crf", type=float, help="Quality: lower is better and larger.")
@in_output("--preset", metavar="NAME", help="The encoder's speed preset, such as veryfast or slow.")
@json_option
@verbose_option
def compare_command(codec: str | None, crf: float | None, preset: str | None, as_json: bool, **options) -> None:
    """Show A and B, two videos or folders of frames, beside each other in one video.

    They run from their own first frames, at the faster one's rate; the shorter one's last frame stays to
    the end. The sound is A's.
    """
    from rife.compare import CompareOptions, write_comparison
    from rife.encoder import EncodeOptions

    made = write_comparison(CompareOptions(**options, encode=EncodeOptions(codec, crf, preset)))
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    rate = f"{float(Fraction(made['fps'])):.6g}"
    line = f"{made['output']}: {made['frames']} frames of {made['width']}x{made['height']} at {rate} fps"
    click.echo(_with_notes(line, made))


FLOW_EXAMPLES = """
Examples:
  rife flow frame1.png frame2.png -o flow.png
  rife flow frame1.png frame2.png --sheet
  rife flow in.mp4 -o flow.mp4 --max 40
  rife flow frame1.png frame2.png -o motion.flo
"""


@click.command("flow", cls=SectionedCommand, context_settings=SETTINGS, epilog=FLOW_EXAMPLES)
@click.argument("first", metavar="A", type=PATH)
@click.argument("second", metavar="[B]", type=PATH, required=False)
@in_picture(
    "--field",
    type=click.Choice(["motion", "to-a", "to-b"]),
    default="motion",
    help="motion: the way from A to B; to-a, to-b: from the new frame to either.",
)
@in_picture("--at", type=click.FloatRange(0, 1), default=0.5, help="Time of the new frame: 0 is A, 1 is B.")
@in_picture(
    "--max",
    "longest",
    type=click.FloatRange(0, min_open=True),
    metavar="PIXELS",
    help="Motion that has full colour. [default: the longest; in a video a 20th of the width]",
)
@in_picture("--sheet", is_flag=True, help="A, the new frame, B, both flows and the mask in one picture.")
@in_picture("--input-fps", metavar="RATE", help="Rate of a folder of images; 24 unless given.")
@in_output("-o", "--output", type=PATH, help="Image, .flo, video or folder. [default: A_flow beside A]")
@in_output("-y", "--overwrite", is_flag=True, help="Replace the output file if it exists.")
@in_network(
    "--mode", type=click.Choice(["fast", "balanced"]), default="balanced", help="As for rife interp: v4.6 or v4.0."
)
@weights_option
@scale_option
@device_option
@threads_option
@json_option
@verbose_option
def flow_command(scale: str, threads: int | None, as_json: bool, **options) -> None:
    """Show the motion between images A and B, or in a video or folder A, as colours.

    The hue is the direction (right red, down yellow, left cyan, up violet), the saturation the speed. A
    .flo file is coloured without a network.
    """
    from rife.flow_pictures import FlowOptions, write_flow

    _use_threads(threads)
    made = write_flow(FlowOptions(**options, scale=float(scale)))
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    line = f"{made['output']}: {made['pictures']} pictures, longest motion {made['longest']:.1f} pixels"
    click.echo(_with_notes(line, made))


PROBE_EXAMPLES = """
Example:
  rife probe in.mp4
"""


@click.command("probe", cls=SectionedCommand, context_settings=SETTINGS, epilog=PROBE_EXAMPLES)
@click.argument("input", type=PATH)
@in_run("--whole", is_flag=True, help="Read the time stamps of all frames, not of the first 3000.")
@json_option
@verbose_option
def probe_command(input: Path, whole: bool, as_json: bool) -> None:
    """Say what is seen in INPUT, a video or a folder of images: size, rates, colours, other streams.

    What the file does not state and had to be assumed is marked so.
    """
    from rife.probe import described, facts_of

    facts = facts_of(input, whole=whole)
    click.echo(json.dumps(facts, indent=2) if as_json else described(facts))


BENCH_EXAMPLES = """
Examples:
  rife bench
  rife bench --mode fast --size 720p --seconds 120 --json
"""


@click.command("bench", cls=SectionedCommand, context_settings=SETTINGS, epilog=BENCH_EXAMPLES)
@in_data(
    "--size",
    "sizes",
    type=click.Choice(["360p", "720p", "1080p"]),
    multiple=True,
    default=["360p", "720p", "1080p"],
    help="Frame size; may be repeated.",
)
@in_network(
    "--mode",
    "modes",
    type=click.Choice(["fast", "balanced", "best"]),
    multiple=True,
    default=["fast", "balanced"],
    help="May be repeated.",
)
@weights_option
@precision_option
@in_run("--seconds", type=click.FloatRange(1), default=50.0, help="About how long it may take; the rest is left out.")
@device_option
@threads_option
@json_option
@verbose_option
def bench_command(
    sizes: tuple[str, ...],
    modes: tuple[str, ...],
    weights: Path | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    **where,
) -> None:
    """Measure how many new frames a second this machine makes, beside the same networks in plain PyTorch.

    The pictures are random and move; decoding and encoding are not in it.
    """
    from rife.speed import measure

    _use_threads(threads)
    report = measure(list(modes), list(sizes), weights_file=weights, budget=seconds, **where)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.table())


def _interpolator(
    mode: str,
    weights: Path | None,
    ensemble: bool,
    scale: str,
    precision: str,
    device: str,
    threads: int | None,
):
    """What makes the networks once the data is known to be good, and what to call them."""
    from papershelf.errors import UserError

    from rife.interpolator import Interpolator, members

    if ensemble and not weights:
        raise UserError("--ensemble goes with --weights; for the modes' own networks use --mode best")
    _use_threads(threads)
    where = {"device": device, "scale": float(scale), "precision": precision}
    if weights:
        name = f"{weights.name}{', ensemble' * ensemble}"
        return partial(Interpolator.from_file, weights, ensemble=ensemble, **where), name
    return partial(Interpolator.from_mode, mode, **where), f"{mode} ({', '.join(m.weights for m in members(mode))})"


def _use_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _with_notes(line: str, made: dict) -> str:
    return "\n".join([line, *(f"note: {note}" for note in made.get("notes", []))])


COMMANDS = (evaluate_command, compare_command, flow_command, probe_command, bench_command)
