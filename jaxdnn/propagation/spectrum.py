"""The spread of the Jacobian's singular values: whether all directions pass, or only a few.

The Jacobian from input to output is J = D^L W^L ... D^1 W^1, D = diag(phi'(h)). chi_1^L is the mean
of its squared singular values; learning also needs that they lie close together, "dynamical
isometry". Wide random factors are free of each other, and then the S-transforms of their squares
multiply:

    psi(z) = Σ_k m_k z^k,   S(z) = (1 + z)/z psi^-1(z),   S_J = (S_D S_W)^L,
    S_W = 1/(sigma_w² (1 + z)) for normal W,   1/sigma_w² for orthogonal W,

m_k the k-th moment. With mu_k = E phi'^(2k), the first two moments of J J^T give the relative
variance

    m_2/m_1² - 1 = L (mu_2/mu_1² - 1 - s_1),   s_1 = -1 for normal, 0 for orthogonal weights:

for normal weights it grows with depth whatever phi is. For orthogonal ones it stays small where
phi' is nearly constant: tanh, at a small q, yes; ReLU, never (mu_2/mu_1² = 2).

References:
  Pennington, Schoenholz and Ganguli, "Resurrecting the Sigmoid in Deep Learning through Dynamical
    Isometry: Theory and Practice", 2017; "The Emergence of Spectral Universality in Deep Networks",
    2018.
  Saxe, McClelland and Ganguli, "Exact Solutions to the Nonlinear Dynamics of Learning in Deep
    Linear Neural Networks", 2014.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from jaxdnn.propagation.mean_field import expectation
from jaxdnn.propagation.nonlinearity import Nonlinearity, Phi, make_nonlinearity

Weights = Literal["normal", "orthogonal"]


class Spectrum(NamedTuple):
    """Moments of the eigenvalues of J J^T.

    Attributes:
      log_mean: natural log of m_1, the mean.
      moments: m_k / m_1^k for k = 1, 2, ...; all 1 where all singular values are the same.
      spread: m_2 / m_1² - 1, the relative variance.
    """

    log_mean: float
    moments: np.ndarray
    spread: float


def jacobian_spectrum(
    phi: Phi,
    sigma_w2: float,
    q: float,
    *,
    depth: int,
    weights: Weights = "normal",
    order: int = 4,
) -> Spectrum:
    """Return the moments of J J^T for `depth` square layers at the variance q.

    Args:
      phi: the activation.
      sigma_w2: fan_in times the variance of a weight; of orthogonal weights, the square of the
        gain.
      q: variance of the pre-activations in all layers, usually the fixed point.
      depth: number of layers L.
      weights: `normal` (any with independent entries) or `orthogonal`.
      order: number of moments.
    """
    phi = make_nonlinearity(phi)
    mu = np.array([float(expectation(phi, q, f=_power(k))) for k in range(1, order + 1)])
    if mu[0] == 0 or sigma_w2 == 0:
        return Spectrum(-math.inf, np.full(order, math.nan), math.nan)
    log_mean = depth * math.log(sigma_w2 * mu[0])
    s_layer = _s_transform(mu / mu[0] ** np.arange(1, order + 1))
    if weights == "normal":
        s_layer = _times(s_layer, (-1.0) ** np.arange(order))
    moments = _moments(_to_power(s_layer, depth))
    return Spectrum(log_mean, moments, float(moments[1] - 1) if order > 1 else math.nan)


def _power(k: int):
    def f(phi: Nonlinearity, h):
        return phi.derivative(h) ** (2 * k)

    return f


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply power series, truncated to their length."""
    return np.convolve(a, b)[: len(a)]  # polymul drops zeros at the end.


def _s_transform(moments: np.ndarray) -> np.ndarray:
    """Return the coefficients of S from those of psi = Σ m_k z^k, k >= 1."""
    inverse = _reversed_series(moments)
    return _times(inverse, np.array([1.0, 1.0] + [0.0] * (len(moments) - 2))[: len(moments)])


def _moments(s: np.ndarray) -> np.ndarray:
    """Return the moments from the coefficients of S."""
    return _reversed_series(_times(s, (-1.0) ** np.arange(len(s))))


def _reversed_series(a: np.ndarray) -> np.ndarray:
    """Invert f(z) = a_1 z + a_2 z² + ... as a function: Lagrange's formula.

    The coefficient of z^n of the inverse is 1/n times that of w^(n-1) in (w / f(w))^n.
    """
    one_over = _to_power(a, -1)
    power = one_over
    found = [one_over[0]]
    for n in range(2, len(a) + 1):
        power = _times(power, one_over)
        found.append(power[n - 1] / n)
    return np.array(found)


def _to_power(a: np.ndarray, exponent: int) -> np.ndarray:
    """Raise a power series with a[0] != 0 to a power (J. C. P. Miller's recurrence)."""
    found = np.zeros(len(a))
    found[0] = a[0] ** exponent
    for n in range(1, len(a)):
        k = np.arange(1, n + 1)
        found[n] = np.sum((exponent * k - (n - k)) * a[k] * found[n - k]) / (n * a[0])
    return found
