"""How fast gradients grow per layer with norms, residual branches and zero padding.

**Batch norm** before phi makes z ~ N(0, 1) over a large batch and takes the scale of the weights
out: the gradient's variance is multiplied by E phi'² / Var phi per layer, above 1 for every phi
that is not linear. This holds while all inputs of the batch stay alike. Let one input have variance
q where the others have 1; in the next layer it has

    (E phi(√q z)² - 2 E phi(√q z) E phi(z) + (E phi(z))²) / Var phi,

with a slope `lambda_norm` at q = 1. Where that is above 1 (GELU, SiLU, softplus), long inputs
become longer, in the end a few dominate the statistics of every unit, and the formula is outside
its range. ReLU and its kin are marginal: their slope is 1.

**Layer norm** makes z ~ N(0, 1) over the units of each input: E phi'² / E phi².

**Residual branches** x + alpha phi(norm(W x)) multiply the gradient's variance by 1 + alpha²
sigma_w² E phi'² without a norm. With one, the branch is divided by a scale that grows with depth,
and what was exponential becomes a power of the depth.

**Zero padding** lets k x k windows at the border see less. For ReLU and its kin one layer maps the
variances on an n x n map by the averaging matrix A (x) A, A = band matrix of entries 1/k; its
greatest eigenvalue is the factor per layer, (1 + 2 cos(π/(n+1)))/3 squared for k = 3.

References:
  Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, "A Mean Field Theory of Batch
    Normalization", 2019.
  Yang and Schoenholz, "Mean Field Residual Networks: On the Edge of Chaos", 2017.
  Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, "Dynamical Isometry and a Mean Field
    Theory of CNNs", 2018 (with circular padding).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxdnn.layers import Norm
from jaxdnn.propagation.float64 import in_float64
from jaxdnn.propagation.mean_field import expectation, phi_moments
from jaxdnn.propagation.nonlinearity import Phi
from jaxdnn.propagation.quadrature import Number

# A slope this far above 1 is more than rounding.
_UNSTABLE = 1e-9
OUTSIDE = "outside theory"


class NormRate(NamedTuple):
    """Growth per layer with a norm.

    Attributes:
      rate: factor of the gradient's variance per layer, at infinite width and batch.
      lambda_norm: growth per layer of differences in length between inputs.
      note: `outside theory` with the reason where the rate does not hold, else empty.
    """

    rate: float
    lambda_norm: float
    note: str


def batch_norm_rate(phi: Phi) -> NormRate:
    """Return E phi'² / Var phi, with a note where it is outside theory.

    References:
      Yang et al., 2019, for the rate.
    """
    moments = phi_moments(phi)
    variance = float(moments.m2) - float(moments.m1) ** 2
    if variance < 1e-12:
        return NormRate(
            math.nan, math.nan, f"{OUTSIDE}: phi is constant, nothing is left to divide by"
        )
    m1_slope, m2_slope = (float(x) for x in _slopes(phi))
    growth = (m2_slope - 2 * float(moments.m1) * m1_slope) / variance
    note = ""
    if growth > 1 + _UNSTABLE:
        note = (
            f"{OUTSIDE}: inputs longer than the others grow by {growth:.4g} per layer under batch "
            "norm, so that a few of them dominate its statistics in deep layers"
        )
    return NormRate(float(moments.d2) / variance, growth, note)


def layer_norm_rate(phi: Phi) -> NormRate:
    """Return E phi'² / E phi²; every input has its own scale, so it always holds."""
    moments = phi_moments(phi)
    m2 = float(moments.m2)
    if m2 < 1e-12:
        return NormRate(math.nan, math.nan, f"{OUTSIDE}: phi is zero, nothing is left to divide by")
    return NormRate(float(moments.d2) / m2, 0.0, "")


@in_float64
def _slopes(phi: Phi) -> tuple[Array, Array]:
    """Return d E phi / dq and d E phi² / dq at q = 1, the derivative on the density."""
    first = expectation(phi, 1.0, f=lambda phi, h: phi(h) * (h**2 - 1) / 2)
    second = expectation(phi, 1.0, f=lambda phi, h: phi(h) ** 2 * (h**2 - 1) / 2)
    return first, second


def residual_rate(phi: Phi, sigma_w2: float, q: float, *, alpha: float = 1.0) -> float:
    """Return 1 + alpha² sigma_w² E phi'², the factor of the variance of dL/dx per block, no norm.

    References:
      Yang and Schoenholz, 2017.
    """
    return 1 + alpha**2 * sigma_w2 * float(phi_moments(phi, q).d2)


def residual_exponent(phi: Phi, *, norm: Norm) -> float:
    """Return p where the variance of dL/dx grows like depth^p in a residual network with a norm.

    Block l is divided by a variance of about l Var phi (batch norm), or l E phi² (layer norm, E phi
    = 0), so that the factors 1 + p/l multiply to a power; alpha and sigma_w drop out. Where E phi
    is not 0, layer norm divides by about l², and the growth stays bounded: p = 0. Without a norm
    the growth is exponential: NaN; see `residual_rate`.
    """
    moments = phi_moments(phi)
    m1, m2, d2 = (float(moment) for moment in moments)
    if norm == "batch":
        return d2 / (m2 - m1**2)
    if norm == "layer":
        return d2 / m2 if abs(m1) < 1e-9 else 0.0
    return math.nan


def padding_rate(size: int, window: int = 3) -> float:
    """Return the factor of the variance per layer of a zero-padded convolution, ReLU and its kin.

    Args:
      size: n of the n x n map.
      window: k of the k x k kernel, odd; stride 1, `SAME` padding, gain that keeps the variance.
    """
    return float(np.linalg.eigvalsh(_averaging(size, window))[-1] ** 2)


def _averaging(size: int, window: int) -> np.ndarray:
    apart = np.abs(np.arange(size)[:, None] - np.arange(size))
    return np.where(apart <= window // 2, 1 / window, 0.0)


class ConvolutionPrediction(NamedTuple):
    """What happens on the map of a zero-padded convolutional network.

    Attributes:
      q: variance of the pre-activation at each place, (layer, height, width).
      factor: RMS of delta over the map in this layer over that in the next; (layer - 1,).
    """

    q: Float[Array, "layer height width"]
    factor: Float[Array, " pair"]


@in_float64
def predict_convolution(
    phi: Phi,
    sigma_w2: Number,
    sigma_b2: Number = 0.0,
    input_moment: Number = 1.0,
    *,
    size: int,
    depth: int,
    window: int = 3,
) -> ConvolutionPrediction:
    """Iterate variances over an n x n map through `depth` zero-padded convolutions, and back.

    Args:
      phi: the activation; any.
      sigma_w2: window² channels times the variance of a weight.
      sigma_b2: variance of a bias.
      input_moment: mean square of the inputs, the same everywhere.
      size: n.
      depth: number of layers, at least 2.
      window: k of the k x k kernel, odd.
    """
    average = jnp.asarray(_averaging(size, window))
    moments = jax.vmap(jax.vmap(lambda q: phi_moments(phi, q)))

    def forward(second: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        q = sigma_w2 * average @ second @ average + sigma_b2
        found = moments(q)
        return found.m2, (q, found.d2)

    def backward(delta2: Array, d2: Array) -> tuple[Array, Array]:
        before = sigma_w2 * d2 * (average @ delta2 @ average)
        return before, jnp.sqrt(before.mean() / delta2.mean())

    start = jnp.full((size, size), input_moment)
    _, (q, d2) = jax.lax.scan(forward, start, None, length=depth)
    _, factor = jax.lax.scan(backward, d2[-1], d2[:-1], reverse=True)
    return ConvolutionPrediction(q, factor)
