"""Training sequences cut out of any videos: ``rife dataset``.

A network learns from frames that show the same things, moved. So a stretch of video is taken where

- no cut and no flash is in it (:mod:`rife.cuts`);
- it is not still: where a frame is repeated, the middle one would be one of the others;
- it is not wild: what moves farther than the network's blocks can see teaches it to blur;
- its frames are evenly spaced in time, or the middle one would not be the middle.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.images import write_image
from torch import Tensor
from tqdm import tqdm

from rife.cuts import CutDetector, PairDecision
from rife.reader import Copied
from rife.sequence import ImageSource
from rife.triplets import PREFIX
from rife.video import VideoSource

LOOK = 64  # pixels of the longer side of the pictures in which motion is measured
BLOCK = 4  # pixels of them: side of what is searched for
REACH = 8  # pixels of them: how far it is searched, an eighth of the picture
NEAR = 0.1 / 255  # that a block must fit better for each pixel farther away; flat ones stay where they are
UNEVEN = Fraction(1, 10)  # share by which steps in time may differ
FOLDER = 1000  # sequences in each folder of `sequences`, as in Vimeo90K


@dataclass(frozen=True)
class Options:
    """What to cut, and what to leave out.

    Attributes:
        length: frames of a sequence: 3 for the paper's model, 7 for RIFEm.
        size: width and height of the result: frames are reduced until they just cover it, then cut around
            the middle; never enlarged. None keeps them as they are.
        stride: frames from the start of one sequence to that of the next; None: ``length``.
        wild: way that a tenth of the picture goes from the first frame to the last, as a share of the
            longer side, beyond which a sequence is wild.
        test_share: sequences set apart for validation.
        seed: of what is set apart.
    """

    length: int = 3
    size: tuple[int, int] | None = (448, 256)  # Vimeo90K's
    stride: int | None = None
    wild: float = 0.15
    test_share: float = 0.05  # section 4.1: 51,312 of 55,095 sequences are for training
    seed: int = 0


class Frame(NamedTuple):
    """A frame on its way into a sequence."""

    image: np.ndarray  # [H, W, 3] uint8, as it will be written
    picture: Tensor  # of reduced(), to measure motion in
    time: Fraction  # seconds


@dataclass
class Summary:
    """What came of the inputs: counts for each, and a line for each that was refused."""

    inputs: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    train: int = 0
    test: int = 0


def make_dataset(inputs: list[Path], output: Path, options: Options) -> Summary:
    """Cut sequences out of videos and folders of images, into the layout of Vimeo90K.

    An input that cannot be read costs a line on stderr; what was cut out of it before stays.

    Args:
        inputs: videos, or folders of images.
        output: a new or empty folder; whole at the end, or not there.
        options: what to take.

    Raises:
        UserError: the output is in use, an option makes no sense, or nothing was found at all.
    """
    _check(options)
    summary = Summary()
    with _new_folder(output) as folder:
        names: list[list[str]] = []
        for source in inputs:
            counts: Counter[str] = Counter(frames=0, kept=0, still=0, wild=0, uneven=0, cuts=0)
            first = sum(-(-len(there) // FOLDER) for there in names)  # each input begins a new folder
            found: list[str] = []
            names.append(found)
            try:
                for frames in sequences_of(source, options, counts):
                    k = len(found)
                    found.append(f"{first + k // FOLDER + 1:05d}/{k % FOLDER + 1:04d}")
                    place = folder / "sequences" / found[-1]
                    place.mkdir(parents=True)
                    for number, frame in enumerate(frames, 1):
                        write_image(place / f"im{number}.png", frame)
            except UserError as error:
                summary.refused.append(f"{error}" + (f" ({len(found)} sequences kept)" if found else ""))
                tqdm.write(f"left out: {summary.refused[-1]}", file=sys.stderr)
            summary.inputs[str(source)] = dict(counts)
        if not any(names):
            seen = "; ".join(f"{name}: {_described(counts)}" for name, counts in summary.inputs.items())
            raise UserError(f"not one sequence of {options.length} frames was found ({seen})")
        test = held_out([len(found) for found in names], options.test_share, options.seed)
        lists = {"train": [], "test": []}
        for found, apart in zip(names, test, strict=True):
            lists["train"] += [name for k, name in enumerate(found) if k not in apart]
            lists["test"] += [name for k, name in enumerate(found) if k in apart]
        for split, lines in lists.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{PREFIX[options.length]}_{split}list.txt").write_text(text)
        summary.train, summary.test = len(lists["train"]), len(lists["test"])
        about = {
            "tool": "rife-interp",
            "version": version("rife-interp"),
            "options": asdict(options),
            **asdict(summary),
        }
        (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")
    return summary


def sequences_of(path: Path, options: Options, counts: Counter[str]) -> Iterator[list[np.ndarray]]:
    """The sequences of one input that pass, as lists of ``[H, W, 3]`` uint8; what was seen goes into ``counts``.

    Raises:
        UserError: the input cannot be read, is interlaced, or its frames are smaller than wanted.
    """
    source = ImageSource(path, Fraction(24)) if path.is_dir() else VideoSource(path)
    try:
        if source.info.interlaced:
            raise UserError(f"{path} is interlaced: each frame shows two times; deinterlace it first")
        held: list[Frame] = []
        kinds: list[str] = []  # kinds[k] is that of held[k] and held[k + 1]
        skip = 0  # frames to pass over before the next sequence begins
        for frame, before in _with_decisions(_frames(source, options, counts)):
            if before and before.hold:
                counts["cuts"] += 1
                held, kinds, skip = [], [], 0
            if skip:
                skip -= 1
                continue
            if held:
                kinds.append(before.kind)
            held.append(frame)
            if len(held) == options.length:
                verdict = judge(held, kinds, options)
                counts[verdict] += 1
                if verdict == "kept":
                    yield [frame.image for frame in held]
                stride = options.stride or options.length
                held, kinds, skip = held[stride:], kinds[stride:], max(0, stride - options.length)
    finally:
        source.close()


def judge(frames: list[Frame], kinds: list[str], options: Options) -> str:
    """What a sequence without cuts is: ``kept``, ``still``, ``wild`` or ``uneven``.

    Args:
        frames: of the sequence.
        kinds: what :class:`rife.cuts.CutDetector` says of each two neighbours.
        options: hold the limit of wildness.
    """
    steps = [b.time - a.time for a, b in pairwise(frames)]
    if max(steps) - min(steps) > UNEVEN * min(steps):
        return "uneven"
    if "static" in kinds:
        return "still"
    return "wild" if sum(motion(a.picture, b.picture) for a, b in pairwise(frames)) > options.wild else "kept"


def motion(a: Tensor, b: Tensor) -> float:
    """How far the fastest tenth of the blocks of ``a`` has moved in ``b``, as a share of the longer side.

    Args:
        a: of :func:`reduced`.
        b: of the same size.

    Returns:
        0 to 0.18: every whole pixel of the reduced pictures up to REACH is tried, in each direction.
    """
    h, w = a.shape
    around = F.pad(b[None, None], (REACH,) * 4, mode="replicate")[0, 0]
    shifted = around.unfold(0, h, 1).unfold(1, w, 1)  # [2R+1, 2R+1, H, W]: b moved by every way
    cost = (shifted - a).abs().reshape(-1, h, w)
    cost = F.avg_pool2d(cost, BLOCK, ceil_mode=True, count_include_pad=False).flatten(1)  # [ways, blocks]
    y, x = torch.meshgrid(*(torch.arange(-REACH, REACH + 1.0),) * 2, indexing="ij")
    way = torch.hypot(y, x).flatten()
    best = (cost + NEAR * way[:, None]).argmin(0)
    return torch.quantile(way[best], 0.9).item() / LOOK


def reduced(rgb: Tensor) -> Tensor:
    """Luma of a frame ``[3, H, W]`` as ``[h, w]``, the longer side ``LOOK`` pixels."""
    luma = (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    h, w = luma.shape
    size = [max(BLOCK, round(side * LOOK / max(h, w))) for side in (h, w)]
    return F.interpolate(luma[None, None], size=size, mode="area")[0, 0]


def fitted(rgb: Tensor, size: tuple[int, int] | None, name: str) -> Tensor:
    """A frame ``[3, H, W]`` reduced until it just covers ``size`` (width, height), and cut around the middle."""
    if size is None:
        return rgb
    h, w = rgb.shape[-2:]
    shrink = max(size[0] / w, size[1] / h)
    if shrink > 1:
        raise UserError(
            f"{name}: frames of {w}x{h} are smaller than {size[0]}x{size[1]}; choose a smaller --size, or `full`"
        )
    width, height = max(size[0], round(w * shrink)), max(size[1], round(h * shrink))
    if (width, height) != (w, h):
        rgb = F.interpolate(rgb[None], size=(height, width), mode="bilinear", antialias=True)[0]
    x, y = (width - size[0]) // 2, (height - size[1]) // 2
    return rgb[:, y : y + size[1], x : x + size[0]]


def held_out(counts: list[int], share: float, seed: int) -> list[range]:
    """Which sequences of each input are for validation: one stretch of it, since neighbours resemble each other.

    At least one of all, where there are two to share.
    """
    rng = np.random.default_rng(seed)
    sizes = [round(share * count) for count in counts]
    if not any(sizes) and share and max(counts) > 1:
        sizes[counts.index(max(counts))] = 1
    starts = [int(rng.integers(count - size + 1)) for count, size in zip(counts, sizes, strict=True)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _frames(
    source: VideoSource | ImageSource, options: Options, counts: Counter[str]
) -> Iterator[tuple[Frame, Tensor]]:
    """Frames as they will be written, and their RGB."""
    name, total = source.info.name, source.info.frames
    for event in tqdm(source.events(), total=total, desc=Path(name).name, unit="frame", disable=None, file=sys.stderr):
        if isinstance(event, Copied):
            continue
        counts["frames"] += 1
        rgb = fitted(source.rgb(event.frame), options.size, name).clamp(0, 1)
        image = (rgb * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        yield Frame(image, reduced(rgb), event.time), rgb


def _with_decisions(frames: Iterator[tuple[Frame, Tensor]]) -> Iterator[tuple[Frame, PairDecision | None]]:
    """Each frame with what it and the one before show; the detector looks two frames ahead."""
    detector = CutDetector()
    waiting: deque[Frame] = deque()
    for number, (frame, rgb) in enumerate(frames):
        decisions = detector.push(rgb)
        if number == 0:
            yield frame, None
        else:
            waiting.append(frame)
        for decision in decisions:
            yield waiting.popleft(), decision
    for decision in detector.finish():
        yield waiting.popleft(), decision


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that becomes it at the end, or vanishes."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already; name a new folder for the data set with -o")
    part = output.with_name(f".part-{secrets.token_hex(4)}-{output.name}")
    try:
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}; choose another place or name") from error
        yield part
        part.replace(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(options: Options) -> None:
    if options.length not in PREFIX:
        raise UserError(f"sequences have {' or '.join(map(str, PREFIX))} frames, got {options.length}")
    if options.size and min(options.size) < 1:
        raise UserError(f"the size must be of at least one pixel, got {options.size[0]}x{options.size[1]}")
    if options.stride is not None and options.stride < 1:
        raise UserError(f"the stride must be at least 1 frame, got {options.stride}")
    if not 0 <= options.test_share < 1:
        raise UserError(f"the share for validation must be from 0 to below 1, got {options.test_share:g}")


def _described(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())
