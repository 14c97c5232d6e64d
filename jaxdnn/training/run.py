"""A whole run: data, network, training, test, and everything that is kept of it."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxdnn.config import Config
from jaxdnn.data import load
from jaxdnn.options import DeviceOptions
from jaxdnn.processes import is_first, run_on_first
from jaxdnn.run_folder import RunFolder, write_json
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.description import keep_settings
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.fit import Progress, fit
from jaxdnn.training.outcome import measure_best
from jaxdnn.training.pretrained import match, read_weights
from jaxdnn.training.program import make_program
from jaxdnn.training.recorder import Recorder, SilentRecorder
from jaxdnn.training.resume import find_progress
from jaxdnn.training.setup import Setup, init_state, make_setup
from jaxdnn.training.step import TrainState


def train(
    config: Config,
    folder: RunFolder,
    *,
    devices: DeviceOptions | None = None,
    progress: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train and test a network, from the beginning or from the folder's latest checkpoint.

    Every process of a distributed run calls it, with the same arguments.

    Args:
      config: the settings.
      folder: where everything is kept.
      devices: what to run on; by default one device.
      progress: show bars on stderr.
      interrupted: asked between calls; True saves and stops.

    Returns:
      The summary, as written to summary.json.

    Raises:
      InputError: the data or the settings cannot work.
      Diverged: the loss was not finite.
      Interrupted: after saving.
    """
    started = time.monotonic()
    progress = progress and is_first()
    dataset = load(_streaming(config).data, seed=config.seed, progress=progress)
    if progress:
        print(dataset.summary(), file=sys.stderr)
    setup = make_setup(config, dataset, devices)
    run_on_first(lambda: keep_settings(folder, setup))
    with Checkpoints(folder.checkpoints, about=_about(setup), tidy=True) as checkpoints:
        start = _start(setup, checkpoints)
        with _make_recorder(setup, folder, start, progress) as recorder:
            program = make_program(setup)
            end, timing = fit(
                start,
                program,
                recorder=recorder,
                checkpoints=checkpoints,
                interrupted=interrupted,
            )
    summary = measure_best(setup, end, folder) | {
        "images_per_second": timing.steps_per_second * setup.batch_size,
        "first_step_seconds": timing.first_step_seconds,
        "streamed": dataset.train.images.is_streamed,
        "waited_seconds": program.waited_seconds(),
        "wall_seconds": time.monotonic() - started,
        "num_devices": setup.layout.num_devices,
        "num_processes": jax.process_count(),
    }
    run_on_first(lambda: write_json(folder.summary, summary))
    return summary


def _about(setup: Setup) -> dict[str, Any]:
    """Return what stands beside every checkpoint."""
    return {
        "config": dataclasses.asdict(setup.config),
        "versions": versions(),
        "num_devices": setup.layout.num_devices,
    }


def _streaming(config: Config) -> Config:
    """Let every process decode only its own part of each batch, where there are several."""
    if jax.process_count() == 1:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, streaming=True))


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {name: version(name) for name in ("jaxdnn", "jax", "jaxlib", "flax", "optax")}


def _make_recorder(setup: Setup, folder: RunFolder, start: Progress, progress: bool) -> Recorder:
    if not is_first():
        return SilentRecorder()
    return Recorder(
        folder,
        num_steps=setup.num_steps,
        batch_size=setup.batch_size,
        start=int(start.state.step),
        progress=progress,
    )


def _start(setup: Setup, checkpoints: Checkpoints) -> Progress:
    """Return the beginning, or where the latest checkpoint left off."""
    options = setup.config.train
    stopping = EarlyStopping(
        greater_is_better=options.monitor != "val/loss",
        patience=options.patience,
        min_improvement=options.min_improvement,
    )
    fresh = Progress(init_state(setup), stopping)
    found = find_progress(fresh, checkpoints)
    if found is not None:
        _tell_devices(setup, checkpoints)
        return found
    return dataclasses.replace(fresh, state=_pretrained(setup, fresh.state))


def _tell_devices(setup: Setup, checkpoints: Checkpoints) -> None:
    """Say where a run goes on with other sums, in another order."""
    step = checkpoints.step("latest")
    assert step is not None
    before, now = checkpoints.about("latest", step).get("num_devices"), setup.layout.num_devices
    if before != now and is_first():
        print(
            f"step {step} was reached on {before} devices, now there are {now}: the same run, up "
            "to rounding",
            file=sys.stderr,
        )


def _pretrained(setup: Setup, state: TrainState) -> TrainState:
    """Put pretrained weights into a fresh state where the options ask for them."""
    options = setup.config.model
    if options.pretrained is None:
        return state
    fresh = (state.params, state.batch_stats)
    (params, batch_stats), account = match(fresh, read_weights(Path(options.pretrained)))
    if is_first():
        print(account, file=sys.stderr)
    placed = setup.layout.place_state((params, batch_stats))
    return state._replace(params=placed[0], batch_stats=placed[1])
