"""Times and memory of a prediction at the size of the figure to reach: 256x256, 32 photographs, both precisions.

python ps-fcn/bench/speed.py [--threads 2] [--rounds 5] [--cpu-time] [--json ps-fcn/bench/results/speed-cpu.json]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from papershelf.files import atomic_path
from psfcn import speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="the processor's seconds, for a machine in use")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = speed.measure(rounds=args.rounds, cpu_time=args.cpu_time)
    print(report.table())
    if args.json:
        with atomic_path(args.json) as part:
            part.write_text(report.as_json() + "\n")


if __name__ == "__main__":
    main()
