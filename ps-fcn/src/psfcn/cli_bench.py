"""``psfcn bench``: how long a prediction takes here, beside PyTorch's convolutions alone."""

from __future__ import annotations

from functools import partial

import click
from papershelf.help_pages import SETTINGS, Section, SectionedCommand, verbose_option

PRECISIONS = ("float32", "bfloat16")
in_measured = partial(click.option, cls=Section, section="What is measured")
in_run = partial(click.option, cls=Section, section="This run")

EXAMPLES = """
Examples:
  psfcn bench
  psfcn bench --size 128 --images 8 --threads 1
  psfcn bench --precision bfloat16 --json
"""


def _precisions(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(word.strip() for word in value.split(",")))
    if unknown := [word for word in named if word not in PRECISIONS]:
        raise click.BadParameter(f"expected some of {', '.join(PRECISIONS)}, got {unknown[0]!r}", ctx, param)
    return named


@click.command("bench", cls=SectionedCommand, context_settings=SETTINGS, epilog=EXAMPLES)
@in_measured("--size", type=click.IntRange(1), default=256, help="Pixels along each side of the photographs.")
@in_measured("--images", type=click.IntRange(1), default=32, help="Photographs.")
@in_measured(
    "--precision", default=",".join(PRECISIONS), callback=_precisions, help="Of the convolutions, one or both."
)
@in_measured("--memory/--no-memory", default=True, help="Measure the memory with 8 and with 96 photographs (CPU).")
@in_run("--rounds", type=click.IntRange(2), default=3, help="Turns of each; the median of their times is shown.")
@in_run("--cpu-time", is_flag=True, help="Count the processor's seconds, for --threads 1 on a machine that others use.")
@in_run("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", help="Where to compute.")
@in_run("--threads", type=click.IntRange(1), help="CPU threads. [default: one per core]")
@in_run("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@verbose_option()
def bench_command(
    size: int,
    images: int,
    precision: tuple[str, ...],
    memory: bool,
    rounds: int,
    cpu_time: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how long the network takes for photographs of an object that fills them.

    Beside it, turn by turn in the same run: PyTorch's convolutions of the same layers and nothing else, and the
    published forward in plain PyTorch. Weights and photographs are random. Takes a few minutes at the default size.
    """
    import torch
    from papershelf.devices import device_named

    from psfcn import speed

    if threads:
        torch.set_num_threads(threads)
    report = speed.measure(
        size, images, precision, device=device_named(device), rounds=rounds, cpu_time=cpu_time, memory=memory
    )
    click.echo(report.as_json() if as_json else report.table())


COMMANDS = (bench_command,)
