"""What locking overlays gains where there are some, and costs where there are none: PSNR of middle frames.

Triplets as in triplets.py, plain and with a subtitle and a translucent logo drawn over; and a pan over a
still, the hardest case for writing. dB over the whole frame, around the subtitle and around the logo, each
without and with the lock.

PAPERSHELF_DATA=data python rife/bench/overlays.py [--mode fast] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rife.interpolator import Interpolator
from rife.overlays import OverlayTracker, lock_overlay
from torch import Tensor
from triplets import CLIPS, frames

WARM_UP = 2  # pairs from which the tracker only learns


def drawn(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Colour ``[3, H, W]`` and opacity ``[H, W]`` of the overlay, and ``[2, H, W]``: near subtitle, near logo."""
    size = height / 360

    def text(words: str, x: float, y: float, scale: float, thickness: float) -> np.ndarray:
        canvas = np.zeros((height, width), np.uint8)
        place, bold = (int(x * width), int(y * height)), max(1, int(thickness * size))
        cv2.putText(canvas, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale * size, 255, bold, cv2.LINE_AA)
        return canvas / 255

    words, outline = (text("Where is he going now?", 0.15, 0.9, 1.0, thickness) for thickness in (2, 6))
    disc = np.zeros(words.shape, np.uint8)
    cv2.circle(disc, (int(0.88 * width), int(0.15 * height)), int(0.09 * height), 255, -1, cv2.LINE_AA)
    logo = np.clip(disc / 255 - text("7", 0.865, 0.19, 1.1, 3), 0, 1)
    colour = torch.from_numpy(np.maximum(words, logo * 0.95)).float().expand(3, -1, -1)
    opacity = torch.from_numpy(np.maximum(outline, logo * 0.5)).float()
    near = torch.from_numpy(np.stack([outline, logo])).float()
    return colour, opacity, (F.max_pool2d(near, 5, stride=1, padding=2) > 0).float()


def pan(step: int, count: int = 17) -> list[Tensor]:
    still = frames("bigbuckbunny")[0]
    return [still[..., 100:460, 20 + n * step : 660 + n * step] for n in range(count)]


def rounded(frame: Tensor) -> Tensor:
    return (frame.clamp(0, 1) * 255).round() / 255


def decibels(frame: Tensor, truth: Tensor, where: Tensor) -> float:
    error = ((rounded(frame) - truth) ** 2).mean(0)
    return -10 * torch.log10((error * where).sum() / where.sum() + 1e-12).item()


def measured(network: Interpolator, clip: list[Tensor], overlaid: bool) -> dict[str, list[float]]:
    """Place -> mean dB without and with the lock."""
    colour, opacity, near = drawn(*clip[0].shape[-2:])
    shown = [rounded(torch.lerp(frame[0], colour, opacity)) if overlaid else frame[0] for frame in clip]
    places = {"whole": torch.ones_like(opacity)} | ({"subtitle": near[0], "logo": near[1]} if overlaid else {})
    tracker, rows = OverlayTracker(), []
    for n in range(0, len(shown) - 2, 2):
        a, truth, b = shown[n : n + 3]
        mask = tracker.mask(a, b)
        if n < 2 * WARM_UP:
            continue
        plain = network.between(a, b, [0.5])
        locked = lock_overlay(plain, a, b, [0.5], mask)
        rows.append([[decibels(x[0], truth, where) for x in (plain, locked)] for where in places.values()])
    return {place: [round(x, 3) for x in values] for place, values in zip(places, np.mean(rows, 0), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    network = Interpolator.from_mode(args.mode)
    clips = {name: frames(name) for name in CLIPS} | {"pan of 3 px": pan(3), "pan of 10 px": pan(10)}
    results = {}
    for name, clip in clips.items():
        for overlaid in (False, True):
            row = measured(network, clip, overlaid)
            results[f"{name}, overlaid" if overlaid else name] = row
            cells = "".join(f"  {place} {without:.2f} -> {with_:.2f}" for place, (without, with_) in row.items())
            print(f"{name + (', overlaid' if overlaid else ''):32}{cells}", flush=True)
    if args.json:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "mode": args.mode}
        args.json.write_text(json.dumps({"machine": machine, "psnr_db": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
