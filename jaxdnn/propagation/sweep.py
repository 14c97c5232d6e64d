"""One compiled program over initializers x activations x seeds.

The kernels of a network are drawn once for each (initializer, seed) and used by all activations.
On a CPU the program goes through the networks in order, so that each runs only its own branch of
the initializers and activations; on an accelerator it runs a chunk of them side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdnn.activations import Activation
from jaxdnn.initializers import Initializer
from jaxdnn.processes import put
from jaxdnn.propagation.moments import Kernels, Moments, kernel_rms
from jaxdnn.propagation.plain_network import (
    Architecture,
    Batch,
    draw_kernels,
    flow,
    gaussian_batch,
)

PAIR = "pair"


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
    draw = _make_draw(initializers, architecture, batch, batch_size)
    measure_all = _make_measure_all(activations, architecture)

    def one_pair(pair: tuple[Array, Array]) -> Moments:
        return measure_all(*draw(*pair))

    def sweep(indices: Array, seeds: Array) -> Moments:
        if side_by_side:
            return jax.vmap(lambda index, seed: one_pair((index, seed)))(indices, seeds)
        return lax.map(one_pair, (indices, seeds))

    # Each device goes through its share of the pairs.
    cut = PartitionSpec(PAIR)
    return jax.jit(jax.shard_map(sweep, mesh=_mesh(), in_specs=cut, out_specs=cut, check_vma=False))


def _mesh() -> Mesh:
    """Return all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (PAIR,), axis_types=(AxisType.Auto,))


def spread(pairs: np.ndarray) -> np.ndarray | Array:
    """Spread indices or seeds over the devices of all processes, each of which has them all."""
    if jax.process_count() == 1:
        return pairs
    return put(pairs, NamedSharding(_mesh(), PartitionSpec(PAIR)))


def _make_draw(
    initializers: Sequence[Initializer],
    architecture: Architecture,
    batch: Batch | None,
    batch_size: int,
) -> Callable[[Array, Array], tuple[Kernels, Batch]]:
    """Return `(initializer index, seed) -> kernels and what is passed through them`."""
    num_inputs = architecture.width if batch is None else batch.inputs.shape[1]
    draws = [
        lambda key, initializer=initializer: draw_kernels(
            initializer, key, num_inputs, architecture
        )
        for initializer in initializers
    ]

    def draw(index: Array, seed: Array) -> tuple[Kernels, Batch]:
        batch_key, kernel_key = jax.random.split(jax.random.key(seed))
        inputs = batch or gaussian_batch(
            batch_key, batch_size, num_inputs, architecture.num_outputs
        )
        return lax.switch(index, draws, kernel_key), inputs

    return draw


def _make_measure_all(
    activations: Sequence[Activation], architecture: Architecture
) -> Callable[[Kernels, Batch], Moments]:
    """Return `(kernels, batch) -> Moments` with a leading axis of activations."""
    steepest = jnp.array([max(map(abs, a.derivative_range)) for a in activations])

    def measure_all(kernels: Kernels, batch: Batch) -> Moments:
        shared = kernel_rms(kernels)

        def one_activation(which: Array) -> Moments:
            def phi(z: Array) -> Array:
                return lax.switch(which, activations, z)

            moments = flow(kernels, batch, phi, steepest[which], architecture)
            return moments._replace(
                kernel_rms=shared, delta_rms_by_example=moments.delta_rms_by_example[:, :0]
            )

        return lax.map(one_activation, jnp.arange(len(activations)))

    return measure_all


def chunks(num_initializers: int, seeds: Sequence[int], size: int) -> list[np.ndarray]:
    """Return (2, size) arrays of initializer indices and seeds, in order.

    The last one is filled up with its last pair.
    """
    pairs = list(itertools.product(range(num_initializers), seeds))
    portions = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    portions[-1] += [portions[-1][-1]] * (size - len(portions[-1]))
    return [np.array(portion, np.int32).T for portion in portions]
