"""One training run of 51529-512-128-2, in a process of its own, so that its memory is its own.

python experiments/benchmarks/streamed_run.py FOLDER memory|cache|decode NUM_STEPS

Prints one line of JSON: peak resident bytes, seconds to be ready, seconds and processor seconds of
the steps, and how long the device has waited for images in them.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time

from jaxdnn.config import Config
from jaxdnn.data import Dataset, load
from jaxdnn.recipes import LECTURE
from jaxdnn.training import init_state, make_setup, make_trainer

STEPS_PER_CALL = 5  # As many as `fit` takes in half a second.
WARM_UP_STEPS = 10


def load_photographs(folder: str, kind: str) -> Dataset:
    """Load them into memory, or as a stream with a cache or without."""
    return load(
        folder,
        data_dir=None,
        positive=("dog",),
        image_size=227,
        channels=1,
        validation_fraction=0.01,
        test_fraction=0.01,
        seed=0,
        streaming=kind != "memory",
        max_bytes=float("inf"),
        cache_bytes=2**33 if kind == "cache" else 0,
        allow_duplicates=True,
    )


def run(folder: str, kind: str, num_steps: int) -> dict[str, float]:
    """Take some steps, after a few that are not measured, over as many epochs as it takes."""
    started = time.monotonic()
    setup = make_setup(config_of(), load_photographs(folder, kind))
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


def config_of() -> Config:
    """Return the lecture's deep recipe, for ever."""
    return dataclasses.replace(LECTURE, train=dataclasses.replace(LECTURE.train, epochs=1000))


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
