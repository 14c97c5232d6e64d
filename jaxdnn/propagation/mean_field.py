"""What signals and gradients do at any depth, in the limit of infinite width.

**The network.** A fully connected layer maps the activations x of the layer below to
pre-activations h = W x + b and passes x = phi(h) on. Weights and biases are drawn with mean zero
and

    Var W = sigma_w² / fan_in,        Var b = sigma_b².

Given the layer below, every h_i is a sum of many independent terms, hence normal (exactly so as the
width goes to infinity), and the units of a layer are independent. So a layer is described by very
few numbers: the variance of one pre-activation and, for two inputs, their correlation.

**Forward: the variance map.** With q = E h² and z ~ N(0, 1), the next layer has (`variance_map`)

    V(q) = sigma_w² E phi(√q z)² + sigma_b².

A fixed point is q* = V(q*). It attracts where the slope |V'(q*)| < 1, with

    V'(q) = sigma_w² E phi(√q z) phi'(√q z) z / √q                                  (`slope`),

and q then reaches q* like exp(-l / xi_q), xi_q = -1 / ln |V'(q*)|. Where the slope is above 1 the
fixed point repels, and no network stays there: GELU and SiLU have such points. There may be several
fixed points, none, one at zero or infinity, or a whole half line (ReLU under He: V(q) = q).

**Backward: chi_1.** The gradient delta = dL/dh obeys delta^l = phi'(h^l) * (W^T delta^(l+1)). If
the weights on the way back are taken as independent of those on the way forward, its variance is
multiplied at each layer by (`chi`)

    chi_1 = sigma_w² E phi'(√q* z)².

chi_1 < 1: gradients vanish. chi_1 > 1: they explode. chi_1 = 1 is critical, the only kind of
initialisation at which depth does no exponential harm. √chi_1 is the factor of delta's RMS, and the
gradient's depth scale is -1 / ln chi_1: its variance falls by e over so many layers (rises, where
the scale is negative). Where fan_out differs from fan_in, the way back has sigma_w² fan_out/fan_in.

**Two inputs: the correlation map.** Two inputs with the same q and the correlation c of their
pre-activations have in the next layer the correlation (`correlation_map`)

    C(c) = (sigma_w² E phi(u) phi(v) + sigma_b²) / q*,     u, v normal: variance q*, correlation c.

C(1) = 1 always, and by Price's theorem the slope there is chi_1: the same number that tells whether
gradients explode tells whether equal inputs drift apart. C is a power series in c with coefficients
of zero or more, thus convex on [0, 1], which leaves two phases:

    ordered, chi_1 <= 1: all inputs become alike, c* = 1 is the only limit;
    chaotic, chi_1 > 1: c = 1 repels, and all pairs, however near, reach one c* < 1.

Correlations approach c* like exp(-l / xi_c) with xi_c = -1 / ln chi_c*, where (`correlation_slope`)

    chi_c = C'(c) = sigma_w² E phi'(u) phi'(v).

What depth does to the differences between inputs is lost after a few xi_c: a network much deeper
than 6 xi_c is not trained by gradient descent (Schoenholz et al., 2017). On the critical line xi_c
is infinite, and any depth can be trained.

**Dropout** that keeps a share p of the units and divides by p makes second moments larger by 1/p
and leaves the product of two inputs with separate masks as it is: V has sigma_w²/p, and C(1) < 1.
There is then no critical point at all.

**Beyond the basics**, in the other modules of this folder:

    fixed_points      all q*, what attracts; c*; the depth scales, with what is undefined and why
    critical          all (sigma_w, sigma_b) with chi_1 = 1, and the line that they form
    phase_diagram     order, chaos and xi_c over a grid of (sigma_w², sigma_b²)
    activation_table  moments, gains and factors of all activations
    finite_depth      from the data's own second moment on, layer by layer, with norms and residuals
    finite_width      how far one random network strays from the mean, and its 90 % band
    spectrum          the moments of the Jacobian's singular values; dynamical isometry

**Kinks and jumps.** Expectations are exact integrals over the normal density with panels that end
at the kinks of phi (`quadrature`, `nonlinearity`), relative error below 1e-9. At a jump phi' has a
point mass, which automatic differentiation leaves out. chi_1 is then the factor of the gradient
that a program computes; the slope of C at 1 is infinite, and c* < 1 always.

**Limits.** The width is infinite, before the depth is: corrections go like depth/width
(`finite_width`). Biases and weights are at initialisation. A parametric or randomised slope stands
at its mean.

References:
  Neal, "Bayesian Learning for Neural Networks", 1996: wide layers are normal.
  Cho and Saul, "Kernel Methods for Deep Learning", 2009: the closed form for ReLU.
  Poole, Lahiri, Raghu, Sohl-Dickstein and Ganguli, "Exponential Expressivity in Deep Neural
    Networks through Transient Chaos", 2016: V, C, chi_1, order and chaos.
  Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017: depth
    scales, gradients, dropout, how deep a network can be trained.
  Hayou, Doucet and Rousseau, "On the Impact of the Activation Function on Deep Neural Networks
    Training", 2019: the critical line of other activations.
  Roberts, Yaida and Hanin, "The Principles of Deep Learning Theory", 2022: critical points where V
    is marginal, finite width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdnn.propagation.nonlinearity import Nonlinearity, Phi, in_float64, make_nonlinearity
from jaxdnn.propagation.quadrature import (
    NUM_NODES,
    SMALLEST_VARIANCE,
    Function,
    Number,
    mean,
    pair_mean,
)

# Below this variance the slope of V is its limit; where phi(0) is not 0, smaller ones lose digits.
_SLOPE_VARIANCE = 1e-12


class PhiMoments(NamedTuple):
    """Moments of an activation under a normal pre-activation.

    Attributes:
      m1: E phi.
      m2: E phi².
      d2: E phi'².
    """

    m1: Array
    m2: Array
    d2: Array

    @property
    def variance(self) -> Array:
        """Var phi."""
        return self.m2 - self.m1**2


@in_float64
def phi_moments(phi: Phi, q: Number = 1.0) -> PhiMoments:
    """Return E phi, E phi² and E phi'² for h ~ N(0, q), q >= 0 a scalar."""
    phi = make_nonlinearity(phi)
    return PhiMoments(
        _mean(phi, phi.function, q),
        _second_moment(phi, q),
        _mean(phi, lambda h: phi.derivative(h) ** 2, q),
    )


@in_float64
def expectation(phi: Phi, q: Number, *, f: Callable[[Nonlinearity, Array], Array]) -> Array:
    """Return E f(phi, h) for h ~ N(0, q), where f is smooth but where `phi` kinks or jumps."""
    nonlinearity = make_nonlinearity(phi)
    return _mean(nonlinearity, lambda h: f(nonlinearity, h), q)


@in_float64
def variance_map(
    phi: Phi, sigma_w2: Number, sigma_b2: Number, q: Number, *, dropout: float = 0.0
) -> Array:
    """Return V(q), the variance of the next pre-activation; all arguments scalars >= 0.

    References:
      Poole et al., 2016; with dropout, Schoenholz et al., 2017.
    """
    return sigma_w2 / (1 - dropout) * _second_moment(make_nonlinearity(phi), q) + sigma_b2


@in_float64
def slope(phi: Phi, sigma_w2: Number, q: Number, *, dropout: float = 0.0) -> Array:
    """Return V'(q); for q = 0 its limit from above."""
    phi = make_nonlinearity(phi)
    at_zero = jnp.squeeze(phi(jnp.zeros(1)))
    q = jnp.maximum(q, jnp.where(at_zero == 0, SMALLEST_VARIANCE, _SLOPE_VARIANCE))
    if phi.jumps:
        # The derivative falls on the normal density, so that the point masses count.
        change = _mean(phi, lambda h: phi(h) ** 2 * (h**2 / q - 1), q) / (2 * q)
    else:
        change = _mean(phi, lambda h: phi(h) * phi.derivative(h) * h, q) / q
    return sigma_w2 / (1 - dropout) * change


@in_float64
def chi(phi: Phi, sigma_w2: Number, q: Number, *, dropout: float = 0.0) -> Array:
    """Return sigma_w² E phi'², the factor of the variance of delta per layer at pre-activations q.

    References:
      Schoenholz et al., 2017.
    """
    phi = make_nonlinearity(phi)
    return sigma_w2 / (1 - dropout) * _mean(phi, lambda h: phi.derivative(h) ** 2, q)


@in_float64
def covariance(phi: Phi, q: Number, c: Number) -> Array:
    """Return E phi(u) phi(v), u and v of variance q > 0 and correlation c in [-1, 1]."""
    phi = make_nonlinearity(phi)
    return pair_mean(lambda u, v, s, t: phi(u) * phi(v), phi.points, q, c)


@in_float64
def correlation_map(
    phi: Phi, sigma_w2: Number, sigma_b2: Number, q: Number, c: Number, *, dropout: float = 0.0
) -> Array:
    """Return C(c), the next correlation of two inputs of variance q > 0 each.

    With dropout the masks of the two inputs are drawn separately.

    References:
      Poole et al., 2016.
    """
    after = variance_map(phi, sigma_w2, sigma_b2, q, dropout=dropout)
    return (sigma_w2 * covariance(phi, q, c) + sigma_b2) / after


@in_float64
def correlation_slope(phi: Phi, sigma_w2: Number, q: Number, c: Number) -> Array:
    """Return sigma_w² dE[phi(u) phi(v)]/d(q c), the factor of a small change of the correlation.

    At c = 1 it is chi_1, or infinite where phi jumps.

    References:
      Price, "A Useful Theorem for Nonlinear Devices Having Gaussian Inputs", 1958.
    """
    phi = make_nonlinearity(phi)
    if not phi.jumps:
        return sigma_w2 * pair_mean(
            lambda u, v, s, t: phi.derivative(u) * phi.derivative(v), phi.points, q, c
        )
    # The derivative falls on the densities of a s and b t, whose variances are (1 ± c)/2.
    a2, b2 = (1 + jnp.abs(c)) / 2, (1 - jnp.abs(c)) / 2

    def change(u: Array, v: Array, s: Array, t: Array) -> Array:
        return (
            jnp.where(c < 0, -1.0, 1.0) * phi(u) * phi(v) * ((s**2 - 1) / a2 - (t**2 - 1) / b2) / 4
        )

    found = pair_mean(change, phi.points, q, c)
    return jnp.where(jnp.abs(c) < 1, sigma_w2 * found / q, jnp.inf)


@in_float64
def decorrelation(phi: Phi, q: Number, c: Number, *, num_nodes: int = NUM_NODES) -> Array:
    """Return (E phi² - E phi(u) phi(v)) / (1 - c) for 0 <= c <= 1, without cancellation.

    At c = 1 it is the limit q E phi'², or infinite where phi jumps. sigma_w² times this is the mean
    slope of q C from c to 1; since C is convex, it grows with c.
    """
    phi = make_nonlinearity(phi)
    apart = jnp.maximum(1 - c, 1e-15)
    half_square = pair_mean(
        lambda u, v, s, t: (phi(u) - phi(v)) ** 2 / 2, phi.points, q, c, num_nodes=num_nodes
    )
    limit = jnp.inf if phi.jumps else q * _mean(phi, lambda h: phi.derivative(h) ** 2, q)
    return jnp.where(c > 1 - 1e-13, limit, half_square / apart)


def _second_moment(phi: Nonlinearity, q: Number) -> Array:
    """Return E phi²; below the rule's least variance phi is linear on either side of zero."""
    at_zero = jnp.squeeze(phi(jnp.zeros(1))) ** 2
    small = jnp.where(at_zero == 0, q / SMALLEST_VARIANCE, 1.0)
    return _mean(phi, lambda h: phi(h) ** 2, q) * jnp.minimum(small, 1.0)


def _mean(phi: Nonlinearity, f: Function, q: Number) -> Array:
    return mean(f, phi.points, q)
