"""One step of training, and many of them in one compiled program.

What is random follows from the run's key, the epoch and the step's number alone (`keys.py`): a
restart repeats the same run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model, Output, Params
from jaxdnn.training.keys import epoch_key, run_keys, step_keys


class Sums(NamedTuple):
    """Sums over the examples of the current epoch so far."""

    loss: Array
    num_correct: Array
    num_examples: Array

    @classmethod
    def zero(cls) -> Sums:
        """Return the sums before the first example."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: number of steps taken.
      params: trained.
      batch_stats: running averages of the batch norms.
      opt_state: of the optax chain.
      sums: of the current epoch.
      diverged: the loss of the last step was not finite, or beyond the limit.
    """

    step: Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    sums: Sums
    diverged: Array


def make_init(
    model: Model, optimizer: optax.GradientTransformation
) -> Callable[[Array], TrainState]:
    """Return `key -> TrainState` before the first step."""
    return lambda key: start_state(*model.init(key), optimizer)


def start_state(
    params: Params, batch_stats: BatchStats, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, from given weights."""
    step = jnp.zeros((), jnp.int32)
    diverged = jnp.zeros((), bool)
    return TrainState(step, params, batch_stats, optimizer.init(params), Sums.zero(), diverged)


# (params, batch_stats, key, images, labels, probes) -> (loss, output)
Loss = Callable[..., tuple[Array, Output]]


def make_loss(model: Model, class_weights: Array) -> Loss:
    """Return the weighed mean loss of a batch in training, without the penalties."""

    def loss_of(
        params: Params,
        batch_stats: BatchStats,
        key: Array,
        images: Array,
        labels: Array,
        probes: dict[str, Array] | None = None,
    ) -> tuple[Array, Output]:
        output = model.apply(params, batch_stats, images, training=True, key=key, probes=probes)
        losses = cross_entropy(output.logits, labels)
        return jnp.mean(class_weights[labels] * losses), output

    return loss_of


# (key, state, uint8 images, labels) -> state
Step = Callable[[Array, TrainState, Array, Array], TrainState]


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Callable[[Array, Array], Array],
    class_weights: Array,
    loss_limit: float,
) -> Step:
    """Return one step.

    Args:
      model: what to train.
      optimizer: turns gradients into updates.
      prepare: `(key, uint8 batch) -> float32 batch`.
      class_weights: (class,) weight of each class in the loss.
      loss_limit: a batch's loss beyond it counts as divergence.
    """

    loss_of = make_loss(model, class_weights)

    def step(key: Array, state: TrainState, images: Array, labels: Array) -> TrainState:
        prepare_key, apply_key = step_keys(key, state.step)
        batch = prepare(prepare_key, images)
        (loss, output), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, apply_key, batch, labels
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        num_examples = labels.shape[0]
        num_correct = jnp.sum(predictions(output.logits) == labels)
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=output.batch_stats,
            opt_state=opt_state,
            sums=Sums(
                state.sums.loss + loss * num_examples,
                state.sums.num_correct + num_correct,
                state.sums.num_examples + num_examples,
            ),
            diverged=~(loss <= loss_limit),
        )

    return step


# epoch -> (steps, batch) indices of the images
Indices = Callable[[int], Array]
# (state, images, labels, num_steps) -> state
Train = Callable[[TrainState, Array, Array, int], TrainState]


def make_indices(order: Callable[[Array], Array], *, key: Array) -> Indices:
    """Return `epoch -> (steps, batch)` indices, compiled; those of the latest epoch are kept.

    To draw an order can take as long as a step, and an epoch may be trained in many calls.

    Args:
      order: `key -> (steps, batch)` indices of an epoch.
      key: of the run.
    """
    order_key, _ = run_keys(key)
    draw = jax.jit(lambda epoch: order(epoch_key(order_key, epoch)))
    return functools.lru_cache(maxsize=1)(draw)


def make_train(step: Step, indices_of: Indices, *, key: Array, steps_per_epoch: int) -> Train:
    """Return `(state, images, labels, num_steps) -> state`, compiled, its state donated.

    It takes up to `num_steps` steps, not beyond the current epoch, and stops at the first that
    diverged, with `state.step` after it. One program serves any number of steps. All images, uint8,
    and labels are on the device.

    Args:
      step: takes one step.
      indices_of: `epoch -> (steps, batch)` indices of its images.
      key: of the run.
      steps_per_epoch: rows of the indices.
    """
    _, steps_key = run_keys(key)

    def take_step(state: TrainState, images: Array, labels: Array, indices: Array) -> TrainState:
        batch = indices[state.step % steps_per_epoch]
        state = start_of_epoch(state, steps_per_epoch)
        return step(steps_key, state, images[batch], labels[batch])

    def loop(
        state: TrainState, images: Array, labels: Array, indices: Array, num_steps: Array
    ) -> TrainState:
        end_of_epoch = (state.step // steps_per_epoch + 1) * steps_per_epoch
        last = jnp.minimum(state.step + num_steps, end_of_epoch)
        return lax.while_loop(
            lambda state: (state.step < last) & ~state.diverged,
            lambda state: take_step(state, images, labels, indices),
            state,
        )

    compiled = jax.jit(loop, donate_argnums=0)

    def train(state: TrainState, images: Array, labels: Array, num_steps: int) -> TrainState:
        indices = indices_of(int(state.step) // steps_per_epoch)
        return compiled(state, images, labels, indices, num_steps)

    return train


def start_of_epoch(state: TrainState, steps_per_epoch: int) -> TrainState:
    """Set the sums back to zero where an epoch starts."""
    starts = state.step % steps_per_epoch == 0
    sums = jax.tree.map(lambda total: jnp.where(starts, jnp.zeros_like(total), total), state.sums)
    return state._replace(sums=sums)
