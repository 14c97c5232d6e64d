"""A network as a flat list of steps on numbered arrays, written out of its jaxpr.

Calls, remat and scans over layers are inlined, so that every intermediate array has a number and
can be named, probed or replaced when the steps are run. Functions with a gradient of their own
(custom_jvp, custom_vjp), conditionals and while loops stay whole. Steps that do not touch the
logits are left out.

A scan whose weights are the same at each time step is a loop: its steps stand in the list once, and
run as a scan, however long. A value inside has the shape of one time step; of all of them together
it has the time axis first. What does not change from step to step is computed before the loop.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from jaxdnn.diagnosis.source_lines import SourceLine, source_line

# Longer scans over layers are left whole: written out they would compile for minutes.
LONGEST_SCAN = 512
# Names of the steps at the border of a loop: what it starts from, a time step of what it runs over,
# what it ends with, and all time steps together.
CARRY, SLICE, LAST, STACK = "carry_of_loop", "slice_of_loop", "last_of_loop", "stack_of_loop"
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
      shape: without names of axes; the batch comes first where it depends on the inputs. Inside a
        loop that of one time step.
      dtype: number format of its entries.
      depends: any of parameters, inputs and key.
      leaves: the parameters it is made of; empty where it depends on the inputs.
      loop: index of the loop inside which it changes from step to step; None outside.
    """

    shape: tuple[int, ...]
    dtype: Any
    depends: Dependence
    leaves: frozenset[Leaf]
    loop: int | None = None

    def is_like(self, other: Value) -> bool:
        """Tell whether one can be added to the other: of one shape, in the same loop."""
        return (self.shape, self.loop) == (other.shape, other.loop)


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
      loop: index of the loop that it is a part of, or the border of; None outside.
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
    loop: int | None = None

    @property
    def line(self) -> SourceLine | None:
        """The line of the user's file that it was written in; None where unknown."""
        return source_line(self.equations)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A recurrence through time.

    Attributes:
      length: time steps.
      reverse: whether it runs from the last to the first.
      carries: numbers of what is carried: as it starts, at the start of a time step, at its end.
      slices: numbers of what it runs over, and of one time step of that.
    """

    length: int
    reverse: bool
    carries: tuple[tuple[int, int, int], ...]
    slices: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A network written out.

    Attributes:
      steps: in an order in which they can run; those of a loop follow each other.
      values: what each number stands for.
      constants: arrays that depend on nothing, by number.
      arguments: numbers of the flattened (params, inputs, key).
      output: number of the logits.
      loops: recurrences through time.
    """

    steps: tuple[Step, ...]
    values: tuple[Value, ...]
    constants: dict[int, Array]
    arguments: tuple[int, ...]
    output: int
    loops: tuple[Loop, ...] = ()

    def length(self, number: int) -> int | None:
        """Return how many time steps a value has; None outside of loops."""
        loop = self.values[number].loop
        return None if loop is None else self.loops[loop].length

    def full_shape(self, number: int) -> tuple[int, ...]:
        """Return a value's shape, all time steps of a loop together: these first."""
        length = self.length(number)
        shape = self.values[number].shape
        return shape if length is None else (length, *shape)

    def batch_first(self, number: int, value: Any) -> Any:
        """Move the time steps of a value, if it has them, behind the axis of the batch."""
        if self.values[number].loop is None or len(value.shape) < 2:
            return value
        return value.swapaxes(0, 1)


def trace(
    function: Callable[..., Array],
    params: Any,
    inputs: Any,
    key: Array | None,
    *,
    unroll: bool = True,
    loops: bool = True,
) -> Program:
    """Write `function(params, inputs, key) -> logits` out as steps.

    Args:
      function: pure function of JAX arrays; traced once.
      params: a tree of arrays.
      inputs: a tree of arrays.
      key: a typed key, or None.
      unroll: write the layers of a scan out one by one.
      loops: write out what a scan through time does in a time step; or else it stays whole.
    """
    closed = jax.make_jaxpr(function)(params, inputs, key)
    counts = [len(jax.tree.leaves(tree)) for tree in (params, inputs, key)]
    kinds = [Dependence.PARAMS, Dependence.INPUTS, Dependence.KEY]
    writer = _Writer(unroll, loops)
    arguments = []
    for kind, count in zip(kinds, counts, strict=True):
        for var in closed.jaxpr.invars[len(arguments) :][:count]:
            leaves = {Leaf(len(arguments), None)} if kind is Dependence.PARAMS else ()
            arguments.append(writer.new(var.aval, kind, frozenset(leaves)))
    (output,) = writer.write(closed.jaxpr, closed.consts, arguments, "")
    steps = _needed(writer.steps, writer.loops, output)
    values, places = tuple(writer.values), tuple(arguments)
    return Program(steps, values, writer.constants, places, output, tuple(writer.loops))


def _needed(steps: Sequence[Step], loops: Sequence[Loop], output: int) -> tuple[Step, ...]:
    """Leave out what the logits do not need; of a loop they need all that it carries."""
    needed, kept = {output}, []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            if step.loop is not None:
                needed.update(n for carry in loops[step.loop].carries for n in carry)
                needed.update(outer for outer, _ in loops[step.loop].slices)
            kept.append(step)
    return tuple(reversed(kept))


class _Writer:
    """Collects the steps of a jaxpr and of those inside it."""

    def __init__(self, unroll: bool, loops: bool) -> None:
        self._unrolls, self._loops_over_time = unroll, loops
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.constants: dict[int, Array] = {}
        self.loops: list[Loop] = []
        # Index of the loop in which the writer is.
        self._loop: int | None = None
        # The calls in which the writer is, innermost first.
        self._around: tuple[core.JaxprEqn, ...] = ()

    def new(
        self,
        aval: Any,
        depends: Dependence,
        leaves: frozenset[Leaf] = frozenset(),
        loop: int | None = None,
    ) -> int:
        self.values.append(Value(tuple(aval.shape), aval.dtype, depends, leaves, loop))
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
            elif name == "scan" and (write := self._way_of(eqn, [read(v) for v in eqn.invars])):
                self._around = (eqn, *self._around)
                outputs = write(eqn, [read(v) for v in eqn.invars], label)
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
        inner = self._loop is not None and any(
            self.values[number].loop == self._loop for number in inputs
        )
        loop = self._loop if inner else None
        if depends & Dependence.INPUTS:
            leaves = frozenset()
        elif scan_index is not None:
            leaves = frozenset(Leaf(leaf.index, scan_index) for leaf in leaves)
        outputs = [self.new(var.aval, depends, leaves, loop) for var in outvars]
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
                loop,
            )
        )
        return outputs

    def _way_of(self, eqn: core.JaxprEqn, inputs: Sequence[int]) -> Callable[..., Any] | None:
        """How to write a scan: layer by layer, as a loop, or None for as it is."""
        names = {inner.primitive.name for inner in _equations(eqn)}
        if not names.intersection(_LINEAR):
            return None
        body, _ = open_jaxpr(eqn.params["jaxpr"])
        over = inputs[num_same(eqn.invars, body.invars) :]
        if any(self._is_kernels(number) for number in over):
            worth = self._unrolls and eqn.params["length"] <= LONGEST_SCAN
            return self._unroll if worth else None
        return self._repeat if self._loops_over_time and self._loop is None else None

    def _is_kernels(self, number: int) -> bool:
        """Tell whether a value is a stack of parameters' matrices."""
        value = self.values[number]
        own = value.depends & Dependence.PARAMS and not value.depends & Dependence.INPUTS
        return bool(own) and len(value.shape) > 2

    def _repeat(self, eqn: core.JaxprEqn, inputs: list[int], label: str) -> list[int]:
        """Write a scan through time as a loop."""
        body, _ = open_jaxpr(eqn.params["jaxpr"])
        num_before = num_same(eqn.invars, body.invars)
        num_carry = num_same(eqn.outvars, body.outvars)
        carried = inputs[num_before - num_carry : num_before]
        known = [self.values[number].depends for number in carried]
        while True:
            # What is carried depends on what came in earlier time steps.
            marks = len(self.steps), len(self.values)
            found, outputs = self._time_step(eqn, inputs, known, label)
            found = [each | more for each, more in zip(known, found, strict=True)]
            if found == known:
                return outputs
            known = found
            del self.steps[marks[0] :], self.values[marks[1] :], self.loops[-1:]
            self.constants = {n: x for n, x in self.constants.items() if n < marks[1]}

    def _time_step(
        self, eqn: core.JaxprEqn, inputs: list[int], known: Sequence[Dependence], label: str
    ) -> tuple[list[Dependence], list[int]]:
        """Write a loop; return what the carried values depend on, and the results."""
        body, consts = open_jaxpr(eqn.params["jaxpr"])
        num_carry = num_same(eqn.outvars, body.outvars)
        num_before = num_same(eqn.invars, body.invars)
        num_shared = num_before - num_carry
        loop, first, reverse = len(self.loops), len(self.steps), bool(eqn.params["reverse"])
        self._loop = loop
        starts, stacked = inputs[num_shared:num_before], inputs[num_before:]
        variables = body.invars[num_shared:num_before]
        same = [a is b for a, b in zip(variables, body.outvars[:num_carry], strict=True)]
        carries = [
            start if is_same else self._border(CARRY, _as_it_is, start, var, loop, depends)
            for start, is_same, var, depends in zip(starts, same, variables, known, strict=True)
        ]
        slices = [
            self._border(SLICE, _as_it_is, whole, var, loop)
            for whole, var in zip(stacked, body.invars[num_before:], strict=True)
        ]
        ends = self.write(body, consts, [*inputs[:num_shared], *carries, *slices], label)
        self._loop = None
        own = self.steps[first:]
        self.steps[first:] = sorted(own, key=lambda step: step.loop is not None)
        triples = tuple(
            (start, number, end)
            for start, number, end, is_same in zip(
                starts, carries, ends[:num_carry], same, strict=True
            )
            if not is_same
        )
        pairs = tuple(zip(stacked, slices, strict=True))
        self.loops.append(Loop(int(eqn.params["length"]), reverse, triples, pairs))
        last, outvars = _last_of(reverse), eqn.outvars
        finals = [
            start if is_same else self._leave(LAST, last, end, var, loop)
            for start, is_same, end, var in zip(
                starts, same, ends[:num_carry], outvars[:num_carry], strict=True
            )
        ]
        stacks = [
            self._leave(STACK, _as_it_is, end, var, loop)
            for end, var in zip(ends[num_carry:], outvars[num_carry:], strict=True)
        ]
        depends = [self.values[end].depends for end in ends[:num_carry]]
        return depends, [*finals, *stacks]

    def _border(
        self,
        name: str,
        run: Callable[..., Sequence[Array]],
        outer: int,
        var: Any,
        loop: int,
        depends: Dependence | None = None,
    ) -> int:
        """Enter a step that takes a value into a loop."""
        value = self.values[outer]
        depends = value.depends if depends is None else depends
        leaves = frozenset() if depends & Dependence.INPUTS else value.leaves
        number = self.new(var.aval, depends, leaves, loop)
        self.steps.append(self._bare(name, run, outer, number, loop))
        return number

    def _leave(
        self, name: str, run: Callable[..., Sequence[Array]], inner: int, var: Any, loop: int
    ) -> int:
        """Enter a step that takes a value out of a loop."""
        value = self.values[inner]
        number = self.new(var.aval, value.depends, value.leaves)
        self.steps.append(self._bare(name, run, inner, number, loop))
        return number

    def _bare(
        self, name: str, run: Callable[..., Sequence[Array]], taken: int, given: int, loop: int
    ) -> Step:
        inner = frozenset({name})
        return Step(name, run, (taken,), (given,), {}, inner, "", None, name, self._around, loop)

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


def num_same(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """Count what a scan passes on as it is; what it stacks has one axis more."""
    pairs = zip(outer, inner, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def _take(index: int) -> Callable[..., Sequence[Array]]:
    return lambda x: (x[index],)


def _stack(*arrays: Array) -> Sequence[Array]:
    return (jnp.stack(arrays),)


def _as_it_is(x: Array) -> Sequence[Array]:
    return (x,)


def _last_of(reverse: bool) -> Callable[..., Sequence[Array]]:
    return lambda x: (x[0 if reverse else -1],)
