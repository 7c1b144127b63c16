"""Completion of 50 held-out procedural shapes from 20, 50 and 100 depths of one view: Chamfer distances, times 1000.

Three ways from the same points and the same first codes (the training's nearest):

- ``plain``: DeepSDF's, the field's values at and around the points and in the free space before them
  (``latent_fit``), with the rate, number of iterations and prior that did best on shapes of other seeds;
- ``ours``: the renderer's losses on top (``completion.complete``), without a silhouette;
- ``masked``: with the view's silhouette too.

A shape's row is written to the JSON file as soon as it is done, so that a run that was broken off goes on where it
stopped. Shapes are spread over ``--processes`` of one thread each. ``--tuning`` takes other shapes than the table's.

python dist/bench/completion.py [--decoder procedural] [--points 20 50 100] [--shapes 50] [--processes 2] [--tuning]
    [--json dist/bench/results/completion.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import torch
from distrender import decoder_files, procedural
from distrender.cameras import Camera
from distrender.chamfer import chamfer, surface_samples
from distrender.completion import OURS, complete, starting_codes
from distrender.completion_job import trace_truth
from distrender.latent_fit import fit_latent
from distrender.meshing import mesh
from distrender.observations import from_depth
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.measuring import commit, processor
from torch import Tensor
from tqdm import tqdm

WAYS = ("plain", "ours", "masked")
SIZE = 256
RESOLUTION = 96  # of the meshes that are measured
SAMPLES = 100_000  # on either surface; DeepSDF's 30,000 say 0.1 to 0.25 of a shape and itself, much of what is measured
TUNING_FROM = 2_000_000  # seeds that are neither trained on nor in the table
ELEVATIONS = (-20.0, 50.0)  # degrees; the camera's is drawn between these for each shape, its azimuth from all around


def seen(family: str, seed: int) -> tuple[Camera, Tensor, np.ndarray]:
    """A shape's camera, its depths ``[H, W]`` (0 where there is none), and points on all of its surface."""
    truth = procedural.shape(family, seed)
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(0, 360), rng.uniform(*ELEVATIONS)
    camera = Camera.orbit(1, elevation=elevation, first=azimuth, size=(SIZE, SIZE))
    with torch.no_grad():
        hit = trace_truth(truth, camera)
    return camera, torch.where(hit.mask[0], hit.depth[0], 0), surface_samples(truth, SAMPLES, seed=1)


def measure(shape: tuple[str, int], decoder: str, counts: list[int]) -> dict[str, object]:
    """One shape's row: by number of points and way, the distance and the processor's seconds."""
    torch.set_num_threads(1)
    family, seed = shape
    experiment = decoder_files.load_experiment(decoder)
    experiment.decoder.requires_grad_(False)
    camera, depth, truth = seen(family, seed)

    def distance(code: Tensor) -> float:
        try:
            found = mesh(experiment.decoder.with_code(code), RESOLUTION, near=True)
        except UserError:  # nothing there: as far off as if all were at the origin
            return 1000 * chamfer(np.zeros((1, 3)), truth)
        return 1000 * chamfer(surface_samples(found, SAMPLES), truth)

    again = surface_samples(procedural.shape(family, seed), SAMPLES)
    row: dict[str, object] = {"family": family, "seed": seed, "floor_x1000": round(1000 * chamfer(again, truth), 4)}
    for count in counts:
        views = {
            way: from_depth(depth, camera, mask=None if way != "masked" else depth > 0, keep=count, seed=seed)
            for way in WAYS
        }
        starts = starting_codes(experiment, views["plain"], OURS, seed)
        start = process_time()
        codes, losses = fit_latent(experiment.decoder, starts, views["plain"], replace(OURS.fit, iterations=OURS.warm))
        fitting = process_time() - start
        codes = codes[losses.argsort()]
        found = {"plain": codes[0]}
        times = {"plain": fitting}
        for way in ("ours", "masked"):
            start = process_time()
            found[way] = complete(experiment, views[way], OURS, seed=seed, starts=codes).code
            times[way] = fitting + process_time() - start
        row[str(count)] = {
            way: {"chamfer_x1000": round(distance(found[way]), 4), "seconds": round(times[way], 2)} for way in WAYS
        }
    return row


def table(rows: list[dict], counts: list[int]) -> str:
    """Median and mean of each way, and how the medians compare, as lines of Markdown."""
    lines = [
        "| points | " + " | ".join(f"{way}: median, mean" for way in WAYS) + " | masked / plain, of the medians |",
        "|---" * (len(WAYS) + 2) + "|",
    ]
    for count in counts:
        values = {way: [row[str(count)][way]["chamfer_x1000"] for row in rows] for way in WAYS}
        medians = {way: statistics.median(found) for way, found in values.items()}
        cells = [f"{medians[way]:.3f}, {statistics.mean(values[way]):.3f}" for way in WAYS]
        lines.append(f"| {count} | " + " | ".join(cells) + f" | {medians['masked'] / medians['plain']:.2f} |")
    floor = statistics.median(row["floor_x1000"] for row in rows)
    lines.append(f"\n{len(rows)} shapes; two samplings of the same surface are {floor:.3f} apart.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decoder", default="procedural")
    parser.add_argument("--points", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--shapes", type=int, default=procedural.HELD_OUT_COUNT)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tuning", action="store_true", help="shapes of other seeds than the table's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shapes = procedural.held_out()
    if args.tuning:
        shapes = [(family, TUNING_FROM + seed) for family, seed in procedural.training_set(args.shapes)]
    shapes = shapes[: args.shapes]
    metadata = decoder_files.load_experiment(args.decoder).metadata
    about = {
        "processor": processor(),
        "torch": torch.__version__,
        "commit": commit(),
        "decoder": args.decoder,
        "weights": metadata.get("figures", ""),
        "points": args.points,
        "recipe": asdict(OURS),
        "samples": SAMPLES,
    }
    rows: list[dict] = []
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text())
        differing = [name for name in ("decoder", "weights", "points", "recipe") if before["run"][name] != about[name]]
        if differing:
            sys.exit(f"{args.json} holds results of another run (other {', '.join(differing)}); move it away")
        about, rows = before["run"], before["results"]
    known = {(row["family"], row["seed"]) for row in rows}
    todo = [shape for shape in shapes if shape not in known]
    job = partial(measure, decoder=args.decoder, counts=args.points)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for row in tqdm(pool.imap_unordered(job, todo), total=len(todo), unit="shape", disable=None):
            rows.append(row)
            if args.json:
                rows.sort(key=lambda row: shapes.index((row["family"], row["seed"])))
                with atomic_path(args.json) as part:
                    part.write_text(json.dumps({"run": about, "results": rows}, indent=1) + "\n")
    print(table(rows, args.points))
    print(f"{sum(row[str(n)][way]['seconds'] for row in rows for n in args.points for way in WAYS[1:]):.0f} s of fits")


if __name__ == "__main__":
    main()
