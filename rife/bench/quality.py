"""PSNR of held-out middle frames through the whole command, beside frame averaging and minterpolate.

Every second frame of a clip is taken away, written as PNG, interpolated back by ``rife-interp`` and
compared with the frame that was there: RGB PSNR after rounding to 8 bits, mean over the triplets.

PAPERSHELF_DATA=data python rife/bench/quality.py --mode fast --mode balanced --mode best --bfloat16 [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import torch
from papershelf.images import read_image, write_image
from papershelf.metrics import psnr

# The clips' frames, and what the specification of this project measured for the bare networks.
CLIPS = {
    "toflow_low_resolution": (0, 19),
    "cup.mp4": (60, 71),
    "sintel_demo": (0, 10),
    "bigbuckbunny.mp4": (30, 38),  # to 37: the range that the specification's figures belong to
}
MINTERPOLATE = "minterpolate=fps=24:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"


def frames_of(clip: Path, begin: int, end: int) -> list[np.ndarray]:
    """[H, W, 3] uint8 each."""
    if clip.is_dir():
        return [read_image(path)[..., :3] for path in sorted(clip.glob("*.png"))[begin:end]]
    with av.open(str(clip)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), begin, end)]


def decibels(frame: np.ndarray, truth: np.ndarray) -> float:
    return psnr(*(torch.from_numpy(image).permute(2, 0, 1).double() for image in (frame, truth)), peak=255)


def read_folder(folder: Path) -> list[np.ndarray]:
    return [read_image(path)[..., :3] for path in sorted(folder.glob("*.png"))]


def by_command(kept: Path, out: Path, *options: str) -> list[np.ndarray]:
    command = [sys.executable, "-m", "rife", "interp", str(kept), "--input-fps", "12", "--fps", "24", "-o", str(out)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return read_folder(out)


def by_minterpolate(kept: Path, out: Path) -> list[np.ndarray]:
    out.mkdir()
    source = ["-framerate", "12", "-i", str(kept / "%04d.png")]
    # The filter needs a frame on either side of a pair: the last pair's middle comes only with one more.
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        *source,
        "-vf",
        f"tpad=stop=2:stop_mode=clone,{MINTERPOLATE}",
    ]
    subprocess.run([*command, str(out / "%04d.png")], check=True)
    return read_folder(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", action="append", help="default: fast and balanced")
    parser.add_argument("--bfloat16", action="store_true", help="each mode also with --precision bfloat16")
    parser.add_argument("--clip", action="append", choices=CLIPS, help="default: all")
    args = parser.parse_args()
    data = Path(os.environ["PAPERSHELF_DATA"]) / "video"
    runs = {mode: ["--mode", mode] for mode in args.mode or ["fast", "balanced"]}
    if args.bfloat16:
        runs |= {f"{mode} bf16": [*options, "--precision", "bfloat16"] for mode, options in runs.items()}

    rows = {}
    print(f"{'PSNR, dB':24}" + "".join(f"{name:>14}" for name in ["average", "minterpolate", *runs]))
    for clip in args.clip or CLIPS:
        frames = frames_of(data / clip, *CLIPS[clip])
        with tempfile.TemporaryDirectory() as scratch:
            kept = Path(scratch) / "kept"
            kept.mkdir()
            for n, frame in enumerate(frames[::2]):
                write_image(kept / f"{n:04d}.png", frame)
            made = {
                "average": None,
                "minterpolate": by_minterpolate(kept, Path(scratch) / "minterpolate"),
                **{name: by_command(kept, Path(scratch) / name, *options) for name, options in runs.items()},
            }
        rows[clip] = {}
        for name, output in made.items():
            scores = []
            for k in range(1, len(frames) - 1, 2):
                a, b = frames[k - 1].astype(np.uint16), frames[k + 1]
                scores.append(decibels((a + b + 1) // 2 if output is None else output[k], frames[k]))
            rows[clip][name] = round(float(np.mean(scores)), 2)
        print(f"{clip:24}" + "".join(f"{value:14.2f}" for value in rows[clip].values()), flush=True)
    if args.json:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({"machine": machine, "psnr_db": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
