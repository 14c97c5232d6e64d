"""Where the arrays of a run live: one mesh of devices, batches sharded over it.

    mesh -> NamedSharding of state, images and indices -> the same jitted step

The compiler divides the step among the devices by itself: each takes its part of the batch, means
over the batch (loss, batch norm) are of the whole batch, and the gradients are summed over devices.
Under `fsdp` (Rajbhandari, Rasley, Ruwase and He, "ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", 2020) every large array of the state is sharded over the devices, too; a
step gathers the parameters before it uses them, or where that is less, brings the batch to the
parts of a kernel; each device keeps its own part of the summed gradients.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdnn.errors import InputError
from jaxdnn.processes import put

AXIS = "batch"
SMALLEST_SHARDED = 2**14
"""Entries; an array with fewer is replicated, since moving it would cost more."""
MUCH_LARGER = 4
"""A dense kernel so many times larger than what goes in and out of it is not gathered."""

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run, and what is kept where.

    Attributes:
      mesh: all devices along the one axis `batch`.
      fsdp: whether large arrays of the state are sharded over the devices, too.
    """

    mesh: Mesh
    fsdp: bool = False

    @property
    def num_devices(self) -> int:
        """How many, over all processes."""
        return self.mesh.size

    @property
    def is_single(self) -> bool:
        """Whether there is one device: nothing is sharded, and arrays are where JAX puts them."""
        return self.num_devices == 1

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return self.sharded(None)

    def sharded(self, axis: int | None) -> NamedSharding:
        """Along this axis an equal part for each device; None: replicated."""
        names = () if axis is None else (*[None] * axis, AXIS)
        return NamedSharding(self.mesh, PartitionSpec(*names))

    def state_shardings(self, state: Any) -> Any:
        """Return the sharding of every array of a state, or of anything shaped like its parts."""
        return jax.tree.map(lambda leaf: self.sharded(self._axis_of(tuple(leaf.shape))), state)

    def _axis_of(self, shape: tuple[int, ...]) -> int | None:
        """Choose the longest axis that the devices can share, if the array is worth it."""
        fitting = [axis for axis, size in enumerate(shape) if size % self.num_devices == 0]
        if not self.fsdp or not fitting or math.prod(shape) < SMALLEST_SHARDED:
            return None
        return max(fitting, key=lambda axis: shape[axis])

    def keep(self, tree: Tree) -> Tree:
        """Hold the state, or gradients like its parameters, where it belongs; inside jit."""
        if self.is_single:
            return tree
        return lax.with_sharding_constraint(tree, self.state_shardings(tree))

    def replicate(self, tree: Tree) -> Tree:
        """Bring a result to every device; inside jit."""
        return tree if self.is_single else lax.with_sharding_constraint(tree, self.replicated)

    def gather(self, params: Tree, batch_size: int) -> Tree:
        """Bring parameters to every device before so many examples use them; inside jit.

        A dense kernel that is much larger than all that goes in and out of it stays sharded: the
        compiler then moves the batch to the parts of the kernel, which is less.
        """
        if not self.fsdp:
            return params

        def of(leaf: Any) -> Any:
            stays = leaf.ndim == 2 and leaf.size > MUCH_LARGER * batch_size * sum(leaf.shape)
            return leaf if stays else lax.with_sharding_constraint(leaf, self.replicated)

        return jax.tree.map(of, params)

    def place(self, tree: Any) -> Any:
        """Replicate arrays that every process has."""
        if self.is_single:
            return jax.tree.map(jnp.asarray, tree)
        return jax.tree.map(lambda leaf: put(leaf, self.replicated), tree)

    def place_state(self, state: Tree) -> Tree:
        """Put each part of a state that every process has on its device."""
        if self.is_single:
            return state
        return jax.tree.map(put, state, self.state_shardings(state))

    def shard(self, array: jax.Array, axis: int = 0) -> jax.Array:
        """Shard an array over the devices along `axis`."""
        return array if self.is_single else jax.device_put(array, self.sharded(axis))

    def join(self, part: np.ndarray, axis: int = 0) -> jax.Array:
        """Put an array sharded along `axis`, of which this process has its own part."""
        if self.is_single:
            return jnp.asarray(part)
        return jax.make_array_from_process_local_data(self.sharded(axis), part)


def make_layout(devices: list[jax.Device], *, fsdp: bool = False) -> Layout:
    """Return the layout over these devices."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Layout(mesh, fsdp)


@functools.cache
def one_device() -> Layout:
    """Return the layout of a run on the first device of this process."""
    return make_layout(jax.local_devices()[:1])


def choose_devices(batch_size: int, *, most: int | None = None) -> list[jax.Device]:
    """Return as many devices as can share a batch equally, the same number of each process.

    Args:
      batch_size: images that a step takes at once.
      most: devices to use at most, over all processes; None for all.

    Raises:
      InputError: there are fewer than `most`, or the processes cannot share the batch.
    """
    by_process = _by_process()
    num_processes = len(by_process)
    available = min(map(len, by_process))
    if most is not None and not num_processes <= most <= num_processes * available:
        raise InputError(
            f"--devices is {most}, there are {num_processes * available} in {num_processes} "
            f"process{'es' * (num_processes > 1)}; give a number from {num_processes} to "
            f"{num_processes * available}, or leave it out for all"
        )
    if batch_size % num_processes:
        raise InputError(
            f"--batch-size {batch_size} cannot be shared equally by {num_processes} processes; "
            f"expected a multiple of {num_processes}; choose one"
        )
    limit = available if most is None else most // num_processes
    share = batch_size // num_processes
    number = max(number for number in range(1, limit + 1) if share % number == 0)
    return [device for devices in by_process for device in devices[:number]]


def share_of_process(size: int) -> slice:
    """Return this process's part of so many rows, of which each gets equally many."""
    share = size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def _by_process() -> list[list[jax.Device]]:
    found: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return [found[index] for index in sorted(found)]
