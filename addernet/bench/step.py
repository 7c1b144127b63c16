"""A whole training step of an adder network on a processor, beside its twin of convolutions and the authors' way.

Interleaved, medians; forward, backward and optimizer, channels last. `broadcasting` is the same network with adder
layers by broadcasting and autograd, on fewer images, since its differences fill the memory; seconds are given for one
image. Peak memory is that of a step in a process of its own, less what PyTorch and the network take.

python addernet/bench/step.py [--arch resnet20] [--batch 128] [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from addernet.architectures import build
from addernet.layer import Adder2d
from addernet.local_rate import attach
from addernet.speed import machine
from papershelf.measuring import commit
from torch import Tensor, nn

MEMORY = """
import sys, torch
sys.path.insert(0, {here!r})
import step
torch.set_num_threads(1)
step.steps("{arch}", "{op}", 2)()
run = step.steps("{arch}", "{op}", {batch})
def peak():  # of this program alone: ru_maxrss would begin at its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
run()
print((peak() - before) / 1024)
"""


class Broadcasting(nn.Module):
    """An adder layer as the formula stands; its gradients are autograd's of the absolute value."""

    def __init__(self, layer: Adder2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        y = -(patches[:, None] - layer.weight.flatten(1)[None, :, :, None]).abs().sum(2)
        height = (x.shape[2] + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
        return y.view(len(x), len(layer.weight), height, -1)


def broadcasting(model: nn.Module) -> nn.Module:
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, Adder2d):
                setattr(parent, name, Broadcasting(child))
    return model


def steps(arch: str, op: str, batch: int) -> Callable[[], None]:
    """What makes one training step on a batch."""
    torch.manual_seed(0)
    model = build(arch, op="conv" if op == "conv" else "adder").to(memory_format=torch.channels_last).train()
    model = broadcasting(model) if op == "broadcasting" else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    attach(optimizer, model)
    size = model.config.input_size
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def measure(arch: str, batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step for one image, by each means."""
    few = max(2, batch // 64)
    runs = {"adder": (batch, steps(arch, "adder", batch)), "conv": (batch, steps(arch, "conv", batch))}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _, run in runs.values():
        run()
    for _ in range(rounds):
        for name, (images, run) in runs.items():
            start = perf_counter()
            run()
            times[name].append((perf_counter() - start) / images)
    slow = steps(arch, "broadcasting", few)
    slow()
    start = perf_counter()
    slow()
    return {name: statistics.median(taken) for name, taken in times.items()} | {
        "broadcasting": (perf_counter() - start) / few
    }


def memory(arch: str, op: str, batch: int) -> float:
    program = MEMORY.format(here=str(Path(__file__).parent), arch=arch, op=op, batch=batch)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        seconds = measure(args.arch, args.batch, args.rounds)
        row = {"arch": args.arch, "batch": args.batch, "threads": threads, "milliseconds_per_image": {}}
        for name, taken in seconds.items():
            row["milliseconds_per_image"][name] = 1000 * taken
            print(f"{args.arch} {threads} threads {name:13}{1000 * taken:10.3f} ms an image", end="")
            print(f"{taken / seconds['conv']:9.2f} x conv")
        results.append(row)
    grown = {op: memory(args.arch, op, args.batch) for op in ("adder", "conv")}
    print(f"peak memory of a step: adder {grown['adder']:.0f} MiB, conv {grown['conv']:.0f} MiB")
    if args.json:
        head = machine(max(args.threads)) | {"commit": commit()}
        args.json.write_text(
            json.dumps({"machine": head, "results": results, "peak_memory_mib": grown}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
