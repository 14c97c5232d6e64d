"""Results kept portion by portion, so that an interrupted command goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike

from jaxdnn.errors import Interrupted
from jaxdnn.run_folder import draft_of


def is_due(path: Path, interrupted: Callable[[], bool]) -> bool:
    """Tell whether the cell has still to be measured.

    Raises:
      Interrupted: it has, but no more is to be begun.
    """
    if path.exists():
        return False
    if interrupted():
        raise Interrupted
    return True


def save_cell(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write an .npz in one piece."""
    with draft_of(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})


def load_cell(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_cell` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)
