"""A finder of running averages that are not those of the data that the network sees.

A batch norm in evaluation mode subtracts a constant and divides by another, channel by channel. In
the program written out these are a subtraction of what depends on nothing, and a product with what
a root was taken of; so norms of any library are found, and constants that inputs are normalised by.
What the batch shows at the same place is put beside them, in units of the running deviation:

    distance = |mean of the batch - running mean| / running standard deviation
    ratio    = standard deviation of the batch / running standard deviation
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxdnn.diagnosis.findings import STRUCTURAL, Finding
from jaxdnn.diagnosis.hidden_causes import LEAST_MEASURED, read_forward, recovery
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Dependence, Edit, Environment, Step
from jaxdnn.diagnosis.replay import run


class _Average(NamedTuple):
    """Running averages by which a value is normalised.

    Attributes:
      x: number of the value.
      mean: number of what is subtracted from it.
      centred: number of the difference.
      spread: number of the variance or the divisor.
      rooted: whether the spread is a variance, of which the root is taken.
    """

    x: int
    mean: int
    centred: int
    spread: int
    rooted: bool


class _Off(NamedTuple):
    """How far running averages are from what the batch shows.

    Attributes:
      share: of the channels, in [0, 1], that are far off.
      mean: median distance of the means over the channels, in running standard deviations.
      ratio: median of the batch's standard deviation over the running one.
      divergence: median of the Kullback-Leibler divergence between normal distributions of these
        means and standard deviations, in nats.
    """

    share: float
    mean: float
    ratio: float
    divergence: float


# Running standard deviations that lie between the means; factor between the deviations.
_FAR_MEAN, _FAR_RATIO = 1.0, 3.0
_FAR_SHARE = 0.3
# What is added to a variance of 1 is less.
_EPSILON = 0.01
# In nats. A norm that is a little off makes those after it far off: it is named, not they.
_OFF = 0.15


def foreign_averages(exam: Exam) -> Iterator[Finding]:
    """Find the first norm whose running averages are not those of the batch at its input.

    Only a network in evaluation mode uses them.
    """
    averages = _running_averages(exam)
    if not averages or not exam.measured.finite:
        return
    seen = _look(exam, averages)
    if all(_is_fresh(mean, std) for _, mean, std, _ in seen):
        return
    off = [_compare(*each) for each in seen]
    far = sum(each.share > _FAR_SHARE for each in off)
    if not far:
        return
    first = next(
        i for i, each in enumerate(off) if each.share > _FAR_SHARE or each.divergence > _OFF
    )
    worst, layer = off[first], exam.graph.layer_below(averages[first].x)
    name = "the inputs" if layer is None else f"the output of {exam.graph.layers[layer].path}"
    text = (
        f"the norm of {name} uses running averages of other data: the batch's means lie"
        f" {worst.mean:.2g} running standard deviations away, and its standard deviations are"
        f" {worst.ratio:.3g} times the running ones (medians over the channels); far off in"
        f" {far} of {len(averages)} norms"
    )
    edits = {
        each.centred: _renormalise(each, std, axes)
        for each, (_, _, std, axes) in zip(averages, seen, strict=True)
    }
    program = exam.graph.program
    loaded = read_forward(exam, exam.network.apply)
    own = read_forward(exam, lambda *arguments: run(program, arguments, edits)[program.output])
    strength = recovery(loaded, own, LEAST_MEASURED)
    if strength:
        text += f"; with the batch's own the loss falls from {loaded.loss:.3g} to {own.loss:.3g}"
        yield Finding(layer, text, strength)
    elif not loaded.knowledge:
        yield Finding(layer, text, STRUCTURAL * worst.share)


def _running_averages(exam: Exam) -> list[_Average]:
    """Values from which constants by channel are subtracted before a division."""
    values, steps = exam.graph.program.values, exam.graph.program.steps
    producers = {number: step for step in steps for number in step.outputs}
    consumers: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        for number in step.inputs:
            consumers[number].append(step)
    found = []
    for step in steps:
        if step.name != "sub" or len(step.inputs) != 2:
            continue
        (x, mean), (centred,) = step.inputs, step.outputs
        by_channel = not values[mean].depends and math.prod(values[mean].shape) > 1
        if not (by_channel and values[x].depends & Dependence.INPUTS):
            continue
        for later in consumers[centred]:
            factors = [number for number in later.inputs if number != centred]
            if later.name not in ("mul", "div") or len(factors) != 1:
                continue
            variance = _root(exam, factors[0], producers)
            if variance is not None:
                found.append(_Average(x, mean, centred, variance, True))
            elif later.name == "div" and not values[factors[0]].depends:
                found.append(_Average(x, mean, centred, factors[0], False))
    return found


def _root(exam: Exam, number: int, producers: dict[int, Step]) -> int | None:
    """What the square root is taken of on the way to a value that depends on no input."""
    waiting, values = [number], exam.graph.program.values
    while waiting:
        value = waiting.pop()
        if values[value].depends & Dependence.INPUTS or value not in producers:
            continue
        step = producers[value]
        if step.name in ("rsqrt", "sqrt"):
            return step.inputs[0]
        waiting.extend(step.inputs)
    return None


_Seen = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]


def _look(exam: Exam, averages: Sequence[_Average]) -> list[_Seen]:
    """For each norm the value, running mean and standard deviation, and the axes they share."""
    wanted = [number for each in averages for number in (each.x, each.mean, each.spread)]
    looked = [np.asarray(value, np.float64) for value in exam.look(wanted)]
    found = []
    triples = zip(looked[::3], looked[1::3], looked[2::3], strict=True)
    for each, (x, mean, spread) in zip(averages, triples, strict=True):
        mean = np.broadcast_to(mean, x.shape)
        std = np.sqrt(spread) if each.rooted else spread
        axes = tuple(axis for axis in range(x.ndim) if axis == 0 or _is_same(mean, axis))
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        if 1 < std.size != math.prod(shape):
            # Means that are all alike, such as those of a norm that has seen nothing yet.
            sizes = (1,) * (x.ndim - std.ndim) + std.shape
            axes = tuple(axis for axis in range(x.ndim) if axis == 0 or sizes[axis] == 1)
            shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        first = mean[tuple(slice(0, size) for size in shape)]
        wide = np.broadcast_to(std.reshape(shape) if std.size == math.prod(shape) else std, shape)
        found.append((x, first, wide, axes))
    return found


def _is_fresh(mean: np.ndarray, std: np.ndarray) -> bool:
    """Tell averages that have seen no data yet: zeros and ones, but for an epsilon."""
    return not mean.any() and bool(np.abs(std - 1).max() < _EPSILON)


def _is_same(array: np.ndarray, axis: int) -> bool:
    return np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape))


def _compare(x: np.ndarray, mean: np.ndarray, std: np.ndarray, axes: tuple[int, ...]) -> _Off:
    distance = np.abs(x.mean(axes, keepdims=True) - mean) / std
    ratio = x.std(axes, keepdims=True) / std
    far = (distance > _FAR_MEAN) | (np.abs(np.log(ratio + 1e-12)) > math.log(_FAR_RATIO))
    divergence = (ratio**2 + distance**2 - 1) / 2 - np.log(ratio + 1e-12)
    medians = (float(np.median(each)) for each in (distance, ratio, divergence))
    return _Off(float(far.mean()), *medians)


def _renormalise(average: _Average, std: np.ndarray, axes: tuple[int, ...]) -> Edit:
    """Centre by the batch's mean, in such units that the running deviation makes it the batch's."""

    def edit(centred: jax.Array, values: Environment) -> jax.Array:
        x = values[average.x]
        mean, own = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
        return ((x - mean) * (std / (own + 1e-6))).astype(centred.dtype)

    return edit
