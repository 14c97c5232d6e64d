"""What was found in a data set, in a few lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdnn.data.stream import StreamedImages

if TYPE_CHECKING:
    from jaxdnn.data.dataset import Dataset

_CLASSES_SHOWN = 12
_SIZES_SHOWN = 5
_SKIPPED_SHOWN = 5


def told(dataset: Dataset) -> str:
    """Return what was found.

    Numbers of images by class and split, sizes and modes as stored, what is among the test images
    and among those to learn from, and the first images that were skipped.
    """
    lines = [_summary(dataset), *_classes(dataset), *dataset.inventory.told(_SIZES_SHOWN)]
    if dataset.leakage:
        lines.append(dataset.leakage)
    if dataset.skipped:
        first = "; ".join(f"{name}: {reason}" for name, reason in dataset.skipped[:_SKIPPED_SHOWN])
        more = "; …" if len(dataset.skipped) > _SKIPPED_SHOWN else ""
        lines.append(f"{len(dataset.skipped):,} skipped ({first}{more})")
    return "\n  ".join(lines)


def _summary(dataset: Dataset) -> str:
    images = dataset.train.images
    sides = " x ".join(map(str, images.shape[1:]))
    streamed = ", streamed" if isinstance(images, StreamedImages) else ""
    numbers = (
        f"{len(dataset.train.labels):,} to train",
        f"{len(dataset.validation.labels):,} to validate",
        f"{len(dataset.test.labels):,} to test",
    )
    return f"{dataset.origin}: {', '.join(numbers)}, {sides}{streamed}"


def _classes(dataset: Dataset) -> list[str]:
    num = len(dataset.class_names)
    parts = (dataset.train, dataset.validation, dataset.test)
    counts = np.stack([np.bincount(part.labels, minlength=num) for part in parts], axis=1)
    names = dataset.class_names[:_CLASSES_SHOWN]
    width = max(map(len, names))
    lines = [
        f"{name:{width}} " + "".join(f"{number:10,}" for number in numbers)
        for name, numbers in zip(names, counts, strict=False)
    ]
    if num > len(lines):
        least, most = counts.sum(axis=1).min(), counts.sum(axis=1).max()
        lines.append(f"… ({num - len(lines):,} more classes; {least:,} to {most:,} images in each)")
    return lines
