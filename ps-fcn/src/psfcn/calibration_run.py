"""Calibrating lights from files: photographs of balls, or of any object by LCNet, one at a time.

Two passes over the photographs, the second knowing what they have in common, so that never all of them are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from papershelf.errors import UserError

from psfcn.angles import degrees
from psfcn.balls import Ball, find_balls, see_ball
from psfcn.calibration import Found, from_chrome_balls, from_matt_balls, shared_light
from psfcn.captures import Capture, files_of, in_order, linear, read_alike, read_mask, unit_directions
from psfcn.light_files import read_lights
from psfcn.masks import propose

MODES = ("chrome", "matt", "lcnet")


@dataclass(frozen=True)
class Options:
    """What is calibrated, and how.

    Args:
        images: a folder, a list file or an ``.lp`` file, as for :func:`psfcn.captures.read`.
        mode: ``chrome`` (mirror balls), ``matt`` (white or grey balls) or ``lcnet`` (any object).
        mask: picture of the balls, or the object, in white; None for the layout's own, or else found.
        gamma: what the images were encoded with, see :func:`psfcn.captures.linear`.
        lights: of ``matt``: file of known directions, so that only intensities are found.
        weights: of ``lcnet``: file of its weights; None for those that ship.
    """

    images: Path
    mode: str = "chrome"
    mask: Path | None = None
    gamma: str = "linear"
    lights: Path | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """What was found, from which files, and on which balls (none where LCNet looked)."""

    files: tuple[Path, ...]
    balls: tuple[Ball, ...]
    found: Found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)


def calibrate(options: Options) -> Calibration:
    """Find the lights.

    Raises:
        UserError: files are missing or do not fit each other, or show no ball or no light.
    """
    if options.mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, got {options.mode!r}")
    files, _, mask_file = files_of(options.images, options.mask)
    if options.mode == "lcnet":
        return _by_network(options, files, mask_file)
    names = [file.name for file in files]
    known = None
    if options.lights:
        known = directions_for(options.lights, files)
    mean, least = shared_light(image.mean(-1) for image in photographs(files, options.gamma))
    notes = []
    if mask_file:
        balls = find_balls(read_mask(mask_file, mean.shape))
    else:
        balls = [see_ball(mean)]
        notes.append(
            f"no mask was given; a ball was found by its outline, centre ({balls[0].x:.1f}, {balls[0].y:.1f}), radius "
            f"{balls[0].radius:.1f} pixels; look at it with --sheet"
        )
    pictures = photographs(files, options.gamma)
    if options.mode == "matt":
        found = from_matt_balls(pictures, balls, names, known)
    else:
        steady = least if len(files) > 1 else None
        found = from_chrome_balls((image.mean(-1) for image in pictures), balls, names, steady)
    found.notes[:0] = notes
    return Calibration(tuple(files), tuple(balls), found)


def photographs(files: Sequence[Path], gamma: str = "linear") -> Iterator[np.ndarray]:
    """Linear RGB ``[H, W, 3]`` float32 of one file after the other; of integers 1 is the largest.

    Raises:
        UserError: as in :func:`psfcn.captures.read_alike`.
    """
    for image in read_alike(files):
        top = float(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1.0
        yield linear(image.astype(np.float32) / np.float32(top), gamma)


def directions_for(path: Path, files: Sequence[Path]) -> np.ndarray:
    """Unit directions ``[Q, 3]`` of a light file for these photographs.

    By their names, unless the file names none of them: lights of other photographs are taken in order.

    Raises:
        UserError: the file cannot be read, or has not one light for each photograph.
    """
    lights = read_lights(path)
    named = {Path(name.replace("\\", "/")).stem.lower() for name in lights.names}
    names = lights.names if any(file.stem.lower() in named for file in files) else ()
    return unit_directions(in_order(path, lights.directions, names, files))[0]


def angles_to(calibration: Calibration, path: Path) -> np.ndarray:
    """Degrees ``[Q]`` between the lights found and those of a file.

    Raises:
        UserError: as in :func:`directions_for`.
    """
    return degrees(calibration.found.directions, directions_for(path, calibration.files))


def _by_network(options: Options, files: list[Path], mask_file: Path | None) -> Calibration:
    from psfcn import checkpoints  # late: PyTorch
    from psfcn.estimation import find_lights

    network = checkpoints.load(options.weights or checkpoints.default_weights("lcnet"), "lcnet")
    images = np.stack(list(photographs(files, options.gamma)))
    notes = []
    if mask_file:
        mask = read_mask(mask_file, images.shape[1:3])
    else:
        mask = propose(images)
        notes.append(f"no mask was given; one was proposed from the brightness ({100 * mask.mean():.0f} % is object)")
    if not mask.any():
        raise UserError(f"{mask_file or options.images}: the mask is empty; give the object in white by --mask")
    names = tuple(file.name for file in files)
    capture, strengths = find_lights(Capture(images, mask, names), network)
    intensities = np.repeat((strengths / strengths.mean()).astype(np.float64)[:, None], 3, 1)
    return Calibration(
        tuple(files),
        (),
        Found(capture.lights, np.zeros(len(files)), np.zeros((len(files), 0, 2)), intensities, notes),
    )
