"""Training from a stream: does the device wait, and does memory grow with the data?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.photographs import write_folder

KINDS = {
    "cache": "streamed, decoded images on disk",
    "decode": "streamed, decoded anew in every epoch",
    "memory": "in memory",
}
_PROGRAM = Path(__file__).with_name("streamed_run.py")


def run(folder: Path, kind: str, num_steps: int) -> dict[str, float]:
    """Train in a process of its own; see `streamed_run`."""
    command = [sys.executable, str(_PROGRAM), str(folder), kind, str(num_steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure_training(encoded: list[bytes], num: int, num_steps: int) -> dict[str, Any]:
    """Train on photographs from a cache, from their files, and from memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(encoded, num, Path(folder))
        return {kind: run(Path(folder), kind, num_steps) for kind in KINDS}


def measure_memory(encoded: list[bytes], num: int, more: int, num_steps: int) -> dict[str, Any]:
    """Train on so many photographs, and on more."""
    peaks = {}
    for number in (num, more):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(encoded, number, Path(folder))
            peaks[str(number)] = run(Path(folder), "cache", num_steps)["peak_bytes"]
    return peaks


def report_training(results: dict[str, Any], num: int, cores: int) -> str:
    """Return a Markdown table of the runs."""
    lines = [
        f"51529-512-128-2, batch 128, on {num:,} photographs",
        "",
        "| | images/s | waited for images | cores busy |",
        "|---|---:|---:|---:|",
    ]
    for kind, name in KINDS.items():
        found = results[kind]
        rate = found["num_images"] / found["seconds"]
        waited = found["waited_seconds"] / found["seconds"]
        busy = found["cpu_seconds"] / found["seconds"] / cores
        lines.append(f"| {name} | {rate:,.0f} | {waited:.1%} | {busy:.0%} |")
    return "\n".join(lines) + "\n"


def report_memory(peaks: dict[str, float]) -> str:
    """Return peak resident memory as a line."""
    told = [f"{int(num):,} photographs {peak / 2**20:,.0f} MiB" for num, peak in peaks.items()]
    fewer, more = peaks.values()
    return f"Peak resident memory: {', '.join(told)}: {(more - fewer) / 1e6:+.0f} MB\n"
