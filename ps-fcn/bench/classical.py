"""Angular errors of the classical methods on the renderer's held-out objects; of real photographs uw.py tells.

python ps-fcn/bench/classical.py [--size 48] [--every 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from papershelf.files import atomic_path
from papershelf.measuring import commit, processor
from psfcn import held_out
from psfcn.classical import METHODS, solve

LIGHTS = (8, 16, 32, 96)


def degrees(normals: np.ndarray, true: np.ndarray, mask: np.ndarray) -> float:
    """The mean angle between unit normals ``[H, W, 3]`` where ``mask``."""
    return float(np.degrees(np.arccos(np.clip((normals * true).sum(-1)[mask], -1, 1))).mean())


def rendered(size: int, every: int) -> dict[str, dict[str, float]]:
    """Mean errors over the test set's objects, shadows included, by number of lights and method."""
    errors: dict[tuple[int, str], list[float]] = {}
    for case in held_out.cases(None)[::every]:
        sample = held_out.render_case(case, size)
        images = sample.radiance() / sample.intensities[:, None, None]
        true = sample.normal.astype(np.float32)
        for count in LIGHTS:
            for method in METHODS:
                found = solve(images[:count], sample.lights[:count], sample.mask, method)
                errors.setdefault((count, method), []).append(degrees(found.normals, true, sample.mask))
    return {str(count): {method: float(np.mean(errors[count, method])) for method in METHODS} for count in LIGHTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=48, help="pixels along each side of the objects")
    parser.add_argument("--every", type=int, default=2, help="take one object in so many of the 60")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tables = {f"{count} lights": row for count, row in rendered(args.size, args.every).items()}
    for name, row in tables.items():
        print(f"{name:10}", *(f"{method} {error:6.2f}" for method, error in row.items()))
    if args.json:
        about = {"processor": processor(), "commit": commit(), "size": args.size, "every": args.every}
        with atomic_path(args.json) as part:
            part.write_text(json.dumps({"machine": about, "degrees": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
