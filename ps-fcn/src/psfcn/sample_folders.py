"""Folders of rendered samples: written by several processes, gone on with where they were left.

Each sample is written under its own name from its own seed, so what is there already need not be rendered again and
the number of processes changes nothing. ``render.json`` in the folder keeps the options, so that two kinds never mix.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image
from tqdm import tqdm

from psfcn import blobs, held_out
from psfcn.render_options import Options
from psfcn.rendering import render_sample
from psfcn.samples import WHITE, Sample

SEEDS = 1_000_000  # samples of one --seed before they meet those of the next
SHOWN = 24  # samples on a contact sheet
Work = Callable[[], Sample]


def render_folder(
    folder: Path,
    options: Options,
    *,
    count: int,
    seed: int,
    layout: str,
    test_set: bool,
    workers: int,
    sheet: Path | None,
) -> dict[str, object]:
    """Render what a folder lacks.

    Args:
        folder: made if it is missing.
        options: of the samples; of the test set only the size and the meshes count.
        count: how many random samples; they are ``000000.npz`` and so on, or folders ``000000PNG``.
        seed: another one gives other samples.
        layout: ``npz`` or ``diligent``.
        test_set: the objects of :mod:`psfcn.held_out`, under their names, instead of random ones.
        workers: processes.
        sheet: a picture of the first samples, if wanted.

    Returns:
        Counts ``rendered`` and ``kept``, ``seconds``, and the meshes ``held_out``.

    Raises:
        UserError: the folder has samples of other options or cannot be written to, or a mesh is missing or damaged.
    """
    started = time.perf_counter()
    if test_set:
        jobs = [
            (case.name, partial(held_out.render_case, case, options.size)) for case in held_out.cases(options.meshes)
        ]
        settings: dict[str, object] = {"test_set": True, "size": options.size, "meshes": options.meshes}
    else:
        if count > SEEDS:
            raise UserError(f"--count is {count}, expected at most {SEEDS}; render the rest with another --seed")
        if "meshes" in options.shapes:
            blobs.mesh_files(options.meshes, options.split)
        jobs = [(f"{i:06d}", partial(render_sample, seed * SEEDS + i, options)) for i in range(count)]
        settings = {**asdict(options), "seed": seed}
    _record(folder, {**settings, "layout": layout})
    suffix = "PNG" if layout == "diligent" else ".npz"
    missing = [(path, work) for name, work in jobs if not (path := folder / f"{name}{suffix}").exists()]
    rendered = 0
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="sample", disable=None) as progress:
        try:
            for _ in _render_all(missing, workers, layout):
                rendered += 1
                progress.update()
        except KeyboardInterrupt:
            there = len(jobs) - sum(not path.exists() for path, _ in missing)
            raise KeyboardInterrupt(
                f"Interrupted; {there} of {len(jobs)} samples are in {folder}, and the same command goes on from there."
            ) from None
    if sheet:
        write_image(sheet, contact_sheet([work() for _, work in jobs[:SHOWN]]))
    return {
        "rendered": rendered,
        "kept": len(jobs) - len(missing),
        "seconds": round(time.perf_counter() - started, 2),
        "held_out": blobs.held_out_names(options.meshes) if options.meshes and options.split == "train" else [],
    }


def _record(folder: Path, settings: dict[str, object]) -> None:
    text = json.dumps(settings, indent=1, default=str)
    note = folder / "render.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = note.read_text() if note.exists() else None
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; name another folder") from error
    if before is None:
        with atomic_path(note) as part:
            part.write_text(text + "\n")
    elif before.strip() != text:
        raise UserError(f"{folder} has samples rendered with other options (see {note.name}); name another folder")


def _render_all(jobs: list[tuple[Path, Work]], workers: int, layout: str) -> Iterator[None]:
    """Render and write everything; yields when another one is done."""
    if workers == 1 or len(jobs) < 2:
        for path, work in jobs:
            yield _render(path, work, layout)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads, embree's and numpy's
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_leave_interrupts) as pool:
        try:
            for done in as_completed([pool.submit(_render, path, work, layout) for path, work in jobs]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _render(path: Path, work: Work, layout: str) -> None:
    if layout == "diligent":
        write_diligent(work(), path)
    else:
        work().save(path)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def contact_sheet(samples: list[Sample], tile: int = 128) -> np.ndarray:
    """``[H, W, 3]`` uint8: of each sample three photographs and its normals, four samples to a row.

    The photographs are those under its highest light and under ones a third and two thirds of the way down.
    """
    rows = []
    for sample in samples:
        by_height = np.argsort(-sample.lights[:, 2])
        shown = by_height[[0, len(by_height) // 3, 2 * len(by_height) // 3]]
        photographs = (sample.images[shown] / WHITE) ** (1 / 2.2)
        normals = (sample.normal.astype(np.float32) + 1) / 2
        index = (np.arange(tile) * sample.mask.shape[0]) // tile
        pictures = [picture[index][:, index] for picture in (*photographs, normals)]
        rows.append(np.concatenate(pictures, axis=1))
    across = min(4, len(rows))
    rows += [np.zeros_like(rows[0])] * (-len(rows) % across)
    sheet = np.concatenate([np.concatenate(rows[i : i + across], 1) for i in range(0, len(rows), across)])
    return np.rint(255 * sheet).astype(np.uint8)


def write_diligent(sample: Sample, folder: Path) -> None:
    """Write a sample as DiLiGenT keeps an object: 16-bit PNGs, mask.png, Normal_gt.mat and the lights' text files.

    The folder appears at once when all is in it. Image values are radiance / scale, as in :class:`Sample`.
    """
    from scipy.io import savemat

    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        files = [f"{i + 1:03d}.png" for i in range(len(sample.images))]
        for file, image in zip(files, sample.images, strict=True):
            write_image(part / file, image)
        write_image(part / "mask.png", (255 * sample.mask[..., None]).astype(np.uint8))
        savemat(part / "Normal_gt.mat", {"Normal_gt": sample.normal.astype(np.float64)})
        np.savetxt(part / "light_directions.txt", sample.lights, fmt="%.8f")
        np.savetxt(part / "light_intensities.txt", sample.intensities, fmt="%.8f")
        (part / "filenames.txt").write_text("\n".join(files) + "\n")
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
