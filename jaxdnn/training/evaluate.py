"""Evaluation: the logits of every image, and the batch norms' statistics over a whole set."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.data.pipeline import Standard, standardise
from jaxdnn.models import BatchStats, Model, Params

Predict = Callable[[Params, BatchStats, Array], Array]


def make_predict(model: Model, standard: Standard, *, batch_size: int = 256) -> Predict:
    """Return the compiled `(params, batch_stats, uint8 images) -> logits`, one row for each image.

    It goes through the images in batches; the last one is filled up with copies of the last image,
    which are cut off again, so that every image counts once.
    """

    @jax.jit
    def predict(params: Params, batch_stats: BatchStats, images: Array) -> Array:
        size = min(batch_size, len(images))
        starts = jnp.arange(-(-len(images) // size)) * size

        def logits_from(start: Array) -> Array:
            batch = images[jnp.minimum(start + jnp.arange(size), len(images) - 1)]
            return model.apply(params, batch_stats, standardise(batch, standard)).logits

        logits = lax.map(logits_from, starts)
        return logits.reshape(-1, logits.shape[-1])[: len(images)]

    return predict


def make_estimate_batch_stats(
    model: Model, standard: Standard, *, batch_size: int
) -> Callable[[Params, BatchStats, Array], BatchStats]:
    """Return `(params, batch_stats, uint8 images) -> batch_stats` over all these images.

    The lecture's other way to test under batch norm: instead of running averages, mean and variance
    over the whole training set, pooled over batches that are each normalised by their own.

    Args:
      model: made with `norm_momentum=0`, so that it returns each batch's own statistics.
      standard: of the training images.
      batch_size: as in training; a last partial batch is left out, unless it is the only one.
    """

    @jax.jit
    def estimate(params: Params, batch_stats: BatchStats, images: Array) -> BatchStats:
        size = min(batch_size, len(images))
        # Shuffled once: images come sorted by class, and a batch of one class says nothing of all.
        shuffled = jax.random.permutation(jax.random.key(0), len(images))
        batches = shuffled[: len(images) // size * size].reshape(-1, size)

        def own_stats(batch: Array) -> BatchStats:
            inputs = standardise(images[batch], standard)
            return model.apply(params, batch_stats, inputs, training=True).batch_stats

        return pool(lax.map(own_stats, batches))

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
