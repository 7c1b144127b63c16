"""Real photographs of the University of Washington: lights from the chrome ball, the gray ball's error, cat and buddha.

The chrome ball is taken by the circle of its mask, which was drawn by hand, and by its outline in the photographs; both
against the data's own light file, and all three against what the gray ball's shading says. The sheet has a row for each
object: a photograph, normals by least squares and by `auto`, the angle between them (of the ball: to the true normals;
black is 0, white 30 degrees), and the object relit from the left.

python ps-fcn/bench/uw.py photometric_stereo/uw [--weights W] [--json FILE] [--sheet FILE.jpg]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from papershelf.files import atomic_path
from papershelf.images import write_image
from papershelf.measuring import commit, processor
from psfcn import checkpoints
from psfcn.angles import degrees, mean_degrees
from psfcn.balls import ball_normals, find_balls, see_ball
from psfcn.calibration import from_chrome_balls, from_matt_balls, shared_light
from psfcn.captures import Capture, ReadOptions, read
from psfcn.estimation import Estimator
from psfcn.networks import PSFCN
from psfcn.relight_page import srgb
from psfcn.result_files import as_bytes, normal_picture

METHODS = ("ls", "trimmed", "l1", "robust", "psfcn", "auto")
HIGH, WIDE, GAP, LABEL = 300, 225, 6, 20  # pixels; wider pictures are made less high
WHITE = 30.0  # degrees: white in pictures of angles
FROM_LEFT = np.array([-0.64, 0.30, 0.71])


def calibrations(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Directions ``[Q, 3]`` by their source, and circles as x, y, radius."""
    options = ReadOptions(lights=folder / "lights.txt")
    chrome, gray = (read(folder / f"{name}.txt", options) for name in ("chrome", "gray"))
    pictures = [image.mean(-1) for image in chrome.images]
    mean, least = shared_light(pictures)
    circles = {"chrome, its mask": find_balls(chrome.mask), "chrome, its outline": [see_ball(mean)]}
    lights = {"file": chrome.lights}
    lights |= {
        name: from_chrome_balls(pictures, balls, chrome.names, least).directions for name, balls in circles.items()
    }
    circles["gray"] = find_balls(gray.mask)
    lights["gray, its shading"] = from_matt_balls(gray.images, circles["gray"], gray.names).directions
    return lights, {name: [round(x, 2) for x in dataclasses.astuple(balls[0])] for name, balls in circles.items()}


def gray_ball(capture: Capture, lights: np.ndarray, network: PSFCN) -> dict[str, float]:
    """Mean angular errors in degrees by method."""
    true, inside = ball_normals(find_balls(capture.mask)[0], capture.mask.shape)
    lit = dataclasses.replace(capture, lights=lights)
    estimator = Estimator(lit, network, precision="float32")
    return {method: mean_degrees(estimator.estimate(method).normals, true, capture.mask & inside) for method in METHODS}


def row(name: str, capture: Capture, network: PSFCN) -> tuple[np.ndarray, float]:
    """An object's row of the sheet, and the mean angle in degrees between least squares and `auto`."""
    plain, best = (Estimator(capture, network).estimate(method) for method in ("ls", "auto"))
    mask = capture.mask
    true, inside = ball_normals(find_balls(mask)[0], mask.shape) if name == "gray" else (plain.normals, mask)
    apart = np.where(mask & inside, degrees(best.normals, true), 0)
    scale = 0.9 / np.percentile(best.albedo[mask], 99)
    relit = best.albedo * scale * (best.normals @ FROM_LEFT).clip(0)[..., None]
    photograph = capture.images[4] / np.percentile(capture.images[4][mask], 99.5)
    pictures = {
        f"{name}: a photograph": as_bytes(srgb(photograph.clip(0, 1))),
        "normals: least squares": normal_picture(plain.normals, mask),
        "normals: auto": normal_picture(best.normals, mask),
        f"{'error of auto' if name == 'gray' else 'angle between'} (0 to 30)": as_bytes((apart / WHITE)[..., None]),
        "auto, relit from the left": as_bytes(srgb(relit.clip(0, 1))),
    }
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    tiles = [_tile(picture[box], label) for label, picture in pictures.items()]
    return np.concatenate(tiles, 1), float(apart[mask & inside].mean())


def _tile(picture: np.ndarray, label: str) -> np.ndarray:
    scale = min(HIGH / picture.shape[0], WIDE / picture.shape[1])
    width, high = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    small = cv2.resize(np.ascontiguousarray(picture), (width, high), interpolation=cv2.INTER_AREA)
    small = np.repeat(small[..., None], 3, 2) if small.ndim == 2 else small
    tile = np.full((high + LABEL + GAP, WIDE + GAP, 3), 30, np.uint8)
    tile[LABEL : LABEL + high, :width] = small
    cv2.putText(tile, label, (2, LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230, 230, 230), 1, cv2.LINE_AA)
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with cat.txt, buddha.txt, gray.txt, chrome.txt and lights.txt")
    parser.add_argument("--weights", type=Path, help="of PS-FCN [default: those that ship]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = checkpoints.load(args.weights or checkpoints.default_weights("psfcn-n"))
    weights = args.weights.name if args.weights else "psfcn-n that ships"
    lights, circles = calibrations(args.folder)
    file = lights["file"]
    names = [name for name in lights if name != "file"]
    print(f"weights: {weights}\nangles to the light file, degrees")
    for name in names:
        print(f"{name:20}", *(f"{angle:5.1f}" for angle in degrees(lights[name], file)))
    gray_says = {name: degrees(lights[name], lights["gray, its shading"]) for name in list(lights)[:3]}
    print("angles to what the gray ball's shading says")
    for name, angles in gray_says.items():
        print(f"{name:20}", *(f"{angle:5.1f}" for angle in angles), f"  mean {angles.mean():.2f}")
    gray = read(args.folder / "gray.txt")
    errors = {name: gray_ball(gray, directions, network) for name, directions in lights.items()}
    print("gray ball, mean angular error by the lights of")
    for name, table in errors.items():
        print(f"{name:20}", *(f"{method} {error:5.2f}" for method, error in table.items()))
    apart = {}
    rows = []
    for name in ("cat", "buddha", "gray"):
        capture = dataclasses.replace(read(args.folder / f"{name}.txt"), lights=lights["chrome, its outline"])
        picture, apart[name] = row(name, capture, network)
        rows.append(picture)
    print(f"least squares and auto are apart by {apart['cat']:.1f} (cat) and {apart['buddha']:.1f} degrees (buddha)")
    if args.sheet:
        sheet = np.pad(np.concatenate(rows), ((0, 0), (GAP, 0), (0, 0)), constant_values=30)
        write_image(args.sheet, sheet, quality=85)
    if args.json:
        result = {
            "machine": {"processor": processor(), "commit": commit(), "threads": args.threads},
            "weights": weights,
            "circles": circles,
            "lights": {name: directions.round(5).tolist() for name, directions in lights.items()},
            "degrees_to_file": {name: degrees(lights[name], file).round(3).tolist() for name in names},
            "degrees_to_gray_shading": {name: angles.round(3).tolist() for name, angles in gray_says.items()},
            "gray_ball_error_degrees": errors,
            "least_squares_to_auto_degrees": {name: apart[name] for name in ("cat", "buddha")},
        }
        with atomic_path(args.json) as part:
            part.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
