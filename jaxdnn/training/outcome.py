"""The outcome of a run: its best weights on all images, tested once, and the predictions."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.data import Split
from jaxdnn.losses import probabilities
from jaxdnn.models import Params
from jaxdnn.processes import fetch, run_on_first
from jaxdnn.run_folder import RunFolder, atomic_write
from jaxdnn.training.evaluate import make_predict, on_device
from jaxdnn.training.fit import Progress
from jaxdnn.training.flat import flatten
from jaxdnn.training.metrics import classification_metrics, confusion_matrix
from jaxdnn.training.setup import Setup

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
