"""The samples that an auto-decoder is trained on: prepared once, kept as DeepSDF keeps them, held in memory.

A source is a folder of meshes, a folder of ready samples as DeepSDF's scripts write it, or the word ``procedural``
(:mod:`distrender.procedural`). From the first and the last, samples are prepared in several processes, into a folder
of DeepSDF's layout::

    SdfSamples/DATASET/CLASS/SHAPE.npz               pos and neg, [samples, 4]
    NormalizationParameters/DATASET/CLASS/SHAPE.npz  of meshes: how they were brought into the unit ball
    split.json                                       {DATASET: {CLASS: [SHAPE, ...]}}
    sampling.json                                    how they were made

What is there already, made in the same way, is kept: a preparation that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.processes import Place, read
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from distrender import procedural
from distrender.decoder_files import PROCEDURAL
from distrender.sampling import Samples, SamplingOptions, sample_mesh, sample_sdf
from distrender.shape_files import MESHES

SAMPLES, NORMALIZATION = "SdfSamples", "NormalizationParameters"
SPLIT, HOW = "split.json", "sampling.json"
TOP = "shapes"  # class of meshes that lie in no folder of their own
ALONE = Place(torch.device("cpu"))


@dataclass(frozen=True)
class Item:
    """A shape to train on.

    Args:
        name: that its code will have.
        place: dataset, class and shape, in DeepSDF's words.
        source: its mesh; or family and seed; or None where its samples are ready.
    """

    name: str
    place: tuple[str, str, str]
    source: Path | tuple[str, int] | None = None

    def file(self, data: Path, kind: str) -> Path:
        """Where a folder of data keeps its samples or its normalization."""
        dataset, group, shape = self.place
        return data / kind / dataset / group / f"{shape}.npz"


@dataclass(frozen=True)
class TrainingSet:
    """Samples of N shapes, one shape's after the other's.

    Args:
        names: of the shapes.
        pos: ``[P, 4]``: x, y, z and distance of all samples outside.
        neg: ``[Q, 4]``: of those inside.
        pos_starts: ``[N + 1]``: where each shape's begin in ``pos``, and where the last one's end.
        neg_starts: likewise in ``neg``.
    """

    names: tuple[str, ...]
    pos: Tensor
    neg: Tensor
    pos_starts: Tensor
    neg_starts: Tensor

    def draw(self, shapes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """``count`` random samples ``[B, count, 4]`` of each of the shapes ``[B]``, half of them from outside."""
        outside = _some(self.pos, self.pos_starts, shapes, (count + 1) // 2, generator)
        return torch.cat([outside, _some(self.neg, self.neg_starts, shapes, count // 2, generator)], 1)

    def of_shape(self, number: int) -> Tensor:
        """All samples ``[M, 4]`` of one shape."""
        parts = ((self.pos, self.pos_starts), (self.neg, self.neg_starts))
        return torch.cat([rows[starts[number] : starts[number + 1]] for rows, starts in parts])


def _some(rows: Tensor, starts: Tensor, shapes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    first, held = starts[shapes, None], (starts[shapes + 1] - starts[shapes])[:, None]
    chosen = (torch.rand(len(shapes), count, generator=generator, dtype=torch.float64) * held).long()
    return rows[first + chosen]


def find(source: str, split: Path | None = None, shapes: int | None = None) -> list[Item]:
    """The shapes of a source, in their order.

    Args:
        source: ``procedural``, a folder of meshes (in folders of their own or not), or DeepSDF's data folder.
        split: DeepSDF's JSON file of which shapes to take; all, if there is none.
        shapes: how many of them at most; for ``procedural`` how many.

    Raises:
        UserError: there are no such shapes.
    """
    folder = Path(source)
    if source == PROCEDURAL:
        if split:
            raise UserError("--split chooses among the shapes of a data folder; with procedural give --shapes N")
        chosen = procedural.training_set(360 if shapes is None else shapes)
        items = [Item(f"{f}/{seed}", (PROCEDURAL, f, str(seed)), (f, seed)) for f, seed in chosen]
    elif not folder.is_dir():
        raise UserError(f"{source}: no such folder; give one of meshes, DeepSDF's data folder, or the word procedural")
    elif (folder / SAMPLES).is_dir():
        items = _ready(folder, split)
    elif split:
        raise UserError(f"--split chooses among ready samples, and {folder} has no {SAMPLES}; leave it out")
    else:
        items = _meshes(folder)
    if not items:
        raise UserError(f"{source}: no shape to train on; expected {', '.join(MESHES)} files, or {SAMPLES}/*/*/*.npz")
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{source}: several shapes are called {twice[0]}; rename them so that names differ")
    return items[:shapes]


def _meshes(folder: Path) -> list[Item]:
    items = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MESHES):
        inner = path.relative_to(folder).with_suffix("")
        items.append(Item(str(inner), ("meshes", str(inner.parent) if inner.parent.name else TOP, inner.name), path))
    return items


def _ready(folder: Path, split: Path | None) -> list[Item]:
    if split:
        places = _split(split)
    else:
        found = sorted((folder / SAMPLES).glob("*/*/*.npz"))
        places = [(path.parts[-3], path.parts[-2], path.stem) for path in found]
    single = len({place[0] for place in places}) == 1
    items = [Item("/".join(place[1:] if single else place), place) for place in places]
    missing = [file for item in items if not (file := item.file(folder, SAMPLES)).is_file()]
    if missing:
        more = f", nor {len(missing) - 1} others that {split} names" if len(missing) > 1 else f", which {split} names"
        raise UserError(f"{missing[0]}: not there{more}; prepare them first, or take them out of the split")
    return items


def _split(path: Path) -> list[tuple[str, str, str]]:
    try:
        content = json.loads(path.read_text())
        return [(d, c, str(s)) for d, classes in content.items() for c, shapes in classes.items() for s in shapes]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a split {{dataset: {{class: [shapes]}}}} ({error})") from error


def prepare(items: Sequence[Item], data: Path, options: SamplingOptions, seed: int, workers: int, place: Place) -> None:
    """Sample what has no samples yet into a folder of DeepSDF's layout.

    Args:
        items: shapes with a source.
        data: the folder; made if need be.
        options: how many samples, and where.
        seed: of the random numbers; each shape has its own from its name.
        workers: processes that sample; 0 for this one alone. What comes of it does not depend on their number.
        place: of this process among those of torchrun, which share the work.

    Raises:
        UserError: the folder cannot be written, or holds samples that were made otherwise.
    """
    how = {"seed": seed, **asdict(options)}
    how = json.loads(json.dumps(how))  # tuples as they will be read back
    try:
        data.mkdir(parents=True, exist_ok=True)
        before = json.loads((data / HOW).read_text()) if (data / HOW).exists() else how
    except (OSError, ValueError) as error:
        raise UserError(f"{data}: cannot keep samples here ({error}); remove it or choose another -o") from error
    if before != how:
        raise UserError(f"{data} holds samples made with {before}, now {how}; remove it or choose another -o")
    if place.rank == 0:
        _write_json(data / HOW, how)
    todo = [item for item in items if not _up_to_date(item, data)][place.rank :: place.world]
    work = _Preparing(todo, data, options, seed)
    quiet = True if not todo or place.rank else None
    bar = tqdm(total=len(todo), unit="shape", desc="sampling", disable=quiet)
    for fault in read(work, ALONE, min(workers, len(todo)), batch_size=None):
        bar.update()
        if fault:
            logging.warning("left out: %s", fault)
    bar.close()


class _Preparing(Dataset):
    """Samples the shape of a number, writes the files, and says what is wrong with it, if anything."""

    def __init__(self, items: Sequence[Item], data: Path, options: SamplingOptions, seed: int) -> None:
        self.items, self.data, self.options, self.seed = items, data, options, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> str:
        item = self.items[number]
        seed = zlib.crc32(f"{self.seed}/{item.name}".encode())
        try:
            if isinstance(item.source, Path):
                samples, normalization = sample_mesh(item.source, self.options, seed)
                target = item.file(self.data, NORMALIZATION)
                target.parent.mkdir(parents=True, exist_ok=True)
                normalization.save(target)
            else:
                samples = sample_sdf(procedural.shape(*item.source), self.options, seed)
        except UserError as error:
            return f"{item.name}: {error}"
        target = item.file(self.data, SAMPLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        samples.save(target)  # last: what has samples is finished
        return ""


def _up_to_date(item: Item, data: Path) -> bool:
    made = item.file(data, SAMPLES)
    if not made.exists():
        return False
    return not isinstance(item.source, Path) or item.source.stat().st_mtime <= made.stat().st_mtime


def open_training_set(
    source: str,
    run: Path,
    options: SamplingOptions,
    *,
    split: Path | None = None,
    shapes: int | None = None,
    seed: int = 0,
    workers: int = 0,
    place: Place = ALONE,
) -> TrainingSet:
    """Everything there is to train on, prepared where it is not.

    Args:
        source: see :func:`find`.
        run: folder of the run; what is prepared lies in its ``data``.
        options: how samples are made; ``count`` is also the most that are kept of a shape whose samples are ready.
        split: see :func:`find`.
        shapes: see :func:`find`.
        seed: of samples.
        workers: processes that sample.
        place: of this process.

    Raises:
        UserError: nothing can be trained on.
    """
    items = find(source, split, shapes)
    data = Path(source)
    if items[0].source is not None:
        data = run / "data"
        prepare(items, data, options, seed, workers, place)
        place.any(False)  # all have finished
        items = [item for item in items if item.file(data, SAMPLES).exists()]
        if place.rank == 0:
            _write_split(items, data)
    if not items:
        raise UserError(f"{source}: none of the shapes could be sampled; the reasons stand above")
    parts: list[Samples] = []
    for item in tqdm(items, unit="shape", desc="reading", disable=True if place.rank else None, leave=False):
        parts.append(_kept(item.file(data, SAMPLES), options.count, seed))
    sides = [[part.pos for part in parts], [part.neg for part in parts]]
    starts = [torch.tensor([0, *np.cumsum([len(rows) for rows in side])]) for side in sides]
    pos, neg = (torch.from_numpy(np.concatenate(side)) for side in sides)
    return TrainingSet(tuple(item.name for item in items), pos, neg, *starts)


def _kept(file: Path, most: int, seed: int) -> Samples:
    """A file's samples, thinned out to about ``most``; a side that has none gets the other's."""
    samples = Samples.load(file)
    held = len(samples.pos) + len(samples.neg)
    if not held:
        raise UserError(f"{file}: holds no samples; remove it")
    pos, neg = samples.pos, samples.neg
    if held > most:
        rng = np.random.default_rng(seed)
        pos, neg = (rng.permutation(side)[: -(-len(side) * most // held)] for side in (pos, neg))
    return Samples(pos if len(pos) else neg, neg if len(neg) else pos)


def _write_split(items: Sequence[Item], data: Path) -> None:
    split: dict[str, dict[str, list[str]]] = {}
    for item in items:
        dataset, group, shape = item.place
        split.setdefault(dataset, {}).setdefault(group, []).append(shape)
    _write_json(data / SPLIT, split)


def _write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
