r"""When each output frame is shown, in exact rational arithmetic: no float, so no drift.

Output frame k is shown at

.. math:: t_k = t_0 + k / \mathrm{fps}, \qquad 0 \le k < \lceil \mathrm{duration} \cdot \mathrm{fps} \rceil

and lies between two source frames shown at :math:`a \le t_k < b`, at :math:`\alpha = (t_k - a) / (b - a)`;
:math:`\alpha = 0` is an exact hit, and the source frame itself is the answer. Nothing here knows of
video files: times are :class:`~fractions.Fraction` seconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from papershelf.errors import UserError

MAX_FPS = 1000
_NTSC = Fraction(1000, 1001)
_NUMBER = r"\d+(?:\.\d+)?(?:/\d+)?"


def parse_rate(text: str, source: Fraction | None = None) -> Fraction:
    """A frame rate as people write it.

    Args:
        text: ``60``, ``12.5``, ``24000/1001``; ``59.94``, ``23.976`` and their like mean the exact
            NTSC rates; ``2x`` and ``x2.5`` multiply ``source``.
        source: the source's frame rate, for the multiples.

    Raises:
        UserError: ``text`` is none of these, or the rate is not in (0, 1000].
    """
    words = text.strip().lower()
    if match := re.fullmatch(rf"x({_NUMBER})|({_NUMBER})x", words):
        if source is None:
            raise UserError(f"{text!r} is a multiple, but the source states no frame rate; give frames a second")
        rate = _fraction(match[1] or match[2], text) * source
    elif re.fullmatch(_NUMBER, words):
        rate = _ntsc(words) or _fraction(words, text)
    else:
        raise UserError(f"expected a frame rate like 60, 59.94, 24000/1001, 2x or x2.5, got {text!r}")
    if not 0 < rate <= MAX_FPS:
        raise UserError(f"a frame rate must lie above 0 and at most {MAX_FPS}, got {text!r} = {float(rate):g}")
    return rate


def parse_factor(text: str) -> Fraction:
    """A slow-motion factor such as ``2``, ``2.5`` or ``5/2``, above 0; UserError otherwise."""
    if not re.fullmatch(_NUMBER, text.strip()) or not (factor := _fraction(text.strip(), text)):
        raise UserError(f"expected a factor above 0 like 2, 2.5 or 5/2, got {text!r}")
    return factor


def _fraction(number: str, text: str) -> Fraction:
    above, _, below = number.partition("/")
    if below and not int(below):
        raise UserError(f"{text!r} divides by zero")
    return Fraction(above) / Fraction(below or 1)


def _ntsc(number: str) -> Fraction | None:
    """59.94 means 60000/1001: a whole rate times 1000/1001, rounded to the digits given (two or more)."""
    digits = len(number.partition(".")[2])
    if digits < 2 or "/" in number:
        return None
    exact = math.ceil(Fraction(number)) * _NTSC
    return exact if round(exact, digits) == Fraction(number) else None


@dataclass(frozen=True)
class Slot:
    """One output frame: its number, its time in seconds, and where it lies between two source frames."""

    index: int
    time: Fraction
    alpha: Fraction  # in [0, 1); 0 is the left source frame itself


@dataclass(frozen=True)
class Timeline:
    """The output's frame times: ``start + k / fps``."""

    fps: Fraction
    start: Fraction = Fraction(0)

    def first_at_or_after(self, time: Fraction) -> int:
        """The number of the first output frame shown at ``time`` or later."""
        return max(0, math.ceil((time - self.start) * self.fps))

    def between(self, left: Fraction, right: Fraction) -> list[Slot]:
        """The output frames in ``[left, right)``, between source frames shown at these times.

        Neighbouring pairs share no output frame and leave none out.
        """
        if right <= left:
            raise ValueError(f"source times must increase, got {left} then {right}")
        times = [(k, self.start + k / self.fps) for k in self._numbers(left, right)]
        return [Slot(k, time, (time - left) / (right - left)) for k, time in times]

    def held(self, last: Fraction, end: Fraction) -> list[Slot]:
        """The output frames in ``[last, end)``: the last source frame, held for its own duration."""
        return [Slot(k, self.start + k / self.fps, Fraction(0)) for k in self._numbers(last, end)]

    def count(self, end: Fraction) -> int:
        """How many output frames there are in ``[start, end)``: ceil(duration * fps)."""
        return self.first_at_or_after(end)

    def _numbers(self, left: Fraction, right: Fraction) -> range:
        return range(self.first_at_or_after(left), self.first_at_or_after(right))


def slowed(time: Fraction, start: Fraction, factor: Fraction) -> Fraction:
    """The time at which slow motion by ``factor`` shows what the source shows at ``time``."""
    return start + (time - start) * factor
