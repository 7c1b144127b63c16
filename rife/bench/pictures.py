"""The pictures of rife's README: a strip of frames with the new one between them, and its flow.

PAPERSHELF_DATA=data python rife/bench/pictures.py rife/docs
"""

from __future__ import annotations

import argparse
import os
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from papershelf.images import write_image
from rife.flow_color import flow_to_rgb
from rife.interpolator import Interpolator, Member

from rife import checkpoints, weights

CLIP, FIRST = "bigbuckbunny.mp4", 40  # (c) Blender Foundation, CC-BY 3.0
CROP = (slice(40, 680), slice(60, 820))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with av.open(str(Path(os.environ["PAPERSHELF_DATA"]) / "video" / CLIP)) as clip:
        frames = [f.to_ndarray(format="rgb24") for f in islice(clip.decode(video=0), FIRST, FIRST + 3)]
    a, truth, b = frames
    pair = [torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in (a, b)]
    model = checkpoints.load(weights.find("v4.0"))
    new = Interpolator([(model, Member("v4.0"))]).between(*pair, [0.5])[0]
    new = (new.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    mean = ((a.astype(np.uint16) + b) // 2).astype(np.uint8)

    multiple = model.padding_multiple(1)
    pad = (0, -a.shape[1] % multiple, 0, -a.shape[0] % multiple)
    with torch.inference_mode():
        flow = model(*(torch.nn.functional.pad(x[None], pad) for x in pair), 0.5).flow
    motion = flow_to_rgb((flow[0, 2:] - flow[0, :2])[:, : a.shape[0], : a.shape[1]])
    motion = (motion * 255).round().byte().permute(1, 2, 0).numpy()

    half = [picture[CROP][::2, ::2] for picture in (a, new, b)]
    gap = np.full((half[0].shape[0], 8, 3), 255, np.uint8)
    write_image(args.folder / "strip.jpg", np.concatenate([half[0], gap, half[1], gap, half[2]], 1), quality=88)
    below = [picture[CROP][::2, ::2] for picture in (mean, truth, motion)]
    write_image(args.folder / "flow.jpg", np.concatenate([below[0], gap, below[1], gap, below[2]], 1), quality=88)


if __name__ == "__main__":
    main()
