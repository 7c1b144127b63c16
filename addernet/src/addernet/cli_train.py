"""The command line of training: ``addernet train``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

# addernet.architectures.ARCHITECTURES, which --help need not load PyTorch for; a test compares them.
ARCHITECTURES = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
ARCHITECTURES += ("resnet18", "resnet34", "resnet50", "resnet101", "vgg-small", "lenet")

in_data = partial(click.option, cls=Section, section="Data")
in_network = partial(click.option, cls=Section, section="Network")
in_recipe = partial(click.option, cls=Section, section="Recipe (the paper's unless given)")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  addernet train cifar-10-batches-py/ -o run/
  addernet train cifar-10-batches-py/ --op conv -o twin/
  addernet train --arch resnet50 --data imagenet/ --amp bfloat16 --workers 16
  addernet train cifar-10-batches-py/ -o run/ --resume
  addernet eval cifar-10-batches-py/ --weights run/model.safetensors
"""


@click.command("train", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@click.argument("data", required=False, type=click.Path(path_type=Path))
@in_data("--data", "data_option", type=click.Path(path_type=Path), metavar="DATA", help="Another way to name DATA.")
@in_data("--limit", type=int, help="Take at most so many images of each part, for a trial.")
@in_network(
    "--arch", type=click.Choice(ARCHITECTURES), default="resnet20", metavar="NAME", help=", ".join(ARCHITECTURES)
)
@in_network("--op", type=click.Choice(["adder", "conv"]), default="adder", help="conv: the same with convolutions.")
@in_network(
    "--from-conv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from torchvision's or timm's weights of the same residual network.",
)
@in_recipe("--epochs", type=int, help="Passes over the data. [default: 400; ImageNet's networks 150, lenet 50]")
@in_recipe("--batch", type=int, help="Images a step, over all processes. [default: 256]")
@in_recipe("--lr", type=float, help="The highest learning rate. [default: 0.1]")
@in_recipe("--momentum", type=float, help="Of SGD. [default: 0.9]")
@in_recipe("--nesterov/--no-nesterov", default=None, help="Nesterov's momentum. [default: for lenet only]")
@in_recipe("--weight-decay", type=float, help="[default: 5e-4; ImageNet's networks 1e-4]")
@in_recipe("--eta", type=float, help="Of the adder layers' local learning rate. [default: 0.2]")
@in_recipe("--augment/--no-augment", default=None, help="Random crops, mirrored. [default: augment]")
@in_recipe("--cutout", type=int, metavar="PIXELS", help="Erase a square of this side. [default: none]")
@in_recipe("--amp", type=click.Choice(["off", "bfloat16", "float16"]), help="Precision of convolutions. [default: off]")
@in_recipe("--ema", type=float, metavar="DECAY", help="Test and keep averaged weights, such as 0.999. [default: off]")
@in_recipe("--accumulate", type=int, metavar="PARTS", help="Compute each batch in parts, to save memory. [default: 1]")
@in_recipe("--seed", type=int, help="Of weights, order and augmentation. [default: 0]")
@in_run(
    "-o", "--output", "run", type=click.Path(path_type=Path), default="run", help="Folder for all that comes of it."
)
@in_run("--resume", is_flag=True, help="Go on from the state saved there; the other options must be the same.")
@in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the network runs.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--workers", type=click.IntRange(0), default=4, help="Processes that read photographs.")
@in_run("--json", "as_json", is_flag=True, help="Print the last figures as JSON.")
@verbose_option(cls=Section, section="This run")
def train(
    data: Path | None,
    data_option: Path | None,
    arch: str,
    from_conv: Path | None,
    run: Path,
    resume: bool,
    device: str,
    threads: int | None,
    workers: int,
    as_json: bool,
    **changes,
) -> None:
    """Train a network on the images of DATA.

    DATA is a folder of CIFAR-10 or CIFAR-100 as it unpacks (Python or binary version), or train/CLASS/*.jpg
    and test/CLASS/*.jpg (or val) in a folder or, if the images are small, in a tar.

    The run's folder gets last.pt, model.safetensors, metrics.jsonl, curves.png, and TensorBoard's files
    where it is installed. Ctrl-C saves before it stops. The same under torchrun (torchrun
    --nproc-per-node 4 -m addernet train DATA) shares each batch among several GPUs.
    """
    if (data is None) == (data_option is None):
        raise click.UsageError("name the data set once: addernet train DATA, or addernet train --data DATA")
    import torch  # late: --help must answer at once, without PyTorch

    from addernet.recipes import recipe
    from addernet.training import train as run_training

    if threads:
        torch.set_num_threads(threads)
    figures = run_training(
        recipe(arch, **changes),
        data or data_option,
        run,
        device=device,
        workers=workers,
        resume=resume,
        from_conv=from_conv,
        command=shlex.join(["addernet", *sys.argv[1:]]),
    )
    if int(os.environ.get("RANK", "0")):  # one of torchrun's processes, and not the one that speaks
        return
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(
        f"{run}: epoch {figures['epoch']}, test accuracy {figures['test_accuracy']:.2f}% "
        f"(training {figures['train_accuracy']:.2f}%), loss {figures['test_loss']:.4f}"
    )
