"""The commands that look at networks: ``addernet eval``, ``predict``, ``count`` and ``bench``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand
from papershelf.help_pages import verbose_option as verbose

from addernet.cli_train import ARCHITECTURES

PATH = click.Path(path_type=Path)

in_data = partial(click.option, cls=Section, section="Data")
in_network = partial(click.option, cls=Section, section="Network")
in_run = partial(click.option, cls=Section, section="This run")

verbose_option = verbose(cls=Section, section="This run")
weights_option = in_network(
    "--weights",
    type=PATH,
    envvar="ADDERNET_WEIGHTS",
    show_envvar=True,
    help="A file of `addernet train` or `quantize`, or a released .pth. [default: the shipped ResNet-20]",
)
device_option = in_run("--device", default="auto", metavar="auto|cpu|cuda", help="Where the network runs.")
threads_option = in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
json_option = in_run("--json", "as_json", is_flag=True, help="Print the result as JSON.")

EVAL_EXAMPLES = """
Examples:
  addernet eval cifar-10-batches-py/
  addernet eval imagenet/ --weights run/model.safetensors --workers 16 --json
"""


@click.command("eval", cls=SectionedCommand, context_settings=SETTINGS, epilog=EVAL_EXAMPLES)
@click.argument("data", type=PATH)
@in_data("--limit", type=click.IntRange(1), metavar="N", help="Take at most N images.")
@weights_option
@in_network(
    "--amp", type=click.Choice(["off", "bfloat16", "float16"]), default="off", help="Precision of convolutions."
)
@in_run("--batch", type=click.IntRange(1), default=250, help="Images at once.")
@in_run("--workers", type=click.IntRange(0), default=4, help="Processes that read photographs.")
@device_option
@threads_option
@json_option
@verbose_option
def evaluate_command(data: Path, device: str, threads: int | None, as_json: bool, **options) -> None:
    """Test a network on the test images of DATA: how many it names rightly.

    DATA is what `addernet train` takes; only its part for testing is read. Images are shifted and scaled as
    the network was trained, and classes are matched by their names where the weights' file has them.
    """
    place = torch_device(device, threads)
    from papershelf.processes import Place

    from addernet.evaluation import evaluate

    result = evaluate(data, place=Place(place), **options)
    click.echo(json.dumps(result.as_json(), indent=2) if as_json else result.table())


PREDICT_EXAMPLES = """
Examples:
  addernet predict cat.jpg
  addernet predict photos/*.jpg --weights run/model.safetensors --top 1 --json
"""


@click.command("predict", cls=SectionedCommand, context_settings=SETTINGS, epilog=PREDICT_EXAMPLES)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@in_data("--top", type=click.IntRange(1), default=5, help="Classes to show of each image.")
@weights_option
@device_option
@threads_option
@json_option
@verbose_option
def predict_command(
    images: tuple[Path, ...], top: int, weights: Path | None, device: str, threads: int | None, as_json: bool
) -> None:
    """Say what is on each IMAGE, of any size: the likeliest classes and their probabilities."""
    place = torch_device(device, threads)
    from addernet.prediction import predict

    found = list(predict(images, weights, place, top))
    if as_json:
        rows = [{"image": p.path, "classes": dict(zip(p.classes, p.probabilities, strict=True))} for p in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for prediction in found:
        rows = zip(prediction.classes, prediction.probabilities, strict=True)
        click.echo(f"{prediction.path}: " + ", ".join(f"{name} {share:.1%}" for name, share in rows))


COUNT_EXAMPLES = """
Examples:
  addernet count
  addernet count resnet18 resnet50 --layers
  addernet count vgg-small --classes 100 --json
"""


@click.command("count", cls=SectionedCommand, context_settings=SETTINGS, epilog=COUNT_EXAMPLES)
@click.argument("architectures", nargs=-1, type=click.Choice(ARCHITECTURES), metavar="[NAME]...")
@in_network("--op", type=click.Choice(["both", "adder", "conv"]), default="both", help="Of which layers.")
@in_network("--classes", type=click.IntRange(1), help="Outputs. [default: 10; ImageNet's networks 1000]")
@in_network("--size", type=click.IntRange(1), help="Side of the image in pixels. [default: 32; ImageNet's 224]")
@in_run("--layers", is_flag=True, help="A line for every layer too.")
@json_option
@verbose_option
def count_command(
    architectures: tuple[str, ...], op: str, classes: int | None, size: int | None, layers: bool, as_json: bool
) -> None:
    """Count additions, multiplications, parameters and energy of networks, ResNet-20 unless NAMEd."""
    import torch

    from addernet.architectures import IMAGENET, build
    from addernet.counting import as_json as json_of
    from addernet.counting import as_table, count

    counts = {}
    for name in architectures or ("resnet20",):
        for kind in ("adder", "conv") if op == "both" else (op,):
            with torch.device("meta"):
                outputs = classes or (1000 if name in IMAGENET else 10)
                model = build(name, op=kind, classes=outputs, input_size=size)
            counts[f"{name} {kind}"] = count(model, model.config.input_size)
    if as_json:
        click.echo(json.dumps({name: json.loads(json_of(counted)) for name, counted in counts.items()}, indent=2))
        return
    click.echo(as_table(counts, layers=layers))


BENCH_EXAMPLES = """
Examples:
  addernet bench
  addernet bench --layers 64-64-56x56 --layers 256-256-14x14 --threads 8 --json
"""


@click.command("bench", cls=SectionedCommand, context_settings=SETTINGS, epilog=BENCH_EXAMPLES)
@in_network("--layers", multiple=True, metavar="C-O-HxW", help="Layers to time. [default: those of the README]")
@in_run("--threads", type=click.IntRange(1), default=1, help="CPU threads.")
@in_run("--seconds", type=click.FloatRange(0, min_open=True), default=1.0, help="To spend on each measurement.")
@json_option
@verbose_option
def bench_command(layers: tuple[str, ...], threads: int, seconds: float, as_json: bool) -> None:
    """Time our adder layer, an ordinary convolution, and adders in plain PyTorch, on this machine."""
    from addernet import speed

    click.echo(speed.run(layers, threads, seconds, as_json))


def torch_device(name: str, threads: int | None):
    """The ``torch.device`` of a name, after the number of threads was set."""
    import torch
    from papershelf.devices import device_named

    if threads:
        torch.set_num_threads(threads)
    return device_named(name)


COMMANDS = (evaluate_command, predict_command, count_command, bench_command)
