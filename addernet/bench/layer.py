"""One adder layer on a processor: beside conv2d, cdist and broadcasting, the machine's limit, and in memory.

The limit (`peak`) is taken to be the multiply-adds a second of a small matrix product of PyTorch's in the same run.
Peak memory is that of a layer's forward and backward pass in a process of its own, less what PyTorch takes before.
Errors are the largest difference from float64, of the largest value.

python addernet/bench/layer.py [--threads 1 2] [--seconds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from addernet.adder import adder2d, adder2d_reference, filter_gradient, input_gradient_reference
from addernet.speed import LAYERS, WINDOW, as_table, machine, make, measure
from papershelf.measuring import commit
from torch import Tensor

MOST_DIFFERENCES = 3.1e8  # in one tensor: 1.2 GB, and as much again for their magnitudes
MEMORY = """
import sys, torch
import torch.nn.functional as F
from addernet.adder import adder2d
torch.set_num_threads(1)
layer = {{"adder2d": adder2d, "conv2d": F.conv2d}}["{op}"]
warm = [t.requires_grad_() for t in (torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3))]
layer(*warm, padding=1).sum().backward()
from addernet.speed import make
x, weight = (t.requires_grad_() for t in make("{layer}"))
def peak():  # of this program alone: ru_maxrss would begin at its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
y = layer(x, weight, padding=1)
y.backward(torch.ones_like(y))
print((peak() - before) / 1024)
"""


def peak_multiply_adds() -> float:
    """1e9 a second, the best of some matrix products that stay in the cache."""
    a = torch.randn(384, 384)
    best = 0.0
    for _ in range(200):
        start = perf_counter()
        a @ a
        best = max(best, 384**3 / (perf_counter() - start) / 1e9)
    return best


def errors(layer: str) -> dict[str, float]:
    """Of forward, dX and dW against float64."""
    x, weight = make(layer)
    x = x[:2]
    y = adder2d(x, weight, padding=1)
    g = torch.randn_like(y)
    wide = [t.double() for t in (g, x, weight)]
    exact = {
        "forward": (y, adder2d_reference(*wide[1:], *WINDOW)),
        "dX": (torch.ops.addernet.input_gradient(g, x, weight, *WINDOW), input_gradient_reference(*wide, *WINDOW)),
        "dW": (filter_gradient(g, x, weight, *WINDOW), filter_gradient(*wide, *WINDOW)),
    }
    return {name: ((ours - true).abs().max() / true.abs().max()).item() for name, (ours, true) in exact.items()}


def whole_batch_times(layer: str) -> float:
    """How many times faster our forward pass is than broadcasting over all of a batch at once, as the authors do."""
    x, weight = make(layer)
    x = x[: max(1, int(MOST_DIFFERENCES / (x[0, 0].numel() * weight.numel())))]

    def broadcast() -> Tensor:
        patches = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # [K, N P]
        return -(weight.flatten(1)[:, :, None] - patches[None]).abs().sum(1)

    def seconds(call: Callable[[], object]) -> float:
        start = perf_counter()
        call()
        return perf_counter() - start

    adder2d(x, weight, padding=1)
    ours = min(seconds(lambda: adder2d(x, weight, padding=1)) for _ in range(5))
    return min(seconds(broadcast) for _ in range(2)) / ours


def memory(layer: str, op: str) -> float:
    """MiB that one forward and backward pass adds."""
    program = MEMORY.format(layer=layer, op=op)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each layer and pass")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        peak = peak_multiply_adds()
        rows = [row | {"threads": threads} for layer in LAYERS for row in measure(layer, args.seconds)]
        for row in rows:
            row["of_peak"] = row["gtaps_per_second"]["adder2d"] / peak
        print(f"{threads} threads, {peak:.0f}e9 multiply-adds a second in a matrix product\n{as_table(rows)}")
        results += rows
    torch.set_num_threads(1)
    times = {layer: whole_batch_times(layer) for layer in LAYERS}
    off = {layer: errors(layer) for layer in LAYERS}
    grown = {layer: {op: memory(layer, op) for op in ("adder2d", "conv2d")} for layer in LAYERS}
    for layer in LAYERS:
        relative = ", ".join(f"{name} {value:.1e}" for name, value in off[layer].items())
        print(f"{layer}: off float64 {relative}; MiB adder2d {grown[layer]['adder2d']:.0f}, ", end="")
        print(f"conv2d {grown[layer]['conv2d']:.0f}; forward {times[layer]:.0f} x broadcasting over the whole batch")
    if args.json:
        head = machine(max(args.threads)) | {"commit": commit()}
        report = {"machine": head, "results": results, "errors": off, "peak_memory_mib": grown}
        report["forward_times_whole_batch_broadcasting"] = times
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
