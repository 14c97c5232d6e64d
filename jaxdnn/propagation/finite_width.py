"""How far one random network of finite width strays from the mean.

At width n the mean square of a layer is a sum of n independent terms, given the layer below:
S = (1/n) Σ Y_i / E Y. Forward Y = phi(h)², backward Y = phi'(h)² g² with g normal, as delta's unit
i is phi'(h_i) times a sum over the next layer's units. E S = 1, yet a product of many such factors
lies far below 1 in nearly all networks, since E ln S < 0: raw means mislead, and logs are tested.

The moments of ln S are exact for any phi and n, from the Laplace transform M(t) = E exp(-t S):

    E ln S = ∫ (e^-t - M(t)) dt/t,
    E ln² S = -2 (∫ ln t (e^-t - M(t)) dt/t + γ E ln S),        γ = 0.5772 (Euler),

with S > 0 as a condition where S = 0 has a probability (dead ReLU layers). M(t) is the n-th power
of one unit's transform; its integral over ln t converges exponentially in the trapezoidal rule.

Over many layers the logs add up. A layer whose signal is by chance larger also changes phi' in the
layers after it: f = ln of the relative q obeys f' = lambda f + noise with lambda = q V'(q) / V(q),
and the gradient's log takes kappa f, kappa = d ln E phi'² / d ln q. For ReLU and its kin kappa = 0.

References:
  Hanin, "Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?", 2018.
  Hanin and Nica, "Products of Many Large Random Matrices and Gradients in Deep Neural Networks",
    2020.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.propagation.finite_depth import predict
from jaxdnn.propagation.mean_field import expectation, phi_moments, slope, variance_map
from jaxdnn.propagation.nonlinearity import Nonlinearity, Phi, in_float64, make_nonlinearity
from jaxdnn.propagation.quadrature import Number

_EULER = 0.57721566490153286
# Of a normal variable, 90 % lies within this many standard deviations of the mean.
_NINETY = 1.6448536269514722
_LOG_T = np.arange(-36.0, 36.0, 0.05)


class LogMoments(NamedTuple):
    """Moments of ln S, the log of one layer's factor of the mean square over its mean.

    Attributes:
      mean: E ln S, below zero.
      variance: Var ln S.
    """

    mean: Array
    variance: Array


@in_float64
def log_moments(
    phi: Phi, q: Number, width: Number, *, direction: Literal["forward", "backward"] = "backward"
) -> LogMoments:
    """Return mean and variance of the log factor of one layer of `width` units.

    Args:
      phi: the activation.
      q: variance of the layer's pre-activations.
      width: number of units, at least 8; below, the rare signals near zero are not resolved.
      direction: `forward`, the mean square of phi(h); `backward`, of delta.
    """
    mean = {"forward": phi_moments(phi, q).m2, "backward": phi_moments(phi, q).d2}[direction]

    def transform(t: Array) -> Array:
        """E exp(-t Y / (n E Y)) of one unit."""
        return expectation(
            phi, q, f=lambda phi, h: _transform(phi, h, t / (width * mean), direction)
        )

    silent = expectation(phi, q, f=lambda phi, h: (_size(phi, h, direction) == 0).astype(h.dtype))
    ones = jax.lax.map(transform, jnp.exp(_LOG_T), batch_size=64)
    dead = silent**width
    total = (ones**width - dead) / (1 - dead)
    step = _LOG_T[1] - _LOG_T[0]
    gap = jnp.exp(-jnp.exp(_LOG_T)) - total
    first = step * jnp.sum(gap)
    second = -2 * (step * jnp.sum(_LOG_T * gap) + _EULER * first)
    return LogMoments(first, second - first**2)


def _size(phi: Nonlinearity, h: Array, direction: str) -> Array:
    return phi(h) ** 2 if direction == "forward" else phi.derivative(h) ** 2


def _transform(phi: Nonlinearity, h: Array, t: Array, direction: str) -> Array:
    if direction == "forward":
        return jnp.exp(-t * phi(h) ** 2)
    # The mean of exp(-t phi'² g²) over a normal g.
    return jax.lax.rsqrt(1 + 2 * t * phi.derivative(h) ** 2)


class Band(NamedTuple):
    """Where the log of delta's RMS factor over several layers lies, for one random network.

    Attributes:
      mean: expected natural log.
      std: standard deviation of the log.
      low: 5 % of the networks are below.
      high: 5 % of the networks are above.
    """

    mean: float
    std: float
    low: float
    high: float


def gradient_band(
    phi: Phi,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    input_moment: float = 1.0,
    *,
    depth: int,
    width: int,
) -> Band:
    """Return the 90 % band of ln(RMS delta^1 / RMS delta^depth), for one input and random weights.

    Args:
      phi: the activation.
      sigma_w2: fan_in times the variance of a weight.
      sigma_b2: variance of a bias.
      input_moment: mean square of the input.
      depth: number of hidden layers, all of `width` units, at least 2; well below `width`.
      width: units of a layer, at least 8.
    """
    phi = make_nonlinearity(phi)
    found = predict(phi, sigma_w2, sigma_b2, input_moment, depth=depth)
    q = np.asarray(found.q)[:-1]
    ours = [np.asarray(x) for x in _layers(phi, sigma_w2, sigma_b2, q, float(width))]
    mean_back, var_back, mean_fwd, var_fwd, cov, lam, kappa = ours
    # What one unit of noise in layer l's signal adds to the sum of all later layers' kappa f.
    reach = np.zeros(len(q))
    for i in range(len(q) - 2, -1, -1):
        reach[i] = kappa[i + 1] + lam[i + 1] * reach[i + 1]
    total_mean = np.sum(mean_back + reach * mean_fwd)
    total_var = np.sum(var_back + 2 * reach * cov + reach**2 * var_fwd)
    mean = float(np.sum(np.log(np.asarray(found.factor)[:-1])) + total_mean / 2)
    std = float(np.sqrt(total_var)) / 2
    return Band(mean, std, mean - _NINETY * std, mean + _NINETY * std)


@in_float64
def _layers(
    phi: Phi, sigma_w2: Number, sigma_b2: Number, q: Array | np.ndarray, width: Number
) -> tuple[Array, ...]:
    """Return for each layer: log moments back and forward, their covariance, lambda and kappa."""

    def one(q: Array) -> tuple[Array, ...]:
        back = log_moments(phi, q, width, direction="backward")
        forward = log_moments(phi, q, width, direction="forward")
        moments = phi_moments(phi, q)
        both = expectation(phi, q, f=lambda phi, h: (phi(h) * phi.derivative(h)) ** 2)
        after = variance_map(phi, sigma_w2, sigma_b2, q)
        share = sigma_w2 * moments.m2 / after
        cov = share * (both / (moments.m2 * moments.d2) - 1) / width
        bend = expectation(phi, q, f=lambda phi, h: phi.derivative(h) ** 2 * (h**2 / q - 1) / 2)
        lam = q * slope(phi, sigma_w2, q) / after
        mean, variance = share * forward.mean, share**2 * forward.variance
        return (*back, mean, variance, cov, lam, bend / moments.d2)

    return jax.lax.map(one, jnp.asarray(q))
