"""Seconds per new frame: the prepared networks beside the same ones in plain eager PyTorch (`make gpu-check`).

The baseline is rife.model.Rife, NCHW, float32, without any kernel of ours (and, on a GPU, also float16):
what one gets by writing the network down. Both make one new frame of a pair that was not seen before, with
random weights, which take as long as trained ones. Runs are interleaved; the median and the quartiles of
each are printed, and the ratio of the medians.

python rife/bench/frame.py [--size 720p] [--threads 2] [--seconds 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rife.interpolator import Interpolator, Member
from rife.model import Rife
from rife.presets import PRESETS

from rife import model, refinement, warping

SIZES = {"360p": (360, 640), "720p": (720, 1280), "1080p": (1080, 1920), "2160p": (2160, 3840)}


def moving_pair(height: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """Two smooth random pictures, the second shifted by (6, 3) pixels."""
    rng = torch.Generator().manual_seed(seed)
    picture = torch.rand(1, 3, height // 8 + 4, width // 8 + 4, generator=rng)
    picture = torch.nn.functional.interpolate(picture, scale_factor=8, mode="bicubic")[0].clamp(0, 1)
    return [picture[:, 8:, 8:][:, :height, :width].contiguous(), picture[:, 5:, 2:][:, :height, :width].contiguous()]


def random_network(name: str) -> Rife:
    """A network whose flows are some pixels long."""
    torch.manual_seed(0)
    return Rife(PRESETS[name]).eval()


@contextmanager
def without_kernels() -> Iterator[None]:
    """Warping as plain PyTorch does it, for the baseline."""
    plain = {"warp": warping.warp_reference, "warp_blend": warping.warp_blend_reference}
    places = [(module, name) for module in (model, refinement) for name in plain if hasattr(module, name)]
    kept = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, plain[name])
        yield
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


def timed(call, device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, size: str, device: torch.device, seconds: float) -> list[dict]:
    network, (height, width) = random_network(name), SIZES[size]
    pair = [frame.to(device) for frame in moving_pair(height, width)]
    precisions = ["float32", "float16"] if device.type == "cuda" else ["float32", "bfloat16"]
    contenders = {}
    for plain in (True, False):
        for precision in precisions if device.type == "cuda" or not plain else ["float32"]:
            made = Interpolator([(network, Member(name))], device=device, precision=precision, plain=plain)
            contenders["eager" if plain else "ours", precision] = made
            network = random_network(name)
    samples: dict[tuple, list[float]] = {key: [] for key in contenders}
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < 4 or time.perf_counter() < until:
        for key, made in contenders.items():
            fresh = [frame.clone() for frame in pair]  # a pair not seen before: nothing of it is prepared
            if key[0] == "eager":
                with without_kernels():
                    samples[key].append(timed(lambda made=made, fresh=fresh: made.between(*fresh, [0.5]), device))
            else:
                samples[key].append(timed(lambda made=made, fresh=fresh: made.between(*fresh, [0.5]), device))
        rounds += 1
    rows = []
    for (who, precision), taken in samples.items():
        taken = sorted(taken[1:])  # the first one warms up
        rows.append(
            {
                "network": name,
                "size": size,
                "implementation": who,
                "precision": precision,
                "median_ms": 1e3 * statistics.median(taken),
                "quartiles_ms": [1e3 * taken[len(taken) // 4], 1e3 * taken[3 * len(taken) // 4]],
                "runs": len(taken),
            }
        )
    baseline = rows[0]["median_ms"]
    for row in rows:
        row["speedup_over_eager_float32"] = baseline / row["median_ms"]
        low, high = row["quartiles_ms"]
        print(
            f"{name:5} {size:6} {row['implementation']:6} {row['precision']:9} {row['median_ms']:9.2f} ms "
            f"({low:.2f} to {high:.2f}, {row['runs']} runs) {1e3 / row['median_ms']:8.2f} frames/s "
            f"{row['speedup_over_eager_float32']:6.2f} x",
            flush=True,
        )
    return rows


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", action="append", choices=PRESETS, help="default: v4.0 and v4.6")
    parser.add_argument("--size", action="append", choices=SIZES, help="default: 360p, 720p and 1080p")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, help="for each network and size; default: 20 on a CPU, 2 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    seconds = args.seconds or (2 if device.type == "cuda" else 20)
    rows = []
    for name in args.network or ["v4.0", "v4.6"]:
        for size in args.size or ["360p", "720p", "1080p"]:
            rows += measure(name, size, device, seconds)
    if args.json:
        name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
        machine = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit()}
        args.json.write_text(json.dumps({"machine": machine, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
