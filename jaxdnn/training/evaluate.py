"""Evaluation: the logits of every image, and the batch norms' statistics over a whole set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from jaxdnn.data import Images, ImagesInMemory, PixelStats, normalise_images
from jaxdnn.models import BatchStats, Model, Params
from jaxdnn.training.sharding import Layout, one_device, share_of_process

Predict = Callable[[Params, BatchStats, Images], np.ndarray]


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
        yield from ((array, layout.cut(jnp.asarray(batch))) for batch in batches)
        return
    mine = batches[:, share_of_process(batches.shape[1])]
    places = layout.place(np.arange(batches.shape[1], dtype=np.int32))
    for decoded in images.batches(mine):
        yield layout.join(decoded), places


def make_predict(
    model: Model, pixel_stats: PixelStats, *, batch_size: int = 256, layout: Layout | None = None
) -> Predict:
    """Return `(params, batch_stats, uint8 images) -> logits`, one row for each image, on the host.

    It goes through the images in batches; the last one is filled up with copies of the last image,
    which are cut off again, so that every image counts once. Every process gets all logits.
    """
    layout = layout or one_device()

    @jax.jit
    def logits_of(params: Params, batch_stats: BatchStats, images: Array, indices: Array) -> Array:
        batch = normalise_images(images[indices], pixel_stats)
        gathered = layout.gather(params, len(batch))
        return layout.keep_whole(model.apply(gathered, batch_stats, batch).logits)

    def predict(params: Params, batch_stats: BatchStats, images: Images) -> np.ndarray:
        num, size = len(images), min(batch_size, len(images))
        size = -(-size // layout.num_devices) * layout.num_devices
        indices = np.arange(-(-num // size) * size, dtype=np.int32).clip(max=num - 1)
        located = _located(images, indices.reshape(-1, size), layout)
        logits = [logits_of(params, batch_stats, array, places) for array, places in located]
        return np.concatenate([np.asarray(rows) for rows in logits])[:num]

    return predict


def make_estimate_batch_stats(
    model: Model,
    pixel_stats: PixelStats,
    batches: Int[np.ndarray, "batch index"],
    layout: Layout | None = None,
) -> Callable[[Params, BatchStats, Images], BatchStats]:
    """Return `(params, batch_stats, uint8 images) -> batch_stats` over the whole training set.

    The lecture's other way to test under batch norm: instead of running averages, mean and variance
    over the whole training set, pooled over batches that are each normalised by their own.

    Args:
      model: made with `norm_momentum=0`, so that it returns each batch's own statistics.
      standard: of the training images.
      batches: one epoch of indices, composed as in training. (Images come sorted by class: without
        shuffling a batch would hold one class, whose statistics stand for no other.)
      layout: of the devices; by default one.
    """
    layout = layout or one_device()

    @jax.jit
    def own_stats(
        params: Params, batch_stats: BatchStats, images: Array, indices: Array
    ) -> BatchStats:
        batch = normalise_images(images[indices], pixel_stats)
        gathered = layout.gather(params, len(batch))
        output = model.apply(gathered, batch_stats, batch, training=True)
        return layout.keep_whole(output.batch_stats)

    def estimate(params: Params, batch_stats: BatchStats, images: Images) -> BatchStats:
        located = _located(images, batches, layout)
        stats = [own_stats(params, batch_stats, array, places) for array, places in located]
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
