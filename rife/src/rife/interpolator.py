"""New frames between two given ones: quality modes, padding, several times of one pair in one pass.

A mode is a set of networks whose answers are averaged. The paper averages over turned inputs (its
test-time augmentation, "2T"); the average over networks is ours::

    fast       v4.6
    balanced   v4.0
    best       v4.0 and v4.6, each with its inputs also swapped, upright and turned by 180 degrees
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

if TYPE_CHECKING:
    from rife.model import Rife

PIXELS_AT_ONCE = 4 << 20  # of new frames in one pass: bounds the memory, and more would not be faster
DEEPEST_HALVING = 3  # a network for the middle only reaches eighths by halving


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


def device_named(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` (``cuda:1``) as a device; UserError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch {torch.__version__} sees no CUDA GPU here; use --device cpu")
    return device


class Interpolator:
    """Networks on a device, ready to make frames.

    Args:
        networks: models with what to average over; their answers are averaged.
        device: where they run.
        scale: at which resolution motion is estimated, relative to the frame's: 0.5 for 4K.

    Raises:
        UserError: no such device.
    """

    def __init__(
        self, networks: Sequence[tuple[Rife, Member]], *, device: str | torch.device = "cpu", scale: float = 1.0
    ) -> None:
        self.device = device_named(device) if isinstance(device, str) else device
        self.scale = scale
        self.networks = [(model.to(self.device).eval(), member) for model, member in networks]
        self.any_time = all(model.config.timestep for model, _ in self.networks)

    @classmethod
    def from_mode(cls, mode: str, *, device: str = "auto", scale: float = 1.0) -> Interpolator:
        """The networks of a mode, their weights fetched if they are not there yet."""
        from rife import checkpoints, weights

        place = device_named(device)  # before a download that would be for nothing
        networks = [(checkpoints.load(weights.find(member.weights)), member) for member in MODES[mode]]
        return cls(networks, device=place, scale=scale)

    @classmethod
    def from_file(cls, path: Path, *, ensemble: bool = False, device: str = "auto", scale: float = 1.0) -> Interpolator:
        """One checkpoint, whichever architecture its keys tell."""
        from rife import checkpoints

        place = device_named(device)
        return cls([(checkpoints.load(path), Member(path.name, ensemble))], device=place, scale=scale)

    @torch.inference_mode()
    def between(self, a: Tensor, b: Tensor, alphas: Sequence[Fraction | float]) -> Tensor:
        """The frames at ``alphas`` between ``a`` (0) and ``b`` (1).

        Args:
            a: ``[3, H, W]`` float32, RGB, nominal range [0, 1].
            b: likewise, of the same size.
            alphas: T times in (0, 1).

        Returns:
            ``[T, 3, H, W]`` float32 on the interpolator's device, not clamped.

        Raises:
            UserError: the networks know only the middle, and a time is no multiple of an eighth.
        """
        if a.shape != b.shape:
            raise UserError(f"two frames must have one size, got {list(a.shape)} and {list(b.shape)}")
        a, b = (frame.to(self.device, torch.float32)[None] for frame in (a, b))
        at_once = max(1, PIXELS_AT_ONCE // (a.shape[-2] * a.shape[-1]))
        if not self.any_time:
            return torch.cat([self._by_halving(a, b, Fraction(t), DEEPEST_HALVING) for t in alphas])
        groups = [alphas[i : i + at_once] for i in range(0, len(alphas), at_once)]
        return torch.cat([self._mean(a, b, [float(t) for t in group]) for group in groups])

    def _mean(self, a: Tensor, b: Tensor, alphas: list[float]) -> Tensor:
        """[T, 3, H, W]: the mean of all networks' answers."""
        height, width = a.shape[-2:]
        t = torch.tensor(alphas, device=self.device).view(-1, 1, 1, 1)
        total, answers = torch.zeros(len(alphas), *a.shape[1:], device=self.device), 0
        for model, member in self.networks:
            multiple = model.padding_multiple(self.scale)
            pad = (0, -width % multiple, 0, -height % multiple)
            for turned in (False, True) if member.turned else (False,):
                pair = [F.pad(_turn(x) if turned else x, pad).expand(len(alphas), -1, -1, -1) for x in (a, b)]
                frame = model(*pair, t, scale=self.scale, ensemble=member.ensemble, clamp=False).frame
                frame = frame[..., :height, :width]
                total += _turn(frame) if turned else frame
                answers += 1
        return total / answers

    def _by_halving(self, a: Tensor, b: Tensor, t: Fraction, depth: int) -> Tensor:
        """The paper's way to 4x and 8x with a network for t = 0.5: the middle of a middle."""
        middle = self._mean(a, b, [0.5])
        if t == Fraction(1, 2):
            return middle
        if depth == 1:
            raise UserError(
                "these weights interpolate only the middle of two frames, so the output rate must be 2, 4 or 8 times "
                "the source's; use weights of the v4 line for any other"
            )
        return self._by_halving(*((a, middle, 2 * t) if 2 * t < 1 else (middle, b, 2 * t - 1)), depth - 1)


def _turn(x: Tensor) -> Tensor:
    return x.flip(-2, -1)
