"""Training as the paper does (section 5), in a plain loop.

One step: a batch of rendered objects; the loss; Adam, whose rate is halved every 5 epochs (or follows a cosine, where
a run has a budget of steps or minutes). The same command under ``torchrun`` shares each batch among processes; rank 0
writes. A run's folder holds ``last.pt`` (to resume from, to the same bits on a CPU), ``model.safetensors`` (the best
so far on held-out samples, to use), and what :mod:`papershelf.training_log` writes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.processes import Place, joined, read, stop_requests
from papershelf.resuming import read_state
from papershelf.training_log import METRICS, Panel, TrainingLog, open_log
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from psfcn import checkpoints, found_lights
from psfcn.crops import Samples
from psfcn.found_lights import FoundSamples
from psfcn.lcnet_training import LightTask
from psfcn.normal_training import NormalTask
from psfcn.recipes import BUDGET, TrainingConfig, learning_rate
from psfcn.training_sets import validation_set

CHECKPOINT, MODEL = "last.pt", "model.safetensors"
VALIDATION = "validation"  # folder of rendered samples
SHOWN_EVERY = 0.5  # seconds between figures beside the progress bar, each of which waits for a GPU
DRAWN_EVERY = 10.0  # seconds between pictures of the curves, which take half a second each
SAVED_EVERY = 300.0  # seconds between two epochs' ends after which the state is saved


class Task(Protocol):
    """What a network learns: :class:`psfcn.normal_training.NormalTask` or :class:`psfcn.lcnet_training.LightTask`.

    Attributes:
        network: fresh.
        samples: to train on.
        held_out: to test on.
        dataset: what is read for (step, place in the batch): a tuple of tensors.
        best_by: which of :meth:`validate`'s figures says, by being small, that a network is good.
        panels: of the curves, beside loss and rate.
    """

    network: nn.Module
    samples: Samples
    held_out: Samples
    dataset: Dataset
    best_by: str
    panels: tuple[Panel, ...]

    def loss(self, forward: Callable[..., Tensor], batch: tuple[Tensor, ...], place: Place) -> tuple[Tensor, Tensor]:
        """Of this process's share of a batch: the loss to descend, and a figure to show, scaled to add up likewise."""

    def validate(self, network: nn.Module, place: Place) -> dict[str, float]:
        """Figures on the held-out samples, the same in every process."""


class Trainer:
    """Network, optimizer and data of a run, and the step it is at.

    Args:
        config: the recipe.
        task: what is learnt.
        place: of this process.
        workers: processes that read samples.

    Raises:
        UserError: the batch cannot be shared.
    """

    def __init__(self, config: TrainingConfig, task: Task, place: Place, workers: int = 0) -> None:
        if config.batch % place.world:
            raise UserError(f"a batch of {config.batch} cannot be shared by {place.world} processes; give another")
        self.config, self.task, self.place, self.workers = config, task, place, workers
        self.total = config.steps or config.epochs * max(1, len(task.samples) // config.batch)
        self.model = task.network.to(place.device, memory_format=torch.channels_last)
        self.shared: nn.Module = self.model
        if place.world > 1:
            ids = [place.device] if place.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=ids)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.step = 0
        self.seconds = 0.0  # of the whole run, tests included
        self.best = math.inf
        self.sums = torch.zeros(3, dtype=torch.float64, device=place.device)  # loss, figure, steps

    @property
    def progress(self) -> float:
        """Of the run, from 0 to 1: by the clock where it has minutes, else by steps; the same in every process."""
        if self.config.minutes is None:
            return self.step / self.total
        slowest = self.place.summed(torch.tensor(self.seconds, device=self.place.device)) / self.place.world
        return min(1.0, float(slowest) / (60 * self.config.minutes))

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """This process's share of the batches from the present step on, without end."""
        own = self.config.batch // self.place.world
        places = range(self.place.rank * own, (self.place.rank + 1) * own)
        order = _Steps(self.step, places)
        for batch in read(self.task.dataset, self.place, self.workers, batch_sampler=order):
            yield type(batch)(*(x.to(self.place.device, non_blocking=True) for x in batch))

    def update(self, batch: tuple[Tensor, ...], rate: float) -> None:
        """One step of the algorithm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.place.device, self.config.amp):
            loss, figure = self.task.loss(self.shared, batch, self.place)
        loss.backward()
        self.optimizer.step()
        self.sums += torch.stack([loss.detach().double(), figure.double(), torch.ones_like(loss).double()])
        self.step += 1

    def means(self) -> tuple[float, float]:
        """Loss and figure since the last test, in this process."""
        loss, figure, steps = self.sums.tolist()
        return loss / max(steps, 1), figure / max(steps, 1)

    def test(self) -> dict[str, float]:
        """The figures since the last test, and those of the held-out samples; the next ones begin at zero.

        Raises:
            UserError: the loss is no number any more.
        """
        loss, figure, steps = self.place.summed(self.sums).tolist()
        self.check(loss / steps)
        self.model.eval()
        with autocast(self.place.device, self.config.amp):
            tested = self.task.validate(self.model, self.place)
        self.model.train()
        self.sums.zero_()
        return {"train_loss": loss / steps, f"train_{self.task.best_by}": figure / steps, **tested}

    def check(self, loss: float) -> None:
        """UserError where the loss is no number; asked before anything is saved."""
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in step {self.step}; what was saved before is kept; choose a lower --lr"
            )

    def save(self, file: Path) -> None:
        """Write what :meth:`load` needs; every process must call it, the first one writes."""
        sums = self.place.summed(self.sums).cpu()
        if self.place.rank:
            return
        state = {
            "config": _fixed(self.config),
            "data": self.about_data(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "sums": sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(file) as part:
            torch.save(state, part)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint of the same recipe and data, or a UserError says what differs.

        Epochs, steps, minutes and the rate may differ: a run that has ended goes on where it gets a larger budget,
        at the rate of that place in the longer schedule.
        """
        state = read_state(file, _fixed(self.config) | self.about_data(), ("data",))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        if self.place.rank == 0:  # the sums are those of all processes
            self.sums.copy_(state["sums"])

    def about_data(self) -> dict[str, object]:
        """What must be the same for a run to go on."""
        samples, held_out = self.task.samples, self.task.held_out
        return {"samples": len(samples), "held_out_samples": len(held_out), "lights_by": samples.lights_by}


def train(
    config: TrainingConfig,
    data: Path,
    run: Path,
    *,
    validation: Path | None = None,
    meshes: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    start: Path | None = None,
    lcnet: Path | None = None,
    command: str = "",
) -> dict[str, float]:
    """Train a network on rendered samples.

    Args:
        config: the recipe, from :func:`psfcn.recipes.recipe`.
        data: folder of samples of the split ``train``.
        run: folder for all that comes of it; made if need be.
        validation: folder of samples of the split ``test``; None: a few are rendered into the run's folder.
        meshes: folder of meshes for those.
        device: ``auto``, ``cpu`` or ``cuda``; under torchrun each process takes its own GPU.
        workers: processes that read samples; what is read does not depend on their number.
        resume: go on from the run's checkpoint.
        start: weights to begin with.
        lcnet: weights of LCNet, whose lights take the place of the true ones; not for LCNet itself.
        command: for the record.

    Returns:
        The last figures: step, lr, losses, errors, seconds.

    Raises:
        UserError: data, run folder, weights or checkpoint do not fit, or the loss is no number any more.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what was found or learnt by then is saved.
    """
    with joined(device) as place, stop_requests() as stop_asked:
        # Asked by one process for all: the first begins to write as soon as it knows.
        if not resume and place.any(place.rank == 0 and (run / METRICS).exists()):
            raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with -o")
        samples = Samples(data)  # a wrong folder is said before anything is rendered
        if validation is None:
            validation = run / VALIDATION
            if place.rank == 0:
                validation_set(validation, meshes)
            place.any(False)  # the others wait for them
        sets = found_lights.sets(lcnet, data, validation, run, config.seed) if lcnet else (samples, Samples(validation))
        torch.manual_seed(config.seed)
        task = _task(config, *sets)
        if start:
            checkpoints.load_into(task.network, start)
        trainer = Trainer(config, task, place, workers)
        if resume:
            trainer.load(run / CHECKPOINT)
            if trainer.progress >= 1:
                raise UserError(f"{run} is complete; give more --steps, --minutes or --epochs. Weights: {run / MODEL}")
        if lcnet:
            with autocast(place.device, config.amp):
                found_lights.prepare(sets, lcnet, place, stop_asked)
            if place.rank == 0:
                tqdm.write(_lights_line(sets), file=sys.stderr)
        log = _log(trainer, run, command) if place.rank == 0 else None
        figures = _run(trainer, run, log, stop_asked, command)
        if log:
            log.plot()
            log.close()
        stopped = trainer.progress < 1
    if stopped:
        raise KeyboardInterrupt(f"Stopped after step {trainer.step}; --resume goes on from {run}")
    return figures


def _run(
    trainer: Trainer, run: Path, log: TrainingLog | None, stop_asked: Callable[[], bool], command: str
) -> dict[str, float]:
    """The loop, up to the end of the run or to where it is asked to stop, and saved."""
    config, place, figures = trainer.config, trainer.place, {}
    before, began = trainer.seconds, time.monotonic()
    shown = saved = drawn = began
    rounds = int(trainer.progress * config.epochs)
    bar = tqdm(total=1.0, initial=trainer.progress, disable=bool(place.rank) or None, bar_format=_BAR)
    trainer.model.train()
    for batch in trainer.batches():
        progress = trainer.progress
        rate = learning_rate(config, progress)
        trainer.update(batch, rate)
        now = time.monotonic()
        trainer.seconds = before + now - began
        progress = trainer.progress
        bar.update(progress - bar.n)
        if now - shown > SHOWN_EVERY:
            loss, figure = trainer.means()
            trainer.check(loss)
            bar.set_postfix_str(f"step {trainer.step}, loss {loss:.4f}, {trainer.task.best_by} {figure:.2f}")
            shown = now
        if int(progress * config.epochs) > rounds:
            rounds = int(progress * config.epochs)
            figures = {"step": trainer.step, "lr": rate, **trainer.test()}
            trainer.seconds = figures["seconds"] = before + time.monotonic() - began
            better = figures[trainer.task.best_by] < trainer.best
            trainer.best = min(figures[trainer.task.best_by], trainer.best)
            if log:
                log.write(trainer.step, **{k: v for k, v in figures.items() if k != "step"})
                if time.monotonic() - drawn > DRAWN_EVERY:
                    log.plot()
                    drawn = time.monotonic()
                tqdm.write(_line(figures), file=sys.stderr)
                if better:
                    checkpoints.save(trainer.model, run / MODEL, _metadata(trainer, command, figures))
            trainer.save(run / CHECKPOINT)
            saved = time.monotonic()
        if trainer.progress >= 1:
            break
        if place.any(stop_asked() or now - saved > SAVED_EVERY):
            trainer.check(trainer.means()[0])
            trainer.save(run / CHECKPOINT)
            saved = now
            if place.any(stop_asked()):
                break
    bar.close()
    return figures


_BAR = "{percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}"


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Convolutions in bfloat16 where ``amp`` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bfloat16")


class _Steps:
    """The keys of a process's batches from a step on, without end."""

    def __init__(self, first: int, places: range) -> None:
        self.first, self.places = first, places

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first
        while True:
            yield [(step, place) for place in self.places]
            step += 1


def _task(config: TrainingConfig, samples: Samples, held_out: Samples) -> Task:
    kind = LightTask if config.network == "lcnet" else NormalTask
    return kind(config, samples, held_out)


def _fixed(config: TrainingConfig) -> dict[str, object]:
    """The recipe without what may change when a run goes on; tuples as they come back from a file."""
    return {name: value for name, value in asdict(config).items() if name not in BUDGET}


def _lights_line(sets: tuple[FoundSamples, FoundSamples]) -> str:
    (own, own_strength), (new, new_strength) = (samples.errors() for samples in sets)
    return (
        f"lights by LCNet: {own:.2f} degrees off, intensities {own_strength:.3f}; {new:.2f} and {new_strength:.3f} on "
        "the held-out samples"
    )


def _line(figures: dict[str, float]) -> str:
    shown = [name for name in figures if name not in ("step", "lr", "seconds")]
    text = ", ".join(f"{name} {figures[name]:.{4 if 'loss' in name else 2}f}" for name in shown)
    return f"step {figures['step']}: {text}; {figures['seconds']:.0f} s"


def _log(trainer: Trainer, run: Path, command: str) -> TrainingLog:
    about = {"command": command, "config": asdict(trainer.config), "data": trainer.about_data()}
    panels = (Panel(("train_loss",), "loss", log=True), *trainer.task.panels, Panel(("lr",)))
    return open_log(run, "psfcn", "ps-fcn", trainer.place, panels, about, done=trainer.step, extra="ps-fcn[train]")


def _metadata(trainer: Trainer, command: str, figures: dict[str, float]) -> dict[str, str]:
    """What the weights say of themselves, beside what :func:`psfcn.checkpoints.save` adds."""
    by = trainer.task.samples.lights_by
    return ({"lights": "lcnet", "lights_by": by} if by else {}) | {
        "command": command,
        "seed": str(trainer.config.seed),
        "config": json.dumps(asdict(trainer.config)),
        "figures": json.dumps(figures),
    }
