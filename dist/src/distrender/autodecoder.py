"""The auto-decoder and one step of its training: DeepSDF (Park et al. 2019), section 4 and its supplement.

There is no encoder: each training shape has a code ``z_i``, drawn from N(0, 0.01^2) and learnt together with the
network. One step takes some shapes and of each some samples (x_j, s_j), as many outside as inside, and lowers eqs. 9
and 4 by Adam::

    sum_j | clamp(f(z_i, x_j), delta) - clamp(s_j, delta) |  +  1 / sigma^2 |z_i|^2

with the sum over samples as a mean, so that ``code_weight`` stands for 1 / sigma^2.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.processes import Place
from papershelf.resuming import read_state
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrender import decoder_files
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from distrender.training_data import TrainingSet


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
