"""Repairs of what lies outside the layers: inputs, targets, the last activation, the loss.

Outputs keep their meaning: what was a probability stays one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend import core

from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.model import Loss
from jaxdnn.diagnosis.program import Edit, Environment, Program, trace
from jaxdnn.diagnosis.replay import run
from jaxdnn.diagnosis.setups import Fix, FixKind, Output
from jaxdnn.diagnosis.targets import TargetKind, Targets, describe_targets

# As far as a probability is kept from 0 and 1 inside a logarithm.
_CLIP = 1e-7
# Features whose scales differ by more are standardised each for itself.
_ALIKE = 10.0


def _mean(loss: Loss) -> Loss:
    return lambda outputs, targets: jnp.mean(loss(outputs, targets).astype(jnp.float32))


def _log(p: Array) -> Array:
    return jnp.log(jnp.clip(p.astype(jnp.float32), _CLIP, 1 - _CLIP))


def binary_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Return the mean cross-entropy of probabilities; targets of as many numbers in [0, 1]."""
    t = jnp.asarray(targets, jnp.float32).reshape(outputs.shape)
    return -jnp.mean(t * _log(outputs) + (1 - t) * _log(1 - outputs))


def class_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Return the mean cross-entropy of class probabilities, (..., class).

    Args:
      outputs: probabilities, (..., class).
      targets: class indices of any type, (...) or (..., 1), or one-hot rows of the outputs' shape.
    """
    log_p = _log(outputs)
    if targets.shape == outputs.shape and targets.shape[-1] > 1:
        return -jnp.mean(jnp.sum(targets * log_p, -1))
    classes = jnp.rint(targets).astype(jnp.int32).reshape(outputs.shape[:-1])
    return -jnp.mean(jnp.take_along_axis(log_p, classes[..., None], -1))


def logit_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Return the mean cross-entropy of logits, (..., class); targets as for probabilities."""
    if targets.shape == outputs.shape and targets.shape[-1] > 1:
        return jnp.mean(optax.softmax_cross_entropy(outputs, targets))
    classes = jnp.rint(targets).astype(jnp.int32).reshape(outputs.shape[:-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, classes))


def squared_error(outputs: Array, targets: Array) -> Array:
    """Return the mean squared error; as many targets as outputs."""
    return jnp.mean((outputs - jnp.asarray(targets, outputs.dtype).reshape(outputs.shape)) ** 2)


def takes_probabilities(exam: Exam) -> bool:
    """Tell whether the loss takes probabilities, or shares of their sum, of classes."""
    classes = (TargetKind.BINARY, TargetKind.CLASSES, TargetKind.ONE_HOT, TargetKind.BITS)
    traits = exam.traits
    shares = traits.normalises and describe_targets(exam.targets).kind in classes
    return traits.probabilities or shares


def class_targets(exam: Exam) -> Targets:
    """Describe the targets; whole numbers are classes under a loss that takes no amounts."""
    found = describe_targets(exam.targets)
    whole = found.values.size > 0 and bool((found.values == np.rint(found.values)).all())
    column = found.values.ndim < 2 or found.values.shape[-1] == 1
    asks = exam.traits.independent or takes_probabilities(exam)
    if found.kind is TargetKind.AMOUNTS and whole and column and asks and found.low >= 0:
        return dataclasses.replace(found, kind=TargetKind.CLASSES, num_classes=int(found.high) + 1)
    return found


def _sigmoid(exam: Exam) -> Fix:
    return Fix(
        "sigmoid_output", f"a sigmoid at the output, in place of {_old_ending(exam)}",
        "return nnx.sigmoid(self.last(x))", FixKind.OUTPUT, 1, output=Output(jax.nn.sigmoid),
    )  # fmt: skip


def _softmax(exam: Exam) -> Fix:
    return Fix(
        "softmax_output", f"a softmax at the output, in place of {_old_ending(exam)}",
        "return nnx.softmax(self.last(x))", FixKind.OUTPUT, 1, output=Output(jax.nn.softmax),
    )  # fmt: skip


def _linear(exam: Exam) -> Fix:
    return Fix(
        "linear_output", f"no activation after the last layer, in place of {_old_ending(exam)}",
        "return self.last(x)", FixKind.OUTPUT, 1, output=Output(lambda z: z),
    )  # fmt: skip


def _old_ending(exam: Exam) -> str:
    if "softmax" in exam.ending.kinds:
        return "the softmax"
    return f"the {exam.ending.label}" if exam.ending.label else "none"


def fitting_output(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Give the last layer the activation that targets and loss ask for."""
    del layer
    if exam.ending.layer is None:
        return
    kind, traits = describe_targets(exam.targets).kind, exam.traits
    takes_p = takes_probabilities(exam)
    several = exam.outputs.ndim > 1 and exam.outputs.shape[-1] > 1
    if takes_p and several and kind in (TargetKind.ONE_HOT, TargetKind.CLASSES, TargetKind.BINARY):
        yield _softmax(exam)
        if not traits.normalises:
            yield _sigmoid(exam)
    elif takes_p or (
        kind in (TargetKind.BINARY, TargetKind.BITS) and "softmax" in exam.ending.kinds
    ):
        yield _sigmoid(exam)
    else:
        yield _linear(exam)
    if kind is TargetKind.BINARY and not several and not takes_p:
        yield _sigmoid(exam)


def classifier(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Give the network an output for every class, a softmax, and the cross-entropy of it."""
    del layer
    targets = class_targets(exam)
    last = exam.ending.layer
    if last is None or targets.kind not in (
        TargetKind.CLASSES,
        TargetKind.ONE_HOT,
        TargetKind.BINARY,
    ):
        return
    if targets.kind is TargetKind.BINARY and exam.outputs.shape[-1] == 1:
        yield from _binary(exam)
        return
    has = exam.outputs.shape[-1] if exam.outputs.ndim > 1 else 1
    units = targets.num_classes
    if has == units and exam.ending.tail is None:
        yield Fix(
            "cross_entropy_of_logits", "the cross-entropy for classes, of the outputs as logits",
            "loss = optax.softmax_cross_entropy(outputs, targets).mean()", FixKind.OUTPUT, 1,
            loss=logit_cross_entropy,
        )  # fmt: skip
        return
    words, code = "the cross-entropy for classes on softmax outputs", ""
    output: Output | None = Output(jax.nn.softmax, None if has == units else units)
    if exam.traits.softmax or (has == units and "softmax" in exam.ending.kinds):
        output = None if "softmax" in exam.ending.kinds else output
    if has != units:
        words = f"{units} outputs, one for each class, a softmax, and the cross-entropy for classes"
        code = f"self.last = nnx.Linear(width, {units}, rngs=rngs)\n"
    code += (
        "p = nnx.softmax(self.last(x)); loss = -jnp.log(jnp.take_along_axis(p, labels, -1)).mean()"
    )
    yield Fix(
        "classifier", words, code, FixKind.OUTPUT, 2 if has == units else 3,
        output=output, loss=class_cross_entropy,
    )  # fmt: skip


def _binary(exam: Exam) -> Iterator[Fix]:
    low, high = (describe_targets(exam.targets).low, describe_targets(exam.targets).high)
    span = high - low
    targets = None if (low, high) == (0, 1) else (lambda t: (t - low) / span)
    yield Fix(
        "binary_classifier", "a sigmoid and the binary cross-entropy",
        "p = nnx.sigmoid(self.last(x)); loss = -jnp.mean(y * jnp.log(p) + (1 - y) *"
        " jnp.log(1 - p))",
        FixKind.OUTPUT, 2, output=Output(jax.nn.sigmoid), loss=binary_cross_entropy,
        targets=targets,
    )  # fmt: skip


def usual_loss(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Replace the loss by the usual one for such targets."""
    kind = class_targets(exam).kind
    if kind in (TargetKind.CLASSES, TargetKind.ONE_HOT):
        yield from classifier(exam, layer)
    elif kind is TargetKind.BINARY and (exam.outputs.ndim == 1 or exam.outputs.shape[-1] == 1):
        yield from _binary(exam)
    elif kind is TargetKind.BINARY:
        yield from classifier(exam, layer)
    elif kind is TargetKind.BITS:
        yield Fix(
            "binary_cross_entropy", "sigmoid outputs and the binary cross-entropy",
            "loss = optax.sigmoid_binary_cross_entropy(logits, targets).mean()", FixKind.OUTPUT, 2,
            output=Output(jax.nn.sigmoid), loss=binary_cross_entropy,
        )  # fmt: skip
    elif kind is TargetKind.AMOUNTS and np.size(exam.targets) == exam.outputs.size:
        linear = (
            Output(lambda z: z)
            if exam.answers.reach < 0.9 and exam.ending.layer is not None
            else None
        )
        yield Fix(
            "squared_error", "the mean squared error", "loss = jnp.mean((outputs - targets) ** 2)",
            FixKind.OUTPUT, 1, loss=squared_error, output=linear,
        )  # fmt: skip


def shifted_labels(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Count the classes from 0, where all labels then stand for an output."""
    del layer
    targets = describe_targets(exam.targets)
    low = int(targets.low) if targets.values.size else 0
    if low and not targets.is_float and targets.high - low < exam.outputs.shape[-1]:
        yield Fix(
            "shift_labels", f"labels from 0: {low} subtracted", f"labels = labels - {low}",
            FixKind.DATA, 1, targets=lambda t: t - low,
        )  # fmt: skip


def signed_labels(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Call the two classes -1 and 1."""
    del layer
    targets = describe_targets(exam.targets)
    middle, half = (targets.low + targets.high) / 2, (targets.high - targets.low) / 2
    yield Fix(
        "signed_labels", "labels of -1 and 1", "targets = 2 * targets - 1", FixKind.DATA, 1,
        targets=lambda t: (t - middle) / half,
    )  # fmt: skip


def mean_loss(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Take the mean over the examples rather than their sum."""
    del layer
    own, num = exam.loss, len(exam.outputs)
    yield Fix(
        "mean_loss", "the mean over the examples rather than the sum", "return losses.mean()",
        FixKind.OUTPUT, 1, loss=lambda outputs, targets: own(outputs, targets) / num,
    )  # fmt: skip


def negated_loss(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Turn the sign of the loss."""
    del layer
    own = exam.loss
    yield Fix(
        "negated_loss", "the loss with the other sign", "return -loss", FixKind.OUTPUT, 1,
        loss=lambda outputs, targets: -own(outputs, targets),
    )  # fmt: skip


def reshaped_targets(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Give the targets the outputs' shape."""
    del layer
    shape = exam.outputs.shape[1:]
    came = tuple(np.shape(exam.targets))
    if np.size(exam.targets) == exam.outputs.size:
        yield Fix(
            "reshape_targets", f"targets of the outputs' shape {exam.outputs.shape}, not {came}",
            "targets = targets.reshape(outputs.shape)", FixKind.DATA, 1,
            targets=lambda t: jnp.asarray(t).reshape(-1, *shape),
        )  # fmt: skip


def standardised_targets(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Bring the targets to mean 0 and variance 1 by column."""
    del layer
    described = describe_targets(exam.targets)
    if described.kind not in (TargetKind.AMOUNTS, TargetKind.CLASSES, TargetKind.BINARY):
        return
    mean, std = described.mean, described.std
    std = np.where(std > 1e-6 * (np.abs(mean) + 1e-30), std, 1.0)
    if described.values.ndim < 2:
        mean, std = mean[0], std[0]
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    yield Fix(
        "standardise_targets", "targets standardised: (y - mean) / std of the training targets",
        "targets = (targets - targets.mean(0)) / targets.std(0)", FixKind.DATA, 2,
        targets=lambda t: (jnp.asarray(t, jnp.float32) - mean) / std,
    )  # fmt: skip


def standardised_inputs(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Bring the inputs to mean 0 and variance 1, by feature where their scales differ."""
    del layer
    leaves, structure = jax.tree.flatten(exam.inputs)
    scales = [input_scale(leaf) for leaf in leaves]
    if all(scale is None for scale in scales):
        return
    by_feature = any(scale is not None and np.size(scale[0]) > 1 for scale in scales)
    per = " by feature" if by_feature else ""
    axis = "axis 0" if by_feature else "the training inputs"

    def prepare(inputs: Any) -> Any:
        new = [
            leaf if scale is None else (jnp.asarray(leaf, jnp.float32) - scale[0]) / scale[1]
            for leaf, scale in zip(structure.flatten_up_to(inputs), scales, strict=True)
        ]
        return jax.tree.unflatten(structure, new)

    yield Fix(
        "standardise_inputs", f"inputs standardised{per}: (x - mean) / std of {axis}",
        "inputs = (inputs - inputs.mean(0)) / inputs.std(0)" if by_feature
        else "inputs = (inputs - inputs.mean()) / inputs.std()",
        FixKind.DATA, 2, inputs=prepare,
    )  # fmt: skip


# How near rounding leaves what was a whole number; numbers in a row that have no common divisor.
_NEARLY_WHOLE, _LONG_ROW = 1e-3, 8
# Columns of a table, each a quantity of its own, that its mean so many deviations off tells apart.
_TABLE, _APART = 64, 2.0


def finite_rows(leaf: Any) -> np.ndarray:
    """Return an array as (row, feature), NaN for all that is not finite."""
    x = np.asarray(leaf, np.float64)
    x = np.where(np.isfinite(x), x, np.nan)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(-1, 1)


def column_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column's numbers; 0 where it holds none."""
    known = ~np.isnan(rows)
    number = np.maximum(known.sum(0), 1)
    mean = np.where(known, rows, 0).sum(0) / number
    return mean, np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(0) / number)


def input_scale(leaf: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and divisor that standardise an array; None where it holds no floats.

    Args:
      leaf: (batch, ..., feature).
    """
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return None
    rows = finite_rows(leaf)
    mean, std = column_moments(rows)
    varies = std > 1e-6 * np.abs(mean)
    if not varies.any():
        return None
    spread = std[varies]
    offsets = np.abs(mean - mean.mean()).max() > _ALIKE * spread.max()
    if jnp.ndim(leaf) == 2 and len(mean) <= _TABLE:
        offsets = (np.abs(mean - mean.mean())[varies] > _APART * spread).any()
    if (spread.max() <= _ALIKE * spread.min() and not offsets) or jnp.ndim(leaf) > 3:
        whole, size = np.nanmean(rows), np.nanstd(rows)
        return np.array(whole, np.float32), np.array(size if size > 0 else 1.0, np.float32)
    divisor = np.where(varies, std, np.maximum(np.abs(mean), 1.0))
    return mean.astype(np.float32), divisor.astype(np.float32)


def whole_numbers(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Stretch inputs that are cut to whole numbers over the words of the embedding."""
    tables = [each for each in exam.outline.layers if each.kind == "embedding"]
    if not tables or not jnp.issubdtype(jnp.result_type(exam.inputs), jnp.floating):
        return
    leaves = jax.tree.leaves(exam.params)
    words = tables[0].leaf.take(leaves).shape[0]
    rows = np.asarray(exam.inputs, np.float64).reshape(len(exam.inputs), -1)
    (factor,) = _whole_factors(rows.reshape(1, -1), words)
    by_row = np.isnan(factor) and rows.shape[1] >= _LONG_ROW
    if by_row and np.isfinite(_whole_factors(rows, words)).all():
        yield Fix(
            "restore_words", "the word numbers as they were before each row was divided",
            "inputs = word_numbers  # not normalised", FixKind.DATA, 2,
            inputs=lambda x: _undivided(x, words),
        )  # fmt: skip
        return
    if np.isnan(factor):
        factor = (words - 1) / float(np.max(np.abs(rows)))
    yield Fix(
        "stretch_inputs", f"inputs x {factor:.3g}, so that they reach all {words} words;"
        " better, the"
        " word numbers as they were before they were normalised",
        f"inputs = jnp.rint(inputs * {factor:.3g})", FixKind.DATA, 2,
        inputs=lambda x: jnp.rint(jnp.asarray(x) * factor),
    )  # fmt: skip


def _whole_factors(rows: np.ndarray, most: int) -> np.ndarray:
    """Return the least factor of each row that makes whole numbers below `most` of it, or NaN."""
    least = np.where(rows > 0, rows, np.inf).min(1)
    found = np.full(len(rows), np.nan)
    left = np.flatnonzero(np.isfinite(least) & (rows >= 0).all(1))
    for number in range(1, most):
        whole = rows[left] * (number / least[left])[:, None]
        fits = (np.abs(whole - np.rint(whole)) < _NEARLY_WHOLE).all(1) & (whole.max(1) < most)
        found[left[fits]] = number / least[left[fits]]
        left = left[~fits]
        if not len(left):
            break
    return found


def _undivided(inputs: Any, most: int) -> Array:
    """Make whole numbers of every row again; one of which none can be made stays as it is."""
    rows = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    factors = np.nan_to_num(_whole_factors(rows, most), nan=1.0)
    return jnp.asarray(np.rint(rows * factors[:, None]).reshape(np.shape(inputs)), jnp.float32)


# Guards of operations that are not finite at the edge of where they are defined.
_SMALL_ROOT, _LARGEST_EXPONENT = 1e-12, 80.0
_GUARDS: dict[str, Callable[..., Array]] = {
    "log": lambda x: jnp.log(jnp.maximum(x, _CLIP)),
    "sqrt": lambda x: jnp.sqrt(jnp.maximum(x, 0) + _SMALL_ROOT),
    "rsqrt": lambda x: jax.lax.rsqrt(jnp.maximum(x, 0) + _SMALL_ROOT),
    "exp": lambda x: jnp.exp(jnp.minimum(x, _LARGEST_EXPONENT)),
    "div": lambda x, y: x / jnp.where(jnp.abs(y) < _SMALL_ROOT, 1, y),
}


def guarded_operations(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Keep roots, logarithms, exponentials and divisions away from where they are not finite."""
    del layer
    words = "logarithms, roots, exponentials and divisions kept from where they are not finite"
    code = "jnp.log(jnp.maximum(x, 1e-7)); jnp.sqrt(x + 1e-12)"
    edits = _guards(exam.graph.program)
    if edits:
        yield Fix("guard_operations", f"{words}, in the network", code, size=1, edits=edits)
    try:
        loss = _guarded_loss(exam)
    except (TypeError, ValueError):
        return
    if loss is not None:
        yield Fix("guard_loss", f"{words}, in the loss", code, FixKind.OUTPUT, 1, loss=loss)


def _guards(program: Program) -> dict[int, Edit]:
    """An edit for every such operation of the signal."""
    edits: dict[int, Edit] = {}
    for step in program.steps:
        equation = step.equations[0] if step.equations else None
        if step.name not in _GUARDS or equation is None or len(step.outputs) != 1:
            continue
        variables = dict.fromkeys(v for v in equation.invars if isinstance(v, core.Var))
        numbers = dict(zip(variables, step.inputs, strict=False))
        operands = [numbers.get(v) if isinstance(v, core.Var) else v.val for v in equation.invars]
        literal = [not isinstance(v, core.Var) for v in equation.invars]

        def guarded(
            value: Array, values: Environment, name: str = step.name,
            operands: Sequence[Any] = operands, literal: Sequence[bool] = literal,
        ) -> Array:  # fmt: skip
            given = [
                x if is_literal else values[x]
                for x, is_literal in zip(operands, literal, strict=True)
            ]
            return _GUARDS[name](*given).astype(value.dtype)

        edits[step.outputs[0]] = guarded
    return edits


def _guarded_loss(exam: Exam) -> Loss | None:
    """The loss with its operations guarded; None where it has none."""
    own = exam.loss
    known: dict[Any, Program] = {}

    def program(outputs: Any, targets: Any) -> Program:
        shapes = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), (outputs, targets)))
        if shapes not in known:
            structs = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (targets, outputs)
            )
            known[shapes] = trace(lambda t, o, _: own(o, t), structs[0], structs[1], exam.key)
        return known[shapes]

    if not _guards(program(jnp.asarray(exam.outputs), exam.targets)):
        return None

    def loss(outputs: Any, targets: Any) -> Array:
        written = program(outputs, targets)
        return run(written, (targets, outputs, exam.key), _guards(written))[written.output]

    return loss


def finite_inputs(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Put 0 in place of inputs that are not finite."""
    del layer
    leaves = [x for x in jax.tree.leaves(exam.inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    if any(not bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        yield Fix(
            "finite_inputs", "0 in place of inputs that are not finite",
            "inputs = jnp.nan_to_num(inputs, posinf=0.0, neginf=0.0)", FixKind.DATA, 1,
            inputs=lambda x: jax.tree.map(
                lambda leaf: jnp.nan_to_num(leaf, posinf=0.0, neginf=0.0), x
            ),
        )  # fmt: skip
