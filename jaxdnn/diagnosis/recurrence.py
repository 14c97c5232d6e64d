"""How a gradient passes back through time, in a scan whose weights are the same at each step.

A gradient of random direction is put on what the recurrence carries at its end, and followed back:

    passed(k) = RMS dL/dh_(T-k) / RMS dL/dh_T,     horizon = the least k with passed(k) < 1/e

What a loss asks of single time steps does not enter, so that two networks can be compared. A gate
that multiplies what is carried sets the pace: where it keeps the share f of its state, the gradient
through the state alone is f^k after k steps.

References:
  Bengio, Simard and Frasconi, "Learning Long-Term Dependencies with Gradient Descent Is Difficult",
  1994. Gers, Schmidhuber and Cummins, "Learning to Forget: Continual Prediction with LSTM", 2000.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.gates import carried, find_gates
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.program import Loop, Program
from jaxdnn.diagnosis.replay import compile_quickly, run

_FORGOTTEN = 1 / math.e


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A recurrence, and what it does to a gradient on its way back.

    Attributes:
      path: what the paths of its layers begin with; those themselves where nothing is common.
      layers: paths of the layers that run at every time step.
      length: time steps.
      passed: root mean square of the gradient of what is carried, over that at the end, after
        1, 2, ... steps back, (length,).
      factor: of one step, in the geometric mean over all in which anything is left.
      horizon: steps back until less than 1/e is left; None where that is beyond the sequence.
      kept: share of its state that a gate keeps at a time step, in the mean; None without a gate.
    """

    path: str
    layers: tuple[str, ...]
    length: int
    passed: tuple[float, ...]
    factor: float
    horizon: int | None
    kept: float | None


def find_recurrences(graph: Graph, arguments: Sequence[Any]) -> tuple[Recurrence, ...]:
    """Return the recurrences of a network that have layers, in the order in which they run.

    Args:
      graph: of a network.
      arguments: trees of params, inputs and key.
    """
    members = [
        [layer.path for layer in graph.layers if graph.program.steps[layer.step].loop == index]
        for index in range(len(graph.program.loops))
    ]
    wanted = [
        index for index, paths in enumerate(members) if paths and carried(graph.program, index)
    ]
    if not wanted:
        return ()
    gates = {index: find_gates(graph.program, index) for index in wanted}
    shown = {gate.number for found in gates.values() for gate in found}
    curves, values = _measure(graph.program, arguments, wanted, shown)
    found = []
    for index, curve in zip(wanted, curves, strict=True):
        kept = [
            1 - values[gate.number] if gate.rest else values[gate.number] for gate in gates[index]
        ]
        kept = [each for each in kept if 0 <= each.min() <= each.max() <= 1]
        share = float(np.mean([np.mean(each, dtype=np.float64) for each in kept])) if kept else None
        found.append(_recurrence(members[index], curve, share))
    return tuple(found)


def _recurrence(paths: Sequence[str], passed: np.ndarray, kept: float | None) -> Recurrence:
    alive = np.flatnonzero(np.isfinite(passed) & (passed > 0))
    last = int(alive[-1]) if len(alive) else 0
    factor = float(passed[last] ** (1 / (last + 1))) if len(alive) else 0.0
    below = np.flatnonzero(passed < _FORGOTTEN)
    return Recurrence(
        _common(paths),
        tuple(paths),
        len(passed),
        tuple(map(float, passed)),
        factor,
        int(below[0]) + 1 if len(below) else None,
        kept,
    )


def _common(paths: Sequence[str]) -> str:
    """The folder that all paths lie in."""
    first, *others = [path.split("/")[:-1] for path in paths]
    shared = 0
    while shared < len(first) and all(each[: shared + 1] == first[: shared + 1] for each in others):
        shared += 1
    return "/".join(first[:shared]) if others and shared else ", ".join(paths)


def _measure(
    program: Program, arguments: Sequence[Any], loops: Sequence[int], shown: set[int]
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """For each loop the curve of what is passed back, and the values of gates."""
    pairs_of = {index: carried(program, index) for index in loops}
    places = [number for pairs in pairs_of.values() for number, _ in pairs]
    ends = {end for pairs in pairs_of.values() for _, end in pairs}

    @compile_quickly
    def pass_back(arguments: Any, pushes: list[list[Array]]) -> Any:
        def finals(zeros: dict[int, Array]) -> Any:
            environment = run(program, arguments, {}, {**zeros}, looked_at=ends | shown)
            last = [
                [_at_end(program.loops[index], environment[end]) for _, end in pairs]
                for index, pairs in pairs_of.items()
            ]
            return last, {number: environment[number] for number in shown}

        zeros = {
            number: jnp.zeros(program.full_shape(number), program.values[number].dtype)
            for number in places
        }
        _, pull_back, values = jax.vjp(finals, zeros, has_aux=True)
        nothing = [[jnp.zeros_like(push) for push in each] for each in pushes]
        curves = []
        for place, pairs in enumerate(pairs_of.values()):
            own = [pushes[place] if i == place else each for i, each in enumerate(nothing)]
            deltas = pull_back(own)[0]
            squares = [_mean_squares(deltas[number]) for number, _ in pairs]
            curves.append(sum(squares) / len(squares))
        return curves, values

    rng = np.random.default_rng(0)
    pushes = [[_push(rng, program, end) for _, end in pairs] for pairs in pairs_of.values()]
    curves, values = jax.device_get(pass_back(tuple(arguments), pushes))
    passed = []
    for index, curve in zip(loops, curves, strict=True):
        back = curve if program.loops[index].reverse else curve[::-1]
        passed.append(np.sqrt(np.asarray(back, np.float64)))
    return passed, values


def _at_end(loop: Loop, value: Array) -> Array:
    return value[0 if loop.reverse else -1]


def _mean_squares(delta: Array) -> Array:
    squares = jnp.square(delta.astype(jnp.float32))
    return squares.mean(axis=tuple(range(1, delta.ndim)))


def _push(rng: np.random.Generator, program: Program, number: int) -> Array:
    value = program.values[number]
    drawn = rng.standard_normal(value.shape)
    return jnp.asarray(drawn / np.sqrt(np.mean(drawn**2)), value.dtype)


def forgotten(recurrences: Sequence[Recurrence], steps: int) -> bool:
    """Tell whether nothing that float32 can hold comes back so many time steps."""
    return any(
        each.length >= steps and each.passed[min(steps, each.length) - 1] < 1e-20
        for each in recurrences
    )
