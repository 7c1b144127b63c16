"""New frames between two given ones: quality modes, padding, several times of one pair in one pass.

A mode is a set of networks whose answers are averaged. The paper averages over turned inputs (its
test-time augmentation, "2T"); the average over networks is ours::

    fast       v4.6
    balanced   v4.0
    best       v4.0 and v4.6, each with its inputs also swapped, upright and turned by 180 degrees; and v3.1,
               where it is cached, for frames right in the middle, which are all that it knows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from papershelf.devices import device_named
from papershelf.errors import UserError
from torch import Tensor

from rife import fused
from rife.prepared import Frame, Prepared, supports
from rife.tiling import SHARE, Span, free_memory, tiled, tiles

if TYPE_CHECKING:
    from rife.model import Rife

PIXELS_AT_ONCE = 4 << 20  # of new frames in one pass: more would take memory, and not be faster
DEEPEST_HALVING = 3  # a network for the middle only reaches eighths by halving
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES = (1, 0.5, 0.25)  # of the flow search, for frames of more and more lines
LINES_PER_SCALE = 1440  # up to which scale 1 finds the motion: the networks look 8 cells of 1/8 far


@dataclass(frozen=True)
class Member:
    """One network's part in a mode: its weights, and what is averaged over."""

    weights: str
    ensemble: bool = False  # also on swapped inputs
    turned: bool = False  # also turned by 180 degrees


MODES = {
    "fast": (Member("v4.6"),),
    "balanced": (Member("v4.0"),),
    "best": (Member("v4.0", ensemble=True, turned=True), Member("v4.6", ensemble=True, turned=True)),
}
MIDDLE = {"best": Member("v3.1", turned=True)}  # joins in at t = 0.5 where its weights are cached


def members(mode: str) -> tuple[Member, ...]:
    """What a mode consists of on this machine."""
    from rife import weights

    more = MIDDLE.get(mode)
    return MODES[mode] + ((more,) if more and weights.cached(more.weights) else ())


def precision_named(name: str, device: torch.device) -> torch.dtype:
    """A name of :data:`PRECISIONS`, or ``auto``: half precision where the device multiplies in it.

    That is float16 on a GPU, and bfloat16 on a processor that has instructions for it; what it costs is
    in the README (nothing that two decimals of a decibel show). float32 on any other processor.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def usual_scale(height: int, width: int) -> float:
    """The scale for a frame size: 1 up to 1440 lines, 0.5 for 4K, 0.25 for 8K."""
    lines = min(height, width)
    return next((scale for scale in SCALES if lines * scale <= LINES_PER_SCALE), SCALES[-1])


class Interpolator:
    """Networks on a device, ready to make frames.

    Args:
        networks: models with what to average over; their answers are averaged.
        device: where they run.
        scale: at which resolution motion is estimated, relative to the frame's: 0.5 for 4K.
        precision: of the convolutions; coordinates and blend are float32 always.
        memory: bytes that the networks may take while they run; frames that need more are cut into
            tiles. Half of what is free unless given.
        plain: use the plain network even where :mod:`rife.prepared` has a faster form of it.

    Raises:
        UserError: no such device.
    """

    def __init__(
        self,
        networks: Sequence[tuple[Rife, Member]],
        *,
        device: str | torch.device = "cpu",
        scale: float = 1.0,
        precision: str = "auto",
        memory: int | None = None,
        plain: bool = False,
    ) -> None:
        self.device = device_named(device) if isinstance(device, str) else device
        self.scale = scale
        self.dtype = precision_named(precision, self.device)
        self.networks: list[tuple[_Plain | _Fast, Member]] = []
        for model, member in networks:
            fast = not plain and supports(model.config, scale) and fused.available(self.device)
            self.networks.append(((_Fast if fast else _Plain)(model, self.device, self.dtype, scale), member))
        self.any_time = any(model.config.timestep for model, _ in networks)
        memory = int(SHARE * free_memory(self.device)) if memory is None else memory
        self.pixels = max(1, memory // max(network.bytes_per_pixel for network, _ in self.networks))

    @classmethod
    def from_mode(cls, mode: str, *, device: str = "auto", **options: object) -> Interpolator:
        """The networks of a mode, their weights fetched if they are not there yet."""
        from rife import checkpoints, weights

        place = device_named(device)  # before a download that would be for nothing
        networks = [(checkpoints.load(weights.find(member.weights)), member) for member in members(mode)]
        return cls(networks, device=place, **options)

    @classmethod
    def from_file(cls, path: Path, *, ensemble: bool = False, device: str = "auto", **options: object) -> Interpolator:
        """One checkpoint, whichever architecture its keys tell."""
        from rife import checkpoints

        place = device_named(device)
        return cls([(checkpoints.load(path), Member(path.name, ensemble))], device=place, **options)

    @torch.inference_mode()
    def between(self, a: Tensor, b: Tensor, alphas: Sequence[Fraction | float]) -> Tensor:
        """The frames at ``alphas`` between ``a`` (0) and ``b`` (1).

        Args:
            a: ``[3, H, W]`` float32, RGB, nominal range [0, 1]. A tensor that was ``b`` in the call
                before is recognised, and not prepared again: do not change it in between.
            b: likewise, of the same size.
            alphas: T times in (0, 1).

        Returns:
            ``[T, 3, H, W]`` float32 on the interpolator's device, not clamped.

        Raises:
            UserError: the networks know only the middle, and a time is no multiple of an eighth.
        """
        if a.shape != b.shape:
            raise UserError(f"two frames must have one size, got {list(a.shape)} and {list(b.shape)}")
        grid = self.grid(*a.shape[-2:])
        if len(grid) > 1:
            return tiled(self._between, a.to(self.device), b.to(self.device), alphas, grid)
        return self._between(a, b, alphas)

    def grid(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """The tiles in which frames of a size are made: one, if memory allows."""
        return tiles(height, width, self.pixels)

    def _between(self, a: Tensor, b: Tensor, alphas: Sequence[Fraction | float]) -> Tensor:
        if not self.any_time:
            return torch.stack([self._by_halving(a, b, Fraction(t), DEEPEST_HALVING) for t in alphas])
        at_once = max(1, min(PIXELS_AT_ONCE, self.pixels) // (a.shape[-2] * a.shape[-1]))
        groups = [alphas[i : i + at_once] for i in range(0, len(alphas), at_once)]
        return torch.cat([self._mean(a, b, [float(t) for t in group]) for group in groups])

    def _mean(self, a: Tensor, b: Tensor, alphas: list[float]) -> Tensor:
        """[T, 3, H, W]: the mean of the answers of all networks that know these times."""
        answers: list[list[Tensor]] = [[] for _ in alphas]
        for network, member in self.networks:
            known = [i for i, t in enumerate(alphas) if network.any_time or t == 0.5]
            if not known:
                continue
            times = [alphas[i] for i in known]
            frames = [network.between(a, b, times, member.ensemble)]
            if member.turned:
                frames.append(network.between(a, b, times, member.ensemble, turned=True).flip(-2, -1))
            for each in frames:
                for i, answer in zip(known, each, strict=True):
                    answers[i].append(answer)
        return torch.stack([torch.stack(each).mean(0) if len(each) > 1 else each[0] for each in answers])

    def _by_halving(self, a: Tensor, b: Tensor, t: Fraction, depth: int) -> Tensor:
        """The paper's way to 4x and 8x with a network for t = 0.5: the middle of a middle."""
        middle = self._mean(a, b, [0.5])[0]
        if t == Fraction(1, 2):
            return middle
        if depth == 1:
            raise UserError(
                "these weights interpolate only the middle of two frames, so the output rate must be 2, 4 or 8 times "
                "the source's; use weights of the v4 line for any other"
            )
        return self._by_halving(*((a, middle, 2 * t) if 2 * t < 1 else (middle, b, 2 * t - 1)), depth - 1)


class _Plain:
    """Any network, as :mod:`rife.model` has it."""

    bytes_per_pixel = 800  # of a new frame, at most; measured by rife/bench/memory.py

    def __init__(self, model: Rife, device: torch.device, dtype: torch.dtype, scale: float) -> None:
        self.model, self.device, self.scale = model.to(device, dtype).eval(), device, scale
        self.any_time = model.config.timestep

    def between(self, a: Tensor, b: Tensor, t: list[float], ensemble: bool, turned: bool = False) -> Tensor:
        height, width = a.shape[-2:]
        multiple = self.model.padding_multiple(self.scale)
        pad = (0, -width % multiple, 0, -height % multiple)
        pair = [F.pad(x.to(self.device)[None].flip((-2, -1) if turned else ()), pad) for x in (a, b)]
        times = torch.tensor(t, device=self.device).view(-1, 1, 1, 1)
        pair = [x.expand(len(t), -1, -1, -1) for x in pair]
        frame = self.model(*pair, times, scale=self.scale, ensemble=ensemble, clamp=False).frame
        return frame[..., :height, :width]


class _Fast:
    """A prepared network, and what it keeps of the last frames."""

    def __init__(self, model: Rife, device: torch.device, dtype: torch.dtype, scale: float) -> None:
        self.network = Prepared(model, device, dtype, scale)
        self.any_time = model.config.timestep
        self.bytes_per_pixel = 400 if model.config.refinement else 150  # likewise
        self.kept: list[tuple[Tensor, bool, Frame]] = []

    def between(self, a: Tensor, b: Tensor, t: list[float], ensemble: bool, turned: bool = False) -> Tensor:
        first, second = self._frame(a, turned), self._frame(b, turned)
        self.kept = [entry for entry in self.kept if entry[0] is a or entry[0] is b]
        return self.network.between(first, second, t, ensemble=ensemble)

    def _frame(self, rgb: Tensor, turned: bool) -> Frame:
        for tensor, was_turned, frame in self.kept:
            if tensor is rgb and was_turned == turned:
                return frame
        frame = self.network.frame(rgb.flip(-2, -1) if turned else rgb)
        self.kept.append((rgb, turned, frame))
        return frame
