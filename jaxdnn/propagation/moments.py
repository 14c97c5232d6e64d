"""What signals and gradients do inside a network: moments of every layer, forward and backward.

A network of `depth` kernels, each hidden layer of the same width:

    u_l = h_(l-1) W_l,   z_l = norm(u_l),   h_l = phi(z_l)  [+ h_(l-1)],   l = 1 .. depth - 1
    logits = h_(depth-1) W_depth

z is the pre-activation, and delta_l = dL/dz_l is the signal that vanishes or explodes. It comes
from the lecture's backward formulas, one layer at a time, so that neither compile time nor the
memory for gradients grows with depth:

    delta_l = phi'(z_l) * dL/dh_l,   dL/dW_l = h_(l-1)^T dL/du_l,   dL/dh_(l-1) = dL/du_l W_l^T

The gradient of a kernel can stay large while delta dies, because it is delta times the activation:
under Xavier and ReLU delta shrinks toward the input while the activation shrinks toward the output.

References:
  Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks",
  2010. Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxdnn.norms import BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, Norm
from jaxdnn.propagation.nonlinearity import Phi

# |phi'| below this share of its maximum counts as saturated.
SATURATED = 0.01
# A layer with a greater share of dead units passes next to nothing.
DEAD_FRACTION = 0.999
# A gradient that changes by more than this over the whole depth leaves the first layers behind.
HEALTHY_LOG10 = 2.0
_SCALE = 2.0**64

# (logits, labels) -> mean loss
Loss = Callable[[Array, Array], Array]
# A field of `Moments` -> its value in one layer, or in many.
Statistics = dict[str, Array]


class Kernels(NamedTuple):
    """The kernels of a network of at least two.

    Attributes:
      first: (input, width), the layer nearest the input.
      hidden: (depth - 2, width, width), stacked.
      last: (width, output).
    """

    first: Array
    hidden: Array
    last: Array


class Moments(NamedTuple):
    """Statistics of every layer; layer 1 (index 0) is nearest the input, the last is the output.

    Attributes:
      pre_activation_mean: mean of z over batch and units.
      pre_activation_rms: root mean square of z.
      pre_activation_second_moment: mean of z².
      dead_fraction: share of units with phi' = 0 for every example.
      saturated_fraction: share of units and examples with |phi'| < 1 % of its maximum.
      correlation: mean cosine between the z of two examples, over neighbouring pairs.
      delta_rms: root mean square of dL/dz over batch and units, L the mean loss.
      delta_rms_by_example: root mean square of dL/dz for each example; (layer, batch).
      kernel_grad_rms: root mean square of dL/dW.
      kernel_rms: root mean square of W.
    """

    pre_activation_mean: Array
    pre_activation_rms: Array
    pre_activation_second_moment: Array
    dead_fraction: Array
    saturated_fraction: Array
    correlation: Array
    delta_rms: Array
    delta_rms_by_example: Array
    kernel_grad_rms: Array
    kernel_rms: Array

    @property
    def kernel_grad_ratio(self) -> Array:
        """RMS of dL/dW over that of W; NaN where both are zero."""
        return self.kernel_grad_rms / self.kernel_rms


def normalise(u: Array, norm: Norm) -> Array:
    """Normalise over the batch, over the units, or not at all (gamma = 1, beta = 0)."""
    if norm == "none":
        return u
    axis, epsilon = {"batch": (0, BATCH_NORM_EPSILON), "layer": (1, LAYER_NORM_EPSILON)}[norm]
    return (u - u.mean(axis, keepdims=True)) * lax.rsqrt(u.var(axis, keepdims=True) + epsilon)


def measure(
    kernels: Kernels,
    inputs: Float[Array, "batch input"],
    labels: Array,
    phi: Phi,
    *,
    max_slope: Array | float,
    loss: Loss,
    norm: Norm = "none",
    residual: bool = False,
) -> Moments:
    """Pass a batch forward and back, and return the moments of every layer.

    Args:
      kernels: at least two; their dtype is the precision of the whole pass.
      inputs: (batch, input), at least two examples.
      labels: what `loss` takes.
      phi: the activation.
      max_slope: the greatest |phi'|.
      loss: `(logits, labels) -> mean loss`.
      norm: applied to every hidden pre-activation.
      residual: add each hidden layer's input to its output, from the second layer on.

    Returns:
      Moments in float32, one entry for each kernel.
    """

    def forward(h: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        u = h @ kernel
        a = phi(normalise(u, norm))
        return (a + h if residual else a), (h, u)

    def through(grad: Array, h: Array, u: Array) -> tuple[Array, Statistics]:
        """Take dL/dh of a layer to dL/du of it, and reduce what was met on the way."""
        z, back = jax.vjp(lambda u: normalise(u, norm), u)
        slope = jax.jvp(phi, (z,), (jnp.ones_like(z),))[1]
        delta = grad * slope
        (grad_u,) = back(delta)
        return grad_u, _reduce(z, slope / max_slope, delta, h.T @ grad_u)

    def backward(grad: Array, saved: tuple[Array, Array, Array]) -> tuple[Array, Statistics]:
        h, u, kernel = saved
        grad_u, statistics = through(grad, h, u)
        grad_h = grad_u @ kernel.T
        return (grad_h + grad if residual else grad_h), statistics

    u = inputs @ kernels.first
    h, (hs, us) = lax.scan(forward, phi(normalise(u, norm)), kernels.hidden)
    logits = h @ kernels.last
    delta = jax.grad(lambda logits: loss(logits.astype(jnp.float32), labels))(logits)
    last = _reduce(logits, jnp.ones_like(logits), delta, h.T @ delta)
    saved = (hs, us, kernels.hidden)
    grad, hidden = lax.scan(backward, delta @ kernels.last.T, saved, reverse=True)
    _, first = through(grad, inputs, u)
    layers = jax.tree.map(
        lambda a, b, c: jnp.concatenate([a[None], b, c[None]]), first, hidden, last
    )
    return Moments(**layers, kernel_rms=kernel_rms(kernels))


def _reduce(z: Array, slope: Array, delta: Array, kernel_grad: Array) -> Statistics:
    """Reduce one layer; `slope` is phi' over its greatest absolute value."""
    z, slope, delta = (x.astype(jnp.float32) for x in (z, slope, delta))
    return dict(
        pre_activation_mean=jnp.mean(z),
        pre_activation_rms=rms(z),
        pre_activation_second_moment=jnp.mean(z**2),
        dead_fraction=dead_fraction(slope),
        saturated_fraction=saturated_fraction(slope, 1.0),
        correlation=correlation(z),
        delta_rms=rms(delta),
        delta_rms_by_example=rms(delta, axis=1),
        kernel_grad_rms=rms(kernel_grad),
    )


def dead_fraction(slope: Array) -> Array:
    """Return the share of units (last axis) whose slope phi' is 0 for every example and place.

    Like the next two, of an array of jax.numpy, or of numpy on the host.
    """
    return (slope == 0).all(axis=tuple(range(slope.ndim - 1))).mean()


def saturated_fraction(slope: Array, max_slope: Array | float) -> Array:
    """Return the share of all slopes with |phi'| below 1 % of the greatest."""
    return (abs(slope) < SATURATED * max_slope).mean()


def correlation(z: Array) -> Array:
    """Return the mean cosine of neighbouring examples (rows); NaN where one is zero."""
    lengths = (z**2).sum(axis=1) ** 0.5
    return ((z[1:] * z[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])).mean()


def rms(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Root mean square in float32, of anything that float32 holds.

    Squares leave float32 below 1e-19 and above 1e19: only there x is scaled by a power of two,
    which takes two more passes.
    """
    x = x.astype(jnp.float32)
    plain = _scaled_rms(x, axis, 1.0)

    def rescaled() -> Array:
        small, large = (_scaled_rms(x, axis, scale) for scale in (_SCALE, 1 / _SCALE))
        return jnp.where(plain < 1e-15, small, jnp.where(plain > 1e15, large, plain))

    return lax.cond(jnp.all((plain >= 1e-15) & (plain <= 1e15)), lambda: plain, rescaled)


def _scaled_rms(x: Array, axis: int | tuple[int, ...] | None, scale: float) -> Array:
    return jnp.sqrt(jnp.mean((x * scale) ** 2, axis)) / scale


def kernel_rms(kernels: Kernels) -> Float[Array, " layer"]:
    """Return the root mean square of every kernel."""
    first, last = rms(kernels.first)[None], rms(kernels.last)[None]
    return jnp.concatenate([first, rms(kernels.hidden, axis=(1, 2)), last])
