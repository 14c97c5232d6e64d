"""What the optimizer makes of the first gradient, layer by layer.

    relative step = RMS(update) / RMS(W)
    shortfall     = RMS(update of a gradient of length 1) / RMS(update)

Plain SGD takes the gradient as it is. Adam and its like divide by the gradient's own size, so that
only ratios count, until it comes near their epsilon: from there on the steps shrink with it. So the
shortfall is 1 where an optimizer ignores the gradient's scale, and grows below epsilon.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.reduce import host_rms

# An optimizer is relative if gradients of these lengths, over all parameters, give the same step.
# They lie on this side of any gradient clipping.
_LENGTHS = (1e-3, 1.0)
_RELATIVE = 0.5


class FirstStep(NamedTuple):
    """The optimizer's first update, by layer.

    Attributes:
      relative: RMS of the update over that of the kernel; NaN for a kernel of zeros.
      lost: share of the kernel's entries that the update should change, and rounding does not.
      shortfall: how many times smaller the update is than for a gradient of length 1; NaN where the
        optimizer is not relative.
    """

    relative: tuple[float, ...]
    lost: tuple[float, ...]
    shortfall: tuple[float, ...]

    @property
    def greatest(self) -> int:
        """The layer that moves furthest for its size; 0 where none moves."""
        return int(np.nanargmax([0.0, *self.relative])) - 1 if self._moves else 0

    @property
    def _moves(self) -> bool:
        return bool(np.nanmax([0.0, *self.relative]) > 0)


def take_first_step(seen: Examination, optimizer: optax.GradientTransformation) -> FirstStep:
    """Return what the optimizer makes of the gradient that was measured.

    Args:
      seen: of the network.
      optimizer: that will train it.
    """
    length = math.sqrt(sum(_square(grad) for grad in jax.tree.leaves(seen.grads)))

    @jax.jit
    def updates_of(factor: jax.Array | float) -> Any:
        grads = jax.tree.map(lambda g, p: (factor * _wide(g)).astype(p.dtype), seen.grads, params)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    params = jax.tree.map(jnp.asarray, seen.params)
    kernels = _kernels(seen, params)
    updates = _kernels(seen, updates_of(1.0))
    unit = 1 / length if 0 < length < math.inf else math.nan
    short, long = (_kernels(seen, updates_of(size * unit)) for size in _LENGTHS)
    return FirstStep(
        tuple(_ratio(host_rms(u), host_rms(w)) for u, w in zip(updates, kernels, strict=True)),
        tuple(_lost(u, w) for u, w in zip(updates, kernels, strict=True)),
        tuple(
            _ratio(host_rms(large), host_rms(own)) if _is_relative(small, large) else math.nan
            for own, small, large in zip(updates, short, long, strict=True)
        ),
    )


def _kernels(seen: Examination, tree: Any) -> list[np.ndarray]:
    """Return what a tree like the parameters holds for each layer's kernel."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    picked = [(leaves[site.leaf[0]], site.leaf[1]) for site in seen.graph.layers]
    return [leaf if part is None else leaf[part] for leaf, part in picked]


def _lost(update: np.ndarray, kernel: np.ndarray) -> float:
    moved = np.asarray(optax.apply_updates(kernel, update)) != kernel
    asked = update != 0
    return float(1 - moved[asked].mean()) if asked.any() else 0.0


def _is_relative(short: np.ndarray, long: np.ndarray) -> bool:
    growth = _ratio(host_rms(long), host_rms(short))
    return growth < (_LENGTHS[1] / _LENGTHS[0]) ** _RELATIVE


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _square(x: Any) -> float:
    return float(np.sum(np.square(np.asarray(x, np.float64))))


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32))
