"""The first start of a run compiles; the second finds its programs in the user's cache folder."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

DEEP_DOG = Path(__file__).parents[1] / "deep_dog.py"
ROUNDS = 3


def table() -> str:
    """Return the rows of the README."""
    lines = [
        "| recipe | first start, s to the first step | second start | sooner |",
        "|---|---|---|---|",
    ]
    for recipe in ("deep", "conv"):
        pairs = [_first_and_second(recipe) for _ in range(ROUNDS)]
        firsts, seconds = ([pair[n] for pair in pairs] for n in (0, 1))
        times = [first / second for first, second in pairs]
        lines.append(
            f"| `{recipe}` | {_spread(firsts, 1)} | {_spread(seconds, 1)} | {_spread(times, 2)}x |"
        )
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _first_and_second(recipe: str) -> tuple[float, float]:
    """Return `first_step_seconds` of two starts that share a folder of compiled programs."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            out = Path(folder) / name
            command = [sys.executable, str(DEEP_DOG), recipe, "--epochs", "1", "--out", str(out)]
            command += ["--no-progress", "--compilation-cache", str(Path(folder) / "cache")]
            if recipe == "conv":
                command += ["--widths", "8", "16", "32"]  # As much to compile, less to train.
            subprocess.run(command, check=True, capture_output=True)
            found.append(json.loads((out / "summary.json").read_text())["first_step_seconds"])
    return found[0], found[1]
