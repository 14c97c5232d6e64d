"""A grid of sweeps, run portion by portion and kept on disk, so that it can be interrupted."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdnn.activations import Activation
from jaxdnn.initializers import Initializer
from jaxdnn.propagation.cells import is_due, load_cell, save_cell
from jaxdnn.propagation.moments import Moments
from jaxdnn.propagation.plain_network import Architecture, Batch
from jaxdnn.propagation.sweep import chunks, make_sweep, spread
from jaxdnn.propagation.table import STATISTICS, Combination, Layers, Table

# Multiplications and additions in a call: about a second's worth on a laptop.
OPERATIONS_PER_CALL = 4e10


class Program(NamedTuple):
    """One compiled program of a grid.

    Attributes:
      norm: of its networks.
      depth: of its networks.
      compile_seconds: from Python to machine code.
      bytes: that it needs at once.
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
      initializers: of the kernels.
      activations: of the hidden layers.
      architectures: one program is compiled for each.
      seeds: of the kernels and of Gaussian inputs.
      batch: what is passed through all networks; None for Gaussian inputs.
      batch_size: of those.
    """

    initializers: Sequence[Initializer]
    activations: Sequence[Activation]
    architectures: Sequence[Architecture]
    seeds: range
    batch: Batch | None = None
    batch_size: int = 128

    @property
    def num_networks(self) -> int:
        """How many networks are measured."""
        per_seed = len(self.initializers) * len(self.activations) * len(self.architectures)
        return per_seed * len(self.seeds)


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> tuple[Table, list[Program]]:
    """Measure the whole grid; portions found in `folder` are not measured again.

    Args:
      grid: what to measure.
      folder: keeps an .npz for each portion; it belongs to this grid alone.
      on_done: called with the number of networks of each finished portion.
      interrupted: asked before each portion.

    Returns:
      The table, and the programs that were compiled for it.

    Raises:
      Interrupted: with everything finished kept.
    """
    table: Table = {}
    programs: list[Program] = []
    for architecture in grid.architectures:
        found, program = _run_one(grid, architecture, folder, on_done, interrupted)
        programs += [] if program is None else [program]
        for (i, initializer), (a, activation) in _pairs(grid):
            kind = (initializer.name, activation.name, architecture.norm)
            key = Combination(*kind, architecture.depth, architecture.width)
            table[key] = {name: values[i, a] for name, values in found.items()}
    return table, programs


def _pairs(grid: Grid) -> list[tuple[tuple[int, Initializer], tuple[int, Activation]]]:
    return [(i, a) for i in enumerate(grid.initializers) for a in enumerate(grid.activations)]


def _run_one(
    grid: Grid,
    architecture: Architecture,
    folder: Path,
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> tuple[Layers, Program | None]:
    """Return statistic -> (initializer, activation, seed, layer), and the program if one ran."""
    sweep = make_sweep(
        grid.initializers,
        grid.activations,
        architecture,
        batch=grid.batch,
        batch_size=grid.batch_size,
        side_by_side=jax.default_backend() != "cpu",
    )
    num_pairs, num_activations = len(grid.initializers) * len(grid.seeds), len(grid.activations)
    program, found = None, []
    for indices, seeds in chunks(len(grid.initializers), grid.seeds, _size(grid, architecture)):
        path = folder / f"{architecture.norm}-{architecture.depth}-{indices[0]}-{seeds[0]}.npz"
        if is_due(path, interrupted):
            pairs = spread(indices), spread(seeds)
            program = program or _compile(sweep, architecture, *pairs)
            moments = program.run(*pairs)._asdict()
            save_cell(path, {name: moments[name] for name in STATISTICS})
        found.append(load_cell(path))
        remaining = num_pairs - sum(len(part["delta_rms"]) for part in found[:-1])
        on_done(min(len(indices), remaining) * num_activations)
    shape = (len(grid.initializers), len(grid.seeds), num_activations, architecture.depth)
    joined = {
        name: np.concatenate([part[name] for part in found])[:num_pairs].reshape(shape)
        for name in STATISTICS
    }
    return {name: values.swapaxes(1, 2) for name, values in joined.items()}, program


def _size(grid: Grid, architecture: Architecture) -> int:
    """Return how many (initializer, seed) pairs a call takes, evenly over the devices."""
    batch_size = grid.batch_size if grid.batch is None else len(grid.batch.labels)
    operations = 6 * batch_size * architecture.width**2 * architecture.depth
    share = round(OPERATIONS_PER_CALL / (operations * len(grid.activations)))
    devices = jax.device_count()
    most = math.ceil(len(grid.initializers) * len(grid.seeds) / devices)
    return devices * max(1, min(most, share))


def _compile(
    sweep: Callable[..., Moments], architecture: Architecture, *arguments: np.ndarray | jax.Array
) -> Program:
    started = time.perf_counter()
    compiled = jax.jit(sweep).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    sizes: Any = compiled.memory_analysis()
    used = sizes.temp_size_in_bytes + sizes.output_size_in_bytes + sizes.argument_size_in_bytes
    return Program(architecture.norm, architecture.depth, seconds, used, compiled)
