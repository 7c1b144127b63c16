"""Pictures of a completion on its way: what was observed, and the shape after some of the iterations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from papershelf.images import write_image
from torch import Tensor

from distrender.cameras import Camera
from distrender.decoder import DeepSDFDecoder
from distrender.observations import Observation
from distrender.pyramid import FEWEST, FEWEST_LEVELS, FEWEST_STEPS, trace_image
from distrender.rendering import NETWORK_STEPS, bytes_of, first_view
from distrender.shading import picture
from distrender.tracing import MarchOptions

SIDE = 256  # pixels of a picture's longer side
SHOWN = (0.0, 0.25, 0.5, 1.0)  # after which shares of the iterations: 0, 50, 100, 200 of the paper's
DOT = 1  # pixels around a point that are painted too
PAPER, SHAPE = (1.0, 1.0, 1.0), (0.82, 0.82, 0.82)
NEAR, FAR = (0.85, 0.25, 0.10), (0.10, 0.25, 0.60)


def write(
    folder: Path,
    decoder: DeepSDFDecoder,
    observation: Observation,
    path: Tensor,
    truth: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Write ``observed.png``, ``iteration_0000.png`` and so on, ``truth.png``, and all beside in ``sheet.png``.

    Args:
        folder: there already.
        decoder: of the codes.
        observation: what was completed, on the CPU.
        path: ``[iterations + 1, L]``, codes of which a few are shown.
        truth: shown too, if known.
    """
    camera = viewpoint(observation)
    pictures = {"observed": observed_picture(observation, camera)}
    for iteration in sorted({round(share * (len(path) - 1)) for share in SHOWN}):
        march = MarchOptions(ratio=1.0, finish="secant")
        sdf = decoder.with_code(path[iteration])
        pictures[f"iteration_{iteration:04d}"] = _shaded(sdf, camera, march, (4, 2, 1), (3, 3, NETWORK_STEPS))
    if truth is not None:
        # Just before the surface: on it, the formulas of some primitives have no gradient.
        march = MarchOptions(ratio=1.0, clamp=FEWEST.clamp, threshold=1e-3)
        pictures["truth"] = _shaded(truth, camera, march, FEWEST_LEVELS, FEWEST_STEPS)
    for name, content in pictures.items():
        write_image(folder / f"{name}.png", bytes_of(content))
    write_image(folder / "sheet.png", bytes_of(torch.cat(list(pictures.values()), 1)))


def viewpoint(observation: Observation) -> Camera:
    """The camera that saw the points, with pixels for a picture; one in front where none did."""
    if observation.camera is None:
        return Camera.orbit(1, size=(SIDE, SIDE))
    height, width = observation.camera.size
    scale = SIDE / max(height, width)
    return observation.camera.resized((max(1, round(scale * height)), max(1, round(scale * width))))


def observed_picture(observation: Observation, camera: Camera) -> Tensor:
    """``[H, W, 3]``: the silhouette in grey, and the points on it, near ones red and far ones blue."""
    height, width = camera.size
    canvas = torch.tensor(PAPER).expand(height, width, 3).clone()
    if observation.mask is not None:
        mask = torch.nn.functional.interpolate(observation.mask[None, None].float(), (height, width))[0, 0] > 0.5
        canvas[mask] = torch.tensor(SHAPE)
    pixels, z = (found[0] for found in camera.project(observation.points))
    share = ((z - z.min()) / (z.max() - z.min()).clamp(min=1e-9))[:, None]
    colours = torch.tensor(NEAR) * (1 - share) + torch.tensor(FAR) * share
    x, y = pixels.floor().long().unbind(-1)
    for down in range(-DOT, DOT + 1):
        for right in range(-DOT, DOT + 1):
            there = (z > 0) & (x + right >= 0) & (x + right < width) & (y + down >= 0) & (y + down < height)
            canvas[y[there] + down, x[there] + right] = colours[there]
    return canvas


@torch.no_grad()
def _shaded(
    sdf: Callable[[Tensor], Tensor],
    camera: Camera,
    march: MarchOptions,
    levels: tuple[int, ...],
    steps: tuple[int, ...],
) -> Tensor:
    hit = trace_image(sdf, camera, march, levels=levels, steps=steps, gradient="none")
    return picture(first_view(hit), camera.rotation[0])
