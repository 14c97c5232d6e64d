"""[run] A whole run: data, network, training, test, and everything that is kept of it.

[description] What a run keeps of its settings and its data before it starts.

[resume] Where a run goes on: at its newest checkpoint that is whole, together with the best it knows of.

A run that starts anew repeats itself to the bit, so that nothing is lost for good even where every
checkpoint is damaged; only time.


[outcome] The outcome of a run: its best weights on all images, tested once, and the predictions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.config import Config, save_config
from jaxdnn.data import Dataset, Split, StreamedImages, load
from jaxdnn.errors import InputError
from jaxdnn.losses import probabilities
from jaxdnn.models import Params
from jaxdnn.options import DeviceOptions
from jaxdnn.processes import fetch, is_first, run_on_first
from jaxdnn.run_folder import RunFolder, atomic_write, write_json
from jaxdnn.training.checkpoint import Checkpoints, Damaged, Mismatch, flatten, unflatten
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.evaluate import (
    classification_metrics,
    confusion_matrix,
    make_predict,
    on_device,
)
from jaxdnn.training.fit import Progress, fit
from jaxdnn.training.pretrained import match, read_weights
from jaxdnn.training.recorder import Recorder, SilentRecorder
from jaxdnn.training.setup import Setup, init_state, make_program, make_setup
from jaxdnn.training.step import TrainState


def keep_settings(folder: RunFolder, setup: Setup) -> None:
    """Write config.json and dataset.json.

    Raises:
      InputError: the run has a dataset.json already, and the data is not what it was.
    """
    _keep_description(folder, _describe(setup))
    save_config(setup.config, folder.config)


def _keep_description(folder: RunFolder, description: dict[str, Any]) -> None:
    """Write dataset.json; where a run has one already, the data must be what it was.

    Raises:
      InputError: they differ.
    """
    if folder.dataset.exists():
        before = json.loads(folder.dataset.read_text())
        differs = [name for name in description if before.get(name) != description[name]]
        if differs:
            raise InputError(
                f"the data is not what {folder.path} was started with "
                f"({', '.join(differs)} differ); put the same images back, or train anew"
            )
    write_json(folder.dataset, description)


def _describe(setup: Setup) -> dict[str, Any]:
    """Return what dataset.json holds: all that prediction needs, and what the data was."""
    dataset = setup.dataset
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = {
        name: {
            class_name: int(np.sum(part.labels == label))
            for label, class_name in enumerate(dataset.class_names)
        }
        for name, part in parts.items()
    }
    height, width, channels = dataset.train.images.shape[1:]
    return {
        "origin": dataset.origin,
        "class_names": list(dataset.class_names),
        "height": height,
        "width": width,
        "channels": channels,
        "mean": list(setup.pixel_stats.mean),
        "std": list(setup.pixel_stats.std),
        "counts": counts,
        "skipped": [[item.name, item.reason] for item in dataset.skipped],
    }


def find_progress(fresh: Progress, checkpoints: Checkpoints) -> Progress | None:
    """Return where the newest whole checkpoint left off, None to begin anew.

    What is damaged, and what came after, is removed with a line on stderr.

    Args:
      fresh: the progress of a new run, whose arrays have the shapes and shardings expected.
      checkpoints: of the run.

    Raises:
      InputError: all of them are of another network.
    """
    steps, damages = checkpoints.steps("latest"), []
    for step in steps:
        try:
            found = _restore(fresh, checkpoints, step)
        except Damaged as damage:
            damages.append(damage)
            continue
        best_step = found.stopping.best_step
        _tell(steps, damages, f"going on from step {step}")
        checkpoints.forget_after("latest", step)
        checkpoints.forget_after("best", -1 if best_step is None else best_step)
        return found
    if damages and all(isinstance(damage, Mismatch) for damage in damages):
        raise InputError(f"{damages[0]}; resume with the settings that the run was started with")
    _tell(steps, damages, "beginning anew")
    for kind in ("latest", "best"):
        checkpoints.forget_after(kind, -1)
    return None


def _restore(fresh: Progress, checkpoints: Checkpoints, step: int) -> Progress:
    like = fresh.to_arrays()
    saved = unflatten(checkpoints.read("latest", step, flatten(like)), like)
    found = fresh.resumed(saved["state"], saved["stopping"])
    best_step = found.stopping.best_step
    if best_step is None:
        return found
    like = {"params": fresh.state.params, "batch_stats": fresh.state.batch_stats}
    try:
        best = unflatten(checkpoints.read("best", best_step, flatten(like)), like)
    except Damaged as damage:
        raise Damaged(f"the best that it knows of, of step {best_step}: {damage}") from damage
    return found.with_best(best["params"], best["batch_stats"])


def _tell(steps: list[int], damages: list[Damaged], then: str) -> None:
    for step, damage in zip(steps, damages, strict=False):
        if is_first():
            print(
                f"the latest checkpoint at step {step} is damaged ({damage}); {then}",
                file=sys.stderr,
            )


NUM_MISTAKES = 24


def params_sha256(params: Params) -> str:
    """Return the SHA-256 over all parameters in the order of their paths: name, shape, bytes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        values = np.ascontiguousarray(leaf, dtype="<f4")
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def measure_best(setup: Setup, end: Progress, folder: RunFolder) -> dict[str, Any]:
    """Measure the best weights on all three splits, the test images for the only time."""
    dataset = setup.dataset
    params, batch_stats = end.best or (end.state.params, end.state.batch_stats)
    predict = make_predict(setup.model, setup.pixel_stats, layout=setup.layout)
    summary: dict[str, Any] = {}
    for name, part in (
        ("train", dataset.train),
        ("val", dataset.validation),
        ("test", dataset.test),
    ):
        logits = predict(params, batch_stats, on_device(part.images, setup.layout))
        metrics = classification_metrics(logits, part.labels)
        summary |= {f"{name}/{metric}": value for metric, value in metrics.items()}
    scores = np.asarray(probabilities(jnp.asarray(logits)))
    run_on_first(lambda: _keep_predictions(folder, dataset.test, scores))
    step = int(end.state.step)
    return summary | {
        "majority_fraction": summary["test/majority_fraction"],
        "confusion": confusion_matrix(
            dataset.test.labels, scores.argmax(axis=1), setup.num_classes
        ).tolist(),
        "class_names": list(dataset.class_names),
        "best_step": end.stopping.best_step,
        "steps": step,
        "epochs": step / setup.steps_per_epoch,
        "stopped_early": step < setup.num_steps,
        "skipped_steps": int(end.state.skipped.num),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "num_skipped": len(dataset.skipped),
        "seed": setup.config.seed,
        "params_sha256": params_sha256(fetch(params)),
        "jax_version": jax.__version__,
    }


def _keep_predictions(folder: RunFolder, test: Split, scores: np.ndarray) -> None:
    """Keep every test prediction, and the pictures of the most confident mistakes."""
    confidence = scores.max(axis=1)
    wrong = np.flatnonzero(scores.argmax(axis=1) != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_MISTAKES]
    with atomic_write(folder.predictions) as draft, draft.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(test.names, dtype=np.str_),
            labels=test.labels,
            probabilities=scores,
            mistakes=worst,
            mistake_images=test.images[worst],
        )


def load_data(config: Config, *, progress: bool) -> Dataset:
    """Load the images that the settings name."""
    options = config.data
    return load(
        options.data,
        other=options.other,
        data_dir=options.data_dir,
        positive=options.positive,
        image_size=options.image_size,
        channels=options.channels,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
        seed=config.seed,
        max_unreadable_fraction=options.max_unreadable,
        progress=progress,
        max_bytes=None if options.max_memory_gib is None else options.max_memory_gib * 2**30,
        streaming=options.streaming,
        cache_bytes=options.cache_gib * 2**30,
        allow_duplicates=options.allow_duplicates,
    )


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
    dataset = load_data(_streaming(config), progress=progress)
    if progress:
        print(dataset.told(), file=sys.stderr)
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
        "streamed": isinstance(dataset.train.images, StreamedImages),
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
