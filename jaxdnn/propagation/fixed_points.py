"""Where signals settle, and what that means at any depth: fixed points, phases, depth scales.

V(q) - q is looked at on a grid of q from 1e-12 to 1e10 and each change of its sign is followed to
rounding, so that no fixed point is taken for granted. Below the grid, zero is a fixed point where
V(0) = 0; above it, a signal that still grows is said to grow without bound. What is undefined is
NaN, and a note says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.propagation.mean_field import (
    chi,
    correlation_slope,
    decorrelation,
    phi_moments,
    slope,
    variance_map,
)
from jaxdnn.propagation.nonlinearity import Phi, in_float64, make_nonlinearity
from jaxdnn.propagation.quadrature import Number

Q_GRID = np.geomspace(1e-12, 1e10, 529)
# V(q) and q are equal where they differ by less, relative to q: the quadrature's rounding.
SAME = 1e-13
# Slopes and chi_1 within this of 1 are 1.
MARGINAL = 1e-9
# Steps of a search for a root; about ten are taken.
_MOST_STEPS = 100


class FixedPoints(NamedTuple):
    """The fixed points of V.

    Attributes:
      q: all isolated fixed points, ascending.
      slopes: V'(q) at each of them.
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
    m2 = lax.map(lambda q: phi_moments(phi, q).m2, jnp.asarray(Q_GRID))
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
    # 32 bits by name: the default would be rounded again if an outer jit is in single precision.
    i = lax.argmax(above, 0, np.int32)
    j = last - lax.argmax(below[::-1], 0, np.int32)
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


class Theory(NamedTuple):
    """All that infinite width says about one activation at one (sigma_w², sigma_b²).

    A number that is not defined is NaN, and `notes` say why.

    Attributes:
      q: the fixed point reached from `start`; infinity where q grows without bound.
      chi1: factor of the gradient's variance per layer.
      slope: V'(q*).
      c: the correlation that pairs of inputs go to.
      xi_q: depth scale of q.
      xi_c: depth scale of c.
      xi_gradient: -1 / ln chi_1; negative where gradients grow.
      fixed_points: all there are.
      notes: what is undefined, what repels, what else there is.
    """

    q: float
    chi1: float
    slope: float
    c: float
    xi_q: float
    xi_c: float
    xi_gradient: float
    fixed_points: FixedPoints
    notes: tuple[str, ...]


def theory(
    phi: Phi,
    sigma_w2: float,
    sigma_b2: float,
    *,
    start: float = 1.0,
    dropout: float = 0.0,
) -> Theory:
    """Work out fixed points, phases and depth scales at one (sigma_w², sigma_b²).

    Args:
      phi: the activation.
      sigma_w2: fan_in times the variance of a weight, >= 0.
      sigma_b2: variance of a bias, >= 0.
      start: q of the first layer; decides where there are several fixed points.
      dropout: share of the units dropped, in [0, 1).
    """
    phi = make_nonlinearity(phi)
    found = fixed_points(phi, sigma_w2, sigma_b2, dropout=dropout)
    q = float(fixed_point(phi, sigma_w2, sigma_b2, start, dropout=dropout))
    at = min(q, Q_GRID[-1])
    chi1 = _limit(lambda q: float(chi(phi, sigma_w2, q, dropout=dropout)), q)
    change = _limit(lambda q: float(slope(phi, sigma_w2, q, dropout=dropout)), q)
    if found.every:
        chi1, change = _settled(chi1), _settled(change)
    c, c_slope = _correlation(phi, sigma_w2, at, chi1, dropout)
    if not found.every and q > 0 and np.isinf(q):
        c = c_slope = math.nan
    notes = _notes(phi.jumps, found, q, change, chi1, start, c_slope)
    return Theory(
        math.nan if found.every else q,
        chi1,
        change,
        c,
        math.nan if found.every or math.isinf(q) else depth_scale(abs(change)),
        depth_scale(c_slope),
        depth_scale(chi1, signed=True),
        found,
        notes,
    )


def depth_scale(factor: float, *, signed: bool = False) -> float:
    """Return -1 / ln factor; NaN where the factor is 0, 1 or, unless signed, above 1."""
    if not 1e-12 < factor < math.inf or abs(factor - 1) < MARGINAL or (factor > 1 and not signed):
        return math.nan
    return -1 / math.log(factor)


def _limit(function: Callable[[float], float], q: float) -> float:
    """Return function(q); for q infinite its limit, which may be infinite, too."""
    if not math.isinf(q):
        return function(q)
    near, far = function(Q_GRID[-1] / 1e4), function(Q_GRID[-1])
    return math.inf if far > 2 * near else far


def _settled(value: float) -> float:
    return 1.0 if abs(value - 1) < SAME else value


def _correlation(
    phi: Phi, sigma_w2: float, q: float, chi1: float, dropout: float
) -> tuple[float, float]:
    """Return c* and the slope of the correlation map there."""
    if sigma_w2 == 0:
        return 1.0, 0.0
    jumps = make_nonlinearity(phi).jumps
    if chi1 <= 1 + MARGINAL and not dropout and not jumps:
        return 1.0, chi1
    at = max(q, 1e-12)
    c = float(correlation_fixed_point(phi, sigma_w2, at, dropout=dropout))
    return c, float(correlation_slope(phi, sigma_w2, at, c))


def _notes(
    jumps: tuple[float, ...],
    found: FixedPoints,
    q: float,
    change: float,
    chi1: float,
    start: float,
    c_slope: float,
) -> tuple[str, ...]:
    notes = []
    if found.every:
        notes.append("every q is a fixed point, so q and xi_q are undefined")
    elif math.isinf(q):
        notes.append(
            f"from q = {start:g} the variance grows without bound: q, c and their depth scales are "
            "undefined; chi1 and slope are limits"
        )
    elif abs(change) > 1 + MARGINAL:
        notes.append(f"the fixed point q = {q:.6g} repels: V' = {change:.6g}")
    elif abs(change - 1) < MARGINAL:
        notes.append("V' is 1: q moves like a power of the depth, so xi_q is undefined")
    others = [i for i in range(len(found.q)) if abs(found.q[i] - q) > 1e-6 * max(q, 1e-9)]
    for i in others:
        word = "repels" if abs(found.slopes[i]) > 1 else "attracts"
        notes.append(
            f"another fixed point, q = {found.q[i]:.6g}, {word}: V' = {found.slopes[i]:.6g}"
        )
    if found.grows and not math.isinf(q) and not found.every:
        notes.append("the variance of large enough signals grows without bound")
    if q == 0:
        notes.append("the signal itself dies: q goes to 0")
    if abs(chi1 - 1) < MARGINAL:
        notes.append("chi1 is 1, critical: xi_gradient is undefined (infinite)")
        if abs(c_slope - 1) < MARGINAL:
            notes.append(
                "xi_c is undefined (infinite): correlations move like a power of the depth"
            )
    if chi1 == 0:
        notes.append("chi1 is 0: no gradient passes, so depth scales are undefined")
    if jumps:
        places = ", ".join(f"{x:.6g}" for x in jumps[:5])
        notes.append(
            f"phi jumps at x = {places}: chi1 is the factor of computed gradients, which leave the "
            "jump out; the slope of the correlation map at c = 1 is infinite"
        )
    return tuple(notes)


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
