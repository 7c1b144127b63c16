"""Subtitles, channel logos and game displays, kept from wobbling. Not in the paper.

What is laid over a moving picture stands still, but a network that sees the background move takes the
writing along. So a pixel that has been the same over the last pairs, is the same now, and lies at an edge
that has been there all the time is taken from the two given frames and not from the network. Around it the network
has torn pieces of writing out of place; there, and only where it can be seen to have failed on the writing
itself, the given frames are mixed as well. Where nothing is laid over, both rules change next to nothing:
a pixel that stands still is what the network should return too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from torch import Tensor

SAME, DIFFERENT = 6 / 255, 16 / 255  # of the channel that differs most; coded writing is not quite still
EDGE, CLEAR_EDGE = 0.08, 0.15  # steps between neighbouring pixels that make an edge
CELL = 3  # pixels; what shares a cell with an edge, or touches such a cell, is at the edge
FEW, ENOUGH = 1, 3  # pairs that a pixel must have been still for: not trusted before, trusted fully from
NEW = 0.3  # weight of the latest pair in what is known of edges
SOMETIMES, MOSTLY = 0.5, 0.8  # an arm that passes a wall also makes an edge beside still pixels, but not for long
LONG = 10  # pairs after which more count no further
AROUND = 4  # pixels around an overlay that the network may have put pieces of it into
MISSED, FAR_OFF = 0.06, 0.16  # by how much the network must be wrong on an overlay to be distrusted around it


class OverlayTracker:
    """Learns over the pairs of a video which pixels stand still; nothing needs to be reset at cuts.

    On the contrary: what stands still across a cut is laid over for certain.
    """

    def __init__(self) -> None:
        self._still: Tensor | None = None  # [H, W]: for how many pairs each pixel has been the same
        self._edges: Tensor | None = None  # [H / CELL, W / CELL]: how steadily a cell has shown an edge, in [0, 1]
        self._learned = 0.0  # weight of the pairs in that mean

    def mask(self, a: Tensor, b: Tensor) -> Tensor:
        """How surely each pixel belongs to an overlay. To be called once for each pair of the video, in order.

        Args:
            a: ``[3, H, W]`` RGB, nominal range [0, 1].
            b: the frame after it.

        Returns:
            ``[H, W]`` in [0, 1].

        Raises:
            UserError: the sizes differ, or are not the video's.
        """
        if a.shape != b.shape or (self._still is not None and self._still.shape != a.shape[-2:]):
            before = "" if self._still is None else f" in a video of {list(self._still.shape)}"
            raise UserError(
                f"the frames of a video must have one size, got {list(a.shape)} and {list(b.shape)}{before}"
            )
        difference = (a - b).abs_()
        same = _ramp(torch.maximum(torch.maximum(difference[0], difference[1]), difference[2]), DIFFERENT, SAME)
        if self._still is None:
            self._still, self._edges = torch.zeros_like(same), torch.zeros_like(_cells(same))
        self._still.add_(1).mul_(same).clamp_(max=LONG)
        still = _ramp(self._still, FEW, ENOUGH).mul_(same)
        edges = _cells(_ramp(_still_edges(a, b, same), EDGE, CLEAR_EDGE))
        self._edges.lerp_(edges, NEW)
        self._learned += NEW * (1 - self._learned)
        steady = edges.mul_(_ramp(self._edges / self._learned, SOMETIMES, MOSTLY))
        return still.mul_(_spread(_largest(steady, 1), still.shape))


def lock_overlay(frames: Tensor, a: Tensor, b: Tensor, alphas: Sequence[Fraction | float], mask: Tensor) -> Tensor:
    """Frames between ``a`` and ``b`` with the overlay of the two put back.

    Args:
        frames: ``[T, 3, H, W]``, the network's.
        a: ``[3, H, W]``, at time 0.
        b: ``[3, H, W]``, at time 1.
        alphas: T times in (0, 1).
        mask: ``[H, W]`` of :meth:`OverlayTracker.mask` for this pair.

    Returns:
        ``[T, 3, H, W]`` on the device of ``frames``; ``frames`` itself where there is no overlay.
    """
    rows, columns = mask.amax(1).nonzero(), mask.amax(0).nonzero()
    if not len(rows):
        return frames
    # Overlays are small: only the rectangle around them is worked on.
    margin = AROUND + 1
    top, left = (max(0, found[0].item() - margin) for found in (rows, columns))
    bottom, right = (found[-1].item() + margin + 1 for found in (rows, columns))
    place = (..., slice(top, bottom), slice(left, right))
    mask, a, b = (x[place].to(frames.device) for x in (mask, a, b))
    t = torch.tensor([float(alpha) for alpha in alphas], device=frames.device).view(-1, 1, 1, 1)
    given = torch.lerp(a[None], b[None], t)  # where a and b are the same, that is a
    wrong = (frames[place] - given).abs().amax(1) * mask  # [T, h, w]
    weight = torch.maximum(_largest(mask, AROUND) * _ramp(_largest(wrong, AROUND), MISSED, FAR_OFF), mask)
    soft = F.avg_pool2d(weight, 3, stride=1, padding=1)  # writing has blurred borders, which its mask leaves out
    locked = frames.clone()
    locked[place] = torch.lerp(frames[place], given, torch.maximum(weight, soft)[:, None])
    return locked


def _ramp(x: Tensor, zero: float, one: float) -> Tensor:
    """0 at ``zero`` and beyond, 1 at ``one`` and beyond, straight in between; either may be the larger."""
    return (x - zero).div_(one - zero).clamp_(0, 1)


def _still_edges(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """``[H, W]``: the step to the right or downward neighbour in both frames, as far as one of the two stands still.

    One, not both: beside a letter without outline, the background moves.
    """
    greys = [(frame[0] + frame[1]).add_(frame[2]).div_(3) for frame in (a, b)]
    steps = torch.zeros_like(same)
    right = torch.minimum(*((grey[:, 1:] - grey[:, :-1]).abs_() for grey in greys))
    torch.mul(right, torch.maximum(same[:, 1:], same[:, :-1]), out=steps[:, :-1])
    down = torch.minimum(*((grey[1:] - grey[:-1]).abs_() for grey in greys))
    torch.maximum(steps[:-1], down.mul_(torch.maximum(same[1:], same[:-1])), out=steps[:-1])
    return steps


def _cells(x: Tensor) -> Tensor:
    """The largest value in each cell of ``[H, W]``."""
    return F.max_pool2d(x[None], CELL, ceil_mode=True)[0]


def _spread(cells: Tensor, size: Sequence[int]) -> Tensor:
    return cells.repeat_interleave(CELL, 0)[: size[0]].repeat_interleave(CELL, 1)[:, : size[1]]


def _largest(x: Tensor, radius: int) -> Tensor:
    """The largest value within a square around each pixel, along one side after the other."""
    size = 2 * radius + 1
    flat = x.reshape(-1, 1, *x.shape[-2:])
    across = F.max_pool2d(flat, (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(across, (size, 1), stride=1, padding=(radius, 0)).view_as(x)
