"""One compiled program over initializers x activations x seeds.

The kernels of a network are drawn once for each (initializer, seed) and used by all activations.
On a CPU the program goes through the networks in order, so that each runs only its own branch of
the initializers and activations; on an accelerator it runs a chunk of them side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

from jaxdnn.activations import Activation
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
    # One after the other: drawn side by side, they would need several times their own memory.
    hidden = lax.map(lambda key: initializer(key, (width, width)).astype(dtype), hidden_keys)
    return Kernels(
        initializer(first_key, (num_inputs, width)).astype(dtype),
        hidden,
        initializer(last_key, (width, architecture.num_outputs)).astype(dtype),
    )


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


def make_sweep(
    initializers: Sequence[Initializer],
    activations: Sequence[Activation],
    architecture: Architecture,
    *,
    batch: Batch | None = None,
    batch_size: int = 128,
    side_by_side: bool = False,
) -> Callable[[Array, Array], Moments]:
    """Return the compiled `(initializer indices, seeds) -> Moments`.

    Args:
      initializers: what the indices point at.
      activations: all of them are run for every pair.
      architecture: of the networks.
      batch: passed through every network; by default each seed draws Gaussian inputs as wide as the
        hidden layers.
      batch_size: of those.
      side_by_side: vmap over the pairs (accelerators) instead of going through them in order.

    Returns:
      A function of two arrays (pair,), their length a multiple of the number of devices, over which
      they are spread. Its Moments have leading axes (pair, activation). The
      moments by example are left out, as (pair, activation, layer, 0).
    """
    num_inputs = architecture.width if batch is None else batch.inputs.shape[1]
    steepest = jnp.array([max(map(abs, a.derivative_range)) for a in activations])
    draws = [
        lambda key, initializer=initializer: draw_kernels(
            initializer, key, num_inputs, architecture
        )
        for initializer in initializers
    ]

    def one_pair(pair: tuple[Array, Array]) -> Moments:
        index, seed = pair
        batch_key, kernel_key = jax.random.split(jax.random.key(seed))
        inputs = batch or gaussian_batch(
            batch_key, batch_size, num_inputs, architecture.num_outputs
        )
        kernels = lax.switch(index, draws, kernel_key)

        def one_activation(which: Array) -> Moments:
            def phi(z: Array) -> Array:
                return lax.switch(which, activations, z)

            moments = flow(kernels, inputs, phi, steepest[which], architecture)
            return moments._replace(delta_rms_by_example=moments.delta_rms_by_example[:, :0])

        return lax.map(one_activation, jnp.arange(len(activations)))

    def sweep(indices: Array, seeds: Array) -> Moments:
        if side_by_side:
            return jax.vmap(lambda index, seed: one_pair((index, seed)))(indices, seeds)
        return lax.map(one_pair, (indices, seeds))

    # Each device goes through its share of the pairs.
    mesh = jax.make_mesh((jax.device_count(),), ("pair",), axis_types=(AxisType.Auto,))
    spread = PartitionSpec("pair")
    return jax.jit(
        jax.shard_map(sweep, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
    )


def chunks(num_initializers: int, seeds: Sequence[int], size: int) -> list[np.ndarray]:
    """Return (2, size) arrays of initializer indices and seeds, in order.

    The last one is filled up with its last pair.
    """
    pairs = list(itertools.product(range(num_initializers), seeds))
    portions = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    portions[-1] += [portions[-1][-1]] * (size - len(portions[-1]))
    return [np.array(portion, np.int32).T for portion in portions]
