"""Finders of what a recurrence does to a gradient on its way back through time, and their answers.

References:
  Gers, Schmidhuber and Cummins, "Learning to Forget: Continual Prediction with LSTM", 2000.
  Tallec and Ollivier, "Can Recurrent Neural Networks Warp Time?", 2018: a forget gate's bias of
  log(T) for memories of T steps. Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent
  Networks of Rectified Linear Units", 2015. Bengio, Boulanger-Lewandowski and Pascanu, "Advances in
  Optimizing Recurrent Networks", 2013: units that change slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxdnn.diagnosis.findings import FACTOR_SPREAD, STRUCTURAL, Finding
from jaxdnn.diagnosis.gates import carried, find_gates, origins
from jaxdnn.diagnosis.graph import Graph, Layer
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Edit
from jaxdnn.diagnosis.setups import Fix

# A sequence of so many horizons is too long for what is carried.
_TOO_LONG = 3
# What a gradient may grow by on its way back.
_MOST_GROWTH = 100.0


def vanishing_through_time(exam: Exam) -> Iterator[Finding]:
    """Find recurrences that forget long before the sequence ends."""
    for each in exam.recurrences:
        if each.horizon is None or each.horizon * _TOO_LONG > each.length:
            continue
        keeps = "" if each.kept is None else f"; its gate keeps {each.kept:.2g} of the state a step"
        text = (
            f"on its way back through time the gradient is down to 1/e after {each.horizon} of"
            f" {each.length} steps, to {max(each.passed[-1], 1e-38):.1g} at the first{keeps}"
        )
        strength = min(-math.log(max(each.passed[-1], 1e-38)) / FACTOR_SPREAD, STRUCTURAL)
        yield Finding(exam.graph.index_of(each.layers[-1]), text, strength)


def exploding_through_time(exam: Exam) -> Iterator[Finding]:
    """Find recurrences that make a gradient grow on its way back."""
    for each in exam.recurrences:
        most = max((x for x in each.passed if not math.isnan(x)), default=0.0)
        if most > _MOST_GROWTH:
            text = (
                f"on its way back through {each.length} time steps the gradient grows"
                f" {most:.2g} times, {each.factor:.3g} times a step"
            )
            strength = math.log(min(most, 1e38)) / FACTOR_SPREAD
            yield Finding(exam.graph.index_of(each.layers[-1]), text, strength)


def longer_memory(exam: Exam, index: int | None) -> Iterator[Fix]:
    """Open the gates that keep a state."""
    del index
    program = exam.graph.program
    edits: dict[int, Edit] = {}
    longest = 1
    for number, loop in enumerate(program.loops):
        for gate in find_gates(program, number):
            if gate.logits is not None:
                longest = max(longest, loop.length)
                shift = math.log(max(loop.length, 3)) * (1 if gate.rises else -1)
                edits[gate.logits] = lambda x, _, shift=shift: x + jnp.asarray(shift, x.dtype)
    if edits:
        bias = math.log(max(longest, 3))
        words = (
            f"start the gate that keeps the state at log of the length, {bias:.2g}, so it is open"
        )
        code = (
            f"cell.hf.bias = cell.hf.bias + {bias:.2g}  # the forget gate's; chrono initialisation"
        )
        yield Fix("open_gates", words, code, size=1, edits=edits)


def orthogonal_recurrence(exam: Exam, index: int | None) -> Iterator[Fix]:
    """Make the weights from state to state a rotation, which keeps every length."""
    del index
    leaves, structure = jax.tree.flatten(exam.params)
    changed = []
    for place, layer in enumerate(_of_the_state(exam.graph)):
        kernel = jnp.asarray(layer.leaf.take(leaves))
        if kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]:
            draw = jax.nn.initializers.orthogonal()(jax.random.key(place), kernel.shape)
            layer.leaf.put(leaves, draw.astype(kernel.dtype))
            changed.append(layer.path)
    if changed:
        words = f"orthogonal weights from state to state in {', '.join(changed)}"
        code = "recurrent_kernel_init=nnx.initializers.orthogonal()"
        params = jax.tree.unflatten(structure, leaves)
        yield Fix("orthogonal_recurrence", words, code, size=1, params=params)


def slow_state(exam: Exam, index: int | None) -> Iterator[Fix]:
    """Let a state without a gate change by a part of the way at each step."""
    del index
    program = exam.graph.program
    edits: dict[int, Edit] = {}
    share = 1.0
    for number, loop in enumerate(program.loops):
        if not find_gates(program, number):
            share = min(share, 2 / loop.length)
            for state, end in carried(program, number):
                edits[end] = _slowly(state, 2 / loop.length)
    if edits and share < 1:
        words = f"let the state move by {share:.2g} of the way at each time step"
        code = f"h = h + {share:.2g} * (cell(h, x) - h)"
        yield Fix("slow_state", words, code, size=2, edits=edits)


def _slowly(state: int, share: float) -> Edit:
    def edit(new: Any, values: Any) -> Any:
        old = values[state]
        return (old + share * (new - old)).astype(new.dtype)

    return edit


def _of_the_state(graph: Graph) -> Iterator[Layer]:
    """The layers whose operand is what was carried."""
    program = graph.program
    states = {n for number in range(len(program.loops)) for n, _ in carried(program, number)}
    views = origins(program)
    for layer in graph.layers:
        if layer.x is not None and views(layer.x) in states:
            yield layer
