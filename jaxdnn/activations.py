"""Activation functions: what each computes, and the range of its values and of its derivative.

A gradient that passes back through a layer is multiplied by the derivative phi'(z) of every unit.
Where the range of phi' lies below 1 (sigmoid: at most 1/4) depth alone makes gradients vanish.

Every activation is an `Activation`, called on an array like a plain function:

    >>> import jax.numpy as jnp
    >>> from jaxdnn.activations import make_activation
    >>> elu = make_activation("elu", alpha=0.5)
    >>> [f"{value:.3f}" for value in elu(jnp.array([-1.0, 2.0]))]
    ['-0.316', '2.000']
    >>> elu.derivative_range
    (0.0, 1.0)

What is made twice is equal, so that programs compiled for it are found again: those with a function
of their own are cached.

Two of them have a slope that is not a constant: the parametric ReLU trains it, the randomized ReLU
draws it for every unit and step of training and uses its mean in evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.errors import InputError
from jaxdnn.names import resolve

Range = tuple[float, float]
_INF = math.inf
_HE_GAIN = math.sqrt(2)


@dataclasses.dataclass(frozen=True)
class Slope:
    """The slope of the negative side, where it is not a constant: trained, or drawn uniformly.

    Attributes:
      kind: `trained` (a parameter that starts at `low`) or `random` (uniform in [low, high]).
      low: least slope.
      high: greatest slope.
    """

    kind: Literal["trained", "random"]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The value in evaluation, and the start of a trained slope."""
        return (self.low + self.high) / 2

    def draw(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """Draw one slope for each unit of `shape`."""
        return jax.random.uniform(key, shape, dtype, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function phi with what is known about it.

    Attributes:
      name: canonical name.
      function: `x -> phi(x)`, or `(x, slope) -> phi(x)` where `slope` is not None.
      value_range: infimum and supremum of phi.
      derivative_range: infimum and supremum of phi'.
      slope: how the negative side's slope comes about, or None where it is part of `function`.
      common_gain: factor on the standard deviation 1/√fan_in in common use with it (PyTorch's
        `calculate_gain`; He et al., 2015, whose √2 is used for ELU, GELU and SiLU as well); None
        where there is none.
    """

    name: str
    function: Callable[..., Array]
    value_range: Range
    derivative_range: Range
    slope: Slope | None = None
    common_gain: float | None = None

    @property
    def max_slope(self) -> float:
        """The supremum of |phi'|."""
        return max(map(abs, self.derivative_range))

    def __call__(self, x: Array, slope: Array | float | None = None) -> Array:
        """Return phi(x), elementwise; `slope` (default: its mean) only where one is used."""
        if self.slope is None:
            return self.function(x)
        return self.function(x, self.slope.mean if slope is None else slope)

    def derivative(self, x: Array) -> Array:
        """Return phi'(x), elementwise, in the form used for evaluation."""
        return jax.jvp(self, (x,), (jnp.ones_like(x),))[1]


def sigmoid() -> Activation:
    """1 / (1 + exp(-x)). Its derivative never exceeds 1/4."""
    return Activation("sigmoid", jax.nn.sigmoid, (0.0, 1.0), (0.0, 0.25), common_gain=1.0)


def tanh() -> Activation:
    """tanh(x) = 2 sigmoid(2x) - 1."""
    return Activation("tanh", jnp.tanh, (-1.0, 1.0), (0.0, 1.0), common_gain=5 / 3)


def relu() -> Activation:
    """max(x, 0). Nair and Hinton, "Rectified Linear Units Improve RBMs", 2010."""
    return Activation("relu", jax.nn.relu, (0.0, _INF), (0.0, 1.0), common_gain=_HE_GAIN)


@functools.cache
def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Return x where x > 0, otherwise negative_slope * x.

    Maas, Hannun and Ng, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", 2013.
    """
    derivatives = (min(negative_slope, 1.0), max(negative_slope, 1.0))
    return Activation(
        "leaky_relu",
        lambda x: jax.nn.leaky_relu(x, negative_slope),
        _leaky_values(negative_slope),
        derivatives,
        common_gain=_leaky_gain(negative_slope),
    )


def parametric_relu(negative_slope: float = 0.25) -> Activation:
    """Leaky ReLU whose slope is trained, one for each feature, from `negative_slope` on.

    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015. The ranges hold at the start.
    """
    slope = Slope("trained", negative_slope, negative_slope)
    derivatives = (min(negative_slope, 1.0), max(negative_slope, 1.0))
    return Activation(
        "parametric_relu",
        jax.nn.leaky_relu,
        _leaky_values(negative_slope),
        derivatives,
        slope,
        _leaky_gain(negative_slope),
    )


def randomized_relu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Leaky ReLU whose slope is uniform in [lower, upper], drawn per unit while training.

    Xu, Wang, Chen and Li, "Empirical Evaluation of Rectified Activations in Convolutional
    Network", 2015.
    """
    if lower > upper:
        raise InputError(f"randomized_relu: lower {lower} exceeds upper {upper}; swap them")
    return Activation(
        "randomized_relu",
        jax.nn.leaky_relu,
        _leaky_values(upper),
        (min(lower, 1.0), max(upper, 1.0)),
        Slope("random", lower, upper),
        _leaky_gain((lower + upper) / 2),
    )


def _leaky_values(slope: float) -> Range:
    return (-_INF if slope > 0 else 0.0, _INF)


def _leaky_gain(slope: float) -> float:
    return math.sqrt(2 / (1 + slope**2))


@functools.cache
def elu(alpha: float = 1.0) -> Activation:
    """Return x where x > 0, otherwise alpha (exp(x) - 1).

    Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential
    Linear Units", 2015.
    """
    if alpha < 0:
        raise InputError(f"elu: alpha {alpha} is negative; give one of 0 or more")
    return Activation(
        "elu",
        lambda x: jax.nn.elu(x, alpha),
        (-alpha, _INF),
        (0.0, max(1.0, alpha)),
        common_gain=_HE_GAIN,
    )


def selu() -> Activation:
    """ELU scaled so that mean 0 and variance 1 are a fixed point.

    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-Normalizing Neural Networks", 2017.
    """
    max_slope = 1.0507009873554805 * 1.6732632423543772
    return Activation("selu", jax.nn.selu, (-max_slope, _INF), (0.0, max_slope), common_gain=0.75)


@functools.cache
def gelu(approximate: bool = False) -> Activation:
    """Return x Phi(x), Phi the normal distribution function; or its tanh approximation.

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    least, flattest = (-0.17004075, -0.12899307) if approximate else (-0.16997121, -0.12890415)
    return Activation(
        "gelu",
        lambda x: jax.nn.gelu(x, approximate=approximate),
        (least, _INF),
        (flattest, 1 - flattest),
        common_gain=_HE_GAIN,
    )


def silu() -> Activation:
    """Return x sigmoid(x), also called swish.

    Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units for Neural Network Function
    Approximation in Reinforcement Learning", 2017.
    """
    return Activation(
        "silu",
        jax.nn.silu,
        (-0.27846454, _INF),
        (-0.09983932, 1.09983932),
        common_gain=_HE_GAIN,
    )


def softplus() -> Activation:
    """Return log(1 + exp(x)).

    Dugas et al., "Incorporating Second-Order Functional Knowledge for Better Option Pricing",
    2000.
    """
    return Activation("softplus", jax.nn.softplus, (0.0, _INF), (0.0, 1.0))


def soft_sign() -> Activation:
    """Return x / (1 + |x|).

    Bergstra et al., "Quadratic Polynomials Learn Better Image Features", 2009.
    """
    return Activation("soft_sign", jax.nn.soft_sign, (-1.0, 1.0), (0.0, 1.0))


def hard_tanh() -> Activation:
    """Return x clipped to [-1, 1]. Collobert, "Large Scale Machine Learning", 2004."""
    return Activation("hard_tanh", jax.nn.hard_tanh, (-1.0, 1.0), (0.0, 1.0))


ACTIVATIONS: dict[str, Callable[..., Activation]] = {
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "parametric_relu": parametric_relu,
    "randomized_relu": randomized_relu,
    "elu": elu,
    "selu": selu,
    "gelu": gelu,
    "silu": silu,
    "softplus": softplus,
    "soft_sign": soft_sign,
    "hard_tanh": hard_tanh,
}
ALIASES = {
    "prelu": "parametric_relu",
    "rrelu": "randomized_relu",
    "swish": "silu",
    "softsign": "soft_sign",
    "logistic": "sigmoid",
}

# What JAX has by another name, a primitive's too, or with another default than here.
_IN_JAX = {"max": relu, "gelu": functools.partial(gelu, approximate=True)}


def jax_activation(name: str) -> Activation | None:
    """Return what a function of `jax.nn` or a primitive called `name` computes, None if unknown."""
    factory = _IN_JAX.get(name) or ACTIVATIONS.get(ALIASES.get(name, name))
    return factory() if factory else None


def make_activation(name: str, **parameters: float) -> Activation:
    """Make the activation called `name`.

    Args:
      name: a key of `ACTIVATIONS`, or an alias (`prelu`, `rrelu`, `swish`, ...).
      **parameters: what that activation takes, such as `negative_slope` or `alpha`.

    Raises:
      InputError: the name is unknown, or the activation has no such parameter.
    """
    factory = ACTIVATIONS[resolve(name, ACTIVATIONS, ALIASES, "activation")]
    known = list(inspect.signature(factory).parameters)
    for parameter in parameters:
        if parameter not in known:
            takes = ", ".join(known) or "no parameters"
            raise InputError(f"activation {name} has no parameter {parameter}; it takes {takes}")
    return factory(**parameters)
