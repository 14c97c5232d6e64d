"""Evaluation: the logits of every image, what they say about a classifier, and the batch norms'
statistics over a whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxdnn.data import Images, ImagesInMemory
from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model
from jaxdnn.training.sharding import Layout, one_device, share_of_process
from jaxdnn.training.step import Variables

# A matrix has as many entries as the square of this.
MOST_IN_MATRIX = 200
MOST_CONFUSED = 100

# images as they are kept -> float32 batch
Normalise = Callable[[Array], Array]
Labels = Int[np.ndarray, " example"]


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Return the share of examples that are recognised, in [0, 1]."""
    return float(np.mean(labels == predicted))


def recalls(labels: Labels, predicted: Labels, num_classes: int) -> Float[np.ndarray, " label"]:
    """Return the share recognised of every class, in [0, 1]; NaN of one that does not occur."""
    totals = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[labels == predicted], minlength=num_classes)
    return np.where(totals > 0, hits / np.maximum(totals, 1), np.nan)


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Return the mean over the classes that occur of the share recognised, in [0, 1]."""
    return float(np.nanmean(recalls(labels, predicted, int(labels.max()) + 1)))


def majority_fraction(predicted: Labels) -> float:
    """Return the share of the commonest prediction: 1 for a network that always says the same."""
    return float(np.bincount(predicted).max() / len(predicted))


def confusion_matrix(
    labels: Labels, predicted: Labels, num_classes: int
) -> Int[np.ndarray, "label predicted"]:
    """Count examples by label (row) and predicted class (column)."""
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(
    labels: Labels, predicted: Labels, num_pairs: int = MOST_CONFUSED
) -> list[list[int]]:
    """Return the commonest mistakes as [label, predicted, examples], the commonest first."""
    wrong = labels != predicted
    pairs, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    commonest = np.argsort(-counts, kind="stable")[:num_pairs]
    return [[*map(int, pairs[pair]), int(counts[pair])] for pair in commonest]


def confusion_summary(labels: Labels, predicted: Labels, num_classes: int) -> dict[str, object]:
    """Return what summary.json says of the mistakes, whose size does not grow as classes squared.

    Returns:
      `recalls` by class, None for one that does not occur; `most_confused`, see that; `confusion`,
      the matrix, None for more than MOST_IN_MATRIX classes.
    """
    shares = recalls(labels, predicted, num_classes)
    small = num_classes <= MOST_IN_MATRIX
    return {
        "recalls": [None if np.isnan(share) else float(share) for share in shares],
        "most_confused": most_confused(labels, predicted),
        "confusion": confusion_matrix(labels, predicted, num_classes).tolist() if small else None,
    }


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
    if logits.shape[1] == 2:
        return logits - logits[:, ::-1]
    rows, top = np.arange(len(logits)), logits.argmax(axis=1)
    all_but_top = logits.copy()
    all_but_top[rows, top] = -np.inf
    rest = np.logaddexp.reduce(all_but_top, axis=1)
    total = np.logaddexp(rest, logits[rows, top])[:, None]
    # Only the top class can have a share above a half, of which 1 - p would lose digits.
    shares = np.minimum(np.exp(logits - total), 0.5)
    odds = logits - total - np.log1p(-shares)
    odds[rows, top] = logits[rows, top] - rest
    return odds


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
    on_device = jnp.asarray(logits)
    predicted = np.asarray(predictions(on_device))
    losses = cross_entropy(on_device, jnp.asarray(labels))
    loss = float(np.mean(np.asarray(losses, np.float64)))
    values = (
        loss,
        accuracy(labels, predicted),
        balanced_accuracy(labels, predicted),
        auc(labels, logits),
        majority_fraction(predicted),
    )
    return dict(zip(names, values, strict=True))


def on_device(images: Images, layout: Layout | None = None) -> Images:
    """Put an array on every device; a stream stays what it is."""
    if images.is_streamed:
        return images
    return ImagesInMemory((layout or one_device()).place(images.in_memory()))


def _located(
    images: Images, batches: Int[np.ndarray, "batch index"], layout: Layout
) -> Iterator[tuple[Array, Array]]:
    """Yield for each batch an array on the devices, and the places of the batch in it."""
    if not images.is_streamed:
        array = images.in_memory()
        yield from ((array, layout.shard(jnp.asarray(batch))) for batch in batches)
        return
    mine = batches[:, share_of_process(batches.shape[1])]
    places = layout.place(np.arange(batches.shape[1], dtype=np.int32))
    for decoded in images.batches(mine):
        yield layout.join(decoded), places


def make_predict(
    model: Model,
    normalise: Normalise,
    *,
    batch_size: int = 256,
    layout: Layout | None = None,
    flip: bool = False,
) -> Callable[[Variables, Images], np.ndarray]:
    """Return `(variables, uint8 images) -> logits`, one row for each image, on the host.

    It goes through the images in batches; the last one is filled up with copies of the last image,
    which are cut off again, so that every image counts once. Every process gets all logits. If
    `flip`, they are the mean of those of each image and its mirror image.
    """
    layout = layout or one_device()

    @jax.jit
    def logits_of(variables: Variables, images: Array, indices: Array) -> Array:
        batch = normalise(images[indices])
        params = layout.gather(variables.params, len(batch))
        logits = model.apply(params, variables.batch_stats, batch).logits
        if flip:
            mirrored = model.apply(params, variables.batch_stats, batch[:, :, ::-1]).logits
            logits = (logits + mirrored) / 2
        return layout.replicate(logits)

    def predict(variables: Variables, images: Images) -> np.ndarray:
        num, size = len(images), min(batch_size, len(images))
        size = -(-size // layout.num_devices) * layout.num_devices
        indices = np.arange(-(-num // size) * size, dtype=np.int32).clip(max=num - 1)
        located = _located(images, indices.reshape(-1, size), layout)
        logits = [logits_of(variables, array, places) for array, places in located]
        return np.concatenate([np.asarray(rows) for rows in logits])[:num]

    return predict


def make_estimate_batch_stats(
    model: Model,
    normalise: Normalise,
    batches: Int[np.ndarray, "batch index"],
    layout: Layout | None = None,
) -> Callable[[Variables, Images], BatchStats]:
    """Return `(variables, uint8 images) -> batch_stats` over the whole training set.

    The lecture's other way to test under batch norm: instead of running averages, mean and variance
    over the whole training set, pooled over batches that are each normalised by their own.

    Args:
      model: made with `norm_momentum=0`, so that it returns each batch's own statistics.
      normalise: makes the network's float32 batch of images as they are kept.
      batches: one epoch of indices, composed as in training. (Images come sorted by class: without
        shuffling a batch would hold one class, whose statistics stand for no other.)
      layout: the devices that share each batch; by default one.
    """
    layout = layout or one_device()

    @jax.jit
    def own_stats(variables: Variables, images: Array, indices: Array) -> BatchStats:
        batch = normalise(images[indices])
        params = layout.gather(variables.params, len(batch))
        output = model.apply(params, variables.batch_stats, batch, training=True)
        return layout.replicate(output.batch_stats)

    def estimate(variables: Variables, images: Images) -> BatchStats:
        located = _located(images, batches, layout)
        stats = [own_stats(variables, array, places) for array, places in located]
        return pool(jax.tree.map(lambda *leaves: jnp.stack(leaves), *stats))

    return estimate


def pool(stats: BatchStats) -> BatchStats:
    """Pool stacked means and variances of equal batches: Var = E var + Var mean.

    Args:
      stats: tree whose leaves `mean` and `var` have a leading axis over batches.
    """
    if not isinstance(stats, dict):
        raise TypeError(f"statistics are nested dicts of mean and var; got {type(stats).__name__}")
    if set(stats) == {"mean", "var"}:
        mean, var = stats["mean"], stats["var"]
        return {"mean": mean.mean(0), "var": var.mean(0) + mean.var(0)}
    return {name: pool(inner) for name, inner in stats.items()}
