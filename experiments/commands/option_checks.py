"""What the options of several commands are checked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdnn.errors import InputError
from jaxdnn.memory import check_memory
from jaxdnn.options import MOST


def check_least(values: Mapping[str, int | None], least: int) -> None:
    """Raise InputError where a value is below `least`, or beyond any count; None is allowed."""
    for name, value in values.items():
        if value is not None and value > MOST:
            raise InputError(f"{_flag(name)} is {value}; give {least} to {MOST}")
        if value is not None and value < least:
            raise InputError(f"{_flag(name)} is {value}; give {least} or more")


def check_positive(values: Mapping[str, float], most: float = math.inf) -> None:
    """Raise InputError where a value is not a finite number above 0, and at most `most`."""
    for name, value in values.items():
        if not 0 < value <= most or value == math.inf:
            bound = f", at most {most:g}" if most < math.inf else ""
            raise InputError(f"{_flag(name)} is {value}; give a number above 0{bound}")


def check_not_negative(values: Mapping[str, float | None]) -> None:
    """Raise InputError where a value is not a finite number of 0 or more; None is allowed."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{_flag(name)} is {value}; give 0 or more")


def check_named(values: Mapping[str, Sequence[Any]]) -> None:
    """Raise InputError where nothing is listed."""
    for name, value in values.items():
        if not value:
            raise InputError(f"{_flag(name)} is empty; name at least one")


def check_seeds(seed: int, seeds: int) -> None:
    """Raise InputError where the last of so many seeds from the first on is beyond any count."""
    check_least({"seed": seed}, 0)
    if seed + seeds - 1 > MOST:
        raise InputError(f"--seed {seed} --seeds {seeds} go beyond {MOST}; choose smaller ones")


def check_networks(*, depth: int, width: int, batch_size: int, seeds: int, kinds: int) -> None:
    """Check that one network, and the results of all, will not take too much memory.

    Args:
      depth: layers with weights.
      width: units of each.
      batch_size: inputs that are passed through.
      seeds: networks of each kind.
      kinds: combinations of what is listed.

    Raises:
      InputError: they would.
    """
    named = f"--depth {depth} --width {width}"
    remedy = "choose a smaller one"
    check_memory(f"the weights of {named}", (depth, width, width), remedy)
    check_memory(
        f"the signals of {named} --batch-size {batch_size}", (depth, batch_size, width), remedy
    )
    check_memory(f"the results of --seeds {seeds} at {named}", (seeds, kinds, depth, 8), remedy)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
