"""The processes of a distributed run: how they find each other, and how they decide as one.

Every process runs the same program on its own devices. What depends on a clock, a signal or a disk
differs between them; they must agree on it before they act, or they would wait for each other for
ever inside different programs. Files and progress are the first one's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxdnn.errors import InputError
from jaxdnn.options import ProcessOptions


def join(options: ProcessOptions) -> None:
    """Join the other processes, where the options say that there are any; before JAX is used.

    Raises:
      InputError: they cannot be found.
    """
    if not options.distributed:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=options.coordinator,
            num_processes=options.num_processes,
            process_id=options.process_index,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"--distributed found no other processes ({reason}); give --coordinator HOST:PORT, "
            "--num-processes and --process-index, or start it under SLURM, GKE or Open MPI"
        ) from error


def is_first() -> bool:
    """Tell whether this process writes files and shows progress."""
    return jax.process_index() == 0


def run_on_first(act: Callable[[], Any]) -> None:
    """Let the first process act while the others wait.

    Raises:
      Exception: whatever it raised; InputError in the others.
    """
    error = None
    if is_first():
        try:
            act()
        except Exception as raised:
            error = raised
    failed = any_process(error is not None)[0]
    if error is not None:
        raise error
    if failed:
        raise InputError("process 0 had to stop; see what it said")


def leave(code: int) -> None:
    """End this process without waiting for the others, which might wait for it; if there are any.

    They notice, and end too.
    """
    if jax.distributed.is_initialized() and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def broadcast_from_first(values: Sequence[int]) -> list[int]:
    """Return the numbers that the first process came with."""
    return [int(value) for value in _gather(values)[0]]


def any_process(*flags: bool) -> list[bool]:
    """Return which flags at least one process has set."""
    return np.any(_gather([int(flag) for flag in flags]), axis=0).tolist()


def put(array: Any, sharding: Sharding) -> jax.Array:
    """Put an array that every process has where it belongs."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Unlike device_put it does not compare the processes' arrays, of which NaN is never the same.
    on_host = np.asarray(array)
    return jax.make_array_from_callback(on_host.shape, sharding, lambda index: on_host[index])


def fetch(tree: Any) -> Any:
    """Bring arrays, wherever their parts are, to the host of every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)


def _gather(values: Sequence[int]) -> np.ndarray:
    mine = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, len(mine))
