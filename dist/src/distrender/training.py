"""Training an auto-decoder: DeepSDF (Park et al. 2019), section 4 and its supplement, in a plain loop.

There is no encoder: each training shape has a code ``z_i``, drawn from N(0, 0.01^2) and learnt together with the
network. One step takes some shapes and of each some samples (x_j, s_j), as many outside as inside, and lowers eqs. 9
and 4 by Adam::

    sum_j | clamp(f(z_i, x_j), delta) - clamp(s_j, delta) |  +  1 / sigma^2 |z_i|^2

with the sum over samples as a mean, so that ``code_weight`` stands for 1 / sigma^2. The same command under ``torchrun``
shares the shapes of a step among processes; rank 0 writes.

A run's folder holds ``last.pt`` (to resume from, to the same bits on a CPU), ``model.safetensors`` (network and codes,
to use; written anew every few minutes), pictures of some shapes, the samples that were prepared (``data``), and what
:mod:`papershelf.training_log` writes.
"""

from __future__ import annotations

import copy
import json
import math
import time
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image
from papershelf.processes import Place, joined, stop_requests
from papershelf.resuming import read_state
from papershelf.training_log import METRICS, Panel, TrainingLog
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from distrender import decoder_files, reconstruction
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.sampling import SamplingOptions
from distrender.training_data import TrainingSet, open_training_set

CHECKPOINT, MODEL, PICTURES = "last.pt", "model.safetensors", "pictures"
LOGGED = 50  # steps a line of metrics.jsonl stands for
CURVES = (Panel(("loss",), "mean |clamped error|", log=True), Panel(("code_norm",)), Panel(("lr",)))


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe, DeepSDF's unless it says otherwise: the paper's, or else the released configuration's.

    Args:
        latent: numbers in a code.
        hidden: numbers in a hidden layer.
        layers: hidden ones.
        skip: which layer sees code and point again; 0 for none.
        epochs: times that each shape is met, unless ``steps`` says how many steps are taken in all.
        steps: in all.
        batch: shapes a step, over all processes.
        points: samples of each, half of them outside.
        lr: of the network, the highest.
        code_lr: of the codes.
        clamp: delta, beyond which distances need not be right.
        code_weight: 1 / sigma^2.
        code_std: of the codes before the first step.
        eikonal: weight of (|gradient| - 1)^2 at the samples within ``clamp`` of a surface.
        bfloat16: share of the steps, the first ones, whose products are taken in bfloat16.
        samples: kept of each shape.
        seed: of codes, network, samples and order.

    Raises:
        UserError: a value makes no sense.
    """

    latent: int = 256  # section 6
    hidden: int = 512  # section 4.2
    layers: int = 8
    skip: int = 4
    epochs: int = 2000  # released configuration
    steps: int | None = None
    batch: int = 64  # released configuration
    points: int = 16_384  # released configuration
    lr: float = 5e-4  # released configuration
    code_lr: float = 1e-3  # supplement
    clamp: float = 0.1  # section 4.2
    code_weight: float = 1e-4  # released configuration
    code_std: float = 0.01  # section 4.2
    eikonal: float = 0.0  # Not in the paper: Gropp et al., arXiv:2002.10099, eq. 2.
    bfloat16: float = 0.0  # Not in the paper: two and a half times as fast where processors multiply it.
    samples: int = 100_000  # The paper has 500,000, on disk; here they stay in memory.
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("epochs", "batch", "samples")}
        counts["steps"] = 1 if self.steps is None else self.steps
        rates = {name: getattr(self, name) for name in ("lr", "code_lr", "clamp")}
        weights = {name: getattr(self, name) for name in ("code_weight", "code_std", "eikonal", "bfloat16")}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}")
        for name, value in (rates | weights).items():
            if not math.isfinite(value) or value < 0 or (value == 0 and name in rates):
                raise UserError(f"{name} must be a positive number, got {value}")
        if self.points < 2 or self.bfloat16 > 1:
            raise UserError(f"points must be 2 or more and bfloat16 at most 1, got {self.points} and {self.bfloat16}")
        self.decoder()  # says what is wrong with it before anything is sampled

    def decoder(self) -> DecoderConfig:
        """The network's architecture."""
        return DecoderConfig(self.latent, self.hidden, self.layers, (self.skip,) if self.skip else ())


class AutoDecoder(nn.Module):
    """The network and a code for each training shape."""

    def __init__(self, options: TrainingOptions, shapes: int) -> None:
        super().__init__()
        self.decoder = DeepSDFDecoder(options.decoder())
        # Not in the paper, whose layers are normalised: He's weights, which start several times as fast as PyTorch's,
        # and a last layer so small that no distance begins beyond the clamp, where nothing would be learnt from it.
        *hidden, last = self.decoder.children()
        for layer in hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=0.1 * last.in_features**-0.5)
        nn.init.zeros_(last.bias)
        self.codes = nn.Parameter(torch.randn(shapes, options.latent) * options.code_std)

    def forward(self, shapes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances ``[B, P]`` of points ``[B, P, 3]`` to the shapes ``[B]``, and their codes ``[B, latent]``."""
        codes = self.codes[shapes]
        return self.decoder(codes[:, None], points).float(), codes


class Trainer:
    """Network, codes, optimizer and samples of a run, and the step it is at.

    Args:
        options: the recipe.
        data: the samples.
        place: of this process.

    Raises:
        UserError: the batch cannot be shared.
    """

    def __init__(self, options: TrainingOptions, data: TrainingSet, place: Place) -> None:
        self.options, self.data, self.place = options, data, place
        self.batch = min(options.batch, len(data.names))
        if self.batch % place.world:
            raise UserError(f"{place.world} processes cannot share {self.batch} shapes a step; change --batch")
        self.epoch_steps = len(data.names) // self.batch
        self.total = options.steps or options.epochs * self.epoch_steps
        torch.manual_seed(options.seed)
        self.model = AutoDecoder(options, len(data.names)).to(place.device)
        self.shared: nn.Module = self.model
        if place.world > 1:
            ids = [place.device] if place.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=ids)
        self.rates = (options.lr, options.code_lr)
        self.optimizer = torch.optim.Adam(
            [{"params": self.model.decoder.parameters()}, {"params": [self.model.codes]}], lr=options.lr
        )
        self.step = 0
        self.seconds = 0.0
        self.sums = torch.zeros(2, dtype=torch.float64, device=place.device)  # errors and steps since the last line

    def schedule(self) -> float:
        """What the rates are multiplied with: half a cosine, from 1 to 0."""
        # Paper: halved every 500 epochs. Half a cosine ends lower, which shows where there are few steps.
        return 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def drawn(self) -> tuple[Tensor, Tensor]:
        """This step's shapes ``[B]``, of this process, and their samples ``[B, P, 4]``."""
        epoch, number = divmod(self.step, self.epoch_steps)
        order = torch.randperm(len(self.data.names), generator=self._random(2 * epoch))
        shapes = order[number * self.batch :][: self.batch]
        samples = self.data.draw(shapes, self.options.points, self._random(2 * self.step + 1))
        # Each process draws them all and takes its share: the same whatever the number of processes.
        mine = slice(self.place.rank, None, self.place.world)
        return shapes[mine].to(self.place.device), samples[mine].to(self.place.device)

    def _random(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.options.seed << 32) + number)

    def update(self) -> None:
        """One step of the algorithm."""
        options = self.options
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule()
        shapes, samples = self.drawn()
        points, distances = samples[..., :3], samples[..., 3]
        points.requires_grad_(options.eikonal > 0)
        rough = self.step < options.bfloat16 * self.total
        with torch.autocast(self.place.device.type, torch.bfloat16) if rough else nullcontext():
            values, codes = self.shared(shapes, points)
        error = (values.clamp(-options.clamp, options.clamp) - distances.clamp(-options.clamp, options.clamp)).abs()
        loss = error.mean() + options.code_weight * codes.square().sum(1).mean()  # eqs. 4 and 9
        if options.eikonal:
            (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
            off = (gradient.norm(dim=-1) - 1).square() * (distances.abs() < options.clamp)
            loss = loss + options.eikonal * off.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.sums += torch.stack([error.detach().mean().double(), torch.ones_like(self.sums[0])])
        self.step += 1

    def figures(self) -> dict[str, float]:
        """Of the steps since the last call; all processes must ask.

        Raises:
            UserError: the loss is no number any more.
        """
        total, steps = self._summed().tolist()
        self.sums.zero_()
        norm = float(self.model.codes.detach().norm(dim=1).mean())
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": total / steps, "code_norm": norm, "lr": rate, "seconds": round(self.seconds, 3)}

    def _summed(self) -> Tensor:
        """The sums over all processes; UserError where the loss is no number any more."""
        sums = self.place.summed(self.sums).cpu()
        if not sums.isfinite().all():
            raise UserError(
                f"the loss is no number at step {self.step}; what was saved before is kept; choose a lower --lr"
            )
        return sums

    def save(self, file: Path) -> None:
        """Write what :meth:`load` needs; every process must call it, the first one writes.

        Raises:
            UserError: the loss is no number any more.
        """
        sums = self._summed()
        if self.place.rank:
            return
        state = {
            "config": asdict(self.options),
            "data": self.about_data(),
            "step": self.step,
            "seconds": self.seconds,
            "sums": sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(file) as part:
            torch.save(state, part)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint: of the same recipe and shapes, or a UserError says what differs."""
        state = read_state(file, asdict(self.options) | self.about_data(), ("data",))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.place.rank == 0:  # the sums are those of all processes
            self.sums.copy_(state["sums"])

    def about_data(self) -> dict[str, object]:
        """What must be the same for a run to go on."""
        return {"shapes": len(self.data.names), "digest": f"{zlib.crc32(self.data.pos.numpy().tobytes()):08x}"}

    def on_cpu(self) -> tuple[DeepSDFDecoder, Tensor]:
        """The network and the codes ``[N, latent]`` as they are now."""
        return copy.deepcopy(self.model.decoder).cpu(), self.model.codes.detach().cpu().clone()

    def export(self, file: Path, half: bool, metadata: Mapping[str, str]) -> None:
        """Write network and codes as ``.safetensors``."""
        decoder, codes = self.on_cpu()
        decoder_files.save(file, decoder, codes, self.data.names, metadata, half=half)


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
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; name another folder with -o") from error
    about = {
        "tool": "dist-render",
        "version": version("dist-render"),
        "torch": torch.__version__,
        "device": str(trainer.place.device),
        "threads": torch.get_num_threads(),
        "processes": trainer.place.world,
        "command": command,
        "config": asdict(trainer.options),
        **trainer.about_data(),
        "samples": len(trainer.data.pos) + len(trainer.data.neg),
        "steps": trainer.total,
    }
    return TrainingLog(run, about, CURVES, done=trainer.step, extra="matplotlib")
