"""A run of training from its samples to the weights (:mod:`distrender.autodecoder` has the algorithm).

The same command under ``torchrun`` shares the shapes of a step among processes; rank 0 writes. A run's folder holds
``last.pt`` (to resume from, to the same bits on a CPU), ``model.safetensors`` (network and codes, to use; written anew
every few minutes), pictures of some shapes, the samples that were prepared (``data``), and what
:mod:`papershelf.training_log` writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from papershelf.errors import UserError
from papershelf.images import write_image
from papershelf.processes import joined, stop_requests
from papershelf.training_log import METRICS, Panel, TrainingLog, open_log
from tqdm import tqdm

from distrender import reconstruction
from distrender.autodecoder import Trainer, TrainingOptions
from distrender.sampling import SamplingOptions
from distrender.training_data import open_training_set

CHECKPOINT, MODEL, PICTURES = "last.pt", "model.safetensors", "pictures"
LOGGED = 50  # steps a line of metrics.jsonl stands for
CURVES = (Panel(("loss",), "mean |clamped error|", log=True), Panel(("code_norm",)), Panel(("lr",)))


@dataclass(frozen=True)
class RunOptions:
    """What does not change what is learnt.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; under torchrun each process takes its own GPU.
        workers: processes that prepare samples.
        resume: go on from the run's checkpoint.
        half: keep the weights in half precision.
        shown: training shapes on each picture; 0 for no pictures.
        save_every: seconds from one saved state, with its picture, to the next.
        command: for the record.
    """

    device: str = "auto"
    workers: int = 0
    resume: bool = False
    half: bool = False
    shown: int = 6
    save_every: float = 240.0
    command: str = ""


def train(
    options: TrainingOptions,
    source: str,
    run: Path,
    settings: RunOptions = RunOptions(),
    *,
    split: Path | None = None,
    shapes: int | None = None,
) -> dict[str, float]:
    """Train a decoder on the shapes of a source.

    Args:
        options: the recipe.
        source: of the shapes, see :func:`distrender.training_data.find`.
        run: folder for all that comes of it; made if need be.
        settings: where and how it runs.
        split: DeepSDF's JSON file of which shapes to take.
        shapes: how many shapes at most.

    Returns:
        The last figures: step, loss, code_norm, lr, seconds, shapes, and how well shapes are reconstructed.

    Raises:
        UserError: source, run folder or checkpoint do not fit, or the loss is no number any more.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what was learnt by then is saved.
    """
    with joined(settings.device) as place:
        if not settings.resume and place.any(place.rank == 0 and (run / METRICS).exists()):
            raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with -o")
        data = open_training_set(
            source,
            run,
            SamplingOptions(count=options.samples),
            split=split,
            shapes=shapes,
            seed=options.seed,
            workers=settings.workers,
            place=place,
        )
        trainer = Trainer(options, data, place)
        if settings.resume:
            trainer.load(run / CHECKPOINT)
            if trainer.step == trainer.total:
                raise UserError(f"{run} is complete with {trainer.total} steps; its weights are {run / MODEL}")
        log = _log(trainer, run, settings.command) if place.rank == 0 else None
        figures = _loop(trainer, run, settings, log)
        if place.rank == 0 and figures:
            figures |= {"shapes": len(data.names), **reconstruction.near_surface(*trainer.on_cpu(), data)}
            _export(trainer, run, settings, figures)
        if log:
            log.close()
    if trainer.step < trainer.total:
        raise KeyboardInterrupt(f"Stopped after step {trainer.step} of {trainer.total}; --resume goes on from {run}")
    return {"step": trainer.step, **figures}


def _loop(trainer: Trainer, run: Path, settings: RunOptions, log: TrainingLog | None) -> dict[str, float]:
    """All steps that are left; the last line's figures, or none where it was asked to stop before the end."""
    place = trainer.place
    figures: dict[str, float] = {}
    bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=bool(place.rank) or None)
    before, began = trainer.seconds, time.monotonic()
    saved = began
    with stop_requests() as stop_asked:
        while trainer.step < trainer.total:
            trainer.update()
            bar.update()
            now = time.monotonic()
            trainer.seconds = before + now - began
            last = trainer.step == trainer.total
            if trainer.step % LOGGED == 0 or last:
                figures = trainer.figures()
                bar.set_postfix_str(f"loss {figures['loss']:.5f}")
                if log:
                    log.write(trainer.step, **figures)
            stop = place.any(stop_asked())
            if last or stop or place.any(now - saved > settings.save_every):
                trainer.save(run / CHECKPOINT)
                if place.rank == 0:
                    _export(trainer, run, settings, figures)
                    if settings.shown:
                        _show(trainer, run, settings.shown)
                    if log:
                        log.plot()
                saved = time.monotonic()
            if stop and not last:
                return {}
    bar.close()
    return figures


def _export(trainer: Trainer, run: Path, settings: RunOptions, figures: Mapping[str, float]) -> None:
    metadata = {
        "command": settings.command,
        "seed": str(trainer.options.seed),
        "training": json.dumps(asdict(trainer.options)),
        "figures": json.dumps({"step": trainer.step, **figures}),
    }
    trainer.export(run / MODEL, settings.half, metadata)


def _show(trainer: Trainer, run: Path, count: int) -> None:
    (run / PICTURES).mkdir(exist_ok=True)
    decoder, codes = trainer.on_cpu()
    chosen = codes[reconstruction.some(len(codes), count)]
    write_image(run / PICTURES / f"{trainer.step:07d}.png", reconstruction.sheet(decoder, chosen))


def _log(trainer: Trainer, run: Path, command: str) -> TrainingLog:
    about = {
        "command": command,
        "config": asdict(trainer.options),
        **trainer.about_data(),
        "samples": len(trainer.data.pos) + len(trainer.data.neg),
        "steps": trainer.total,
    }
    return open_log(run, "dist-render", "dist-render", trainer.place, CURVES, about, done=trainer.step)
