"""Stratified splits drawn by seed, and weights for unequal classes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from jaxdnn.data.source import Source
from jaxdnn.errors import InputError


def stratified_split(
    labels: Int[np.ndarray, " num"],
    fraction: float,
    seed: int,
    *,
    class_names: Sequence[str] | None = None,
) -> tuple[Int[np.ndarray, " num_kept"], Int[np.ndarray, " num_drawn"]]:
    """Draw a fraction of every class.

    Of a class with n items, fraction * n are drawn, rounded half up, but at least 1 and at most
    n - 1. What is drawn of one class depends on the seed, its label and n alone.

    Args:
      labels: class of each item, >= 0.
      fraction: share to draw, in (0, 1).
      seed: >= 0.
      class_names: by label, for the error message.

    Returns:
      Indices of the items kept and of those drawn, each sorted.

    Raises:
      InputError: the fraction is not in (0, 1), or a class has a single item.
    """
    if not 0 < fraction < 1:
        raise InputError(f"split fraction {fraction}; expected more than 0 and less than 1")
    is_drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = class_names[label] if class_names else f"with label {label}"
            raise InputError(
                f"class {name} has 1 image to split; expected at least 2, one for each side; "
                "add images or remove the class"
            )
        num_drawn = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        # Sorted uniform numbers: NumPy keeps their stream, but may change that of permutation.
        order = np.random.default_rng([seed, int(label)]).random(len(members)).argsort()
        is_drawn[members[order[:num_drawn]]] = True
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def class_weights(
    labels: Int[np.ndarray, " num"], num_classes: int
) -> Float32[np.ndarray, " num_classes"]:
    """Return n / (k n_c) for each class c: every class then weighs the same, 1 on average.

    Raises:
      InputError: a class has no items.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise InputError(f"no items of class {int(counts.argmin())}; expected some of every class")
    return (len(labels) / (num_classes * counts)).astype(np.float32)


def train_validation_test(
    source: Source, *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"], Int[np.ndarray, " test"]]:
    """Return the indices of each part: the source's own, or drawn from its training images.

    A missing test is drawn first, then a missing validation from the training images that are
    left.

    Raises:
      InputError: no training images, or too few of a class to draw from.
    """
    train, validation, test = (
        np.flatnonzero(np.isin(source.splits, names))
        for names in (["", "train"], ["validation"], ["test"])
    )
    if not len(train):
        raise InputError(
            f"no training images in {source.name}, only {len(validation)} to validate and "
            f"{len(test)} to test; expected a split named train; add one"
        )
    if not len(test):
        train, test = _drawn(source, train, test_fraction, seed)
    if not len(validation):
        train, validation = _drawn(source, train, validation_fraction, seed)
    return train, validation, test


def _drawn(
    source: Source, train: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    kept, drawn = stratified_split(
        source.labels[train], fraction, seed, class_names=source.class_names
    )
    return train[kept], train[drawn]
