"""The optimizer as one optax chain: penalties, clipping, momentum, decay.

The lecture's penalties are added to the mean loss J0 of m training examples, over kernels only:

    J = J0 + l2 / 2m * sum w² + l1 / 2m * sum |w|

so that the chain adds (l2 * w + l1 * sign(w) / 2) / m to the gradient of each kernel. Biases,
norms and trained slopes are not penalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdnn.options import OptimizerOptions

Params = Any


def is_kernel(path: tuple[Any, ...], _: Any = None) -> bool:
    """Tell whether a path of a parameter tree names a kernel."""
    return jax.tree_util.keystr(path[-1:], simple=True) == "kernel"


def kernel_mask(params: Params) -> Any:
    """Return a tree like `params` that is True at kernels."""
    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _add_l1(strength: float) -> optax.GradientTransformation:
    """Return the transformation that adds strength * sign(w) to every update."""

    def update(updates: Params, params: Params | None) -> Params:
        if params is None:
            raise ValueError("add_l1 needs the params: call update(updates, state, params)")
        return jax.tree.map(lambda g, w: g + strength * jnp.sign(w), updates, params)

    return optax.stateless(update)


def make_schedule(
    options: OptimizerOptions, *, steps_per_epoch: int, num_steps: int
) -> optax.Schedule:
    """Return `step -> learning rate`, decay times warm-up.

    Args:
      options: `schedule` and its rates; the learning rate is that before decay.
      steps_per_epoch: 1 or more; the default of `decay_steps`.
      num_steps: 1 or more; after so many the cosine has come down to 0.

    References:
      SGDR: Stochastic gradient descent with warm restarts (Loshchilov and Hutter, 2017).
    """
    rate = options.learning_rate
    decay = {
        "constant": optax.constant_schedule(rate),
        "exponential_decay": optax.exponential_decay(
            rate,
            options.decay_steps or steps_per_epoch,
            options.decay_rate,
            staircase=options.staircase,
        ),
        "inverse_time_decay": lambda step: rate / (1 + options.decay_rate * step),
        "cosine_decay": optax.cosine_decay_schedule(rate, num_steps),
    }[options.schedule]
    if options.warmup_steps == 0:
        return decay
    return lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / options.warmup_steps)


class Slow(NamedTuple):
    """Parameters with a learning rate of their own.

    Attributes:
      is_slow: tells by its path in the tree whether a parameter is one of them.
      schedule: `step -> learning rate` of these.
    """

    is_slow: Callable[[tuple[Any, ...]], bool]
    schedule: optax.Schedule


def _scale_by_rates(schedule: optax.Schedule, slow: Slow | None) -> optax.GradientTransformation:
    if slow is None:
        return optax.scale_by_learning_rate(schedule)

    def label(path: tuple[Any, ...], _: Any) -> str:
        return "slow" if slow.is_slow(path) else "rest"

    return optax.partition(
        {
            "slow": optax.scale_by_learning_rate(slow.schedule),
            "rest": optax.scale_by_learning_rate(schedule),
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def make_optimizer(
    options: OptimizerOptions,
    schedule: optax.Schedule,
    *,
    num_examples: int,
    slow: Slow | None = None,
) -> optax.GradientTransformation:
    """Return the chain: L2, L1, clipping, then SGD or Adam, then the learning rate.

    Args:
      options: penalties, clipping, momentum and kind of optimizer; 0 or None leaves one out.
      schedule: `step -> learning rate`, as of `make_schedule`.
      num_examples: m of the penalties, the number of training examples; 1 or more.
      slow: parameters with another learning rate; None for the same everywhere.

    References:
      Adam: A method for stochastic optimization (Kingma and Ba, 2015).
      Incorporating Nesterov momentum into Adam (Dozat, 2016).
    """
    transforms = []
    if options.l2:
        transforms.append(optax.add_decayed_weights(options.l2 / num_examples, mask=kernel_mask))
    if options.l1:
        transforms.append(optax.masked(_add_l1(options.l1 / (2 * num_examples)), kernel_mask))
    if options.clip_norm:
        transforms.append(optax.clip_by_global_norm(options.clip_norm))
    momentum = options.resolved_momentum
    if options.optimizer == "adam":
        transforms.append(optax.scale_by_adam(b1=momentum, nesterov=options.nesterov))
    elif momentum:
        transforms.append(optax.trace(momentum, nesterov=options.nesterov))
    return optax.chain(*transforms, _scale_by_rates(schedule, slow))
