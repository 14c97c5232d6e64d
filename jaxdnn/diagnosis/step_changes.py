"""Changes of what the optimizer does: its rate, the gradient's scale, the numbers' formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.first_step import FirstStep
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.rehearsal import Scales
from jaxdnn.diagnosis.remedies import Change
from jaxdnn.diagnosis.result import Cause

# A step of so many times the weights is a common one; only where to start looking.
_USUAL_STEP = 1e-3
# An epsilon should be so much smaller than the gradient.
_WELL_BELOW = 100.0
_MOST_SCALE = 1e12


def step_changes(
    measured: Measurement, params: Any, causes: Sequence[Cause], first: FirstStep
) -> Iterator[Change]:
    """Changes that leave the network as it is.

    Args:
      measured: of one pass.
      params: of the network.
      causes: that were found.
      first: the optimizer's first step.
    """
    for rate in _rates(first):
        words = f"{rate:g} x the learning rate"
        code = f"learning_rate = {rate:g} * learning_rate"
        yield Change(words, code, params, {}, Scales(rate=rate), kind="rate")
    shortfall = max(np.nan_to_num(first.shortfall))
    if shortfall > _WELL_BELOW:
        scale = min(_power(10, _WELL_BELOW * shortfall), _MOST_SCALE)
        words = f"{scale:g} x the loss, or the optimizer's epsilon / {scale:g}"
        code = f"optimizer = optax.adam(learning_rate, eps=1e-8 / {scale:g})"
        yield Change(words, code, params, {}, Scales(gradient=scale), kind="gradient")
    if any(cause.cause == "underflow" for cause in causes):
        scale = _power(2, 1 / max(filter(math.isfinite, measured.delta.values())))
        words = f"a loss scale of {scale:g}: on the way back only, divided out in float32"
        code = f"grads = jax.tree.map(lambda g: g / {scale:g}, jax.grad(scaled_loss)(params))"
        yield Change(words, code, params, {}, Scales(loss=scale), kind="loss scale")
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, _wider(leaf)), params)
    if any(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype != b.dtype, params, wide))):
        words = "parameters in float32; the network calculates as before"
        yield Change(words, "param_dtype=jnp.float32", wide, {}, kind="float32")


def _rates(first: FirstStep) -> list[float]:
    """Return factors on the learning rate, the one that makes a usual step first."""
    relative = first.relative[first.greatest]
    usual = _power(10, _USUAL_STEP / relative) if 0 < relative < math.inf else 1.0
    factors = {float(f"{x:.3g}") for x in (0.1, 0.01, 0.1 * usual, usual, 10 * usual)} - {1.0}
    return sorted(factors, key=lambda factor: (abs(math.log10(factor / usual)), factor))


def _power(base: int, x: float) -> float:
    """Return the power of a base that is nearest to x."""
    return float(base) ** round(math.log(x, base))


def _wider(leaf: Any) -> Any:
    dtype = jnp.result_type(leaf)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.promote_types(dtype, jnp.float32) if is_float else dtype
