"""Peak memory of a forward and a backward pass through a picture of DeepSDF's 8x512 decoder.

The paper's losses together, depth, normals and silhouette, of all rays of one view, back to the latent code. Each
measurement is a process of its own: its peak (VmHWM) above what it held before the first query, the decoder included.
`whole` is the same with one chunk for all rays, as if nothing were chunked. Weights are random but geometric (see
seeded.py), so that half of the ball's rays hit; the march takes coarse to fine and 200 steps at most, as `render` does.

python dist/bench/memory.py [--size 512] [--threads 1] [--whole] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from papershelf.measuring import commit, processor

ONE = """
import sys, time, torch
sys.path.insert(0, {here!r})
from seeded import sphere_decoder
from distrender import gradients
from distrender.cameras import Camera
from distrender.pyramid import trace_image
from distrender.tracing import MarchOptions

def held(which):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024

decoder, code = sphere_decoder()
decoder.requires_grad_(False)
code = torch.nn.Parameter(code)
sdf = decoder.with_code(code)
with torch.no_grad():
    sdf(torch.zeros(4, 3))
sdf(torch.zeros(4, 3)).sum().backward()
code.grad = None
before = held("VmRSS")
start = time.perf_counter()
options = MarchOptions(ratio=1.0, finish="secant", closest=2)
hit = trace_image(sdf, Camera.orbit(1, size=({size}, {size})), options, steps=(3, 3, 200), chunk={chunk})
traced = time.perf_counter()
up = torch.tensor([0.0, 0.0, 1.0])
depth = (hit.depth[hit.mask] - 2).abs().mean()
normals = (hit.normal[hit.mask] - up).square().mean()
missed = ~hit.mask & hit.min_sdf.isfinite()
silhouette = hit.min_sdf[missed].clamp(min=0).mean()
(10 * depth + 5 * normals + silhouette).backward()
assert code.grad.isfinite().all() and code.grad.abs().sum() > 0
done = time.perf_counter()
print(held("VmHWM") - before, before, hit.mask.float().mean().item(), hit.queries, traced - start, done - traced)
"""


def measure(size: int, threads: int, whole: bool) -> dict[str, float]:
    """Bytes, seconds and counts of one process."""
    chunk = str(10**9) if whole else "gradients.CHUNK"
    program = ONE.format(here=str(Path(__file__).parent), size=size, chunk=chunk)
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    names = ("bytes_above", "bytes_before", "covered", "queries", "seconds_forward", "seconds_backward")
    return dict(zip(names, map(float, done.stdout.split()), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="measure one chunk for all rays too: some GB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for name in ("chunked", "whole") if args.whole else ("chunked",):
        row = rows[name] = measure(args.size, args.threads, name == "whole")
        print(
            f"{name:8} {args.size}x{args.size}: {row['bytes_above'] / 1e6:.0f} MB above "
            f"{row['bytes_before'] / 1e6:.0f} MB; {100 * row['covered']:.0f} % of rays hit, "
            f"{row['queries']:,.0f} queries, forward {row['seconds_forward']:.0f} s, "
            f"backward {row['seconds_backward']:.0f} s"
        )
    if args.json:
        machine = {"device": processor(), "threads": args.threads, "commit": commit()}
        args.json.write_text(json.dumps({"machine": machine, "size": args.size, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
