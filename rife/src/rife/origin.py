"""What the bytes of an output depend on: to tell whether a run can go on where another one stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from papershelf.devices import device_named

from rife.encoder import EncoderChoice, VideoEncoder
from rife.interpolator import members

if TYPE_CHECKING:
    from rife.job import Job

ENDS = 1 << 16  # bytes at either end of a file that are looked at: whole films would take minutes
# Options that say where and how a result is written, and not what it is.
_FREE = {"input", "output", "overwrite", "resume", "device", "weights"}


def origin_of(job: Job, choice: EncoderChoice | None, frames: int) -> dict[str, object]:
    """Everything that decides the bytes of a job's output, in plain numbers and strings.

    Args:
        job: the job.
        choice: its encoder; None for images.
        frames: of a segment.
    """
    options = {f"--{k.replace('_', '-')}": _plain(v) for k, v in asdict(job.options).items() if k not in _FREE}
    versions = {name: importlib.metadata.version(name) for name in ("rife-interp", "torch", "av")}
    return {
        "the input": _file_or_folder(job.options.input),
        "the weights": [_digest(path) for path in _weights(job)],
        "the rate": str(job.timeline.fps),
        "the segment": frames,
        "the device": sorted({_device(name) for name in job.devices}),
        "the processor's instruction set": torch.backends.cpu.get_cpu_capability(),
        "PAPERSHELF_NATIVE": os.environ.get("PAPERSHELF_NATIVE"),
        "the encoder": None if choice is None else _encoder(job, choice),
        **options,
        **{f"the version of {name}": version for name, version in versions.items()},
    }


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return _digest(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _weights(job: Job) -> list[Path]:
    from rife import weights

    if job.options.weights:
        return [job.options.weights]
    return [weights.find(member.weights) for member in members(job.options.mode)]


def _digest(path: Path) -> str:
    """Of a whole file; short, since it is for people to compare too."""
    if path.is_dir():
        return _file_or_folder(path)
    with path.open("rb") as file:
        return f"{path.name} ({hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"


def _file_or_folder(path: Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr(states).encode())
    if not path.is_dir():
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, states[0][1] - ENDS))
            digest.update(file.read(ENDS))
    size = f"{states[0][1]} bytes" if len(files) == 1 else f"{len(files)} files"
    return f"{path.name} ({size}, {digest.hexdigest()[:16]})"


def _device(name: str) -> str:
    device = device_named(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _encoder(job: Job, choice: EncoderChoice) -> str:
    encoder = VideoEncoder(choice, job.source.info, job.timeline.fps)
    header = hashlib.sha256(encoder.stream.codec_context.extradata or b"").hexdigest()[:16]
    encoder.close()
    settings = " ".join(f"{key}={value}" for key, value in choice.options)
    return f"{choice.encoder} {choice.spec.pix_fmt} {settings} threads={choice.threads} ({header})"
