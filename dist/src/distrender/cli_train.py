"""The command line of training: ``dist-render train``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PATH = click.Path(path_type=Path)
in_data = partial(click.option, cls=Section, section="Data")
in_network = partial(click.option, cls=Section, section="Network")
in_recipe = partial(click.option, cls=Section, section="Recipe (DeepSDF's unless given)")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  dist-render train meshes/ -o run/
  dist-render train procedural --shapes 60 --latent 32 --hidden 128 --layers 4 --skip 2 --steps 2000 -o run/
  dist-render train deepsdf/data/ --split sv2_sofas_train.json -o run/
  dist-render train meshes/ -o run/ --resume
  dist-render render run/model.safetensors --code 3 -o shape.png
"""


@click.command("train", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("source", metavar="SOURCE")
@in_data("--shapes", type=click.IntRange(1), help="Take at most so many. [default: all; of procedural 360]")
@in_data("--split", type=PATH, help="DeepSDF's JSON file of which shapes to take.")
@in_data("--samples", type=click.IntRange(2), help="Points of each shape, in memory. [default: 100000]")
@in_network("--latent", type=click.IntRange(1), help="Numbers in a code. [default: 256]")
@in_network("--hidden", type=click.IntRange(1), help="Numbers in a hidden layer. [default: 512]")
@in_network("--layers", type=click.IntRange(1), help="Hidden layers. [default: 8]")
@in_network("--skip", type=click.IntRange(0), help="Layer that sees code and point again; 0 for none. [default: 4]")
@in_recipe("--epochs", type=click.IntRange(1), help="Times that each shape is met. [default: 2000]")
@in_recipe("--steps", type=click.IntRange(1), help="Steps in all, instead of epochs.")
@in_recipe("--batch", type=click.IntRange(1), help="Shapes a step, over all processes. [default: 64]")
@in_recipe("--points", type=click.IntRange(2), help="Samples of each shape a step. [default: 16384]")
@in_recipe("--lr", type=float, help="Highest learning rate of the network. [default: 5e-4]")
@in_recipe("--code-lr", type=float, help="Highest learning rate of the codes. [default: 1e-3]")
@in_recipe("--clamp", type=float, help="Distance beyond which only the sign counts. [default: 0.1]")
@in_recipe("--code-weight", type=float, help="Of the codes' squared norms. [default: 1e-4]")
@in_recipe("--code-std", type=float, help="Of the codes at the beginning. [default: 0.01]")
@in_recipe("--eikonal", type=float, help="Weight of (|gradient| - 1)^2 near surfaces. [default: 0]")
@in_recipe("--bfloat16", type=float, help="Share of the steps, the first ones, in bfloat16. [default: 0]")
@in_recipe("--seed", type=click.IntRange(0), help="Of codes, weights, samples and order. [default: 0]")
@in_run("-o", "--output", "run", type=PATH, default="run", help="Folder for all that comes of it.")
@in_run("--resume", is_flag=True, help="Go on from the state saved there; the other options must be the same.")
@in_run("--half", is_flag=True, help="Keep the weights in half precision.")
@in_run("--save-every", type=click.FloatRange(0), default=240.0, help="Seconds between saved states and pictures.")
@in_run("--shown", type=click.IntRange(0), default=6, help="Shapes on a picture; 0 for none.")
@in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the network runs.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--workers", type=click.IntRange(0), help="Processes that prepare samples. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print the last figures as JSON.")
@verbose_option(cls=Section, section="This run")
def train(
    source: str,
    shapes: int | None,
    split: Path | None,
    run: Path,
    threads: int | None,
    workers: int | None,
    as_json: bool,
    resume: bool,
    half: bool,
    save_every: float,
    shown: int,
    device: str,
    **recipe: object,
) -> None:
    """Train a decoder and a code for each shape of SOURCE, as DeepSDF does.

    SOURCE is a folder of meshes (.obj, .ply, .stl, .off, .glb, in folders of their own or not), brought into the unit
    ball and sampled first; or DeepSDF's data folder with ready SdfSamples; or the word procedural: mugs, vases,
    chairs, bottles, tables and bowls of our own.

    The run's folder gets model.safetensors (network and codes, written anew every few minutes), last.pt,
    metrics.jsonl, curves.png, pictures of some shapes, and the samples. Ctrl-C saves before it stops. The same
    under torchrun (torchrun --nproc-per-node 4 -m distrender train SOURCE) shares each step among processes.
    """
    import torch  # late: --help must answer at once, without PyTorch

    from distrender.autodecoder import TrainingOptions
    from distrender.training import RunOptions
    from distrender.training import train as run_training

    if threads:
        torch.set_num_threads(threads)
    settings = RunOptions(
        device=device,
        workers=(os.cpu_count() or 1) if workers is None else workers,
        resume=resume,
        half=half,
        shown=shown,
        save_every=save_every,
        command=shlex.join(["dist-render", *sys.argv[1:]]),
    )
    given = {name: value for name, value in recipe.items() if value is not None}
    figures = run_training(TrainingOptions(**given), source, run, settings, split=split, shapes=shapes)
    if int(os.environ.get("RANK", "0")):  # one of torchrun's processes, and not the one that speaks
        return
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(
        f"{run}: {figures['shapes']} shapes, step {figures['step']}, loss {figures['loss']:.5f}, near surfaces off by "
        f"{figures['surface_error']:.5f}, gradient {figures['gradient']:.3f}"
    )


COMMANDS = (train,)
