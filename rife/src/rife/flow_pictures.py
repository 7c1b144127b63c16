"""Pictures of what the network sees: the motion between two frames, the mask, and the frame it makes of them.

The network gives the flow from the new frame at time t back to A and on to B (the paper's F_t->0 and
F_t->1). Their difference F_t->1 - F_t->0 is the whole way from A to B, seen from the new frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.devices import device_named
from papershelf.errors import UserError
from papershelf.images import WRITABLE, read_image, write_image
from torch import Tensor
from tqdm import tqdm

from rife import checkpoints, weights
from rife.canvas import Canvas, canvas_info, canvas_video, even, fit, label
from rife.encoder import EncodeOptions
from rife.flow_color import flow_to_rgb, read_flo, write_flo
from rife.interpolator import MODES
from rife.job import USUAL_SUFFIX, check_output, is_video_name, open_source
from rife.model import Prediction, Rife
from rife.reader import Copied
from rife.sequence import ImageSource, array_from_rgb, array_to_rgb, image_sink
from rife.timeline import Slot, Timeline
from rife.video import VIDEO_SUFFIXES, VideoSource

FIELDS = ("motion", "to-a", "to-b")
LONGEST_IN_VIDEO = 1 / 20  # of the width: one scale for all frames, or colours would flicker


@dataclass(frozen=True)
class FlowOptions:
    """What the command line says.

    Attributes:
        first: an image, a .flo file, a video or a folder of images.
        second: the second image, where ``first`` is one.
        output: image, .flo, video or folder; None for a name beside ``first``.
        at: time of the new frame, from 0 (A) to 1 (B).
        field: which flow, of :data:`FIELDS`.
        longest: pixels of motion that have full colour; None for the longest in an image, and a
            20th of the width in a video.
        sheet: both frames, the new one, both flows and the mask instead of one flow.
        mode: whose first network is asked; or
        weights: this checkpoint.
        scale: resolution at which motion is estimated.
        device: where the network runs.
        input_fps: rate of a folder of images.
        overwrite: replace the output file.
    """

    first: Path
    second: Path | None = None
    output: Path | None = None
    at: float = 0.5
    field: str = "motion"
    longest: float | None = None
    sheet: bool = False
    mode: str = "balanced"
    weights: Path | None = None
    scale: float = 1.0
    device: str = "auto"
    input_fps: str | None = None
    overwrite: bool = False


class FlowNetwork:
    """A network that is asked for its flow.

    Raises:
        UserError: no such weights or device.
    """

    def __init__(self, options: FlowOptions) -> None:
        self.device = device_named(options.device)
        path = options.weights or weights.find(MODES[options.mode][0].weights)
        self.model: Rife = checkpoints.load(path).to(self.device).eval()
        self.scale, self.at = options.scale, options.at

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Prediction:
        """Frame ``[3, H, W]``, flow ``[4, H, W]`` in pixels and mask ``[1, H, W]`` between two frames."""
        height, width = a.shape[1:]
        multiple = self.model.padding_multiple(self.scale)
        pair = [F.pad(x.to(self.device)[None], (0, -width % multiple, 0, -height % multiple)) for x in (a, b)]
        found = self.model(*pair, self.at, scale=self.scale)
        return Prediction(*(x[0, :, :height, :width].cpu() for x in (found.frame, found.flow, found.mask)))


def write_flow(options: FlowOptions) -> dict:
    """Make what is asked for.

    Returns:
        ``output``, how many ``pictures``, and ``longest``: the longest motion found, in pixels.

    Raises:
        UserError: inputs cannot be read or do not fit together, or the output is in the way.
    """
    output = options.output or _default_output(options)
    if options.second is None and (options.first.is_dir() or options.first.suffix.lower() not in (".flo", *WRITABLE)):
        return _write_sequence(options, output)
    for source, overwrite in ((options.second or options.first, True), (options.first, options.overwrite)):
        check_output(output, source, overwrite, True)
    if options.first.suffix.lower() == ".flo":
        if options.second or options.sheet:
            raise UserError("a .flo file holds a flow and no pictures: it goes alone, and without --sheet")
        flow = read_flo(options.first)
        return _write_picture(output, flow_to_rgb(flow, options.longest), flow)
    if options.second is None:
        raise UserError(f"{options.first} is one image: name a second one, or a video, or a folder of frames")
    a, b = (array_to_rgb(read_image(path)) for path in (options.first, options.second))
    if a.shape != b.shape:
        sizes = " and ".join(f"{x.shape[2]}x{x.shape[1]}" for x in (a, b))
        raise UserError(f"the two images must have one size, got {sizes}")
    found = FlowNetwork(options)(a, b)
    flow = chosen(found.flow, options.field)
    picture = sheet(a, b, found, options) if options.sheet else flow_to_rgb(flow, options.longest)
    return _write_picture(output, picture, flow, only_picture=options.sheet)


def chosen(flow: Tensor, field: str) -> Tensor:
    """One ``[2, H, W]`` field of the network's ``[4, H, W]``."""
    to_a, to_b = flow[:2], flow[2:]
    return {"motion": to_b - to_a, "to-a": to_a, "to-b": to_b}[field]


def sheet(a: Tensor, b: Tensor, found: Prediction, options: FlowOptions) -> Tensor:
    """A, new frame, B; below them flow to A, mask, flow to B; both flows on one scale. ``[3, 2 H, 3 W]``."""
    longest = options.longest or max(_length(found.flow[:2]), _length(found.flow[2:]))
    flows = [flow_to_rgb(flow, longest) for flow in (found.flow[:2], found.flow[2:])]
    pictures = [
        [(a, "A"), (found.frame, f"new frame at {options.at:g}"), (b, "B")],
        [(flows[0], "flow to A"), (found.mask.expand(3, -1, -1), "share of A"), (flows[1], "flow to B")],
    ]
    return torch.cat([torch.cat([label(picture, text) for picture, text in row], 2) for row in pictures], 1)


def _write_picture(output: Path, picture: Tensor, flow: Tensor, *, only_picture: bool = False) -> dict:
    if output.suffix.lower() == ".flo":
        if only_picture:
            raise UserError(f"{output}: a .flo file cannot hold a sheet of pictures; name an image")
        write_flo(output, flow)
    else:
        write_image(output, array_from_rgb(picture, None, _depth(output), 3))
    return {"output": str(output), "pictures": 1, "longest": _length(flow)}


def _write_sequence(options: FlowOptions, output: Path) -> dict:
    to_video = is_video_name(output)
    check_output(output, options.first, options.overwrite, to_video)
    source = open_source(options.first, options.input_fps)
    try:
        network = FlowNetwork(options)
        return _to_video(source, network, options, output) if to_video else _to_folder(source, network, options, output)
    finally:
        source.close()


def _to_video(source: VideoSource | ImageSource, network: FlowNetwork, options: FlowOptions, output: Path) -> dict:
    """Each pair's picture while its first frame would be shown; the last one stays for the last frame too."""
    fps = source.rate or Fraction(25)
    timeline = Timeline(fps, source.start)
    factors = (2, 3) if options.sheet else (1, 1)
    height, width = (even(side * factor) for side, factor in zip((source.height, source.width), factors, strict=True))
    info = canvas_info(source.info, height, width, own_colors=False)
    canvas = Canvas(replace(info, sample_aspect_ratio=source.info.sample_aspect_ratio), None)
    longest = count = 0
    with canvas_video(output, canvas, fps, EncodeOptions()) as (sink, report):
        for start, end, picture, length in _pictures(source, network, options):
            longest = max(longest, length)
            slots: list[Slot] = timeline.between(start, end)
            for slot in slots:
                sink.write_new(slot.index, fit(picture, height, width), None)
            count += len(slots)
    return {"output": str(output), "pictures": count, "longest": longest, "notes": report.warnings}


def _to_folder(source: VideoSource | ImageSource, network: FlowNetwork, options: FlowOptions, output: Path) -> dict:
    """One picture for each pair."""
    longest = count = 0
    with image_sink(output, ".png", np.dtype(np.uint8), 3) as sink:
        for count, (_, _, picture, length) in enumerate(_pictures(source, network, options), 1):
            longest = max(longest, length)
            sink.write_new(count - 1, picture, None)
    return {"output": str(output), "pictures": count, "longest": longest}


def _pictures(
    source: VideoSource | ImageSource, network: FlowNetwork, options: FlowOptions
) -> Iterator[tuple[Fraction, Fraction, Tensor, float]]:
    """From when to when a pair's picture is shown, the picture, and its longest motion."""
    unit = options.longest or source.width * LONGEST_IN_VIDEO
    fixed = replace(options, longest=unit)
    before = rgb = waiting = None
    total = source.described()["frames"]
    with tqdm(total=total and total - 1, unit="pair", disable=None, file=sys.stderr) as bar:
        for event in source.events():
            if isinstance(event, Copied):
                continue
            last, rgb = rgb, source.rgb(event.frame)
            if last is not None:
                if waiting:
                    yield waiting
                found = network(last, rgb)
                flow = chosen(found.flow, options.field)
                picture = sheet(last, rgb, found, fixed) if options.sheet else flow_to_rgb(flow, unit)
                waiting = before.time, event.time, picture, _length(flow)
                bar.update()
            before = event
    if waiting is None:
        raise UserError(f"{options.first} has a single frame; flow is between two")
    start, _, picture, length = waiting
    yield start, before.time + before.duration, picture, length


def _length(flow: Tensor) -> float:
    """The longest motion, in pixels; unknown flow left out."""
    lengths = torch.hypot(*flow)
    return lengths[lengths < 1e9].max().item() if (lengths < 1e9).any() else 0.0


def _depth(output: Path) -> np.dtype:
    return np.dtype(np.float32 if output.suffix.lower() == ".exr" else np.uint8)


def _default_output(options: FlowOptions) -> Path:
    """``a.png`` becomes ``a_flow.png``, ``in.mp4`` ``in_flow.mp4``, a folder ``frames`` ``frames_flow``."""
    path = options.first
    if path.is_dir():
        return path.resolve().with_name(f"{path.resolve().name}_flow")
    suffix = path.suffix.lower()
    if suffix in (".flo", *WRITABLE):
        return path.with_name(f"{path.stem}_flow.png")
    return path.with_name(f"{path.stem}_flow{path.suffix if suffix in VIDEO_SUFFIXES else USUAL_SUFFIX}")
