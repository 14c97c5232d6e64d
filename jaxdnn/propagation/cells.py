"""Results kept portion by portion, so that an interrupted command goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike

from jaxdnn.errors import Interrupted
from jaxdnn.processes import any_process, broadcast_from_first, fetch, run_on_first
from jaxdnn.run_folder import atomic_write


def is_due(path: Path, interrupted: Callable[[], bool]) -> bool:
    """Tell whether the cell has still to be measured; every process asks, and is told the same.

    Raises:
      Interrupted: it has, but no more is to be begun.
    """
    (is_there,) = broadcast_from_first([path.exists()])
    if is_there:
        return False
    if any_process(interrupted())[0]:
        raise Interrupted
    return True


def save_cell(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write an .npz in one piece; every process calls it, the first one writes."""
    on_host = fetch(dict(arrays))

    def write() -> None:
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **on_host)

    run_on_first(write)


def load_cell(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_cell` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)
