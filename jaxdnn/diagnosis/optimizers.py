"""Optimizers by a short name, such as `sgd:0.1`."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxdnn.errors import InputError

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
}


def make_optimizer(spec: str | optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer.

    Args:
      spec: `name:learning rate` with a name of `OPTIMIZERS`, or an optax transformation.

    Raises:
      InputError: the name is unknown or the rate no positive number.
    """
    if isinstance(spec, optax.GradientTransformation):
        return spec
    name, _, rate = str(spec).partition(":")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if name not in OPTIMIZERS or not 0 < value < float("inf"):
        known = ", ".join(OPTIMIZERS)
        raise InputError(
            f"optimizer {spec!r} came; give name:learning_rate with one of {known}, such as sgd:0.1"
        )
    return OPTIMIZERS[name](value)
