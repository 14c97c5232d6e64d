"""[step] One step of training, and many of them in one compiled program.

What is random follows from the run's key, the epoch and the step's number alone (`keys.py`): a
restart repeats the same run.


[skip] What a step does whose loss or gradient is not finite: it is left out, if the run says so.

[gradient] The loss of a batch and its gradient, in one piece or in portions, in either precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model, Output, Params
from jaxdnn.training.keys import epoch_key, run_keys, step_keys
from jaxdnn.training.sharding import Layout, one_device

OnNan = Literal["stop", "skip", "halve-lr"]

MAX_IN_A_ROW = 25
"""So many skipped steps in a row are no accident; the run stops."""

Tree = TypeVar("Tree")


class Skipped(NamedTuple):
    """The steps that were left out.

    Attributes:
      num: in all.
      in_a_row: up to now.
      last: number of the last one, from 1 on; 0 for none.
    """

    num: Array
    in_a_row: Array
    last: Array

    @classmethod
    def none(cls) -> Skipped:
        """Return that nothing was left out."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in cls._fields))

    def after(self, step: Array, is_good: Array) -> Skipped:
        """Return what is known after one more step.

        Args:
          step: its number, from 1 on.
          is_good: whether it was taken.
        """
        return Skipped(
            self.num + ~is_good,
            jnp.where(is_good, 0, self.in_a_row + 1),
            jnp.where(is_good, self.last, step),
        )


def is_good(loss: Array, grads: Any, loss_limit: float) -> Array:
    """Tell whether a loss is within its limit and every gradient finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]
    return (loss <= loss_limit) & jnp.stack(finite).all()


def choose(condition: Array, ours: Tree, theirs: Tree) -> Tree:
    """Return one tree or the other, without what is not finite in the one left out."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), ours, theirs)


def rate_factor(on_nan: OnNan, num_skipped: Array | int) -> Array | float:
    """Return what the learning rate is multiplied by after so many skipped steps."""
    return 0.5**num_skipped if on_nan == "halve-lr" else 1.0


# (params, batch_stats, key, images, labels, probes) -> (loss, output)
Loss = Callable[..., tuple[Array, Output]]
# (key or keys, uint8 batch) -> float32 batch
Prepare = Callable[[Array, Array], Array]

Tree = TypeVar("Tree")


class Gradient(NamedTuple):
    """What a batch says.

    Attributes:
      loss: weighed mean, without the penalties.
      num_correct: predictions that are right.
      batch_stats: running averages, moved.
      grads: of the loss.
    """

    loss: Array
    num_correct: Array
    batch_stats: BatchStats
    grads: Params


# (params, batch_stats, prepare_key, apply_key, images, labels) -> Gradient
MeasureGradient = Callable[..., Gradient]


def make_loss(model: Model, class_weights: Array, *, dtype: Any = jnp.float32) -> Loss:
    """Return the weighed mean loss of a batch in training, without the penalties.

    Args:
      model: the network.
      class_weights: (class,) weight of each class in the loss.
      dtype: what the network calculates in. Its parameters and statistics are float32, and so is
        the loss (Micikevicius et al., "Mixed Precision Training", 2018; bfloat16 has float32's
        range, so that no gradient needs to be scaled).
    """

    def loss_of(
        params: Params,
        batch_stats: BatchStats,
        key: Array,
        images: Array,
        labels: Array,
        probes: dict[str, Array] | None = None,
    ) -> tuple[Array, Output]:
        params, images = _cast((params, images), dtype)
        output = model.apply(params, batch_stats, images, training=True, key=key, probes=probes)
        losses = cross_entropy(output.logits.astype(jnp.float32), labels)
        return jnp.mean(class_weights[labels] * losses), output

    return loss_of


def _cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def make_gradient(
    loss_of: Loss, prepare: Prepare, layout: Layout, *, num_portions: int = 1
) -> MeasureGradient:
    """Return the gradient of a batch, or of one that comes in portions.

    Args:
      loss_of: of a batch.
      prepare: augments and standardises images.
      layout: of the run.
      num_portions: 1, or how many portions are the first axis of images and labels. The loss and
        the gradient are those of all portions together; batch norm and dropout see one at a time.
    """

    def of_portion(
        params: Params,
        batch_stats: BatchStats,
        prepare_key: Array,
        apply_key: Array,
        images: Array,
        labels: Array,
    ) -> Gradient:
        batch = prepare(prepare_key, images)

        def of_params(params: Params) -> tuple[Array, Output]:
            gathered = layout.gather(params, len(labels))
            return loss_of(gathered, batch_stats, apply_key, batch, labels)

        (loss, output), grads = jax.value_and_grad(of_params, has_aux=True)(params)
        num_correct = jnp.sum(predictions(output.logits) == labels)
        return Gradient(loss, num_correct, output.batch_stats, layout.keep(grads))

    return of_portion if num_portions == 1 else _accumulate(of_portion, layout)


def _accumulate(of_portion: MeasureGradient, layout: Layout) -> MeasureGradient:
    """Average over portions, one after the other."""

    def measure(
        params: Params,
        batch_stats: BatchStats,
        prepare_key: Array,
        apply_key: Array,
        images: Array,
        labels: Array,
    ) -> Gradient:
        num_portions, size = labels.shape
        # The images are augmented as those of one large batch would be.
        keys = jax.random.split(prepare_key, num_portions * size).reshape(num_portions, size)

        def add(so_far: Gradient, portion: tuple[Array, ...]) -> tuple[Gradient, None]:
            index, *of_batch = portion
            key = jax.random.fold_in(apply_key, index)
            own_keys, own_images, own_labels = of_batch
            found = of_portion(params, so_far.batch_stats, own_keys, key, own_images, own_labels)
            grads = jax.tree.map(jnp.add, so_far.grads, found.grads)
            total = Gradient(
                so_far.loss + found.loss,
                so_far.num_correct + found.num_correct,
                found.batch_stats,
                layout.keep(grads),
            )
            return total, None

        zero = Gradient(
            jnp.zeros(()),
            jnp.zeros((), jnp.int32),
            batch_stats,
            jax.tree.map(jnp.zeros_like, params),
        )
        portions = (jnp.arange(num_portions), keys, images, labels)
        total, _ = lax.scan(add, zero, portions)
        grads = jax.tree.map(lambda grad: grad / num_portions, total.grads)
        return total._replace(loss=total.loss / num_portions, grads=grads)

    return measure


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
