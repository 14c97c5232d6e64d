"""A few optimizer steps on a copy of the parameters, on the one batch.

What counts is what the network learns by telling inputs apart. A network that gives all inputs the
same answer can still lower its loss, toward that of the best constant; so each loss is compared
with the loss at the batch's mean logits, and only the difference is progress:

    progress_n = loss(mean logits of step n) - loss(logits of step n)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxdnn.diagnosis.measure import Loss

# (params, inputs, key) -> logits
Forward = Callable[[Any, Any, Array | None], Any]


class Rehearsal(NamedTuple):
    """What happened, step by step.

    Attributes:
      loss: before each step.
      constant_loss: of the mean logits of each step.
      zero_loss: of logits that are all zero.
    """

    loss: Array | np.ndarray
    constant_loss: Array | np.ndarray
    zero_loss: Array | np.ndarray


def make_rehearsal(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation, *, num_steps: int
) -> Callable[..., Rehearsal]:
    """Return the compiled `(params, inputs, targets, key, rate) -> Rehearsal`.

    `rate`, 1 unless given, multiplies the updates: a learning rate that is tried.

    Args:
      forward: the network.
      loss: `(logits, targets) -> scalar`.
      optimizer: optax transformation.
      num_steps: how many steps to take.
    """

    @jax.jit
    def rehearse(
        params: Any, inputs: Any, targets: Any, key: Array, rate: Array | float = 1.0
    ) -> Rehearsal:
        def objective(params: Any, key: Array) -> tuple[Array, Array]:
            logits = forward(params, inputs, key)
            constant = jnp.broadcast_to(logits.mean(0, keepdims=True), logits.shape)
            return loss(logits, targets), loss(constant, targets)

        def step(carry: Any, index: Array) -> Any:
            params, state = carry
            differentiate = jax.value_and_grad(objective, has_aux=True)
            losses, grads = differentiate(params, jax.random.fold_in(key, index))
            updates, state = optimizer.update(grads, state, params)
            updates = jax.tree.map(lambda update: jnp.asarray(rate, update.dtype) * update, updates)
            return (optax.apply_updates(params, updates), state), losses

        start = (params, optimizer.init(params))
        _, (losses, constant) = lax.scan(step, start, jnp.arange(num_steps + 1))
        output = jax.eval_shape(forward, params, inputs, key)
        return Rehearsal(losses, constant, loss(jnp.zeros(output.shape, output.dtype), targets))

    return rehearse
