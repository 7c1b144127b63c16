"""Frames that repeat the one before, and animation drawn on twos and threes. Not in the paper.

Two frames are the same picture where **no part** of them differs by more than coding makes: not the mean
over the frame counts, which would drop the frames of a near-still clip in which only a mouth moves, but the
most different part. What coding makes has three marks: it is small in each 8x8 block (at 640 pixels of
width), has no sign in common over 64x64 pixels, as a fade has, and leaves most of the picture alone, which
a pan does not, however soft the background.

Animation is drawn 8 or 12 times a second and each drawing is shown for two or three frames. Interpolating
between equal frames and then across a jump keeps it jerky: with :class:`Dedup`, a drawing counts once, at the
time it first appears, and new frames move from drawing to drawing. Nothing appears later or earlier than it
did, so the sound stays in step.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

# Of a repeated frame at good quality (x264, CRF 16 to 23) `change` is 1 to 6 codes of 8 bits, the larger in small
# pictures; the least of real motion in the clips there are is 9.
SAME = 4 / 255
HELD = 16 / 255  # of a repeated frame at bad quality; believed only where new drawings change much more
HELD_PART = 0.2  # of what a new drawing changes
WIDTH = 640  # at which pictures are compared
BLOCK, LARGE = 8, 64
DRIFT = 10  # how much more a common drift counts than differences of both signs
SPREAD = 12  # how much more the mean over the picture counts than its most different part
RECENT = 8  # new drawings that a change is compared with

T = TypeVar("T")


def change(a: Tensor, b: Tensor) -> float:
    """How much the most different part of two frames differs.

    Args:
        a: ``[3, H, W]`` RGB, nominal range [0, 1].
        b: likewise, of the same size and on the same device.

    Returns:
        the largest of: mean absolute difference of a block; common drift of a larger block, times DRIFT; mean
        absolute difference of the picture, times SPREAD. In the range of the values.

    Raises:
        UserError: the sizes differ.
    """
    if a.shape != b.shape:
        raise UserError(f"two frames must have one size, got {list(a.shape)} and {list(b.shape)}")
    difference = _pooled(a - b, max(1, round(a.shape[-1] / WIDTH)))
    absolute = difference.abs().mean(0, keepdim=True)
    blocks = F.avg_pool2d(absolute, BLOCK, ceil_mode=True)
    drift = F.avg_pool2d(difference.mean(0, keepdim=True), LARGE, ceil_mode=True).abs()
    return max(blocks.max().item(), DRIFT * drift.max().item(), SPREAD * absolute.mean().item())


def _pooled(x: Tensor, factor: int) -> Tensor:
    """Means of squares of ``[3, H, W]``; with the sign, so that grain falls with the number of pixels."""
    height, width = x.shape[-2:]
    if height % factor or width % factor:
        x = F.pad(x[None], (0, -width % factor, 0, -height % factor), mode="replicate")[0]
    # Sums of slices: avg_pool2d takes three times as long here.
    rows = sum((x[:, k::factor] for k in range(1, factor)), x[:, ::factor])
    return sum((rows[..., k::factor] for k in range(1, factor)), rows[..., ::factor]) / factor**2


class DuplicateDetector:
    """Tells repeated frames from frames in which anything moves.

    Args:
        threshold: on :func:`change`, in the range of the values; 0 takes only equal frames.
        held: also takes for a repetition what changes less than HELD and than a part of the latest real
            changes: for animation coded badly, together with :class:`Dedup`.

    Raises:
        UserError: the threshold is negative.
    """

    def __init__(self, threshold: float = SAME, *, held: bool = False):
        if not threshold >= 0:
            raise UserError(
                f"a threshold for duplicates is 0 or a little more, got {threshold}; the default is {SAME:.4f}"
            )
        self.threshold = threshold
        self.held = held
        self._changes: deque[float] = deque(maxlen=RECENT)  # of pairs that are no repetition

    def is_duplicate(self, a: Tensor, b: Tensor) -> bool:
        """Whether ``b`` shows what ``a`` shows; ``[3, H, W]`` each, to be asked about pairs in order.

        Raises:
            UserError: the sizes differ.
        """
        found = change(a, b)
        if found <= self.threshold:
            return True
        if self.held and found <= HELD and self._changes:
            usual = torch.tensor(list(self._changes)).quantile(0.5).item()
            if found <= HELD_PART * usual:
                return True
        self._changes.append(found)
        return False


class Dedup(Generic[T]):
    """Keeps of each drawing that is shown for a few frames only the first.

    A run is a frame and the duplicates that follow it. Of a run of at most ``max_run`` frames the first is
    kept, at its time. A longer run is a hold that somebody meant: all its frames are kept, so the picture
    stands until the last of them. So are all frames of the run that ends the video, which keeps the time of
    the last frame.

    Args:
        max_run: frames that one drawing is shown for, at most; 3 is animation on threes.

    Raises:
        UserError: ``max_run`` is below 2, which would keep everything.
    """

    def __init__(self, max_run: int = 3):
        if max_run < 2:
            raise UserError(f"a drawing must be allowed to stay for at least 2 frames, got {max_run}; 3 is usual")
        self.max_run = max_run
        self.dropped = 0
        self._shown = 0  # frames of the run so far
        self._repeats: list[tuple[Fraction, T]] = []  # of the run, not yet known to be a hold

    def push(self, time: Fraction, frame: T, duplicate: bool) -> list[tuple[Fraction, T]]:
        """Take the next frame.

        Args:
            time: when it is shown.
            frame: anything.
            duplicate: it shows what the frame before it shows; of the first frame this says nothing.

        Returns:
            frames that are kept, in order; at most ``max_run`` - 1 are held back.
        """
        if not duplicate or not self._shown:
            self.dropped += len(self._repeats)
            self._repeats.clear()
            self._shown = 1
            return [(time, frame)]
        self._shown += 1
        self._repeats.append((time, frame))
        return self.finish() if self._shown > self.max_run else []

    def finish(self) -> list[tuple[Fraction, T]]:
        """The frames held back: the video ends with them."""
        kept, self._repeats = self._repeats, []
        return kept
