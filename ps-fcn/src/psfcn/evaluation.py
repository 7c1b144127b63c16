"""How far normals are from the true ones, method by method and object by object, and the tables of it.

The figure is the field's: the mean over the mask of the angle between the normal found and the true one, in degrees;
a data set's is the mean of its objects'. Of lights that LCNet found (section 5.4): the mean angle, and eq. (9).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from papershelf.errors import UserError

from psfcn import published
from psfcn.angles import degrees
from psfcn.estimation import Estimator, find_lights
from psfcn.evaluation_sets import Subject
from psfcn.lcnet import LCNet
from psfcn.lcnet_training import angles, intensity_error
from psfcn.networks import PSFCN
from psfcn.prediction import Precision

AVERAGE = "average"


@dataclass(frozen=True)
class Outcome:
    """What came of an object.

    Attributes:
        normals: by method, ``[H, W, 3]``.
        errors: by method, ``[H, W]`` degrees, NaN where nothing is measured.
        means: by method, degrees.
        lights: of LCNet's lights, ``direction`` in degrees and ``intensity`` (relative); empty where the lights were
            given, or nobody knows the true ones.
    """

    normals: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    means: dict[str, float]
    lights: dict[str, float]


def evaluate(
    subject: Subject,
    methods: Sequence[str],
    network: PSFCN | None = None,
    finder: LCNet | None = None,
    *,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda method: None,
) -> Outcome:
    """Find an object's normals by each method, and measure them.

    Args:
        subject: from :func:`psfcn.evaluation_sets.load`.
        methods: of :data:`psfcn.estimation.METHODS`.
        network: what "psfcn" and "auto" use.
        finder: finds the lights in the photographs; None if the given ones are to be used.
        precision: of the network.
        device: where the network computes.
        progress: called with each method that is done.

    Raises:
        UserError: lights or a network are missing, the lights tell nothing, or the network gives no numbers.
    """
    capture, lights = subject.capture, {}
    if finder:
        strengths = subject.intensities.astype(np.float32)
        as_taken = dataclasses.replace(capture, images=capture.images * strengths[:, None, None])
        found, seen = find_lights(as_taken, finder)
        if capture.lights is not None:
            directions = angles(torch.from_numpy(found.lights), torch.from_numpy(capture.lights))
            # One number for a light; the photographs' mean over red, green and blue scales with that of its colour.
            true = torch.from_numpy(strengths).mean(1)
            lights = {
                "direction": float(directions.mean()),
                "intensity": float(intensity_error(torch.from_numpy(seen), true)),
            }
        capture = found
    estimator = Estimator(capture, network, lights_found=finder is not None, precision=precision, device=device)
    normals = {}
    for method in methods:
        normals[method] = estimator.estimate(method).normals
        progress(method)
    errors = {method: degrees(some, subject.capture.normals) for method, some in normals.items()}
    errors = {method: np.where(subject.measured, some, np.nan) for method, some in errors.items()}
    means = {method: float(some[subject.measured].mean()) for method, some in errors.items()}
    broken = [method for method, mean in means.items() if not np.isfinite(mean)]
    if broken:
        raise UserError(f"{broken[0]} gives numbers that are not finite; are the weights damaged?")
    return Outcome(normals, errors, means, lights)


def tables(
    outcomes: Mapping[str, Outcome],
    diligent: Sequence[str],
    *,
    lights: int | None = None,
    width: int = 120,
) -> str:
    """The outcomes as text: methods down, objects across, published figures below, then the errors of lights.

    Args:
        outcomes: by object.
        diligent: names in DiLiGenT of those whose published figures are to be shown.
        lights: how many images were taken, None for all.
        width: columns of the screen; a wider table is broken into several.
    """
    names = [*outcomes]
    methods = [*next(iter(outcomes.values())).means]
    rows = [
        (method, cells, _mean(cells.values()))
        for method in methods
        for cells in [{name: outcome.means[method] for name, outcome in outcomes.items()}]
    ]
    others = published.rows(diligent, lights)
    rows += [(f"published: {label}", cells, average) for label, cells, average in others]
    parts = [_table("degrees", names, rows, width)]
    if others:
        parts.append(f"Published figures: {published.SOURCE}; averages are over the objects shown.")
    found = {name: outcome.lights for name, outcome in outcomes.items() if outcome.lights}
    if found:
        whole = set(diligent) == set(published.OBJECTS)
        rows = []
        for kind, label in (("direction", "direction, degrees"), ("intensity", "intensity, relative")):
            cells = {name: values[kind] for name, values in found.items()}
            rows.append((label, cells, _mean(cells.values())))
            if whole:
                rows.append((f"published: {label}", {}, published.LCNET[kind]))
        parts.append(_table("LCNet's lights", names, rows, width, decimals=3))
    return "\n\n".join(parts)


def averages(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """By method, the mean over the objects, degrees."""
    methods = next(iter(outcomes.values())).means
    return {method: _mean(outcome.means[method] for outcome in outcomes.values()) for method in methods}


def _mean(values) -> float:
    return float(np.mean([*values]))


def _table(corner: str, names: Sequence[str], rows: Sequence[published.Row], width: int, decimals: int = 2) -> str:
    columns = [*names, AVERAGE]
    first = max(len(corner), *(len(label) for label, _, _ in rows))
    wide = {name: max(len(name), decimals + 4) for name in columns}
    blocks, used = [[]], first
    for name in columns:
        if blocks[-1] and used + 2 + wide[name] > width:
            blocks, used = [*blocks, []], first
        blocks[-1].append(name)
        used += 2 + wide[name]
    texts = []
    for block in blocks:
        lines = [corner.ljust(first) + "".join(f"  {name:>{wide[name]}}" for name in block)]
        for label, cells, average in rows:
            values = [average if name == AVERAGE else cells.get(name) for name in block]
            shown = ["-" if value is None else f"{value:.{decimals}f}" for value in values]
            lines.append(
                label.ljust(first) + "".join(f"  {text:>{wide[name]}}" for name, text in zip(block, shown, strict=True))
            )
        texts.append("\n".join(lines))
    return "\n\n".join(texts)
