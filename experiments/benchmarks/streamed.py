"""Training from a stream: does the device wait, and does memory grow with the data?

A run of 51529-512-128-2 takes a process of its own, so that its memory is its own:

    python experiments/benchmarks/streamed.py FOLDER memory|cache|decode NUM_STEPS

It prints one line of JSON: peak resident bytes, seconds to be ready, seconds and processor seconds
of the steps, and how long the device has waited for images in them.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from photographs import write_folder

from jaxdnn.config import Config
from jaxdnn.data import Dataset, load
from jaxdnn.options import DataOptions
from jaxdnn.recipes import LECTURE
from jaxdnn.training import init_state, make_setup, make_trainer
from jaxdnn.xla import set_flags

KINDS = {
    "cache": "streamed, decoded images on disk",
    "decode": "streamed, decoded again in every epoch",
    "memory": "in memory",
}
STEPS_PER_CALL = 5  # As many as `fit` takes in half a second.
WARM_UP_STEPS = 10


def _run_apart(folder: Path, kind: str, num_steps: int) -> dict[str, float]:
    """Train in a process of its own; see `_run`."""
    command = [sys.executable, __file__, str(folder), kind, str(num_steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure_training(encoded: list[bytes], num: int, num_steps: int) -> dict[str, Any]:
    """Train on photographs from a cache, from their files, and from memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(encoded, num, Path(folder))
        return {kind: _run_apart(Path(folder), kind, num_steps) for kind in KINDS}


def measure_memory(encoded: list[bytes], num: int, more: int, num_steps: int) -> dict[str, Any]:
    """Train on so many photographs, and on more."""
    peaks = {}
    for number in (num, more):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(encoded, number, Path(folder))
            peaks[str(number)] = _run_apart(Path(folder), "cache", num_steps)["peak_bytes"]
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
    measured = [f"{int(num):,} photographs {peak / 2**20:,.0f} MiB" for num, peak in peaks.items()]
    fewer, more = peaks.values()
    return f"Peak resident memory: {', '.join(measured)}: {(more - fewer) / 1e6:+.0f} MB\n"


def _load_photographs(folder: str, kind: str) -> Dataset:
    """Load them into memory, or as a stream with a cache or without."""
    options = DataOptions(
        data=folder,
        positive=("dog",),
        image_size=227,
        channels=1,
        validation_fraction=0.01,
        test_fraction=0.01,
        streaming=kind != "memory",
        max_memory_gib=2**20,
        cache_gib=8 if kind == "cache" else 0,
        allow_duplicates=True,
    )
    return load(options, seed=0)


def _run(folder: str, kind: str, num_steps: int) -> dict[str, float]:
    """Take some steps, after a few that are not measured, over as many epochs as it takes."""
    started = time.monotonic()
    setup = make_setup(_config(), _load_photographs(folder, kind))
    ready, program, state = time.monotonic() - started, make_trainer(setup), init_state(setup)
    while int(state.step) < WARM_UP_STEPS:
        state = program.train(state, STEPS_PER_CALL)
    first, waited = int(state.step), program.waited_seconds()
    begun, busy = time.monotonic(), time.process_time()
    while int(state.step) < first + num_steps:
        state = program.train(state, STEPS_PER_CALL)
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds": time.process_time() - busy,
        "waited_seconds": program.waited_seconds() - waited,
        "num_images": (int(state.step) - first) * setup.batch_size,
        "ready_seconds": ready,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _config() -> Config:
    """Return the lecture's deep recipe, for ever."""
    return dataclasses.replace(LECTURE, train=dataclasses.replace(LECTURE.train, epochs=1000))


if __name__ == "__main__":
    set_flags()
    print(json.dumps(_run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
