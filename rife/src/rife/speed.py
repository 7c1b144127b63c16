"""How many new frames a second this machine makes, beside the same networks in plain eager PyTorch.

Both make the same frame from the same pair, in turn, pair after pair of a picture that moves; the figure
is the median. The baseline is :class:`rife.model.Rife` as it stands: float32, NCHW, one pair at a time.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf.devices import device_named
from torch import Tensor
from tqdm import tqdm

from rife import checkpoints, fused, weights
from rife.interpolator import Interpolator, Member, members
from rife.model import Rife

SIZES = {"360p": (360, 640), "720p": (720, 1280), "1080p": (1080, 1920)}
STEP = (3, 7)  # pixels down and to the right, from frame to frame
OCTAVES = (4, 16, 64)  # sizes of the random picture's details, in pixels
MOST_ROUNDS = 15


@dataclass(frozen=True)
class Speed:
    """Times of one mode at one size, in seconds a new frame; empty where the time did not suffice."""

    mode: str
    size: str
    seconds: list[float]
    eager_seconds: list[float]
    note: str = ""

    @property
    def frames_a_second(self) -> float:
        return 1 / statistics.median(self.seconds)

    @property
    def gain(self) -> float:
        """How many times as fast as eager PyTorch."""
        return statistics.median(self.eager_seconds) / statistics.median(self.seconds)


@dataclass(frozen=True)
class SpeedReport:
    """All that was measured, and on what."""

    machine: dict
    speeds: list[Speed]

    def as_json(self) -> dict:
        rows = []
        for speed in self.speeds:
            figures = {"new_frames_a_second": speed.frames_a_second, "times_eager": speed.gain} if speed.seconds else {}
            rows.append(asdict(speed) | figures)
        return {"machine": self.machine, "speeds": rows}

    def table(self) -> str:
        lines = [
            ", ".join(f"{key} {value}" for key, value in self.machine.items()),
            f"{'mode':16} {'size':6} {'new frames/s':>13} {'range':>15} {'eager':>8} {'times':>6} {'rounds':>7}",
        ]
        for s in self.speeds:
            if not s.seconds:
                lines.append(f"{s.mode:16} {s.size:6} {s.note}")
                continue
            spread = f"{1 / max(s.seconds):.2f}-{1 / min(s.seconds):.2f}"
            eager = 1 / statistics.median(s.eager_seconds)
            lines.append(
                f"{s.mode:16} {s.size:6} {s.frames_a_second:13.2f} {spread:>15} {eager:8.2f} {s.gain:6.2f} "
                f"{len(s.seconds):7}"
            )
        return "\n".join(lines)


def measure(
    modes: list[str],
    sizes: list[str],
    *,
    weights_file: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    budget: float = 50.0,
) -> SpeedReport:
    """Time each mode at each size, smallest first, within ``budget`` seconds.

    Args:
        modes: of :data:`rife.interpolator.MODES`; left aside with ``weights_file``.
        sizes: of :data:`SIZES`.
        weights_file: time this checkpoint instead.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of our convolutions; the baseline is float32 always.
        budget: what would take longer is left out, and said so. The smallest size is always timed once.

    Raises:
        UserError: no such device, or weights are neither here nor to be had.
    """
    place = device_named(device)
    contestants = {}
    for mode in [weights_file.name] if weights_file else modes:
        chosen = [Member(weights_file.name)] if weights_file else list(members(mode))
        files = [weights_file or weights.find(member.weights) for member in chosen]
        # Loaded twice: each side may keep, change and convert its own.
        loaded = [[(checkpoints.load(f), m) for f, m in zip(files, chosen, strict=True)] for _ in range(2)]
        ours = Interpolator(loaded[0], device=place, precision=precision)
        contestants[mode] = ours, [(model.to(place).eval(), member) for model, member in loaded[1]]
    end = time.perf_counter() + budget  # from here on: a first run fetches weights and builds kernels before
    plan = sorted(((size, mode) for mode in contestants for size in sizes), key=lambda row: SIZES[row[0]])
    areas = {size: SIZES[size][0] * SIZES[size][1] for size in sizes}
    per_pixel: dict[str, float] = {}  # seconds that both contestants together take for a pixel
    speeds = []
    for k, (size, mode) in enumerate(tqdm(plan, unit="row", disable=None, file=sys.stderr)):
        left = end - time.perf_counter()
        expected = per_pixel.get(mode, 0) * areas[size]
        if 2 * expected > left:  # once to warm up, once to time
            note = f"left out: it would take {2 * expected:.0f} s, {max(left, 0):.0f} s are left (--seconds)"
            speeds.append(Speed(mode, size, [], [], note))
            continue
        share = left * areas[size] / sum(areas[later] for later, _ in plan[k:])
        ours, eager = contestants[mode]
        pair = _MovingPicture(*SIZES[size], place)
        seconds, eager_seconds = _in_turn(
            lambda a, b, ours=ours: ours.between(a, b, [0.5]),
            lambda a, b, eager=eager: plain_eager(eager, a, b),
            pair,
            time.perf_counter() + share,
        )
        per_pixel[mode] = (statistics.median(seconds) + statistics.median(eager_seconds)) / areas[size]
        speeds.append(Speed(mode, size, seconds, eager_seconds))
    return SpeedReport(_machine(place, ours.dtype), speeds)


@torch.inference_mode()
def plain_eager(networks: list[tuple[Rife, Member]], a: Tensor, b: Tensor) -> Tensor:
    """The middle frame ``[1, 3, H, W]`` by the networks' own forward, nothing prepared: the baseline."""
    height, width = a.shape[1:]
    answers = []
    for model, member in networks:
        multiple = model.padding_multiple()
        for turned in (False, True) if member.turned else (False,):
            pair = [(x.flip(1, 2) if turned else x)[None] for x in (a, b)]
            pair = [F.pad(x, (0, -width % multiple, 0, -height % multiple)) for x in pair]
            frame = model(*pair, 0.5, ensemble=member.ensemble, clamp=False).frame[..., :height, :width]
            answers.append(frame.flip(2, 3) if turned else frame)
    return sum(answers) / len(answers)


class _MovingPicture:
    """Frames of a random picture that slides by :data:`STEP`; each pair goes on where the last one ended."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.size, self.at = (height, width), 0
        room = [side + step * (MOST_ROUNDS + 8) for side, step in zip(self.size, STEP, strict=True)]
        generator = torch.Generator().manual_seed(0)
        layers = [
            F.interpolate(
                torch.rand(1, 3, *(-(-side // cell) for side in room), generator=generator), room, mode="bilinear"
            )
            for cell in OCTAVES
        ]
        self.picture = (sum(layers) / len(layers))[0].to(device)
        self.last = self._frame(0)

    def next_pair(self) -> tuple[Tensor, Tensor]:
        """As in a video, the first frame is the last one of the pair before: the very same tensor."""
        first, self.at = self.last, self.at + 1
        self.last = self._frame(self.at)
        return first, self.last

    def _frame(self, k: int) -> Tensor:
        (height, width), (y, x) = self.size, (step * k for step in STEP)
        return self.picture[:, y : y + height, x : x + width].contiguous()


def _in_turn(
    ours: Callable[[Tensor, Tensor], Tensor],
    eager: Callable[[Tensor, Tensor], Tensor],
    picture: _MovingPicture,
    end: float,
) -> tuple[list[float], list[float]]:
    """Seconds of each, one after the other on the same pair, until the time is over; at least once."""
    on_gpu = picture.picture.is_cuda
    for _ in range(3 if on_gpu else 1):
        pair = picture.next_pair()
        _timed(ours, pair, on_gpu)
        _timed(eager, pair, on_gpu)
    times: tuple[list[float], list[float]] = ([], [])
    while not times[0] or (len(times[0]) < MOST_ROUNDS and time.perf_counter() < end):
        pair = picture.next_pair()
        times[0].append(_timed(ours, pair, on_gpu))
        times[1].append(_timed(eager, pair, on_gpu))
    return times


def _timed(make: Callable[[Tensor, Tensor], Tensor], pair: tuple[Tensor, Tensor], on_gpu: bool) -> float:
    began = time.perf_counter()
    make(*pair)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _machine(device: torch.device, dtype: torch.dtype) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "kernels": "built" if fused.available(device) else "not built, plain networks",
        "torch": torch.__version__,
    }
