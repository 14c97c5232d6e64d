"""The loss of a batch and its gradient, in one piece or in portions, in either precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model, Output, Params
from jaxdnn.training.sharding import Layout

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
