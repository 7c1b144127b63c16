"""Training RIFE and RIFEm as the paper does (section 4.1), in a plain loop.

One step: draw a batch of triplets; student and teacher predict the middle frame (figure 3); the loss of
section 3.4; AdamW, its rate rising over 2000 steps and falling along a cosine to the end. The same command
under ``torchrun`` shares each batch among processes, each on its own GPU; rank 0 writes.

A run's folder holds ``checkpoint.pt`` (to resume from, to the same bits on a CPU), ``best.safetensors`` and
``last.safetensors`` (to use), and what :mod:`papershelf.training_log` writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.metrics import psnr
from papershelf.processes import Place, joined, read, stop_requests
from papershelf.resuming import read_state
from papershelf.training_log import METRICS, Panel, TrainingLog, open_log
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rife import checkpoints
from rife.losses import LEVELS, SMALLEST, Losses, rife_loss
from rife.model import Rife
from rife.presets import PAPER, RIFEM, RifeConfig
from rife.triplets import SEPTUPLET, TRIPLET, Draws, Sample, Sequences, TrainingSamples, ValidationSamples

CHECKPOINT, BEST, LAST = "checkpoint.pt", "best.safetensors", "last.safetensors"
LOG_EVERY = 50  # steps that a logged loss is the mean of
SHORTEST_ROUND = 100  # steps between validations where a pass over the data has fewer
EQUAL = 100.0  # dB given to frames that are equal in every bit, which have no finite PSNR
CURVES = (
    Panel(("loss", "student", "teacher"), log=True),
    Panel(("val_psnr", "val_average"), unit="dB"),
    Panel(("lr",)),
)
TRAINABLE = {"paper": PAPER, "rifem": RIFEM}


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe; what section 4.1 does not say is marked."""

    preset: str = "paper"  # or rifem (section 3.5)
    width_factor: float = 1.0  # not in the paper: all channels but the frames' times this
    epochs: int = 300  # section 4.1
    steps: int | None = None  # not in the paper: the length in steps instead of passes over the data
    batch: int = 64  # section 4.1; over all processes
    crop: int = 224  # section 4.1
    augment: bool = True  # section 4.1; False to overfit on purpose
    learning_rate: float = 3e-4  # section 4.1
    final_learning_rate: float = 3e-6  # section 4.1
    warmup: int = 2000  # section 4.1, steps; at most a tenth of the run, which the paper's is far above
    weight_decay: float = 1e-3  # section 4.1
    distill: float = 0.01  # section 3.4; 0.005 or 0.002 for RIFEm
    amp: bool = False  # not in the paper: convolutions in bfloat16
    validate_every: int | None = None  # not in the paper: steps; None: a pass over the data, at least 100
    seed: int = 0  # not in the paper: of weights, order and augmentation


def recipe(preset: str, **changes: object) -> TrainingConfig:
    """The paper's values for a preset, with ``changes``; those that are None stay the paper's.

    Raises:
        UserError: the preset cannot be trained, or a value makes no sense.
    """
    if preset not in TRAINABLE:
        raise UserError(f"there is no recipe for {preset}; choose one of {', '.join(TRAINABLE)}")
    own = {"distill": 0.005} if preset == "rifem" else {}
    config = TrainingConfig(**{"preset": preset, **own, **{k: v for k, v in changes.items() if v is not None}})
    least = {"epochs": 1, "steps": 1, "batch": 1, "warmup": 0, "validate_every": 1, "distill": 0, "weight_decay": 0}
    for name, value in least.items():
        if (given := getattr(config, name)) is not None and given < value:
            raise UserError(f"{name} must be at least {value}, got {given}")
    if not 0 <= config.final_learning_rate <= config.learning_rate or not 0.05 <= config.width_factor <= 4:
        raise UserError("learning rates must not be negative nor rise at the end, and the width factor be 0.05 to 4")
    if config.crop % 2**LEVELS or config.crop < SMALLEST:
        raise UserError(f"the crop must be a multiple of {2**LEVELS}, at least {SMALLEST}, got {config.crop}")
    return config


def network_of(config: TrainingConfig) -> RifeConfig:
    """The preset's network, every width times ``width_factor`` and even."""
    network = TRAINABLE[config.preset]
    widths = tuple(2 * max(1, round(width * config.width_factor / 2)) for width in network.widths)
    refinement = replace(network.refinement, width=max(1, round(network.refinement.width * config.width_factor)))
    return replace(network, widths=widths, refinement=refinement)


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Section 4.1: linear warm-up, then half a cosine from the highest to the final rate."""
    warmup = min(config.warmup, total // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


class Objective(nn.Module):
    """The loss as one module, so that DistributedDataParallel sees its forward pass.

    Args:
        model: to be trained.
        distill: weight of the leakage distillation.
        amp: convolutions in bfloat16; flow, mask, frames and the loss stay float32.
    """

    def __init__(self, model: Rife, distill: float, amp: bool = False) -> None:
        super().__init__()
        self.model, self.distill, self.amp = model, distill, amp

    def forward(self, img0: Tensor, img1: Tensor, gt: Tensor, t: Tensor) -> Losses:
        """Frames ``[N, 3, H, W]`` in [0, 1] and times ``[N, 1, 1, 1]`` to the terms of the loss."""
        with torch.autocast(img0.device.type, torch.bfloat16) if self.amp else nullcontext():
            output = self.model.forward_train(img0, img1, gt, t)
        return rife_loss(output, gt, self.distill)


class Trainer:
    """Model, optimizer and data of a run, and the step it is at.

    Args:
        config: the recipe.
        data: folder of the data set.
        place: of this process.
        workers: processes that read images.

    Raises:
        UserError: the data set does not fit, or the batch cannot be shared.
    """

    def __init__(self, config: TrainingConfig, data: Path, place: Place, workers: int = 0) -> None:
        if config.batch % place.world:
            raise UserError(
                f"a batch of {config.batch} cannot be shared by {place.world} processes; choose a multiple of it"
            )
        self.config, self.place, self.workers = config, place, workers
        length = TRIPLET if config.preset == "paper" else SEPTUPLET
        self.sequences = Sequences(data, "train", length)
        self.validation = ValidationSamples(Sequences(data, "test", length))
        self.round = -(-len(self.sequences) // config.batch)  # steps in which every sequence is drawn
        self.total = config.steps or config.epochs * self.round
        self.validate_every = config.validate_every or max(self.round, SHORTEST_ROUND)

        torch.manual_seed(config.seed)
        cuda = place.device.type == "cuda"
        layout = torch.channels_last if cuda else torch.contiguous_format  # tensor cores want the former
        self.model = Rife(network_of(config)).to(place.device, memory_format=layout)
        self.objective = Objective(self.model, config.distill, config.amp)
        if place.world > 1:
            self.objective = DistributedDataParallel(self.objective, device_ids=[place.device] if cuda else None)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.best = 0, -1.0
        self.losses = torch.zeros(len(Losses._fields), device=place.device)  # sums since they were last logged
        self.losses_of = 0  # steps in these sums

    def batches(self) -> Iterator[Sample]:
        """The batches from the present step to the last: this process's share of each."""
        config, place = self.config, self.place
        samples = TrainingSamples(self.sequences, config.crop, config.seed, config.augment)
        steps = range(self.step, self.total)
        draws = Draws(len(self.sequences), config.batch, steps, config.seed, place.rank, place.world)
        return read(samples, place, self.workers, batch_sampler=draws)

    def update(self, batch: Sample) -> None:
        """One step of the algorithm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total)
        terms = self.objective(*on_device(batch, self.place.device))
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimizer.step()
        self.losses += torch.stack([term.detach() for term in terms])
        self.losses_of += 1
        self.step += 1

    def mean_losses(self) -> dict[str, float]:
        """The terms of the loss, averaged over the steps since the last call and over processes."""
        means = self.place.summed(self.losses) / (self.place.world * self.losses_of)
        self.losses.zero_()
        self.losses_of = 0
        return dict(zip(("loss", *Losses._fields[1:]), means.tolist(), strict=True))

    def save(self, file: Path) -> None:
        """Write what :meth:`load` needs; every process must call it, the first one writes."""
        losses = self.place.summed(self.losses).cpu()
        if self.place.rank:
            return
        state = {
            "config": asdict(self.config),
            "sequences": len(self.sequences),
            "step": self.step,
            "best": self.best,
            "losses": losses,
            "losses_of": self.losses_of,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(file) as part:
            torch.save(state, part)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint: of the same recipe and data, or a UserError says what differs."""
        state = read_state(file, asdict(self.config) | {"sequences": len(self.sequences)}, ("sequences",))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.losses_of = state["step"], state["best"], state["losses_of"]
        if self.place.rank == 0:
            self.losses.copy_(state["losses"])


@torch.no_grad()
def validate(model: Rife, samples: ValidationSamples, place: Place, workers: int = 0) -> dict[str, float]:
    """PSNR of whole frames, rounded to 8 bits, averaged in dB.

    Args:
        model: on the place's device.
        samples: shared among the processes.
        place: of this process.
        workers: processes that read images.

    Returns:
        ``val_psnr`` of the network, and ``val_average`` of the mean of both frames.
    """
    mine = range(place.rank, len(samples), place.world)
    sums = torch.zeros(3, dtype=torch.float64)
    multiple = model.padding_multiple()
    for sample in read(samples, place, workers, sampler=mine, batch_size=None):
        img0, img1, gt, t = on_device(Sample(*(x[None] for x in sample)), place.device)
        h, w = gt.shape[-2:]
        pad = (0, -w % multiple, 0, -h % multiple)
        frame = model(F.pad(img0, pad), F.pad(img1, pad), t).frame[..., :h, :w]
        scores = [min(psnr((x * 255).round() / 255, gt), EQUAL) for x in (frame, (img0 + img1) / 2)]
        sums += torch.tensor([*scores, 1], dtype=torch.float64)
    own, average, count = place.summed(sums.to(place.device)).tolist()
    return {"val_psnr": own / count, "val_average": average / count}


def train(
    config: TrainingConfig,
    data: Path,
    run: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    command: str = "",
) -> dict[str, float]:
    """Train a network on a data set in the layout of Vimeo90K.

    Args:
        config: the recipe, from :func:`recipe`.
        data: triplets for ``paper``, septuplets for ``rifem``, with both lists.
        run: folder for all that comes of it; made if need be.
        device: ``auto``, ``cpu`` or ``cuda``; under torchrun each process takes its own GPU.
        workers: processes that read images; what is read does not depend on their number.
        resume: go on from the run's checkpoint.
        command: for the record.

    Returns:
        The last figures: step, val_psnr and val_average in dB, best, seconds.

    Raises:
        UserError: data, run folder or checkpoint do not fit, or the loss is no number any more.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what was learnt by then is saved.
    """
    with joined(device) as place, stop_requests() as stop_asked:
        trainer = Trainer(config, data, place, workers)
        if resume:
            trainer.load(run / CHECKPOINT)
            if trainer.step == trainer.total:
                raise UserError(f"{run} is complete with {trainer.step} steps; its weights are {LAST} and {BEST}")
        # Asked by one process for all: the first begins to write as soon as it knows.
        elif place.any(place.rank == 0 and (run / METRICS).exists()):
            raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with -o")
        log = _log(trainer, run, command) if place.rank == 0 else None
        figures: dict[str, float] = {}
        began, stopped = time.monotonic(), False
        bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=bool(place.rank) or None)
        for batch in trainer.batches():
            trainer.update(batch)
            step, last = trainer.step, trainer.step == trainer.total
            bar.update()
            if step % LOG_EVERY == 0 or last:
                figures |= trainer.mean_losses()
                if not math.isfinite(figures["loss"]):
                    raise UserError(f"the loss is {figures['loss']} at step {step}; choose a lower --learning-rate")
                bar.set_postfix({name: f"{figures[name]:.4g}" for name in ("loss", "val_psnr") if name in figures})
                if log:
                    rate = learning_rate(config, step - 1, trainer.total)
                    terms = {name: figures[name] for name in ("loss", *Losses._fields[1:])}
                    log.write(step, **terms, lr=rate, epoch=step / trainer.round, seconds=time.monotonic() - began)
            if step % trainer.validate_every == 0 or last:
                quality = validate(trainer.model, trainer.validation, place, workers)
                better = quality["val_psnr"] > trainer.best
                trainer.best = max(trainer.best, quality["val_psnr"])
                figures |= {**quality, "step": step, "best": trainer.best, "seconds": time.monotonic() - began}
                if log:
                    log.write(step, **quality)
                    log.plot()
                    for name in (LAST, BEST)[: 1 + better]:
                        checkpoints.save(trainer.model, run / name, _metadata(config, command, figures))
                trainer.save(run / CHECKPOINT)
            if not last and place.any(stop_asked()):
                trainer.save(run / CHECKPOINT)
                stopped = True
                break
        bar.close()
        if log:
            log.close()
    if stopped:
        raise KeyboardInterrupt(f"Stopped after step {trainer.step} of {trainer.total}; --resume goes on from {run}")
    return figures


def on_device(batch: Sample, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """img0, img1 and gt in [0, 1], and t as ``[N, 1, 1, 1]``."""
    img0, gt, img1 = (x.to(device, non_blocking=True).float() / 255 for x in (batch.img0, batch.gt, batch.img1))
    return img0, img1, gt, batch.t.to(device).view(-1, 1, 1, 1)


def _log(trainer: Trainer, run: Path, command: str) -> TrainingLog:
    about = {
        "command": command,
        "config": asdict(trainer.config),
        "sequences": len(trainer.sequences),
        "steps": trainer.total,
    }
    extra = "rife-interp[train]"
    return open_log(run, "rife-interp", "rife-interp", trainer.place, CURVES, about, done=trainer.step, extra=extra)


def _metadata(config: TrainingConfig, command: str, figures: dict[str, float]) -> dict[str, str]:
    """What the weights say of themselves, beside what :func:`rife.checkpoints.save` adds."""
    training, measured = json.dumps(asdict(config)), json.dumps(figures)
    return {"command": command, "seed": str(config.seed), "training": training, "figures": measured}
