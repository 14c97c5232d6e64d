"""What kind of answer the targets ask for, and how their numbers lie."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

# Whole numbers of more kinds than this are taken for amounts.
_MOST_CLASSES = 1000


class TargetKind(enum.Enum):
    """What the targets are.

    Attributes:
      BINARY: one column of two values.
      CLASSES: one column of whole numbers, three kinds or more.
      ONE_HOT: a one in each row of zeros.
      BITS: several columns of zeros and ones.
      AMOUNTS: any other numbers.
      UNKNOWN: no single array of numbers.
    """

    BINARY = enum.auto()
    CLASSES = enum.auto()
    ONE_HOT = enum.auto()
    BITS = enum.auto()
    AMOUNTS = enum.auto()
    UNKNOWN = enum.auto()


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets of a batch.

    Attributes:
      kind: what they ask for.
      values: as numbers in float64, (batch, ...); empty where unknown.
      low: least value.
      high: greatest value.
      num_classes: kinds of answers: highest class plus 1, or columns; 0 for amounts.
      is_float: whether they came as floating-point numbers.
    """

    kind: TargetKind
    values: np.ndarray
    low: float
    high: float
    num_classes: int
    is_float: bool

    @property
    def mean(self) -> np.ndarray:
        """Mean of each column."""
        return self._columns.mean(0)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each column."""
        return self._columns.std(0)

    @property
    def _columns(self) -> np.ndarray:
        return self.values.reshape(-1, self.values.shape[-1] if self.values.ndim > 1 else 1)


def describe_targets(targets: Any) -> Targets:
    """Say what targets ask for.

    Args:
      targets: an array (batch, ...); anything else is unknown.
    """
    nothing = Targets(TargetKind.UNKNOWN, np.zeros((0,)), math.nan, math.nan, 0, False)
    if not hasattr(targets, "dtype") or jnp.size(targets) == 0:
        return nothing
    values = np.asarray(targets, np.float64)
    if not np.isfinite(values).all():
        return nothing
    low, high = float(values.min()), float(values.max())
    is_float = bool(jnp.issubdtype(targets.dtype, jnp.floating))
    kind, num_classes = _kind(values, low, high, is_float)
    return Targets(kind, values, low, high, num_classes, is_float)


def _kind(values: np.ndarray, low: float, high: float, is_float: bool) -> tuple[TargetKind, int]:
    columns = values.shape[-1] if values.ndim > 1 else 1
    whole = bool((values == np.rint(values)).all())
    bits = whole and low >= 0 and high <= 1
    if columns > 1 and bits and (is_float or values.ndim == 2):
        ones = values.sum(-1)
        return (TargetKind.ONE_HOT if (ones == 1).all() else TargetKind.BITS), columns
    kinds = np.unique(values)
    if len(kinds) == 2 and whole:
        return TargetKind.BINARY, 2
    if columns > 1 and is_float:
        return TargetKind.AMOUNTS, 0
    few = len(kinds) <= max(2, min(_MOST_CLASSES, values.size // 2)) or not is_float
    # Classes come as numbers from 0 or 1 on, most of them there.
    dense = whole and low in (0, 1) and high < max(2 * len(kinds) + 2, 12)
    dense = dense or (whole and not is_float and low >= 0)
    if dense and (few or len(kinds) >= 3) and high <= _MOST_CLASSES and len(kinds) > 2:
        return TargetKind.CLASSES, int(high) + 1
    return TargetKind.AMOUNTS, 0
