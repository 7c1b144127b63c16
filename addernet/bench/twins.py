"""An adder network and its twin of convolutions, trained alike: their curves in one picture, their figures in one file.

addernet train DATA --arch resnet20 --epochs 12 -o adder/
addernet train DATA --arch resnet20 --epochs 12 --op conv -o conv/
python addernet/bench/twins.py adder/ conv/ [--picture FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KEPT = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
COLOURS = ("tab:red", "tab:blue")
SETTINGS = ("arch", "op", "epochs", "batch", "lr", "momentum", "weight_decay", "eta", "seed", "amp")


def read(folder: Path) -> tuple[dict, list[dict]]:
    """The recipe and the epochs of a run."""
    head, *epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = {name: head["config"][name] for name in SETTINGS} | {"torch": head["torch"], "threads": head["threads"]}
    return config, [{name: epoch[name] for name in KEPT} for epoch in epochs]


def draw(runs: list[tuple[dict, list[dict]]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (config, epochs), colour in zip(runs, COLOURS, strict=True):
        numbers = [epoch["epoch"] for epoch in epochs]
        for axes, what in ((left, "loss"), (right, "accuracy")):
            for part, style in (("train", ":"), ("test", "-")):
                values = [epoch[f"{part}_{what}"] for epoch in epochs]
                axes.plot(numbers, values, style, color=colour, label=f"{config['op']}, {part}")
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    right.set(xlabel="epoch", ylabel="accuracy, %")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = [read(folder) for folder in args.runs]
    for config, epochs in runs:
        last = epochs[-1]
        print(
            f"{config['arch']} {config['op']:6} {last['epoch']} epochs: test {last['test_accuracy']:.2f} %, "
            f"training {last['train_accuracy']:.2f} %, {sum(epoch['seconds'] for epoch in epochs) / 60:.0f} min"
        )
    if args.picture:
        draw(runs, args.picture)
    if args.json:
        report = [{"config": config, "epochs": epochs} for config, epochs in runs]
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
