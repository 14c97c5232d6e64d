"""Write a network's jaxpr out as steps: calls, remat and scans over layers are inlined.

Every intermediate array has a number, so that it can be named, probed or replaced. Functions with a
gradient of their own (custom_jvp, custom_vjp), conditionals and while loops stay whole. Steps that
do not touch the logits are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from jaxdnn.diagnosis.program import Dependence, Program, Step, Value

# Longer scans are left whole: written out they would compile for minutes.
LONGEST_SCAN = 512
# Functions that are called in one piece, by where their body is.
_INLINED = {"jit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "closed_call": "call_jaxpr"}
_LINEAR = ("dot_general", "conv_general_dilated")


def trace(function: Callable[..., Array], params: Any, inputs: Any, key: Array) -> Program:
    """Write `function(params, inputs, key) -> logits` out as steps.

    Args:
      function: pure; traced once.
      params: a tree of arrays.
      inputs: an array or a tree of arrays.
      key: a typed key.
    """
    closed = jax.make_jaxpr(function)(params, inputs, key)
    counts = [len(jax.tree.leaves(tree)) for tree in (params, inputs, key)]
    kinds = [Dependence.PARAMS, Dependence.INPUTS, Dependence.KEY]
    writer = _Writer()
    arguments = []
    for kind, count in zip(kinds, counts, strict=True):
        for var in closed.jaxpr.invars[len(arguments) :][:count]:
            leaves = {(len(arguments), None)} if kind is Dependence.PARAMS else ()
            arguments.append(writer.new(var.aval, kind, frozenset(leaves)))
    (output,) = writer.write(closed.jaxpr, closed.consts, arguments, "")
    return _prune(
        Program(
            tuple(writer.steps), tuple(writer.values), writer.constants, tuple(arguments), output
        )
    )


def _prune(program: Program) -> Program:
    """Leave out what the logits do not need."""
    needed, kept = {program.output}, []
    for step in reversed(program.steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            kept.append(step)
    return dataclasses.replace(program, steps=tuple(reversed(kept)))


class _Writer:
    """Collects the steps of a jaxpr and of those inside it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.constants: dict[int, Array] = {}

    def new(
        self,
        aval: Any,
        depends: Dependence,
        leaves: frozenset[tuple[int, int | None]] = frozenset(),
    ) -> int:
        self.values.append(Value(tuple(aval.shape), aval.dtype, depends, leaves))
        return len(self.values) - 1

    def constant(self, value: Any) -> int:
        array = jnp.asarray(value)
        number = self.new(array, Dependence.NOTHING)
        self.constants[number] = array
        return number

    def write(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[int], label: str
    ) -> list[int]:
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            numbers[var] = self.constant(const)

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name in _INLINED:
                body, inner_consts = _open(eqn.params[_INLINED[name]])
                called = str(eqn.params.get("name", "")) or label
                outputs = self.write(body, inner_consts, [read(v) for v in eqn.invars], called)
            elif name == "scan" and _worth_unrolling(eqn):
                outputs = self._unroll(eqn, [read(v) for v in eqn.invars], label)
            else:
                outputs = self._step(eqn, numbers, label)
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(self, eqn: core.JaxprEqn, numbers: dict[Any, int], label: str) -> list[int]:
        variables = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, core.Var)))
        inputs = [numbers[var] for var in variables]
        outvars = list(eqn.outvars)
        about = core.DebugInfo(
            "step", eqn.primitive.name, ("",) * len(variables), ("",) * len(outvars)
        )
        body = core.Jaxpr([], variables, outvars, [eqn], eqn.effects, about)
        named = (str(inner.params.get("name", "")) for inner in _equations(eqn))
        called = next(filter(None, named), label)
        run = core.jaxpr_as_fun(core.ClosedJaxpr(body, ()))
        signature = str(body)
        return self.add(eqn.primitive.name, run, inputs, eqn.outvars, eqn, called, signature)

    def add(
        self,
        name: str,
        run: Callable[..., Sequence[Array]],
        inputs: Sequence[int],
        outvars: Sequence[Any],
        eqn: core.JaxprEqn | None,
        label: str,
        signature: str = "",
        scan_index: int | None = None,
    ) -> list[int]:
        depends, leaves = Dependence.NOTHING, frozenset()
        for number in inputs:
            depends |= self.values[number].depends
            leaves |= self.values[number].leaves
        if depends & Dependence.INPUTS:
            leaves = frozenset()
        elif scan_index is not None:
            leaves = frozenset((leaf, scan_index) for leaf, _ in leaves)
        outputs = [self.new(var.aval, depends, leaves) for var in outvars]
        inside = [] if eqn is None else list(_equations(eqn))
        linear = [inner for inner in inside if inner.primitive.name in _LINEAR]
        self.steps.append(
            Step(
                name,
                run,
                tuple(inputs),
                tuple(outputs),
                {} if eqn is None else eqn.params,
                frozenset(inner.primitive.name for inner in inside),
                label,
                linear[0] if len(linear) == 1 else None,
                signature,
            )
        )
        return outputs

    def _unroll(self, eqn: core.JaxprEqn, inputs: list[int], label: str) -> list[int]:
        body, consts = _open(eqn.params["jaxpr"])
        length = eqn.params["length"]
        num_carry = _num_same(eqn.outvars, body.outvars)
        num_before = _num_same(eqn.invars, body.invars)
        shared, carry = (
            inputs[: num_before - num_carry],
            inputs[num_before - num_carry : num_before],
        )
        stacked: list[list[int]] = [[] for _ in body.outvars[num_carry:]]
        order = range(length)
        for index in reversed(order) if eqn.params["reverse"] else order:
            slices = [
                self.add("slice_of_scan", _take(index), [x], [var], None, label, "", index)[0]
                for x, var in zip(inputs[num_before:], body.invars[num_before:], strict=True)
            ]
            outputs = self.write(body, consts, [*shared, *carry, *slices], label)
            carry = outputs[:num_carry]
            for column, number in zip(stacked, outputs[num_carry:], strict=True):
                column.append(number)
        ordered = [column[::-1] if eqn.params["reverse"] else column for column in stacked]
        joined = [
            self.add("stack_of_scan", _stack, column, [var], None, label)[0]
            for column, var in zip(ordered, eqn.outvars[num_carry:], strict=True)
        ]
        return [*carry, *joined]


def _open(body: Any) -> tuple[core.Jaxpr, Sequence[Any]]:
    """Take a jaxpr and its constants apart."""
    return (body.jaxpr, body.consts) if isinstance(body, core.ClosedJaxpr) else (body, ())


def _equations(eqn: core.JaxprEqn) -> Any:
    """All equations inside one, itself first."""
    yield eqn
    for inner in core.jaxprs_in_params(eqn.params):
        for inside in _open(inner)[0].eqns:
            yield from _equations(inside)


def _worth_unrolling(eqn: core.JaxprEqn) -> bool:
    names = {inner.primitive.name for inner in _equations(eqn)}
    return bool(names.intersection(_LINEAR)) and eqn.params["length"] <= LONGEST_SCAN


def _num_same(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """Count what a scan passes on as it is; what it stacks has one axis more."""
    pairs = zip(outer, inner, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def _take(index: int) -> Callable[..., Sequence[Array]]:
    return lambda x: (x[index],)


def _stack(*arrays: Array) -> Sequence[Array]:
    return (jnp.stack(arrays),)
