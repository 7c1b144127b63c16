"""Adder layers on bytes: their speed beside float convolutions, float adder layers and oneDNN's int8 convolutions.

In one run, interleaved, medians: single layers, given in 1e9 taps (|x - w| or multiply-adds) a second, and
ResNet-20 as a whole. The int8 layers take bytes and give bytes, batch norm (or scale) and ReLU included; the float
ones are the bare operation. oneDNN's needs an x86 processor and is left out elsewhere. With weights and data also
the accuracy, float32 and int8, on the whole test set.

python addernet/bench/int8.py [--quick] [--weights FILE --data DIR] [--json results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from addernet.adder import adder2d
from addernet.architectures import build
from addernet.evaluation import CPU, evaluate, images_of, network
from addernet.int8 import _kernels, pack
from addernet.quantization import quantize, save
from papershelf.measuring import commit, interleaved, processor

LAYERS = {  # name: images, channels, side
    "16-16 32x32": (128, 16, 32),
    "32-32 16x16": (128, 32, 16),
    "64-64 8x8": (128, 64, 8),
    "256-256 14x14": (16, 256, 14),
}
CALIBRATION = 512
Calls = dict[str, Callable[[], object]]


def layer_calls(n: int, channels: int, side: int) -> Calls:
    """A 3x3 layer with padding 1 by every means."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, channels, side, side), generator=rng, dtype=torch.uint8)
    weight = torch.randint(0, 256, (channels, channels, 3, 3), generator=rng, dtype=torch.uint8)
    x, window = x.contiguous(memory_format=torch.channels_last), ((1, 1), (1, 1), (1, 1), 1)
    filters, scale, offset = pack(weight), torch.full((channels,), -1e-4), torch.ones(channels)
    x_float, weight_float = x.float() / 255, (weight.float() / 255).contiguous(memory_format=torch.channels_last)
    run = torch.ops.addernet.int8_layer
    return {
        "int8": lambda: run(x, filters, 0, *window, scale, offset, None, True, False, 255.0, 0),
        "conv2d": lambda: F.conv2d(x_float, weight_float, padding=1),
        "adder2d": lambda: adder2d(x_float, weight_float, padding=1),
        **onednn_calls(x, weight),
    }


def onednn_calls(x: torch.Tensor, weight: torch.Tensor) -> Calls:
    """PyTorch's own entry to oneDNN's int8 convolution, with ReLU, bytes to bytes."""
    if not torch.backends.mkldnn.is_available() or "onednn" not in torch.backends.quantized.supported_engines:
        return {}
    signed = (weight.int() - 128).to(torch.int8)
    scales, zeros, window = torch.full((len(weight),), 0.01), torch.zeros(len(weight), dtype=torch.int32), ([1, 1],) * 3
    packed = torch.ops.onednn.qconv_prepack(signed, scales, 0.01, 0, *window, 1, list(x.shape))
    rest = packed, scales, zeros, None, *window, 1, 0.5, 0, torch.uint8, "relu", [], ""
    return {"onednn_int8": lambda: torch.ops.onednn.qconv2d_pointwise(x, 0.01, 0, *rest)}


def network_calls(n: int) -> Calls:
    """ResNet-20 by every means; its speed does not depend on its parameters."""
    torch.manual_seed(0)
    images = torch.randn(n, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    adder, convolution = build("resnet20").eval(), build("resnet20", op="conv").eval()
    int8 = quantize(adder, images[:16], search_images=2)
    return {
        "int8": lambda: int8(images),
        "conv2d": lambda: convolution(images),
        "adder2d": lambda: adder(images),
    }


@torch.no_grad()
def accuracy(weights: Path | None, data: Path) -> dict[str, float]:
    """Top 1 of a network and of what ``quantize`` makes of it, in percent, on all test images."""
    model = network(weights)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "int8.safetensors"
        start = perf_counter()
        save(quantize(model, images_of(data, model, CALIBRATION)), small)
        seconds = perf_counter() - start
        scores = {name: evaluate(data, path, CPU).scores for name, path in (("float32", weights), ("int8", small))}
    found = {name: round(100 * score.top1, 3) for name, score in scores.items()}
    lost = round(found["float32"] - found["int8"], 3)
    return {**found, "lost": lost, "images": scores["int8"].images, "calibration_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="an adder network; by default, with --data, the shipped one")
    parser.add_argument("--data", type=Path, help="a data set: measure the accuracy too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one thread")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    if args.weights and not args.data:
        parser.error("--weights needs --data: the speed does not depend on them")
    if not _kernels.load("cpu"):
        raise SystemExit("the kernels cannot be built here: there is nothing to measure")

    rounds, rows = 3 if args.quick else 15, []
    for threads in (1,) if args.quick else (1, 2):
        torch.set_num_threads(threads)
        for name, (n, channels, side) in LAYERS.items():
            times = interleaved(layer_calls(n, channels, side), rounds)
            taps = n * (3 * channels * side) ** 2
            speed = {how: round(taps / time["ms"] / 1e6, 1) for how, time in times.items()}
            rows.append({"what": name, "n": n, "threads": threads, "giga_taps_per_second": speed, **times})
            told = "  ".join(f"{how} {value:6.1f}" for how, value in speed.items())
            print(f"{name:14} N={n:<4} threads={threads}  G taps/s: {told}", flush=True)
        for n in (1, 128):
            times = interleaved(network_calls(n), rounds)
            rows.append({"what": "resnet20", "n": n, "threads": threads, **times})
            told = "  ".join(f"{how} {time['ms']:8.2f}" for how, time in times.items())
            print(f"{'resnet20':14} N={n:<4} threads={threads}  ms: {told}", flush=True)
    found = accuracy(args.weights, args.data) if args.data else None
    if found:
        print("top 1: float32 {float32:.2f} %, int8 {int8:.2f} %, lost {lost:.2f} points".format(**found))
    if args.json:
        machine = {
            "device": processor(),
            "threads": sorted({row["threads"] for row in rows}),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "commit": commit(),
        }
        content = {"machine": machine, "results": rows} | ({"accuracy": found} if found else {})
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
