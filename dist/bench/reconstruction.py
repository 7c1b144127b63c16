"""How well a decoder that was trained on procedural shapes gives them back.

For training shapes that are drawn by chance, but always the same ones: DeepSDF's Chamfer distance times 1000 (mean
squared, both directions, 30,000 points a surface) between the decoder's mesh and the shape, its mean |distance| on the
true surface, and the median norm of its gradient there. Means and medians over the shapes, and for each family. The
floor is the Chamfer distance between two draws of points on the same true surface.

python dist/bench/reconstruction.py [--decoder procedural] [--shapes 48] [--resolution 128] [--json results.json]
                                    [--keep weights.safetensors]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median

import torch
from distrender import procedural
from distrender.decoder_files import Experiment, load_experiment, save
from distrender.reconstruction import compare, some
from papershelf.measuring import commit, processor
from tqdm import tqdm

KINDS = ("chamfer", "chamfer_floor", "surface_error", "gradient")


def measure(experiment: Experiment, shapes: int, resolution: int) -> list[dict[str, object]]:
    """A row for each shape."""
    rows = []
    for number in tqdm(some(len(experiment.names), shapes), unit="shape", disable=None):
        name = experiment.names[number]
        family, _, seed = name.partition("/")
        sdf = experiment.decoder.with_code(experiment.codes[number])
        rows.append({"shape": name, **compare(sdf, procedural.shape(family, int(seed)), resolution)})
    return rows


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Mean and median of each figure over the shapes that have one."""
    result: dict[str, object] = {"shapes": len(rows), "without_surface": sum(row["chamfer"] is None for row in rows)}
    for kind in KINDS:
        values = [row[kind] for row in rows if row[kind] is not None]
        if values:
            result[kind] = {"mean": mean(values), "median": median(values), "worst": max(values)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decoder", default="procedural")
    parser.add_argument("--shapes", type=int, default=48)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="write the decoder here in half precision, with these figures in it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment = load_experiment(args.decoder)
    if not experiment.names or any(name.partition("/")[0] not in procedural.FAMILIES for name in experiment.names):
        raise SystemExit(f"{args.decoder}: its shapes are not procedural ones, so there is nothing to compare with")
    rows = measure(experiment, args.shapes, args.resolution)
    families = sorted({str(row["shape"]).partition("/")[0] for row in rows})
    results = {"all": summary(rows)}
    results |= {family: summary([row for row in rows if str(row["shape"]).startswith(family)]) for family in families}
    for name, row in results.items():
        figures = [
            f"{kind} {row[kind]['mean']:.4f} (median {row[kind]['median']:.4f})" for kind in KINDS if kind in row
        ]
        print(f"{name:8} {row['shapes']:3} shapes: {', '.join(figures)}; {row['without_surface']} without a surface")
    if args.json:
        head = {"processor": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        trained = {key: experiment.metadata[key] for key in ("command", "figures") if key in experiment.metadata}
        asked = {"decoder": args.decoder, "resolution": args.resolution}
        content = {"machine": head, "asked": asked, "trained": trained, "results": results, "shapes": rows}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.keep:
        figures = json.loads(experiment.metadata.get("figures", "{}"))
        means = {kind: results["all"][kind]["mean"] for kind in KINDS if kind in results["all"]}
        figures["reconstruction"] = {"shapes": len(rows), **means}
        metadata = {**experiment.metadata, "figures": json.dumps(figures)}
        save(args.keep, experiment.decoder, experiment.codes, experiment.names, metadata, half=True)


if __name__ == "__main__":
    main()
