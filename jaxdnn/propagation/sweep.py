"""Many networks under one compiled program: initializers x activations x seeds, kept on disk.

The kernels of a network are drawn once for each (initializer, seed) and used by all activations.
On a CPU the program goes through the networks in order, so that each runs only its own branch of
the initializers and activations; on an accelerator it runs a chunk of them side by side. Every
finished chunk is an .npz of its own, so that an interrupted grid goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxdnn.activations import Activation
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.initializers import Initializer
from jaxdnn.processes import any_process, broadcast_from_first, fetch, is_first, put, run_on_first
from jaxdnn.propagation.gradient_flow import (
    Architecture,
    Batch,
    draw_kernels,
    flow,
    gaussian_batch,
)
from jaxdnn.propagation.moments import Kernels, Moments, kernel_rms
from jaxdnn.propagation.table import STATISTICS, Combination, Layers, Table
from jaxdnn.run_folder import atomic_write
from jaxdnn.stored import read_arrays

# Multiplications and additions in a call: about a second's worth on a laptop.
OPERATIONS_PER_CALL = 4e10
_PAIR = "pair"


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
      architecture: depth, width, norm and loss, the same for all networks.
      batch: passed through every network; by default each seed draws Gaussian inputs as wide as the
        hidden layers.
      batch_size: examples of a drawn batch.
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
    shard = PartitionSpec(_PAIR)
    return jax.jit(
        jax.shard_map(sweep, mesh=_mesh(), in_specs=shard, out_specs=shard, check_vma=False)
    )


def _mesh() -> Mesh:
    """Return all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (_PAIR,), axis_types=(AxisType.Auto,))


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
    max_slopes = jnp.array([activation.max_slope for activation in activations])

    def measure_all(kernels: Kernels, batch: Batch) -> Moments:
        shared = kernel_rms(kernels)

        def one_activation(which: Array) -> Moments:
            def phi(z: Array) -> Array:
                return lax.switch(which, activations, z)

            moments = flow(kernels, batch, phi, max_slopes[which], architecture)
            return moments._replace(
                kernel_rms=shared, delta_rms_by_example=moments.delta_rms_by_example[:, :0]
            )

        return lax.map(one_activation, jnp.arange(len(activations)))

    return measure_all


class CompiledSweep(NamedTuple):
    """One compiled program of a grid.

    Attributes:
      norm: `none`, `batch` or `layer`, of its networks.
      depth: kernels of its networks.
      compile_seconds: from Python to machine code.
      bytes: memory that it needs at once.
      run: `(initializer indices, seeds) -> Moments`.
    """

    norm: str
    depth: int
    compile_seconds: float
    bytes: int
    run: Callable[..., Moments]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every combination of what is listed.

    Attributes:
      initializers: schemes that draw the kernels.
      activations: functions between the layers.
      architectures: one program is compiled for each.
      seeds: each draws the kernels, and the inputs where they are Gaussian.
      batch: what is passed through all networks; None for Gaussian inputs.
      batch_size: examples of a drawn batch.
    """

    initializers: Sequence[Initializer]
    activations: Sequence[Activation]
    architectures: Sequence[Architecture]
    seeds: range
    batch: Batch | None = None
    batch_size: int = 128

    @property
    def num_pairs(self) -> int:
        """How many (initializer, seed) pairs there are."""
        return len(self.initializers) * len(self.seeds)

    @property
    def num_networks(self) -> int:
        """How many networks are measured."""
        return self.num_pairs * len(self.activations) * len(self.architectures)

    @property
    def num_examples(self) -> int:
        """How many examples are passed through a network."""
        return self.batch_size if self.batch is None else len(self.batch.labels)


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> tuple[Table, list[CompiledSweep]]:
    """Measure the whole grid; chunks found in `folder` are not measured again.

    Args:
      grid: what to measure.
      folder: keeps an .npz for each chunk; it belongs to this grid alone.
      on_done: called with the number of networks of each finished chunk.
      interrupted: asked before each chunk.

    Returns:
      The table, and the programs that were compiled for it.

    Raises:
      Interrupted: with everything finished kept.
    """
    table: Table = {}
    programs: list[CompiledSweep] = []
    for architecture in grid.architectures:
        found, program = _run_one(grid, architecture, folder, on_done, interrupted)
        programs += [] if program is None else [program]
        kinds = itertools.product(enumerate(grid.initializers), enumerate(grid.activations))
        for (i, initializer), (a, activation) in kinds:
            kind = (initializer.name, activation.name, architecture.norm)
            key = Combination(*kind, architecture.depth, architecture.width)
            table[key] = {name: values[i, a] for name, values in found.items()}
    return table, programs


def _run_one(
    grid: Grid,
    architecture: Architecture,
    folder: Path,
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> tuple[Layers, CompiledSweep | None]:
    """Return statistic -> (initializer, activation, seed, layer), and the program if one ran."""
    sweep = make_sweep(
        grid.initializers,
        grid.activations,
        architecture,
        batch=grid.batch,
        batch_size=grid.batch_size,
        side_by_side=jax.default_backend() != "cpu",
    )
    program: CompiledSweep | None = None

    def measure(*pairs: np.ndarray) -> Mapping[str, ArrayLike]:
        nonlocal program
        spread = [_spread(each) for each in pairs]
        program = program or _compile(sweep, architecture, *spread)
        moments = program.run(*spread)._asdict()
        return {name: moments[name] for name in STATISTICS}

    parts, remaining = [], grid.num_pairs
    for indices, seeds in pair_chunks(
        len(grid.initializers), grid.seeds, _size(grid, architecture)
    ):
        path = folder / f"{architecture.norm}-{architecture.depth}-{indices[0]}-{seeds[0]}.npz"
        parts.append(cached_chunk(path, lambda i=indices, s=seeds: measure(i, s), interrupted))
        on_done(min(len(indices), remaining) * len(grid.activations))
        remaining -= len(indices)
    shape = (len(grid.initializers), len(grid.seeds), len(grid.activations), architecture.depth)
    joined = {
        name: np.concatenate([part[name] for part in parts])[: grid.num_pairs].reshape(shape)
        for name in STATISTICS
    }
    return {name: values.swapaxes(1, 2) for name, values in joined.items()}, program


def _spread(pairs: np.ndarray) -> np.ndarray | Array:
    """Spread indices or seeds over the devices of all processes, each of which has them all."""
    if jax.process_count() == 1:
        return pairs
    return put(pairs, NamedSharding(_mesh(), PartitionSpec(_PAIR)))


def _size(grid: Grid, architecture: Architecture) -> int:
    """Return how many (initializer, seed) pairs a call takes, evenly over the devices."""
    operations = 6 * grid.num_examples * architecture.width**2 * architecture.depth
    share = round(OPERATIONS_PER_CALL / (operations * len(grid.activations)))
    devices = jax.device_count()
    return devices * max(1, min(math.ceil(grid.num_pairs / devices), share))


def _compile(
    sweep: Callable[..., Moments], architecture: Architecture, *arguments: np.ndarray | Array
) -> CompiledSweep:
    started = time.perf_counter()
    compiled = jax.jit(sweep).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    sizes: Any = compiled.memory_analysis()
    used = sizes.temp_size_in_bytes + sizes.output_size_in_bytes + sizes.argument_size_in_bytes
    return CompiledSweep(architecture.norm, architecture.depth, seconds, used, compiled)


def pair_chunks(num_initializers: int, seeds: Sequence[int], size: int) -> list[np.ndarray]:
    """Return (2, size) arrays of initializer indices and seeds, in order.

    The last one is filled up with its last pair.
    """
    pairs = list(itertools.product(range(num_initializers), seeds))
    chunks = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    chunks[-1] += [chunks[-1][-1]] * (size - len(chunks[-1]))
    return [np.array(chunk, np.int32).T for chunk in chunks]


def cached_chunk(
    path: Path,
    compute: Callable[[], Mapping[str, ArrayLike]],
    interrupted: Callable[[], bool],
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz; compute and write them first where it is missing or damaged.

    Every process calls it, and all get the same.

    Args:
      path: an .npz, which the first process writes in one piece.
      compute: returns the arrays by name.
      interrupted: asked before anything is computed.

    Raises:
      Interrupted: the chunk is missing, but no more is to be begun.
    """
    (is_there,) = broadcast_from_first([is_first() and _is_whole(path)])
    if not is_there:
        if any_process(interrupted())[0]:
            raise Interrupted
        arrays = fetch(dict(compute()))

        def write() -> None:
            with atomic_write(path) as draft, draft.open("wb") as file:
                np.savez(file, **arrays)

        run_on_first(write)
    return read_arrays(path, (), remedy=_CHUNK_REMEDY)


_CHUNK_REMEDY = "remove it, and the same command computes it again"


def _is_whole(path: Path) -> bool:
    """Tell whether a chunk is there and can be read; each of its arrays has a checksum."""
    if not path.exists():
        return False
    try:
        read_arrays(path, (), remedy=_CHUNK_REMEDY)
    except InputError:
        return False
    return True
