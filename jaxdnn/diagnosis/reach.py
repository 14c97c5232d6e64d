"""Parameters that no gradient reaches, and the operation that cuts the way.

Loss and network are walked as a graph: from every operand to every result leads a way, and a smooth
one unless the operation's slope is 0 everywhere (argmax, round, comparisons, whole numbers) or it
says so (stop_gradient). A parameter with no smooth way to the loss is cut off; where the smooth
ways from it end on the way to the loss stand the cuts. Comparisons beside a smooth way, such as a
ReLU's own, are none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxdnn.diagnosis.findings import BLOCKING, NAMED, STRUCTURAL, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.model import leaf_names
from jaxdnn.diagnosis.program import Edit, num_same, open_jaxpr
from jaxdnn.diagnosis.setups import Fix
from jaxdnn.diagnosis.source_lines import place, source_line

# Calls whose inside is walked; what has a gradient of its own is a smooth way in one piece.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}
_FLAT = {"stop_gradient", "round", "floor", "ceil", "sign", "nextafter", "bitcast_convert_type"}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "lt_to", "le_to"}
_MOST_NAMES = 3
# What is said, but is no alarm.
_ASIDE = NAMED - 1.0

Equations = tuple[core.JaxprEqn, ...]


class _Way(NamedTuple):
    """From one value to another: the operation, and whether a gradient comes back through it."""

    start: int
    end: int
    smooth: bool
    equations: Equations


class _Map:
    """All ways of a function, its values numbered."""

    def __init__(self) -> None:
        self.ways: list[_Way] = []
        self.size = 0

    def new(self, count: int) -> list[int]:
        """Return numbers for so many values."""
        self.size += count
        return list(range(self.size - count, self.size))

    def join(self, starts: Sequence[int], ends: Sequence[int], around: Equations = ()) -> None:
        """Let values be the same."""
        pairs = zip(starts, ends, strict=True)
        self.ways += [_Way(start, end, True, around) for start, end in pairs if start >= 0]

    def write(self, jaxpr: core.Jaxpr, inputs: Sequence[int], around: Equations) -> list[int]:
        """Enter a jaxpr; return the numbers of its results, -1 for constants."""
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int:
            return -1 if isinstance(atom, core.Literal) else numbers.get(atom, -1)

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            outputs = self._equation(eqn, operands, (eqn, *around))
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: core.JaxprEqn, operands: list[int], around: Equations) -> list[int]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS and _CALLS[name] in params:
            return self.write(open_jaxpr(params[_CALLS[name]])[0], operands, around)
        outputs = self.new(len(eqn.outvars))
        if name == "scan":
            body = open_jaxpr(params["jaxpr"])[0]
            num_carry = num_same(eqn.outvars, body.outvars)
            first = num_same(eqn.invars, body.invars) - num_carry
            self._loop(body, operands, outputs, (first, num_carry), around)
        elif name == "while":
            first = params["cond_nconsts"]
            body = open_jaxpr(params["body_jaxpr"])[0]
            sizes = (params["body_nconsts"], len(outputs))
            self._loop(body, operands[first:], outputs, sizes, around)
            self.join(operands[first + sizes[0] :], outputs, around)
        elif name == "cond":
            self._between([operands[0]] * len(outputs), outputs, False, around)
            for branch in params["branches"]:
                results = self.write(open_jaxpr(branch)[0], operands[1:], around)
                self.join(results, outputs, around)
        else:
            self._simple(eqn, operands, outputs, around)
        return outputs

    def _loop(
        self,
        body: core.Jaxpr,
        operands: list[int],
        outputs: list[int],
        sizes: tuple[int, int],
        around: Equations,
    ) -> None:
        """Enter the body of a loop once; what it carries leads back to its start."""
        num_shared, num_carry = sizes
        inputs = self.new(len(body.invars))
        self.join(operands, inputs, around)
        results = self.write(body, inputs, around)
        self.join(results[:num_carry], inputs[num_shared : num_shared + num_carry], around)
        self.join(results, outputs, around)

    def _between(
        self, starts: Sequence[int], ends: Sequence[int], smooth: bool, around: Equations
    ) -> None:
        pairs = zip(starts, ends, strict=True)
        self.ways += [_Way(start, end, smooth, around) for start, end in pairs if start >= 0]

    def _simple(
        self, eqn: core.JaxprEqn, operands: list[int], outputs: list[int], around: Equations
    ) -> None:
        flat = eqn.primitive.name in _FLAT
        for var, start in zip(eqn.invars, operands, strict=True):
            for out, end in zip(eqn.outvars, outputs, strict=True):
                smooth = not flat and _is_real(var) and _is_real(out)
                self._between([start], [end], smooth, around)


def _kind(atom: Any) -> Any:
    return atom.aval.dtype


def _is_real(atom: Any) -> bool:
    return bool(jnp.issubdtype(_kind(atom), jnp.inexact))


class Cut(NamedTuple):
    """Parameters to which no gradient comes back, for one reason.

    Attributes:
      leaves: indices among the flattened parameters.
      operations: those that stop it, each followed by the calls around it; empty where the loss
        does not depend on the parameters at all.
      in_loss: it comes back to the network's outputs neither.
      all_leaves: no parameter gets a gradient.
    """

    leaves: tuple[int, ...]
    operations: tuple[Equations, ...]
    in_loss: bool
    all_leaves: bool

    @property
    def primitives(self) -> set[str]:
        """Names in JAX of what stops it."""
        return {equations[0].primitive.name for equations in self.operations}


def find_cuts(exam: Exam) -> list[Cut]:
    """Return the groups of parameters that no gradient reaches, each for a reason of its own."""
    zero = [i for i, grad in enumerate(jax.tree.leaves(exam.grads)) if not np.any(grad)]
    if not zero:
        return []
    total = len(jax.tree.leaves(exam.params))
    ways, leaves, output, loss = _walk(exam)
    before, after = _sorted_ways(ways)
    relevant = _reached([loss], before, lambda way: way.start)
    groups: dict[Any, tuple[list[int], list[Equations]]] = defaultdict(lambda: ([], []))
    for index in zero:
        smooth = _reached([leaves[index]], after, lambda way: way.end, only_smooth=True)
        if loss in smooth:
            continue
        used = leaves[index] in relevant
        cuts = _cuts(loss, smooth, before) if used else ()
        in_loss = output in smooth or (not used and output not in relevant)
        reasons = frozenset((each[0].primitive.name, source_line(each)) for each in cuts)
        indices, operations = groups[reasons, in_loss]
        indices.append(index)
        operations += cuts
    return [
        Cut(tuple(indices), tuple(operations), in_loss, len(indices) == total)
        for (_, in_loss), (indices, operations) in groups.items()
    ]


def _walk(exam: Exam) -> tuple[list[_Way], list[int], int, int]:
    """The ways of network and loss; the numbers of the parameters, of the outputs, of the loss."""
    network = jax.make_jaxpr(exam.network.apply)(exam.params, exam.inputs, exam.key)
    (aval,) = network.out_avals
    outputs = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    loss = jax.make_jaxpr(exam.loss)(outputs, exam.targets)
    walked = _Map()
    inputs = walked.new(len(network.jaxpr.invars))
    output, made = walked.write(network.jaxpr, inputs, ())[0], walked.new(1)[0]
    walked.join([output], [made])
    others = [-1] * (len(loss.jaxpr.invars) - 1)
    value, end = walked.write(loss.jaxpr, [made, *others], ())[0], walked.new(1)[0]
    walked.join([value], [end])
    return walked.ways, inputs[: len(jax.tree.leaves(exam.params))], made, end


def _sorted_ways(ways: Iterable[_Way]) -> tuple[dict[int, list[_Way]], dict[int, list[_Way]]]:
    before: dict[int, list[_Way]] = defaultdict(list)
    after: dict[int, list[_Way]] = defaultdict(list)
    for way in ways:
        before[way.end].append(way)
        after[way.start].append(way)
    return before, after


def _reached(
    starts: Iterable[int], ways: dict[int, list[_Way]], end: Any, *, only_smooth: bool = False
) -> set[int]:
    """All values that ways lead to."""
    found = set(starts)
    waiting = list(found)
    while waiting:
        for way in ways.get(waiting.pop(), ()):
            if (way.smooth or not only_smooth) and end(way) not in found:
                found.add(end(way))
                waiting.append(end(way))
    return found


def _cuts(loss: int, smooth: set[int], before: dict[int, list[_Way]]) -> tuple[Equations, ...]:
    """The operations at which smooth ways end on the way to the loss."""
    cuts: dict[tuple[int, ...], Equations] = {}
    found, waiting = {loss}, [loss]
    while waiting:
        for way in before.get(waiting.pop(), ()):
            if way.start in smooth:
                cuts[tuple(map(id, way.equations))] = way.equations
            elif way.start not in found:
                found.add(way.start)
                waiting.append(way.start)
    return tuple(cuts.values())


def no_gradient(exam: Exam) -> Iterator[Finding]:
    """Find parameters that the network cuts off from the loss, or that it never uses."""
    for cut in find_cuts(exam):
        if cut.in_loss or _on_purpose(exam, cut):
            continue
        if cut.operations:
            strength = 2.5 * BLOCKING if cut.all_leaves else 2 * STRUCTURAL
            text = f"no gradient reaches {_names(exam, cut)}: {_operations(cut)}"
            text = f"{text}; {_remedy(cut)}"
            yield Finding(_layer(exam, cut), text, strength, line=_line(cut))
        else:
            text = f"the outputs do not depend on {_names(exam, cut)}: call it, or leave it out"
            yield Finding(_layer(exam, cut), text, STRUCTURAL / 4)


def loss_without_gradient(exam: Exam) -> Iterator[Finding]:
    """Find a loss through which no gradient comes back, or that does not use the outputs."""
    for cut in find_cuts(exam):
        if not cut.in_loss:
            continue
        if cut.operations:
            text = f"no gradient comes back through the loss: {_operations(cut)}; {_remedy(cut)}"
        else:
            text = "the loss does not use the outputs of the network: every answer costs the same"
        yield Finding(None, text, 1.2 * BLOCKING, line=_line(cut))


def frozen(exam: Exam) -> Iterator[Finding]:
    """Say which parameters stay as they are on purpose, while others learn; below `NAMED`."""
    for cut in find_cuts(exam):
        if _on_purpose(exam, cut):
            text = f"{_names(exam, cut)} stay as they are: {_operations(cut)}"
            yield Finding(_layer(exam, cut), text, _ASIDE)


def _line(cut: Cut) -> str | None:
    lines = [str(line) for each in cut.operations if (line := source_line(each))]
    return lines[0] if lines else None


def _on_purpose(exam: Exam, cut: Cut) -> bool:
    """Whether parameters look frozen by will: stopped as such, or with the traces of a training.

    What was never trained has biases of 0 and scales of 1: to stop below it is a mistake, but for
    a table of embeddings, which comes from elsewhere.
    """
    if cut.all_leaves or cut.in_loss or cut.primitives != {"stop_gradient"}:
        return False
    leaves = jax.tree.leaves(exam.params)
    shapes = {np.shape(leaves[index]) for index in cut.leaves}
    stopped = {getattr(each[0].invars[0].aval, "shape", None) for each in cut.operations}
    layers = exam.graph.layers
    tables = {layer.leaf.index for layer in layers if layer.kind == "embedding"}
    if set(cut.leaves) <= tables or stopped <= shapes:
        return True
    vectors = [np.asarray(leaves[i]) for i in cut.leaves if np.ndim(leaves[i]) == 1]
    return any(np.any(vector != vector.ravel()[0]) for vector in vectors if vector.size > 1)


def _names(exam: Exam, cut: Cut) -> str:
    names = leaf_names(exam.params)
    if cut.all_leaves:
        return f"any of the {len(names)} parameters"
    shown = [names[index] for index in cut.leaves[:_MOST_NAMES]]
    more = len(cut.leaves) - len(shown)
    return ", ".join(shown) + (f" and {more} more of {len(names)} parameters" if more else "")


def _operations(cut: Cut) -> str:
    """The cuts in words, a cut that everything passes once."""
    said = dict.fromkeys(_sentence(equations) for equations in cut.operations)
    return "; ".join(list(said)[:2])


def _sentence(equations: Equations) -> str:
    line = source_line(equations)
    where = f"{line} " if line else ""
    name = equations[0].primitive.name
    kind = _kind(equations[0].outvars[0])
    if name == "stop_gradient":
        return f"{where}stops it (stop_gradient)"
    if name in _COMPARISONS or kind == np.dtype(bool):
        return f"{where}compares (`{name}`): true or false has a slope of 0 everywhere"
    if name in ("argmax", "argmin", "sort", "top_k"):
        return f"{where}takes a position (`{name}`): a whole number has a slope of 0 everywhere"
    if name in ("round", "floor", "ceil", "sign"):
        return f"{where}rounds (`{name}`): that has a slope of 0 everywhere"
    return f"{where}gives whole numbers (`{name}`, {kind}): these have no slope"


def _remedy(cut: Cut) -> str:
    if cut.primitives == {"stop_gradient"}:
        return "leave stop_gradient out, unless these are to stay as they are"
    if cut.in_loss:
        return (
            "give the loss the outputs themselves (cross-entropy of logits, the squared error);"
            " hits are for counting"
        )
    if cut.all_leaves:
        return "return the values themselves; round or choose only when you use the network"
    return (
        "take a smooth stand-in (softmax for argmax, sigmoid for a threshold), or give it the slope"
        " of the identity: `x + jax.lax.stop_gradient(jnp.round(x) - x)`"
    )


def _layer(exam: Exam, cut: Cut) -> int | None:
    """The last layer that is cut off."""
    layers = exam.graph.layers
    return max((i for i, each in enumerate(layers) if each.leaf.index in cut.leaves), default=None)


def let_through(exam: Exam, index: int) -> Iterator[Fix]:
    """Let the gradient pass what stops it below a layer: stop_gradient, or rounding."""
    cuts = [cut for cut in find_cuts(exam) if _layer(exam, cut) == index and cut.operations]
    places = {place(equations) for cut in cuts for equations in cut.operations}
    edits: dict[int, Edit] = {}
    for step in exam.graph.program.steps:
        if step.name in _FLAT and step.equations and place(step.equations) in places:
            number = step.inputs[0]
            edits[step.outputs[0]] = lambda value, values, number=number: (
                values[number] + jax.lax.stop_gradient(value - values[number])
            )
    if edits:
        words = f"let the gradient through to {exam.graph.layers[index].path}"
        code = "x = x  # instead of jax.lax.stop_gradient(x)"
        yield Fix("let_through", words, code, size=1, edits=edits)
