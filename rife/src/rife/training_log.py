"""What a training run leaves behind to look at: metrics.jsonl, curves.png, and TensorBoard where it is installed.

The first line of metrics.jsonl holds the configuration; every other one a step and the figures of it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

from papershelf.errors import UserError
from papershelf.files import atomic_path

METRICS, CURVES = "metrics.jsonl", "curves.png"
PLOTTED = (("loss", "student", "teacher"), ("val_psnr", "val_average"), ("lr",))  # a picture each, top to bottom


class TrainingLog:
    """Writes the figures of a run, after a resume as if there had been no break.

    Args:
        run: the run's folder.
        about: what the first line says.
        step: figures of later steps, written before the break, are dropped; 0 begins anew.
    """

    def __init__(self, run: Path, about: dict, step: int = 0) -> None:
        self.run = run
        kept = [line for line in read_metrics(run)[1:] if line["step"] <= step] if step else []
        with atomic_path(run / METRICS) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in [about, *kept]))
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(run / "tensorboard", purge_step=step or None)
        self.plots = importlib.util.find_spec("matplotlib") is not None
        if not self.plots:
            logging.warning("no %s: matplotlib is missing; pip install 'rife-interp[train]'", CURVES)

    def write(self, step: int, **figures: float) -> None:
        """Add a line."""
        with (self.run / METRICS).open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def plot(self) -> None:
        """Draw the curves anew, where matplotlib is installed."""
        if self.plots:
            plot_curves(self.run)

    def close(self) -> None:
        if self.board:
            self.board.close()


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; UserError where there is none or it is damaged."""
    try:
        return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{run / METRICS}: {error}; expected the folder of a training run") from error


def plot_curves(run: Path) -> None:
    """Losses, PSNR and learning rate over the steps, as ``curves.png`` in the run's folder."""
    from matplotlib.figure import Figure  # no pyplot: nothing to show, and no state to share

    lines = read_metrics(run)[1:]
    figure = Figure(figsize=(8, 9), layout="constrained")
    for axes, names in zip(figure.subplots(len(PLOTTED), sharex=True), PLOTTED, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True) if points else ([], []), label=name, marker="." * (len(points) < 30))
        axes.legend()
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    figure.axes[0].set_yscale("log")
    figure.axes[1].set_ylabel("dB")
    with atomic_path(run / CURVES) as part:
        figure.savefig(part, dpi=100)
