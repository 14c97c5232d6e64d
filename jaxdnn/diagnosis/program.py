"""A network as a flat list of steps on numbered arrays."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array
from jax.extend import core


class Dependence(enum.Flag):
    """What a value depends on."""

    NOTHING = 0
    PARAMS = enum.auto()
    INPUTS = enum.auto()
    KEY = enum.auto()


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the network.

    Attributes:
      shape: its shape.
      dtype: its type.
      depends: what it depends on.
      leaves: the parameters it is made of, each with the slice of a scan over stacked layers (None
        where it is not from a scan). Empty where it depends on the inputs.
    """

    shape: tuple[int, ...]
    dtype: Any
    depends: Dependence
    leaves: frozenset[tuple[int, int | None]]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
      name: of its primitive.
      run: `(*arrays) -> arrays`.
      inputs: numbers of its operands; literals are part of `run`.
      outputs: numbers of its results.
      params: of its primitive.
      inner: names of all primitives inside, its own included.
      label: of the function it was called in, such as `relu`; empty where unknown.
      linear: the matrix product or convolution that it is or contains, if exactly one.
      signature: equal for steps that compute the same function of their operands.
    """

    name: str
    run: Callable[..., Sequence[Array]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    inner: frozenset[str]
    label: str
    linear: core.JaxprEqn | None
    signature: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A network written out.

    Attributes:
      steps: in an order in which they can run.
      values: of every number.
      constants: arrays that depend on nothing, by number.
      arguments: numbers of the flattened (params, inputs, key).
      output: number of the logits.
    """

    steps: tuple[Step, ...]
    values: tuple[Value, ...]
    constants: dict[int, Array]
    arguments: tuple[int, ...]
    output: int
