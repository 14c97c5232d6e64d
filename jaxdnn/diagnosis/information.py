"""Finders of targets that the inputs tell nothing of: in another order, at random, or renamed.

Rows are asked by probes that never see the row that they answer. A probe is a linear smoother S
with a zero diagonal, S Y being what the other rows' targets Y say of each row: ridge regression on
the principal components of the inputs and of what the network's layers make of them, in the
leave-one-out form

    (S Y)_i = ((H Y)_i - H_ii Y_i) / (1 - H_ii),   H = X (X'X + c I)^-1 X'

and the mean of the nearest neighbours. A probe's statistic is the cosine of S Y and Y, and the
level is a permutation's: the share of random orders of the rows of Y in which the best probe does
as well. The same is asked of targets shifted by a row or two. A network that knows its task
already is asked itself: its loss with shifted targets, and which label it gives instead of which.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdnn.diagnosis.findings import BLOCKING, CERTAIN, Finding
from jaxdnn.diagnosis.hidden_causes import Reading, is_trained, take_rows, takes_rows
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.replay import compile_quickly
from jaxdnn.diagnosis.setups import Fix, FixKind

# Fewer rows cannot tell.
_FEWEST_ROWS, _MOST_ROWS = 48, 512
# Entries of outputs in all random orders, and orders at least.
_LOSS_WORK, _FEWEST_ORDERS = 2e8, 19
# Fewer cannot tell that there is nothing.
_FEWEST_FOR_NOTHING = 200
_ORDERS, _SHIFTS = 99, (1, -1, 2, -2)
_COMPONENTS, _NEIGHBOURS = 96, 7
_RIDGES = (0.03, 1.0)
# Standard deviations of the random orders' statistic.
_TELLS, _SURE = 4.0, 6.0
_CHANCE = 0.05
# Of a network's own training on half of the rows.
_STEPS, _RATE, _STEP_WORK = 200, 5e-3, 3e8
# Standard deviations of the loss in random orders.
_BY_HEART = 8.0


class _Level(NamedTuple):
    """What probes say of some targets.

    Attributes:
      cosine: of the best probe's answers and the targets, in [-1, 1].
      deviations: above the mean of random orders, in their standard deviations.
      p: share of random orders, this one counted, that do as well.
    """

    cosine: float
    deviations: float
    p: float


class Probes:
    """Smoothers of some rows, and what they say of targets in any order."""

    def __init__(self, features: Sequence[np.ndarray], targets: np.ndarray) -> None:
        """Take in features and targets.

        Args:
          features: sets of them, each (row, feature), of the same rows; finite.
          targets: (row, column), of any mean.
        """
        self._smoothers = [
            smoother
            for each in map(_components, features)
            if each.shape[1]
            for smoother in (*_ridges(each), _nearest(each))
        ]
        self.targets = (targets - targets.mean(0)).astype(np.float32)
        rng = np.random.default_rng(0)
        orders = np.array([rng.permutation(len(targets)) for _ in range(_ORDERS)])
        self._drawn = self._best(self.targets[orders].swapaxes(0, 1))

    def answers(self) -> np.ndarray:
        """Return what the best probe says of each row, (row, column)."""
        said = (smoother @ self.targets for smoother in self._smoothers)
        return max(said, key=lambda each: float(_cosine(each, self.targets, (0, 1))))

    def level(self, shift: int = 0) -> _Level:
        """Compare the targets, each given to the row `shift` rows up, with random orders."""
        moved = np.roll(self.targets, -shift, 0)
        best, drawn = float(self._best(moved[:, None])[0]), self._drawn
        p = (1 + np.sum(drawn >= best)) / (1 + len(drawn))
        return _Level(best, float((best - drawn.mean()) / (drawn.std() + 1e-9)), float(p))

    def _best(self, targets: np.ndarray) -> np.ndarray:
        """The best probe's cosine for each order of targets, (row, order, column)."""
        flat = targets.reshape(len(targets), -1)
        return np.max(
            [_cosine((s @ flat).reshape(targets.shape), targets, (0, 2)) for s in self._smoothers],
            axis=0,
        )


def _cosine(a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    lengths = np.sqrt(np.sum(a * a, axis=axes) * np.sum(b * b, axis=axes))
    return np.sum(a * b, axis=axes) / (lengths + 1e-12)


def _components(features: np.ndarray) -> np.ndarray:
    """Principal components of standardised features, at most a quarter as many as rows."""
    x = np.asarray(features, np.float64)
    spread = x.std(0)
    varies = spread > 1e-6 * (np.abs(x).max(0, initial=0) + 1e-30)
    x = np.clip((x[:, varies] - x[:, varies].mean(0)) / spread[varies], -6, 6)
    x = (x - x.mean(0)).astype(np.float32)
    most = min(_COMPONENTS, len(x) // 4)
    if x.shape[1] <= most:
        return x
    values, vectors = np.linalg.eigh(x @ x.T)
    return vectors[:, -most:] * np.sqrt(np.maximum(values[-most:], 0))


def _ridges(x: np.ndarray) -> Iterator[np.ndarray]:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    for strength in _RIDGES:
        hat = (u * (s**2 / (s**2 + strength * np.mean(s**2) + 1e-9))) @ u.T
        smoother = hat / (1 - np.minimum(np.diag(hat), 0.999))[:, None]
        np.fill_diagonal(smoother, 0)
        yield smoother.astype(np.float32)


def _nearest(x: np.ndarray) -> np.ndarray:
    lengths = np.sum(x**2, axis=1)
    distance = lengths[:, None] + lengths - 2 * x @ x.T
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    smoother = np.zeros_like(distance, dtype=np.float32)
    np.put_along_axis(smoother, near, 1 / _NEIGHBOURS, axis=1)
    return smoother


class Question(NamedTuple):
    """Rows as probes take them.

    Attributes:
      probes: of all rows.
      features: what the probes see, sets of (row, feature).
      classes: (row,) class of each row; None where the targets are numbers.
    """

    probes: Probes
    features: tuple[np.ndarray, ...]
    classes: np.ndarray | None


# Several finders ask the same.
@functools.lru_cache(maxsize=1)
def ask(exam: Exam) -> Question | None:
    """Return what inputs tell of targets; None where rows are too few or of an unknown form."""
    inputs = [np.asarray(leaf) for leaf in jax.tree.leaves(exam.inputs)]
    columns, rows = _columns(exam.targets, len(inputs[0])), slice(0, _MOST_ROWS)
    if len(inputs[0]) < _FEWEST_ROWS or columns is None or not exam.measured.finite:
        return None
    targets, classes = columns[0][rows], None if columns[1] is None else columns[1][rows]
    if not np.any(targets - targets[0]):
        return None
    outside = np.concatenate([_features(array[rows]) for array in inputs], axis=1)
    features = (outside, _inside(exam, rows))
    if not any(np.any(each - each[:1]) for each in features):
        return None
    return Question(Probes(features, targets), features, classes)


def _columns(targets: Any, count: int) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Targets as columns, and the classes where they are such."""
    leaves = jax.tree.leaves(targets)
    if len(leaves) != 1 or np.ndim(leaves[0]) == 0 or len(leaves[0]) != count:
        return None
    array = np.asarray(leaves[0])
    flat = array.reshape(count, -1)
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        if flat.shape[1] == 1:
            names, classes = np.unique(flat, return_inverse=True)
            known = len(names) <= max(2, count // 4)
            return (np.eye(len(names))[classes.ravel()], flat[:, 0]) if known else None
        return _counts(flat.astype(np.int64)), None
    flat = flat.astype(np.float64)
    if not np.isfinite(flat).all():
        return None
    spread = flat.std(0)
    flat = (flat - flat.mean(0)) / np.where(spread > 0, spread, 1)
    return (flat if flat.shape[1] <= 32 else _components(flat)[:, -32:]), None


def _features(array: np.ndarray) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer):
        return _counts(array.reshape(len(array), -1).astype(np.int64))
    return array.reshape(len(array), -1).astype(np.float32)


def _counts(tokens: np.ndarray) -> np.ndarray:
    """How often each token occurs in each row; the commonest 512."""
    names, index = np.unique(tokens, return_inverse=True)
    table = np.zeros((len(tokens), len(names)), np.float32)
    np.add.at(table, (np.arange(len(tokens))[:, None], index.reshape(tokens.shape)), 1)
    common = np.argsort(-table.sum(0), kind="stable")[:512]
    return table[:, np.sort(common)]


def _inside(exam: Exam, rows: slice) -> np.ndarray:
    """What the layers make of each row: means over places, of layers that keep rows apart."""
    arrays = exam.run_pass(exam.params, exam.inputs, exam.targets, exam.key).pre_activations
    count = len(jax.tree.leaves(exam.inputs)[0])
    found = []
    for z in arrays:
        if z.ndim > 1 and z.shape[0] == count:
            x = np.asarray(z[rows], np.float32)
            found.append(x.reshape(len(x), -1, x.shape[-1]).mean(1))
    return np.nan_to_num(np.concatenate(found, axis=1)) if found else np.zeros((count, 0))


def shifted_targets(exam: Exam) -> Iterator[Finding]:
    """Find targets that belong to the row before or after."""
    found = _find_shift(exam)
    if found is not None:
        yield Finding(None, found.text, BLOCKING + CERTAIN)


def realigned_targets(exam: Exam, layer: int | None) -> Iterator[Fix]:
    """Move the targets to the rows that they belong to."""
    del layer
    found = _find_shift(exam)
    if found is not None:
        yield Fix(
            "realign_targets", f"targets moved by {abs(found.rows)} row against the inputs",
            f"targets = jnp.roll(targets, {-found.rows}, axis=0)", FixKind.DATA, 1,
            targets=lambda t: jax.tree.map(lambda x: jnp.roll(x, -found.rows, axis=0), t),
        )  # fmt: skip


class _Shift(NamedTuple):
    """Targets that belong to other rows.

    Attributes:
      rows: so many rows further down lies a row's own target; negative for further up.
      text: the numbers that say so.
    """

    rows: int
    text: str


def _find_shift(exam: Exam) -> _Shift | None:
    """Ask the network first, then a probe."""
    known = _shift_known(exam)
    question = ask(exam)
    if known is not None or question is None:
        return known
    own = question.probes.level()
    levels = {shift: question.probes.level(shift) for shift in _SHIFTS}
    shift, best = max(levels.items(), key=lambda each: each[1].deviations)
    if best.deviations > _SURE and best.deviations > 2 * max(own.deviations, 0) + _TELLS:
        text = (
            f"the targets belong to other rows: {_shift_words(shift)} fits a row's inputs (cosine"
            f" {best.cosine:.2g} of a held-out probe, {best.deviations:.1f} standard deviations"
            f" above chance, p {_p(best.p)}), its own target does not (cosine {own.cosine:.2g},"
            f" p {_p(own.p)})"
        )
        return _Shift(shift, text)
    return None


def _shift_words(shift: int) -> str:
    rows = "1 row" if abs(shift) == 1 else f"{abs(shift)} rows"
    return f"the target {rows} {'further down' if shift > 0 else 'further up'}"


def _p(p: float) -> str:
    return f"= {p:.2g}" if p > 1 / (1 + _ORDERS) else f"<= {p:.2g}"


def _shift_known(exam: Exam) -> _Shift | None:
    """Ask a network that may know its task: of which row's target is the loss the lowest?"""
    count = len(jax.tree.leaves(exam.inputs)[0])
    if not exam.measured.finite or count < _FEWEST_ROWS // 2:
        return None
    shifts = [np.roll(np.arange(count), -shift) for shift in (0, *_SHIFTS)]
    own, *moved = _levels(exam, exam.outputs, exam.targets, shifts)
    best = int(np.argmin([level.loss for level in moved]))
    loss, level = moved[best].loss, moved[best]
    if level.deviations > _SURE + max(own.deviations, 0) and Reading(loss, own.loss).knowledge:
        text = (
            f"the targets belong to other rows: with {_shift_words(_SHIFTS[best])} the network's"
            f" loss falls from {own.loss:.3g} to {loss:.3g} without any training"
        )
        return _Shift(_SHIFTS[best], text)
    return None


class _LossLevel(NamedTuple):
    """A loss among those of random orders of the targets.

    Attributes:
      loss: of the order that is judged.
      deviations: below the mean of random orders, in their standard deviations.
      p: share of random orders, this one counted, with as low a loss.
    """

    loss: float
    deviations: float
    p: float


def _levels(
    exam: Exam, outputs: Any, targets: Any, chosen: Sequence[np.ndarray]
) -> list[_LossLevel]:
    """Compare the losses of orders of the targets with those of random ones."""

    @compile_quickly
    def losses_of(orders: Any) -> jax.Array:
        return lax.map(lambda order: exam.loss(outputs, take_rows(targets, order)), orders)

    rng = np.random.default_rng(0)
    # Large outputs, such as maps of classes, in fewer orders.
    count = int(np.clip(_LOSS_WORK / outputs.size, _FEWEST_ORDERS, _ORDERS))
    orders = [rng.permutation(len(chosen[0])) for _ in range(count)]
    found = np.asarray(losses_of(np.array([*orders, *chosen])), np.float64)
    drawn, losses = found[:count], found[count:].tolist()
    return [
        _LossLevel(
            loss,
            float((drawn.mean() - loss) / (drawn.std() + 1e-9)),
            float((1 + np.sum(drawn <= loss)) / (1 + len(drawn))),
        )
        for loss in losses
    ]


def random_targets(exam: Exam) -> Iterator[Finding]:
    """Find targets of which the inputs tell nothing, to any probe or to the network itself."""
    question = ask(exam)
    if question is None or len(question.probes.targets) < _FEWEST_FOR_NOTHING:
        return
    own, *others = (question.probes.level(shift) for shift in (0, *_SHIFTS))
    if own.p < _CHANCE or max(level.deviations for level in others) > _SURE:
        return
    trained = _train_on_half(exam)
    if trained is not None and trained.p > _CHANCE:
        text = (
            "the inputs tell nothing of the targets: of rows that it has not seen no probe says"
            f" more than chance (p = {own.p:.2g} in {len(question.probes.targets)} rows,"
            f" against {_ORDERS} random orders of the targets), nor does the network of the half"
            f" that it did not see, when it has learnt the other by heart (p = {trained.p:.2g})"
        )
        yield Finding(None, text, CERTAIN)


def _train_on_half(exam: Exam) -> _LossLevel | None:
    """Train on every other row; say how well the rest is answered.

    Returns:
      None where the training costs too much, or the network does not learn its half by heart, so
      that nothing follows.
    """
    program, count = exam.graph.program, len(jax.tree.leaves(exam.inputs)[0])
    work = sum(math.prod(program.full_shape(each.z)) * each.fan_in for each in exam.graph.layers)
    rows = np.arange(min(count, _MOST_ROWS, int(_STEP_WORK * count / max(work, 1))) // 2 * 2)
    if len(rows) < _FEWEST_FOR_NOTHING or not takes_rows(exam, len(rows) // 2):
        return None
    half, held = (take_rows((exam.inputs, exam.targets), own) for own in (rows[::2], rows[1::2]))
    optimizer = optax.adam(_RATE)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        def objective(params: Any) -> jax.Array:
            return exam.loss(exam.network.apply(params, half[0], exam.key), half[1])

        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, exam.params)
    state = optimizer.init(params)
    for _ in range(_STEPS):
        params, state = step(params, state)
    as_given = [np.arange(len(rows) // 2)]
    (seen,), (unseen,) = (
        _levels(exam, exam.network.apply(params, x, exam.key), y, as_given) for x, y in (half, held)
    )
    return unseen if seen.deviations > _BY_HEART else None


# Rows that a class needs, and shares of the pairs of rows that are told apart.
_ROWS_OF_CLASS, _APART, _TOGETHER, _ERRORS = 24, 0.75, 0.62, 2.0


def mixed_labels(exam: Exam) -> Iterator[Finding]:
    """Find classes whose labels are given at random among them, or exchanged."""
    renamed = _renamed(exam)
    if renamed is not None:
        yield renamed
        return
    question = ask(exam)
    if question is None or question.classes is None:
        return
    names = np.unique(question.classes)
    answers, own = question.probes.answers(), question.classes
    sizes = np.array([np.sum(own == name) for name in names])
    areas = np.full((len(names), len(names)), np.nan)
    for a in range(len(names)):
        for b in range(a):
            if min(sizes[a], sizes[b]) >= _ROWS_OF_CLASS:
                score = answers[:, a] - answers[:, b]
                area = _area(score[own == names[a]], score[own == names[b]])
                areas[a, b] = areas[b, a] = area
    group = _inseparable(areas, sizes)
    if len(group) < 2 or len(group) == len(names):
        return
    outside = areas.copy()
    outside[np.ix_(group, group)] = np.nan
    if not np.nanmin(outside) > _APART:
        return
    level, rows = _within(question, own, names[group])
    if level.p > _CHANCE:
        inside = np.nanmax(areas[np.ix_(group, group)])
        text = (
            f"labels {', '.join(map(str, names[group]))} seem given at random among themselves: a"
            f" held-out probe tells any other two classes apart in {np.nanmin(outside):.0%} of the"
            f" pairs of rows or more, these in at most {inside:.0%} (chance is 50%; p ="
            f" {level.p:.2g} in {rows} rows)"
        )
        yield Finding(None, text, CERTAIN)


def _area(above: np.ndarray, below: np.ndarray) -> float:
    """Share of the pairs in which the first is larger: the area under the ROC curve."""
    return float(np.mean(above[:, None] > below) + np.mean(above[:, None] == below) / 2)


def _inseparable(areas: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The largest group of classes of which no two are told apart, with certainty."""
    error = np.sqrt((sizes[:, None] + sizes + 1) / (12.0 * sizes[:, None] * sizes))
    with np.errstate(invalid="ignore"):
        alike = (areas + _ERRORS * error < _TOGETHER + _ERRORS * 0.03) & (areas < _TOGETHER)
    groups = []
    for start in range(len(sizes)):
        group = [start]
        for other in np.argsort(np.nan_to_num(areas[start], nan=1.0), kind="stable"):
            if other != start and all(alike[other, member] for member in group):
                group.append(int(other))
        groups.append(sorted(group))
    return np.array(max(groups, key=len))


def _within(question: Question, own: np.ndarray, names: np.ndarray) -> tuple[_Level, int]:
    """Ask probes of the rows of some classes alone."""
    rows = np.flatnonzero(np.isin(own, names))
    targets = (own[rows][:, None] == names).astype(np.float32)
    return Probes([each[rows] for each in question.features], targets).level(), len(rows)


# Of the rows, answered right once labels are renamed; rows that a label needs for it.
_RENAMED, _ROWS_TO_RENAME = 0.45, 10


def _favoured(outputs: np.ndarray, own: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The output that is raised the most, in its standard deviations, in rows of each label."""
    spread = outputs.std(0)
    scores = (outputs - outputs.mean(0)) / np.where(spread > 0, spread, 1)
    return np.array([scores[own == label].mean(0).argmax() for label in present], int)


def _in_circles(answer: dict[int, int]) -> list[int]:
    """Labels to which following the answers leads back."""
    found = []
    for label in answer:
        reached = answer[label]
        for _ in answer:
            if reached == label or reached not in answer:
                break
            reached = answer[reached]
        if reached == label:
            found.append(label)
    return found


def _renamed(exam: Exam) -> Finding | None:
    """Ask a network that knows its classes which label it gives instead of which."""
    own = np.asarray(exam.targets) if hasattr(exam.targets, "dtype") else np.zeros(())
    trained = is_trained(exam)
    whole = np.issubdtype(own.dtype, np.integer)
    if not whole or not exam.measured.finite or trained is False or own.size < _FEWEST_ROWS:
        return None
    outputs = np.asarray(exam.outputs, np.float32)
    if outputs.shape[:-1] != own.shape or outputs.shape[-1] < 2:
        return None
    outputs, own = outputs.reshape(-1, outputs.shape[-1]), own.ravel()
    outputs, own = outputs[own >= 0], own[own >= 0]
    if not len(own) or own.max() >= outputs.shape[1]:
        return None
    present = np.flatnonzero(np.bincount(own, minlength=outputs.shape[1]) >= _ROWS_TO_RENAME)
    answer = {
        int(a): int(b) for a, b in zip(present, _favoured(outputs, own, present), strict=True)
    }
    moved = {a: answer[a] for a in _in_circles(answer) if answer[a] != a}
    kept = sum(a == b for a, b in answer.items())
    # Fresh networks tell two clouds apart, too, by either name.
    if len(moved) < 2 or (not trained and kept < 2) or kept + len(moved) < len(answer) / 2:
        return None
    names = np.arange(outputs.shape[1])
    names[list(moved)] = list(moved.values())
    said, rows = outputs.argmax(1), len(own)
    right, renamed = int(np.sum(said == own)), int(np.sum(said == names[own]))
    if (
        renamed - right < 4 * math.sqrt(np.isin(own, list(moved)).sum())
        or renamed < _RENAMED * rows
    ):
        return None
    listed = ", ".join(f"{a} for {b}" for a, b in list(moved.items())[:6])
    text = (
        f"{len(moved)} of the labels are exchanged against those that the network knows (the data"
        f" say {listed}): it answers {right / rows:.0%} of the rows right, and"
        f" {renamed / rows:.0%} once they are renamed"
    )
    return Finding(None, text, BLOCKING + CERTAIN)
