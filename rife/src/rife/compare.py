"""Two videos in one, beside each other or with a moving line between them, to see which is better.

They are joined by time: each runs from its own first frame, the faster rate decides, a frame stays until
its next one, and the shorter video's last frame stays to the end. The first one's sound, tags and
colours are kept; the second one's are converted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import torch
from papershelf.errors import UserError
from torch import Tensor
from tqdm import tqdm

from rife.canvas import Canvas, canvas_info, canvas_video, even, fit, label, upright, upright_size
from rife.encoder import EncodeOptions
from rife.job import USUAL_SUFFIX, check_output, is_video_name, open_source
from rife.reader import Copied
from rife.sequence import ImageSource
from rife.timeline import Timeline
from rife.video import VIDEO_SUFFIXES, VideoSource

UNKNOWN_RATE = Fraction(25)  # where neither input says one
LINE = 2  # pixels, of the line between the two in a wipe


@dataclass(frozen=True)
class CompareOptions:
    """What the command line says.

    Attributes:
        first: video or folder of images; its sound is kept.
        second: likewise.
        output: None for a name beside ``first``.
        wipe: one picture with a moving line, ``first`` at its left; side by side otherwise.
        period: seconds that the line takes to and fro.
        labels: what stands on the two; None for the files' names, "" for nothing.
        height: of the pictures; None for the larger one's.
        input_fps: rate of inputs that are folders.
        overwrite: replace ``output``.
        encode: codec and its settings.
    """

    first: Path
    second: Path
    output: Path | None = None
    wipe: bool = False
    period: float = 4.0
    labels: tuple[str, str] | None = None
    height: int | None = None
    input_fps: str | None = None
    overwrite: bool = False
    encode: EncodeOptions = field(default_factory=EncodeOptions)


def write_comparison(options: CompareOptions) -> dict:
    """Make the video, with a progress bar on stderr.

    Returns:
        ``output``, ``frames``, ``fps``, ``width``, ``height`` and ``notes``.

    Raises:
        UserError: an input cannot be read, the output is in the way or cannot be written.
    """
    output = options.output or _default_output(options.first, options.second)
    if not is_video_name(output):
        raise UserError(f"{output} must name a video: end it in one of {', '.join(VIDEO_SUFFIXES)}")
    for source, overwrite in ((options.first, True), (options.second, options.overwrite)):
        check_output(output, source, overwrite, True)
    rates = [options.input_fps if path.is_dir() else None for path in (options.first, options.second)]
    a = open_source(options.first, rates[0])
    try:
        b = open_source(options.second, rates[1])
        try:
            return _write(options, output, a, b)
        finally:
            b.close()
    finally:
        a.close()


def _write(options: CompareOptions, output: Path, a: VideoSource | ImageSource, b: VideoSource | ImageSource) -> dict:
    fps = max((source.rate for source in (a, b) if source.rate), default=UNKNOWN_RATE)
    sizes = [upright_size(source.info) for source in (a, b)]
    height = even(options.height or max(h for h, _ in sizes))
    widths = [even(w * height / h) for h, w in sizes]
    width = widths[0] if options.wipe else sum(widths)
    texts = options.labels or (options.first.name, options.second.name)
    canvas = Canvas(canvas_info(a.info, height, width, own_colors=True), a.reader)
    with canvas_video(output, canvas, fps, options.encode) as (sink, report):
        box = widths[0] if options.wipe else widths[1]
        first = shown(a, fps, lambda rgb: label(fit(rgb, height, widths[0]), texts[0]), sink.copy)
        second = shown(b, fps, lambda rgb: label(fit(rgb, height, box), texts[1], right=options.wipe))
        seconds = max(source.duration or 0 for source in (a, b))
        total = math.ceil(seconds * fps) or None
        left = right = None
        count = 0
        with tqdm(total=total, unit="frame", disable=None, file=sys.stderr) as bar:
            for count, (new_left, new_right) in enumerate(zip_longest(first, second), 1):
                left, right = (old if new is None else new for old, new in ((left, new_left), (right, new_right)))
                place = (1 - math.cos(2 * math.pi * (count - 1) / float(fps) / options.period)) / 2
                joined = wiped(left, right, place) if options.wipe else torch.cat([left, right], 2)
                sink.write_new(count - 1, joined, None)
                bar.update()
    facts = {"output": str(output), "frames": count, "fps": str(fps), "width": width, "height": height}
    return facts | {"notes": report.warnings}


def shown(
    source: VideoSource | ImageSource,
    fps: Fraction,
    made: Callable[[Tensor], Tensor],
    copy: Callable[[Copied], None] | None = None,
) -> Iterator[Tensor]:
    """What a video shows k / fps seconds after its start, for k = 0, 1, ... until it ends.

    Args:
        source: where the frames come from.
        fps: of the output.
        made: is applied once to each frame that is shown, as a player shows it (``[3, H, W]``).
        copy: is given the packets of the other streams.
    """
    timeline = Timeline(fps, source.start)
    before = None
    for event in source.events():
        if isinstance(event, Copied):
            if copy:
                copy(event)
            continue
        if before and (slots := timeline.between(before.time, event.time)):
            yield from [made(upright(source.rgb(before.frame), source.info))] * len(slots)
        before = event
    if slots := timeline.held(before.time, before.time + before.duration):
        yield from [made(upright(source.rgb(before.frame), source.info))] * len(slots)


def wiped(left: Tensor, right: Tensor, place: float) -> Tensor:
    """``left`` up to ``place`` (0 to 1) of the width, ``right`` beyond, a white line between them."""
    width = left.shape[2]
    x = round(place * width)
    joined = torch.cat([left[:, :, :x], right[:, :, x:]], 2)
    joined[:, :, max(0, x - LINE // 2) : x + LINE - LINE // 2] = 1
    return joined


def _default_output(first: Path, second: Path) -> Path:
    """``a.mp4`` and ``b.mkv`` become ``a_vs_b.mp4``, beside the first."""
    if "-" in (str(first), str(second)):
        raise UserError("rife compare needs two files or folders, standard input cannot be one of them")
    suffix = first.suffix if first.suffix.lower() in VIDEO_SUFFIXES else USUAL_SUFFIX
    return first.with_name(f"{first.stem}_vs_{second.stem}{suffix}")
