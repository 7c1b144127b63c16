"""The commands that turn one file of a network into another: ``addernet convert``, ``export`` and ``quantize``."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand

from addernet.cli_study import (
    PATH,
    device_option,
    in_data,
    threads_option,
    torch_device,
    verbose_option,
    weights_option,
)
from addernet.cli_train import ARCHITECTURES

in_network = partial(click.option, cls=Section, section="Network")
in_output = partial(click.option, cls=Section, section="Output")
arch_option = in_network(
    "--arch", type=click.Choice(ARCHITECTURES), metavar="NAME", help="What it is. [default: seen from the file]"
)

CONVERT_EXAMPLES = """
Examples:
  addernet convert ResNet20-AdderNet.pth -o resnet20.safetensors
  addernet convert run/model.safetensors -o for-the-released-code.pth
  addernet convert resnet50-0676ba61.pth --from-conv --arch resnet50 -o start.safetensors
"""


@click.command("convert", cls=SectionedCommand, context_settings=SETTINGS, epilog=CONVERT_EXAMPLES)
@click.argument("source", type=PATH)
@in_network("--from-conv", is_flag=True, help="SOURCE is a convolutional ResNet of torchvision or timm.")
@arch_option
@in_network("--classes", type=click.IntRange(1), help="[default: as many as the file has]")
@in_network("--op", type=click.Choice(["adder", "conv"]), help="Where the file does not say it.")
@in_output("-o", "--output", required=True, type=PATH, help="A .safetensors, or a .pth for the released code.")
@verbose_option
def convert_command(
    source: Path, from_conv: bool, arch: str | None, classes: int | None, op: str | None, output: Path
) -> None:
    """Bring the weights of SOURCE into another form.

    From the released code's .pth into ours and back, or, with --from-conv, from a convolutional network into
    an adder network that starts where it ended: to be trained on, since it does not classify yet.
    """
    if from_conv and (arch is None or op == "conv"):
        raise click.UsageError("--from-conv makes adder networks, and needs the --arch of the network in the file")
    from addernet import checkpoints

    if from_conv:
        model, about = checkpoints.from_conv(source, arch, classes), {}
    else:
        model = checkpoints.load(source, arch, classes, op=op)
        about = model.metadata
    checkpoints.save(model, output, {**about, "command": _command()})
    click.echo(f"{output}: {model.config.arch} {model.config.op}, {model.config.classes} classes")


EXPORT_EXAMPLES = """
Examples:
  addernet export -o resnet20.onnx
  addernet export --weights run/model.safetensors -o run/model.pt2
"""


@click.command("export", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXPORT_EXAMPLES)
@weights_option
@in_network("--size", type=click.IntRange(1), help="Side of the images in pixels. [default: as trained]")
@in_output("-o", "--output", required=True, type=PATH, help="A .onnx (plain operators), or a .pt2 of PyTorch.")
@verbose_option
def export_command(weights: Path | None, size: int | None, output: Path) -> None:
    """Write a network for other programs."""
    from addernet import checkpoints
    from addernet.export import export

    model = checkpoints.load(weights or checkpoints.default_weights())
    export(model, output, size or model.config.input_size)
    click.echo(f"{output}: {model.config.arch} {model.config.op}, {output.stat().st_size / 1e6:.2f} MB")


QUANTIZE_EXAMPLES = """
Examples:
  addernet quantize cifar-10-batches-py/ -o int8.safetensors
  addernet eval cifar-10-batches-py/ --weights int8.safetensors
"""


@click.command("quantize", cls=SectionedCommand, context_settings=SETTINGS, epilog=QUANTIZE_EXAMPLES)
@click.argument("data", type=PATH)
@in_data("--images", type=click.IntRange(1), default=256, help="Training images that the ranges are measured on.")
@weights_option
@in_output("-o", "--output", required=True, type=PATH, help="A .safetensors.")
@device_option
@threads_option
@verbose_option
def quantize_command(
    data: Path, images: int, weights: Path | None, output: Path, device: str, threads: int | None
) -> None:
    """Turn a network's adder layers into whole-number arithmetic on bytes.

    The range of each layer's bytes is measured on some training images of DATA, which is what
    `addernet train` takes.
    """
    place = torch_device(device, threads)
    from addernet import quantization
    from addernet.evaluation import images_of, network

    model = network(weights).to(place)
    model = quantization.quantize(model, images_of(data, model, images))
    quantization.save(model, output, {"command": _command()})
    click.echo(f"{output}: {model.config.arch} int8, {output.stat().st_size / 1e6:.2f} MB")


def _command() -> str:
    return shlex.join(["addernet", *sys.argv[1:]])


COMMANDS = (convert_command, export_command, quantize_command)
