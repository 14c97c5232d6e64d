"""Where gradients neither vanish nor explode: critical initialisations.

At a critical point q = V(q) and chi_1 = 1 hold at once. The second gives sigma_w² = 1 / E phi'²,
which leaves one equation for q,

    R(q) = E phi² / E phi'² + sigma_b² - q = 0,

so that all solutions are found by following the changes of sign of R over q. ReLU has R = sigma_b²:
for sigma_b = 0 every q solves it, otherwise none does. For softplus R is positive everywhere. For
the sigmoid it is positive up to q = 45.6, which takes sigma_w² = 103 (with such weights, it is a
step): nothing that anyone would use, hence solutions are asked for up to a greatest sigma_w².
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.propagation.fixed_points import MARGINAL, Q_GRID, SAME, find_root
from jaxdnn.propagation.mean_field import phi_moments, slope, variance_map
from jaxdnn.propagation.nonlinearity import Phi, in_float64, make_nonlinearity
from jaxdnn.propagation.quadrature import Number

# Five times the standard deviation of He's scheme: beyond it lies nothing that is in use.
MAX_SIGMA_W2 = 50.0


class CriticalPoint(NamedTuple):
    """One critical initialisation.

    Attributes:
      sigma_w2: fan_in times the variance of a weight.
      q: the fixed point; NaN where every q is one.
      slope: V'(q); the point is usable where it does not exceed 1.
    """

    sigma_w2: float
    q: float
    slope: float


class Critical(NamedTuple):
    """All critical initialisations at one sigma_b².

    Attributes:
      points: with sigma_w² up to the limit, ascending in sigma_w².
      note: a plain statement, in particular where there are none.
    """

    points: tuple[CriticalPoint, ...]
    note: str


def critical_points(phi: Phi, sigma_b2: float, *, max_sigma_w2: float = MAX_SIGMA_W2) -> Critical:
    """Find all sigma_w² with chi_1 = 1 at a fixed point of V.

    Args:
      phi: the activation.
      sigma_b2: variance of a bias, >= 0.
      max_sigma_w2: above 0; solutions beyond are named in the note only.

    References:
      Hayou, Doucet and Rousseau, "On the Impact of the Activation Function on Deep Neural Networks
      Training", 2019.
    """
    phi = make_nonlinearity(phi)
    excess = np.asarray(_excess(phi, sigma_b2))
    if np.mean(np.abs(excess) < SAME) > 0.5:
        sigma_w2 = 1 / float(phi_moments(phi, 1.0).d2)
        point = CriticalPoint(sigma_w2, math.nan, 1.0)
        return Critical((point,), "every q is a fixed point at this sigma_w2")
    found = _at_zero(phi, sigma_b2)
    known = np.flatnonzero(np.isfinite(excess) & (np.abs(excess) > SAME))
    for i, j in itertools.pairwise(known):
        if excess[i] * excess[j] < 0:
            q = float(_refine(phi, sigma_b2, Q_GRID[i], Q_GRID[j]))
            found.append(_point(phi, q))
    near = tuple(sorted(point for point in found if point.sigma_w2 <= max_sigma_w2))
    far = sorted(point for point in found if point.sigma_w2 > max_sigma_w2)
    grows = [
        float(variance_map(phi, point.sigma_w2, sigma_b2, q)) > q
        for point in near
        for q in [max(1.01 * point.q, 1e-6)]
    ]
    return Critical(near, _note(near, grows, far, sigma_b2, max_sigma_w2))


def _at_zero(phi: Phi, sigma_b2: float) -> list[CriticalPoint]:
    moments = phi_moments(phi, 0.0)
    if sigma_b2 or float(moments.m2) or float(moments.d2) < 1e-12:
        return []
    return [_point(phi, 0.0)]


def _point(phi: Phi, q: float) -> CriticalPoint:
    sigma_w2 = 1 / float(phi_moments(phi, q).d2)
    return CriticalPoint(sigma_w2, q, float(slope(phi, sigma_w2, q)))


def _note(
    near: tuple[CriticalPoint, ...],
    grows: list[bool],
    far: list[CriticalPoint],
    sigma_b2: float,
    max_sigma_w2: float,
) -> str:
    parts = []
    if not near:
        within = f" with sigma_w2 <= {max_sigma_w2:g}" if far else ""
        parts.append(f"no critical initialisation at sigma_b2 = {sigma_b2:g}{within}")
    for point in far:
        parts.append(f"one far beyond: sigma_w2 = {point.sigma_w2:.6g}, q = {point.q:.6g}")
    for point, above in zip(near, grows, strict=True):
        if abs(point.slope) > 1 + MARGINAL:
            parts.append(
                f"the fixed point q = {point.q:.6g} repels (V' = {point.slope:.6g}): networks do "
                "not stay there"
            )
        elif abs(point.slope - 1) <= MARGINAL:
            where = "away from it: it repels" if above else "back to it, like a power of the depth"
            parts.append(f"V' is 1 at q = {point.q:.6g}: a larger signal drifts {where}")
    return "; ".join(parts)


@in_float64
def _excess(phi: Phi, sigma_b2: Number) -> Array:
    """Return R(q) / q over the grid; infinite where no gradient passes."""
    return jax.lax.map(lambda q: _relative_excess(phi, sigma_b2, q), jnp.asarray(Q_GRID))


@in_float64
def _refine(phi: Phi, sigma_b2: Number, low: Number, high: Number) -> Array:
    ends = jnp.log(low), jnp.log(high)
    return jnp.exp(find_root(lambda log_q: _relative_excess(phi, sigma_b2, jnp.exp(log_q)), *ends))


def _relative_excess(phi: Phi, sigma_b2: Number, q: Array) -> Array:
    moments = phi_moments(phi, q)
    return (moments.m2 / moments.d2 + sigma_b2) / q - 1


class CriticalLine(NamedTuple):
    """chi_1 = 1 at a fixed point, as a curve; (point,) each, by ascending q.

    Attributes:
      sigma_w2: fan_in times the variance of a weight.
      sigma_b2: variance of a bias; NaN, like sigma_w2, where it would be negative.
      repels: whether V' > 1, so that no network stays there.
    """

    sigma_w2: np.ndarray
    sigma_b2: np.ndarray
    repels: np.ndarray


def critical_line(phi: Phi) -> CriticalLine:
    """Return the critical line.

    Each q gives sigma_w² = 1 / E phi'² and sigma_b² = q - sigma_w² E phi².
    """
    q = Q_GRID[(Q_GRID > 1e-8) & (Q_GRID < 1e6)]
    m2, d2, change = (np.asarray(x) for x in _line(phi, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma_w2 = 1 / d2
        sigma_b2 = q - sigma_w2 * m2
        repels = change / d2 > 1 + MARGINAL
    sigma_b2 = np.where(np.abs(sigma_b2) < 1e-12 * q, 0.0, sigma_b2)
    valid = (sigma_b2 >= 0) & np.isfinite(sigma_w2)
    return CriticalLine(
        np.where(valid, sigma_w2, np.nan), np.where(valid, sigma_b2, np.nan), repels
    )


@in_float64
def _line(phi: Phi, q: Array | np.ndarray) -> tuple[Array, Array, Array]:
    """Return E phi², E phi'² and V' / sigma_w² for each q."""

    def one(q: Array) -> tuple[Array, Array, Array]:
        moments = phi_moments(phi, q)
        return moments.m2, moments.d2, slope(phi, 1.0, q)

    return jax.lax.map(one, jnp.asarray(q))
