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

from jaxdnn.models import BatchStats, Model, Params
from jaxdnn.training.gradient import Prepare, make_gradient, make_loss
from jaxdnn.training.keys import epoch_key, run_keys, step_keys
from jaxdnn.training.sharding import Layout, one_device
from jaxdnn.training.skip import MAX_IN_A_ROW, OnNan, Skipped, choose, is_good, rate_factor


class Sums(NamedTuple):
    """Sums over the examples of the current epoch so far."""

    loss: Array
    num_correct: Array
    num_examples: Array

    @classmethod
    def zero(cls) -> Sums:
        """Return the sums before the first example."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def plus(self, mean_loss: Array, num_correct: Array, num_examples: int) -> Sums:
        """Return the sums with one more batch."""
        return Sums(
            self.loss + mean_loss * num_examples,
            self.num_correct + num_correct,
            self.num_examples + num_examples,
        )


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: number of steps taken.
      params: trained.
      batch_stats: running averages of the batch norms.
      opt_state: of the optax chain.
      sums: of the current epoch.
      diverged: the loss of the last step was not finite, or beyond the limit; if such steps are
        skipped, too many were in a row.
      skipped: the steps that were left out.
    """

    step: Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    sums: Sums
    diverged: Array
    skipped: Skipped


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
    return TrainState(
        step, params, batch_stats, optimizer.init(params), Sums.zero(), diverged, Skipped.none()
    )


# (key, state, uint8 images, labels) -> state
Step = Callable[[Array, TrainState, Array, Array], TrainState]


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare,
    class_weights: Array,
    loss_limit: float,
    layout: Layout | None = None,
    num_portions: int = 1,
    dtype: Any = jnp.float32,
    on_nan: OnNan = "stop",
) -> Step:
    """Return one step.

    Args:
      model: what to train.
      optimizer: turns gradients into updates.
      prepare: `(key, uint8 batch) -> float32 batch`.
      class_weights: (class,) weight of each class in the loss.
      loss_limit: a batch's loss beyond it counts as divergence.
      layout: of the devices; by default one.
      num_portions: portions of each batch, the first axis of images and labels where not 1.
      dtype: what the network calculates in.
      on_nan: what becomes of a step that diverged.
    """
    layout = layout or one_device()
    loss_of = make_loss(model, class_weights, dtype=dtype)
    gradient_of = make_gradient(loss_of, prepare, layout, num_portions=num_portions)

    def step(key: Array, state: TrainState, images: Array, labels: Array) -> TrainState:
        prepare_key, apply_key = step_keys(key, state.step)
        found = gradient_of(state.params, state.batch_stats, prepare_key, apply_key, images, labels)
        updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
        sums = state.sums.plus(found.loss, found.num_correct, labels.size)
        after = state._replace(
            step=state.step + 1, batch_stats=found.batch_stats, opt_state=opt_state, sums=sums
        )
        if on_nan == "stop":
            after = after._replace(diverged=~(found.loss <= loss_limit))
        else:
            good = is_good(found.loss, found.grads, loss_limit)
            after = _leave_out(state, after, good)
            factor = rate_factor(on_nan, after.skipped.num)
            updates = jax.tree.map(lambda u: jnp.where(good, factor * u, 0), updates)
        return layout.keep(after._replace(params=optax.apply_updates(state.params, updates)))

    return step


def _leave_out(before: TrainState, after: TrainState, good: Array) -> TrainState:
    """Return the state after a step, or where that was not good the one before, a step older."""
    skipped = before.skipped.after(after.step, good)
    kept = choose(good, after, before)
    diverged = skipped.in_a_row >= MAX_IN_A_ROW
    return kept._replace(step=after.step, skipped=skipped, diverged=diverged)


# epoch -> (steps, batch) indices of the images
Indices = Callable[[int], Array]
# (state, images, labels, num_steps, step=None) -> state
Train = Callable[..., TrainState]


def make_indices(
    order: Callable[[Array], Array],
    *,
    key: Array,
    layout: Layout | None = None,
    num_portions: int = 1,
) -> Indices:
    """Return `epoch -> indices`, compiled; those of the latest epoch are kept.

    To draw an order can take as long as a step, and an epoch may be trained in many calls.

    Args:
      order: `key -> (steps, batch)` indices of an epoch.
      key: of the run.
      layout: of the devices; each gets its part of every batch.
      num_portions: where not 1, the indices are (steps, portion, batch).
    """
    order_key, _ = run_keys(key)
    layout = layout or one_device()

    def draw(epoch: Array) -> Array:
        rows = order(epoch_key(order_key, epoch))
        return rows if num_portions == 1 else rows.reshape(len(rows), num_portions, -1)

    drawn, axis = jax.jit(draw), 1 if num_portions == 1 else 2
    return functools.lru_cache(maxsize=1)(lambda epoch: layout.cut(drawn(epoch), axis))


def make_loop(step: Step, *, key: Array, steps_per_epoch: int) -> Callable[..., TrainState]:
    """Return `(state, images, labels, indices of the epoch, num_steps) -> state`.

    It takes up to `num_steps` steps, not beyond the current epoch, and stops at the first that
    diverged, with `state.step` after it.

    Args:
      step: takes one step.
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

    return loop


def make_train(step: Step, indices_of: Indices, *, key: Array, steps_per_epoch: int) -> Train:
    """Return `(state, images, labels, num_steps, step=None) -> state`, compiled, its state donated.

    See `make_loop` for what it does. One program serves any number of steps. All images, uint8, and
    labels are on every device. To read the state's step waits for the device: a caller that knows
    it gives it.

    Args:
      step: takes one step.
      indices_of: `epoch -> (steps, batch)` indices of its images.
      key: of the run.
      steps_per_epoch: rows of the indices.
    """
    compiled = jax.jit(make_loop(step, key=key, steps_per_epoch=steps_per_epoch), donate_argnums=0)

    def train(
        state: TrainState, images: Array, labels: Array, num_steps: int, step: int | None = None
    ) -> TrainState:
        indices = indices_of((int(state.step) if step is None else step) // steps_per_epoch)
        return compiled(state, images, labels, indices, num_steps)

    return train


def start_of_epoch(state: TrainState, steps_per_epoch: int) -> TrainState:
    """Set the sums back to zero where an epoch starts."""
    starts = state.step % steps_per_epoch == 0
    sums = jax.tree.map(lambda total: jnp.where(starts, jnp.zeros_like(total), total), state.sums)
    return state._replace(sums=sums)
