"""What a run did, counted while it runs: for the summary line, and for machines as JSON."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path


@dataclass
class Report:
    """The counts and times of one run. Rates and times are exact fractions until they are written."""

    input: dict = field(default_factory=dict)
    output: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    frames_in: int = 0
    frames_out: int = 0
    originals: int = 0  # of frames_out: source frames, bit for bit where the format is kept
    interpolated: int = 0
    held: int = 0  # of frames_out: a source frame shown again: the last one, duplicates, cuts
    resumed: int = 0  # of frames_out: made by an earlier run, which this one went on with
    duplicates: int = 0  # pairs of equal source frames
    repeated_drawings: int = 0  # source frames left out by dedup
    cuts: list[dict] = field(default_factory=list)  # and flashes: kind, frame, seconds, score
    source_seconds: Fraction = Fraction(0)  # from the first frame to the end of the last, slowed if asked for
    drift_seconds: Fraction = Fraction(0)  # how much longer the output is; below one of its frames
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "decide": 0.0, "infer": 0.0, "encode": 0.0}
    )
    wall_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage's seconds; stages run at the same time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - began

    def finish(self, fps: Fraction) -> None:
        """Settle what is known at the end only; ``fps`` is the output's."""
        self.wall_seconds = time.perf_counter() - self._began
        self.drift_seconds = self.frames_out / fps - self.source_seconds

    def summary(self) -> str:
        """One line for people, and one for each warning."""
        made_now = 1 - self.resumed / max(self.frames_out, 1)
        speed = self.interpolated * made_now / max(self.wall_seconds, 1e-9)
        before = f", {self.resumed} of them made before" if self.resumed else ""
        line = (
            f"{self.output['path']}: {self.frames_out} frames ({self.originals} original, {self.interpolated} new, "
            f"{self.held} repeated{before}) in {self.wall_seconds:.1f} s, {speed:.2f} new frames/s"
        )
        return "\n".join([line, *(f"note: {warning}" for warning in self.warnings)])

    def as_json(self) -> dict:
        """Plain numbers and strings; rates as "60000/1001", times in seconds."""
        return {**_plain(asdict(self)), "peak_memory_mib": peak_memory_mib()}


def peak_memory_mib() -> float:
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Fraction | Path):
        return str(value)
    return round(value, 3) if isinstance(value, float) else value
