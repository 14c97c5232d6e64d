"""Order and chaos over a grid of (sigma_w², sigma_b²), for any activation.

q* and chi_1 are computed at each point. c* would take a double integral at each step of a search at
each point; but the integral depends on q and c alone, g(q, c) = (E phi² - E phi(u) phi(v)) / (1 -
c). So ln g is interpolated once by Chebyshev polynomials in ln q and ln b, b² = (1 - c)/2, and c*
solves sigma_w² g = q. By the definition of g the slope of the correlation map there is

    chi_c = 1 + (1/2) d ln g / d ln b,

which gives xi_c = -1 / ln chi_c without another integral.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpy.polynomial import chebyshev

from jaxdnn.propagation.fixed_points import MARGINAL, Q_GRID, fixed_point
from jaxdnn.propagation.mean_field import chi, decorrelation
from jaxdnn.propagation.nonlinearity import Phi, in_float64, make_nonlinearity

_DEGREE = 23
_NUM_NODES = 8
# c from 1 - 2e-6 down to 0.
_LOG_B = np.log([1e-3, np.sqrt(0.5)])
_LEAST_Q = 1e-6


class PhaseDiagram(NamedTuple):
    """Theory over a grid; rows are sigma_b², columns sigma_w².

    Attributes:
      sigma_w2: (column,), fan_in times the variance of a weight.
      sigma_b2: (row,), variance of a bias.
      q: fixed point reached from q = 1; infinity where the variance grows without bound.
      chi1: factor of the gradient's variance per layer; a limit where q is infinite.
      c: correlation that inputs go to; NaN where q is infinite.
      xi_c: its depth scale; infinite on the critical line, NaN where q is infinite.
    """

    sigma_w2: Float[np.ndarray, " column"]
    sigma_b2: Float[np.ndarray, " row"]
    q: Float[np.ndarray, "row column"]
    chi1: Float[np.ndarray, "row column"]
    c: Float[np.ndarray, "row column"]
    xi_c: Float[np.ndarray, "row column"]


def phase_diagram(phi: Phi, sigma_w2: np.ndarray, sigma_b2: np.ndarray) -> PhaseDiagram:
    """Compute the phase diagram of an activation.

    Args:
      phi: any activation.
      sigma_w2: ascending, above 0, (column,).
      sigma_b2: ascending, 0 or more, (row,).

    References:
      Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017.
    """
    phi = make_nonlinearity(phi)
    q, chi1 = (np.asarray(x) for x in _points(phi, sigma_w2, sigma_b2))
    settled = np.isfinite(q)
    # At a jump of phi nearby inputs drift apart at any chi_1.
    chaotic = settled & (q > 0) & ((chi1 > 1 + MARGINAL) | bool(phi.jumps))
    c = np.where(settled, 1.0, np.nan)
    chi_c = np.where(settled, chi1, np.nan)
    if chaotic.any():
        widths = np.broadcast_to(sigma_w2, q.shape)[chaotic]
        c[chaotic], chi_c[chaotic] = _correlations(phi, q[chaotic], widths)
    with np.errstate(divide="ignore", invalid="ignore"):
        xi_c = np.where(np.abs(chi_c - 1) <= MARGINAL, np.inf, -1 / np.log(np.minimum(chi_c, 1)))
    return PhaseDiagram(sigma_w2, sigma_b2, q, chi1, c, xi_c)


@in_float64
def _points(
    phi: Phi, sigma_w2: Array | np.ndarray, sigma_b2: Array | np.ndarray
) -> tuple[Array, Array]:
    """Return q* and chi_1 over the grid."""

    def point(w: Array, b: Array) -> tuple[Array, Array]:
        q = fixed_point(phi, w, b, 1.0)
        return q, chi(phi, w, jnp.minimum(q, Q_GRID[-1]))

    columns, rows = jnp.asarray(sigma_w2), jnp.asarray(sigma_b2)
    return jax.lax.map(lambda b: jax.vmap(lambda w: point(w, b))(columns), rows)


def _correlations(phi: Phi, q: np.ndarray, sigma_w2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return c* and chi_c for pairs in the chaotic phase."""
    log_q = np.log(np.maximum(q, _LEAST_Q))
    ends = np.array([log_q.min() - 1e-3, log_q.max() + 1e-3])
    nodes = chebyshev.chebpts1(_DEGREE + 1)
    q_nodes, b_nodes = (np.exp(_from_unit(nodes, limits)) for limits in (ends, _LOG_B))
    table = np.log(np.asarray(_table(phi, q_nodes, 1 - 2 * b_nodes**2)))
    inverse = np.linalg.inv(chebyshev.chebvander(nodes, _DEGREE))
    coefficients = inverse @ table @ inverse.T
    of_b = chebyshev.chebvander(_to_unit(log_q, ends), _DEGREE) @ coefficients
    wanted = np.log(np.maximum(q, _LEAST_Q) / sigma_w2)
    low, high = np.full(len(q), -1.0), np.full(len(q), 1.0)
    for _ in range(45):
        middle = (low + high) / 2
        # g falls with b, so that c* lies at a larger b where g is still too large.
        above = chebyshev.chebval(middle, of_b.T, tensor=False) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    b = np.exp(_from_unit(middle, _LOG_B))
    per_unit = chebyshev.chebval(middle, chebyshev.chebder(of_b, axis=1).T, tensor=False)
    return 1 - 2 * b**2, 1 + per_unit / (_LOG_B[1] - _LOG_B[0])


@in_float64
def _table(phi: Phi, q: Array | np.ndarray, c: Array | np.ndarray) -> Array:
    def row(q: Array) -> Array:
        return jax.lax.map(lambda c: decorrelation(phi, q, c, num_nodes=_NUM_NODES), columns)

    columns = jnp.asarray(c)
    return jax.lax.map(row, jnp.asarray(q))


def _to_unit(x: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return (2 * x - limits[1] - limits[0]) / (limits[1] - limits[0])


def _from_unit(x: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return (x * (limits[1] - limits[0]) + limits[1] + limits[0]) / 2
