"""What a training run leaves behind to look at: metrics.jsonl, curves.png, and TensorBoard where it is installed.

The first line of metrics.jsonl holds the configuration; every other one a step (or an epoch) and its figures.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from papershelf.errors import UserError
from papershelf.files import atomic_path

if TYPE_CHECKING:
    from papershelf.processes import Place

METRICS, CURVES = "metrics.jsonl", "curves.png"


class Panel(NamedTuple):
    """One picture of curves.png: which figures it shows, their unit, and whether on a logarithmic axis."""

    names: tuple[str, ...]
    unit: str = ""
    log: bool = False


class TrainingLog:
    """Writes the figures of a run, after a resume as if there had been no break.

    Args:
        run: the run's folder.
        about: what the first line says.
        panels: of curves.png, top to bottom.
        done: figures of later steps, written before the break, are dropped; 0 begins anew.
        count: what the lines are counted in, ``step`` or ``epoch``.
        extra: what to install where matplotlib is missing.
    """

    def __init__(
        self,
        run: Path,
        about: dict,
        panels: Sequence[Panel],
        *,
        done: int = 0,
        count: str = "step",
        extra: str = "matplotlib",
    ) -> None:
        self.run, self.panels, self.count = run, panels, count
        kept = [line for line in read_metrics(run)[1:] if line[count] <= done] if done else []
        with atomic_path(run / METRICS) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in [about, *kept]))
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # What is purged: this step and all after it.
            self.board = SummaryWriter(run / "tensorboard", purge_step=done + 1 if done else None)
        self.plots = importlib.util.find_spec("matplotlib") is not None
        if not self.plots:
            logging.warning("no %s: matplotlib is missing; pip install '%s'", CURVES, extra)

    def write(self, at: int, **figures: float) -> None:
        """Add a line: the figures at a step (or epoch)."""
        with (self.run / METRICS).open("a") as file:
            file.write(json.dumps({self.count: at, **figures}) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, at)

    def plot(self) -> None:
        """Draw the curves anew, where matplotlib is installed."""
        if self.plots:
            plot_curves(self.run, self.panels, self.count)

    def close(self) -> None:
        if self.board:
            self.board.close()


def open_log(
    run: Path,
    tool: str,
    distribution: str,
    place: Place,
    panels: Sequence[Panel],
    about: Mapping[str, object],
    *,
    done: int = 0,
    count: str = "step",
    extra: str = "matplotlib",
) -> TrainingLog:
    """The log of a run in a folder that is made if need be; its first line also says what ran, and on what.

    Args:
        run: the run's folder.
        tool: the program's name.
        distribution: whose version is noted.
        place: of this process.
        panels: as for :class:`TrainingLog`, and so the rest.
        about: what else the first line says: command, config, data.
        done: likewise.
        count: likewise.
        extra: likewise.

    Raises:
        UserError: the folder cannot be made.
    """
    import torch

    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; name another folder with -o") from error
    ran = {
        "tool": tool,
        "version": version(distribution),
        "torch": torch.__version__,
        "device": str(place.device),
        "threads": torch.get_num_threads(),
        "processes": place.world,
    }
    return TrainingLog(run, {**ran, **about}, panels, done=done, count=count, extra=extra)


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; UserError where there is none or it is damaged."""
    try:
        return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{run / METRICS}: {error}; expected the folder of a training run") from error


def plot_curves(run: Path, panels: Sequence[Panel], count: str = "step") -> None:
    """The figures over the steps (or epochs), a picture for each panel, as ``curves.png`` in the run's folder."""
    from matplotlib.figure import Figure  # no pyplot: nothing to show, and no state to share

    lines = read_metrics(run)[1:]
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        for name in panel.names:
            points = [(line[count], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True) if points else ([], []), label=name, marker="." * (len(points) < 30))
        axes.legend()
        axes.grid(alpha=0.3)
        axes.set_ylabel(panel.unit)
        if panel.log:
            axes.set_yscale("log")
    rows[-1].set_xlabel(count)
    with atomic_path(run / CURVES) as part:
        figure.savefig(part, dpi=100)
