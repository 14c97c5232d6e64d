"""Roots of a function of one number, in a bracket, as a formula that jits and vmaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_MOST_STEPS = 100


class _State(NamedTuple):
    step: Array
    x: Array
    f: Array
    other: Array
    f_other: Array
    last: Array
    f_last: Array
    share: Array


def find_root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Return where `function` changes sign in [low, high], to rounding; else an end.

    Bisection, and inverse quadratic interpolation where three values allow it. One evaluation a
    step, those at the ends too, so that the function is compiled once.

    References:
      Chandrupatla, "A New Hybrid Quadratic/Bisection Algorithm for Finding the Zero of a Nonlinear
      Function without Using Derivatives", 1997.
    """
    one = jnp.ones_like(low)
    start = _State(np.int32(0) * low.astype(np.int32), high, one, low, one, low, one, one)

    def unfinished(state: _State) -> Array:
        wide = jnp.abs(state.x - state.other) > 2 * _rounding(state.x)
        return (state.step < 2) | (wide & (state.f != 0) & (state.step < _MOST_STEPS))

    def advance(state: _State) -> _State:
        x = jnp.where(state.step == 0, low, state.x + state.share * (state.other - state.x))
        x = jnp.where(state.step == 1, high, x)
        f = function(x)
        same = jnp.sign(f) == jnp.sign(state.f)
        last, f_last = (
            jnp.where(same, a, b) for a, b in ((state.x, state.other), (state.f, state.f_other))
        )
        other, f_other = (
            jnp.where(same, a, b) for a, b in ((state.other, state.x), (state.f_other, state.f))
        )
        first = state.step == 0
        second = state.step == 1
        other = jnp.where(first, low, jnp.where(second, low, other))
        f_other = jnp.where(first, f, jnp.where(second, state.f, f_other))
        last, f_last = jnp.where(second, low, last), jnp.where(second, state.f, f_last)
        share = jnp.where(second, 0.5, _share(x, f, other, f_other, last, f_last))
        return _State(state.step + np.int32(1), x, f, other, f_other, last, f_last, share)

    final = lax.while_loop(unfinished, advance, start)
    return jnp.where(jnp.abs(final.f) <= jnp.abs(final.f_other), final.x, final.other)


def _share(x: Array, f: Array, other: Array, f_other: Array, last: Array, f_last: Array) -> Array:
    """Return how far to go from x to `other`."""

    def ratio(a: Array, b: Array) -> Array:
        return a / jnp.where(b == 0, 1.0, b)

    xi, phi = ratio(x - other, last - other), ratio(f - f_other, f_last - f_other)
    fits = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & (f != f_last) & (f_last != f_other)
    share = ratio(f, f_other - f) * ratio(f_last, f_other - f_last) + ratio(
        last - x, other - x
    ) * ratio(f, f_last - f) * ratio(f_other, f_last - f_other)
    least = jnp.minimum(jnp.abs(ratio(_rounding(x), other - x)), 0.5)
    return jnp.clip(jnp.where(fits, share, 0.5), least, 1 - least)


def _rounding(x: Array) -> Array:
    return 2e-16 * jnp.maximum(1.0, jnp.abs(x))
