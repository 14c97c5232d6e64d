"""A written-out network is run again: whole, with edits, or a part of it as a function."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn import xla
from jaxdnn.diagnosis.program import (
    CARRY,
    LAST,
    SLICE,
    STACK,
    Edit,
    Environment,
    Loop,
    Program,
    Step,
)
from jaxdnn.propagation import rms


def compile_quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for a few calls: built soon rather than fast."""
    return jax.jit(function, compiler_options=xla.QUICK)


def run(
    program: Program,
    arguments: Sequence[Any],
    edits: Mapping[int, Edit],
    added: Mapping[int | tuple[int, int], Array] | None = None,
    looked_at: Collection[int] = (),
) -> Environment:
    """Run all steps.

    Args:
      program: as `trace` writes it.
      arguments: trees of params, inputs and key, of the shapes that were traced.
      edits: what to do with a value, by its number; inside a loop at every time step.
      added: what to add to a value, of its full shape; by its number, or for one step only by
        (index of the step, number).
      looked_at: numbers inside loops that are asked for.

    Returns:
      All values by number; of those inside loops these that are asked for, of their full shape.
    """
    runner = _Runner(program, edits, added or {}, frozenset(looked_at))
    environment = dict(program.constants)
    leaves = jax.tree.leaves(tuple(arguments))
    for number, leaf in zip(program.arguments, leaves, strict=True):
        environment[number] = runner.edited(number, leaf, environment, {})
    for loop, indices in itertools.groupby(
        range(len(program.steps)), lambda index: program.steps[index].loop
    ):
        if loop is None:
            for index in indices:
                runner.take(index, environment, runner.outside)
        else:
            runner.repeat(program.loops[loop], list(indices), environment)
    return environment


class _Runner:
    """Runs single steps and loops in an environment."""

    def __init__(
        self,
        program: Program,
        edits: Mapping[int, Edit],
        added: Mapping[Any, Array],
        looked_at: frozenset[int],
    ) -> None:
        self._program, self._edits, self._looked_at = program, edits, looked_at
        values = program.values
        self.outside = {
            key: array
            for key, array in added.items()
            if values[key[1] if isinstance(key, tuple) else key].loop is None
        }
        self._inside = {key: added[key] for key in added.keys() - self.outside.keys()}
        self._changed = {key[0] for key in added if isinstance(key, tuple)}

    def edited(
        self, number: int, value: Array, environment: Environment, added: Mapping[Any, Array]
    ) -> Array:
        """What stands in a value's place."""
        if number in self._edits:
            value = self._edits[number](value, environment)
        return value + added[number] if number in added else value

    def take(self, index: int, environment: Environment, added: Mapping[Any, Array]) -> None:
        """Run one step."""
        step = self._program.steps[index]
        operands = [environment[number] for number in step.inputs]
        if index in self._changed:
            operands = [
                value + added[index, number] if (index, number) in added else value
                for number, value in zip(step.inputs, operands, strict=True)
            ]
        for number, value in zip(step.outputs, step.run(*operands), strict=True):
            environment[number] = self.edited(number, value, environment, added)

    def repeat(self, loop: Loop, indices: Sequence[int], environment: Environment) -> None:
        """Run a loop, and enter its results."""
        steps = self._program.steps
        into = {n for _, n, _ in loop.carries} | {n for _, n in loop.slices}
        inside = [i for i in indices if steps[i].name not in (CARRY, SLICE, LAST, STACK)]
        leaving = [steps[i] for i in indices if steps[i].name in (LAST, STACK)]
        made = into.union(*(steps[i].outputs for i in inside))
        wanted = (made & self._looked_at) | {s.inputs[0] for s in leaving if s.name == STACK}
        keys = [key for key in self._inside if (key[1] if isinstance(key, tuple) else key) in made]

        def time_step(carry: Sequence[Array], over: Any) -> tuple[list[Array], dict[int, Array]]:
            slices, arrays = over
            own, local = dict(zip(keys, arrays, strict=True)), dict(environment)
            for (_, number, _), value in zip(loop.carries, carry, strict=True):
                local[number] = self.edited(number, value, local, own)
            for (_, number), value in zip(loop.slices, slices, strict=True):
                local[number] = self.edited(number, value, local, own)
            for index in inside:
                self.take(index, local, own)
            return [local[end] for _, _, end in loop.carries], {n: local[n] for n in wanted}

        first = [environment[start] for start, _, _ in loop.carries]
        over = [environment[whole] for whole, _ in loop.slices], [self._inside[k] for k in keys]
        last, stacked = jax.lax.scan(
            time_step, first, over, length=loop.length, reverse=loop.reverse
        )
        environment.update({number: stacked[number] for number in wanted & made})
        finals = {end: value for (_, _, end), value in zip(loop.carries, last, strict=True)}
        for step in leaving:
            (number,), (end,) = step.outputs, step.inputs
            value = stacked[end] if step.name == STACK else finals[end]
            environment[number] = self.edited(number, value, environment, self.outside)


def replay(
    steps: Sequence[Step], environment: Environment, start: int, end: int
) -> Callable[[Array], Array]:
    """Return the function that the steps compute of the value `start`, all else as it was.

    Inside a loop it is the function of one time step.
    """

    def function(x: Array) -> Array:
        local = {start: x}
        for step in steps:
            operands = [local[n] if n in local else environment[n] for n in step.inputs]
            local.update(zip(step.outputs, step.run(*operands), strict=True))
        return local[end]

    return function


def replay_all(
    program: Program, steps: Sequence[Step], environment: Environment, start: int, end: int
) -> Callable[[Array], Array]:
    """As `replay`, with the values of loops at all their time steps."""

    def over_time(step: Step) -> Step:
        if step.loop is None or step.name in (CARRY, SLICE, LAST, STACK):
            return step
        axes = [None if program.values[n].loop is None else 0 for n in step.inputs]
        return dataclasses.replace(step, run=jax.vmap(step.run, in_axes=axes))

    return replay([over_time(step) for step in steps], environment, start, end)


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
