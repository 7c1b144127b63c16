"""What benchmarks share: times of several calls taken turn by turn, and what they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

TURN = 0.02  # seconds that a call's turn takes at least


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    timer: Callable[[], float] = perf_counter,
    most: int = 100,
) -> dict[str, dict[str, float]]:
    """Time calls over rounds in which each has its turn, so that all meet the same disturbances.

    Args:
        calls: what to time, by name. Each is called three times before.
        rounds: turns of each.
        timer: of seconds; for GPUs ``torch.utils.benchmark.timer``, which waits for them.
        most: calls in one turn; as many as fill :data:`TURN`, so that a GPU is never waiting for Python.

    Returns:
        By name ``ms``, ``iqr_ms`` and ``min_ms``: milliseconds of one call, median, interquartile range and least.
    """
    number = {}
    for name, call in calls.items():
        call()
        call()
        start = timer()
        call()
        number[name] = max(1, min(most, int(TURN / max(timer() - start, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = timer()
            for _ in range(number[name]):
                call()
            taken[name].append((timer() - start) / number[name] * 1e3)
    return {name: _summary(times) for name, times in taken.items()}


def _summary(times: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"ms": round(median, 4), "iqr_ms": round(high - low, 4), "min_ms": round(min(times), 4)}


def commit() -> str:
    """The commit that is measured: ``$COMMIT``, or git's; ``unknown`` outside a repository."""
    if given := os.environ.get("COMMIT"):
        return given
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name as it gives it itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
