"""Means over one or two normal variables, exact to rounding for functions with kinks and jumps.

    mean(f, x, q)          E f(√q z),        z ~ N(0, 1)
    pair_mean(f, x, q, c)  E f(u) f(v),      u, v ~ N(0, q) with correlation c

Gauss and Legendre's rule is exact for polynomials on one panel, so panels end where f is not
smooth: at the breakpoints x of f, which are z = x/√q for the normal variable, and at fixed points
in z, so that the density is smooth on each panel as well. All panels are there for every q; those
outside |z| <= 12, where the density is below 1e-31, have no width. So the rule is one formula in q
and jits and vmaps.

For two variables, turn the axes so that the correlation becomes a pair of scales:

    u = √q (a s + b t),  v = √q (a s - b t),  a² = (1 + |c|)/2,  b² = (1 - |c|)/2,

with s, t independent normal variables (for c < 0, take -v for v). For fixed t, the integrand in s
breaks where u or v does. The integral over s is smooth in t but where a break of u meets one of
v, at t = (x_i - x_j)/(2 b √q). Both limits, c -> 1 (b -> 0) and c -> 0, are harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Number = Array | float
Function = Callable[[Array], Array]

NUM_NODES = 16
LARGEST_Z = 12.0
# Ends of panels on which the normal density is a polynomial of degree 31 to rounding.
_Z_POINTS = np.array([-8.0, -5.0, -2.5, 0.0, 2.5, 5.0, 8.0])
# Below this variance a function is its limit from the left and from the right of zero.
SMALLEST_VARIANCE = 1e-20


class Breakpoints(NamedTuple):
    """Where a function's panels end.

    Attributes:
      panels: all ends, ascending, the kinks and jumps among them.
      kinks: where the function or its slope jumps.
      scale: width of the narrowest panel.
    """

    panels: np.ndarray
    kinks: np.ndarray
    scale: float


def mean(function: Function, points: Breakpoints, q: Number) -> Array:
    """Return E f(√q z) for a scalar q >= 0, z ~ N(0, 1); `points` are the breakpoints of f."""
    root = jnp.sqrt(jnp.maximum(q, SMALLEST_VARIANCE))
    z, weights = _nodes(jnp.concatenate([points.panels / root, _Z_POINTS]))
    return jnp.sum(weights * function(root * z))


def pair_mean(
    function: Callable[[Array, Array, Array, Array], Array],
    points: Breakpoints,
    q: Number,
    c: Number,
    *,
    num_nodes: int = NUM_NODES,
) -> Array:
    """Return E f(u, v, s, t) for scalars q > 0 and -1 <= c <= 1.

    Args:
      function: f(u, v, s, t) of u and v, which have variance q and correlation c, and of the
        independent standard normal variables s and t with u = √q (a s + b t) and
        v = √q (a s - b t); a and b are exchanged for c < 0. Elementwise.
      points: where f breaks as a function of u, and of v.
      q: variance of u and of v.
      c: correlation of u and v.
      num_nodes: points of the rule between two breaks; more are more exact.
    """
    q, c = jnp.asarray(q), jnp.asarray(c)
    root = jnp.sqrt(jnp.maximum(q, SMALLEST_VARIANCE))
    sign = jnp.where(c < 0, -1.0, 1.0)
    a, b = jnp.sqrt((1 + jnp.abs(c)) / 2), jnp.sqrt((1 - jnp.abs(c)) / 2)
    in_u, in_v = points.panels / root, sign * points.panels / root
    meetings = _meetings(points, sign) / (2 * root * jnp.maximum(b, 1e-30))
    outer, outer_weights = _nodes(jnp.concatenate([meetings, _Z_POINTS]), num_nodes)

    def over_inner(t: Array) -> Array:
        ends = jnp.concatenate([(in_u - b * t) / a, (in_v + b * t) / a, _Z_POINTS])
        s, weights = _nodes(ends, num_nodes)
        u, v = root * (a * s + b * t), sign * root * (a * s - b * t)
        return jnp.sum(weights * function(u, v, s, t))

    # One outer panel after the other: side by side they would need their product's memory.
    return jnp.sum(outer_weights * lax.map(jax.vmap(over_inner), outer))


def _meetings(points: Breakpoints, sign: Array) -> Array:
    """Return x_i - sign x_j over all kinks, and points around zero where smooth panels meet."""
    x = points.kinks
    apart = (x[:, None] - x).ravel()
    near = np.array([1.0, 3.0, 9.0, 27.0]) * points.scale
    together = (x[:, None] + x).ravel()
    return jnp.concatenate([jnp.where(sign > 0, apart, together), near, -near])


def _nodes(ends: Array, num_nodes: int = NUM_NODES) -> tuple[Array, Array]:
    """Return nodes in z and their weights, density included, for panels with these ends."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    limits = jnp.array([-LARGEST_Z, LARGEST_Z])
    ends = jnp.sort(jnp.clip(jnp.concatenate([ends, limits]), -LARGEST_Z, LARGEST_Z))
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    z = middle[:, None] + half[:, None] * nodes
    density = jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return z, half[:, None] * weights * density
