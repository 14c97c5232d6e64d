"""A network as a flat list of steps on numbered arrays, written out of its jaxpr.

Calls, remat and scans over layers are inlined, so that every intermediate array has a number and
can be named, probed or replaced when the steps are run. Functions with a gradient of their own
(custom_jvp, custom_vjp), conditionals and while loops stay whole. Steps that do not touch the
logits are left out.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from jaxdnn import xla
from jaxdnn.diagnosis.source_lines import SourceLine, source_line
from jaxdnn.propagation import rms

# Longer scans are left whole: written out they would compile for minutes.
LONGEST_SCAN = 512
# Functions that are called in one piece, by where their body is.
_INLINED = {"jit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "closed_call": "call_jaxpr"}
_LINEAR = ("dot_general", "conv_general_dilated")

Environment = dict[int, Array]
# (value, everything computed so far) -> what stands in its place
Edit = Callable[[Array, Environment], Array]


class Dependence(enum.Flag):
    """What a value depends on."""

    NOTHING = 0
    PARAMS = enum.auto()
    INPUTS = enum.auto()
    KEY = enum.auto()


class Leaf(NamedTuple):
    """A leaf of the parameter tree, or one layer's part of a leaf that a scan runs over.

    Attributes:
      index: place among the flattened parameters.
      part: index along the leaf's first axis; None for the whole leaf.
    """

    index: int
    part: int | None

    def take(self, leaves: Sequence[Any]) -> Any:
        """Return the array, given all leaves."""
        leaf = leaves[self.index]
        return leaf if self.part is None else leaf[self.part]

    def put(self, leaves: list[Any], value: Any) -> None:
        """Replace the array in a list of all leaves."""
        own = leaves[self.index]
        leaves[self.index] = value if self.part is None else own.at[self.part].set(value)


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the network.

    Attributes:
      shape: without names of axes; the batch comes first where it depends on the inputs.
      dtype: number format of its entries.
      depends: any of parameters, inputs and key.
      leaves: the parameters it is made of; empty where it depends on the inputs.
    """

    shape: tuple[int, ...]
    dtype: Any
    depends: Dependence
    leaves: frozenset[Leaf]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
      name: its primitive in JAX, such as `dot_general`.
      run: computes it, `(*arrays) -> arrays`.
      inputs: numbers of its operands; literals are part of `run`.
      outputs: numbers of its results.
      params: what its primitive is called with besides arrays.
      inner: names of all primitives inside, its own included.
      label: name of the function it was called in, such as `relu`; empty where unknown.
      linear: the matrix product or convolution that it is or contains, if exactly one.
      signature: equal for steps that compute the same function of their operands.
      equations: its own, then those of the calls around it, innermost first.
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
    equations: tuple[core.JaxprEqn, ...]

    @property
    def line(self) -> SourceLine | None:
        """The line of the user's file that it was written in; None where unknown."""
        return source_line(self.equations)


@dataclasses.dataclass(frozen=True)
class Program:
    """A network written out.

    Attributes:
      steps: in an order in which they can run.
      values: what each number stands for.
      constants: arrays that depend on nothing, by number.
      arguments: numbers of the flattened (params, inputs, key).
      output: number of the logits.
    """

    steps: tuple[Step, ...]
    values: tuple[Value, ...]
    constants: dict[int, Array]
    arguments: tuple[int, ...]
    output: int


def trace(
    function: Callable[..., Array],
    params: Any,
    inputs: Any,
    key: Array | None,
    *,
    unroll: bool = True,
) -> Program:
    """Write `function(params, inputs, key) -> logits` out as steps.

    Args:
      function: pure function of JAX arrays; traced once.
      params: a tree of arrays.
      inputs: a tree of arrays.
      key: a typed key, or None.
      unroll: write the layers of a scan out one by one.
    """
    closed = jax.make_jaxpr(function)(params, inputs, key)
    counts = [len(jax.tree.leaves(tree)) for tree in (params, inputs, key)]
    kinds = [Dependence.PARAMS, Dependence.INPUTS, Dependence.KEY]
    writer = _Writer(unroll)
    arguments = []
    for kind, count in zip(kinds, counts, strict=True):
        for var in closed.jaxpr.invars[len(arguments) :][:count]:
            leaves = {Leaf(len(arguments), None)} if kind is Dependence.PARAMS else ()
            arguments.append(writer.new(var.aval, kind, frozenset(leaves)))
    (output,) = writer.write(closed.jaxpr, closed.consts, arguments, "")
    steps = _needed(writer.steps, output)
    return Program(steps, tuple(writer.values), writer.constants, tuple(arguments), output)


def _needed(steps: Sequence[Step], output: int) -> tuple[Step, ...]:
    """Leave out what the logits do not need."""
    needed, kept = {output}, []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            kept.append(step)
    return tuple(reversed(kept))


class _Writer:
    """Collects the steps of a jaxpr and of those inside it."""

    def __init__(self, unroll: bool) -> None:
        self._unrolls = unroll
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.constants: dict[int, Array] = {}
        # The calls in which the writer is, innermost first.
        self._around: tuple[core.JaxprEqn, ...] = ()

    def new(self, aval: Any, depends: Dependence, leaves: frozenset[Leaf] = frozenset()) -> int:
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
                body, inner_consts = open_jaxpr(eqn.params[_INLINED[name]])
                called = str(eqn.params.get("name", "")) or label
                self._around = (eqn, *self._around)
                outputs = self.write(body, inner_consts, [read(v) for v in eqn.invars], called)
                self._around = self._around[1:]
            elif name == "scan" and self._unrolls and _worth_unrolling(eqn):
                self._around = (eqn, *self._around)
                outputs = self._unroll(eqn, [read(v) for v in eqn.invars], label)
                self._around = self._around[1:]
            else:
                outputs = self._step(eqn, numbers, label)
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(self, eqn: core.JaxprEqn, numbers: dict[Any, int], label: str) -> list[int]:
        variables = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, core.Var)))
        inputs = [numbers[var] for var in variables]
        outvars = list(eqn.outvars)
        name, unnamed = eqn.primitive.name, [("",) * len(each) for each in (variables, outvars)]
        about = core.DebugInfo("step", name, *unnamed)
        body = core.Jaxpr([], variables, outvars, [eqn], eqn.effects, about)
        named = (str(inner.params.get("name", "")) for inner in _equations(eqn))
        called = next(filter(None, named), label)
        run = core.jaxpr_as_fun(core.ClosedJaxpr(body, ()))
        return self.add(name, run, inputs, outvars, called, eqn, str(body))

    def add(
        self,
        name: str,
        run: Callable[..., Sequence[Array]],
        inputs: Sequence[int],
        outvars: Sequence[Any],
        label: str,
        eqn: core.JaxprEqn | None = None,
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
            leaves = frozenset(Leaf(leaf.index, scan_index) for leaf in leaves)
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
                self._around if eqn is None else (eqn, *self._around),
            )
        )
        return outputs

    def _unroll(self, eqn: core.JaxprEqn, inputs: list[int], label: str) -> list[int]:
        body, consts = open_jaxpr(eqn.params["jaxpr"])
        length = eqn.params["length"]
        num_carry = num_same(eqn.outvars, body.outvars)
        num_before = num_same(eqn.invars, body.invars)
        num_shared = num_before - num_carry
        shared, carry = inputs[:num_shared], inputs[num_shared:num_before]
        stacked: list[list[int]] = [[] for _ in body.outvars[num_carry:]]
        order = range(length)
        for index in reversed(order) if eqn.params["reverse"] else order:
            slices = [
                self.add("slice_of_scan", _take(index), [x], [var], label, scan_index=index)[0]
                for x, var in zip(inputs[num_before:], body.invars[num_before:], strict=True)
            ]
            outputs = self.write(body, consts, [*shared, *carry, *slices], label)
            carry = outputs[:num_carry]
            for column, number in zip(stacked, outputs[num_carry:], strict=True):
                column.append(number)
        ordered = [column[::-1] if eqn.params["reverse"] else column for column in stacked]
        joined = [
            self.add("stack_of_scan", _stack, column, [var], label)[0]
            for column, var in zip(ordered, eqn.outvars[num_carry:], strict=True)
        ]
        return [*carry, *joined]


def open_jaxpr(body: Any) -> tuple[core.Jaxpr, Sequence[Any]]:
    """Take a jaxpr apart into that without constants, and these."""
    return (body.jaxpr, body.consts) if isinstance(body, core.ClosedJaxpr) else (body, ())


def _equations(eqn: core.JaxprEqn) -> Any:
    """All equations inside one, itself first."""
    yield eqn
    for inner in core.jaxprs_in_params(eqn.params):
        for inside in open_jaxpr(inner)[0].eqns:
            yield from _equations(inside)


def _worth_unrolling(eqn: core.JaxprEqn) -> bool:
    names = {inner.primitive.name for inner in _equations(eqn)}
    return bool(names.intersection(_LINEAR)) and eqn.params["length"] <= LONGEST_SCAN


def num_same(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """Count what a scan passes on as it is; what it stacks has one axis more."""
    pairs = zip(outer, inner, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def _take(index: int) -> Callable[..., Sequence[Array]]:
    return lambda x: (x[index],)


def _stack(*arrays: Array) -> Sequence[Array]:
    return (jnp.stack(arrays),)


def compile_quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for a few calls: built soon rather than fast."""
    return jax.jit(function, compiler_options=xla.QUICK)


def run(
    program: Program,
    arguments: Sequence[Any],
    edits: Mapping[int, Edit],
    uses: Mapping[tuple[int, int], Callable[[Array], Array]] | None = None,
) -> Environment:
    """Run all steps.

    Args:
      program: as `trace` writes it.
      arguments: trees of params, inputs and key, of the shapes that were traced.
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
