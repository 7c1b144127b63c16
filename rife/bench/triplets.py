"""How well the raw networks restore frames they did not see: RGB PSNR on triplets of real clips.

Triplets (0, 2 -> 1), (2, 4 -> 3), ...; frames zero-padded right and bottom to the network's multiple, the
result rounded to 8 bits, PSNR in dB averaged over triplets. Clips are found through PAPERSHELF_DATA.

python rife/bench/triplets.py [--model v4.0 ...] [--clip cup ...] [--ensemble] [--turned] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from papershelf.images import read_image
from papershelf.metrics import psnr
from rife.interpolator import Interpolator, Member
from torch import Tensor

from rife import checkpoints, weights

# name -> folder of pictures or video, first frame, one past the last
CLIPS = {
    "toflow_low_resolution": ("toflow_low_resolution", 0, 19),
    "cup": ("cup.mp4", 60, 71),
    "sintel_demo": ("sintel_demo", 0, 10),
    "bigbuckbunny": ("bigbuckbunny.mp4", 30, 38),
}


def frames(name: str) -> list[Tensor]:
    """Frames of a clip, ``[1, 3, H, W]`` in [0, 1]."""
    file, start, stop = CLIPS[name]
    path = Path(os.environ["PAPERSHELF_DATA"]) / "video" / file
    if path.is_dir():
        pictures = [read_image(picture) for picture in sorted(path.glob("*.png"))[start:stop]]
    else:
        with av.open(path) as video:
            pictures = [frame.to_ndarray(format="rgb24") for frame in islice(video.decode(video=0), start, stop)]
    return [torch.from_numpy(np.ascontiguousarray(p[..., :3])).permute(2, 0, 1)[None].float() / 255 for p in pictures]


def triplets(clip: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return zip(clip[0:-2:2], clip[2::2], clip[1:-1:2], strict=True)


def middle(network: Interpolator, img0: Tensor, img1: Tensor) -> Tensor:
    """The frame between, ``[1, 3, H, W]``, rounded to 8 bits."""
    return (network.between(img0[0], img1[0], [0.5]).clamp(0, 1) * 255).round() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["v4.0", "v4.6"], help="release, or file of weights")
    parser.add_argument("--clip", nargs="+", choices=CLIPS, default=list(CLIPS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--ensemble", action="store_true")
    parser.add_argument("--turned", action="store_true", help="average with both frames turned by 180 degrees")
    parser.add_argument("--no-wide-motion", action="store_true", help="without v4.0's rule of doubled scales")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    networks: dict[str, Interpolator | None] = {"average of the two": None}
    for name in args.model:
        model = checkpoints.load(weights.find(name) if name in weights.RELEASES else Path(name))
        if args.no_wide_motion:
            model.config = replace(model.config, wide_motion=False)
        networks[name] = Interpolator([(model, Member(name, args.ensemble, args.turned))], scale=args.scale)
    results = {}
    print(f"{'':24}" + "".join(f"{clip:>23}" for clip in args.clip))
    for name, network in networks.items():
        row = {}
        for clip in args.clip:
            values = []
            for img0, img1, gt in triplets(frames(clip)):
                out = middle(network, img0, img1) if network else ((img0 + img1) / 2 * 255).round() / 255
                values.append(psnr(out, gt))
            row[clip] = round(sum(values) / len(values), 3)
        results[name] = row
        print(f"{Path(name).name:24}" + "".join(f"{row[clip]:23.2f}" for clip in args.clip), flush=True)
    if args.json:
        options = {"scale": args.scale, "ensemble": args.ensemble, "turned": args.turned}
        machine = {"device": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({"machine": machine, "options": options, "psnr": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
