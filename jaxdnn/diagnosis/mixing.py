"""Does one example's output depend on another example, or an earlier step's on a later one?

One example's inputs are put in another's place, and what changes is compared: only its own row may.
Statistics over the batch that a norm takes (they end in a root) are held as they were, for through
them every example depends on every other by design. Where another row does change, all values of
the network are compared: an axis tells examples apart if what one example changes lies in its own
part of that axis. The first operation that takes values with such an axis and gives one without is
the one that mixes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.findings import STRUCTURAL, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Dependence, Edit, Program, Step
from jaxdnn.diagnosis.replay import compile_quickly, run

_REDUCTIONS = {
    "psum",
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "argmax",
    "reduce_and",
}
_ROOTS = {"sqrt", "rsqrt", "pow"}
_LINEAR = {"dot_general", "conv_general_dilated"}
# Operations between a batch norm's root and its means.
_NORM_DEPTH = 14
# Beyond this the values of a network are not compared one by one.
_MOST_BYTES = 4 * 2**30
# A change of so many units in the last place is none.
_ROUNDING = 64
# What is said, but is no alarm.
_ASIDE = 1.0


class Mixture(NamedTuple):
    """An operation in which examples meet.

    Attributes:
      step: its index among the steps of the program; None where no single one does it.
      rows: the examples, other than the one that was changed, whose outputs change.
      changed: the example that was changed.
    """

    step: int | None
    rows: tuple[int, ...]
    changed: int


class _Probe:
    """Runs the network with other inputs and its batch statistics held."""

    def __init__(self, exam: Exam) -> None:
        self._exam, self._program = exam, exam.graph.program
        held = _norm_statistics(self._program, _batch(exam))

        @compile_quickly
        def passed(
            params: Any, inputs: Any, statistics: dict[int, Array], hold: Array | bool
        ) -> tuple[Array, dict[int, Array]]:
            arguments = params, inputs, exam.key
            environment = run(self._program, arguments, _held(statistics, hold))
            return environment[self._program.output], {n: environment[n] for n in held}

        self._run = functools.partial(passed, exam.params)
        self._statistics: dict[int, Array] = {}
        if held:
            values = self._program.values
            none = {n: np.zeros(values[n].shape, values[n].dtype) for n in held}
            outputs, self._statistics = self._run(exam.inputs, none, False)
        else:
            outputs = self._passed(exam.inputs)
        self.outputs = np.asarray(outputs)

    def _passed(self, inputs: Any) -> Array:
        """The outputs of the pass that is compiled already."""
        exam = self._exam
        return exam.run_pass(exam.params, inputs, exam.targets, exam.key).logits

    def changes(self, inputs: Any) -> np.ndarray:
        """Which of the outputs change with other inputs, of the outputs' shape."""
        if self._statistics:
            outputs, _ = self._run(inputs, self._statistics, True)
        else:
            outputs = self._passed(inputs)
        return _differ(self.outputs, np.asarray(outputs))

    def values(self, inputs: Sequence[Any]) -> list[dict[int, np.ndarray]]:
        """Which entries of every value that depends on inputs change, for each of those given."""
        exam, values = self._exam, self._program.values
        numbers = [n for step in self._program.steps for n in step.outputs]
        wanted = [n for n in numbers if values[n].depends & Dependence.INPUTS]

        @compile_quickly
        def everything(params: Any, inputs: Any, key: Array, statistics: dict[int, Array]) -> Any:
            program = self._program
            arguments = params, inputs, key
            environment = run(program, arguments, _held(statistics), looked_at=wanted)
            return {n: program.batch_first(n, environment[n]) for n in wanted}

        def all_values(inputs: Any) -> dict[int, np.ndarray]:
            found = everything(exam.params, inputs, exam.key, self._statistics)
            return {number: np.asarray(value) for number, value in found.items()}

        base = all_values(exam.inputs)
        others = map(all_values, inputs)
        return [{n: _differ(base[n], other[n]) for n in wanted} for other in others]


def _held(statistics: dict[int, Array], hold: Array | bool = True) -> dict[int, Edit]:
    return {
        n: lambda value, _, kept=kept: jnp.where(hold, kept, value)
        for n, kept in statistics.items()
    }


def _batch(exam: Exam) -> int:
    return int(jax.tree.leaves(exam.inputs)[0].shape[0])


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays differ by more than rounding."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a != b
    epsilon = float(jnp.finfo(a.dtype).eps)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    with np.errstate(invalid="ignore"):
        return np.abs(a - b) > _ROUNDING * epsilon * scale


def _norm_statistics(program: Program, batch: int) -> list[int]:
    """Numbers of the sums over the batch from which a norm takes a root."""
    producers = {n: index for index, step in enumerate(program.steps) for n in step.outputs}
    over_batch: set[int] = set()
    statistics: set[int] = set()
    found: set[int] = set()
    for step in program.steps:
        sources = [n for n in step.inputs if program.values[n].depends & Dependence.INPUTS]
        if _reduces_batch(program, step, batch):
            over_batch |= set(step.outputs)
            statistics |= set(step.outputs)
        elif sources and all(n in statistics for n in sources) and not step.inner & _LINEAR:
            statistics |= set(step.outputs)
        if step.inner & _ROOTS and sources and sources[0] in statistics:
            found |= over_batch & _below(program, producers, sources[0])
    # A mean that is taken once more, to be subtracted, belongs to the norm.
    taken = {program.steps[producers[number]].inputs for number in found}
    beside = {n for n in over_batch if program.steps[producers[n]].inputs in taken}
    return sorted(found | beside)


def _reduces_batch(program: Program, step: Step, batch: int) -> bool:
    if step.name not in _REDUCTIONS or 0 not in step.params.get("axes", ()):
        return False
    value = program.values[step.inputs[0]]
    if value.loop is not None:
        return False
    return bool(value.depends & Dependence.INPUTS) and value.shape[0] % batch == 0


def _below(program: Program, producers: dict[int, int], number: int) -> set[int]:
    """The values from which one is computed, not further down than a norm goes."""
    found, edge = {number}, {number}
    for _ in range(_NORM_DEPTH):
        steps = {producers[n] for n in edge if n in producers}
        inside = [program.steps[i] for i in steps if not program.steps[i].inner & _LINEAR]
        edge = {n for step in inside for n in step.inputs} - found
        found |= edge
    return found


def _with_row(inputs: Any, row: int, source: int) -> Any:
    """Put one example's inputs into another's place."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).at[row].set(leaf[source]), inputs)


def _other(inputs: Any, row: int) -> int | None:
    """An example whose inputs differ from those of this one."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    batch = leaves[0].shape[0]
    ordered = [(row + i) % batch for i in range(1, batch)]
    return next((i for i in ordered if any((x[i] != x[row]).any() for x in leaves)), None)


def find_mixture(exam: Exam) -> Mixture | None:
    """Return where examples meet other than in a norm; None where they do not.

    Only outputs with the batch axis first are looked at.
    """
    return _find_mixture(exam, _Probe(exam))


def _find_mixture(exam: Exam, probe: _Probe) -> Mixture | None:
    batch = _batch(exam)
    if probe.outputs.shape[:1] != (batch,):
        return None
    rows = sorted({min(1, batch - 1), batch // 2})
    changed = [(row, _other(exam.inputs, row)) for row in rows]
    inputs = [_with_row(exam.inputs, row, other) for row, other in changed if other is not None]
    rows = [row for row, other in changed if other is not None]
    for row, each in zip(rows, inputs, strict=True):
        hit = probe.changes(each).reshape(batch, -1).any(1)
        others = tuple(int(i) for i in np.flatnonzero(hit) if i != row)
        if others:
            return Mixture(_mixing_step(exam, probe, rows, inputs), others, row)
    return None


def _mixing_step(
    exam: Exam, probe: _Probe, rows: Sequence[int], inputs: Sequence[Any]
) -> int | None:
    """The first step whose result no longer has an axis that tells examples apart."""
    program, batch = exam.graph.program, _batch(exam)
    sizes = (math.prod(program.full_shape(n)) * 4 for n in range(len(program.values)))
    if sum(sizes) > _MOST_BYTES:
        return None
    masks = probe.values(inputs)
    apart = {
        number: _tells_apart([mask[number] for mask in masks], rows, batch) for number in masks[0]
    }
    for index, step in enumerate(program.steps):
        taken = all(apart.get(number, True) for number in step.inputs)
        if taken and not all(apart.get(number, True) for number in step.outputs):
            return index
    moved = [
        index
        for index, step in enumerate(program.steps)
        if step.name in ("transpose", "reshape") and set(step.outputs) & apart.keys()
    ]
    return moved[-1] if moved else None


def _tells_apart(masks: Sequence[np.ndarray], rows: Sequence[int], batch: int) -> bool:
    """Whether an axis has a part for each example, in which all lies that the example changes."""
    if not any(mask.any() for mask in masks):
        return True
    shape = masks[0].shape
    return any(
        shape[axis] % batch == 0
        and shape[axis] > 0
        and (
            all(
                _inside(mask, axis, row, batch, True) for mask, row in zip(masks, rows, strict=True)
            )
            or all(
                _inside(mask, axis, row, batch, False)
                for mask, row in zip(masks, rows, strict=True)
            )
        )
        for axis in range(len(shape))
    )


def _inside(mask: np.ndarray, axis: int, row: int, batch: int, in_blocks: bool) -> bool:
    """Whether what changes lies in one example's part of an axis: a block, or every batch-th."""
    others = tuple(i for i in range(mask.ndim) if i != axis)
    hit = np.flatnonzero(mask.any(axis=others))
    owner = hit // (mask.shape[axis] // batch) if in_blocks else hit % batch
    return bool((owner == row).all())


def mixed_examples(exam: Exam) -> Iterator[Finding]:
    """Find examples that meet other than in a norm, and steps of a sequence that see later ones."""
    if not exam.examples:
        return
    if not exam.measured.finite:
        return
    probe = _Probe(exam)
    mixture = _find_mixture(exam, probe)
    if mixture is not None:
        yield _mixed(exam, mixture)
    else:
        yield from _sees_later(exam, probe)


def _mixed(exam: Exam, mixture: Mixture) -> Finding:
    batch, layers = _batch(exam), exam.graph.layers
    number = len(mixture.rows)
    text = (
        f"the outputs of {number} other example{'s' * (number > 1)} of {batch} change with the"
        f" inputs of example {mixture.changed}"
    )
    if mixture.step is None:
        return Finding(None, f"{text}: the network mixes the batch", 2 * STRUCTURAL)
    step = exam.graph.program.steps[mixture.step]
    below = [i for i, layer in enumerate(layers) if layer.step <= mixture.step]
    line = step.line
    where = f"{line} " if line else ""
    return Finding(max(below, default=None), f"{text}: {where}{_mixes(exam, step)}", 2 * STRUCTURAL)


def _mixes(exam: Exam, step: Step) -> str:
    """Say how an operation mixes examples, and what to write instead."""
    values = exam.graph.program.values
    before = next(
        (values[n].shape for n in step.inputs if values[n].depends & Dependence.INPUTS), ()
    )
    after = values[step.outputs[0]].shape
    if step.name == "reshape":
        return (
            f"reshapes {list(before)} to {list(after)}, which cuts examples into pieces; keep the"
            " batch axis (`x.reshape(x.shape[0], -1)`), and swap axes with `jnp.swapaxes`"
        )
    if step.name == "transpose":
        return f"moves the batch axis: {list(before)} to {list(after)}; move it back to the front"
    if step.name in _REDUCTIONS:
        return (
            f"takes `{step.name}` over axes {list(step.params.get('axes', ()))} of {list(before)},"
            " the batch among them; leave axis 0 out"
        )
    if step.inner & _LINEAR:
        return "multiplies examples with one another: the batch axis must not be summed over"
    return f"mixes examples (`{step.name}`, {list(before)} to {list(after)})"


def _sees_later(exam: Exam, probe: _Probe) -> Iterator[Finding]:
    """Find outputs of earlier steps that change with later inputs, where each step has a target."""
    targets, outputs = jax.tree.leaves(exam.targets), probe.outputs
    leaves = jax.tree.leaves(exam.inputs)
    if len(targets) != 1 or len(leaves) != 1 or outputs.ndim < 3:
        return
    (target,), (inputs,) = targets, leaves
    steps = outputs.shape[:2]
    if target.shape[:2] != steps or inputs.shape[:2] != steps or steps[1] < 3:
        return
    middle = steps[1] // 2
    later = jnp.asarray(inputs).at[:, middle:].set(jnp.roll(inputs, 1, axis=0)[:, middle:])
    changed = probe.changes(jax.tree.unflatten(jax.tree.structure(exam.inputs), [later]))
    seen = changed[:, :middle].reshape(steps[0], middle, -1).any((0, 2))
    if not seen.any():
        return
    text = f"the outputs of steps 0 to {middle - 1} change with the inputs from step {middle} on"
    mask = _causal_mask(exam, steps[1])
    if target.dtype == inputs.dtype and target.shape == inputs.shape and _is_next(inputs, target):
        text += ", and each target is the next input, which it is shown: mask later steps"
        yield Finding(None, text, 2 * STRUCTURAL)
    elif mask is not None:
        text += f", though there is a causal mask ({mask}): it lets later steps through"
        yield Finding(None, text, STRUCTURAL)
    else:
        yield Finding(None, f"{text} (both directions are read)", _ASIDE)


def _is_next(inputs: Any, targets: Any) -> bool:
    same = np.asarray(inputs)[:, 1:] == np.asarray(targets)[:, :-1]
    return bool(same.mean() > 0.9)


def _causal_mask(exam: Exam, length: int) -> str | None:
    """Name the operation that makes a triangle of steps by steps; None where there is none."""
    program = exam.graph.program
    for step in program.steps:
        value = program.values[step.outputs[0]]
        square = value.shape[-2:] == (length, length)
        if square and value.dtype == np.dtype(bool) and not value.depends & Dependence.INPUTS:
            return str(step.line) if step.line else f"`{step.name}`"
    arrays = (np.asarray(array) for array in program.constants.values() if _is_plain(array))
    if any(array.shape[-2:] == (length, length) and _is_triangle(array) for array in arrays):
        return "an array that the network holds"
    return None


def _is_triangle(array: np.ndarray) -> bool:
    """Whether one number stands above the diagonal and another below, both sides of it open."""
    matrix = array.reshape(-1, *array.shape[-2:])[0]
    above = np.unique(matrix[np.triu_indices_from(matrix, 2)])
    below = np.unique(matrix[np.tril_indices_from(matrix, -2)])
    return above.size == below.size == 1 and above[0] != below[0]


def _is_plain(array: Any) -> bool:
    return not jnp.issubdtype(array.dtype, jax.dtypes.extended)
