"""Interleaved timing, and the machine that its figures depend on.

Contenders take turns, so that what slows the machine slows them all.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdnn.errors import InputError

Work = Callable[[int], None]
"""Does so many units of work, one after the other, and returns when the last is finished."""

OURS = "jaxdnn"
HINT = "bench.py needs PyTorch: pip install -e '.[bench]' (a CPU build of it is enough)"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "torch", "opencv-python-headless")

# A thread pool that has just worked spins for a while before it sleeps, and would slow the next.
PAUSE_SECONDS = 0.05


def num_cores() -> int:
    """Return how many cores this process may use; under `taskset` fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
      rounds: in each of them every contender takes one turn.
      turn_seconds: roughly how long a turn takes; at least one unit.
    """

    rounds: int
    turn_seconds: float


class Spread(NamedTuple):
    """Least, middle and greatest of repeated measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of one or more values."""
        return cls(min(values), statistics.median(values), max(values))


def seconds_per_unit(work: Work, num_units: int) -> float:
    """Time so many units, after one that is not timed."""
    work(1)
    start = time.perf_counter()
    work(num_units)
    return (time.perf_counter() - start) / num_units


def interleave(contenders: Mapping[str, Work], effort: Effort) -> dict[str, list[float]]:
    """Return the seconds per unit of each contender, one for each round.

    Args:
      contenders: warmed up; each does the same units.
      effort: how often, how long.
    """
    counts = {
        name: max(1, round(effort.turn_seconds / seconds_per_unit(work, 1)))
        for name, work in contenders.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(effort.rounds):
        for name, work in contenders.items():
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(seconds_per_unit(work, counts[name]))
    return seconds


class Elsewhere:
    """Share of the cores that other programs take; None where there is no /proc."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), cpu_seconds_elsewhere()

    def share(self) -> float | None:
        """Return the share since this was made."""
        (start, before), now = self._start, cpu_seconds_elsewhere()
        if before is None or now is None:
            return None
        elapsed = time.perf_counter() - start
        return max(0.0, now - before) / elapsed / (os.cpu_count() or 1)


def cpu_seconds_elsewhere() -> float | None:
    """Return the CPU time so far of all programs except this one and its workers."""
    children = [child.pid for child in multiprocessing.active_children()]
    try:
        user, nice, system, _, _, irq, softirq, steal = _fields("/proc/stat", 1, 8)
        own = sum(sum(_fields(f"/proc/{pid}/stat", 13, 2)) for pid in [os.getpid(), *children])
    except OSError:
        return None
    ticks = user + nice + system + irq + softirq + steal - own
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(path: str, first: int, count: int) -> list[int]:
    words = Path(path).read_text().split("\n", 1)[0].split()
    return [int(word) for word in words[first : first + count]]


def ratios(theirs: list[float], ours: list[float]) -> Spread:
    """Return how many times as long as ours theirs takes, over the rounds."""
    return Spread.of([a / b for a, b in zip(theirs, ours, strict=True)])


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cores": num_cores(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def make_folder(path: Path) -> None:
    """Make the output folder; raise InputError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "bench.md").touch()
    except OSError as error:
        raise InputError(f"--out {path} cannot be written ({error}); choose another") from error
