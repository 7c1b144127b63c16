"""The paper's ladder (DIST, section 4.1): what each trick saves in queries and time, and costs in hits and depth.

One camera, rays against the unit ball, at most 50 queries on a ray, a threshold of 5e-5. Every query counts, those of
coarse levels too. The reference is the plain march with 400 steps: the hit rate is the share of its hits that a row
finds, and errors of depth are means over what both hit. The last row is what `dist-render render` does.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from papershelf.errors import UserError
from tqdm import tqdm

from distrender.cameras import Camera
from distrender.pyramid import trace_image
from distrender.rendering import trace_view
from distrender.tracing import Hit, MarchOptions, sphere_trace

PLAIN = MarchOptions(steps=50, ratio=1.0)
REFERENCE = replace(PLAIN, steps=400)

Tracer = Callable[[torch.nn.Module, Camera], Hit]


@dataclass(frozen=True)
class Rung:
    """What one row of the ladder took and found.

    Attributes:
        row: its name.
        queries: of the field.
        seconds: median over the rounds.
        hit_rate: share of the reference's hits.
        mean_depth_error: over what both hit, in scene units; NaN where nothing is.
        missed: rays that saw both signs without converging.
    """

    row: str
    queries: int
    seconds: float
    hit_rate: float
    mean_depth_error: float
    missed: int


def _each_ray(options: MarchOptions, sdf: torch.nn.Module, camera: Camera) -> Hit:
    return sphere_trace(sdf, *camera.rays(), options, gradient="none")


def _coarse_to_fine(sdf: torch.nn.Module, camera: Camera) -> Hit:
    return trace_image(sdf, camera, MarchOptions(), levels=(4, 2, 1), steps=(3, 3, 44), gradient="none")


ROWS: Mapping[str, Tracer] = {
    "naive": partial(_each_ray, replace(PLAIN, dynamic=False)),
    "dynamic": partial(_each_ray, PLAIN),
    "aggressive": partial(_each_ray, MarchOptions()),
    "coarse to fine": _coarse_to_fine,
    "ours": trace_view,
}


@torch.no_grad()
def climb(sdf: torch.nn.Module, camera: Camera, rounds: int = 1) -> list[Rung]:
    """Trace a camera's views in every way of :data:`ROWS`, turn by turn.

    Raises:
        UserError: no ray meets the surface.
    """
    small = camera.resized((8, 8))
    for trace in ROWS.values():  # builds the kernels
        trace(sdf, small)
    taken: dict[str, list[float]] = {row: [] for row in ROWS}
    found: dict[str, Hit] = {}
    with tqdm(total=1 + rounds * len(ROWS), unit="run", file=sys.stderr, disable=None, leave=False) as bar:
        reference = _each_ray(REFERENCE, sdf, camera)
        if not reference.mask.any():
            raise UserError("no ray meets the surface: there is nothing to compare; choose another shape or view")
        bar.update()
        for _ in range(rounds):
            for row, trace in ROWS.items():
                bar.set_description(row)
                start = perf_counter()
                found[row] = trace(sdf, camera)
                taken[row].append(perf_counter() - start)
                bar.update()
    return [_compare(row, hit, reference, statistics.median(taken[row])) for row, hit in found.items()]


def _compare(row: str, hit: Hit, reference: Hit, seconds: float) -> Rung:
    both = hit.mask & reference.mask
    error = (hit.depth - reference.depth)[both].abs().double().mean()
    return Rung(row, hit.queries, seconds, (both.sum() / reference.mask.sum()).item(), error.item(), hit.missed)


def table(rungs: list[Rung]) -> str:
    """The ladder as text, one line a row."""
    lines = [f"{'row':<16}{'queries':>12}{'seconds':>11}{'hit rate':>11}{'depth error':>14}{'missed':>9}"]
    lines += [
        f"{r.row:<16}{r.queries:>12,}{r.seconds:>11.3f}{r.hit_rate:>11.4f}{r.mean_depth_error:>14.1e}{r.missed:>9}"
        for r in rungs
    ]
    return "\n".join(lines)
