"""Finders that look at data, targets, last activation and loss before any layer.

What a finder calls certain stands in the way of all learning, whatever the weights; the others name
what is unusual, and count where their repair alone makes the network learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.findings import BLOCKING, NAMED, STRUCTURAL, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.recurrence import forgotten
from jaxdnn.diagnosis.repairs import (
    class_targets,
    column_moments,
    finite_rows,
    input_scale,
    takes_probabilities,
)
from jaxdnn.diagnosis.replay import compile_quickly
from jaxdnn.diagnosis.targets import TargetKind, Targets, describe_targets

# A last activation that lets less than this share through cannot reach the targets.
_REACHES = 0.75
# Slopes of a loss that differ more between examples of the same error belong to a relative one.
_RELATIVE = 1e4
# Sizes that need no standardising.
_USUAL = (0.2, 4.0)
# Columns whose spreads differ by more do not both count; of more columns nothing is said.
_UNLIKE, _FEW_COLUMNS = 30.0, 16
# Cosine between the way down and the way to the targets, of a loss that leads away from them.
_AGAINST = -0.5
# What a sigmoid, softmax or tanh never leaves.
_FAR = 30.0
_SLACK = 1e-3


def _last(exam: Exam) -> int | None:
    """Index of the last layer in the graph."""
    if exam.ending.layer is None:
        return None
    return exam.graph.index_of(exam.outline.layers[exam.ending.layer].path)


def _num_outputs(exam: Exam) -> int:
    return exam.outputs.shape[-1] if exam.outputs.ndim > 1 else 1


def _name(exam: Exam) -> str:
    return "softmax" if "softmax" in exam.ending.kinds else exam.ending.label or "ending"


def _is_regression(exam: Exam, targets: Targets) -> bool:
    """Tell whether the targets themselves are the best outputs, and any number may be one."""
    size = exam.outputs.size == targets.values.size
    traits = exam.traits
    if not size or takes_probabilities(exam) or traits.softmax or traits.independent:
        return False
    same_shape = jnp.asarray(targets.values, jnp.float32).reshape(exam.outputs.shape)
    at = float(exam.loss(same_shape.astype(exam.outputs.dtype), exam.targets))
    return at <= exam.answers.floor + 1e-3 * max(exam.answers.to_learn, 1e-12)


def softmax_of_one(exam: Exam) -> Iterator[Finding]:
    """Find a softmax over a single unit: it is 1 whatever the weights are."""
    if "softmax" in exam.ending.kinds and exam.ending.z.shape[-1] == 1:
        text = "a softmax over one unit is exactly 1 for every input, so no gradient comes back"
        yield Finding(_last(exam), text, 2 * BLOCKING)


def too_few_outputs(exam: Exam) -> Iterator[Finding]:
    """Find one output for three classes or more, under a loss that does not take their number."""
    targets = class_targets(exam)
    if targets.kind not in (TargetKind.CLASSES, TargetKind.ONE_HOT) or targets.num_classes < 3:
        return
    has = _num_outputs(exam)
    if has != 1 or _is_regression(exam, targets) or exam.traits.softmax:
        return
    text = (
        f"{has} output for {targets.num_classes} classes: a classifier needs an output for each"
        " class"
    )
    yield Finding(_last(exam), text, 1.5 * BLOCKING)


def independent_loss(exam: Exam) -> Iterator[Finding]:
    """Find a loss that does not depend on the outputs."""
    if exam.traits.independent:
        text = f"the loss is {exam.answers.constant:.3g} whatever the network answers"
        if _num_outputs(exam) == 1:
            text += ": a softmax, or a division by the sum, over one output is always 1"
        yield Finding(_last(exam) if _num_outputs(exam) == 1 else None, text, BLOCKING)


def symmetric_loss(exam: Exam) -> Iterator[Finding]:
    """Find a loss that asks the same of every output, where each stands for a class."""
    targets = describe_targets(exam.targets)
    classes = targets.kind in (TargetKind.BINARY, TargetKind.CLASSES)
    if classes and exam.traits.symmetric and exam.answers.reach < _REACHES:
        text = (
            f"the one column of labels is compared with each of the {_num_outputs(exam)} outputs,"
            " so that all are asked to be the same; it takes the cross-entropy for classes"
        )
        yield Finding(None, text, BLOCKING)


def unbounded_loss(exam: Exam) -> Iterator[Finding]:
    """Find a loss that falls without end as the outputs grow."""
    targets, traits = describe_targets(exam.targets), exam.traits
    outside = targets.high > 1 or targets.low < 0
    labels = targets.kind in (TargetKind.CLASSES, TargetKind.BINARY, TargetKind.AMOUNTS)
    if (
        traits.probabilities
        and labels
        and outside
        and not traits.normalises
        and exam.answers.constant < 0.0
    ):
        text = (
            f"the cross-entropy takes targets between 0 and 1, and these go from {targets.low:g} to"
            f" {targets.high:g}: it falls to {exam.answers.constant:.3g} for one answer to all"
        )
        yield Finding(None, text, BLOCKING)
    elif traits.unbounded and exam.answers.constant < -1:
        text = "the loss falls without end as the outputs grow, whatever the inputs are"
        if targets.kind in (TargetKind.CLASSES, TargetKind.ONE_HOT):
            text += "; a log_softmax is missing, or the sign is wrong"
        yield Finding(None, text, BLOCKING)


def blind_targets(exam: Exam) -> Iterator[Finding]:
    """Find a class whose examples do not count in the loss, whatever is answered."""
    targets, blind = describe_targets(exam.targets), exam.traits.blind
    if (
        targets.kind is not TargetKind.BINARY
        or not blind
        or targets.values.size != len(exam.outputs)
    ):
        return
    values = targets.values.reshape(-1)
    for value, other in ((targets.low, targets.high), (targets.high, targets.low)):
        rows = np.flatnonzero(values == value)
        if set(rows) == set(blind):
            text = (
                f"the loss of the {len(rows)} examples with target {value:g} is the same"
                " whatever is"
                f" answered, so only those with {other:g} count; it takes other labels, such as -1"
                " and 1"
            )
            yield Finding(None, text, BLOCKING)


def unread_inputs(exam: Exam) -> Iterator[Finding]:
    """Find steps of a sequence that the outputs do not depend on."""
    leaves = jax.tree.leaves(exam.inputs)
    if len(leaves) != 1 or leaves[0].ndim != 3 or leaves[0].shape[1] < 2:
        return
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating) or not exam.measured.finite:
        return
    weights = jax.random.normal(jax.random.key(0), exam.outputs.shape)
    structure = jax.tree.structure(exam.inputs)

    def answer(x: Any) -> Any:
        outputs = exam.network.apply(exam.params, jax.tree.unflatten(structure, [x]), exam.key)
        return jnp.sum(weights * outputs.astype(jnp.float32))

    slope = np.asarray(compile_quickly(jax.grad(answer))(jnp.asarray(leaves[0])), np.float64)
    x = np.asarray(leaves[0], np.float64)
    unread = (slope == 0).all((0, 2)) & (x.std(0) > 0).any(-1)
    if 0.5 <= unread.mean() < 1:
        steps = np.flatnonzero(~unread)
        at_an_end = steps[-1] - steps[0] + 1 == len(steps) > 1
        if at_an_end and forgotten(exam.recurrences, len(steps)):
            return
        shown = (
            f"step {steps[0] + 1}"
            if len(steps) == 1
            else f"steps {steps[0] + 1} to {steps[-1] + 1}"
        )
        text = f"of the {len(unread)} steps of the inputs the outputs depend on {shown} alone"
        yield Finding(None, text, 2 * STRUCTURAL)


def wrong_sign(exam: Exam) -> Iterator[Finding]:
    """Find a loss that is higher for the targets themselves, and falls away from them."""
    targets, answers = describe_targets(exam.targets), exam.answers
    if not targets.is_float or targets.values.size != exam.outputs.size or exam.traits.mixes:
        return
    if not exam.examples and not exam.traits.unbounded:
        # Such as a score, which is to be the noise turned round.
        return
    wanted = jnp.asarray(targets.values, jnp.float32).reshape(exam.outputs.shape)
    at = float(exam.loss(wanted.astype(exam.outputs.dtype), exam.targets))
    if not at > answers.constant + 0.1 * max(abs(answers.constant), 1e-12):
        return
    middle = jnp.broadcast_to(wanted.mean(0, keepdims=True), wanted.shape)
    slope = jax.grad(exam.loss)(middle.astype(exam.outputs.dtype), exam.targets)
    away = np.asarray(wanted - middle, np.float64)
    down = -np.asarray(slope, np.float64)
    down = down - down.mean(0, keepdims=True)
    size = float(np.linalg.norm(away) * np.linalg.norm(down))
    if size > 0 and float((away * down).sum()) < _AGAINST * size:
        text = (
            f"the loss of the right answers themselves is {at:.3g}, and"
            f" {answers.constant:.3g} of the"
            " same answer to all: its sign is wrong"
        )
        yield Finding(None, text, BLOCKING)


def wrong_labels(exam: Exam) -> Iterator[Finding]:
    """Find labels that no output stands for, and batches of one class only."""
    targets = describe_targets(exam.targets)
    has = _num_outputs(exam)
    asked = exam.traits.softmax or not exam.measured.finite
    if not targets.is_float and has > 1 and asked and targets.values.size:
        bad = (targets.values < 0) | (targets.values >= has)
        if bad.any() and not (targets.high < has and _masked(exam)):
            text = (
                f"{int(bad.sum())} of {bad.size} labels lie outside 0 to {has - 1}: they go from"
                f" {targets.low:g} to {targets.high:g} for {has} outputs"
            )
            yield Finding(None, text, 2 * BLOCKING)
    if targets.values.size and targets.low == targets.high:
        text = f"every target of this batch is {targets.low:g}: there is nothing to tell apart"
        yield Finding(None, text, BLOCKING)


def _masked(exam: Exam) -> bool:
    """Tell whether the loss leaves out what is labelled below 0, as a mask does."""
    labels = np.asarray(exam.targets)
    counted = labels >= 0
    if labels.shape != exam.outputs.shape[: labels.ndim] or len(np.unique(labels[counted])) < 2:
        return False
    slope = compile_quickly(jax.grad(exam.loss))(jnp.asarray(exam.outputs), exam.targets)
    asked = np.abs(np.asarray(slope, np.float64)).reshape(*labels.shape, -1).max(-1)
    return bool((asked[~counted] == 0).all() and (asked[counted] > 0).any())


def out_of_reach(exam: Exam) -> Iterator[Finding]:
    """Find a last activation that cannot give what the targets ask for."""
    targets, ending = describe_targets(exam.targets), exam.ending
    if ending.tail is None or exam.answers.reach >= _REACHES or exam.traits.independent:
        return
    if exam.traits.unbounded or not set(ending.kinds) & {"activation", "softmax"}:
        return
    low, high = _range(exam)
    name = _name(exam)
    if exam.traits.softmax and "softmax" in ending.kinds:
        text = "the network ends in a softmax, and the loss takes another: give the loss logits"
    elif (
        targets.values.size
        and not exam.traits.softmax
        and not (low - _SLACK <= targets.low and targets.high <= high + _SLACK)
    ):
        text = (
            f"the {name} at the output gives {_interval(low, high)}, and the targets go from"
            f" {targets.low:.4g} to {targets.high:.4g}"
        )
    else:
        text = (
            f"through the {name} at the output the loss can come down by"
            f" {exam.answers.reach:.0%} of"
            " what it could without"
        )
    yield Finding(_last(exam), text, BLOCKING * (1 - 0.5 * exam.answers.reach))


def _range(exam: Exam) -> tuple[float, float]:
    """Least and greatest output that the ending gives."""
    tail, z = exam.ending.tail, exam.ending.z
    if tail is None:
        return -math.inf, math.inf
    shape, size = z.shape, max(_FAR, 1e3)
    key = jax.random.key(0)
    draws = [size * jax.random.normal(key, shape), jnp.full(shape, size), jnp.full(shape, -size)]
    given = np.concatenate(
        [np.ravel(np.asarray(tail(x.astype(z.dtype)), np.float64)) for x in draws]
    )
    low, high = float(np.nanmin(given)), float(np.nanmax(given))
    return (low if low > -size / 2 else -math.inf), (high if high < size / 2 else math.inf)


def _interval(low: float, high: float) -> str:
    if math.isinf(high):
        return f"nothing below {low:g}"
    if math.isinf(low):
        return f"nothing above {high:g}"
    return f"only {low:.3g} to {high:.3g}"


def missing_squash(exam: Exam) -> Iterator[Finding]:
    """Find a loss of probabilities given numbers that are none."""
    if not takes_probabilities(exam) or exam.traits.independent:
        return
    low, high = _range(exam)
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    several = _num_outputs(exam) > 1
    needed = "softmax" if several else "sigmoid"
    ending = exam.ending.label or "nothing"
    text = (
        f"the loss takes probabilities, and the network ends in {ending}: outputs outside 0 to 1"
        f" send no gradient back; a {needed} is missing"
    )
    yield Finding(_last(exam), text, 0.9 * BLOCKING)


def relative_error(exam: Exam) -> Iterator[Finding]:
    """Find an error relative to the target, where targets are zero."""
    targets = describe_targets(exam.targets)
    if not targets.is_float or targets.values.size != exam.outputs.size:
        return
    if takes_probabilities(exam) or exam.traits.softmax:
        return
    wanted = jnp.asarray(targets.values, jnp.float32).reshape(exam.outputs.shape)
    off = 0.1 * max(float(np.std(targets.values)), 1e-6)
    slopes = jax.grad(exam.loss)((wanted + off).astype(exam.outputs.dtype), exam.targets)
    sizes = np.abs(np.asarray(slopes, np.float64)).ravel()
    zero = np.abs(targets.values.ravel()) < 1e-3 * max(float(np.std(targets.values)), 1e-30)
    if zero.any() and (~zero).any() and np.isfinite(sizes).all():
        usual = float(np.median(sizes[~zero]))
        ratio = float(np.median(sizes[zero])) / usual if usual > 0 else 0.0
        if ratio > _RELATIVE:
            text = (
                f"the error is divided by the target, and {zero.mean():.0%} of the targets are 0:"
                f" they count {ratio:.1g} times as much as the others, and the answer 0 is all that"
                " is asked for"
            )
            yield Finding(None, text, BLOCKING)


def squared_classes(exam: Exam) -> Iterator[Finding]:
    """Find the squared error on classes."""
    targets = describe_targets(exam.targets)
    if targets.kind is TargetKind.ONE_HOT and _is_regression(exam, targets):
        text = (
            "the targets are one-hot classes, and the loss is an error of numbers: its gradient"
            " vanishes with a wrong but certain answer, and it has no natural scale"
        )
        yield Finding(None, text, STRUCTURAL)


def broadcast_targets(exam: Exam) -> Iterator[Finding]:
    """Find targets that meet the outputs of other examples in the loss."""
    shape, came = exam.outputs.shape, tuple(np.shape(exam.targets))
    mixed = exam.traits.mixes and np.size(exam.targets) == exam.outputs.size
    if mixed and came != shape:
        text = (
            f"targets {came} against outputs {shape} make a table of {shape[0]} x {shape[0]} in the"
            " loss: every output is compared with every target, and their mean is all that can be"
            " learnt"
        )
        yield Finding(None, text, BLOCKING)


def target_scale(exam: Exam) -> Iterator[Finding]:
    """Find amounts far from mean 0 and variance 1."""
    targets = describe_targets(exam.targets)
    if targets.kind not in (TargetKind.AMOUNTS, TargetKind.CLASSES, TargetKind.BINARY):
        return
    if not _is_regression(exam, targets):
        return
    mean, std = float(np.abs(targets.mean).max()), float(np.sqrt((targets.std**2).mean()))
    if std > 0 and not (_USUAL[0] <= std <= _USUAL[1] and mean <= _USUAL[1]):
        text = (
            f"the targets go from {targets.low:.4g} to {targets.high:.4g} (standard deviation"
            f" {std:.3g}), and the outputs start at {_size(exam.outputs):.2g}"
        )
        ratio = max(abs(math.log10(std)), math.log10(max(mean, 1.0)))
        yield Finding(None, text, NAMED + ratio)


def _size(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def unlike_targets(exam: Exam) -> Iterator[Finding]:
    """Find a few columns of amounts, of which some are too small to count in the loss."""
    targets = describe_targets(exam.targets)
    if targets.kind is not TargetKind.AMOUNTS or not _is_regression(exam, targets):
        return
    std = targets.std
    varies = np.flatnonzero(std > 0)
    if not 2 <= len(varies) <= _FEW_COLUMNS:
        return
    large, small = (int(varies[pick(std[varies])]) for pick in (np.argmax, np.argmin))
    if std[large] > _UNLIKE * std[small]:
        text = (
            f"column {large} of the targets varies by {std[large]:.3g} and column {small} by"
            f" {std[small]:.3g}: in the loss the second does not count"
        )
        yield Finding(None, text, STRUCTURAL)


def summed_loss(exam: Exam) -> Iterator[Finding]:
    """Find a loss that adds up the examples."""
    if exam.traits.summed and exam.measured.finite:
        text = (
            f"the loss adds up {len(exam.outputs)} examples instead of taking their mean: its"
            f" gradient, and each step, is {len(exam.outputs)} times as large"
        )
        yield Finding(None, text, NAMED + math.log10(len(exam.outputs)))


def scale_of_inputs(exam: Exam) -> Iterator[Finding]:
    """Find inputs far from mean 0 and variance 1, or of unlike scales."""
    first = 0 if exam.graph.layers else None
    for leaf in jax.tree.leaves(exam.inputs):
        found = input_scale(leaf)
        if found is None:
            continue
        x = finite_rows(leaf)
        mean, std = column_moments(x)
        rms = np.sqrt(mean**2 + std**2)
        largest, smallest = float(rms.max()), float(rms[rms > 0].min(initial=math.inf))
        offset = float(np.max(np.abs(mean) / np.maximum(std, 1e-12)))
        usual = _USUAL[0] <= largest <= _USUAL[1]
        if usual and (np.size(found[0]) == 1 or largest < 10 * smallest) and offset < 4:
            continue
        text = f"the inputs go from {np.nanmin(x):.4g} to {np.nanmax(x):.4g}"
        if np.size(found[0]) > 1 and largest > 10 * smallest:
            text += (
                f"; feature {int(rms.argmax())} is about {largest:.3g} and feature"
                f" {int(np.where(rms > 0, rms, np.inf).argmin())} {smallest:.2g}"
            )
        else:
            text += f" (mean {np.nanmean(x):.3g}, standard deviation {np.nanstd(x):.3g})"
        yield Finding(first, text, NAMED + abs(math.log10(max(largest, 1e-12))))
        return


def rounded_inputs(exam: Exam) -> Iterator[Finding]:
    """Find inputs that lose what they tell where the network makes whole numbers of them."""
    tables = [i for i, each in enumerate(exam.graph.layers) if each.kind == "embedding"]
    leaves = jax.tree.leaves(exam.inputs)
    if (
        not tables
        or len(leaves) != 1
        or not jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating)
    ):
        return
    before = np.asarray(leaves[0], np.float64)
    after = np.trunc(before)
    kinds = len(np.unique(before)), len(np.unique(after))
    if kinds[1] <= max(1, kinds[0] // 10):
        text = (
            f"{kinds[0]} different inputs from {before.min():.3g} to {before.max():.3g} become"
            f" {kinds[1]} whole number{'s' if kinds[1] > 1 else ''} for the embedding: give it the"
            " word numbers as they are"
        )
        yield Finding(tables[0], text, BLOCKING)
