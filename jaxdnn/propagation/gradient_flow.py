"""One network of equally wide layers, drawn and measured; the activation that a user means."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.activations import Activation, Range, make_activation
from jaxdnn.errors import InputError
from jaxdnn.initializers import Initializer, make_initializer
from jaxdnn.losses import cross_entropy
from jaxdnn.names import resolve
from jaxdnn.norms import Norm
from jaxdnn.propagation.moments import Kernels, Loss, Moments, measure
from jaxdnn.propagation.nonlinearity import SEARCHED, Phi, make_nonlinearity

Precision = Literal["float32", "bfloat16", "float16"]

LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda logits, labels: jnp.mean(cross_entropy(logits, labels)),
    "mean_squared_error": lambda logits, labels: jnp.mean(
        (logits - jax.nn.one_hot(labels, logits.shape[-1])) ** 2
    ),
    # The mean logit of the right class: its gradient does not depend on the forward signal.
    "linear": lambda logits, labels: (
        -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=-1))
    ),
}


class Batch(NamedTuple):
    """What is passed through every network: inputs (batch, input) and labels (batch,)."""

    inputs: Array
    labels: Array


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the networks of a sweep have in common.

    Attributes:
      depth: kernels, the output's included; at least 2.
      width: units of each hidden layer, at least 1.
      norm: `none`, or `batch` or `layer` to normalise every hidden pre-activation.
      residual: add each hidden layer's input to its output.
      num_outputs: number of classes, at least 2.
      loss: a key of `LOSSES`.
      precision: number format of weights, signals and gradients; statistics are in float32.
    """

    depth: int
    width: int
    norm: Norm = "none"
    residual: bool = False
    num_outputs: int = 10
    loss: str = "cross_entropy"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, least in (("depth", 2), ("width", 1), ("num_outputs", 2)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"--{name.replace('_', '-')} is {value}; give {least} or more")
        resolve(self.loss, LOSSES, {}, "loss")


def gaussian_batch(key: Array, batch_size: int, num_inputs: int, num_classes: int) -> Batch:
    """Draw standard normal inputs and uniform labels."""
    input_key, label_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (batch_size, num_inputs))
    return Batch(inputs, jax.random.randint(label_key, (batch_size,), 0, num_classes))


def draw_kernels(
    initializer: Initializer, key: Array, num_inputs: int, architecture: Architecture
) -> Kernels:
    """Draw the kernels of one network, each from a key of its own."""
    width, dtype = architecture.width, jnp.dtype(architecture.precision)
    first_key, last_key, hidden_key = jax.random.split(key, 3)
    hidden_keys = jax.random.split(hidden_key, architecture.depth - 2)

    def draw(key: Array, num_in: int, num_out: int) -> Array:
        return initializer(key, (num_in, num_out)).astype(dtype)

    def draw_square(keys: Array) -> Array:
        # One after the other: drawn side by side, they would need several times their own memory.
        return lax.map(lambda key: draw(key, width, width), keys)

    last = draw(last_key, width, architecture.num_outputs)
    if num_inputs != width:
        return Kernels(draw(first_key, num_inputs, width), draw_square(hidden_keys), last)
    # The same code for all, since every further copy of it costs time to compile.
    square = draw_square(jnp.concatenate([first_key[None], hidden_keys]))
    return Kernels(square[0], square[1:], last)


def flow(
    kernels: Kernels, batch: Batch, phi: Phi, max_slope: Array | float, architecture: Architecture
) -> Moments:
    """Measure one network on one batch."""
    return measure(
        kernels,
        batch.inputs.astype(architecture.precision),
        batch.labels,
        phi,
        max_slope=max_slope,
        loss=LOSSES[architecture.loss],
        norm=architecture.norm,
        residual=architecture.residual,
    )


def gradient_flow(
    key: Array,
    inputs: Array | None = None,
    labels: Array | None = None,
    *,
    initializer: str | Initializer = "he_normal",
    activation: str | Activation | Phi = "relu",
    depth: int = 20,
    width: int = 512,
    batch_size: int = 128,
    **architecture: Any,
) -> Moments:
    """Initialize one network, pass a batch forward and back, and measure every layer.

        >>> import jax
        >>> from jaxdnn import gradient_flow
        >>> moments = gradient_flow(jax.random.key(0), activation="sigmoid", depth=10, width=64)
        >>> moments.delta_rms.shape
        (10,)
        >>> bool(moments.delta_rms[0] < 1e-3 * moments.delta_rms[-1])  # each sigmoid: 1/4 or less
        True

    Args:
      key: draws the kernels, and the batch where none is given.
      inputs: (batch, input) floats; by default standard normal, as wide as the hidden layers.
      labels: (batch,) class indices below `num_outputs`; by default uniform.
      initializer: a name, or an `Initializer`.
      activation: a name, an `Activation`, or an elementwise function of jax.numpy.
      depth: kernels, the output's included; at least 2.
      width: units of each hidden layer.
      batch_size: examples of the default inputs, 2 or more.
      **architecture: `norm`, `residual`, `num_outputs`, `loss` and `precision` of
        `jaxdnn.propagation.Architecture`.

    Returns:
      Moments whose arrays have one entry for each layer, the first nearest the input.

    References:
      Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural
      Networks", 2010.
    """
    shape = Architecture(depth=depth, width=width, **architecture)
    batch_key, kernel_key = jax.random.split(key)
    size, num_inputs = (batch_size, width) if inputs is None else inputs.shape
    drawn = gaussian_batch(batch_key, size, num_inputs, shape.num_outputs)
    batch = Batch(
        drawn.inputs if inputs is None else inputs, drawn.labels if labels is None else labels
    )
    if isinstance(initializer, str):
        initializer = make_initializer(initializer)
    if isinstance(activation, str):
        phi = find_activation(activation)
    else:
        phi = _as_activation(activation, getattr(activation, "__name__", "activation"))
    kernels = draw_kernels(initializer, kernel_key, num_inputs, shape)
    return flow(kernels, batch, phi, phi.max_slope, shape)


# Points within |x| <= 32 at which a user's function is looked at.
_NUM_POINTS = 2**16 + 1


def find_activation(name: str) -> Activation:
    """Return the activation called `name`.

    Args:
      name: a key or an alias of `ACTIVATIONS`, or `module:function`, an elementwise function of
        jax.numpy in a module of the current directory or of the Python path.

    Raises:
      InputError: there is no such activation, module or function, or it is not finite everywhere.
    """
    if ":" not in name:
        return make_activation(name)
    module_name, _, attribute = name.partition(":")
    module = _import(name, module_name)
    function = vars(module).get(attribute)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise InputError(
            f"activation {name}: {module_name} has no function {attribute!r}; it has "
            f"{there or 'none'}"
        )
    return _as_activation(function, name)


def _import(name: str, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"activation {name}: cannot import {module_name} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); run from the folder "
            f"that holds {module_name.partition('.')[0]}.py"
        ) from error


def _as_activation(function: Phi, name: str) -> Activation:
    """Return a function as an activation, its ranges measured within |x| <= 32.

    Args:
      function: elementwise, in jax.numpy, keeps the dtype of its argument; or an `Activation`.
      name: for tables and messages.

    Raises:
      InputError: it is not such a function, or not finite somewhere.
    """
    if isinstance(function, Activation):
        return function
    make_nonlinearity(function)

    with jax.enable_x64(True):
        x = jnp.linspace(-SEARCHED, SEARCHED, _NUM_POINTS)
        values, slopes = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return Activation(name, function, _range(values), _range(slopes))


def _range(values: Array) -> Range:
    return float(values.min()), float(values.max())
