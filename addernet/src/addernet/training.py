"""Training as the paper does (AdderNet, section 4), in a plain loop.

One step: draw a batch; cross-entropy; backward; in ``optimizer.step()`` first each adder layer's gradient is brought
to its local learning rate (section 3.3, :mod:`addernet.local_rate`), then SGD as everywhere. The rate follows half
a cosine, epoch by epoch. The same command under ``torchrun`` shares each batch among processes; rank 0 writes.

A run's folder holds ``last.pt`` (to resume from, to the same bits on a CPU), ``model.safetensors`` (to use), and
what :mod:`papershelf.training_log` writes.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.processes import Place, joined, stop_requests
from papershelf.resuming import read_state
from papershelf.training_log import METRICS, Panel, TrainingLog, open_log
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from addernet import checkpoints
from addernet.architectures import build
from addernet.batches import Batch, PlainBatches, TrainingBatches
from addernet.datasets import DataSet, open_data
from addernet.evaluation import BATCH, autocast, score
from addernet.local_rate import attach
from addernet.recipes import TrainingConfig, learning_rate

CHECKPOINT, MODEL = "last.pt", "model.safetensors"
SHOWN_EVERY = 0.5  # seconds between figures beside the progress bar, each of which waits for a GPU
DRAWN_EVERY = 10.0  # seconds between pictures of the curves: one takes half a second, an epoch may take two
SAVED_EVERY = 600.0  # seconds of an epoch after which its state is saved
CURVES = (
    Panel(("train_loss", "test_loss"), "cross-entropy"),
    Panel(("train_accuracy", "test_accuracy"), "%"),
    Panel(("lr",)),
)


class Trainer:
    """Network, optimizer and data of a run, and the step it is at.

    Args:
        config: the recipe.
        data: with both parts.
        place: of this process.
        workers: processes that read photographs.
        from_conv: weights of a convolutional network to start from.

    Raises:
        UserError: the data set does not fit, or the batch cannot be shared.
    """

    def __init__(
        self, config: TrainingConfig, data: DataSet, place: Place, workers: int = 0, from_conv: Path | None = None
    ) -> None:
        self.config, self.data, self.place = config, data, place
        torch.manual_seed(config.seed)
        classes = len(data.classes)
        self.model = _network(config, classes, data.image_size, from_conv).to(place.device)
        size = self.model.config.input_size
        self.batches = TrainingBatches(
            data,
            size,
            config.batch,
            place,
            seed=config.seed,
            cutout=config.cutout,
            augment=config.augment,
            parts=config.accumulate,
            workers=workers,
        )
        self.tests = PlainBatches(data, "test", size, BATCH, place, workers)
        self.steps = self.batches.steps  # an epoch's
        self.total = config.epochs * self.steps
        self.shared: nn.Module = self.model
        if place.world > 1:
            ids = [place.device] if place.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=ids)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        attach(self.optimizer, self.model, config.eta)
        # float16 loses small gradients, so the loss is scaled up; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=config.amp == "float16")
        self.averaged = copy.deepcopy(self.model) if config.ema else None
        self.step = 0
        self.seconds = 0.0  # of the present epoch, training only
        self.sums = torch.zeros(3, dtype=torch.float64, device=place.device)  # loss, right answers, images

    def update(self, batch: Batch) -> None:
        """One step of the algorithm."""
        rate = learning_rate(self.config, self.step // self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        parts = [*zip(*(tensor.chunk(self.config.accumulate) for tensor in batch), strict=True)]
        for number, (x, labels) in enumerate(parts, 1):
            # Gradients travel between processes once, after the last part.
            wait = self.place.world > 1 and number < len(parts)
            with self.shared.no_sync() if wait else nullcontext():
                with autocast(self.place.device, self.config.amp):
                    logits = self.shared(x)
                loss = F.cross_entropy(logits.float(), labels)
                self.scaler.scale(loss * (len(labels) / len(batch.labels))).backward()
            right = (logits.detach().argmax(1) == labels).double()
            self.sums += torch.stack([loss.detach().double() * len(labels), right.sum(), torch.ones_like(right).sum()])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged:
            _average(self.averaged, self.model, self.config.ema)
        self.step += 1

    def means(self) -> tuple[float, float]:
        """Loss and share of right answers over the present epoch so far, in this process."""
        loss, right, images = self.sums.tolist()
        return loss / images, right / images

    def finish_epoch(self) -> dict[str, float]:
        """The figures of the epoch that has just ended, tested; the next one begins at zero.

        Raises:
            UserError: the loss is no number any more.
        """
        epoch = self.step // self.steps
        loss, right, images = self.place.summed(self.sums).tolist()
        self.check(loss / images)
        kept = self.kept
        kept.eval()
        scores = score(kept, self.tests, len(self.data.classes), self.place, self.config.amp)
        figures = {
            "lr": learning_rate(self.config, epoch - 1),
            "train_loss": loss / images,
            "train_accuracy": 100 * right / images,
            "test_loss": scores.loss,
            "test_accuracy": 100 * scores.top1,
            "test_top5": 100 * scores.top5,
            "seconds": self.seconds,
            "images_per_second": images / self.seconds,
        }
        self.sums.zero_()
        self.seconds = 0.0
        return figures

    @property
    def kept(self) -> nn.Module:
        """The network that is tested and kept: the averaged one where there is one."""
        return self.averaged or self.model

    def check(self, loss: float) -> None:
        """UserError where the loss is no number; asked before anything is saved."""
        if not math.isfinite(loss):
            epoch = (self.step - 1) // self.steps + 1
            raise UserError(
                f"the loss is {loss} in epoch {epoch}, step {self.step}; what was saved before is kept; choose a "
                "lower --lr"
            )

    def save(self, file: Path) -> None:
        """Write what :meth:`load` needs; every process must call it, the first one writes."""
        sums = self.place.summed(self.sums).cpu()
        if self.place.rank:
            return
        state = {
            "config": asdict(self.config),
            "data": self.about_data(),
            "step": self.step,
            "seconds": self.seconds,
            "sums": sums,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with atomic_path(file) as part:
            torch.save(state, part)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint: of the same recipe and data, or a UserError says what differs."""
        state = read_state(file, asdict(self.config) | self.about_data(), ("data",))
        self.model.load_state_dict(state["model"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.place.rank == 0:  # the sums are those of all processes
            self.sums.copy_(state["sums"])

    def about_data(self) -> dict[str, object]:
        """What must be the same for a run to go on."""
        parts = self.data.parts
        return {
            "images": len(parts["train"]),
            "test_images": len(parts["test"]),
            "classes": list(self.data.classes),
        }


def train(
    config: TrainingConfig,
    path: Path,
    run: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    from_conv: Path | None = None,
    command: str = "",
) -> dict[str, float]:
    """Train a network on a data set.

    Args:
        config: the recipe, from :func:`addernet.recipes.recipe`.
        path: of the data set, see :mod:`addernet.datasets`.
        run: folder for all that comes of it; made if need be.
        device: ``auto``, ``cpu`` or ``cuda``; under torchrun each process takes its own GPU.
        workers: processes that read photographs; what is read does not depend on their number.
        resume: go on from the run's checkpoint.
        from_conv: weights of a convolutional network to start from.
        command: for the record.

    Returns:
        The last epoch's figures: epoch, lr, losses, accuracies in percent, seconds, images_per_second.

    Raises:
        UserError: data, run folder or checkpoint do not fit, or the loss is no number any more.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what was learnt by then is saved.
    """
    with joined(device) as place, stop_requests() as stop_asked:
        # Asked by one process for all: the first begins to write as soon as it knows.
        if not resume and place.any(place.rank == 0 and (run / METRICS).exists()):
            raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with -o")
        trainer = Trainer(config, open_data(path, limit=config.limit), place, workers, from_conv)
        if resume:
            trainer.load(run / CHECKPOINT)
            if trainer.step == trainer.total:
                raise UserError(f"{run} is complete with {config.epochs} epochs; its weights are {run / MODEL}")
        log = _log(trainer, run, command) if place.rank == 0 else None
        figures: dict[str, float] = {}
        bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=bool(place.rank) or None)
        stopped, drawn = False, time.monotonic()
        while trainer.step < trainer.total and not stopped:
            if not _train_epoch(trainer, run, bar, stop_asked):
                stopped = True
                break
            epoch = trainer.step // trainer.steps
            figures = trainer.finish_epoch()
            if log:
                log.write(epoch, **figures)
                if time.monotonic() - drawn > DRAWN_EVERY:
                    log.plot()
                    drawn = time.monotonic()
                tqdm.write(_line(epoch, config.epochs, figures), file=sys.stderr)
                checkpoints.save(trainer.kept, run / MODEL, _metadata(trainer, command, {"epoch": epoch, **figures}))
            trainer.save(run / CHECKPOINT)
            stopped = trainer.step < trainer.total and place.any(stop_asked())
        bar.close()
        if log:
            log.plot()
            log.close()
    if stopped:
        raise KeyboardInterrupt(f"Stopped after step {trainer.step} of {trainer.total}; --resume goes on from {run}")
    return {"epoch": trainer.step // trainer.steps, **figures}


def _train_epoch(trainer: Trainer, run: Path, bar: tqdm, stop_asked: Callable[[], bool]) -> bool:
    """The rest of the present epoch; False where it was asked to stop before its end, and saved."""
    epoch, start = divmod(trainer.step, trainer.steps)
    place = trainer.place
    trainer.model.train()
    before, began = trainer.seconds, time.monotonic()
    shown = saved = began
    for batch in trainer.batches.epoch(epoch, start):
        trainer.update(batch)
        bar.update()
        now = time.monotonic()
        trainer.seconds = before + now - began
        last = trainer.step % trainer.steps == 0
        if now - shown > SHOWN_EVERY or last:
            loss, right = trainer.means()
            trainer.check(loss)
            bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.3f}, accuracy {100 * right:.1f}%")
            shown = now
        if not last and place.any(stop_asked() or now - saved > SAVED_EVERY):
            trainer.check(trainer.means()[0])
            trainer.save(run / CHECKPOINT)
            saved = now
            if place.any(stop_asked()):
                return False
    trainer.seconds = before + time.monotonic() - began  # now that a GPU has been waited for
    return True


def _network(config: TrainingConfig, classes: int, image_size: int | None, from_conv: Path | None) -> nn.Module:
    if from_conv is None:
        return build(config.arch, op=config.op, classes=classes, input_size=image_size, eta=config.eta)
    if config.op != "adder":
        raise UserError("--from-conv starts an adder network; leave out --op conv")
    return checkpoints.from_conv(from_conv, config.arch, classes)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """``averaged <- decay averaged + (1 - decay) model``, the statistics of batch norms included."""
    for kept, now in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


def _line(epoch: int, epochs: int, figures: dict[str, float]) -> str:
    return (
        f"epoch {epoch}/{epochs}: train loss {figures['train_loss']:.4f}, {figures['train_accuracy']:.2f}%; "
        f"test loss {figures['test_loss']:.4f}, {figures['test_accuracy']:.2f}%; "
        f"{figures['seconds']:.1f} s, {figures['images_per_second']:.0f} images/s"
    )


def _log(trainer: Trainer, run: Path, command: str) -> TrainingLog:
    data = trainer.data
    about = {
        "command": command,
        "config": asdict(trainer.config),
        "data": {"name": data.name, **trainer.about_data(), "mean": data.mean, "std": data.std},
        "steps": trainer.total,
    }
    return open_log(
        run,
        "addernet",
        "papershelf-addernet",
        trainer.place,
        CURVES,
        about,
        done=trainer.step // trainer.steps,
        count="epoch",
        extra="papershelf-addernet[train]",
    )


def _metadata(trainer: Trainer, command: str, figures: dict[str, float]) -> dict[str, str]:
    """What the weights say of themselves, beside what :func:`addernet.checkpoints.save` adds."""
    data = trainer.data
    return {
        "class_names": json.dumps(data.classes),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "command": command,
        "seed": str(trainer.config.seed),
        "training": json.dumps(asdict(trainer.config)),
        "figures": json.dumps(figures),
    }
