"""The command line of training: ``psfcn train``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

from psfcn.cli_render import PATH, Span

NETWORKS = ("psfcn", "psfcn-n", "upsfcn", "lcnet")  # psfcn.recipes.NETWORKS; a test compares them

in_data = partial(click.option, cls=Section, section="Data")
in_recipe = partial(click.option, cls=Section, section="Recipe (the paper's unless given)")
in_wider = partial(click.option, cls=Section, section="Beyond the paper (off unless given)")
in_budget = partial(click.option, cls=Section, section="Budget in place of epochs")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  psfcn train psfcn-n --generate 200 --minutes 3 --batch 8 --lights 6..16 --crop 24 -o trial/
  psfcn render -o train/ --count 8000 --size 64 --lights 32 --clustered 0.15 --rings 0.1
  psfcn train psfcn-n --data train/ --minutes 120 --batch 8 --lights 6..16 --crop 24..32 --turn --amp bfloat16
  psfcn train psfcn-n --data train/ --resume --minutes 240 --batch 8 --lights 6..16 --crop 24..32 --turn --amp bfloat16
  psfcn train psfcn-n --data train/ --lcnet lights/model.safetensors --batch 8 -o uncalibrated/
  torchrun --nproc-per-node 4 -m psfcn train lcnet --data train/ --workers 8 --amp bfloat16 -o lights/
"""


@click.command("train", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("network", type=click.Choice(NETWORKS))
@in_data("--data", type=PATH, metavar="FOLDER", help="Samples of `psfcn render` (.npz, --split train).")
@in_data("--generate", type=click.IntRange(1), metavar="COUNT", help="Render so many into the run's folder first.")
@in_data("--meshes", type=PATH, metavar="FOLDER", help="Meshes for what is rendered here, beside random shapes.")
@in_data(
    "--validation",
    type=PATH,
    metavar="FOLDER",
    help="Samples to test on (--split test). [default: 24, rendered into the run's folder]",
)
@in_data(
    "--lcnet",
    type=PATH,
    metavar="WEIGHTS",
    help="Lights as LCNet finds them, as the uncalibrated chain of the paper. [default: the true ones]",
)
@in_recipe("--epochs", type=int, help="Passes over the data; the network is tested after each. [default: 30; lcnet 20]")
@in_recipe("--batch", type=int, help="Objects a step, over all processes. [default: 32]")
@in_recipe("--lr", type=float, help="Adam's rate at the start. [default: 1e-3; lcnet 5e-4]")
@in_recipe("--halve-every", type=int, metavar="EPOCHS", help="When the rate is halved. [default: 5]")
@in_recipe("--lights", type=Span(3, "lights"), help="Of each object; two numbers: drawn for each batch. [default: 32]")
@in_recipe("--crop", type=Span(8, "pixels"), help="Side of crops, likewise; a multiple of 4. [default: 32]")
@in_recipe("--side", type=Span(8, "pixels"), help="Of the rescaled images they are taken from. [default: 32..128]")
@in_recipe("--noise", type=float, help="Uniform, where images are in [0, 1]. [default: 0.025]")
@in_recipe("--colour/--no-colour", default=None, help="Random colours. [default: for all but psfcn-n]")
@in_recipe("--seed", type=int, help="Of weights, order and augmentation. [default: 0]")
@in_wider("--turn", is_flag=True, default=None, help="Turn objects by quarters, and mirror them.")
@in_wider("--gain", type=float, help="Errors of the lights' intensities: standard deviation, such as 0.02.")
@in_wider("--aim", type=float, metavar="DEGREES", help="Errors of the lights' directions, such as 0.5.")
@in_wider("--amp", type=click.Choice(["off", "bfloat16"]), help="Precision of convolutions.")
@in_wider("--from", "start", type=PATH, metavar="WEIGHTS", help="Begin with these, not with random ones.")
@in_budget("--steps", type=int, help="Stop after so many; tests as many times as there are --epochs.")
@in_budget("--minutes", type=float, help="Stop after so much time; likewise.")
@in_budget("--schedule", type=click.Choice(["halving", "cosine"]), help="Of the rate. [default: cosine, with a budget]")
@in_run("-o", "--output", "run", type=PATH, default="run", help="Folder for all that comes of it.")
@in_run("--resume", is_flag=True, help="Go on from there. Only epochs, budget and rate may differ: larger, it goes on.")
@in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the network runs.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--workers", type=click.IntRange(0), default=0, help="Processes that read samples.")
@in_run("--json", "as_json", is_flag=True, help="Print the last figures as JSON.")
@verbose_option(cls=Section, section="This run")
def train_command(
    network: str,
    data: Path | None,
    generate: int | None,
    meshes: Path | None,
    validation: Path | None,
    lcnet: Path | None,
    start: Path | None,
    run: Path,
    resume: bool,
    device: str,
    threads: int | None,
    workers: int,
    as_json: bool,
    **changes: object,
) -> None:
    """Train NETWORK (psfcn, psfcn-n, upsfcn for unknown lights, or lcnet that finds lights) on rendered objects.

    The run's folder gets last.pt (to go on from), model.safetensors (the best so far, in half precision),
    metrics.jsonl, curves.png, and TensorBoard's files where it is installed. Ctrl-C saves before it stops. The same
    under torchrun shares each batch among several GPUs.
    """
    if (data is None) == (generate is None):
        raise click.UsageError("name the samples with --data FOLDER, or have them made with --generate COUNT")
    if generate and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError("--generate is for one process; run psfcn render first, then torchrun with --data")
    if lcnet and network == "lcnet":
        raise click.UsageError("--lcnet is for psfcn, psfcn-n and upsfcn; LCNet itself learns from the true lights")
    if start and resume:
        raise click.UsageError("--resume goes on from the run's own weights; leave out --from")
    import torch  # late: --help must answer at once, without PyTorch

    from psfcn.recipes import recipe
    from psfcn.training import train

    if threads:
        torch.set_num_threads(threads)
    config = recipe(network, **changes)
    if generate:
        from psfcn.training_sets import training_set

        data = run / "train"
        training_set(data, config, generate, meshes)
    figures = train(
        config,
        data,
        run,
        validation=validation,
        meshes=meshes,
        device=device,
        workers=workers,
        resume=resume,
        start=start,
        lcnet=lcnet,
        command=shlex.join(["psfcn", *sys.argv[1:]]),
    )
    if int(os.environ.get("RANK", "0")):  # one of torchrun's processes, and not the one that speaks
        return
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        click.echo(f"{run}: {summary(figures)}")


def summary(figures: dict[str, float]) -> str:
    """A run's last figures in a line."""
    if "direction" in figures:
        return (
            f"step {figures['step']}, lights {figures['direction']:.2f} degrees off, "
            f"intensities {figures['intensity']:.3f} (on held-out materials and shapes)"
        )
    return (
        f"step {figures['step']}, mean error {figures['mae_few']:.2f} degrees with few lights (least squares "
        f"{figures['least_squares_mae_few']:.2f}, trimmed {figures['trimmed_mae_few']:.2f}), {figures['mae_all']:.2f} "
        f"with all ({figures['least_squares_mae_all']:.2f}, {figures['trimmed_mae_all']:.2f})"
    )


COMMANDS = (train_command,)
