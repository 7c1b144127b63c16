"""Data sets as their authors lay them out: which frames go in, and which were in between.

===============  ===============================================================  ================
data set         recognised by                                                    frames compared
===============  ===============================================================  ================
Vimeo90K         ``tri_testlist.txt`` and ``sequences/00001/0001/im1.png``        im2
UCF101           folders of ``frame_00``, ``frame_01_gt``, ``frame_02.png``       frame_01_gt
SNU-FILM         ``test-easy.txt`` etc. with three paths a line, or one of them   the second path
Middlebury       ``other-data/*/frame10.png``, ``other-gt-interp/*/frame10i11``   frame10i11
XVFI (X-TEST)    ``Type1/TEST01.../`` of 33 frames                                every fourth: 8x
HD               ``HD720p_GT`` etc. with .yuv files or folders of images; a .yuv  all that are dropped
===============  ===============================================================  ================

Anything else is a video or a folder of frames: every N-th frame is kept, those between are compared.
All frames are RGB of 8 bits. The published figures are the paper's (tables 1 to 3), for its own model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.images import READABLE, read_image
from torch import Tensor

from rife import color
from rife.reader import Copied
from rife.sequence import ImageSource, array_to_rgb, list_images, natural_order
from rife.video import VideoSource

OVERALL = "mean"  # the part under which figures for a whole data set are published
SNU_FILM = {"easy": 40.06, "medium": 35.75, "hard": 30.10, "extreme": 24.84}
XVFI_FRAMES, XVFI_STEP = 33, 4  # frames 0 and 32 go in, 4, 8, ... 28 are compared
HD_FRAMES = 101  # of each clip: the protocol of MEMC-Net, which the paper follows
HD_SIZES = {"544p": (1280, 544), "720p": (1280, 720), "1080p": (1920, 1080)}
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Trial:
    """Two frames, and the frames that were between them.

    Attributes:
        part: the part of the data set whose mean it counts towards.
        name: of the pair.
        first: ``[3, H, W]`` uint8, RGB.
        last: likewise.
        truths: time in (0, 1), frame ``[3, H, W]`` uint8.
    """

    part: str
    name: str
    first: Tensor
    last: Tensor
    truths: tuple[tuple[Fraction, Tensor], ...]


@dataclass(frozen=True)
class DataSet:
    """What is to be restored, and by which measures.

    Attributes:
        name: as papers call it.
        trials: gives them one by one; what is wrong with the data is a UserError on the way.
        count: how many frames will be compared, where that is known.
        measures: of ``psnr``, ``ssim``, ``ie`` (interpolation error) and ``luma_psnr``.
        published: the paper's figures: part -> measure -> value.
        note: how the figures compare with published ones.
    """

    name: str
    trials: Callable[[], Iterator[Trial]]
    count: int | None
    measures: tuple[str, ...] = ("psnr", "ssim")
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class _Files:
    """A trial before its images are read."""

    part: str
    name: str
    first: Path
    last: Path
    truths: tuple[tuple[Fraction, Path], ...]


def open_data_set(path: Path, drop: int | None = None, limit: int | None = None) -> DataSet:
    """Recognise the layout.

    Args:
        path: a folder, a list of SNU-FILM, a .yuv file or a video.
        drop: keep every ``drop``-th frame of what is no list of triplets; 2 unless given.
        limit: take so many pairs of each part.

    Raises:
        UserError: the layout is not known, files are missing, or ``drop`` has no meaning here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    for layout in (_vimeo90k, _middlebury, _snu_film, _ucf101, _xvfi):
        if found := layout(path, limit):
            if drop is not None:
                raise UserError(f"{path} is {found.name}, which says itself what to restore; leave --drop out")
            return found
    return _hd(path, drop or 2, limit) or _frames(path, drop or 2, limit)


# ----------------------------------------------------------------------------- sets made of triplets


def _vimeo90k(path: Path, limit: int | None) -> DataSet | None:
    listed = path / "tri_testlist.txt"
    if not listed.is_file() or not (path / "sequences").is_dir():
        return None
    folders = [path / "sequences" / line for line in _lines(listed)]
    trials = [
        _Files("", "/".join(f.parts[-2:]), f / "im1.png", f / "im3.png", ((HALF, f / "im2.png"),)) for f in folders
    ]
    published = {OVERALL: {"psnr": 35.62, "ssim": 0.9780}}
    return _of_files("Vimeo90K", trials, limit, published, note="the paper's figures are over 3782 triplets")


def _ucf101(path: Path, limit: int | None) -> DataSet | None:
    if not path.is_dir():
        return None
    folders = sorted((f.parent for f in path.glob("*/frame_01_gt.png")), key=natural_order)
    trials = [
        _Files("", f.name, f / "frame_00.png", f / "frame_02.png", ((HALF, f / "frame_01_gt.png"),)) for f in folders
    ]
    published = {OVERALL: {"psnr": 35.28, "ssim": 0.9690}}
    note = "the paper's figures are over 379 triplets"
    return _of_files("UCF101", trials, limit, published, note=note) if trials else None


def _middlebury(path: Path, limit: int | None) -> DataSet | None:
    inputs, truths = path / "other-data", path / "other-gt-interp"
    if not inputs.is_dir() and not truths.is_dir():
        return None
    for folder in (inputs, truths):
        if not folder.is_dir():
            raise UserError(f"{path} looks like Middlebury-Other but has no {folder.name}; unpack both archives there")
    trials = [
        _Files(
            "",
            f.name,
            inputs / f.name / "frame10.png",
            inputs / f.name / "frame11.png",
            ((HALF, f / "frame10i11.png"),),
        )
        for f in sorted(truths.iterdir())
        if f.is_dir()
    ]
    published, measures = {OVERALL: {"ie": 1.956}}, ("ie", "psnr", "ssim")
    note = "IE: mean of |round(255 out) - gt|; the paper's is over 12 sequences"
    return _of_files("Middlebury-Other", trials, limit, published, measures, note)


def _snu_film(path: Path, limit: int | None) -> DataSet | None:
    if path.is_file():
        lists = [path] if re.fullmatch(r"test-\w+\.txt", path.name) else []
    else:
        lists = [f for place in (path, path / "eval_modes") for f in sorted(place.glob("test-*.txt"))]
    if not lists:
        return None
    lists.sort(key=lambda f: list(SNU_FILM).index(_part(f)) if _part(f) in SNU_FILM else len(SNU_FILM))
    trials, published = [], {}
    for listed in lists:
        root = listed.parent.parent if listed.parent.name == "eval_modes" else listed.parent
        for line in _lines(listed):
            names = line.split()
            if len(names) != 3:
                raise UserError(f"{listed}: expected three paths a line, got {line!r}; is it a list of SNU-FILM?")
            first, truth, last = (_below(root, name) for name in names)
            trials.append(_Files(_part(listed), "/".join(truth.parts[-2:]), first, last, ((HALF, truth),)))
        if _part(listed) in SNU_FILM:
            published[_part(listed)] = {"psnr": SNU_FILM[_part(listed)]}
    return _of_files(
        "SNU-FILM", trials, limit, published, note="the paper's figures are over 310 triplets of each part"
    )


def _part(listed: Path) -> str:
    return listed.stem.removeprefix("test-")


def _below(root: Path, name: str) -> Path:
    """A listed path under the root, wherever the lists' authors kept the data (``data/SNU-FILM/test/...``)."""
    parts = Path(name).parts
    for k in range(len(parts)):
        if (path := root.joinpath(*parts[k:])).is_file():
            return path
    return root / name  # will be said to be missing


def _xvfi(path: Path, limit: int | None) -> DataSet | None:
    scenes = [f for place in (path, path / "test") for f in sorted(place.glob("Type*/TEST*")) if f.is_dir()]
    if not scenes:
        return None
    trials = []
    for scene in scenes:
        files = list_images(scene)
        if len(files) != XVFI_FRAMES:
            raise UserError(f"{scene} holds {len(files)} images, a scene of X-TEST has {XVFI_FRAMES}; unpack it again")
        between = range(XVFI_STEP, XVFI_FRAMES - 1, XVFI_STEP)
        truths = tuple((Fraction(k, XVFI_FRAMES - 1), files[k]) for k in between)
        trials.append(_Files(scene.parent.name, scene.name, files[0], files[-1], truths))
    return _of_files("XVFI (X-TEST), 8x", trials, limit, {})


def _of_files(
    name: str,
    trials: list[_Files],
    limit: int | None,
    published: dict[str, dict[str, float]],
    measures: tuple[str, ...] = ("psnr", "ssim"),
    note: str = "",
) -> DataSet:
    seen: dict[str, int] = defaultdict(int)
    chosen = []
    for trial in trials:
        seen[trial.part] += 1
        if limit is None or seen[trial.part] <= limit:
            chosen.append(trial)
    needed = [file for trial in chosen for file in (trial.first, trial.last, *(f for _, f in trial.truths))]
    missing = [file for file in needed if not file.is_file()]
    if missing:
        raise UserError(
            f"{name}: {missing[0]} is missing, and {len(missing) - 1} more; is the data set unpacked whole?"
        )
    if not chosen:
        raise UserError(f"{name}: the lists name no frames; is the data set unpacked whole?")

    def read() -> Iterator[Trial]:
        for t in chosen:
            frames = (_read(t.first), _read(t.last), tuple((alpha, _read(file)) for alpha, file in t.truths))
            if len({frame.shape for frame in (*frames[:2], *(truth for _, truth in frames[2]))}) > 1:
                raise UserError(f"{name}: the frames of {t.part} {t.name} differ in size; unpack the data set again")
            yield Trial(t.part, t.name, *frames)

    return DataSet(name, read, sum(len(trial.truths) for trial in chosen), measures, published, note)


# --------------------------------------------------------------------- sequences with frames dropped


def _hd(path: Path, drop: int, limit: int | None) -> DataSet | None:
    """Clips of 4:2:0 YUV in folders named by their height, or as folders of images."""
    if path.is_file():
        clips = [path] if path.suffix.lower() == ".yuv" else []
    else:
        folders = [f for f in sorted(path.glob("HD*")) if f.is_dir()]
        clips = sorted(path.glob("*.yuv")) + [f for folder in folders for f in sorted(folder.glob("*.yuv"))]
        clips += [f for folder in folders for f in sorted(folder.iterdir()) if f.is_dir() and _images_in(f)]
    if not clips:
        return None

    def read() -> Iterator[Trial]:
        for clip in clips:
            frames = enumerate(_yuv_frames(clip) if clip.is_file() else map(_read, list_images(clip)))
            timed = ((Fraction(k), frame) for k, frame in islice(frames, HD_FRAMES))
            yield from islice(_dropped(timed, clip.stem, drop), limit)

    return DataSet(
        f"HD, {drop}x",
        read,
        None,
        ("luma_psnr", "psnr", "ssim"),
        {OVERALL: {"luma_psnr": 32.14}} if drop == 2 else {},
        "luma: 0.299 R + 0.587 G + 0.114 B of the 8-bit RGB frames; the first 101 frames of each of 11 clips"
        + ("; RIFEm's published 4x: 22.96 (544p), 31.87 (720p), 34.25 (1080p)" if drop == 4 else ""),
    )


def _yuv_frames(path: Path) -> Iterator[Tensor]:
    width, height = _yuv_size(path)
    codes = np.memmap(path, np.uint8, "r")
    size = width * height * 3 // 2
    if codes.size < size or codes.size % size:
        raise UserError(f"{path}: {codes.size} bytes are no whole number of {width}x{height} frames of 4:2:0 YUV")
    for picture in codes.reshape(-1, height * 3 // 2, width):
        yield _bytes(color.to_rgb(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="yuv420p")))


def _yuv_size(path: Path) -> tuple[int, int]:
    """From the file's name (``parkrun_1280x720_50.yuv``), or that of its folder (``HD1080p_GT``)."""
    if match := re.search(r"(\d{2,})x(\d{2,})", path.name):
        return int(match[1]), int(match[2])
    for name, size in HD_SIZES.items():
        if name in path.name or name in path.parent.name:
            return size
    raise UserError(f"{path}: a .yuv file does not say its size; name it like parkrun_1280x720.yuv")


def _frames(path: Path, drop: int, limit: int | None) -> DataSet:
    """A video, or a folder of frames."""
    if path.is_dir():
        if not _images_in(path):
            raise UserError(
                f"{path} is no layout known here (Vimeo90K, UCF101, SNU-FILM, Middlebury-Other, XVFI, HD) and holds "
                "no images; name the folder that holds the lists or the frames themselves"
            )
        source = ImageSource(path, Fraction(24))
    else:
        source = VideoSource(path)

    def timed() -> Iterator[tuple[Fraction, Tensor]]:
        for event in source.events():
            if not isinstance(event, Copied):
                yield event.time, _bytes(source.rgb(event.frame))

    def read() -> Iterator[Trial]:
        try:
            yield from islice(_dropped(timed(), "", drop), limit)
        finally:
            source.close()

    frames = source.described()["frames"]
    pairs = None if frames is None else (frames - 1) // drop
    if limit is not None:
        pairs = limit if pairs is None else min(limit, pairs)
    return DataSet(f"{path.name}, every {_ordinal(drop)} frame kept", read, pairs and pairs * (drop - 1))


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")


def _dropped(frames: Iterator[tuple[Fraction, Tensor]], part: str, drop: int) -> Iterator[Trial]:
    """Pairs of kept frames; where the dropped ones lie between them, their own times tell."""
    kept: tuple[Fraction, Tensor] | None = None
    between: list[tuple[Fraction, Tensor]] = []
    count = 0
    for count, (time, frame) in enumerate(frames, 1):
        if kept is None:
            kept = time, frame
        elif len(between) < drop - 1:
            between.append((time, frame))
        else:
            start, first = kept
            truths = tuple(((t - start) / (time - start), truth) for t, truth in between)
            yield Trial(part, f"{count - 1 - drop}-{count - 1}", first, frame, truths)
            kept, between = (time, frame), []
    if count <= drop:
        where = f"{part}: " if part else ""
        raise UserError(f"{where}{count} frames are too few to drop all but every {_ordinal(drop)}; use a longer clip")


def _images_in(folder: Path) -> bool:
    return any(f.suffix.lower() in READABLE for f in folder.iterdir())


def _read(file: Path) -> Tensor:
    return _bytes(array_to_rgb(read_image(file)))


def _bytes(rgb: Tensor) -> Tensor:
    """``[3, H, W]`` in [0, 1] as uint8, rounded."""
    return (rgb * 255).round_().clamp_(0, 255).to(torch.uint8)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
