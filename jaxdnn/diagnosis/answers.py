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
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn.diagnosis.model import Loss

# What runs once is compiled without optimisation, which takes half the time.
_QUICK = {"xla_backend_optimization_level": 0}
# Steps of a fit, and its rates in units of the answers' scale.
_NUM_STEPS = 300
_RATES = (0.5, 0.05)
# Gradients shrink by orders of magnitude on the way; the optimizer has to forget the first ones.
_MEMORY = 0.9
# Of the loss at which two count as equal.
_EQUAL = 1e-4
# Factors on a constant answer that show a loss without a lower bound.
_GROWING = (1e2, 1e4, 1e6)
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
    """

    constant: float
    reachable: float
    floor: float

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


def best_answers(
    loss: Loss,
    targets: Any,
    z: Array,
    outputs: Array,
    tail: Callable[[Array], Array] | None,
) -> Answers:
    """Fit answers by the loss.

    Args:
      loss: `(outputs, targets) -> scalar`.
      targets: what the loss takes besides the outputs.
      z: pre-activations of the last layer at the start, (batch, ...); the outputs without a tail.
      outputs: what the network gives at the start, (batch, ...).
      tail: what the network makes of z, elementwise or by example; None for nothing.
    """
    scale = _scale(z, targets)
    through = tail or (lambda x: x)
    flat = (1,) * (z.ndim - 1) + z.shape[-1:] if z.ndim > 1 else (1,)
    mean = z.astype(jnp.float32).mean(tuple(range(z.ndim - 1)) if z.ndim > 1 else 0).reshape(flat)
    wanted = _as_answers(targets, outputs.shape)
    starts = [mean, *(jnp.full(flat, x) for x in (0.0, 0.5, scale, -scale))]
    every = [z.astype(jnp.float32), *(jnp.full(z.shape, x) for x in (0.0, 0.5, scale))]
    if wanted is not None and wanted.shape == z.shape:
        every.append(wanted)
    free = [outputs.astype(jnp.float32), jnp.full(outputs.shape, 0.5)]
    if wanted is not None:
        free.append(wanted)

    def same(c: Array) -> Array:
        return loss(through(jnp.broadcast_to(c, z.shape).astype(z.dtype)), targets)

    def each(x: Array) -> Array:
        return loss(through(x.astype(z.dtype)), targets)

    def any_number(x: Array) -> Array:
        return loss(x.astype(outputs.dtype), targets)

    fits = [(same, starts, scale), (each, every, scale)]
    if tail is not None:
        fits.append((any_number, free, _scale(outputs, targets)))
    # Compiling takes most of the time, and goes side by side.
    with ThreadPoolExecutor(len(fits)) as pool:
        found = list(pool.map(lambda fit: _fit(fit[0], jnp.stack(fit[1]), fit[2]), fits))
    constant, *lower = found
    reachable = min(lower[0], constant)
    return Answers(constant, reachable, min([reachable, *lower[1:]]))


def _as_answers(targets: Any, shape: tuple[int, ...]) -> Array | None:
    """The targets themselves as answers, where they are numbers of the outputs' shape."""
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.floating):
        return None
    if targets.size != math.prod(shape):
        return None
    return jnp.asarray(targets, jnp.float32).reshape(shape)


def _scale(z: Array, targets: Any) -> float:
    """The size of the greatest of 1, the pre-activations and numeric targets."""
    sizes = [1.0, _rms(z)]
    if hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.floating):
        sizes.append(_rms(targets))
    return max(size for size in sizes if math.isfinite(size))


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _fit(objective: Callable[[Array], Array], starts: Array, scale: float) -> float:
    """The least finite value on the ways of Adam from several starts at several rates."""
    sizes = sorted({rate * size for rate in _RATES for size in (1.0, scale)})
    rates = jnp.repeat(jnp.array(sizes), len(starts))
    begin = jnp.concatenate([starts] * len(sizes))

    @functools.partial(jax.jit, compiler_options=_QUICK)
    @jax.vmap
    def descend(x: Array, rate: Array) -> Array:
        adam = optax.scale_by_adam(b2=_MEMORY, eps=1e-30)

        def step(carry: Any, index: Array) -> Any:
            x, state, least = carry
            value, grad = jax.value_and_grad(objective)(x)
            grad = jnp.nan_to_num(grad, posinf=0.0, neginf=0.0)
            update, state = adam.update(grad, state)
            moved: Any = update
            least = jnp.where(jnp.isfinite(value), jnp.minimum(value, least), least)
            shrink = 0.5 * (1 + jnp.cos(jnp.pi * index / _NUM_STEPS))
            return (x - rate * shrink * moved, state, least), None

        (x, _, least), _ = jax.lax.scan(
            step, (x, adam.init(x), jnp.float32(jnp.inf)), jnp.arange(_NUM_STEPS)
        )
        last = objective(x)
        return jnp.where(jnp.isfinite(last), jnp.minimum(last, least), least)

    return float(np.min(jax.device_get(descend(begin, rates))))


def loss_traits(loss: Loss, targets: Any, outputs: Array) -> LossTraits:
    """Ask a loss what it takes.

    Args:
      loss: `(outputs, targets) -> scalar`.
      targets: what it takes besides the outputs.
      outputs: what the network gives, (batch, ...).
    """
    said = jax.device_get(_ask(loss, targets, outputs))
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


def _ask(loss: Loss, targets: Any, outputs: Array) -> dict[str, Any]:
    """Put outputs of several kinds before a loss, in one program."""
    shape, dtype = outputs.shape, outputs.dtype
    arrays, structure = jax.tree.flatten(targets)
    other = None
    if len(arrays) == 1 and np.shape(arrays[0])[:1] == shape[:1]:
        own = np.asarray(arrays[0])
        unlike = np.flatnonzero((own != own[:1]).reshape(len(own), -1).any(1))
        other = int(unlike[0]) if len(unlike) else None

    @functools.partial(jax.jit, compiler_options=_QUICK)
    def ask(outputs: Array, targets: Any, key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        inside = jax.random.uniform(keys[0], shape, jnp.float32, 0.1, 0.9)
        normal = jax.random.normal(keys[1], shape)
        signs = jnp.where(jax.random.bernoulli(keys[2], shape=shape), 1.0, -1.0)
        points = [
            outputs,
            inside,
            normal,
            signs * inside,
            *(jnp.full(shape, x) for x in (-0.5, 1.5)),
        ]
        value_and_grad = jax.vmap(jax.value_and_grad(loss), in_axes=(0, None))
        values, slopes = value_and_grad(jnp.stack([p.astype(dtype) for p in points]), targets)
        own, at, random, signed, below, above = slopes
        rolled = jax.grad(loss)(jnp.roll(inside, 1, axis=-1).astype(dtype), targets)
        # A narrow format would end before what grows does.
        middle = jnp.full((1, *shape[1:]), 0.5, jnp.promote_types(dtype, jnp.float32))
        slope = jax.grad(lambda c: loss(jnp.broadcast_to(c, shape), targets))(middle)
        way = jnp.nan_to_num(slope)
        way = way / jnp.maximum(jnp.abs(way).max(), 1e-30)
        growing = [
            jnp.stack(
                [loss(jnp.broadcast_to(middle - sign * x * way, shape), targets) for x in _GROWING]
            )
            for sign in (-1.0, 1.0)
        ]
        said = {
            "values": values,
            "at": values[1],
            "point": inside,
            "rolled": rolled,
            "slopes": [own, at, random], "inside": at, "below": below, "above": above,
            "signs": signs, "signed": signed, "growing": growing,
        }  # fmt: skip
        given = inside.astype(dtype), targets
        if all(jnp.ndim(x) for x in jax.tree.leaves(given)):
            twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), given)
            if _takes(loss, *twice):
                said["twice"] = loss(*twice)
        if other is not None:
            (array,) = jax.tree.leaves(targets)
            changed = jax.tree.unflatten(structure, [jnp.asarray(array).at[0].set(array[other])])
            said["changed"] = jax.grad(loss)(inside.astype(dtype), changed)
        return said

    return ask(outputs, targets, jax.random.key(0))


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
