"""From images on the device to standardised batches: order, augmentation, standardisation.

The order of an epoch is a pure function of the seed's key and the epoch: there is no iterator
whose state could be lost, and a run continues at any step as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.data.augment import make_augment
from jaxdnn.data.pixel_stats import PixelStats
from jaxdnn.errors import InputError
from jaxdnn.options import AugmentOptions


def normalise_images(images: Array, pixel_stats: PixelStats) -> Array:
    """Return (images - mean) / std; float images in [0, 1], or uint8."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return (images - jnp.array(pixel_stats.mean)) / jnp.array(pixel_stats.std)


def make_prepare(
    options: AugmentOptions, pixel_stats: PixelStats
) -> Callable[[Array, Array], Array]:
    """Return `(key, uint8 batch) -> augmented, standardised float32 batch`.

    The key is one for the batch, or (batch,) keys, one for each image.
    """
    augment = make_augment(options)

    def prepare(key: Array, images: Array) -> Array:
        keys = key if key.shape else jax.random.split(key, images.shape[0])
        return normalise_images(jax.vmap(augment)(keys, images), pixel_stats)

    return prepare


def resolve_batch_size(batch_size: int | Literal["full"], num_train: int) -> int:
    """Return the number of examples in a batch.

    Raises:
      InputError: the batch is larger than the training set.
    """
    if batch_size == "full":
        return num_train
    if batch_size > num_train:
        raise InputError(
            f"--batch-size {batch_size} exceeds the {num_train} training images; "
            f"give {num_train} or less, or full"
        )
    return batch_size


def make_order(
    labels: np.ndarray, *, batch_size: int, balanced: bool, num_classes: int
) -> Callable[[Array], Array]:
    """Return `key of an epoch -> (steps, batch) indices of the training images`.

    A permutation without its last partial batch; or, `balanced`, batches that hold every class
    equally often (to one), each drawn with replacement from its class.
    """
    num_steps = len(labels) // batch_size
    shape = (num_steps, batch_size)
    if not balanced:
        return lambda key: _permuted(key, len(labels), shape)
    by_class = jnp.asarray(np.argsort(labels, kind="stable"), jnp.int32)
    counts = np.bincount(labels, minlength=num_classes)
    starts = jnp.asarray(np.concatenate([[0], np.cumsum(counts)[:-1]]), jnp.int32)

    def order(key: Array) -> Array:
        classes = (jnp.arange(num_steps * batch_size) % num_classes).reshape(shape)
        within = jax.random.randint(key, shape, 0, jnp.asarray(counts)[classes])
        return by_class[starts[classes] + within]

    return order


def _permuted(key: Array, num: int, shape: tuple[int, int]) -> Array:
    return jax.random.permutation(key, num)[: shape[0] * shape[1]].reshape(shape)
