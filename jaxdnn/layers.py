"""The hidden layer that all networks are made of: linear map, norm, activation, dropout.

    z = norm(x * kernel + bias),   a = dropout(phi(z))

z is the pre-activation. It is kept by the layer's path, and a probe is added where one is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from jaxdnn.activations import Activation, relu
from jaxdnn.initializers import Draw, he_normal
from jaxdnn.norms import BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, Norm


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Norm, activation, initializers and dropout, the same in all hidden layers of a network.

    Attributes:
      activation: phi, what follows the norm.
      kernel_init: draws the kernels, those of the output layer included.
      bias_init: every bias at the start.
      norm: `batch` (its beta replaces the bias), `layer` or `none`.
      norm_momentum: share of the old running average that a training step keeps; in [0, 1).
      dropout: share of the units dropped in training; in [0, 1).
      batch_norm_epsilon: added to the variance; above 0.
    """

    activation: Activation = dataclasses.field(default_factory=relu)
    kernel_init: Draw = dataclasses.field(default_factory=he_normal)
    bias_init: float = 0.0
    norm: Norm = "none"
    norm_momentum: float = 0.9
    dropout: float = 0.0
    batch_norm_epsilon: float = BATCH_NORM_EPSILON


@dataclasses.dataclass
class ForwardContext:
    """One forward pass: what the layers need to know, and what they leave behind.

    Attributes:
      training: normalise by the batch's own statistics, and move the running averages.
      key: for dropout and random slopes, a new one for each layer; None for neither.
      probes: path of a layer -> what is added to its pre-activation, of its shape.
      pre_activations: path of each layer so far -> its z, the probe included.
    """

    training: bool
    key: Array | None
    probes: Mapping[str, Array]
    pre_activations: dict[str, Array] = dataclasses.field(default_factory=dict)

    def record(self, path: str, z: Array) -> Array:
        """Add the probe of this path to z, keep the sum, and return it."""
        if path in self.probes:
            z = z + self.probes[path]
        self.pre_activations[path] = z
        return z

    def next_key(self) -> Array | None:
        """Return a key that no other layer gets."""
        if self.key is None:
            return None
        self.key, key = jax.random.split(self.key)
        return key


class Block(nnx.Module):
    """A hidden layer: linear map, norm, activation, dropout."""

    def __init__(
        self,
        path: str,
        linear: Callable[[Array], Array],
        num_features: int,
        options: BlockOptions,
        *,
        activation: Activation | None,
    ):
        self.path = path
        self.linear = linear
        self.norm = _make_norm(num_features, options)
        self.activation = activation
        self.slope = _make_slope(num_features, activation)
        self.dropout = options.dropout

    def __call__(self, x: Array, forward: ForwardContext) -> Array:
        z = self.linear(x)
        if isinstance(self.norm, nnx.BatchNorm):
            z = self.norm(z, use_running_average=not forward.training)
        elif self.norm is not None:
            z = self.norm(z)
        z = forward.record(self.path, z)
        return self._drop(self._activate(z, forward), forward)

    def _activate(self, z: Array, forward: ForwardContext) -> Array:
        if self.activation is None:
            return z
        slope = None if self.slope is None else self.slope[...]
        if self.activation.slope and self.activation.slope.kind == "random":
            key = forward.next_key()
            slope = None if key is None else self.activation.slope.draw(key, z.shape, z.dtype)
        return self.activation(z, slope)

    def _drop(self, a: Array, forward: ForwardContext) -> Array:
        key = forward.next_key() if self.dropout else None
        return a if key is None else nnx.Dropout(self.dropout)(a, deterministic=False, rngs=key)


def _make_norm(num_features: int, options: BlockOptions) -> nnx.BatchNorm | nnx.LayerNorm | None:
    """Make the norm named in the options, over the last axis."""
    rngs = nnx.Rngs(0)  # scale starts at 1 and bias at 0: nothing is drawn
    if options.norm == "batch":
        return nnx.BatchNorm(
            num_features,
            momentum=options.norm_momentum,
            epsilon=options.batch_norm_epsilon,
            rngs=rngs,
        )
    if options.norm == "layer":
        return nnx.LayerNorm(num_features, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
    return None


def _make_slope(num_features: int, activation: Activation | None) -> nnx.Param | None:
    """Make the trained slope of an activation that has one, one entry for each feature."""
    if activation is None or activation.slope is None or activation.slope.kind != "trained":
        return None
    return nnx.Param(jnp.full((num_features,), activation.slope.mean))


def make_dense(
    num_in: int, num_out: int, options: BlockOptions, key: Array, bias: bool
) -> nnx.Linear:
    """Make a dense linear map with the options' initializers."""
    return nnx.Linear(
        num_in,
        num_out,
        use_bias=bias,
        kernel_init=options.kernel_init,
        bias_init=nnx.initializers.constant(options.bias_init),
        rngs=nnx.Rngs(key),
    )


class Conv3x3(nnx.Module):
    """A convolution with 3x3 windows and stride 1, zero-padded: (batch, height, width, channel)."""

    def __init__(self, num_in: int, num_out: int, options: BlockOptions, key: Array, bias: bool):
        self.kernel = nnx.Param(options.kernel_init(key, (3, 3, num_in, num_out), jnp.float32))
        self.bias = nnx.Param(jnp.full((num_out,), options.bias_init)) if bias else None

    def __call__(self, x: Array) -> Array:
        y = convolve(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Convolve images with a (window, window, in, out) kernel; odd window, zero-padded, stride 1.

    The gradient is written out because XLA's CPU backend runs the automatic one, whose operands are
    permuted, some 70 times slower inside compiled loops (JAX issue 12868).
    """
    return _convolve(x, kernel)


def _convolve(x: Array, kernel: Array, padding: int | None = None) -> Array:
    pads = [(kernel.shape[0] // 2 if padding is None else padding,) * 2] * 2
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=dimensions)


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _convolve_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grad_x = _convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    # The kernel's gradient is a convolution of the input with the gradient as a large window.
    by_channel, window = x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)
    grad_kernel = _convolve(by_channel, window, padding=kernel.shape[0] // 2)
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _split_squares(x: Array, size: int) -> Array:
    """Return (batch, height / size, size, width / size, size, channel); edges repeated to fit."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)), mode="edge")
    return x.reshape(batch, -(-height // size), size, -(-width // size), size, channels)


def space_to_depth(x: Array, size: int) -> Array:
    """Move every size x size square of pixels into the channels."""
    squares = _split_squares(x, size).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(*squares.shape[:3], -1)


def mean_pool(x: Array) -> Array:
    """Halve height and width."""
    return _split_squares(x, 2).mean((2, 4))
