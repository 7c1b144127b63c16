"""How well a network restores frames that it did not see: PSNR, SSIM, interpolation error.

The conventions are the paper's (section 4): a new frame is rounded to 8 bits before it is compared,
PSNR is over RGB per frame and then averaged in decibels. Middlebury's interpolation error is
mean |round(255 out) - gt| over pixels and channels; HD's PSNR is that of the luma.

Not in the paper: an equal frame counts as 100 dB, or one still scene would make a mean infinite; SSIM is
the mean over the three colours (:func:`papershelf.metrics.ssim`), where the paper's program slides a window
over the colours too, so published SSIM may differ a little. A whole data set's figure is the mean of its
parts' means, which for equal parts is the mean of all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from papershelf.metrics import WINDOW, psnr, ssim
from torch import Tensor
from tqdm import tqdm

from rife.benchmarks import OVERALL, DataSet, Trial

if TYPE_CHECKING:
    from rife.interpolator import Interpolator

EQUAL_FRAMES = 100.0  # dB
LUMA = (0.299, 0.587, 0.114)  # BT.601, as HD's protocol has it whatever the clip
HEADINGS = {"psnr": "PSNR dB", "ssim": "SSIM", "ie": "IE", "luma_psnr": "luma PSNR dB"}
DIGITS = {"psnr": 2, "ssim": 4, "ie": 3, "luma_psnr": 2}


@dataclass(frozen=True)
class Score:
    """One restored frame: its measures, and the PSNR that the mean of the two frames has."""

    part: str
    name: str
    time: float
    measures: dict[str, float | None]
    averaging_psnr: float


@dataclass(frozen=True)
class Evaluation:
    """All scores over a data set.

    Attributes:
        data: name of the data set.
        networks: what made the frames.
        scores: one for each frame.
        published: the paper's figures: part -> measure -> value.
        note: see :class:`rife.benchmarks.DataSet`.
    """

    data: str
    networks: str
    scores: list[Score]
    published: dict[str, dict[str, float]]
    note: str

    def means(self) -> dict[str, dict[str, float | int | None]]:
        """Part -> measure -> mean; the last row is that of the whole."""
        parts: dict[str, list[Score]] = {}
        for score in self.scores:
            parts.setdefault(score.part, []).append(score)
        rows = {part: self._mean(scores) for part, scores in parts.items()}
        whole: dict[str, float | int | None] = {"frames": len(self.scores)}
        for name in next(iter(rows.values())):
            if name != "frames":
                values = [row[name] for row in rows.values() if row[name] is not None]
                whole[name] = sum(values) / len(values) if values else None
        return ({} if len(rows) == 1 and "" in rows else rows) | {OVERALL: whole}

    def as_json(self) -> dict:
        """Plain numbers: the means by part, the published ones, and every frame."""
        return {
            "data": self.data,
            "networks": self.networks,
            "means": self.means(),
            "published": self.published,
            "note": self.note,
            "frames": [asdict(score) for score in self.scores],
        }

    def table(self, each: bool = False) -> str:
        """The means, with the paper's figures where it has any, as text; ``each``: every frame before them."""
        measures = list(self.scores[0].measures)
        quoted = [m for m in measures if any(m in row for row in self.published.values())]
        rows = [
            [
                "",
                "frames",
                *(HEADINGS[m] for m in measures),
                "averaging dB",
                *(f"paper's {HEADINGS[m]}" for m in quoted),
            ]
        ]
        if each:
            for s in self.scores:
                figures = [_figure(s.measures[m], m) for m in measures]
                name = f"{s.part} {s.name} at {s.time:g}".strip()
                rows.append([name, "", *figures, _figure(s.averaging_psnr, "psnr"), *("" for _ in quoted)])
        for part, mean in self.means().items():
            figures = [_figure(mean[m], m) for m in measures]
            paper = [_figure(self.published.get(part, {}).get(m), m) for m in quoted]
            rows.append([part, str(mean["frames"]), *figures, _figure(mean["averaging_psnr"], "psnr"), *paper])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([f"{self.data}: {self.networks}", *lines, *([self.note] if self.note else [])])

    def _mean(self, scores: list[Score]) -> dict[str, float | int | None]:
        row: dict[str, float | int | None] = {"frames": len(scores)}
        for name in scores[0].measures:
            values = [s.measures[name] for s in scores if s.measures[name] is not None]
            row[name] = sum(values) / len(values) if values else None
        row["averaging_psnr"] = sum(s.averaging_psnr for s in scores) / len(scores)
        return row


def evaluate(data: DataSet, interpolator: Interpolator, networks: str) -> Evaluation:
    """Restore every frame of a data set, with a progress bar on stderr.

    Args:
        data: from :func:`rife.benchmarks.open_data_set`.
        interpolator: makes the frames.
        networks: what to call them in the result.

    Raises:
        UserError: an image cannot be read, or the networks cannot reach a time that is asked for.
    """
    scores: list[Score] = []
    with tqdm(total=data.count, unit="frame", disable=None, file=sys.stderr) as bar:
        for trial in data.trials():
            for score in restore(trial, interpolator, data.measures):
                scores.append(score)
                bar.update()
    return Evaluation(data.name, networks, scores, data.published, data.note)


def restore(trial: Trial, interpolator: Interpolator, measures: tuple[str, ...]) -> Iterator[Score]:
    """The scores of the frames between one pair."""
    a, b = trial.first.float() / 255, trial.last.float() / 255
    frames = interpolator.between(a, b, [alpha for alpha, _ in trial.truths])
    average = _codes((a + b) / 2)
    for frame, (alpha, truth) in zip(_codes(frames.cpu()), trial.truths, strict=True):
        values = {name: MEASURES[name](frame, truth) for name in measures}
        yield Score(trial.part, trial.name, float(alpha), values, _decibels(average, truth))


def _codes(frame: Tensor) -> Tensor:
    """8-bit codes as the frame would be saved."""
    return (frame.clamp(0, 1) * 255).round().to(torch.uint8)


def _decibels(frame: Tensor, truth: Tensor) -> float:
    return min(psnr(frame, truth, 255), EQUAL_FRAMES)


def _similarity(frame: Tensor, truth: Tensor) -> float | None:
    """None for pictures smaller than SSIM's window."""
    return ssim(frame, truth, 255) if min(truth.shape[1:]) >= WINDOW else None


def _interpolation_error(frame: Tensor, truth: Tensor) -> float:
    return (frame.double() - truth.double()).abs().mean().item()


def _luma_decibels(frame: Tensor, truth: Tensor) -> float:
    weights = torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)
    return _decibels(*((x * weights).sum(0, keepdim=True) for x in (frame, truth)))


MEASURES = {"psnr": _decibels, "ssim": _similarity, "ie": _interpolation_error, "luma_psnr": _luma_decibels}


def _figure(value: float | None, measure: str) -> str:
    return "" if value is None else f"{value:.{DIGITS[measure]}f}"
