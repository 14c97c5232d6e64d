"""One run: data, network, training, test, and everything that is kept of it.

A run goes on at its newest checkpoint that is not damaged, together with the best it knows of. One
that starts again repeats itself to the bit, so that where every checkpoint is damaged only time is
lost.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdnn import __version__
from jaxdnn.calibration import Calibration, fit_calibration, reliability, weights_of
from jaxdnn.config import Config, save_config
from jaxdnn.data import Dataset, Split, load
from jaxdnn.errors import InputError
from jaxdnn.models import Params
from jaxdnn.names import printable_lines
from jaxdnn.options import DeviceOptions
from jaxdnn.processes import fetch, is_first, run_on_first
from jaxdnn.run_folder import (
    DatasetAbout,
    RunFolder,
    atomic_write,
    read_dataset,
    without_nan,
    write_json,
)
from jaxdnn.stored import seal
from jaxdnn.training.checkpoint import Checkpoints, Damaged, Mismatch, flatten
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.evaluate import (
    classification_metrics,
    confusion_summary,
    make_predict,
    on_device,
)
from jaxdnn.training.features import with_features
from jaxdnn.training.fit import Progress, fit
from jaxdnn.training.predictor import make_network
from jaxdnn.training.pretrained import match, read_weights
from jaxdnn.training.provenance import check_unchanged, keeps_metrics, provenance
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.saliency import by_turns, explain, most_confident
from jaxdnn.training.setup import Setup, init_state, make_setup, make_trainer, weights_digest
from jaxdnn.training.step import TrainState
from jaxdnn.xla import num_threads

NUM_MISTAKES = 24
_SILHOUETTES = (
    "these are silhouettes that come with the package, 28 x 28 outlines of ten animals, and the "
    "network was trained on photographs; for your own: --data photos/ --positive dog"
)
NUM_EXPLAINED = 6
"""Mistakes, and as many successes."""


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
    dataset = load(_streaming(config).images, seed=config.seed, progress=progress)
    if progress:
        print(printable_lines(dataset.summary()), file=sys.stderr)
    if config.model.has_backbone and config.data.data == "silhouettes":
        _tell(_SILHOUETTES)
    setup = make_setup(config, dataset, devices)
    description = _describe(setup)
    about = functools.partial(_about, setup, description, folder)
    with Checkpoints(folder.checkpoints, about=about, tidy=True) as checkpoints:
        run_on_first(lambda: _keep_settings(folder, setup, description, checkpoints))
        start = _start(setup, checkpoints, folder)
        setup, computed = with_features(setup, progress=progress, interrupted=interrupted)
        with Recorder(
            folder if is_first() else None,
            num_steps=setup.num_steps,
            batch_size=setup.batch_size,
            start=int(start.state.step),
            progress=progress,
        ) as recorder:
            trainer = make_trainer(setup)
            end, timing = fit(
                start,
                trainer,
                recorder=recorder,
                checkpoints=checkpoints,
                interrupted=interrupted,
            )
    summary = _measure_best(setup, end, folder, description) | {
        "images_per_second": timing.steps_per_second * setup.batch_size,
        "first_step_seconds": timing.first_step_seconds,
        "streamed": dataset.train.images.is_streamed,
        "waited_seconds": trainer.waited_seconds(),
        **computed,
        "wall_seconds": time.monotonic() - started,
        "num_devices": setup.layout.num_devices,
        "threads": num_threads(),
        "num_processes": jax.process_count(),
    }
    summary = seal(without_nan(summary))
    run_on_first(lambda: write_json(folder.summary, summary))
    return summary


def _streaming(config: Config) -> Config:
    """Let every process decode only its own part of each batch, where there are several."""
    if jax.process_count() == 1:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, streaming=True))


def _about(setup: Setup, description: DatasetAbout, folder: RunFolder) -> dict[str, Any]:
    """Return what is kept with every checkpoint."""
    return {
        **provenance(setup.config, description, folder.metrics),
        "versions": _versions(),
        "num_devices": setup.layout.num_devices,
        "threads": num_threads(),
    }


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax")
    return {"jaxdnn": __version__, **{name: version(name) for name in packages}}


def _keep_settings(
    folder: RunFolder, setup: Setup, description: DatasetAbout, checkpoints: Checkpoints
) -> None:
    """Write config.json and dataset.json; where a run has these already, check them and the data.

    Raises:
      InputError: they are not what they were.
    """
    about = checkpoints.about_newest("latest")
    if folder.dataset.exists():
        before = read_dataset(folder)
        check_unchanged(about, setup.config, before, folder)
        differs = [name for name, value in before.items() if description.get(name) != value]
        if differs:
            raise InputError(
                f"the data is not what {folder.path} was started with "
                f"({', '.join(differs)} differ); put the same images back, or train again"
            )
    check_unchanged(about, setup.config, description, folder)
    write_json(folder.dataset, description)
    save_config(setup.config, folder.config)


def _describe(setup: Setup) -> DatasetAbout:
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
        "channels": 1 if channels == 1 else 3,
        "mean": list(setup.pixel_stats.mean),
        "std": list(setup.pixel_stats.std),
        "counts": counts,
        "skipped": [[item.name, item.reason] for item in dataset.skipped],
        "backbone": weights_digest(setup.config.model),
    }


def _start(setup: Setup, checkpoints: Checkpoints, folder: RunFolder) -> Progress:
    """Return the beginning, or where the latest checkpoint left off."""
    options = setup.config.train
    stopping = EarlyStopping(
        greater_is_better=options.monitor != "val/loss",
        patience=options.patience,
        min_improvement=options.min_improvement,
    )
    fresh = Progress(init_state(setup), stopping)
    found = find_progress(fresh, checkpoints)
    if found is None:
        return dataclasses.replace(fresh, state=_pretrained(setup, fresh.state))
    step, now = int(found.state.step), setup.layout.num_devices
    about = checkpoints.about("latest", step)
    if is_first() and not keeps_metrics(about, folder.metrics):
        _tell(
            f"{folder.metrics} was changed or lost since step {step} was saved; the charts will "
            "show what is left"
        )
    before, threads = about.get("num_devices"), about.get("threads", num_threads())
    if before != now:  # The sums are the same, in another order.
        _tell(
            f"step {step} was reached on {before} devices, now there are {now}: the same run, up "
            "to rounding"
        )
    elif threads != num_threads() and jax.default_backend() == "cpu":
        _tell(
            f"step {step} was reached with {threads} threads, now there are {num_threads()}: the "
            f"same run, up to rounding; PJRT_NPROC={threads} gives the same bits"
        )
    return found


def _tell(text: str) -> None:
    if is_first():
        print(printable_lines(text), file=sys.stderr)


def _pretrained(setup: Setup, state: TrainState) -> TrainState:
    """Put pretrained weights into a fresh state where the options ask for them."""
    path = setup.config.model.pretrained
    if path is None or setup.config.model.has_backbone:  # Which has its weights already.
        return state
    variables, account = match(state.variables, read_weights(Path(path)))
    _tell(str(account))
    placed = setup.layout.place_state(variables)
    return state._replace(params=placed.params, batch_stats=placed.batch_stats)


def find_progress(fresh: Progress, checkpoints: Checkpoints) -> Progress | None:
    """Return where the newest checkpoint that is not damaged left off, None to start again.

    What is damaged, and what came after, is removed with a line on stderr.

    Args:
      fresh: the progress of a new run, whose arrays have the shapes and shardings expected.
      checkpoints: those that the run has left, if any.

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
        _tell_damages(steps, damages, f"going on from step {step}")
        checkpoints.forget_after("latest", step)
        checkpoints.forget_after("best", -1 if best_step is None else best_step)
        return found
    if damages and all(isinstance(damage, Mismatch) for damage in damages):
        raise InputError(f"{damages[0]}; resume with the settings that the run was started with")
    _tell_damages(steps, damages, "starting again")
    for kind in ("latest", "best"):
        checkpoints.forget_after(kind, -1)
    return None


def _restore(fresh: Progress, checkpoints: Checkpoints, step: int) -> Progress:
    found = fresh.resumed(checkpoints.read("latest", step, fresh.to_arrays()))
    best_step = found.stopping.best_step
    if best_step is None:
        return found
    try:
        best = checkpoints.read("best", best_step, fresh.state.variables)
    except Damaged as damage:
        raise Damaged(f"the best that it knows of, of step {best_step}: {damage}") from damage
    return dataclasses.replace(found, best=best)


def _tell_damages(steps: list[int], damages: list[Damaged], then: str) -> None:
    for step, damage in zip(steps, damages, strict=False):
        _tell(f"the latest checkpoint at step {step} is damaged ({damage}); {then}")


def _measure_best(
    setup: Setup, end: Progress, folder: RunFolder, description: DatasetAbout
) -> dict[str, Any]:
    """Measure the best weights on all three splits, the test images for the only time."""
    dataset = setup.dataset
    best = end.best or end.state.evaluated
    normalise, flip = setup.inputs.normalise, setup.config.train.flip_test
    predict = make_predict(setup.model, normalise, layout=setup.layout, flip=flip)
    parts = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    images = dict(zip(parts, setup.inputs.splits, strict=True))
    logits = {name: predict(best, on_device(images[name], setup.layout)) for name in parts}
    calibration, summary = _calibrate(setup.config, logits, dataset)
    for name, part in parts.items():
        metrics = classification_metrics(calibration.moved(logits[name]), part.labels)
        summary |= {f"{name}/{metric}": value for metric, value in metrics.items()}
    predicted = calibration.probabilities(logits["test"])
    on_host = fetch(best)
    network, _ = make_network(setup.config, description)
    explained = functools.partial(explain, network, on_host)
    run_on_first(
        lambda: _keep_predictions(folder, dataset.test, logits["test"], predicted, explained)
    )
    step = int(end.state.step)
    return summary | {
        "majority_fraction": summary["test/majority_fraction"],
        **confusion_summary(dataset.test.labels, predicted.argmax(axis=1), setup.num_classes),
        "class_names": list(dataset.class_names),
        "best_step": end.stopping.best_step,
        "steps": step,
        "epochs": step / setup.steps_per_epoch,
        "stopped_early": step < setup.num_steps,
        "skipped_steps": int(end.state.skipped.num),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(best.params)),
        "num_skipped": len(dataset.skipped),
        "seed": setup.config.seed,
        "params_sha256": _sha256(on_host.params),
        "versions": _versions(),
    }


def _sha256(params: Params) -> str:
    """Return the SHA-256 over all parameters in the order of their paths: name, shape, bytes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        values = np.ascontiguousarray(leaf, dtype="<f4")
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _calibrate(
    config: Config, logits: dict[str, np.ndarray], dataset: Dataset
) -> tuple[Calibration, dict[str, Any]]:
    """Fit a calibration on the validation images; return it with what the summary says of it."""
    shift = config.train.calibration == "shift"
    # A decision that moves is to be right by what the run is judged by.
    balanced = config.train.monitor == "val/balanced_accuracy"
    alike = config.data.balance != "none" or (shift and balanced)
    about = {"temperature": None, "shift": [], "classes_alike": alike}
    about |= {"test/ece": None, "test/ece_calibrated": None}
    if not all(np.isfinite(values).all() for values in logits.values()):
        return Calibration(), about
    labels, weights = dataset.test.labels, weights_of(dataset.test.labels, alike=alike)

    def error(calibration: Calibration) -> float:
        scores = calibration.probabilities(logits["test"])
        return reliability(scores, labels, weights).error

    found = fit_calibration(logits["val"], dataset.validation.labels, shift=shift, alike=alike)
    return found, about | {
        "temperature": found.temperature,
        "shift": list(found.shift),
        "test/ece": error(Calibration()),
        "test/ece_calibrated": error(found),
    }


def _keep_predictions(
    folder: RunFolder,
    test: Split,
    logits: np.ndarray,
    scores: np.ndarray,
    explain: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Keep every test prediction, and the pictures of the most confident mistakes.

    Args:
      folder: of the run.
      test: the test images.
      logits: of all of them.
      scores: their calibrated probabilities.
      explain: `(uint8 images, classes) -> attributions`, of as many as there is time for.
    """
    said = scores.argmax(axis=1)
    right = said == test.labels
    worst, best = most_confident(scores, ~right), most_confident(scores, right)
    # Of the successes of all classes alike; then mistakes and successes by turns.
    chosen = np.concatenate([worst[:NUM_EXPLAINED], by_turns(best, said)[:NUM_EXPLAINED]])
    chosen = by_turns(chosen, right)
    attributions = explain(test.images[chosen], said[chosen])
    explained = chosen[: len(attributions)]
    with atomic_write(folder.predictions) as draft, draft.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(test.names, dtype=np.str_),
            labels=test.labels,
            logits=logits,
            probabilities=scores.astype(np.float32),
            mistakes=worst[:NUM_MISTAKES],
            mistake_images=test.images[worst[:NUM_MISTAKES]],
            explained=explained,
            explained_images=test.images[explained],
            attributions=attributions,
        )
