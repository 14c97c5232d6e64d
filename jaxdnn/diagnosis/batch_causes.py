"""Finders of what is wrong with a batch's rows, features and tokens, whatever the network.

Each feature (last axis of floats) is compared with the others, rows with each other, and tokens
with the table that they are looked up in. Whether rows that only fill up a batch count is asked of
the loss: its gradient with respect to their outputs is zero where it leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.findings import BLOCKING, CERTAIN, NAMED, STRUCTURAL, Finding
from jaxdnn.diagnosis.hidden_causes import (
    LEAST_MEASURED,
    LEAST_UNKNOWN,
    is_trained,
    read_forward,
    recovery,
)
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Dependence
from jaxdnn.diagnosis.replay import compile_quickly

# Of a feature's standard deviation over the median of the others'.
_OUTWEIGHS = 100.0
_FEW_ROWS = 16
# A rare event may not occur in fewer.
_ROWS_TO_VARY = 64
# More features that never change are how the data are, such as the border of drawn digits.
_MOST_CONSTANT = 0.02
# Share of the entries that hold what a constant feature holds, beyond its own.
_RARE_EVENTS = 0.05
# Correlation of a column that is another; share of rows that others contradict.
_SAME, _TORN = 1 - 1e-9, 0.1
# Fewer columns may all be meant to give the target by a rule.
_TABLE = 3
# Rows that fill up a batch.
_PADDING_ROWS, _PADDING_SHARE = 3, 0.02
# Look-ups for each row of a table, and shares of them.
_ENOUGH_LOOK_UPS, _MOST_UNUSED, _MOST_USED = 10, 0.5, 0.6
# What images are usually normalised by: (mean, standard deviation) by channel.
_CONSTANTS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.286,), (0.353,)),
    "0.5": ((0.5,), (0.5,)),
}


def not_finite_rows(inputs: Any, targets: Any) -> Iterator[Finding]:
    """Find rows whose inputs or targets are NaN or infinite.

    Args:
      inputs: an array or a tree of arrays, the batch axis first; needs no network.
      targets: likewise.
    """
    for name, tree in (("inputs", inputs), ("targets", targets)):
        for leaf in jax.tree.leaves(tree):
            array = np.asarray(leaf)
            if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim == 0:
                continue
            bad = ~np.isfinite(array.astype(np.float32))
            rows = np.flatnonzero(bad.reshape(len(array), -1).any(1))
            if len(rows):
                yield Finding(None, _say_not_finite(name, array, bad, rows), BLOCKING)


def _say_not_finite(name: str, array: np.ndarray, bad: np.ndarray, rows: np.ndarray) -> str:
    kind = "NaN" if np.isnan(array[bad].astype(np.float32)).any() else "infinity"
    listed = ", ".join(map(str, rows[:5])) + (" ..." if len(rows) > 5 else "")
    text = f"the {name} hold {kind} in {len(rows)} of {len(array)} rows (row {listed})"
    if array.ndim > 1:
        features = np.flatnonzero(bad.reshape(-1, array.shape[-1]).any(0))
        if len(features) < min(array.shape[-1], 6):
            text += f", {_feature_word(array)} {', '.join(map(str, features))}"
    return f"{text}: one such row makes the loss and every gradient NaN"


def outweighing_feature(exam: Exam) -> Iterator[Finding]:
    """Find features whose scale is far above that of the others, where no norm takes it away."""
    if _normalised_inside(exam):
        return
    for array in _float_inputs(exam.inputs):
        std = _by_feature(array).std(0)
        usual = float(np.median(std[std > 0])) if (std > 0).sum() > 2 else 0.0
        large = np.flatnonzero(std > _OUTWEIGHS * usual)
        if usual and 0 < len(large) <= max(1, len(std) // 4):
            worst = int(large[np.argmax(std[large])])
            word, factor = _feature_word(array), std[worst] / usual
            text = (
                f"{word} {worst} of the inputs varies by {std[worst]:.3g}, the usual {word} by"
                f" {usual:.3g}: it is {factor:.2g} times as large and drowns the others"
            )
            text += f" (so do {len(large) - 1} more)" if len(large) > 1 else ""
            # Where there are several inputs, nobody says which layer takes this one.
            alone = len(jax.tree.leaves(exam.inputs)) == 1
            yield Finding(0 if alone else None, text, STRUCTURAL * math.log10(factor))


def feature_that_is_the_target(exam: Exam) -> Iterator[Finding]:
    """Find a column of a table that holds the targets, in any unit."""
    targets = np.asarray(exam.targets) if hasattr(exam.targets, "dtype") else np.zeros(())
    rows = len(exam.outputs)
    if targets.dtype.kind not in "fiub" or targets.size != rows or rows < _ROWS_TO_VARY:
        return
    own = targets.reshape(rows).astype(np.float64)
    for array in _float_inputs(exam.inputs):
        table = np.asarray(array, np.float64)
        if (
            table.ndim != 2
            or table.shape[1] < _TABLE
            or not np.ptp(own)
            or not np.isfinite(table).all()
        ):
            continue
        centred = table - table.mean(0)
        size = np.linalg.norm(centred, axis=0) * np.linalg.norm(own - own.mean())
        like = np.abs((own - own.mean()) @ centred) / np.maximum(size, 1e-300)
        column = int(np.argmax(like))
        if like[column] > _SAME:
            text = (
                f"feature {column} of the inputs is the target itself, in another unit at most:"
                " the network needs nothing else, and knows nothing without it"
            )
            yield Finding(0, text, NAMED)


def contradictory_rows(exam: Exam) -> Iterator[Finding]:
    """Find rows whose inputs are the same to the last bit and whose targets differ."""
    count = len(exam.outputs)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((exam.inputs, exam.targets))]
    if any(leaf.shape[:1] != (count,) for leaf in leaves):
        return
    inputs, both = (
        np.concatenate([np.ascontiguousarray(x).reshape(count, -1).view(np.uint8) for x in part], 1)
        for part in (leaves[: len(jax.tree.leaves(exam.inputs))], leaves)
    )
    _, kinds, sizes = np.unique(inputs, axis=0, return_inverse=True, return_counts=True)
    num_pairs = len(np.unique(both, axis=0))
    if num_pairs == len(sizes) or len(sizes) == 1:
        return
    answers: dict[int, set[bytes]] = {}
    for row, kind in enumerate(np.ravel(kinds)):
        answers.setdefault(int(kind), set()).add(both[row].tobytes())
    torn = np.isin(np.ravel(kinds), [kind for kind, said in answers.items() if len(said) > 1])
    if torn.mean() >= _TORN:
        text = (
            f"{int(torn.sum())} of {count} rows have the same inputs as another row and another"
            " target: no network can answer both"
        )
        yield Finding(None, text, NAMED * (1 + torn.mean()))


def constant_feature(exam: Exam) -> Iterator[Finding]:
    """Find features that are the same in every row; a column of ones is meant."""
    for array in _float_inputs(exam.inputs):
        features = _by_feature(array)
        same = np.flatnonzero(features.max(0) == features.min(0))
        few = len(same) <= max(1, _MOST_CONSTANT * features.shape[1])
        meant = len(same) == 1 and features[0, same[0]] == 1
        # Rare events, or the margin of drawings: the others hold that number often, too.
        meant |= 0 < len(same) < features.shape[1] and bool(
            np.mean(np.delete(features, same, 1) == features[0, same[0]]) > _RARE_EVENTS
        )
        several = features.shape[1] > (1 if array.ndim == 4 else 2)
        if len(array) >= _ROWS_TO_VARY and several and len(same) and few and not meant:
            word, listed = _feature_word(array), ", ".join(map(str, same[:5]))
            text = (
                f"{word} {listed} of the inputs is {features[0, same[0]]:.3g} in all"
                f" {len(array)} rows, and the others vary: it tells nothing"
            )
            yield Finding(None, text, STRUCTURAL)


def foreign_normalisation(exam: Exam) -> Iterator[Finding]:
    """Find inputs normalised twice, or by another data set's constants.

    Those of a loaded network are standardised on trial: if it knows far more then, it was trained
    on such inputs.
    """
    if _normalised_inside(exam):
        return
    for array in _float_inputs(exam.inputs):
        features = _by_feature(array)
        mean, std = features.mean(0), features.std(0)
        away = float(np.median(np.maximum(np.abs(mean), np.abs(np.log(np.maximum(std, 1e-12))))))
        if len(array) < _FEW_ROWS or away < 0.5:
            continue
        word = _feature_word(array)
        text = (
            f"the inputs' {word}s have means of {_few(mean)} and standard deviations of"
            f" {_few(std)}, not 0 and 1"
        )
        twice = _normalised_twice(mean, std) if array.ndim == 4 and std.min() > 0 else None
        text += f": {twice}" if twice else ""
        cure = _standardised(exam, array, mean, std)
        if cure:
            before, after, strength = cure
            text += (
                f"; the network knows them by other constants: with mean 0 and standard deviation"
                f" 1 its loss falls from {before:.3g} to {after:.3g} without any training"
            )
            # One edit of the inputs stands before one of all running averages.
            yield Finding(None, text, strength + NAMED)
        elif twice:
            yield Finding(None, text, STRUCTURAL * 2)


def _standardised(
    exam: Exam, array: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> tuple[float, float, float] | None:
    """Loss before and after, and the strength, where standardised inputs are the cure."""
    leaves, tree = jax.tree.flatten(exam.inputs)
    if len(leaves) > 1 or is_trained(exam) is False:
        return None
    fresh = (array - mean) / np.where(std > 0, std, 1)
    inputs = jax.tree.unflatten(tree, [jnp.asarray(fresh, leaves[0].dtype)])
    loaded = read_forward(exam, exam.network.apply)
    changed = read_forward(exam, exam.network.apply, inputs)
    strength = recovery(loaded, changed, LEAST_MEASURED if is_trained(exam) else LEAST_UNKNOWN)
    return (loaded.loss, changed.loss, strength) if strength else None


def _normalised_twice(mean: np.ndarray, std: np.ndarray) -> str | None:
    """Say whose constants were applied to inputs that had mean 0 and standard deviation 1."""
    for name, (means, stds) in _CONSTANTS.items():
        m, s = np.asarray(means), np.asarray(stds)
        if len(m) not in (1, len(mean)):
            continue
        if np.allclose(mean, -m / s, atol=0.5) and np.allclose(std, 1 / s, rtol=0.25):
            return (
                f"this is what the constants of {name} make of inputs that are normalised already"
            )
    own_mean, own_std = -mean / std, 1 / std
    plausible = (own_mean > 0.05) & (own_mean < 0.95) & (std > 2) & (std < 12)
    bounded = own_std**2 <= own_mean * (1 - own_mean)
    if bool((plausible & bounded).all()):
        return "they look as if (x - mean) / std was applied twice"
    return None


def _few(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:.2g}" for value in values[:3])
    return shown if len(values) <= 3 else f"{shown}, ..."


def padding_rows(exam: Exam) -> Iterator[Finding]:
    """Find rows at the end of a batch, or places at the ends of sequences, that only fill up."""
    for array in map(np.asarray, jax.tree.leaves(exam.inputs)):
        if array.ndim < 2 or math.prod(array.shape[1:]) < 4:
            continue
        rows, targets = array.reshape(len(array), -1), exam.targets
        count = _trailing(rows, targets)
        if count >= max(_PADDING_ROWS, _PADDING_SHARE * len(rows)) and count < len(rows):
            counted = _weights(exam)[-count:] > 0
            if counted.any():
                text = (
                    f"the last {count} of {len(rows)} rows are all {rows[-1, 0]:.3g}, with one"
                    f" target: they fill up the batch, and {counted.mean():.0%} of them count in"
                    " the loss; give it a mask"
                )
                yield Finding(None, text, CERTAIN)
        elif array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
            yield from _padding_places(exam, array)


def _trailing(rows: np.ndarray, targets: Any) -> int:
    """Count the rows at the end that hold one number throughout, the same in all of them."""
    flat = (rows == rows[-1, 0]).all(1)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(targets) if np.ndim(leaf)]
    for leaf in leaves:
        flat &= (leaf == leaf[-1]).reshape(len(leaf), -1).all(1)
    run = int(np.argmin(flat[::-1])) if not flat.all() else len(flat)
    # Elsewhere such rows are data.
    return run if flat.sum() == run else 0


def _padding_places(exam: Exam, tokens: np.ndarray) -> Iterator[Finding]:
    """Places at the ends of sequences with a target of their own, all of one token."""
    targets = np.asarray(exam.targets) if hasattr(exam.targets, "shape") else np.zeros(())
    if targets.shape != tokens.shape:
        return
    names, counts = np.unique(tokens[:, -1], return_counts=True)
    filler = names[np.argmax(counts)]
    padded = np.cumprod((tokens == filler)[:, ::-1], axis=1)[:, ::-1].astype(bool)
    inside = (tokens == filler) & ~padded
    rows = padded.sum(1) >= 2
    if rows.mean() < 0.1 or inside.sum() > 0.1 * padded.sum():
        return
    places = padded & rows[:, None]
    counted = (_weights(exam) > 0) & places
    if counted.sum() > 0.5 * places.sum():
        text = (
            f"{places.mean():.0%} of the places hold token {filler} at the end of their row: they"
            f" fill up the sequences, and {counted.sum() / places.sum():.0%} of them count in the"
            " loss; give it a mask"
        )
        yield Finding(None, text, CERTAIN)


def _weights(exam: Exam) -> np.ndarray:
    """Gradient of the loss by outputs, its size for each target: 0 for what is left out."""
    slope = compile_quickly(jax.grad(exam.loss))
    size = np.abs(np.asarray(slope(jnp.asarray(exam.outputs, jnp.float32), exam.targets)))
    leaves = jax.tree.leaves(exam.targets)
    ndim = 2 if leaves and np.ndim(leaves[0]) == 2 and size.ndim == 3 else 1
    return size.reshape(*size.shape[:ndim], -1).sum(-1)


def token_use(exam: Exam) -> Iterator[Finding]:
    """Find an embedding of which half is never looked up, or one row nearly always."""
    for index, layer in enumerate(exam.graph.layers):
        if layer.kind != "embedding":
            continue
        program = exam.graph.program
        step, table = program.steps[layer.step], layer.leaf.take(jax.tree.leaves(exam.params))
        numbers = [n for n in step.inputs if program.values[n].depends & Dependence.INPUTS]
        (value,) = exam.look(numbers)
        tokens = np.asarray(value)
        if np.issubdtype(tokens.dtype, np.integer) and table.ndim == 2:
            yield from _judge_use(
                index, tokens.reshape(len(jax.tree.leaves(exam.inputs)[0]), -1), len(table)
            )


def _judge_use(index: int, tokens: np.ndarray, size: int) -> Iterator[Finding]:
    inside = tokens[(tokens >= 0) & (tokens < size)]
    if inside.size < tokens.size:
        text = (
            f"{tokens.size - inside.size} of {tokens.size} tokens lie outside the table of {size}"
            f" rows (from {tokens.min()} to {tokens.max()})"
        )
        yield Finding(index, text, CERTAIN)
        return
    counts = np.bincount(_without_padding(tokens), minlength=size)
    used = np.bincount(inside.reshape(-1), minlength=size) > 0
    total, unused = int(counts.sum()), int((~used).sum())
    most = int(np.argmax(counts))
    if total and counts[most] > _MOST_USED * total and size > 4:
        text = (
            f"token {most} is {counts[most] / total:.0%} of {total} look-ups, and there are"
            f" {size} rows: nearly every place says the same"
        )
        yield Finding(index, text, STRUCTURAL * 2)
    elif total >= _ENOUGH_LOOK_UPS * size and unused >= _MOST_UNUSED * size:
        listed = ", ".join(map(str, np.flatnonzero(~used)[:5]))
        text = (
            f"{unused} of the {size} rows of the table are never looked up in {total} look-ups"
            f" ({listed}, ...): they stay as they were drawn"
        )
        yield Finding(index, text, STRUCTURAL)


def _without_padding(tokens: np.ndarray) -> np.ndarray:
    """All tokens but those that repeat the last one at the end of a row of many kinds."""
    ends = np.cumprod((tokens == tokens[:, -1:])[:, ::-1], axis=1)[:, ::-1].astype(bool)
    whole = ends.all(1, keepdims=True)
    ends[:, :] &= ~whole & (ends.sum(1, keepdims=True) > 1)
    return tokens[~ends]


def _normalised_inside(exam: Exam) -> bool:
    """Tell whether a norm stands between the inputs and the first layer."""
    ways = [edge.kinds for edge in exam.graph.edges if edge.below is None]
    return bool(ways) and all("norm" in kinds for kinds in ways)


def _float_inputs(inputs: Any) -> Iterator[np.ndarray]:
    """Finite arrays of floats with a feature axis, in float64."""
    for leaf in jax.tree.leaves(inputs):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1:
            array = np.asarray(leaf, np.float64)
            if np.isfinite(array).all():
                yield array


def _by_feature(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _feature_word(array: np.ndarray) -> str:
    return "channel" if array.ndim == 4 else "feature"
