"""Where signals settle: the fixed points of the variance map and of the correlation map.

V(q) - q is looked at on a grid of q from 1e-12 to 1e10 and each change of its sign is followed to
rounding, so that no fixed point is taken for granted. Below the grid, zero is a fixed point where
V(0) = 0; above it, a signal that still grows is said to grow without bound.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.propagation.float64 import in_float64
from jaxdnn.propagation.mean_field import (
    decorrelation,
    phi_moments,
    slope,
    variance_map,
)
from jaxdnn.propagation.nonlinearity import Phi, make_nonlinearity
from jaxdnn.propagation.quadrature import Number
from jaxdnn.propagation.roots import find_root

Q_GRID = np.geomspace(1e-12, 1e10, 529)
# V(q) and q are equal where they differ by less, relative to q: the quadrature's rounding.
SAME = 1e-13
# Slopes and chi_1 within this of 1 are 1.
MARGINAL = 1e-9


class FixedPoints(NamedTuple):
    """The fixed points of V.

    Attributes:
      q: all isolated fixed points, ascending.
      slopes: V' there.
      every: whether every q > 0 is a fixed point.
      grows: whether V(q) > q for the largest q, so that large signals grow without bound.
    """

    q: np.ndarray
    slopes: np.ndarray
    every: bool
    grows: bool


@in_float64
def _excess(phi: Phi, sigma_w2: Number, sigma_b2: Number, dropout: Number) -> Array:
    """Return the sign of V(q) - q over the grid, 0 where they are the same."""
    m2 = jax.lax.map(lambda q: phi_moments(phi, q).m2, jnp.asarray(Q_GRID))
    change = (sigma_w2 / (1 - dropout) * m2 + sigma_b2) / Q_GRID - 1
    return jnp.where(jnp.abs(change) < SAME, 0, jnp.sign(change))


@in_float64
def _refine(
    phi: Phi, sigma_w2: Number, sigma_b2: Number, low: Number, high: Number, *, dropout: float
) -> Array:
    def excess(log_q: Array) -> Array:
        q = jnp.exp(log_q)
        return variance_map(phi, sigma_w2, sigma_b2, q, dropout=dropout) / q - 1

    return jnp.exp(find_root(excess, jnp.log(low), jnp.log(high)))


@in_float64
def fixed_point(
    phi: Phi,
    sigma_w2: Number,
    sigma_b2: Number,
    start: Number = 1.0,
    *,
    dropout: float = 0.0,
) -> Array:
    """Return the q* that q goes to from `start`, up where V(q) > q and down where V(q) < q.

    Returns infinity where q grows without bound, and `start` where V(start) = start. All arguments
    are scalars; vmap over them. (Where V falls steeply, iterating may leap over this q*.)
    """
    sign = _excess(phi, sigma_w2, sigma_b2, dropout)
    here = variance_map(phi, sigma_w2, sigma_b2, start, dropout=dropout) / start - 1
    last = len(Q_GRID) - 1
    above = (sign <= 0) & (start < Q_GRID)
    below = (sign >= 0) & (start > Q_GRID)
    # 32 bits by name: the default would be cut again if an outer jit is in single precision.
    i = jax.lax.argmax(above, 0, np.int32)
    j = last - jax.lax.argmax(below[::-1], 0, np.int32)
    grid = jnp.asarray(Q_GRID)
    at_zero = variance_map(phi, sigma_w2, sigma_b2, 0.0, dropout=dropout)
    rises = here > 0
    low = jnp.where(rises, jnp.maximum(grid[jnp.maximum(i - 1, 0)], start), grid[j])
    high = jnp.where(rises, grid[i], jnp.minimum(grid[jnp.minimum(j + 1, last)], start))
    low = jnp.where(~rises & ~below.any(), jnp.maximum(at_zero / 2, 1e-30), low)
    high = jnp.where(~rises & ~below.any(), jnp.minimum(grid[0], start), high)
    # Where there is no root the bracket is a point, so that the search stops at once.
    high = jnp.where(rises & ~above.any() | (jnp.abs(here) < SAME), low, high)
    found = _refine(phi, sigma_w2, sigma_b2, low, high, dropout=dropout)
    found = jnp.where(rises & above.any() & (sign[i] == 0), grid[i], found)
    found = jnp.where(~rises & below.any() & (sign[j] == 0), grid[j], found)
    found = jnp.where(rises & ~above.any(), jnp.inf, found)
    found = jnp.where(~rises & ~below.any() & (at_zero == 0), 0.0, found)
    return jnp.where(jnp.abs(here) < SAME, start, found)


def fixed_points(
    phi: Phi, sigma_w2: float, sigma_b2: float, *, dropout: float = 0.0
) -> FixedPoints:
    """Find all fixed points of V at one (sigma_w², sigma_b²).

    References:
      Poole et al., "Exponential Expressivity in Deep Neural Networks through Transient Chaos",
      2016.
    """
    phi = make_nonlinearity(phi)
    sign = np.asarray(_excess(phi, sigma_w2, sigma_b2, dropout))
    grows = bool(sign[-1] > 0)
    if np.mean(sign == 0) > 0.5:
        return FixedPoints(np.zeros(0), np.zeros(0), True, grows)
    at_zero = float(variance_map(phi, sigma_w2, sigma_b2, 0.0, dropout=dropout))
    found = [0.0] if at_zero == 0 else []
    signed = np.flatnonzero(sign)
    for i, j in itertools.pairwise(signed):
        if sign[i] != sign[j]:
            q = _refine(phi, sigma_w2, sigma_b2, Q_GRID[i], Q_GRID[j], dropout=dropout)
            found.append(float(q))
    if not found and not grows:
        found = [float(fixed_point(phi, sigma_w2, sigma_b2, 1.0, dropout=dropout))]
    slopes = [float(slope(phi, sigma_w2, q, dropout=dropout)) for q in found]
    return FixedPoints(np.array(found), np.array(slopes), False, grows)


@in_float64
def correlation_fixed_point(
    phi: Phi, sigma_w2: Number, q: Number, *, dropout: float = 0.0
) -> Array:
    """Return the c* in [0, 1] that correlations go to, at a fixed point q > 0 of V.

    C is convex on [0, 1], so that (q - q C(c)) / (1 - c) falls with c: c* is the one place where it
    is q, or 1 if there is none.
    """

    def excess(c: Array) -> Array:
        lost = sigma_w2 * decorrelation(phi, q, c)
        if dropout:
            m2 = phi_moments(phi, q).m2
            lost += sigma_w2 * m2 * dropout / (1 - dropout) / jnp.maximum(1 - c, 1e-13)
        return jnp.clip(lost / q - 1, -1e9, 1e9)

    # In the small number √(1 - c), since c* may be within rounding of 1.
    apart = find_root(lambda b: excess(1 - b**2), jnp.asarray(0.0), jnp.asarray(1.0))
    # sigma_b = 0 and E phi = 0: c = 0 is a fixed point, where rounding decides the sign.
    return jnp.where(jnp.abs(excess(jnp.asarray(0.0))) < SAME, 0.0, 1 - apart**2)
