"""A loss function of parameters and a batch, taken apart into a network and what judges it.

Whatever library a model is written in, its training has `loss_fn(params, batch)`. Written out as
steps, it falls into two parts: up to the last use of a weight it is the network, and from there on
the loss, which takes nothing but what the network gives and the batch. What passes from one to the
other are the outputs: logits; for a variational autoencoder reconstruction, mean and variance side
by side. What the same weights make of several parts of a batch, such as of real images and of false
ones, is tied: an answer that does not look at its input is one for all of them. A sum of the
weights alone, such as a penalty, stays what it was at the start.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.adapters import Network
from jaxdnn.diagnosis.program import Dependence, Environment, Program, Step, trace
from jaxdnn.diagnosis.replay import run
from jaxdnn.errors import InputError

# What a network may end in, before its outputs meet anything.
_ACTIVATIONS = {"logistic", "tanh"}
_NAMED_ACTIVATIONS = {"relu", "relu6", "sigmoid", "tanh"}


class Door(NamedTuple):
    """A loss function, taken apart.

    Attributes:
      network: gives the outputs, (batch, ...).
      inputs: leaves of the batch that the network takes: one array, or a dictionary by path.
      targets: leaves that the loss takes, likewise.
      loss: `(outputs, targets) -> scalar`.
      tied: for each column of the outputs the number of its kind, (column,), where the same weights
        make several; otherwise None.
    """

    network: Network
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], Array]
    tied: np.ndarray | None


def is_loss_function(model: Any) -> bool:
    """Tell whether this is a plain function rather than a model."""
    return inspect.isroutine(model) or hasattr(model, "__wrapped__")


def open_loss(function: Callable[..., Any], params: Any, batch: Any, key: Array) -> Door:
    """Take a loss function apart.

    Args:
      function: `(params, batch) -> scalar`, or `(params, batch, key)`; a pair of the scalar and
        something else will do.
      params: a tree of arrays.
      batch: a tree of arrays; the examples are the first axis of most of them.
      key: for what the function draws at random.

    Raises:
      InputError: it gives no scalar, or its outputs cannot be told from its loss.
    """
    return _Opened(function, params, batch, key).door()


class _Parts(NamedTuple):
    """A program in two parts.

    Attributes:
      program: `(params, batch, key) -> scalar`.
      cut: numbers of the values that pass from the network to the loss.
      tail: the steps of the loss, and those that depend on the batch alone.
      before: places, among the leaves of the batch, of what the network takes.
      after: places of what the loss takes.
    """

    program: Program
    cut: tuple[int, ...]
    tail: tuple[Step, ...]
    before: frozenset[int]
    after: frozenset[int]


class _Opened:
    """One loss function; for batches of other shapes it is written out anew."""

    def __init__(self, function: Callable[..., Any], params: Any, batch: Any, key: Array) -> None:
        self._function, self._params, self._key = function, params, key
        paths, self._structure = jax.tree_util.tree_flatten_with_path(batch)
        self._names = [
            jax.tree_util.keystr(path, simple=True, separator="/") or "batch" for path, _ in paths
        ]
        self._leaves = [jnp.asarray(leaf) for _, leaf in paths]
        self._takes_key = len(_required(function)) > 2
        self._known: dict[Any, _Parts] = {}
        self._parts = self._parts_for(self._leaves)
        self._penalties = self._scalars()

    def door(self) -> Door:
        """Return network, data and loss."""
        return Door(
            Network(self._params, self._apply),
            self._chosen(self._parts.before),
            self._chosen(self._parts.after),
            self._loss,
            _tied(self._parts.program, self._parts.cut, self._rows(self._leaves)),
        )

    def _by_row(self, places: Iterable[int]) -> list[int]:
        """Those places whose leaves have an entry for each example; the others are closed over."""
        rows, leaves = self._rows(self._leaves), self._leaves
        return [each for each in sorted(places) if leaves[each].ndim and len(leaves[each]) == rows]

    def _chosen(self, places: frozenset[int]) -> Any:
        found = {self._names[place]: self._leaves[place] for place in self._by_row(places)}
        return next(iter(found.values())) if len(found) == 1 else found

    def _filled(self, places: frozenset[int], given: Any) -> list[Any]:
        """All leaves of the batch, some of them as given."""
        own = self._by_row(places)
        values = [given] if len(own) == 1 else [given[self._names[place]] for place in own]
        filled: list[Any] = list(self._leaves)
        if values:
            # What the other part takes is not looked at here, but has to have as many rows.
            for place in self._by_row(range(len(filled))):
                filled[place] = _resized(filled[place], len(values[0]))
        for place, value in zip(own, values, strict=True):
            filled[place] = value
        return filled

    def _apply(self, params: Any, inputs: Any, key: Array | None) -> Any:
        leaves = self._filled(self._parts.before, inputs)
        parts = self._parts_for(leaves)
        key = self._key if key is None else key
        environment = run(parts.program, (params, leaves, key), {})
        rows = self._rows(leaves)
        values = [environment[number] for number in parts.cut]
        if len(values) == 1:
            return _rows_first(values[0], rows)
        flat = [_rows_first(value, rows).reshape(rows, -1) for value in values]
        return jnp.concatenate(flat, axis=1)

    def _loss(self, outputs: Any, targets: Any) -> Array:
        leaves = self._filled(self._parts.after, targets)
        parts, rows = self._parts_for(leaves), self._rows(leaves)
        values = parts.program.values
        environment: Environment = {**parts.program.constants, **self._penalties}
        count = len(parts.program.arguments)
        first = count - 1 - len(leaves)
        numbers = parts.program.arguments[first : count - 1]
        environment.update(zip(numbers, leaves, strict=True))
        environment[parts.program.arguments[-1]] = self._key
        if len(parts.cut) == 1:
            (number,) = parts.cut
            shape = values[number].shape
            environment[number] = _rows_back(outputs, shape, rows).astype(values[number].dtype)
        else:
            start = 0
            for number in parts.cut:
                shape = values[number].shape
                width = math.prod(shape) // rows
                part = outputs[:, start : start + width]
                environment[number] = _rows_back(part, shape, rows).astype(values[number].dtype)
                start += width
        for step in parts.tail:
            operands = [environment[number] for number in step.inputs]
            environment.update(zip(step.outputs, step.run(*operands), strict=True))
        return environment[parts.program.output]

    def _rows(self, leaves: Sequence[Any]) -> int:
        """The size of the batch: the first axis of most leaves."""
        sizes = [len(leaf) for leaf in leaves if jnp.ndim(leaf)]
        if not sizes:
            raise InputError("the batch holds no array with a first axis; give arrays (batch, ...)")
        return max(sorted(set(sizes)), key=sizes.count)

    def _parts_for(self, leaves: Sequence[Any]) -> _Parts:
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        if shapes not in self._known:
            structs = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
            self._known[shapes] = _taken_apart(
                trace(self._scalar, self._params, structs, self._key, unroll=False, loops=False)
            )
        return self._known[shapes]

    def _scalar(self, params: Any, leaves: Sequence[Any], key: Array) -> Array:
        batch = self._structure.unflatten(leaves)
        said = self._function(params, batch, *([key] if self._takes_key else []))
        value = said[0] if isinstance(said, tuple | list) and said else said
        if not hasattr(value, "shape") or value.shape != ():
            came = f"an array {list(value.shape)}" if hasattr(value, "shape") else type(said)
            raise InputError(
                f"the loss function gives {came}; give one of (params, batch) that returns a"
                " scalar, or (scalar, anything)"
            )
        return value

    def _scalars(self) -> Environment:
        """What the loss takes of the weights alone, as it is at the start."""
        program = self._parts.program
        wanted = {
            number
            for step in self._parts.tail
            for number in step.inputs
            if _is_weight(program, number)
        }
        if not wanted:
            return {}

        def found(params: Any, leaves: Any, key: Array) -> Environment:
            environment = run(program, (params, leaves, key), {})
            return {number: environment[number] for number in wanted}

        return jax.jit(found)(self._params, self._leaves, self._key)


def _required(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ["params", "batch"]
    empty, named = inspect.Parameter.empty, {"key", "rng", "rngs", "dropout_key", "dropout_rng"}
    return [
        name
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and (each.default is empty or name in named)
    ]


def _is_weight(program: Program, number: int) -> bool:
    depends = program.values[number].depends
    return bool(depends & Dependence.PARAMS) and not depends & Dependence.INPUTS


def _taken_apart(program: Program) -> _Parts:
    """Find where the network ends and the loss begins."""
    values, own = program.values, Dependence.PARAMS | Dependence.INPUTS
    consumers: dict[int, list[int]] = {}
    for index, step in enumerate(program.steps):
        for number in step.inputs:
            consumers.setdefault(number, []).append(index)
    tail: set[int] = set()
    for index in reversed(range(len(program.steps))):
        step = program.steps[index]
        later = [each for number in step.outputs for each in consumers.get(number, ())]
        # A number made of the weights alone may be added; a weight may not.
        weights = [n for n in step.inputs if _is_weight(program, n) and values[n].shape]
        trained = any(own in values[number].depends for number in step.outputs)
        if trained and not weights and all(each in tail for each in later):
            tail.add(index)
    _move_past_activations(program, tail, consumers)
    cut = {
        number
        for index in tail
        for number in program.steps[index].inputs
        if own in values[number].depends
        and not any(number in program.steps[each].outputs for each in tail)
    }
    if not cut or not tail:
        raise InputError(
            "the loss function uses its weights to the very end, so that outputs cannot be told"
            " from the loss; give (apply, params), inputs, targets and loss= instead"
        )
    alone = [step for step in program.steps if not _depends(program, step) & Dependence.PARAMS]
    kept = {id(program.steps[index]) for index in tail} | {id(step) for step in alone}
    steps = tuple(step for step in program.steps if id(step) in kept)
    batch = [n for n in program.arguments if values[n].depends == Dependence.INPUTS]
    used_after = _sources(program, [program.steps[index] for index in sorted(tail)], cut)
    used_before = _sources(program, program.steps, set(), wanted=cut)
    places = {number: place for place, number in enumerate(batch)}
    return _Parts(
        program,
        tuple(sorted(cut)),
        steps,
        frozenset(places[n] for n in used_before if n in places),
        frozenset(places[n] for n in used_after if n in places),
    )


def _tied(program: Program, cut: Sequence[int], rows: int) -> np.ndarray | None:
    """Tell which columns of the outputs the same weights make, for want of a look at the inputs.

    Of values of one width each column with its like, otherwise all that they hold.
    """
    made_by = [frozenset(_weights_of(program, number)) for number in cut]
    if len(set(made_by)) == len(cut):
        return None
    shapes = [program.values[number].shape for number in cut]
    columns: list[tuple[frozenset[int], int]] = []
    for weights, shape in zip(made_by, shapes, strict=True):
        widths = {
            s[-1] if len(s) > 1 else 1 for s, w in zip(shapes, made_by, strict=True) if w == weights
        }
        width = widths.pop() if len(widths) == 1 else 1
        count = math.prod(shape) // rows if shape else 1
        columns += [(weights, place % width) for place in range(count)]
    names = list(dict.fromkeys(columns))
    return np.array([names.index(column) for column in columns])


def _weights_of(program: Program, number: int) -> set[int]:
    """Numbers of the parameters that a value rests on."""
    found, queue = set[int](), {number}
    for step in reversed(program.steps):
        if queue.intersection(step.outputs):
            queue.update(step.inputs)
    for argument in program.arguments:
        if argument in queue and program.values[argument].depends & Dependence.PARAMS:
            found.add(argument)
    return found


def _depends(program: Program, step: Step) -> Dependence:
    depends = Dependence.NOTHING
    for number in step.outputs:
        depends |= program.values[number].depends
    return depends


def _move_past_activations(
    program: Program, tail: set[int], consumers: Mapping[int, Sequence[int]]
) -> None:
    """Leave the last activation to the network: its outputs are what follows it."""
    moved = True
    while moved:
        moved = False
        for index in sorted(tail):
            step = program.steps[index]
            from_tail = any(
                number in program.steps[each].outputs for each in tail for number in step.inputs
            )
            named = step.label in _NAMED_ACTIVATIONS and step.name.startswith("custom_jvp")
            alone = len(step.inputs) == 1 and len(consumers.get(step.inputs[0], ())) == 1
            if not from_tail and alone and (step.name in _ACTIVATIONS or named):
                tail.remove(index)
                moved = True
                break


def _sources(
    program: Program, steps: Sequence[Step], known: set[int], wanted: set[int] | None = None
) -> set[int]:
    """Numbers that these steps rest on, going back over all steps to `known`."""
    open_ones = (
        {n for step in steps for n in step.inputs} - known if wanted is None else set(wanted)
    )
    made = {n for step in steps for n in step.outputs} if wanted is None else set()
    producers = {n: step for step in program.steps for n in step.outputs}
    found: set[int] = set()
    queue = list(open_ones - made)
    while queue:
        number = queue.pop()
        if number in found or number in known:
            continue
        found.add(number)
        if number in producers:
            queue += producers[number].inputs
    return found


def _rows_first(value: Array, rows: int) -> Array:
    """Bring the axis of the examples to the front, where it stands elsewhere."""
    if value.ndim == 0:
        return jnp.broadcast_to(value, (rows, 1))
    if value.shape[0] % rows == 0:
        return value
    axis = next((i for i, size in enumerate(value.shape) if size == rows), None)
    if axis is None:
        raise InputError(
            f"an output {list(value.shape)} of the network has no axis of the batch's {rows}"
            " examples; give (apply, params), inputs, targets and loss= instead"
        )
    return jnp.moveaxis(value, axis, 0)


def _rows_back(value: Array, shape: tuple[int, ...], rows: int) -> Array:
    """Undo `_rows_first`, and the flattening after it."""
    if not shape:
        return value.mean()
    if shape[0] % rows == 0:
        return value.reshape(shape)
    axis = shape.index(rows)
    front = (rows, *shape[:axis], *shape[axis + 1 :])
    return jnp.moveaxis(value.reshape(front), 0, axis)


def _resized(leaf: Array, rows: int) -> Array:
    """An array of another number of rows."""
    return jnp.resize(leaf, (rows, *leaf.shape[1:]))
