"""Angular errors on held-out objects by method and number of lights, with the lights given and as LCNet finds them.

The folders hold samples of `psfcn render --test-set` (materials and shapes that nothing is trained on) or of
`bench/mitsuba_objects.py`. With fewer lights than a sample has, its first ones are taken, which are spread out.

psfcn render -o test/ --test-set --size 64
python ps-fcn/bench/held_out.py test/ [--lights 8 16 32 96] [--every 1] [--weights W] [--lcnet W] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from papershelf.files import atomic_path
from papershelf.measuring import commit, processor
from psfcn import checkpoints, evaluation_sets
from psfcn.evaluation import evaluate
from psfcn.evaluation_sets import Subject
from tqdm import tqdm

METHODS = ("ls", "trimmed", "l1", "robust", "psfcn", "auto")
WITHOUT_LIGHTS = ("robust", "psfcn", "auto")
SEED = 0  # of the lights' intensities, which LCNet is to find


def first(subject: Subject, count: int) -> Subject:
    """The subject under its first ``count`` lights."""
    which = np.arange(count)
    return dataclasses.replace(subject, capture=subject.capture.take(which), intensities=subject.intensities[which])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--lights", nargs="+", type=int, default=[8, 16, 32, 96])
    parser.add_argument("--every", type=int, default=1, help="take one object in so many")
    parser.add_argument("--weights", type=Path, help="of PS-FCN; default: those that ship")
    parser.add_argument("--lcnet", type=Path, help="of LCNet; default: those that ship")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = checkpoints.load(args.weights or checkpoints.default_weights("psfcn-n"))
    finder = checkpoints.load(args.lcnet or checkpoints.default_weights("lcnet"), "lcnet")
    entries = evaluation_sets.find(args.folders)[:: args.every]
    errors: dict[str, dict[str, list[float]]] = {}
    for entry in tqdm(entries, unit="object", disable=None):
        whole = evaluation_sets.load(entry)
        for count in args.lights:
            if count > len(whole.intensities):
                continue
            subject = first(whole, count)
            given = evaluate(subject, METHODS, network).means
            strengths = np.random.default_rng((SEED, count)).uniform(0.2, 2, (count, 1)).repeat(3, 1)
            found = evaluate(dataclasses.replace(subject, intensities=strengths), WITHOUT_LIGHTS, network, finder)
            row = given | {f"uncalibrated {method}": mean for method, mean in found.means.items()} | found.lights
            for name, value in row.items():
                errors.setdefault(f"{count} lights", {}).setdefault(name, []).append(value)
    means = {count: {name: float(np.mean(some)) for name, some in row.items()} for count, row in errors.items()}
    for count, row in means.items():
        print(count.rjust(10), *(f"{name} {value:.3g}" for name, value in row.items()), sep="  ")
    about = {
        "processor": processor(),
        "commit": commit(),
        "objects": len(entries),
        "network": network.metadata.get("figures"),
        "lcnet": finder.metadata.get("figures"),
    }
    if args.json:
        with atomic_path(args.json) as part:
            part.write_text(json.dumps({"run": about, "means": means, "objects": errors}, indent=1) + "\n")


if __name__ == "__main__":
    main()
