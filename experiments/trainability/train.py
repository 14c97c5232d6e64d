"""Train a network to a fixed budget, whole in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxdnn.diagnosis import Scales

from .family import Choice, chosen_optimizer
from .judge import mean_loss

BATCH_SIZE = 128
# Mean loss over so many last steps decides.
NUM_LAST = 30


def make_train(forward: Callable[..., Array], num_steps: int) -> Callable[..., Array]:
    """Return the compiled `(params, choice, images, labels, key, scales) -> final loss`.

    Args:
      forward: `(params, inputs, choice) -> logits`.
      num_steps: the budget.
    """

    @jax.jit
    def train(
        params: Any,
        choice: Choice,
        images: Array,
        labels: Array,
        key: Array,
        scales: Scales | None = None,
    ) -> Array:
        scales = Scales() if scales is None else scales
        chain = optax.chain(
            optax.scale(scales.gradient),
            chosen_optimizer(choice.optimizer),
            optax.scale(scales.rate),
        )

        def step(carry: Any, index: Array) -> Any:
            params, state = carry
            picks = jax.random.randint(
                jax.random.fold_in(key, index), (BATCH_SIZE,), 0, len(labels)
            )
            loss, grads = jax.value_and_grad(
                lambda params: mean_loss(forward(params, images[picks], choice), labels[picks])
            )(params)
            updates, state = chain.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        _, losses = lax.scan(step, (params, chain.init(params)), jnp.arange(num_steps))
        return losses[-NUM_LAST:].mean()

    return train
