"""What a loss asks for: its best constant answer, the best answers of all, and what it takes.

A network has learnt something when its answers beat the best one that does not look at the inputs.
That answer is found by the loss itself, for any loss: numbers are fitted in place of what the last
layer gives, one for all examples, and go through what the network does after its last layer, so
that probabilities stay probabilities. Fitted for each example by itself they tell how far the loss
can come down at all, and without the last activation, how far if that did not stand in the way:

    constant >= reachable >= floor
    share learnt = (constant - loss) / (constant - floor)

What a loss takes is asked of the loss as well, not of its name: one that does not change when all
outputs rise together takes a softmax of them itself; one that does not change with their scale
divides by their sum; one that is flat or not a number outside (0, 1) takes probabilities.

A loss without targets may fall without end for one answer to all, such as the likelihood of a
normalising flow, which would have no volume then. No network gives that answer, so that such a loss
is compared with what it is at the start.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.model import Loss
from jaxdnn.diagnosis.replay import compile_quickly

# Steps of a fit, and its rates in units of the answers' scale.
_NUM_STEPS = 300
_RATES = (0.5, 0.05)
# Adam's means. Gradients shrink by orders of magnitude on the way: the first ones are forgotten.
_KEPT, _MEMORY, _TINY = 0.9, 0.9, 1e-150
# Points that are asked for in one call, and the most numbers in those of a fit.
_AT_ONCE, _MOST_NUMBERS = 10, 4_000_000
# Of the loss at which two count as equal.
_EQUAL = 1e-4
# Factors on a constant answer that show a loss without a lower bound.
_GROWING = (1e2, 1e4, 1e6)
# Sizes of the loss at the start that no answer is better by.
_ENDLESS = 10.0
# Slopes that add up to less, of their sizes, cancel.
_CANCELS = 1e-3
# A slope that counts as none, of the loss where that is below 1.
_FLAT = 1e-12


class Answers(NamedTuple):
    """How low a loss can come.

    Attributes:
      constant: with the same answer for every example.
      reachable: with any answers that the network's last activation can give.
      floor: with any numbers.
      from_start: whether they are counted from the loss at the start, for want of a constant.
    """

    constant: float
    reachable: float
    floor: float
    from_start: bool = False

    def or_from(self, start: float) -> Answers:
        """Return what a loss without targets is compared with, given its value at the start."""
        size = max(abs(start), 1.0)
        if not math.isfinite(start) or self.constant > start - _ENDLESS * size:
            return self
        return Answers(start, start - size, start - size, from_start=True)

    @property
    def to_learn(self) -> float:
        """What telling the inputs apart can gain; at most the size of the loss, or 1."""
        lowest = self.constant - max(abs(self.constant), 1.0)
        return self.constant - max(self.floor, lowest)

    @property
    def reach(self) -> float:
        """Share in [0, 1] of what there is to gain that the last activation lets through."""
        whole = self.constant - self.floor
        if not whole > _EQUAL * abs(self.constant):
            return 1.0
        return max(self.constant - self.reachable, 0.0) / whole


@dataclasses.dataclass(frozen=True)
class LossTraits:
    """What a loss does with what it is given, as asked of the loss itself.

    Attributes:
      independent: it does not change whatever the outputs are.
      unbounded: one answer for all, made greater and greater, lowers it without end.
      probabilities: flat, or not a number, where outputs lie outside (0, 1).
      normalises: divides by the sum of the outputs; their scale does not matter.
      softmax: takes a softmax itself; the outputs' level does not matter.
      symmetric: the same if the output columns are exchanged, for more than one.
      mixes: what is asked of one example depends on the targets of others.
      summed: a sum over the examples rather than a mean.
      blind: examples whose outputs do not count at all, by row.
    """

    independent: bool = False
    unbounded: bool = False
    probabilities: bool = False
    normalises: bool = False
    softmax: bool = False
    symmetric: bool = False
    mixes: bool = False
    summed: bool = False
    blind: tuple[int, ...] = ()


class LossProbe:
    """A loss with its targets, ready to be asked for values and slopes at many outputs at once.

    Compiled once for each shape: what is asked of a loss costs far more to compile than to answer.
    """

    def __init__(self, loss: Loss, targets: Any, dtype: Any) -> None:
        """Bind a loss to its targets.

        Args:
          loss: `(outputs, targets) -> scalar`.
          targets: what the loss takes besides the outputs.
          dtype: of the outputs.
        """
        self.loss, self.targets, self.dtype = loss, targets, dtype
        self._direct = self._compiled(None)

    def _compiled(self, tail: Callable[[Array], Array] | None) -> Callable[..., Any]:
        def value(x: Array, targets: Any) -> Array:
            x = x.astype(self.dtype)
            return self.loss(x if tail is None else tail(x), targets)

        slopes = jax.vmap(jax.value_and_grad(value), in_axes=(0, None))
        return compile_quickly(slopes)

    def widened(self) -> LossProbe:
        """Return the same in single precision, where it is not already."""
        if jnp.finfo(self.dtype).bits >= jnp.finfo(jnp.float32).bits:
            return self
        return LossProbe(self.loss, self.targets, jnp.float32)

    def through(self, tail: Callable[[Array], Array] | None) -> Slopes:
        """Return what asks for the loss of `tail(points)`; of the points themselves for None."""
        return functools.partial(self._ask, self._compiled(tail) if tail else self._direct)

    def at(self, points: np.ndarray, targets: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (values, slopes) at outputs, (point, ...), for its own targets or others."""
        return self._ask(self._direct, points, targets)

    def _ask(
        self, slopes: Callable[..., Any], points: np.ndarray, targets: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        points = np.asarray(points, np.float32)
        num, targets = len(points), self.targets if targets is None else targets
        # As many in each call, so that one program answers all.
        most = max(1, min(_AT_ONCE, _MOST_NUMBERS // max(1, points[0].size)))
        found = []
        for first in range(0, num, most):
            part = points[first : first + most]
            filled = np.concatenate([part, np.broadcast_to(part[:1], (most, *part.shape[1:]))])
            found.append(jax.device_get(slopes(filled[:most], targets)))
        values, grads = zip(*found, strict=True)
        values, grads = np.concatenate(values)[:num], np.concatenate(grads)[:num]
        return np.asarray(values, np.float64), np.asarray(grads, np.float64)


Slopes = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def best_answers(
    probe: LossProbe,
    z: Array,
    outputs: Array,
    tail: Callable[[Array], Array] | None,
    tied: np.ndarray | None = None,
) -> Answers:
    """Fit answers by the loss.

    Args:
      probe: the loss with its targets.
      z: pre-activations of the last layer at the start, (batch, ...); the outputs without a tail.
      outputs: what the network gives at the start, (batch, ...).
      tail: what the network makes of z, elementwise or by example; None for nothing.
      tied: for each column of the outputs the number of its kind, (column,): a constant answer is
        the same in all columns of one kind; None where each is its own.
    """
    start, given = np.asarray(z, np.float64), np.asarray(outputs, np.float64)
    scale = _scale(start, probe.targets)
    flat = (1,) * (start.ndim - 1) + start.shape[-1:] if start.ndim > 1 else (1,)
    mean = start.mean(tuple(range(start.ndim - 1)) if start.ndim > 1 else 0).reshape(flat)
    wanted = _as_answers(probe.targets, given.shape)
    one = [mean, *(np.full(flat, x) for x in (0.0, 0.5, scale, -scale))]
    every = [start, *(np.full(start.shape, x) for x in (0.0, 0.5, scale))]
    if wanted is not None and wanted.shape == start.shape:
        every.append(wanted)
    slopes = probe.through(tail)
    constant = _fit(slopes, one, start.shape, scale, tied if tail is None else None)
    lower = [_fit(slopes, every, start.shape, scale)]
    if tail is not None:
        free = [given, np.full(given.shape, 0.5), *([] if wanted is None else [wanted])]
        lower.append(_fit(probe.through(None), free, given.shape, _scale(given, probe.targets)))
    reachable = min(lower[0], constant)
    return Answers(constant, reachable, min([reachable, *lower[1:]]))


def _as_answers(targets: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The targets themselves as answers, where they are numbers of the outputs' shape."""
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.floating):
        return None
    if targets.size != math.prod(shape):
        return None
    return np.asarray(targets, np.float64).reshape(shape)


def _scale(z: np.ndarray, targets: Any) -> float:
    """The size of the greatest of 1, the pre-activations and numeric targets."""
    sizes = [1.0, _rms(z)]
    if hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.floating):
        sizes.append(_rms(targets))
    return max(size for size in sizes if math.isfinite(size))


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _pool(tied: np.ndarray) -> np.ndarray:
    """The matrix that puts the mean of each kind in the place of its entries."""
    same = (tied[:, None] == tied).astype(np.float64)
    return same / same.sum(0)


@np.errstate(all="ignore")
def _fit(
    slopes: Slopes,
    starts: list[np.ndarray],
    shape: tuple[int, ...],
    scale: float,
    tied: np.ndarray | None = None,
) -> float:
    """The least finite loss on the ways of Adam from several starts at several rates.

    Args:
      slopes: the loss and its slopes at points, (point, *shape).
      starts: each of the points' shape, or of one that is broadcast to it: the same for all.
      shape: of a point.
      scale: the size of the answers.
      tied: number of the kind of each entry of the last axis; those of one kind stay the same.
    """
    pool = None if tied is None else _pool(tied)
    sizes = sorted({rate * size for rate in _RATES for size in (1.0, scale)})
    x = np.concatenate([np.stack(starts)] * len(sizes))
    rates = np.repeat(sizes, len(starts)).reshape(-1, *[1] * len(shape))
    thinned = slice(None, None, max(1, math.ceil(len(x) * math.prod(shape) / _MOST_NUMBERS)))
    x, rates = x[thinned], rates[thinned]
    x = x if pool is None else x @ pool
    shared = tuple(axis + 1 for axis, n in enumerate(shape) if x.shape[axis + 1] != n)
    first, second, least = np.zeros_like(x), np.zeros_like(x), math.inf
    for index in range(_NUM_STEPS + 1):
        values, grads = slopes(np.broadcast_to(x, (len(x), *shape)))
        least = min(least, float(np.min(values, where=np.isfinite(values), initial=math.inf)))
        grads = np.nan_to_num(grads.sum(shared, keepdims=True), posinf=0.0, neginf=0.0)
        grads = grads if pool is None else grads @ pool
        first = _KEPT * first + (1 - _KEPT) * grads
        second = _MEMORY * second + (1 - _MEMORY) * grads**2
        way = first / (1 - _KEPT ** (index + 1))
        size = np.sqrt(second / (1 - _MEMORY ** (index + 1)))
        shrink = 0.5 * (1 + math.cos(math.pi * index / _NUM_STEPS))
        x = x - rates * shrink * way / (size + _TINY)
    return least


def loss_traits(probe: LossProbe, outputs: Array) -> LossTraits:
    """Ask a loss what it takes.

    Args:
      probe: the loss with its targets.
      outputs: what the network gives, (batch, ...).
    """
    said = _ask(probe, np.asarray(outputs, np.float64))
    several = outputs.ndim > 1 and outputs.shape[-1] > 1
    at = float(said["at"])
    inside, slope = (np.asarray(said[name], np.float64) for name in ("point", "inside"))
    rolled = np.roll(np.asarray(said["rolled"], np.float64), -1, axis=-1)
    shifts, stretches = not _sums(slope), not _sums(slope * inside)
    # A loss that is small as a whole is no flat one.
    flat = _FLAT * min(1.0, _most(said["values"]))
    independent = max(map(_most, said["slopes"])) <= flat
    outside = max(_most(said["below"]), _most(said["above"])) <= flat < _most(said["inside"])
    probabilities = outside or (several and _needs_positive(said))
    return LossTraits(
        independent=independent,
        unbounded=any(_falls(values) for values in said["growing"]),
        probabilities=probabilities and not independent,
        normalises=several and stretches and not shifts and not independent,
        softmax=several and shifts and not independent,
        symmetric=several and _most(rolled - slope) <= _EQUAL * _most(slope) and not independent,
        mixes=_mixes(said),
        summed=at != 0 and _same(2 * at, float(said.get("twice", at))),
        blind=() if independent else _blind(said, flat),
    )


def _ask(probe: LossProbe, outputs: np.ndarray) -> dict[str, Any]:
    """Put outputs of several kinds before a loss."""
    shape, random = outputs.shape, np.random.default_rng(0)
    inside = random.uniform(0.1, 0.9, shape)
    signs = random.choice([-1.0, 1.0], shape)
    middle = np.full(shape, 0.5)
    points = [
        outputs, inside, random.standard_normal(shape), signs * inside,
        -inside, 1 + inside, np.roll(inside, 1, axis=-1), middle,
    ]  # fmt: skip
    values, slopes = probe.at(np.stack(points))
    own, at, normal, signed, below, above, rolled, steady = slopes
    way = np.nan_to_num(steady).sum(tuple(range(len(shape) - 1)), keepdims=True)
    way = way / max(float(np.abs(way).max()), 1e-30)
    far = [middle - sign * x * way for sign in (-1.0, 1.0) for x in _GROWING]
    # A narrow format would end before what grows does.
    wide = probe.widened()
    said = {
        "values": values[:6], "at": values[1], "point": inside, "rolled": rolled,
        "slopes": [own, at, normal], "inside": at, "below": below, "above": above,
        "signs": signs, "signed": signed, "growing": wide.at(np.stack(far))[0].reshape(2, -1),
    }  # fmt: skip
    twice = jax.tree.map(lambda x: np.concatenate([x, x]) if np.ndim(x) else x, probe.targets)
    if all(np.ndim(x) for x in jax.tree.leaves(probe.targets)):
        doubled = np.concatenate([inside, inside]).astype(probe.dtype)
        if _takes(probe.loss, doubled, twice):
            said["twice"] = compile_quickly(probe.loss)(doubled, twice)
    leaves, structure = jax.tree.flatten(probe.targets)
    if len(leaves) == 1 and np.shape(leaves[0])[:1] == shape[:1]:
        changed = np.array(leaves[0])
        unlike = np.flatnonzero((changed != changed[:1]).reshape(len(changed), -1).any(1))
        if len(unlike):
            changed[0] = changed[unlike[0]]
            other = jax.tree.unflatten(structure, [changed])
            said["changed"] = probe.at(inside[None], other)[1][0]
    return said


def _takes(loss: Loss, outputs: Any, targets: Any) -> bool:
    """Tell whether a loss takes a batch of this size."""
    try:
        jax.eval_shape(loss, outputs, targets)
    except (TypeError, ValueError):
        return False
    return True


def _most(slope: Any) -> float:
    return float(np.abs(np.nan_to_num(np.asarray(slope, np.float64))).max(initial=0.0))


def _sums(slope: np.ndarray) -> bool:
    """Tell whether the slopes of an example's outputs add up to more than rounding."""
    slope = np.nan_to_num(slope)
    return bool(np.abs(slope.sum(-1)).sum() > _CANCELS * np.abs(slope).sum())


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= _EQUAL * max(abs(a), abs(b))


def _blind(said: dict[str, Any], flat: float) -> tuple[int, ...]:
    """Return the rows in which no output changes the loss."""
    slopes = [np.abs(np.asarray(x, np.float64)) for x in (*said["slopes"], said["signed"])]
    moves = np.array([x.reshape(len(x), -1).max(1) for x in slopes]).max(0)
    return tuple(int(row) for row in np.flatnonzero(moves <= flat))


def _falls(values: Any) -> bool:
    """Tell whether answers that grow lower a loss without end."""
    numbers = [float(x) for x in values]
    falls = all(b < a for a, b in itertools.pairwise(numbers))
    return falls and all(map(math.isfinite, numbers)) and numbers[-1] < -1e3


def _needs_positive(said: dict[str, Any]) -> bool:
    """Tell whether negative outputs make a loss flat or not a number, and positive ones do not."""
    slope, at = (np.asarray(said[name], np.float64) for name in ("signed", "inside"))
    negative = np.asarray(said["signs"]) < 0
    dead = (slope == 0) | ~np.isfinite(slope)
    alive = np.abs(np.nan_to_num(at)) > 0
    asked, others = negative & alive, ~negative & alive
    return bool(asked.any() and dead[asked].mean() > 0.9 and not dead[others].all())


def _mixes(said: dict[str, Any]) -> bool:
    """Tell whether another target changes what is asked of examples that are not its own."""
    if "changed" not in said:
        return False
    before, after = (np.asarray(said[name], np.float64)[1:] for name in ("inside", "changed"))
    size = np.abs(before).max(initial=0.0)
    return bool(size > 0 and np.abs(after - before).max(initial=0.0) > 1e-3 * size)
