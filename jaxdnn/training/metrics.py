"""What a classifier's logits say about it: loss, accuracies, area under the curve, confusion."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdnn.losses import cross_entropy, predictions


def accuracy(confusion: Int[np.ndarray, "label predicted"]) -> float:
    """Return the share of examples on the diagonal, in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def balanced_accuracy(confusion: Int[np.ndarray, "label predicted"]) -> float:
    """Return the mean over the classes that occur of the share recognised, in [0, 1]."""
    totals = confusion.sum(axis=1)
    occurs = totals > 0
    return float(np.mean(np.diag(confusion)[occurs] / totals[occurs]))


def majority_fraction(confusion: Int[np.ndarray, "label predicted"]) -> float:
    """Return the share of the commonest prediction: 1 for a network that always says the same."""
    return float(confusion.sum(axis=0).max() / confusion.sum())


def confusion_matrix(
    labels: Int[np.ndarray, " example"], predicted: Int[np.ndarray, " example"], num_classes: int
) -> Int[np.ndarray, "label predicted"]:
    """Count examples by label (row) and predicted class (column)."""
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def area_under_curve(positive: np.ndarray, scores: Float[np.ndarray, " example"]) -> float:
    """Return the probability that a positive example scores above a negative one, ties half.

    NaN where one of the two is missing. Hanley and McNeil, "The Meaning and Use of the Area under
    a Receiver Operating Characteristic (ROC) Curve", 1982.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = mid_ranks[inverse][positive].sum()
    above = rank_sum - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def log_odds(logits: Float[np.ndarray, "example output"]) -> Float[np.ndarray, "example class"]:
    """Return log p / (1 - p) of every class, in float64.

    Ranks examples as their probabilities do, but still tells apart those that round to 1.
    """
    logits = np.asarray(logits, np.float64)
    if logits.shape[1] == 1:
        return np.concatenate([-logits, logits], axis=1)
    others = [np.delete(logits, c, axis=1) for c in range(logits.shape[1])]
    return logits - np.stack([np.logaddexp.reduce(rest, axis=1) for rest in others], axis=1)


def auc(labels: Int[np.ndarray, " example"], logits: Float[np.ndarray, "example output"]) -> float:
    """Return the area under the ROC curve; with k > 2 classes the mean of one against the rest."""
    scores = log_odds(logits)
    if scores.shape[1] == 2:
        return area_under_curve(labels == 1, scores[:, 1])
    areas = [area_under_curve(labels == c, scores[:, c]) for c in np.unique(labels)]
    return float(np.mean(areas))


def classification_metrics(
    logits: Float[np.ndarray, "example output"], labels: Int[np.ndarray, " example"]
) -> dict[str, float]:
    """Return `loss` (nats), `accuracy`, `balanced_accuracy`, `auc` and `majority_fraction`.

    Logits that are not finite give NaN for all of them: such a network has no predictions.
    """
    names = ("loss", "accuracy", "balanced_accuracy", "auc", "majority_fraction")
    if not np.isfinite(logits).all():
        return dict.fromkeys(names, float("nan"))
    num_classes = max(2, logits.shape[1])
    on_device = jnp.asarray(logits)
    confusion = confusion_matrix(labels, np.asarray(predictions(on_device)), num_classes)
    losses = cross_entropy(on_device, jnp.asarray(labels))
    loss = float(np.mean(np.asarray(losses, np.float64)))
    values = (
        loss,
        accuracy(confusion),
        balanced_accuracy(confusion),
        auc(labels, logits),
        majority_fraction(confusion),
    )
    return dict(zip(names, values, strict=True))
