"""Small tasks that can be learnt, and how a network of the zoo is handed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NUM_CLASSES = 3
NUM_WORDS = 12
KEY = jax.random.key(0)


class Call(NamedTuple):
    """What somebody would write: `diagnose(*arguments, **options)`.

    Attributes:
      arguments: (model, inputs, targets), or (loss function, params, batch).
      options: such as `loss`.
    """

    arguments: tuple[Any, Any, Any]
    options: Mapping[str, Any] = {}


class Entry(NamedTuple):
    """A network of the zoo.

    Attributes:
      library: `nnx`, `linen`, `equinox`, `haiku`, `stax`, `plain`; `door` for a loss function.
      make: builds network and data.
      optimizer: with which it trains, as `diagnose` takes it.
      learnt: the loss below which it has learnt; None for half of that of the best constant.
      flags: what its own training says to the model, such as `train=True`.
    """

    library: str
    make: Callable[[], Call]
    optimizer: str = "adam:0.003"
    learnt: float | None = None
    flags: Mapping[str, Any] = {}


def normal(seed: int, *shape: int) -> Array:
    """Standard normal float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def vectors(rows: int = 64) -> tuple[Array, Array]:
    """Vectors of 8, and which of the first three entries is the greatest."""
    x = normal(0, rows, 8)
    return x, x[:, :NUM_CLASSES].argmax(1)


def images(rows: int = 24, size: int = 8) -> tuple[Array, Array]:
    """Images (row, height, width, 3), each a picture of its class under noise."""
    labels = jnp.arange(rows) % NUM_CLASSES
    pictures = normal(1, NUM_CLASSES, size, size, 3)
    return pictures[labels] + 0.5 * normal(2, rows, size, size, 3), labels


def channels_first(rows: int = 24) -> tuple[Array, Array]:
    """The same images (row, 3, height, width)."""
    x, labels = images(rows)
    return x.transpose(0, 3, 1, 2), labels


def masks() -> tuple[Array, Array]:
    """Images and, for each pixel, whether its red is above zero."""
    x, _ = images()
    return x, (x[..., :1] > 0).astype(jnp.float32)


def sentences(rows: int = 32, length: int = 8) -> tuple[Array, Array]:
    """Words (row, place), and which third of the vocabulary the first word is from."""
    words = jnp.asarray(np.random.default_rng(3).integers(0, NUM_WORDS, (rows, length)))
    return words, words[:, 0] // (NUM_WORDS // NUM_CLASSES)


def text(rows: int = 32, length: int = 9) -> Array:
    """Words (row, place) that count up, each row in steps of its own."""
    start, step = jnp.arange(rows) % NUM_WORDS, 1 + jnp.arange(rows) % 3
    return (start[:, None] + step[:, None] * jnp.arange(length)) % NUM_WORDS


def next_words() -> tuple[Array, Array]:
    """All words but the last, and all but the first."""
    words = text()
    return words[:, :-1], words[:, 1:]


def waves(rows: int = 32, length: int = 12) -> tuple[Array, Array]:
    """Series (row, time, 2) at one of three frequencies."""
    labels = jnp.arange(rows) % NUM_CLASSES
    time = jnp.arange(length) / length * 2 * jnp.pi
    phase = normal(4, rows, 1)
    angle = (1 + labels[:, None]) * time + phase
    x = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
    return x + 0.1 * normal(5, rows, length, 2), labels


def coordinates(rows: int = 64) -> tuple[Array, Array]:
    """Points of a square, and the colour there of a smooth picture."""
    xy = jnp.asarray(np.random.default_rng(6).uniform(-1, 1, (rows, 2)).astype(np.float32))
    return xy, jnp.sin(3 * xy @ normal(7, 2, 3))


def point_sets(rows: int = 32) -> tuple[Array, Array]:
    """Sets (row, point, 2) around one of three radii."""
    labels = jnp.arange(rows) % NUM_CLASSES
    return (1 + labels[:, None, None]) * normal(8, rows, 6, 2), labels
