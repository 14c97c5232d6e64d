"""Where gradients neither vanish nor explode: critical initialisations, and gains.

At a critical point q = V(q) and chi_1 = 1 hold at once. The second gives sigma_w² = 1 / E phi'²,
which leaves one equation for q,

    R(q) = E phi² / E phi'² + sigma_b² - q = 0,

so that all solutions are found by following the changes of sign of R over q. ReLU has R = sigma_b²:
for sigma_b = 0 every q solves it, otherwise none does. For softplus R is positive everywhere. For
the sigmoid it is positive up to q = 45.6, which takes sigma_w² = 103 (with such weights, it is a
step): nothing that anyone would use, hence solutions are asked for up to a greatest sigma_w².

A gain is the factor on the standard deviation 1/√fan_in. At q = 1, 1/√(E phi²) keeps the variance
of the signal, and 1/√(E phi'²) that of the gradient. They agree for ReLU and its kin alone.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.activations import Activation
from jaxdnn.propagation.fixed_points import Q_GRID, SAME
from jaxdnn.propagation.float64 import in_float64
from jaxdnn.propagation.mean_field import phi_moments, slope, variance_map
from jaxdnn.propagation.nonlinearity import Phi, make_nonlinearity
from jaxdnn.propagation.quadrature import Number
from jaxdnn.propagation.roots import find_root

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
      max_sigma_w2: solutions beyond are told in the note only.

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
        if abs(point.slope) > 1 + 1e-9:
            parts.append(
                f"the fixed point q = {point.q:.6g} repels (V' = {point.slope:.6g}): networks do "
                "not stay there"
            )
        elif abs(point.slope - 1) <= 1e-9:
            where = "away from it: it repels" if above else "back to it, like a power of the depth"
            parts.append(f"V' is 1 at q = {point.q:.6g}: a larger signal drifts {where}")
    return "; ".join(parts)


@in_float64
def _excess(phi: Phi, sigma_b2: Number) -> Array:
    """Return R(q) / q over the grid; infinite where no gradient passes."""

    def one(q: Array) -> Array:
        moments = phi_moments(phi, q)
        return (moments.m2 / moments.d2 + sigma_b2) / q - 1

    return jax.lax.map(one, jnp.asarray(Q_GRID))


@in_float64
def _refine(phi: Phi, sigma_b2: Number, low: Number, high: Number) -> Array:
    def excess(log_q: Array) -> Array:
        q = jnp.exp(log_q)
        moments = phi_moments(phi, q)
        return (moments.m2 / moments.d2 + sigma_b2) / q - 1

    return jnp.exp(find_root(excess, jnp.log(low), jnp.log(high)))


class Gains(NamedTuple):
    """Gains of an activation at q = 1.

    Attributes:
      forward: keeps the variance of the signal.
      backward: keeps the variance of the gradient.
      common: the one in common use, or NaN where there is none.
      common_forward: factor of the signal's RMS per layer with the common gain.
      common_backward: factor of the gradient's RMS per layer with the common gain.
    """

    forward: float
    backward: float
    common: float
    common_forward: float
    common_backward: float


def gains(phi: Phi) -> Gains:
    """Return the exact gains, and by how much the common one is off.

    References:
      Kumar, "On Weight Initialization in Deep Neural Networks", 2017. Common gains: PyTorch,
      `torch.nn.init.calculate_gain`; He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015,
      whose √2 is used for ELU, GELU and SiLU as well.
    """
    m2, d2 = (float(moment) for moment in phi_moments(phi)[1:])
    common = _common_gain(phi)
    return Gains(
        _inverse_root(m2),
        _inverse_root(d2),
        common,
        common * math.sqrt(m2),
        common * math.sqrt(d2),
    )


def _inverse_root(value: float) -> float:
    return 1 / math.sqrt(value) if value > 0 else math.inf


def _common_gain(phi: Phi) -> float:
    if not isinstance(phi, Activation):
        return math.nan
    common = {
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "selu": 0.75,
        "elu": math.sqrt(2),
        "gelu": math.sqrt(2),
        "silu": math.sqrt(2),
    }
    if phi.name in ("leaky_relu", "parametric_relu", "randomized_relu"):
        slope_below = float(phi(jnp.asarray(-1.0))) / -1.0
        return math.sqrt(2 / (1 + slope_below**2))
    return common.get(phi.name, math.nan)
