"""Layer by layer from the data on: what a network of finite depth does, norms and residuals too.

Fixed points say what happens far from the input; a network starts where its data are. From the
second moment p of the inputs the variance of the pre-activations is iterated through the layers,
which shows what no fixed point does: under Xavier, tanh decays like 1/depth and not exponentially;
under He, what GELU does depends on the scale of its input.

The pre-activation of layer l is h^l = W^l x^(l-1) + b^l, z^l = norm(h^l), and

    x^l = phi(z^l),  or with residual branches  x^l = x^(l-1) + alpha phi(z^l)   (from layer 2 on).

Batch norm divides by the standard deviation of a unit over the batch, layer norm by that of an
input over the units; either makes E z² = 1 and takes the scale of h out of the forward pass, and
the same scale divides the gradient. delta^l = dL/dz^l has, going back from layer l + 1 to l, the
RMS factor

    √(sigma_w² fan_ratio E phi'(z^l)² / s^(l+1)),    s = 1, or the variance that the norm divided
    by.

One part of the gradient goes another way: that along the signal, which says what a longer signal
does to the loss. By the chain rule it follows p = E x², whatever the weights are, and its RMS takes
the factor

    (d ln p^(l+1) / d ln p^l) √(p^(l+1) / p^l).

At the output it is a share of about 1/width, so that it counts for nothing at infinite width. But
where its factor is the greater one it takes over after some log(width) layers: softplus under He,
and residual branches without norm whose phi has a mean, for the signals then grow along it.

**Batch norm** multiplies the gradient's variance by E phi'² / Var phi per layer, above 1 for every
phi that is not linear. This holds while all inputs of the batch stay alike. Let one input have
variance q where the others have 1; in the next layer it has

    (E phi(√q z)² - 2 E phi(√q z) E phi(z) + (E phi(z))²) / Var phi,

with a slope `lambda_norm` at q = 1. Where that is above 1 (GELU, SiLU, softplus), long inputs
become longer, in the end a few dominate the statistics of every unit, and the formula is outside
its range. ReLU and its kin are marginal: their slope is 1. **Layer norm** makes z ~ N(0, 1) over
the units of each input: E phi'² / E phi².

With residual branches the gradient of x obeys G^(l-1) = G^l (1 + alpha² sigma_w² fan_ratio
E phi'(z^l)² / s^l), and E (delta^l)² = alpha² E phi'(z^l)² G^l. Without a norm that is exponential;
with one, the branch is divided by a scale that grows with depth, and what was exponential becomes
a power of the depth.

References:
  Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017.
  Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, "A Mean Field Theory of Batch
    Normalization", 2019.
  Yang and Schoenholz, "Mean Field Residual Networks: On the Edge of Chaos", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxdnn.norms import BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, Norm
from jaxdnn.propagation.mean_field import expectation, phi_moments
from jaxdnn.propagation.nonlinearity import Phi, in_float64
from jaxdnn.propagation.quadrature import Number

# A slope this far above 1 is more than rounding.
_UNSTABLE = 1e-9
OUTSIDE = "outside theory"
EPSILON = {"none": 0.0, "batch": BATCH_NORM_EPSILON, "layer": LAYER_NORM_EPSILON}


class Prediction(NamedTuple):
    """What infinite width predicts for each hidden layer, the one nearest the input first.

    Attributes:
      q: second moment of the pre-activation after the norm, (layer,).
      scale: variance that the norm divides by; 1 without one, (layer,).
      factor: RMS of delta in this layer over that in the next, (layer,). The last one is what a
        further layer of the same kind would give, not the output layer.
      along: factor of the RMS of that part of delta alone that points along the signal, (layer,).
    """

    q: Float[Array, " layer"]
    scale: Float[Array, " layer"]
    factor: Float[Array, " layer"]
    along: Float[Array, " layer"]


@in_float64
def predict(
    phi: Phi,
    sigma_w2: Number,
    sigma_b2: Number = 0.0,
    input_moment: Number = 1.0,
    fan_ratio: Number = 1.0,
    alpha: Number = 1.0,
    *,
    depth: int,
    norm: Norm = "none",
    residual: bool = False,
    dropout: float = 0.0,
) -> Prediction:
    """Iterate the theory through `depth` hidden layers.

    Args:
      phi: the activation.
      sigma_w2: fan_in times the variance of a weight, one for all layers.
      sigma_b2: variance of a bias.
      input_moment: mean square of the network's inputs.
      fan_ratio: fan_out / fan_in of the hidden kernels.
      alpha: scale of the residual branches.
      depth: number of hidden layers, at least 1.
      norm: how pre-activations are normalised: `none`, `batch` (over a large batch of different
        inputs) or `layer`.
      residual: whether layers from the second on add their input.
      dropout: share of the units dropped, in [0, 1).
    """

    def step(second: Array, average: Array, first: Array) -> tuple[tuple[Array, Array], Any]:
        h = sigma_w2 * second + sigma_b2
        # Over the batch a unit varies by what inputs do not share: not by bias and mean.
        spread = sigma_w2 * (second - average**2) if norm == "batch" else h
        scale = spread + EPSILON[norm] if norm != "none" else jnp.ones_like(h)
        q = h if norm == "none" else spread / scale
        moments = phi_moments(phi, q)
        m2, d2 = moments.m2 / (1 - dropout), moments.d2 / (1 - dropout)
        kept = jnp.where(first | (not residual), 0.0, 1.0)
        size = jnp.where(kept == 1, alpha, 1.0)
        after = kept * (second + 2 * size * moments.m1 * average) + size**2 * m2
        mean = kept * average + size * moments.m1
        return (after, mean), (q, scale, d2)

    sigma_w2, alpha = jnp.asarray(sigma_w2), jnp.asarray(alpha)
    start = (jnp.asarray(input_moment), jnp.zeros_like(jnp.asarray(input_moment)))
    # One layer more gives the factor of the last.
    first = jnp.arange(depth + 1, dtype=jnp.int32) == 0
    _, (q, scale, d2, along) = jax.lax.scan(_also_along(step), start, first)
    gain = sigma_w2 * fan_ratio / scale[1:]
    if residual:
        # The first layer has no shortcut, so its branch has no alpha.
        size = jnp.where(first, 1.0, alpha)
        factor = d2[:-1] * size[:-1] ** 2 / (d2[1:] * size[1:] ** 2)
        squared = jnp.where(d2[1:] > 0, factor * (1 + gain * alpha**2 * d2[1:]), 0.0)
        # Here delta follows the gradient of x, from one block to the next.
        along = along[1:]
    else:
        squared = gain * d2[:-1]
        along = along[:-1]
    return Prediction(q[:-1], scale[:-1], jnp.sqrt(squared), along)


def _also_along(step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a step, from E x² and E x to the next and what is found, also find the factor `along`."""

    def layer(signal: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], Any]:
        second, average = signal
        # What happens if all signals are longer by the same share.
        (after, mean), longer, found = jax.jvp(
            lambda second, average: step(second, average, first),
            (second, average),
            (second, average / 2),
            has_aux=True,
        )
        along = longer[0] / after * jnp.sqrt(after / second)
        return (after, mean), (*found, along)

    return layer


class DepthLimits(NamedTuple):
    """How deep a network can be before its gradient leaves a number format.

    Attributes:
      log10: log10 of delta's RMS in the first layer for each depth from 1 on, (layer,).
      factor: RMS factor per layer that it tends to.
      depths: number format -> first depth out of range, NaN where none within reach.
    """

    log10: np.ndarray
    factor: float
    depths: dict[str, float]


# Smallest normal number and greatest number.
FORMATS = {
    "float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127),
    "bfloat16": (2.0**-126, (2 - 2.0**-7) * 2.0**127),
    "float16": (2.0**-14, 65504.0),
}
LONGEST = 10_000
FARTHEST = 1e9


def depth_limits(factors: np.ndarray, gradient_rms: float = 1.0) -> DepthLimits:
    """Find the depths at which delta's RMS falls below the smallest normal number, or overflows.

    Beyond the layers given the last factor goes on or, where it still changes, a power of the
    depth.

    Args:
      factors: RMS factor of each layer, the one nearest the input first; of a network so deep that
        the last ones are the same.
      gradient_rms: RMS of delta in the last hidden layer, above 0.
    """
    start = np.log10(gradient_rms)
    with np.errstate(divide="ignore"):
        steps = np.log10(factors)
    # A network of n hidden layers has n - 1 factors, those of its first layers.
    log10 = start + np.concatenate([[0.0], np.cumsum(steps)])
    depths = {}
    for name, (least, most) in FORMATS.items():
        outside = (log10 < np.log10(least)) | (log10 > np.log10(most))
        if outside.any():
            depths[name] = float(np.argmax(outside) + 1)
            continue
        limit = np.log10(least) if steps[-1] < 0 else np.log10(most)
        depths[name] = _extrapolate(steps, log10[-1], float(limit))
    return DepthLimits(log10, float(factors[-1]), depths)


def _extrapolate(steps: np.ndarray, last: float, limit: float) -> float:
    """Return the depth at which log10 reaches the limit, NaN where that is too far to say."""
    depth, step = len(steps) + 1, steps[-1]
    if abs(step) < 1e-12:
        return float("nan")
    further = (limit - last) / step
    if abs(step / steps[len(steps) // 2] - 1) > 0.1:
        # Still changing, like 1/layer: the gradient is a power of the depth.
        further = depth * np.expm1(min(further / depth, 100.0))
    found = depth + np.ceil(further)
    return float(found) if found <= FARTHEST else float("nan")


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
