"""Adder layers on a GPU: the kernels against convolutions, cdist on unfolded patches, broadcasting, and the limit.

In one run, interleaved, medians, batches of 256: the layers of ResNet-20 and one of ResNet-50, forward and both
gradients, in 1e9 terms (|x - w|, or multiply-adds) a second; then a whole training step of ResNet-20, of adder layers
and of convolutions. The limit is two float32 additions a term on every lane at the highest clock, or for halves one;
what lies beyond memory is left out. ``tf32`` is PyTorch's switch for convolutions on tensor cores.

python addernet/bench/adder.py [--json results.json]    (part of `make gpu-check`)
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from addernet.adder import _kernels, adder2d_reference, filter_gradient
from addernet.architectures import build
from addernet.local_rate import attach
from papershelf.measuring import commit, interleaved
from torch import Tensor
from torch.utils.benchmark import timer  # waits for the GPU

LAST = torch.channels_last
BATCH, ROUNDS = 256, 11
LAYERS = {  # name: channels, side
    "16-16 32x32": (16, 32),
    "32-32 16x16": (32, 16),
    "64-64 8x8": (64, 8),
    "256-256 14x14": (256, 14),
}
WINDOW = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups
Calls = dict[str, Callable[[], object]]


def with_tf32(allowed: bool, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        torch.backends.cudnn.allow_tf32 = allowed
        return call()

    return run


def convolution_calls(kind: str, g: Tensor, x: Tensor, weight: Tensor) -> Calls:
    def call() -> object:
        if kind == "forward":
            return F.conv2d(x, weight, padding=1)
        wanted = (kind == "dX", kind == "dW", False)
        return torch.ops.aten.convolution_backward(g, x, weight, None, *WINDOW[:3], False, (0, 0), 1, wanted)

    if x.dtype == torch.float32:
        return {"conv2d": with_tf32(False, call), "conv2d_tf32": with_tf32(True, call)}
    return {"conv2d": call}


def broadcast(x: Tensor, weight: Tensor) -> Tensor:
    """Eq. (2) as it is read, every difference in memory at once."""
    patches = F.unfold(x, weight.shape[2:], padding=1)  # [N, K, P]
    return -(patches[:, None] - weight.flatten(1)[:, :, None]).abs().sum(2)


def layer_calls(n: int, channels: int, side: int, dtype: torch.dtype, device: str) -> dict[str, Calls]:
    """By pass, a 3x3 layer with padding 1 by every means."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, side, side, generator=rng).to(device, dtype, memory_format=LAST)
    weight = torch.randn(channels, channels, 3, 3, generator=rng).to(device, memory_format=LAST)
    g = torch.randn(n, channels, side, side, generator=rng).to(device, memory_format=LAST)
    theirs = g.to(dtype), x, weight.to(dtype)
    calls = {
        "forward": {"ours": lambda: torch.ops.addernet.forward(x, weight, *WINDOW)},
        "dX": {"ours": lambda: torch.ops.addernet.input_gradient(g, x, weight, *WINDOW)},
        "dW": {"ours": with_tf32(True, lambda: filter_gradient(g, x, weight, *WINDOW))},
    }
    for kind, of in calls.items():
        of.update(convolution_calls(kind, *theirs))
    if dtype == torch.float32:
        calls["forward"]["cdist_unfold"] = lambda: adder2d_reference(x, weight, *WINDOW)
        differences = n * channels * 9 * channels * side**2 * x.element_size()
        if device == "cuda" and 2.5 * differences < torch.cuda.mem_get_info()[0]:
            calls["forward"]["broadcast"] = lambda: broadcast(x, weight)
    return calls


def training_step(op: str, half: bool, n: int, device: str) -> Callable[[], object]:
    """One step of the paper's recipe on one batch; `half`: float16 by autocast."""
    torch.manual_seed(0)
    model = build("resnet20", op=op).to(device, memory_format=LAST)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    attach(optimizer, model)
    scaler = torch.amp.GradScaler(device, enabled=half)
    images = torch.randn(n, 3, 32, 32, device=device).to(memory_format=LAST)
    labels = torch.randint(0, 10, (n,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.float16, enabled=half):
            loss = F.cross_entropy(model(images).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def step_calls(n: int, device: str) -> Calls:
    return {
        "adder": with_tf32(True, training_step("adder", False, n, device)),
        "conv": with_tf32(False, training_step("conv", False, n, device)),
        "conv_tf32": with_tf32(True, training_step("conv", False, n, device)),
        "adder_float16": training_step("adder", True, n, device),
        "conv_float16": training_step("conv", True, n, device),
    }


def highest_clock() -> float | None:
    """Hz of the multiprocessors, where the driver tells."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def limit() -> float | None:
    """Terms of float32 that the GPU can compute a second, at two additions each."""
    properties, clock = torch.cuda.get_device_properties(0), highest_clock()
    lanes = 64 if (properties.major, properties.minor) in ((7, 0), (7, 5), (8, 0)) else 128
    return clock and properties.multi_processor_count * lanes * clock / 2


def measure_layers(n: int, device: str, most: float | None, rounds: int) -> list[dict]:
    """Every layer, dtype and pass; prints a line for each."""
    rows = []
    for name, (channels, side) in LAYERS.items():
        for dtype in (torch.float32, torch.float16):
            for kind, calls in layer_calls(n, channels, side, dtype, device).items():
                times = interleaved(calls, rounds, timer)
                terms = n * channels**2 * 9 * side**2
                for found in times.values():
                    found["g_per_second"] = round(terms / found["ms"] / 1e6, 1)
                row = {"layer": name, "n": n, "dtype": str(dtype).removeprefix("torch."), "pass": kind, **times}
                if most and kind != "dW":
                    reachable = most * (2 if dtype == torch.float16 else 1)
                    row["share_of_limit"] = round(terms / (times["ours"]["ms"] / 1e3) / reachable, 3)
                told = "  ".join(f"{by} {t['ms']:8.3f} ms {t['g_per_second']:8.0f} G/s" for by, t in times.items())
                share = f"  ours at {row['share_of_limit']:.0%} of the limit" if "share_of_limit" in row else ""
                print(f"{name:14} {row['dtype']:8} {kind:8} {told}{share}", flush=True)
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: addernet/bench/layer.py measures the kernels for CPUs")
        return
    if not _kernels.load("cuda"):
        raise SystemExit("the kernels for CUDA cannot be built here: there is nothing to measure")

    most = limit()
    layers = measure_layers(BATCH, "cuda", most, ROUNDS)
    torch.backends.cudnn.benchmark = True  # as one trains
    steps = interleaved(step_calls(BATCH, "cuda"), ROUNDS, timer)
    print("ResNet-20, a training step: " + "  ".join(f"{name} {t['ms']:.2f} ms" for name, t in steps.items()))
    if args.json:
        machine = {
            "device": torch.cuda.get_device_name(),
            "limit_g_per_second": most and round(most / 1e9),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "commit": commit(),
        }
        found = {"machine": machine, "layers": layers, "resnet20_training_step": {"n": BATCH, **steps}}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
