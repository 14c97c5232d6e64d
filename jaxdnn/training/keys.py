"""How a run's seed becomes the key of everything random in it.

    seed -> weights
         -> run -> order + epoch -> the images of each step
                -> steps + step  -> augmentation
                                 -> dropout and random slopes

All of it follows from the seed, the epoch and the step alone, so that a restart repeats the run.
"""

from __future__ import annotations

import jax
from jax import Array


def seed_keys(seed: int) -> tuple[Array, Array]:
    """Return the keys of the weights and of the run."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    return init_key, run_key


def run_keys(run_key: Array) -> tuple[Array, Array]:
    """Return the keys of the order of the images and of the steps."""
    order_key, steps_key = jax.random.split(run_key)
    return order_key, steps_key


def epoch_key(order_key: Array, epoch: Array) -> Array:
    """Return the key of the order of one epoch."""
    return jax.random.fold_in(order_key, epoch)


def step_keys(steps_key: Array, step: Array) -> tuple[Array, Array]:
    """Return the keys of one step's augmentation and of the network in it."""
    prepare_key, apply_key = jax.random.split(jax.random.fold_in(steps_key, step))
    return prepare_key, apply_key
