"""What to do with each pair of neighbouring frames: interpolate, or not.

Not in the paper. A network makes a frame of any pair; of two shots it makes a morph, of two equal frames
a worse copy, and of a drawing shown twice nothing that moves. Decisions look at frames only, a few ahead,
so they come out the same however a run is split.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rife.cuts import THRESHOLD, CutDetector, PairDecision, read_cut_list
from rife.duplicates import Dedup, DuplicateDetector

if TYPE_CHECKING:
    from rife.pipeline import Picture

AT_CUTS = ("hold", "nearest", "blend", "off")


@dataclass(frozen=True)
class DecisionOptions:
    """What the user asks for.

    Attributes:
        cut: what is shown between two shots: the last frame of the first (``hold``), the nearer of the two
            frames (``nearest``), or a mix of them (``blend``); ``off`` interpolates everything.
        cut_threshold: score from which a pair is a cut; higher finds fewer.
        cut_list: file that says where the cuts are, instead of looking for them.
        dedup: interpolate animation on twos and threes between its drawings.
        lock_overlays: keep what is laid over the picture (logos, subtitles) from wobbling.
    """

    cut: str = "hold"
    cut_threshold: float = THRESHOLD
    cut_list: Path | None = None
    dedup: bool = False
    lock_overlays: bool = False


@dataclass(frozen=True)
class Pair:
    """Two neighbouring frames and what they are: ``motion``, ``equal``, ``cut`` or ``flash``."""

    left: Picture
    right: Picture
    kind: str
    score: float

    @property
    def apart(self) -> bool:
        """Whether nothing should be interpolated between them, though they differ."""
        return self.kind in ("cut", "flash")


class Decider:
    """Takes frames in order and gives pairs in order, at most a few frames later.

    Raises:
        UserError: the cut list cannot be read.
    """

    def __init__(self, options: DecisionOptions) -> None:
        self._list = read_cut_list(options.cut_list) if options.cut_list else None
        self._detector = CutDetector(options.cut_threshold) if options.cut != "off" and not self._list else None
        self._repeats = DuplicateDetector(held=True)
        self._dedup: Dedup[Picture] | None = Dedup() if options.dedup else None
        self._last: Picture | None = None  # before dedup
        self._start: Fraction | None = None  # of the source
        self._waiting: deque[Picture] = deque()  # frames whose pairs are not all decided

    @property
    def dropped(self) -> int:
        """Repeated drawings left out so far."""
        return self._dedup.dropped if self._dedup else 0

    def push(self, picture: Picture) -> list[Pair]:
        """The pairs that are decided now that ``picture`` is known."""
        self._start = picture.source_time if self._start is None else self._start
        if self._dedup is None:
            return self._pairs([picture])
        repeated = self._last is not None and self._repeats.is_duplicate(self._last.rgb, picture.rgb)
        self._last = picture
        return self._pairs([kept for _, kept in self._dedup.push(picture.time, picture, repeated)])

    def finish(self) -> list[Pair]:
        """The remaining pairs; no frame may follow."""
        pairs = self._pairs([kept for _, kept in self._dedup.finish()]) if self._dedup else []
        return pairs + [self._next(decision) for decision in (self._detector.finish() if self._detector else [])]

    def _pairs(self, pictures: list[Picture]) -> list[Pair]:
        pairs = []
        for picture in pictures:
            self._waiting.append(picture)
            if self._detector:
                pairs += [self._next(decision) for decision in self._detector.push(picture.rgb)]
            elif len(self._waiting) > 1:
                pairs.append(self._next(self._listed()))
        return pairs

    def _next(self, decision: PairDecision) -> Pair:
        left = self._waiting.popleft()
        right = self._waiting[0]
        kind = decision.kind if decision.kind in ("cut", "flash") else "motion"
        # Nothing moves: a network would only add its error.
        return Pair(left, right, "equal" if torch.equal(left.rgb, right.rgb) else kind, decision.score)

    def _listed(self) -> PairDecision:
        left, right = self._waiting[0], self._waiting[1]
        times = (picture.source_time - self._start for picture in (left, right))
        cut = self._list is not None and self._list.holds(right.number, *times)
        return PairDecision(cut, float(cut), "cut" if cut else "motion")


def as_record(pair: Pair) -> dict[str, int | float | str | Fraction]:
    """A cut or flash for the report: the frame that it begins with."""
    return {
        "kind": pair.kind,
        "frame": pair.right.number,
        "seconds": round(float(pair.right.source_time), 3),
        "score": round(pair.score, 3),
    }
