"""The gates of recurrent cells: what each unit of a kernel does to what is carried.

    state' = forget gate * state + input gate * candidate,      output = output gate * phi(state')
    state' = update gate * state + (1 - update gate) * candidate

A kernel may make several of these at once, cut apart behind the product in any order, and two
kernels may add to one. So units are numbered at their product and followed through all that moves,
adds or bends them one by one; what multiplies what then tells which is which. A gate on the way to
the candidate is a reset gate.

References:
  Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997. Cho et al., "Learning Phrase
  Representations using RNN Encoder-Decoder for Statistical Machine Translation", 2014.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.graph import Graph, Layer
from jaxdnn.diagnosis.program import CARRY, LAST, SLICE, STACK, Dependence, Program, Step
from jaxdnn.propagation import SATURATED

# What gives a value in another form, or adds to it.
_PASSES = {"add", "add_any", "convert_element_type", "reshape", "transpose", "copy", "squeeze"}
_SAME_ORDER = {"reshape", "squeeze", "expand_dims", "convert_element_type", "copy"}
_MOVES = {"split", "slice", "transpose", SLICE} | _SAME_ORDER
# What is linear in a single operand.
_LINEAR = {"add", "add_any", "sub", "mul", "div", "neg", "select_n", "stop_gradient"}
# What takes neighbours together, and the squares that a norm takes first.
_MIXES = {
    *("dot_general", "conv_general_dilated", "reduce_sum", "reduce_max", "cumsum", "cumprod"),
    *("cummax", "cumlogsumexp", "sort", "rev", "gather", "dynamic_slice", "concatenate", "scan"),
    *("while", "square", "integer_pow", "pow", "pad", CARRY, LAST, STACK),
}
# Gates that say how much of a state stays.
FORGET, UPDATE = KEEPING = ("forget gate", "update gate")
# A kernel that is cut into more pieces is no cell's.
_MOST_PARTS = 12


@dataclasses.dataclass(frozen=True)
class Gate:
    """What multiplies a state on its way to the next time step.

    Attributes:
      number: of its value, in [0, 1].
      logits: number of what its sigmoid takes; None where none was found.
      rises: whether more of the state is kept where that is larger.
      rest: whether the share that is kept is one minus the value.
    """

    number: int
    logits: int | None
    rises: bool
    rest: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Bend:
    """How the sum of pre-activations becomes a gate or a candidate, unit by unit.

    Attributes:
      start: number of the sum.
      steps: from start to end.
      end: number of what comes of it.
    """

    start: int
    steps: tuple[Step, ...]
    end: int


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The units of a layer that do one thing in a cell.

    Attributes:
      name: `forget gate`, `update gate`, `input gate`, `output gate`, `reset gate`, `candidate`,
        or `part 1 of 4` where that cannot be told.
      units: how many.
      place: which entries of the layer's pre-activation, of the shape of one time step.
      bend: what becomes of them; None where nothing bends them.
      bent: number of the unit at each entry of what the bend starts from, -1 where it is no unit of
        this part; None where nothing bends them.
    """

    name: str
    units: int
    place: np.ndarray
    bend: Bend | None
    bent: np.ndarray | None


class BendArrays(NamedTuple):
    """A bend in one pass, of its full shape.

    Attributes:
      value: at its end.
      slope: |d end / d start|, of the shape of the start.
      greatest: the greatest slope of the pass or at 0, ().
    """

    value: Any
    slope: Any
    greatest: Any


@dataclasses.dataclass(frozen=True)
class PartProfile:
    """The numbers of a part of a layer.

    Attributes:
      name: as `Part.name`.
      units: how many it has.
      pre_activation_mean: mean of the layer's own z over time, batch and the part's units.
      pre_activation_rms: root mean square of it.
      delta_rms: root mean square of dL/dz, at the time step of the layer's own.
      dead: share of units with slope 0 in the whole batch at all time steps; 0 without an
        activation.
      saturated: share of units, examples and time steps with less than 1 % of the greatest slope
        that the activation has for this batch or at 0; 0 without an activation.
      gate: mean of the gate's value; None for what is no gate.
    """

    name: str
    units: int
    pre_activation_mean: float
    pre_activation_rms: float
    delta_rms: float
    dead: float
    saturated: float
    gate: float | None


def carried(program: Program, index: int) -> list[tuple[int, int]]:
    """Return numbers of what a loop carries and depends on the inputs, as it comes and goes."""
    return [
        (number, end)
        for _, number, end in program.loops[index].carries
        if jnp.issubdtype(program.values[number].dtype, jnp.floating)
        and program.values[number].depends & Dependence.INPUTS
        and program.values[number].shape
    ]


def find_gates(program: Program, index: int) -> list[Gate]:
    """Return what multiplies a loop's states on their way to the next time step, and is no state.

    Or, where a state is moved toward something, the difference to it.

    Args:
      program: a network written out.
      index: of the loop.
    """
    reader = _Reader(program)
    found = []
    for state, end in carried(program, index):
        terms = reader.terms(state, end)
        found += [reader.gate(term.kept, term.rest) for term in terms if term.kept is not None]
    return found


def origins(program: Program) -> Callable[[int], int]:
    """Return the function that gives the value of which one is only another view."""
    return _Reader(program).origin


class _Term(NamedTuple):
    """A summand of a state's next value.

    Attributes:
      number: of its value.
      kept: number of what multiplies the state, or the difference to it; None without a state.
      toward: number of what the state is moved toward; None for a product with the state itself.
      rest: whether the share of the state that stays is one minus `kept`.
    """

    number: int
    kept: int | None = None
    toward: int | None = None
    rest: bool = False


class _Reader:
    """Reads what values are made of."""

    def __init__(self, program: Program) -> None:
        self._values = program.values
        self.producers = {number: step for step in program.steps for number in step.outputs}

    def data(self, step: Step) -> list[int]:
        """The operands that depend on the inputs."""
        return [n for n in step.inputs if self._values[n].depends & Dependence.INPUTS]

    def _is_floating(self, number: int) -> bool:
        return jnp.issubdtype(self._values[number].dtype, jnp.floating)

    def origin(self, number: int) -> int:
        """The value of which one is only another view."""
        step = self.producers.get(number)
        while step is not None and step.name in _PASSES and len(step.inputs) == 1:
            number = step.inputs[0]
            step = self.producers.get(number)
        return number

    def base(self, number: int) -> tuple[int, bool]:
        """The value of which one is a view, or one minus it; whether it rises with it."""
        number = self.origin(number)
        step = self.producers.get(number)
        # The 1 is a literal.
        if step is not None and step.name == "sub" and self.data(step) == [step.inputs[-1]]:
            return self.origin(step.inputs[-1]), False
        return number, True

    def is_sigmoid(self, number: int) -> bool:
        """Tell whether a value, or what it is cut out of, is that of a sigmoid."""
        step = self.producers.get(number)
        while step is not None and step.name in _MOVES:
            step = self.producers.get(step.inputs[0])
        return step is not None and ("logistic" in step.inner or step.label == "sigmoid")

    def gate(self, number: int, rest: bool) -> Gate:
        """The gate that a value is, which keeps that share of a state or the rest."""
        value, rises = self.base(number)
        step = self.producers.get(value)
        # What other units share with it is not the gate's own.
        is_own = step is not None and step.name not in _MOVES and self.is_sigmoid(value)
        logits = step.inputs[0] if step is not None and is_own else None
        return Gate(number, logits, rises is not rest, rest)

    def is_state(self, number: int, state: int) -> bool:
        """Tell whether a value is the state, or something else only where that begins anew."""
        waiting = [number]
        while waiting:
            value = self.origin(waiting.pop())
            if value == state:
                return True
            step = self.producers.get(value)
            if step is not None and step.name == "select_n":
                waiting.extend(step.inputs)
        return False

    def sums(self, state: int, end: int) -> tuple[set[int], list[int]]:
        """The values that make a sum, those between, and its summands.

        Where padding leaves a state as it is, the other case counts.
        """
        waiting, between, found = [end], set[int](), []
        while waiting:
            value = waiting.pop()
            step = self.producers.get(value)
            if step is None or value in between:
                continue
            if step.name in _PASSES:
                waiting.extend(step.inputs)
            elif step.name == "select_n" and any(self.is_state(n, state) for n in step.inputs):
                # What decides between the cases is no part of the sum.
                cases = (n for n in self.data(step) if self._is_floating(n))
                waiting.extend(n for n in cases if not self.is_state(n, state))
            else:
                found.append(value)
                continue
            between.add(value)
        return between | {end}, found

    def terms(self, state: int, end: int) -> list[_Term]:
        """The summands of what a state becomes."""
        return [self._term(state, number) for number in self.sums(state, end)[1]]

    def _term(self, state: int, number: int) -> _Term:
        step = self.producers[number]
        if step.name == "mul" and len(step.inputs) == 2:
            for gate, other in itertools.permutations(step.inputs):
                if self.is_state(gate, state):
                    continue
                if self.is_state(other, state):
                    return _Term(number, gate)
                inner = self.producers.get(self.origin(other))
                if inner is None or inner.name != "sub" or len(inner.inputs) != 2:
                    continue
                first, second = (self.is_state(n, state) for n in inner.inputs)
                if first is not second:
                    return _Term(number, gate, inner.inputs[1 if first else 0], second)
        return _Term(number)

    def below(self, numbers: Iterable[int], stops: frozenset[int] = frozenset()) -> set[int]:
        """The values that some are made of, themselves too, down to where to stop."""
        waiting, seen = list(numbers), set[int]()
        while waiting:
            value = waiting.pop()
            step = self.producers.get(value)
            if value not in seen and step is not None and value not in stops:
                waiting.extend(self.data(step))
            seen.add(value)
        return seen


class _Units:
    """Which units of which layers stand where in every value.

    Attributes:
      of: number of a value -> index of a layer -> numbers of units, of the value's shape.
      bends: number of a value -> how it came of a sum of pre-activations.
    """

    def __init__(self, graph: Graph, reader: _Reader) -> None:
        self._program, self._reader = graph.program, reader
        self.of: dict[int, dict[int, np.ndarray]] = {}
        self.bends: dict[int, Bend] = {}
        starts = {layer.step: index for index, layer in enumerate(graph.layers)}
        for place, step in enumerate(graph.program.steps):
            if place in starts:
                index = starts[place]
                units = _numbered(graph.program, step, graph.layers[index])
                self.of[step.outputs[0]] = {} if units is None else {index: units}
            else:
                self._follow(step)

    def _follow(self, step: Step) -> None:
        data = self._reader.data(step)
        known = [n for n in data if self.of.get(n)]
        if not known:
            return
        if step.name in _MOVES:
            self._move(step, known[0])
        elif not step.inner & _MIXES and len(step.outputs) == 1:
            self._bend(step, data, known)

    def _move(self, step: Step, number: int) -> None:
        shapes = [self._program.values[n].shape for n in step.outputs]
        moved = {index: _moved(step, units, shapes) for index, units in self.of[number].items()}
        for place, output in enumerate(step.outputs):
            self.of[output] = {index: arrays[place] for index, arrays in moved.items()}
            if number in self.bends:
                self.bends[output] = self._longer(number, step, output)

    def _bend(self, step: Step, data: Sequence[int], known: Sequence[int]) -> None:
        output = step.outputs[0]
        shape = self._program.values[output].shape
        # What meets another signal is no function of its units alone, but for a pre-activation.
        straight = [n for n in known if n not in self.bends]
        if len(data) > 1 and step.name not in _LINEAR:
            return
        if len(data) > 1:
            known = straight if step.name not in ("mul", "div") or len(straight) == 1 else []
        found: dict[int, np.ndarray] = {}
        for number in known:
            if self._program.values[number].shape == shape:
                found |= self.of[number]
        self.of[output] = found
        if not found or len(data) > 1:
            return
        (number,) = data
        if number in self.bends or step.name not in _LINEAR:
            self.bends[output] = self._longer(number, step, output)

    def _longer(self, number: int, step: Step, output: int) -> Bend:
        """How a value was bent, and one step more."""
        known = self.bends.get(number)
        if known is None:
            return Bend(number, (step,), output)
        return Bend(known.start, (*known.steps, step), output)


def _numbered(program: Program, step: Step, layer: Layer) -> np.ndarray | None:
    """The number of its unit at each entry of a product; None where that is not one step."""
    shape = program.values[step.outputs[0]].shape
    if step.name == "conv_general_dilated":
        axes = [step.params["dimension_numbers"].out_spec[1]]
    elif step.name == "dot_general":
        (contracted, _), (batch, _) = step.params["dimension_numbers"]
        left = program.values[step.inputs[0]]
        border = len(left.shape) - len(contracted)
        is_left = step.inputs[0] != layer.x
        own = range(len(batch), border) if is_left else range(border, len(shape))
        axes = [*range(len(batch)), *own]
    else:
        return None
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(np.arange(np.prod(sizes)).reshape(sizes), shape)


def _moved(step: Step, units: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    if step.name == "split":
        cuts = np.cumsum(step.params["sizes"])[:-1]
        return np.split(units, cuts, step.params["axis"])
    if step.name == "slice":
        starts, ends = step.params["start_indices"], step.params["limit_indices"]
        strides = step.params["strides"] or (1,) * len(starts)
        return [units[tuple(map(slice, starts, ends, strides))]]
    if step.name == "transpose":
        return [units.transpose(step.params["permutation"])]
    return [units[0] if step.name == SLICE else units.reshape(shapes[0])]


def find_parts(graph: Graph) -> dict[int, tuple[Part, ...]]:
    """Return the parts of each layer whose units are cut apart in a loop, or do one known thing.

    Args:
      graph: of a network.

    Returns:
      By index of the layer, in the order of the units.
    """
    program = graph.program
    loops = [index for index in range(len(program.loops)) if carried(program, index)]
    if not loops:
        return {}
    reader = _Reader(program)
    units = _Units(graph, reader)
    roles: dict[int, str] = {}
    for index in loops:
        roles |= _roles(graph, reader, units, index)
    found = {
        index: _parts_of(program, units, roles, layer, index)
        for index, layer in enumerate(graph.layers)
        if index in units.of.get(layer.z, {})
    }
    return {index: parts for index, parts in found.items() if parts}


def _parts_of(
    program: Program, units: _Units, roles: dict[int, str], layer: Layer, index: int
) -> tuple[Part, ...]:
    numbered = units.of[layer.z][index]
    sets: dict[frozenset[int], list[int]] = {_members(numbered): []}
    for number, owners in units.of.items():
        if index in owners and program.values[number].loop is not None:
            sets.setdefault(_members(owners[index]), []).append(number)
    least = sorted((s for s in sets if not any(other < s for other in sets)), key=min)
    # Pieces that overlap or leave units out are no parts.
    if sum(map(len, least)) != len(_members(numbered)) or len(least) > _MOST_PARTS:
        return ()
    parts = []
    for place, members in enumerate(least, 1):
        named = next((n for n in sets[members] if n in roles), None)
        bent = min(units.bends.keys() & set(sets[members]), default=None)
        bent = bent if named is None else named
        bend = None if bent is None else units.bends.get(bent)
        name = f"part {place} of {len(least)}" if named is None else roles[named]
        start = None if bend is None else units.of[bend.start][index]
        start = None if start is None else np.where(_is_in(start, members), start, -1)
        parts.append(Part(name, len(members), _is_in(numbered, members), bend, start))
    is_known = any(part.name in roles.values() for part in parts)
    is_inside = program.values[layer.z].loop is not None and len(parts) > 1
    return tuple(parts) if is_known or is_inside else ()


def _once(units: np.ndarray) -> np.ndarray:
    """One entry of an axis along which nothing changes."""
    return units[tuple(slice(None if stride else 1) for stride in units.strides)]


def _members(units: np.ndarray) -> frozenset[int]:
    return frozenset(np.unique(_once(units)).tolist())


def _is_in(units: np.ndarray, members: frozenset[int]) -> np.ndarray:
    return np.broadcast_to(np.isin(_once(units), list(members)), units.shape)


def _roles(graph: Graph, reader: _Reader, units: _Units, index: int) -> dict[int, str]:
    """What values in a loop do, by number."""
    program = graph.program
    roles: dict[int, str] = {}
    states = carried(program, index)
    new_states = set[int]()
    for state, end in states:
        terms = reader.terms(state, end)
        kept = [term.kept for term in terms if term.kept is not None]
        # What is the same for all inputs is no gate.
        if any(program.values[number].depends & Dependence.INPUTS for number in kept):
            roles |= _roles_of_state(reader, state, terms)
            new_states |= reader.sums(state, end)[0]
    candidates = [number for number, role in roles.items() if role == "candidate"]
    products = frozenset(program.steps[layer.step].outputs[0] for layer in graph.layers)
    old_states = {state for state, _ in states}
    to_candidates = reader.below(candidates)
    gated = list(_gated(program, reader, units, index))
    for gate, other, _ in gated:
        if reader.below([other], products) & new_states:
            roles.setdefault(gate, "output gate")
    for gate, other, product in gated:
        if product in to_candidates and reader.below([other]) & old_states:
            roles.setdefault(gate, "reset gate")
    return roles


def _roles_of_state(reader: _Reader, state: int, terms: Sequence[_Term]) -> dict[int, str]:
    """What makes a state of the one before."""
    kept = {reader.base(term.kept)[0] for term in terms if term.kept is not None}
    shared = {reader.base(t.kept)[0] for t in terms if t.kept is not None and t.toward is not None}
    roles: dict[int, str] = {}
    for term in terms:
        if term.toward is not None:
            roles[reader.origin(term.toward)] = "candidate"
        if term.kept is not None or reader.is_state(term.number, state):
            continue
        step = reader.producers[term.number]
        if step.name != "mul" or len(step.inputs) != 2:
            roles[reader.origin(term.number)] = "candidate"
            continue
        bases = [reader.base(number)[0] for number in step.inputs]
        sigmoids = [reader.is_sigmoid(number) for number in bases]
        for gate, other in itertools.permutations(range(2)):
            if bases[gate] in kept:
                shared.add(bases[gate])
                roles[bases[other]] = "candidate"
            elif sigmoids[gate] and not sigmoids[other] and bases[other] not in kept:
                roles[bases[gate]], roles[bases[other]] = "input gate", "candidate"
    return roles | {gate: UPDATE if gate in shared else FORGET for gate in kept}


def _gated(
    program: Program, reader: _Reader, units: _Units, index: int
) -> Iterator[tuple[int, int, int]]:
    """Products of bent units with a signal in a loop: the units' value, the other, the product."""
    for step in program.steps:
        if step.loop == index and step.name == "mul" and len(step.inputs) == 2:
            for gate, other in itertools.permutations(step.inputs):
                value = reader.base(gate)[0]
                if value in units.bends and reader.is_sigmoid(value):
                    yield value, other, step.outputs[0]


def part_profiles(
    parts: Sequence[Part], z: np.ndarray, delta: np.ndarray, bends: Mapping[int, BendArrays]
) -> tuple[PartProfile, ...]:
    """Return the numbers of the parts of a layer.

    Args:
      parts: of the layer.
      z: its pre-activations, in a loop of all time steps, these first.
      delta: their gradient, in a loop of one time step.
      bends: number of an end -> the bend in the pass that z is from.
    """
    steps = tuple(range(z.ndim - delta.ndim))
    # Over time first: to pick entries out of all time steps takes long.
    means = z.mean(axis=steps, dtype=np.float64)
    squares = np.square(z, dtype=np.float64).mean(axis=steps)
    delta_squares = np.square(delta, dtype=np.float64)
    found = []
    for part in parts:
        own = part.place
        dead, saturated, gate = _flatness(part, bends)
        found.append(
            PartProfile(
                part.name,
                part.units,
                float(means[own].mean()),
                float(np.sqrt(squares[own].mean())),
                float(np.sqrt(delta_squares[own].mean())),
                dead,
                saturated,
                gate,
            )
        )
    return tuple(found)


def _flatness(part: Part, bends: Mapping[int, BendArrays]) -> tuple[float, float, float | None]:
    """Shares of units dead and saturated, and the mean of what is a gate."""
    if part.bend is None or part.bent is None:
        return 0.0, 0.0, None
    arrays = bends[part.bend.end]
    slope = np.asarray(arrays.slope)
    steps = tuple(range(slope.ndim - part.bent.ndim))
    flat = np.mean(slope < SATURATED * arrays.greatest, axis=steps)
    alive = np.unique(part.bent[np.any(slope != 0, axis=steps)])
    dead = 1 - np.count_nonzero(alive >= 0) / part.units
    is_gate = part.name.endswith("gate")
    gate = float(np.mean(arrays.value, dtype=np.float64)) if is_gate else None
    return float(dead), float(flat[part.bent >= 0].mean()), gate
