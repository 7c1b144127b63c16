"""How fast adder layers are on this machine's processor, beside a convolution and two ways in plain PyTorch.

All of one layer is measured in one run, turn by turn, and the medians are given in 1e9 taps (|x - w|, or
multiply-adds) a second:

- ``adder2d``: this package
- ``conv2d``: PyTorch's convolution (oneDNN), in the faster of its two memory formats
- ``cdist``: ``torch.cdist(p=1)`` on unfolded patches
- ``broadcasting``: patches minus filters as one big tensor, which is what the authors' code does

``dX`` and ``dW`` are the gradients of input and filters.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.measuring import processor
from torch import Tensor

from addernet.adder import adder2d_reference, filter_gradient

LAYERS = ("16-16-32x32", "32-32-16x16", "64-64-8x8", "256-256-14x14")
PASSES = ("forward", "dX", "dW")
IMAGES_TAPS = 3e8  # of all images of a batch, about: 128 of ResNet-20's layers
BROADCAST_TAPS = 2e7  # that many differences at once take 80 MB
WINDOW = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups
Calls = dict[str, tuple[float, Callable[[], object]]]  # taps, and what computes them


def run(layers: tuple[str, ...], threads: int, seconds: float, as_json: bool) -> str:
    """Measure 3x3 layers with padding 1.

    Args:
        layers: as ``"C-O-HxW"``: input channels, output channels, size; those of ResNet-20 and one more if empty.
        threads: of the processor.
        seconds: for each layer and pass.
        as_json: JSON instead of a table.

    Raises:
        UserError: a layer is not written so.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = [row for layer in layers or LAYERS for row in measure(layer, seconds)]
    finally:
        torch.set_num_threads(before)
    if as_json:
        return json.dumps({"machine": machine(threads), "results": rows}, indent=2)
    return as_table(rows)


def machine(threads: int) -> dict:
    """What figures belong to."""
    return {"device": processor(), "threads": threads, "torch": torch.__version__}


def measure(layer: str, seconds: float) -> list[dict]:
    """A row for each pass: 1e9 taps a second by each means, and how ours compares."""
    x, weight = make(layer)
    rows = []
    for name in PASSES:
        rates = taps_per_second(calls(name, x, weight), seconds)
        conv = max(rates.pop("conv2d"), rates.pop("conv2d channels last"))
        rates = {"adder2d": rates["adder2d"], "conv2d": conv, **rates}
        ratios = {f"of {other}": rates["adder2d"] / rate for other, rate in rates.items() if other != "adder2d"}
        rows.append({"layer": layer, "images": len(x), "pass": name, "gtaps_per_second": rates, "ours": ratios})
    return rows


def make(layer: str) -> tuple[Tensor, Tensor]:
    """A batch for a layer and its filters, channels last."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)x(\d+)", layer)
    if not found or 0 in (sizes := [int(number) for number in found.groups()]):
        raise UserError(f"--layers wants C-O-HxW, as in 64-64-56x56, got {layer!r}")
    c, o, h, w = sizes
    images = max(1, min(128, round(IMAGES_TAPS / (9 * c * o * h * w) * 16) // 16 * 16 or 16))
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(images, c, h, w, generator=rng), torch.randn(o, c, 3, 3, generator=rng)
    return x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last)


def calls(name: str, x: Tensor, weight: Tensor) -> Calls:
    """What is timed of one pass."""
    g = torch.randn(len(x), len(weight), *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    taps = float(g.numel() * weight[0].numel())
    ours = {
        "forward": lambda: torch.ops.addernet.forward(x, weight, *WINDOW),
        "dX": lambda: torch.ops.addernet.input_gradient(g, x, weight, *WINDOW),
        "dW": lambda: filter_gradient(g, x, weight, *WINDOW),
    }
    made: Calls = {
        "adder2d": (taps, ours[name]),
        "conv2d channels last": (taps, convolution(name, g, x, weight)),
        "conv2d": (taps, convolution(name, *(t.contiguous() for t in (g, x, weight)))),
    }
    if name == "forward":
        few = x[: max(1, len(x) // 16)]
        made["cdist"] = (taps * len(few) / len(x), lambda: adder2d_reference(few, weight, *WINDOW))
    one = max(1, int(BROADCAST_TAPS / (taps / len(x))))
    made["broadcasting"] = (taps / len(x) * min(one, len(x)), broadcasting(name, g[:one], x[:one], weight))
    return made


def convolution(name: str, g: Tensor, x: Tensor, weight: Tensor) -> Callable[[], object]:
    if name == "forward":
        return lambda: F.conv2d(x, weight, padding=1)
    wanted = (name == "dX", name == "dW", False)
    return lambda: torch.ops.aten.convolution_backward(g, x, weight, None, *WINDOW[:3], False, (0, 0), 1, wanted)


def broadcasting(name: str, g: Tensor, x: Tensor, weight: Tensor) -> Callable[[], object]:
    """The formulas as they stand: ``[N, O, K, P]`` differences in memory."""

    def differences() -> Tensor:
        return F.unfold(x, 3, padding=1)[:, None] - weight.flatten(1)[None, :, :, None]

    def gradient() -> Tensor:
        if name == "dW":
            return (differences() * g.flatten(2)[:, :, None]).sum((0, 3))
        columns = (differences().neg_().clamp_(-1, 1) * g.flatten(2)[:, :, None]).sum(1)
        return F.fold(columns, x.shape[2:], 3, padding=1)

    return gradient if name != "forward" else lambda: -differences().abs_().sum(2)


def taps_per_second(made: Calls, seconds: float) -> dict[str, float]:
    """Medians of interleaved runs, in 1e9 taps a second."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _, call in made.values():
        call()
    until = perf_counter() + seconds
    while perf_counter() < until or len(times["adder2d"]) < 3:
        for name, (_, call) in made.items():
            start = perf_counter()
            call()
            times[name].append(perf_counter() - start)
    return {name: made[name][0] / statistics.median(taken) / 1e9 for name, taken in times.items()}


def as_table(rows: list[dict]) -> str:
    names = list(rows[0]["gtaps_per_second"])
    lines = [f"{'1e9 taps a second':30}" + "".join(f"{name:>14}" for name in names) + "   adder2d / conv2d"]
    for row in rows:
        rates = row["gtaps_per_second"]
        cells = "".join(f"{rates[name]:14.2f}" if name in rates else f"{'':14}" for name in names)
        head = f"{row['layer']} x {row['images']} {row['pass']}"
        lines.append(f"{head:30}{cells}{row['ours']['of conv2d']:19.2f}")
    return "\n".join(lines)
