"""The paper's ladder on several shapes, as `dist-render bench` measures it, in one file with what it was measured on.

Meshes as grids of 160^3 signed distances, a camera at distance 2.5, azimuth 30 and elevation 20 degrees.

python dist/bench/ladder.py bunny.obj spot.obj [--size 512] [--threads 2] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from distrender import ladder
from distrender.cameras import Camera
from distrender.shape_files import open_shape
from papershelf.measuring import commit, processor


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
        rungs = ladder.climb(open_shape(shape), Camera.orbit(1, size=(args.size, args.size)), args.rounds)
        print(f"{shape}\n{ladder.table(rungs)}")
        results += [{"shape": Path(shape).stem, **asdict(rung)} for rung in rungs]
    if args.json:
        machine = {"device": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        report = {"machine": machine, "size": args.size, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
