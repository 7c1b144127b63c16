"""The networks' own memory for one new frame, and what tiles change: bytes a pixel, and tiled against whole.

Each measurement is a process of its own, since a process's peak never falls.

The latter needs a real clip, which it finds through PAPERSHELF_DATA.

python rife/bench/memory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
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
import av, sys, torch
from rife import checkpoints, weights
from rife.interpolator import Interpolator, Member
with av.open({clip!r}) as video:
    frames = [frame.to_ndarray(format="rgb24") for _, frame in zip(range(37), video.decode(video=0))]
pair = [torch.from_numpy(frames[k]).permute(2, 0, 1) / 255 for k in (34, 36)]
height, width = pair[0].shape[1:]
third = 400 * height * width // 3
made = [
    Interpolator([(checkpoints.load(weights.find("v4.0")), Member("x"))], device="cpu", precision="float32", memory=m)
    for m in (None, third)
]
difference = 255 * (made[0].between(*pair, [0.5]) - made[1].between(*pair, [0.5])).abs()
print(len(made[1].grid(height, width)), difference.mean().item(), difference.flatten()[::7].quantile(0.999).item(),
      difference.max().item())
"""
CLIP = "video/bigbuckbunny.mp4"


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
    results: dict = {"memory": rows}
    if data := os.environ.get("PAPERSHELF_DATA"):
        tiles, mean, most, largest = measure(TILED, clip=str(Path(data) / CLIP))
        print(f"v4.0, {CLIP} in {tiles:.0f} tiles against whole, of 255: ", end="")
        print(f"mean {mean:.3f}, 99.9 % of all values within {most:.2f}, largest {largest:.2f}")
        results["tiled_against_whole"] = {
            "tiles": tiles,
            "mean_of_255": mean,
            "permille_999_of_255": most,
            "largest_of_255": largest,
        }
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
