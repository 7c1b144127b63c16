"""Where one shot ends and another begins: between two such frames a network could only morph.

Not in the paper. A pair of frames is a cut when two things hold at once, each measured on pictures of
about 2300 pixels and each **in excess of what the neighbouring pairs show**, so that pans, shaking and fire
raise the bar for themselves:

- *unexplained*: the part of the picture that no motion explains. The frame of less contrast is predicted by
  block matching from the other, whose colours were first brought to its own by matching histograms (so
  neither a pan nor a change of exposure counts), and a place is unexplained where the prediction is worse
  than that of the place from its own surroundings. The last is how x264 finds scene cuts: inter against intra cost.
- *change*: the mean absolute difference.

``score = sqrt(unexplained * change / CHANGE)``, 0 to 1. What follows is needed too: two pairs later, it is
known whether the picture returned (a flash) or goes on changing (a fade, a dissolve, a whip pan).
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

THRESHOLD = 0.4  # where precision equals recall on three times rife/bench/cuts.py's tuned half
PIXELS = 64 * 36  # of a thumbnail
REACH = 6  # of the block search, in pixels of half a thumbnail: a fifth of the frame's width
LEVELS = 32  # of the histograms that bring one frame's colours to the other's
CHANGE = 0.25  # mean difference (luma and both chromas summed) that counts in full
STATIC = 0.004  # mean difference below which nothing happens: one code of 8 bits
CONTRAST = 0.2  # standard deviation of luma below which a picture is looked at as through a brighter lamp
BLACK = 0.05  # luma that a picture's black bars stay under
BEFORE, AFTER = 4, 2  # pairs that a pair is compared with
FLASH = 3  # frames between the two that show the same scene, at most: flashes of one or two frames


@dataclass(frozen=True)
class PairDecision:
    """What a pair of neighbouring frames shows.

    Attributes:
        cut: the second frame begins a new shot.
        score: 0 to 1; 0 also where the change alone is too small for a cut.
        kind: ``"cut"``; ``"flash"`` where the picture changes as at a cut but the shot goes on behind it, so
            that holding the first frame is best here too; ``"static"``; or ``"motion"``.
    """

    cut: bool
    score: float
    kind: Literal["motion", "cut", "flash", "static"]

    @property
    def hold(self) -> bool:
        """No frame between these two can be made from both."""
        return self.kind in ("cut", "flash")


class _Pair:
    """Two thumbnails ``[3, h, w]`` compared; the costly part only when it is asked for."""

    def __init__(self, a: Tensor, b: Tensor):
        colours = [(_luma_chroma(rgb), rgb) for rgb in (a, b)]
        seen = _outside_bars(torch.maximum(colours[0][0][0], colours[1][0][0]))
        self._weight = seen / max(seen.sum().item(), 0.25 * seen.numel())
        self.change = self._mean((colours[0][0] - colours[1][0]).abs().sum(0))
        contrasts = [self._deviation(picture[0]) for picture, _ in colours]
        # The richer picture explains the poorer: an overexposed one has lost what the other shows.
        if contrasts[0] < contrasts[1]:
            colours.reverse()
            contrasts.reverse()
        self._rich, self._poor = colours
        self.lamp = min(max(CONTRAST / max(contrasts[0], 1e-3), 1), 4)  # factor for what dark pictures show
        # A picture of a third of the contrast is no exposure of the other: anything fits into black.
        self._alike = contrasts[1] > contrasts[0] / 3

    @cached_property
    def unexplained(self) -> float:
        """The part of the picture, 0 to 1, that the other frame predicts worse than its own surroundings do."""
        (rich, rich_rgb), (poor, poor_rgb) = self._rich, self._poor
        if self._alike:
            rich = _luma_chroma(_recoloured(rich_rgb, poor_rgb))
        inter = (_predicted(rich, poor) - poor).abs().sum(0) * self.lamp
        intra = (poor - _box(poor, 3)).abs().sum(0) * self.lamp
        return min(self._mean((_box(inter, 1) > 0.7 * _box(intra, 1) + 0.02).float()), 1.0)

    def _mean(self, x: Tensor) -> float:
        return (x * self._weight).sum().item()

    def _deviation(self, x: Tensor) -> float:
        return math.sqrt(self._mean((x - self._mean(x)) ** 2))


class CutDetector:
    """Decides pair by pair over a stream; holds six thumbnails whatever the length.

    Args:
        threshold: on the score, in (0, 1]; lower finds more cuts.

    Raises:
        UserError: the threshold lies outside.
    """

    def __init__(self, threshold: float = THRESHOLD):
        if not 0 < threshold <= 1:
            raise UserError(
                f"a cut threshold lies above 0 and at most at 1, got {threshold}; the default is {THRESHOLD}"
            )
        self.threshold = threshold
        self._thumbnails: deque[Tensor] = deque(maxlen=2 * FLASH)  # up to the latest frame
        self._waiting: deque[_Pair] = deque()  # pairs not decided yet, up to the latest
        self._before: deque[_Pair] = deque(maxlen=BEFORE)  # moving pairs of this shot

    def push(self, frame: Tensor) -> list[PairDecision]:
        """Take the next frame.

        Args:
            frame: ``[3, H, W]`` RGB, nominal range [0, 1], on any device.

        Returns:
            decisions on the pairs that have become clear, in order: each pair's comes with the second frame
            after it.
        """
        self._thumbnails.append(_thumbnail(frame))
        if len(self._thumbnails) > 1:
            self._waiting.append(_Pair(*list(self._thumbnails)[-2:]))
        return [self._decide()] if len(self._waiting) > AFTER else []

    def finish(self) -> list[PairDecision]:
        """Decisions on the last pairs; then the detector is ready for another video."""
        rest = [self._decide() for _ in range(len(self._waiting))]
        self._thumbnails.clear()
        self._before.clear()
        return rest

    def _decide(self) -> PairDecision:
        pair = self._waiting.popleft()
        if pair.change < STATIC:
            # Between held drawings nothing moves; it must not pass for what this shot's motion is like.
            return PairDecision(False, 0.0, "static")
        score = self._score(pair, [])
        # Asked before looking at what follows: the end of a flash is as large a change as its beginning.
        if score >= self.threshold and self._returns(pair):
            return PairDecision(False, score, "flash")
        if score >= self.threshold:
            score = self._score(pair, [other for other in self._waiting if other.change >= STATIC])
        if score < self.threshold:
            self._before.append(pair)
            return PairDecision(False, score, "motion")
        self._before.clear()
        return PairDecision(True, score, "cut")

    def _score(self, pair: _Pair, after: list[_Pair]) -> float:
        excess = pair.change - self._usual([p.change for p in self._before], [p.change for p in after])
        change = min(max(excess, 0) * pair.lamp / CHANGE, 1)
        if math.sqrt(change) < self.threshold:  # whatever the motion: most pairs end here, unsearched
            return 0.0
        unusual = pair.unexplained - self._usual([p.unexplained for p in self._before], [p.unexplained for p in after])
        return math.sqrt(max(unusual, 0) * change)

    @staticmethod
    def _usual(before: list[float], after: list[float]) -> float:
        """What the neighbours show; one of those after it may be a cut itself, so the smaller counts."""
        typical = torch.tensor(before).quantile(0.5).item() if before else 0.0
        return max(typical, min(after, default=0.0))

    def _returns(self, pair: _Pair) -> bool:
        """Some frame before the pair and some frame after it, at most FLASH apart, show the same scene."""
        second = len(self._thumbnails) - 1 - len(self._waiting)  # the pair's second frame
        for end in range(second, min(second + FLASH, len(self._thumbnails))):
            for start in range(max(end - FLASH, 0), min(second - 1, end - 2) + 1):
                across = _Pair(self._thumbnails[start], self._thumbnails[end])
                if across.change < pair.change / 2 and self._score(across, []) < self.threshold / 2:
                    return True
        return False


def _thumbnail(frame: Tensor) -> Tensor:
    """``[3, h, w]`` RGB on the CPU, both even, about PIXELS in the frame's shape; averages of the pixels."""
    height, width = frame.shape[-2:]
    size = [max(8, 2 * round(math.sqrt(PIXELS * a / b) / 2)) for a, b in ((height, width), (width, height))]
    skip = max(1, min(height // size[0], width // size[1]) // 8)  # 64 samples make a good enough mean
    small = F.adaptive_avg_pool2d(frame[None, :, ::skip, ::skip].float(), size)[0]
    return small.clamp(0, 1).cpu()


def _luma_chroma(rgb: Tensor) -> Tensor:
    """``[3, h, w]``: Y, Cb, Cr of BT.601, whatever the video's own."""
    y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return torch.stack([y, (rgb[2] - y) * 0.564, (rgb[0] - y) * 0.713])


def _outside_bars(luma: Tensor) -> Tensor:
    """1 in rows and columns that are not black from end to end."""
    lit = luma > BLACK
    return (lit.any(1)[:, None] & lit.any(0)).float()


def _recoloured(a: Tensor, b: Tensor) -> Tensor:
    """``a`` with each channel's histogram brought to ``b``'s, by a curve through LEVELS means.

    A change of exposure, gamma or white balance, clipped or not, is such a curve.
    """
    values, order = a.flatten(1).sort(dim=1)
    goal = b.flatten(1).sort(dim=1).values
    level = (values * (LEVELS - 1)).round().long()
    count = torch.zeros(3, LEVELS).scatter_add_(1, level, torch.ones_like(values)).clamp_(min=1)
    means = [(torch.zeros(3, LEVELS).scatter_add_(1, level, x) / count).gather(1, level) for x in (values, goal)]
    # Within a level, differences shrink as they do overall.
    slope = ((goal.std(1) + 1e-3) / (values.std(1) + 1e-3)).clamp(max=1)[:, None]
    curve = means[1] + (values - means[0]) * slope
    return torch.empty_like(curve).scatter_(1, order, curve).view_as(a)


def _predicted(a: Tensor, b: Tensor) -> Tensor:
    """``b`` as put together from ``a``: each pixel's 5x5 surroundings searched at half size, refined by one."""
    _, h, w = b.shape
    side = 2 * REACH + 1
    half_a, half_b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    windows = F.pad(half_a, (REACH,) * 4, mode="replicate").unfold(1, h // 2, 1).unfold(2, w // 2, 1)
    cost = (windows - half_b[:, None, None]).abs_().sum(0).flatten(0, 1)  # [side * side, h / 2, w / 2]
    step = torch.arange(-REACH, REACH + 1)
    length = (step[:, None] ** 2 + step**2).float().sqrt().view(-1, 1, 1)
    best = (_box(cost, 2) + 0.0008 * length).argmin(0)  # of equal fits the nearest, or flat places wander
    best = best.repeat_interleave(2, 0).repeat_interleave(2, 1)
    nudge = torch.arange(-1, 2)
    y = torch.arange(h)[:, None] + (best // side - REACH) * 2 + nudge.view(3, 1, 1, 1)
    x = torch.arange(w) + (best % side - REACH) * 2 + nudge.view(1, 3, 1, 1)
    choices = a.flatten(1)[:, (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).flatten()].view(3, 9, h, w)
    chosen = _box((choices - b[:, None]).abs().sum(0), 1).argmin(0)
    return choices.gather(1, chosen.expand(3, 1, h, w))[:, 0]


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over squares, borders repeated; sums of slices, since pooling with stride 1 takes 10 times as long."""
    h, w = x.shape[-2:]
    flat = F.pad(x.reshape(1, -1, h, w), (radius,) * 4, mode="replicate")
    size = 2 * radius + 1
    rows = sum((flat[..., k : k + h, :] for k in range(1, size)), flat[..., :h, :])
    both = sum((rows[..., k : k + w] for k in range(1, size)), rows[..., :w])
    return (both / size**2).view_as(x)


@dataclass(frozen=True)
class CutList:
    """Cuts that somebody wrote down, by :func:`read_cut_list`.

    Attributes:
        frames: numbers, from 0, of the first frames of new shots.
        times: when new shots begin, in seconds from the first frame.
    """

    frames: frozenset[int]
    times: tuple[Fraction, ...]

    def holds(self, number: int, before: Fraction, time: Fraction) -> bool:
        """Whether a new shot begins with a frame.

        Args:
            number: the frame's, from 0.
            before: time of the frame before it, in seconds from the first frame.
            time: the frame's own.
        """
        # Lists are written to the millisecond: a time rounded up must not slip to the next frame.
        rounding = Fraction(1, 1000)
        return number in self.frames or any(before + rounding < cut <= time + rounding for cut in self.times)


def read_cut_list(path: Path) -> CutList:
    """Read cuts from a text file: one a line, ``#`` begins a comment.

    ``120`` and ``frame 120`` are the first frame of a new shot, counted from 0; ``12.345`` is a time in
    seconds, ``0:12.345`` and ``00:00:12.345`` likewise. The CSV that PySceneDetect's ``list-scenes`` writes is
    taken as well.

    Raises:
        UserError: there is no such file, or a line is none of these.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a text file of cuts, cannot read {path}: {error}") from None
    header = next((n for n, line in enumerate(lines[:2]) if line.startswith("Scene Number")), None)
    if header is not None:
        entries = _scene_starts(path, lines, header)
    else:
        entries = ((n, line.partition("#")[0].strip()) for n, line in enumerate(lines, start=1))
    frames, times = set(), set()
    for n, entry in entries:
        if match := re.fullmatch(r"(?:frame\s+)?(\d+)", entry, re.IGNORECASE):
            frames.add(int(match[1]))
        elif match := re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?", entry):
            hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
            times.add(hours * 3600 + minutes * 60 + seconds)
        elif entry:
            raise UserError(
                f"{path}, line {n}: a cut is a frame's number (120), seconds (12.345) or a time (00:00:12.345), "
                f"got {entry!r}"
            )
    return CutList(frozenset(frames), tuple(sorted(times)))


def _scene_starts(path: Path, lines: list[str], header: int) -> Iterable[tuple[int, str]]:
    """Line numbers and start times out of PySceneDetect's table."""
    column = "Start Timecode"
    for n, row in enumerate(csv.DictReader(lines[header:]), start=header + 2):
        if not row.get(column):
            raise UserError(
                f"{path}, line {n}: a list of scenes has the column {column!r}, this line has nothing there"
            )
        yield n, row[column]
