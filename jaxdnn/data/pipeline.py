"""From images on the device to normalised batches: order, augmentation, normalisation.

The order of an epoch is a pure function of the seed's key and the epoch: there is no iterator
whose state could be lost, and a run continues at any step as if it had never stopped.

Mean and standard deviation follow from how often each 8-bit value occurs. Counts of whole numbers
add up exactly: in whatever chunks the images come, the result is the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int64, UInt8
from PIL import Image

from jaxdnn.data.augmentation import make_augment
from jaxdnn.errors import InputError
from jaxdnn.options import AugmentOptions

NUM_VALUES = 256
_CHUNK = 64


class PixelStats(NamedTuple):
    """Mean and standard deviation of each channel of the training images, black 0 to white 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def count_values(
    images: UInt8[np.ndarray, "num height width channel"],
) -> Int64[np.ndarray, "channel 256"]:
    """Count how often each value occurs in each of 1 or 3 channels."""
    _, height, width, channels = images.shape
    counts = np.zeros((channels, NUM_VALUES), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        tall = chunk.reshape(len(chunk) * height, width, channels)
        # Pillow counts several times as fast as NumPy, which makes 64-bit numbers of them first.
        picture = Image.fromarray(tall[..., 0] if channels == 1 else tall)
        counts += np.reshape(picture.histogram(), counts.shape)
    return counts


def pixel_stats_from_counts(counts: Int64[np.ndarray, "channel 256"]) -> PixelStats:
    """Return mean and standard deviation of values / 255 that occur so often."""
    values = np.arange(NUM_VALUES) / 255
    if not counts.any():  # No readable training image; whoever counts them will say so.
        return PixelStats((0.0,) * len(counts), (1.0,) * len(counts))
    means = [float(np.average(values, weights=weights)) for weights in counts]
    stds = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
        for mean, weights in zip(means, counts, strict=True)
    ]
    # A channel without variation would be divided by 0; it is left at 0 instead.
    return PixelStats(tuple(means), tuple(std or 1.0 for std in stds))


def normalise_images(images: Array, pixel_stats: PixelStats) -> Array:
    """Return (images - mean) / std; float images in [0, 1], or uint8."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return (images - jnp.array(pixel_stats.mean)) / jnp.array(pixel_stats.std)


def make_prepare(
    options: AugmentOptions, pixel_stats: PixelStats
) -> Callable[[Array, Array], Array]:
    """Return `(key, uint8 batch) -> augmented, normalised float32 batch`.

    The key is one for the batch, or (batch,) keys, one for each image.
    """
    augment = make_augment(options, pixel_stats.mean)

    def prepare(key: Array, images: Array) -> Array:
        keys = key if key.shape else jax.random.split(key, images.shape[0])
        return normalise_images(jax.vmap(augment)(keys, images), pixel_stats)

    return prepare


def resolve_batch_size(
    batch_size: int | Literal["full"], num_train: int, *, accumulate: int = 1
) -> int:
    """Return the number of examples in a microbatch.

    Args:
      batch_size: of a microbatch; `full` for as many as there are.
      num_train: training images, 1 or more.
      accumulate: microbatches of a step.

    Raises:
      InputError: a step needs more images than the training set has.
    """
    if accumulate > num_train:
        raise InputError(
            f"--accumulate {accumulate} takes more microbatches for a step than there are training "
            f"images, {num_train:,}; give fewer"
        )
    most = num_train // accumulate
    if batch_size == "full":
        return most
    if batch_size * accumulate > num_train:
        times = f" times --accumulate {accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"--batch-size {batch_size}{times} exceeds the {num_train} training images; "
            f"give {most} or less, or full"
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
