"""One step of training, and many of them in one compiled program.

    images, labels -> augment, normalise, mix -> loss -> gradient -> update -> new state

A batch may come in microbatches, one after the other; the network may calculate in bfloat16; and a
step whose loss or gradient is not finite may be left out. What is random follows from the run's
key, the epoch and the step's number alone (`keys.py`): a restart repeats the same run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxdnn.losses import cross_entropy, predictions, smooth, soft_cross_entropy
from jaxdnn.models import BatchStats, Model, Output, Params
from jaxdnn.training.keys import epoch_key, run_keys, step_keys
from jaxdnn.training.sharding import Layout, one_device

OnNan = Literal["stop", "skip", "halve-lr"]

MAX_IN_A_ROW = 25
"""So many skipped steps in a row are no accident; the run stops."""

Tree = TypeVar("Tree")


class Variables(NamedTuple):
    """What makes a network of a model.

    Attributes:
      params: what is trained, nested dicts of float32 arrays.
      batch_stats: running averages of the batch norms, nested dicts of mean and var.
    """

    params: Params
    batch_stats: BatchStats


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


class Skipped(NamedTuple):
    """The steps that were left out.

    Attributes:
      num: how many since the run began.
      in_a_row: how many since the last step that was taken.
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
        """Return what is known after the step of this number, from 1 on, good or not."""
        return Skipped(
            self.num + ~is_good,
            jnp.where(is_good, 0, self.in_a_row + 1),
            jnp.where(is_good, self.last, step),
        )


class Average(NamedTuple):
    """A running average of the network over the steps taken, each weighed decay times the next.

    Attributes:
      sums: (1 - decay) sum of decay^(steps since) times the network, as `Variables`.
      weight: the same sum of ones, ().

    References:
      Acceleration of stochastic approximation by averaging (Polyak and Juditsky, 1992).
      Adam: A method for stochastic optimization (Kingma and Ba, 2015), for the division by what the
      weights sum up to.
    """

    sums: Variables
    weight: Array

    @classmethod
    def none(cls, variables: Variables) -> Average:
        """Return the average before the first step."""
        return cls(jax.tree.map(jnp.zeros_like, variables), jnp.zeros(()))

    def plus(self, variables: Variables, decay: float) -> Average:
        """Return the average with the network after one more step."""
        now = Average(variables, jnp.ones(()))
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, self, now)

    def value(self) -> Variables:
        """Return the network, after one step or more."""
        return jax.tree.map(lambda leaf: leaf / self.weight, self.sums)


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: number of steps taken so far, ().
      params: what is trained, nested dicts of float32 arrays.
      batch_stats: running averages of the batch norms.
      opt_state: what the optax chain remembers.
      sums: loss and right answers in the current epoch.
      diverged: the loss of the last step was not finite, or beyond the limit; if such steps are
        skipped, too many were in a row.
      skipped: the steps that were left out.
      average: of the network over the steps; None where nobody asked for one.
    """

    step: Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    sums: Sums
    diverged: Array
    skipped: Skipped
    average: Average | None = None

    @property
    def variables(self) -> Variables:
        """The network in its present state."""
        return Variables(self.params, self.batch_stats)

    @property
    def evaluated(self) -> Variables:
        """The network to evaluate, keep and predict with; its average, after a step or more."""
        return self.variables if self.average is None else self.average.value()


def make_init(
    model: Model, optimizer: optax.GradientTransformation, *, averages: bool = False
) -> Callable[[Array], TrainState]:
    """Return `key -> TrainState` before the first step."""
    return lambda key: start_state(*model.init(key), optimizer, averages=averages)


def start_state(
    params: Params,
    batch_stats: BatchStats,
    optimizer: optax.GradientTransformation,
    *,
    averages: bool = False,
) -> TrainState:
    """Return the state before the first step, from given weights, with their average if asked."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        sums=Sums.zero(),
        diverged=jnp.zeros((), bool),
        skipped=Skipped.none(),
        average=Average.none(Variables(params, batch_stats)) if averages else None,
    )


# (variables, key, images, labels, probes=None) -> (loss, output)
Loss = Callable[..., tuple[Array, Output]]


def mix(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Mix each image of a batch, and its target, with another one's: mixup.

    The share of the others is the same for the whole batch, drawn from Beta(alpha, alpha) and at
    most a half: to exchange the two of every pair does not change what a batch holds.

    Args:
      key: decides on pairs and share.
      images: (batch, ...) floats.
      targets: (batch, class) what the probability of each class should be.
      alpha: above 0; the larger, the nearer the shares are to a half.

    References:
      mixup: Beyond empirical risk minimization (Zhang, Cisse, Dauphin and Lopez-Paz, 2018).
    """
    share_key, pairs_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha)
    share = jnp.minimum(share, 1 - share)
    others = jax.random.permutation(pairs_key, len(images))

    def mixed(x: Array) -> Array:
        return x + share.astype(x.dtype) * (x[others] - x)

    return mixed(images), mixed(targets)


def make_loss(
    model: Model,
    class_weights: Array,
    *,
    dtype: Any = jnp.float32,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
) -> Loss:
    """Return the weighed mean loss of a batch in training, without the penalties.

    Args:
      model: gives the logits.
      class_weights: (class,) weight of each class in the loss.
      dtype: what the network calculates in. Its parameters and statistics are float32, and so is
        the loss (Micikevicius et al., "Mixed Precision Training", 2018; bfloat16 has float32's
        range, so that no gradient needs to be scaled).
      label_smoothing: share of each label that is spread over all classes, in [0, 1).
      mixup: alpha of `mix`, 0 for none.
    """

    def loss_of(
        variables: Variables,
        key: Array,
        images: Array,
        labels: Array,
        probes: dict[str, Array] | None = None,
    ) -> tuple[Array, Output]:
        targets = smooth(labels, len(class_weights), label_smoothing)
        if mixup:
            key, mix_key = jax.random.split(key)
            images, targets = mix(mix_key, images, targets, mixup)
        params, images = jax.tree.map(lambda x: x.astype(dtype), (variables.params, images))
        output = model.apply(
            params, variables.batch_stats, images, training=True, key=key, probes=probes
        )
        logits = output.logits.astype(jnp.float32)
        if mixup or label_smoothing:
            return jnp.mean(soft_cross_entropy(logits, class_weights * targets)), output
        return jnp.mean(class_weights[labels] * cross_entropy(logits, labels)), output

    return loss_of


class Gradient(NamedTuple):
    """What a batch says.

    Attributes:
      loss: weighed mean, without the penalties.
      num_correct: predictions that are right.
      batch_stats: running averages, moved.
      grads: dloss/dparams, a tree like the parameters.
    """

    loss: Array
    num_correct: Array
    batch_stats: BatchStats
    grads: Params


# (key or keys, uint8 batch) -> float32 batch
Prepare = Callable[[Array, Array], Array]
# (variables, prepare_key, apply_key, images, labels) -> Gradient
MeasureGradient = Callable[[Variables, Array, Array, Array, Array], Gradient]


def _make_gradient(loss_of: Loss, prepare: Prepare, layout: Layout) -> MeasureGradient:
    def measure(
        variables: Variables, prepare_key: Array, apply_key: Array, images: Array, labels: Array
    ) -> Gradient:
        batch = prepare(prepare_key, images)

        def of_params(params: Params) -> tuple[Array, Output]:
            gathered = variables._replace(params=layout.gather(params, len(labels)))
            return loss_of(gathered, apply_key, batch, labels)

        (loss, output), grads = jax.value_and_grad(of_params, has_aux=True)(variables.params)
        num_correct = jnp.sum(predictions(output.logits) == labels)
        return Gradient(loss, num_correct, output.batch_stats, layout.keep(grads))

    return measure


def _accumulate(measure: MeasureGradient, layout: Layout) -> MeasureGradient:
    """Average over microbatches, the first axis of images and labels, one after the other.

    Loss and gradient are those of all together; batch norm and dropout see one at a time.
    """

    def measure_all(
        variables: Variables, prepare_key: Array, apply_key: Array, images: Array, labels: Array
    ) -> Gradient:
        num, size = labels.shape
        # The images are augmented as those of one large batch would be.
        keys = jax.random.split(prepare_key, num * size).reshape(num, size)

        def add(so_far: Gradient, microbatch: tuple[Array, ...]) -> tuple[Gradient, None]:
            index, own_keys, own_images, own_labels = microbatch
            now = variables._replace(batch_stats=so_far.batch_stats)
            key = jax.random.fold_in(apply_key, index)
            found = measure(now, own_keys, key, own_images, own_labels)
            total = Gradient(
                so_far.loss + found.loss,
                so_far.num_correct + found.num_correct,
                found.batch_stats,
                layout.keep(jax.tree.map(jnp.add, so_far.grads, found.grads)),
            )
            return total, None

        zero = Gradient(
            jnp.zeros(()),
            jnp.zeros((), jnp.int32),
            variables.batch_stats,
            jax.tree.map(jnp.zeros_like, variables.params),
        )
        total, _ = lax.scan(add, zero, (jnp.arange(num), keys, images, labels))
        grads = jax.tree.map(lambda grad: grad / num, total.grads)
        return total._replace(loss=total.loss / num, grads=grads)

    return measure_all


# (key, state, uint8 images, labels) -> state
TrainStep = Callable[[Array, TrainState, Array, Array], TrainState]


def make_step(
    loss_of: Loss,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare,
    loss_limit: float,
    layout: Layout | None = None,
    num_microbatches: int = 1,
    on_nan: OnNan = "stop",
    ema_decay: float = 0.0,
) -> TrainStep:
    """Return one step.

    Args:
      loss_of: what to make small, as of `make_loss`.
      optimizer: turns gradients into updates.
      prepare: `(key, uint8 batch) -> float32 batch`.
      loss_limit: a batch's loss beyond it counts as divergence.
      layout: the devices that share each batch; by default one.
      num_microbatches: the first axis of images and labels where not 1.
      on_nan: what becomes of a step that diverged.
      ema_decay: what a step keeps of the state's average, in [0, 1).
    """
    layout = layout or one_device()
    gradient_of = _make_gradient(loss_of, prepare, layout)
    if num_microbatches > 1:
        gradient_of = _accumulate(gradient_of, layout)

    def step(key: Array, state: TrainState, images: Array, labels: Array) -> TrainState:
        found = gradient_of(state.variables, *step_keys(key, state.step), images, labels)
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
        after = after._replace(params=optax.apply_updates(state.params, updates))
        if state.average is not None:
            moved = state.average.plus(after.variables, ema_decay)
            was_taken = after.skipped.num == state.skipped.num
            after = after._replace(average=tree_where(was_taken, moved, state.average))
        return layout.keep(after)

    return step


def is_good(loss: Array, grads: Any, loss_limit: float) -> Array:
    """Tell whether a loss is within its limit and every gradient finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]
    return (loss <= loss_limit) & jnp.stack(finite).all()


def rate_factor(on_nan: OnNan, num_skipped: Array | int) -> Array | float:
    """Return what the learning rate is multiplied by after so many skipped steps."""
    return 0.5**num_skipped if on_nan == "halve-lr" else 1.0


def tree_where(condition: Array, ours: Tree, theirs: Tree) -> Tree:
    """Return one tree or the other, without what is not finite in the one left out."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), ours, theirs)


def _leave_out(before: TrainState, after: TrainState, good: Array) -> TrainState:
    """Return the state after a step, or where that was not good the one before, a step older."""
    skipped = before.skipped.after(after.step, good)
    kept = tree_where(good, after, before)
    diverged = skipped.in_a_row >= MAX_IN_A_ROW
    return kept._replace(step=after.step, skipped=skipped, diverged=diverged)


# key -> (steps, batch) indices of an epoch's images
Order = Callable[[Array], Array]


def make_indices(
    order: Order, *, key: Array, layout: Layout | None = None, num_microbatches: int = 1
) -> Callable[[int], Array]:
    """Return `epoch -> (steps, batch) indices`, compiled; those of the latest epoch are kept.

    To draw an order can take as long as a step, and an epoch may be trained in many calls.

    Args:
      order: `key -> (steps, batch)` indices of an epoch.
      key: the run's key, from which `keys.py` makes all others.
      layout: the devices, of which each gets its part of every batch.
      num_microbatches: where not 1, the indices are (steps, microbatch, batch).
    """
    order_key, _ = run_keys(key)
    layout = layout or one_device()

    def draw(epoch: Array) -> Array:
        rows = order(epoch_key(order_key, epoch))
        return rows if num_microbatches == 1 else rows.reshape(len(rows), num_microbatches, -1)

    drawn, axis = jax.jit(draw), 1 if num_microbatches == 1 else 2
    return functools.lru_cache(maxsize=1)(lambda epoch: layout.shard(drawn(epoch), axis))


def make_loop(step: TrainStep, *, key: Array, steps_per_epoch: int) -> Callable[..., TrainState]:
    """Return `(state, images, labels, indices of the epoch, num_steps) -> state`.

    It takes up to `num_steps` steps, not beyond the current epoch, and stops at the first that
    diverged, with `state.step` after it. Compiled once, it serves any number of steps; all images,
    uint8, and labels are on every device.

    Args:
      step: takes one step.
      key: the run's key, from which `keys.py` makes all others.
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
        take_one = functools.partial(take_step, images=images, labels=labels, indices=indices)
        return repeat_until(last, take_one, state)

    return loop


# (state, num_steps, step=None) -> state
Train = Callable[..., TrainState]


def make_train(
    step: TrainStep,
    indices_of: Callable[[int], Array],
    images: Array,
    labels: Array,
    *,
    key: Array,
    steps_per_epoch: int,
) -> Train:
    """Return `(state, num_steps, step=None) -> state`, compiled, its state donated.

    To read the state's step waits for the device: a caller that knows it gives it. See `make_loop`
    for the rest.
    """
    compiled = jax.jit(make_loop(step, key=key, steps_per_epoch=steps_per_epoch), donate_argnums=0)

    def train(state: TrainState, num_steps: int, step: int | None = None) -> TrainState:
        epoch = (int(state.step) if step is None else step) // steps_per_epoch
        return compiled(state, images, labels, indices_of(epoch), num_steps)

    return train


def repeat_until(
    last: Array, take_step: Callable[[TrainState], TrainState], state: TrainState
) -> TrainState:
    """Take steps until `last` of them are taken, or one diverged; inside jit."""
    return lax.while_loop(lambda state: (state.step < last) & ~state.diverged, take_step, state)


def start_of_epoch(state: TrainState, steps_per_epoch: int) -> TrainState:
    """Set the sums back to zero where an epoch starts."""
    starts = state.step % steps_per_epoch == 0
    return state._replace(sums=tree_where(starts, Sums.zero(), state.sums))
