"""A few optimizer steps on a copy of the parameters, on the one batch.

What counts is what the network learns by telling inputs apart. A network that gives all inputs the
same answer can still lower its loss, toward that of the best constant; so each loss is compared
with the loss at the batch's mean logits, and only the difference is progress. Logits that are
random and large make it negative, though what is learnt may lie in them already; so their
deviations from the mean may be made smaller:

    progress_n = loss(mean logits of step n) - min over t of loss(mean + t (logits - mean)), t <= 1
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

# What the deviations of the logits from their mean are multiplied by.
SHRINKING = (0.5, 0.25, 0.125)
# Steps between looks at the loss; each waits for the device.
_CHECKED = 10
# (params, inputs, key) -> logits
Forward = Callable[[Any, Any, Array | None], Any]


class Scales(NamedTuple):
    """Factors to try, beside those of the network itself.

    Attributes:
      rate: on the updates, as a learning rate.
      gradient: on the gradient, as a factor on the loss.
      loss: on the loss on its way back alone: the gradient is divided by it again, in float32.
    """

    rate: float = 1.0
    gradient: float = 1.0
    loss: float = 1.0


class Rehearsal(NamedTuple):
    """What happened, step by step.

    Attributes:
      loss: before each step.
      shrunk_loss: the least that making each step's logits more alike gives.
      constant_loss: of the mean logits of each step.
      zero_loss: of logits that are all zero.
    """

    loss: Array | np.ndarray
    shrunk_loss: Array | np.ndarray
    constant_loss: Array | np.ndarray
    zero_loss: Array | np.ndarray


def make_rehearsal(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation, *, num_steps: int
) -> Callable[..., Rehearsal]:
    """Return `(params, inputs, targets, key, scales) -> Rehearsal`, its arrays on the host.

    Each step is a call: XLA's CPU takes 20 times as long for the gradient of a convolution inside
    a loop of its own.

    Args:
      forward: the network.
      loss: `(logits, targets) -> scalar`.
      optimizer: optax transformation.
      num_steps: how many steps to take.
    """
    step, init = jax.jit(_make_step(forward, loss, optimizer)), jax.jit(optimizer.init)

    def rehearse(
        params: Any, inputs: Any, targets: Any, key: Array, scales: Scales | None = None
    ) -> Rehearsal:
        carry, seen = (params, init(params)), []
        for index in range(num_steps + 1):
            carry, losses = step(carry, index, inputs, targets, key, scales or Scales())
            seen.append(losses)
            if index % _CHECKED == 0 and not np.isfinite(losses[0]):
                # Whatever comes, the score is 0.
                seen += [losses] * (num_steps - index)
                break
        return _gather(*np.array(jax.device_get(seen)).T)

    return rehearse


def make_scanned_rehearsal(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation, *, num_steps: int
) -> Callable[..., Rehearsal]:
    """Return `(params, inputs, targets, key) -> Rehearsal` as one program, for `vmap`.

    Args:
      forward: the network.
      loss: `(logits, targets) -> scalar`.
      optimizer: optax transformation.
      num_steps: how many steps to take.
    """
    step = _make_step(forward, loss, optimizer)

    def rehearse(params: Any, inputs: Any, targets: Any, key: Array) -> Rehearsal:
        start, indices = (params, optimizer.init(params)), jnp.arange(num_steps + 1)
        return _gather(
            *lax.scan(lambda c, i: step(c, i, inputs, targets, key, Scales()), start, indices)[1]
        )

    return rehearse


def _gather(loss: Any, shrunk: Any, constant: Any, zero: Any) -> Rehearsal:
    return Rehearsal(loss, shrunk, constant, zero[0])


def _make_step(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Any, tuple[Array, ...]]]:
    """Return one step; the carry is (params, state of the optimizer)."""

    def step(
        carry: Any, index: Array | int, inputs: Any, targets: Any, key: Array, scales: Scales
    ) -> Any:
        params, state = carry

        def objective(params: Any) -> tuple[Array, tuple[Array, ...]]:
            logits = forward(params, inputs, jax.random.fold_in(key, index))
            constant = jnp.broadcast_to(logits.mean(0, keepdims=True), logits.shape)
            value = loss(logits, targets)
            shrunk = [loss(_times(t, logits - constant) + constant, targets) for t in SHRINKING]
            others = loss(constant, targets), loss(jnp.zeros_like(logits), targets)
            return _times(scales.loss, value), (value, jnp.stack([value, *shrunk]).min(), *others)

        grads, losses = jax.grad(objective, has_aux=True)(params)
        grads = jax.tree.map(lambda grad: _times(scales.gradient / scales.loss, grad), grads)
        updates, state = optimizer.update(grads, state, params)
        updates = jax.tree.map(lambda update: _times(scales.rate, update), updates)
        return (optax.apply_updates(params, updates), state), losses

    return step


def _times(factor: float, x: Array) -> Array:
    return (factor * x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
