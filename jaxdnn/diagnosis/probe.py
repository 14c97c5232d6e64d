"""Run a program with edits: probes added to values, values replaced, gradients rerouted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.diagnosis.program import Program, Step
from jaxdnn.propagation import rms

Environment = dict[int, Array]
# (value, everything computed so far) -> what stands in its place
Edit = Callable[[Array, Environment], Array]


def run(
    program: Program,
    arguments: Sequence[Any],
    edits: Mapping[int, Edit],
    uses: Mapping[tuple[int, int], Callable[[Array], Array]] | None = None,
) -> Environment:
    """Run all steps.

    Args:
      program: of the network.
      arguments: trees of params, inputs and key, as it was traced.
      edits: what to do with a value, by its number.
      uses: what to do with an operand of one step only, by (index of the step, number).

    Returns:
      All values by number.
    """
    uses = uses or {}
    environment = dict(program.constants)
    leaves = jax.tree.leaves(tuple(arguments))
    for number, leaf in zip(program.arguments, leaves, strict=True):
        environment[number] = _edited(edits, number, leaf, environment)
    changed = {step for step, _ in uses}
    for index, step in enumerate(program.steps):
        operands = [environment[number] for number in step.inputs]
        if index in changed:
            operands = [
                uses[index, number](value) if (index, number) in uses else value
                for number, value in zip(step.inputs, operands, strict=True)
            ]
        for number, value in zip(step.outputs, step.run(*operands), strict=True):
            environment[number] = _edited(edits, number, value, environment)
    return environment


def _edited(
    edits: Mapping[int, Edit], number: int, value: Array, environment: Environment
) -> Array:
    return edits[number](value, environment) if number in edits else value


def replay(
    steps: Sequence[Step], environment: Environment, start: int, end: int
) -> Callable[[Array], Array]:
    """Return the function that the steps compute of the value `start`, all else as it was."""

    def function(x: Array) -> Array:
        local = {start: x}
        for step in steps:
            operands = [local[n] if n in local else environment[n] for n in step.inputs]
            local.update(zip(step.outputs, step.run(*operands), strict=True))
        return local[end]

    return function


@jax.custom_vjp
def bridge(above: Array, below: Array) -> Array:
    """Return `above`, whose gradient goes to `below` as it is, skipping all between.

    If the shapes differ its entries are repeated or cut, and scaled to the same root mean square.
    """
    del below
    return above


def _bridge_forward(above: Array, below: Array) -> tuple[Array, Array]:
    return above, below


def _bridge_backward(below: Array, grad: Array) -> tuple[Array, Array]:
    carried = grad.astype(below.dtype)
    if grad.shape != below.shape:
        carried = jnp.resize(carried, below.shape)
        lost = rms(carried)
        carried = carried * jnp.where(lost > 0, rms(grad) / lost, 1.0).astype(below.dtype)
    return jnp.zeros_like(grad), carried


bridge.defvjp(_bridge_forward, _bridge_backward)
