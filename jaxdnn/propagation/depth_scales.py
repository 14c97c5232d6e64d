"""What a pair (sigma_w², sigma_b²) means: where signals settle, the phase, the depth scales.

What is undefined is NaN, and a note says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdnn.propagation.fixed_points import (
    MARGINAL,
    Q_GRID,
    SAME,
    FixedPoints,
    correlation_fixed_point,
    fixed_point,
    fixed_points,
)
from jaxdnn.propagation.mean_field import chi, correlation_slope, slope
from jaxdnn.propagation.nonlinearity import Phi, make_nonlinearity


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
