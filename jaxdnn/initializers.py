"""Weight initialization: how each scheme draws a kernel, and the variance that it promises.

At initialization a layer of n_in inputs multiplies the variance of the signal by n_in Var(w), and
that of the gradient by n_out Var(w). A scheme is a choice of Var(w):

    xavier   2 / (n_in + n_out)   a compromise of forward and backward, for linear units
    msra     2 / n_in             keeps the forward variance through ReLU, which halves it
    lecun    1 / n_in             keeps the forward variance through linear units and SELU

Kernels have the shape (..., n_in, n_out); for a convolution the leading axes are its window, and
both fans count it: fan_in = window * n_in, fan_out = window * n_out. `gain` multiplies the
standard deviation. The schemes named after people draw normals that are truncated at two standard
deviations and widened, so that the realised variance is the promised one.

The lecture's last initialization, another network's weights, is `jaxdnn.training.pretrained`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers as jax_initializers

from jaxdnn.errors import InputError
from jaxdnn.names import resolve

# Standard deviation of the standard normal distribution truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978
DEFAULT_SCALE = 0.01


class Draw(Protocol):
    """Draws a kernel: `(key, shape, dtype) -> Array`, as in `jax.nn.initializers`."""

    def __call__(self, key: Array, shape: Sequence[int], dtype: jnp.dtype = ..., /) -> Array:
        """Return a kernel of `shape`."""
        ...


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A scheme with its parameters filled in.

    Attributes:
      name: canonical name.
      draw: `(key, shape, dtype) -> kernel`.
      variance: `shape -> Var(w)`, the variance of an entry that the scheme promises.
    """

    name: str
    draw: Draw
    variance: Callable[[Sequence[int]], float]

    def __call__(self, key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        """Draw a kernel of `shape` (..., n_in, n_out)."""
        return self.draw(key, shape, dtype)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a kernel of shape (..., n_in, n_out)."""
    if len(shape) < 2:
        raise InputError(f"a kernel has at least 2 axes (..., n_in, n_out); got shape {shape}")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def zeros() -> Initializer:
    """All weights zero: no unit differs from another and no gradient passes a hidden layer."""
    return Initializer("zeros", jax_initializers.zeros, lambda shape: 0.0)


def normal(scale: float = DEFAULT_SCALE, gain: float = 1.0) -> Initializer:
    """Normal with standard deviation gain * scale, whatever the fan."""
    std = gain * scale
    return Initializer("normal", jax_initializers.normal(std), lambda shape: std**2)


def truncated_normal(scale: float = DEFAULT_SCALE, gain: float = 1.0) -> Initializer:
    """Normal truncated at two deviations, widened to the standard deviation gain * scale."""
    std = gain * scale
    draw = jax_initializers.truncated_normal(std / _TRUNCATED_STD)
    return Initializer("truncated_normal", draw, lambda shape: std**2)


def uniform(scale: float = DEFAULT_SCALE, gain: float = 1.0) -> Initializer:
    """Uniform in ±gain * scale, whatever the fan: variance (gain * scale)² / 3."""
    bound = gain * scale

    def draw(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Initializer("uniform", draw, lambda shape: bound**2 / 3)


Mode = Literal["fan_in", "fan_avg"]
_GREATEST = 1e15  # Its square is a variance, in float32.
Distribution = Literal["truncated_normal", "uniform"]


def _scaled(
    name: str, numerator: float, mode: Mode, distribution: Distribution, gain: float
) -> Initializer:
    """A scheme with Var(w) = gain² * numerator / fan."""
    scale = gain**2 * numerator
    draw = jax_initializers.variance_scaling(scale, mode, distribution)

    def variance(shape: Sequence[int]) -> float:
        fan_in, fan_out = fans(shape)
        return scale / {"fan_in": fan_in, "fan_avg": (fan_in + fan_out) / 2}[mode]

    return Initializer(name, draw, variance)


def glorot_normal(gain: float = 1.0) -> Initializer:
    """Var(w) = 2 gain² / (fan_in + fan_out), normal: the lecture's Xavier.

    Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural
    Networks", 2010.
    """
    return _scaled("glorot_normal", 1.0, "fan_avg", "truncated_normal", gain)


def glorot_uniform(gain: float = 1.0) -> Initializer:
    """Uniform in ±gain √(6 / (fan_in + fan_out)). Glorot and Bengio, 2010."""
    return _scaled("glorot_uniform", 1.0, "fan_avg", "uniform", gain)


def he_normal(gain: float = 1.0) -> Initializer:
    """Var(w) = 2 gain² / fan_in, normal: the lecture's MSRA.

    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    return _scaled("he_normal", 2.0, "fan_in", "truncated_normal", gain)


def he_uniform(gain: float = 1.0) -> Initializer:
    """Uniform in ±gain √(6 / fan_in). He, Zhang, Ren and Sun, 2015."""
    return _scaled("he_uniform", 2.0, "fan_in", "uniform", gain)


def lecun_normal(gain: float = 1.0) -> Initializer:
    """Var(w) = gain² / fan_in, normal.

    LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998.
    """
    return _scaled("lecun_normal", 1.0, "fan_in", "truncated_normal", gain)


def lecun_uniform(gain: float = 1.0) -> Initializer:
    """Uniform in ±gain √(3 / fan_in). LeCun, Bottou, Orr and Müller, 1998."""
    return _scaled("lecun_uniform", 1.0, "fan_in", "uniform", gain)


def orthogonal(gain: float = 1.0) -> Initializer:
    """gain times a random matrix with orthonormal rows or columns, whichever are fewer.

    A convolution kernel counts as a matrix of fan_in rows. Saxe, McClelland and Ganguli, "Exact
    Solutions to the Nonlinear Dynamics of Learning in Deep Linear Neural Networks", 2014.
    """

    def variance(shape: Sequence[int]) -> float:
        return gain**2 / max(fans(shape)[0], shape[-1])

    return Initializer("orthogonal", jax_initializers.orthogonal(gain), variance)


INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    "zeros": zeros,
    "normal": normal,
    "truncated_normal": truncated_normal,
    "uniform": uniform,
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "he_uniform": he_uniform,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "orthogonal": orthogonal,
}
ALIASES = {
    "zero": "zeros",
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
    "xavier": "glorot_normal",
    "glorot": "glorot_normal",
    "msra_normal": "he_normal",
    "msra_uniform": "he_uniform",
    "msra": "he_normal",
    "he": "he_normal",
    "lecun": "lecun_normal",
}


def parameters_of(name: str) -> tuple[str, ...]:
    """Return which of `scale` and `gain` the initializer called `name` takes."""
    factory = INITIALIZERS[resolve(name, INITIALIZERS, ALIASES, "initializer")]
    return tuple(inspect.signature(factory).parameters)


def make_initializer(
    name: str, *, scale: float | None = None, gain: float | None = None
) -> Initializer:
    """Make the initializer called `name`.

        >>> from jaxdnn.initializers import make_initializer
        >>> make_initializer("he").variance((3, 3, 8, 16)) == 2 / (3 * 3 * 8)
        True

    Args:
      name: a key of `INITIALIZERS`, or an alias (`xavier`, `msra_uniform`, ...).
      scale: standard deviation of `normal` and `truncated_normal`, half width of `uniform`; > 0.
      gain: factor on the standard deviation; > 0. Default 1.

    Raises:
      InputError: the name is unknown, the scheme has no such parameter, or it is not positive.
    """
    canonical = resolve(name, INITIALIZERS, ALIASES, "initializer")
    given = {"scale": scale, "gain": gain}
    parameters = {key: value for key, value in given.items() if value is not None}
    for key, value in parameters.items():
        if key not in parameters_of(name):
            raise InputError(f"initializer {name} has no {key}; leave it out")
        if not 0 < value <= _GREATEST:
            raise InputError(
                f"initializer {name}: {key} is {value}; give a positive number, at most "
                f"{_GREATEST:g}"
            )
    return INITIALIZERS[canonical](**parameters)
