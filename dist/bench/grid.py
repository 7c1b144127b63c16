"""Grids of signed distances on a CPU: our kernel against the same march in plain PyTorch, in one run.

A procedural shape or a mesh as a grid of 160^3, one picture, rays from the ball's rim, 50 steps. `torch` is
`march_reference` with `GridSDF.forward`: the same rules, only rays on their way, tensor by tensor. Turn by turn; with
one thread it is that thread's own time that counts, so that other programs on the machine do little harm.

python dist/bench/grid.py [--shape bunny.obj] [--size 256 512] [--threads 1] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter, thread_time

import torch
from distrender import tracing_kernels
from distrender.cameras import Camera
from distrender.grid import GridSDF
from distrender.marching import MarchOptions, ball_interval, march_reference
from distrender.procedural import shape
from distrender.shape_files import open_shape
from papershelf.measuring import commit, interleaved, processor

WAYS = {"aggressive": MarchOptions(), "secant": MarchOptions(ratio=1.0, finish="secant")}


@torch.no_grad()
def sampled(family: str, resolution: int = 160) -> GridSDF:
    """A procedural shape as a grid."""
    axis = torch.linspace(-1.05, 1.05, resolution)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)
    return GridSDF(torch.stack([shape(family, 0)(plane) for plane in points]))


@torch.no_grad()
def measure(sdf: GridSDF, size: int, rounds: int, threads: int) -> list[dict[str, object]]:
    origins, directions = (rays.reshape(-1, 3).contiguous() for rays in Camera.orbit(1, size=(size, size)).rays())
    near = ball_interval(origins, directions, 1.0)[0]
    rows = []
    for name, options in WAYS.items():
        calls = {
            "kernel": lambda options=options: tracing_kernels.march(sdf, origins, directions, near, options),
            "torch": lambda options=options: march_reference(sdf, origins, directions, near, options),
        }
        depth, _, _, state, queries = calls["kernel"]()
        plain = calls["torch"]()
        both = (state == 1) & (plain.state == 1)
        times = interleaved(calls, rounds, thread_time if threads == 1 else perf_counter)
        rows.append(
            {
                "size": size,
                "march": name,
                "queries": queries,
                "calls": times,
                "times_torch": round(times["torch"]["ms"] / times["kernel"]["ms"], 1),
                "nanoseconds_a_query": round(1e6 * times["kernel"]["ms"] / queries, 1),
                "rays_unlike_torch": int((state != plain.state).sum()),
                "mean_depth_error": float((depth - plain.depth)[both].abs().mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", help="a mesh, instead of a procedural chair")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sdf = open_shape(args.shape) if args.shape else sampled("chair")
    if not isinstance(sdf, GridSDF):
        raise SystemExit(f"{args.shape} is no mesh and no grid")
    if not tracing_kernels._kernels.load("cpu"):
        raise SystemExit("the kernels could not be built: nothing to compare (PAPERSHELF_NATIVE=require says why)")
    rows = [row for size in args.size for row in measure(sdf, size, args.rounds, args.threads)]
    for row in rows:
        print(
            f"{row['size']} x {row['size']}, {row['march']:10}: {row['queries']:,} queries, kernel "
            f"{row['calls']['kernel']['ms']:.1f} ms, torch {row['calls']['torch']['ms']:.1f} ms, "
            f"{row['times_torch']} times torch, {row['nanoseconds_a_query']} ns a query, "
            f"{row['rays_unlike_torch']} rays unlike, depth off by {row['mean_depth_error']:.1e}"
        )
    if args.json:
        head = {"processor": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        report = {"machine": head, "shape": args.shape or "procedural chair", "results": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
