"""The networks' own memory for one new frame, and what tiles change: bytes a pixel, and tiled against whole.

Each measurement is a process of its own, since a process's peak never falls.

python rife/bench/memory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CASES = [("v4.0", "1080p", 1), ("v4.6", "1080p", 1), ("v4.0", "2160p", 0.5), ("v4.6", "2160p", 0.5)]
ONE = """
import resource, sys, torch
sys.path.insert(0, {here!r})
import frame
from rife.interpolator import Interpolator, Member
made = Interpolator([(frame.random_network({name!r}), Member("x"))], device="cpu", scale={scale}, plain={plain})
height, width = frame.SIZES[{size!r}]
pair = frame.moving_pair(height, width)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made.between(*pair, [0.5])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (height * width))
"""
TILED = """
import sys, torch
sys.path.insert(0, {here!r})
import frame
from rife import checkpoints, weights
from rife.interpolator import Interpolator, Member
model = checkpoints.load(weights.find("v4.0"))
height, width = frame.SIZES["1080p"]
pair = frame.moving_pair(height, width)
whole = Interpolator([(model, Member("x"))], device="cpu")
third = 400 * height * width // 3
small = Interpolator([(checkpoints.load(weights.find("v4.0")), Member("x"))], device="cpu", memory=third)
difference = 255 * (whole.between(*pair, [0.5]) - small.between(*pair, [0.5])).abs()
print(len(small.grid(height, width)), difference.mean().item(), difference.max().item())
"""


def measure(program: str, **values: object) -> list[float]:
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", program.format(here=here, **values)], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name, size, scale in CASES:
        for plain in (False, True) if size == "1080p" else (False,):
            (found,) = measure(ONE, name=name, size=size, scale=scale, plain=plain)
            rows.append({"network": name, "size": size, "scale": scale, "plain": plain, "bytes_per_pixel": found})
            print(f"{name} {size} scale {scale:<4} {'plain' if plain else 'prepared':9} {found:6.0f} bytes a pixel")
    tiles, mean, largest = measure(TILED)
    print(f"v4.0 1080p in {tiles:.0f} tiles against whole: mean {mean:.4f}, largest {largest:.2f} of 255")
    if args.json:
        found = {"tiles": tiles, "mean_of_255": mean, "largest_of_255": largest}
        args.json.write_text(json.dumps({"memory": rows, "tiled_against_whole": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
