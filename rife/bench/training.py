"""Training works: from scratch it comes to know 8 triplets by heart, and learns what holds for clips it never saw.

1. overfit: the paper's network on 8 triplets of real clips, always the same crops, beyond 38 dB.
2. unseen: the same network, from scratch again, trained for a short while on what `rife dataset` cut out of
   some clips, against the mean of both frames on the triplets (0, 2 -> 1), (2, 4 -> 3), ... of a clip that
   was not among them. The weights at the end count, none are chosen by looking at that clip.

The triplets come from clips found through PAPERSHELF_DATA and are made once, where PyAV is:

python rife/bench/training.py prepare DIR
python rife/bench/training.py --triplets DIR [--part overfit unseen] [--json FILE]
python rife/bench/training.py --triplets DIR --width-factor 0.2 --steps 600   (on a CPU: smaller, shorter)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from papershelf.images import write_image
from papershelf.measuring import commit
from papershelf.processes import Place
from rife.training import LAST, TrainingConfig, recipe, train, validate
from rife.triplets import Sequences, ValidationSamples

from rife import checkpoints

SIDE = 160  # pixels of the crops of both parts
# Clips of `overfit`: how they are reduced, and the frames from one triplet to the next; two triplets of each.
OVERFIT = {
    "bigbuckbunny.mp4": ((448, 256), 20),
    "cup.mp4": ((320, 240), 40),
    "toflow_low_resolution": ((320, 180), 8),
    "sintel_demo": ((448, 190), 4),
}
LEARNT = ("bigbuckbunny.mp4", "cup.mp4", "sintel_demo", "hdr10.mkv")
LEARNT_SIZE, LEARNT_STRIDE = (320, 192), 5
UNSEEN = "toflow_low_resolution"
GOAL = 38.0  # dB
RECIPES = {  # for the full width; what is not named here is the paper's
    "overfit": {"steps": 5000, "batch": 8, "augment": False, "learning_rate": 6e-4},
    "unseen": {"steps": 5000, "batch": 16, "learning_rate": 6e-4},
}


def prepare(folder: Path) -> None:
    """Make the triplets of both parts in a new folder: ``overfit``, ``learnt`` and ``unseen``."""
    from rife.dataset import Options, make_dataset, sequences_of  # these need PyAV

    clips = Path(os.environ["PAPERSHELF_DATA"]) / "video"
    folder.mkdir(parents=True)
    found = []
    for name, (size, stride) in OVERFIT.items():
        first_two = zip(
            range(2), sequences_of(clips / name, Options(size=size, stride=stride), Counter()), strict=False
        )
        for _, frames in first_two:
            y, x = ((side - SIDE) // 2 for side in frames[0].shape[:2])
            found.append([frame[y : y + SIDE, x : x + SIDE] for frame in frames])
    write_set(folder / "overfit", found)

    options = Options(size=LEARNT_SIZE, stride=LEARNT_STRIDE)
    print(make_dataset([clips / name for name in LEARNT], folder / "learnt", options))

    options = Options(length=3, size=None, stride=2, wild=1)
    write_set(folder / "unseen", list(sequences_of(clips / UNSEEN, options, Counter())))
    megabytes = sum(file.stat().st_size for file in folder.rglob("*.png")) / 1e6
    print(f"{folder}: {len(found)} triplets to overfit, {megabytes:.1f} MB in all")


def write_set(folder: Path, triplets: list) -> None:
    """Triplets that are in both lists."""
    names = [f"00001/{k + 1:04d}" for k in range(len(triplets))]
    for name, frames in zip(names, triplets, strict=True):
        (folder / "sequences" / name).mkdir(parents=True)
        for number, frame in enumerate(frames, 1):
            write_image(folder / "sequences" / name / f"im{number}.png", frame.copy())
    for split in ("train", "test"):
        (folder / f"tri_{split}list.txt").write_text("".join(f"{name}\n" for name in names))


def run(part: str, triplets: Path, config: TrainingConfig, device: str, workers: int) -> dict:
    """Train from scratch; the figures of the last weights."""
    scratch = Path(tempfile.mkdtemp())
    try:
        start = time.perf_counter()
        data = triplets / {"overfit": "overfit", "unseen": "learnt"}[part]
        figures = train(config, data, scratch, device=device, workers=workers)
        seconds = time.perf_counter() - start
        if part == "unseen":
            model = checkpoints.load(scratch / LAST)
            samples = ValidationSamples(Sequences(triplets / "unseen", "test", 3))
            figures |= validate(model, samples, Place(torch.device("cpu")))
    finally:
        shutil.rmtree(scratch)
    network, average = figures["val_psnr"], figures["val_average"]
    passed = network > (GOAL if part == "overfit" else average)
    print(
        f"{part:8} {network:6.2f} dB, mean of both frames {average:6.2f} dB, {config.steps} steps, {seconds:.0f} s",
        end="",
    )
    print("" if passed else "  BELOW THE GOAL")
    return {
        "psnr_db": round(network, 3),
        "average_db": round(average, 3),
        "passed": passed,
        "seconds": round(seconds, 1),
        "config": asdict(config),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prepare", nargs="*", metavar="prepare DIR", help="make the triplets, and stop")
    parser.add_argument("--triplets", type=Path, help="folder that `prepare` made; without it they are made now")
    parser.add_argument("--part", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--width-factor", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="of each part")
    parser.add_argument("--batch", type=int, help="of each part")
    parser.add_argument("--learning-rate", type=float, help="of each part")
    parser.add_argument("--amp", action="store_true", help="convolutions in bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.prepare:
        if args.prepare[0] != "prepare" or len(args.prepare) != 2:
            parser.error(f"expected `prepare DIR`, got {' '.join(args.prepare)}")
        prepare(Path(args.prepare[1]))
        return

    triplets = args.triplets
    if triplets is None:
        triplets = Path(tempfile.mkdtemp()) / "triplets"
        prepare(triplets)
    results = {}
    for part in args.part:
        options = {"steps": args.steps, "batch": args.batch, "learning_rate": args.learning_rate}
        given = {name: value for name, value in options.items() if value is not None}
        changes = RECIPES[part] | {"width_factor": args.width_factor, "amp": args.amp, "crop": SIDE} | given
        # Validated at the end alone: what counts are the last weights.
        config = recipe("paper", **changes, validate_every=changes["steps"])
        results[part] = run(part, triplets, config, args.device, args.workers)
    if args.triplets is None:
        shutil.rmtree(triplets.parent)
    if args.json:
        cuda = torch.cuda.is_available() and args.device != "cpu"
        machine = {
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": commit(),
        }
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
