"""What a run keeps of its settings and its data before it starts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jaxdnn.config import save_config
from jaxdnn.errors import InputError
from jaxdnn.run_folder import RunFolder, write_json
from jaxdnn.training.setup import Setup


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
