"""The paper's ladder: what each trick saves, in queries of the field and in time, and what it costs in hits and depth.

Meshes as grids of 160^3 signed distances, a camera at distance 2.5, azimuth 30 and elevation 20 degrees, rays against
the unit ball, 50 steps in all, a threshold of 5e-5. `ours` is secants and cones. The reference takes 400 steps; the hit
rate is the share of its hits that a row finds, and errors of depth are over these. Every query counts, those of coarse
levels too.

python dist/bench/ladder.py bunny.obj spot.obj [--size 512] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from distrender.cameras import Camera
from distrender.pyramid import FEWEST, FEWEST_LEVELS, FEWEST_STEPS, trace_image
from distrender.shape_files import open_shape
from distrender.tracing import Hit, MarchOptions, sphere_trace
from papershelf.measuring import commit, processor

STEPS = 50
NAIVE = MarchOptions(steps=STEPS, ratio=1.0, dynamic=False)
ROWS = {
    "naive": NAIVE,
    "dynamic": MarchOptions(steps=STEPS, ratio=1.0),
    "aggressive": MarchOptions(steps=STEPS),
    "coarse to fine": MarchOptions(),
    "ours": FEWEST,
}
PYRAMIDS = {"coarse to fine": ((4, 2, 1), (3, 3, 44)), "ours": (FEWEST_LEVELS, FEWEST_STEPS)}


def tracer(row: str, sdf: torch.nn.Module, camera: Camera) -> Callable[[], Hit]:
    if row not in PYRAMIDS:
        return lambda: sphere_trace(sdf, *camera.rays(), ROWS[row], gradient="none")
    levels, steps = PYRAMIDS[row]
    return lambda: trace_image(sdf, camera, ROWS[row], levels=levels, steps=steps, gradient="none")


@torch.no_grad()
def measure(shape: str, size: int, rounds: int) -> list[dict]:
    sdf, camera = open_shape(shape), Camera.orbit(1, size=(size, size))
    reference = sphere_trace(sdf, *camera.rays(), MarchOptions(steps=400, ratio=1.0), gradient="none")
    runs = {row: tracer(row, sdf, camera) for row in ROWS}
    taken: dict[str, list[float]] = {row: [] for row in ROWS}
    found = {}
    for _ in range(rounds):
        for row, run in runs.items():
            start = perf_counter()
            found[row] = run()
            taken[row].append(perf_counter() - start)
    rows = []
    for row, hit in found.items():
        both = hit.mask & reference.mask
        error = (hit.depth - reference.depth)[both].abs()
        rows.append(
            {
                "shape": Path(shape).stem,
                "row": row,
                "queries": hit.queries,
                "seconds": statistics.median(taken[row]),
                "hit_rate": (both.sum() / reference.mask.sum()).item(),
                "mean_depth_error": error.mean().item(),
                "missed": hit.missed,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", nargs="+", help="meshes, or whatever dist-render takes")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for shape in args.shapes:
        for row in measure(shape, args.size, args.rounds):
            results.append(row)
            print(
                f"{row['shape']:16} {row['row']:24} {row['queries'] / 1e6:7.3f} M queries {row['seconds']:8.3f} s  "
                f"hit rate {row['hit_rate']:.4f}  depth error {row['mean_depth_error']:.1e}  missed {row['missed']}"
            )
    if args.json:
        machine = {"device": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        report = {"machine": machine, "size": args.size, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
