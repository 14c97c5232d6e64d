"""The networks of the sweep: equally wide layers, drawn and measured one at a time."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.errors import InputError
from jaxdnn.initializers import Initializer
from jaxdnn.layers import Norm
from jaxdnn.losses import cross_entropy
from jaxdnn.names import resolve
from jaxdnn.propagation.moments import Kernels, Loss, Moments, Phi, measure

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
      width: units of each hidden layer.
      norm: of every hidden pre-activation.
      residual: add each hidden layer's input to its output.
      num_outputs: classes.
      loss: a key of `LOSSES`.
      precision: of weights, signals and gradients; statistics are in float32.
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
    kernels: Kernels, batch: Batch, phi: Phi, steepest: Array | float, architecture: Architecture
) -> Moments:
    """Measure one network on one batch."""
    return measure(
        kernels,
        batch.inputs.astype(architecture.precision),
        batch.labels,
        phi,
        steepest=steepest,
        loss=LOSSES[architecture.loss],
        norm=architecture.norm,
        residual=architecture.residual,
    )
