"""Command lines of training: ``rife dataset`` and ``rife train``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand

in_sequences = partial(click.option, cls=Section, section="Sequences")
in_network = partial(click.option, cls=Section, section="Network")
in_recipe = partial(click.option, cls=Section, section="Recipe (the paper's unless given)")
in_run = partial(click.option, cls=Section, section="This run")

DATASET_EXAMPLES = """
Examples:
  rife dataset holiday.mp4 film.mkv frames/ -o triplets/
  rife dataset *.mp4 --length 7 --size 640x360 --stride 3 -o septuplets/
"""
TRAIN_EXAMPLES = """
Examples:
  rife train triplets/ -o run/
  rife train vimeo_septuplet/ --preset rifem --amp -o run_m/
  rife train triplets/ --width-factor 0.25 --steps 20000 --batch 16 --crop 128 -o small/
  rife train triplets/ -o run/ --resume
  rife interp in.mp4 --weights run/best.safetensors
"""


def _size(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, int] | None:
    if text == "full":
        return None
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"expected WIDTHxHEIGHT such as 448x256, or full; got {text}")
    return int(width), int(height)


@click.command("dataset", cls=SectionedCommand, context_settings=SETTINGS, epilog=DATASET_EXAMPLES)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="VIDEO...")
@in_sequences("-o", "--output", required=True, type=click.Path(path_type=Path), help="A new folder.")
@in_sequences("--length", type=click.Choice(["3", "7"]), default="3", help="Frames: 3 for `paper`, 7 for `rifem`.")
@in_sequences(
    "--size", callback=_size, metavar="WxH|full", default="448x256", help="Reduced and cut to this; never enlarged."
)
@in_sequences("--stride", type=click.IntRange(1), help="Frames from one start to the next. [default: the length]")
@in_sequences("--wild", type=float, default=0.15, help="Leave out what moves farther, as a share of the longer side.")
@in_sequences("--test-share", type=float, default=0.05, help="Share kept for validation.")
@in_run("--seed", type=int, default=0, help="Decides what is kept for validation.")
@in_run("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def dataset(videos: tuple[Path, ...], output: Path, length: str, as_json: bool, **options) -> None:
    """Cut training sequences out of each VIDEO, a file or a folder of images.

    Stretches with a cut or a flash, with repeated frames or with motion too wide to learn from are left
    out. The result has the layout of Vimeo90K: DIR/sequences/00001/0001/im1.png and lists of names.
    """
    from rife.dataset import Options, make_dataset  # late: --help must answer at once, without PyTorch

    summary = make_dataset(list(videos), output, Options(length=int(length), **options))
    if as_json:
        click.echo(json.dumps(vars(summary), indent=2))
        return
    for name, counts in summary.inputs.items():
        click.echo(f"{name}: " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    click.echo(f"{output}: {summary.train} sequences for training, {summary.test} for validation")


@click.command("train", cls=SectionedCommand, context_settings=SETTINGS, epilog=TRAIN_EXAMPLES)
@click.argument("data", type=click.Path(path_type=Path), metavar="DIR")
@in_network(
    "--preset", type=click.Choice(["paper", "rifem"]), default="paper", help="rifem: any time, from septuplets."
)
@in_network("--width-factor", type=float, help="All channels times this. [default: 1]")
@in_recipe("--epochs", type=int, help="Passes over the data. [default: 300]")
@in_recipe("--steps", type=int, help="The length in steps instead.")
@in_recipe("--batch", type=int, help="Sequences a step, over all processes. [default: 64]")
@in_recipe("--crop", type=int, help="Side of the crops in pixels. [default: 224]")
@in_recipe("--augment/--no-augment", default=None, help="Random crops, mirrored, turned, reversed. [default: augment]")
@in_recipe("--learning-rate", type=float, help="The highest. [default: 3e-4]")
@in_recipe("--final-learning-rate", type=float, help="At the end of the cosine. [default: 3e-6]")
@in_recipe("--warmup", type=int, help="Steps; at most a tenth of the run. [default: 2000]")
@in_recipe("--weight-decay", type=float, help="Of AdamW. [default: 1e-3]")
@in_recipe("--distill", type=float, help="Weight of the distillation. [default: 0.01, rifem 0.005]")
@in_recipe("--amp", is_flag=True, help="Convolutions in bfloat16.")
@in_recipe("--validate-every", type=int, help="Steps. [default: a pass over the data, at least 100]")
@in_recipe("--seed", type=int, help="Of weights, order and augmentation. [default: 0]")
@in_run(
    "-o", "--output", "run", type=click.Path(path_type=Path), default="run", help="Folder for all that comes of it."
)
@in_run("--resume", is_flag=True, help="Go on from the checkpoint there; the other options must be the same.")
@in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the network runs.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--workers", type=click.IntRange(0), default=4, help="Processes that read images.")
@in_run("--json", "as_json", is_flag=True, help="Print the last figures as JSON.")
def train(
    data: Path,
    preset: str,
    run: Path,
    resume: bool,
    device: str,
    threads: int | None,
    workers: int,
    as_json: bool,
    **changes,
) -> None:
    """Train a network on DIR, a data set in the layout of Vimeo90K (`rife dataset` makes one).

    The run's folder gets checkpoint.pt, best.safetensors and last.safetensors, metrics.jsonl, curves.png,
    and TensorBoard's files where it is installed. Ctrl-C saves before it stops. The same under torchrun
    (torchrun --nproc-per-node 4 -m rife train DIR) shares each batch among several GPUs.
    """
    import torch

    from rife import training

    if threads:
        torch.set_num_threads(threads)
    config = training.recipe(preset, **changes)
    command = shlex.join(["rife", *sys.argv[1:]])
    figures = training.train(config, data, run, device=device, workers=workers, resume=resume, command=command)
    if int(os.environ.get("RANK", "0")):  # one of torchrun's processes, and not the one that speaks
        return
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(
        f"{run}: step {figures['step']}, PSNR {figures['val_psnr']:.2f} dB (best {figures['best']:.2f}; "
        f"mean of both frames {figures['val_average']:.2f}), {figures['seconds']:.0f} s"
    )
