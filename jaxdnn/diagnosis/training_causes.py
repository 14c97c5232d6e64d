"""Finders that count where a network does not train: its signal, and steps of the wrong size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.findings import CERTAIN, FACTOR_SPREAD, NAMED, STRUCTURAL, Finding
from jaxdnn.diagnosis.measure import Exam, host_rms
from jaxdnn.diagnosis.setups import FixKind, Trials, Tried
from jaxdnn.diagnosis.trial import TRAINS, FirstStep

# Of the score of the best change of the network.
_AS_GOOD = 0.9


class Attempt(NamedTuple):
    """What is known of a network that does not train.

    Attributes:
      exam: what one pass shows.
      first: what the optimizer makes of the first gradient.
      tried: fixes that help, best first.
      trials: what tries more of them.
    """

    exam: Exam
    first: FirstStep
    tried: Sequence[Tried]
    trials: Trials


def inputs_alike(attempt: Attempt) -> Iterator[Finding]:
    """Find inputs that grow alike on their way: then no layer above can part them."""
    graph, signals = attempt.exam.graph, attempt.exam.measured.signals
    # Two numbers always have a cosine of 1 or -1.
    wide = [
        (i, max(1 - signals[i].correlation, float(jnp.finfo(graph.value_of(layer).dtype).eps)))
        for i, layer in enumerate(graph.layers)
        if math.prod(graph.value_of(layer).shape[1:]) > 1
    ]
    logs = np.log([apart for _, apart in wide])
    if len(logs) < 2 or not np.isfinite(logs).all():
        return
    (first, start), (last, end) = wide[0], wide[-1]
    text = (
        f"inputs grow alike on their way: the cosine between two is {_cosine(start)} in"
        f" {graph.layers[first].path} and {_cosine(end)} in {graph.layers[last].path}; it rises"
        " most here"
    )
    # Of the largest fall, the layer that it ends in.
    layer = wide[int(np.argmin(np.diff(logs))) + 1][0]
    yield Finding(layer, text, float(logs[0] - logs[-1]) / FACTOR_SPREAD)


def _cosine(apart: float) -> str:
    return f"1 - {apart:.2g}" if apart < 0.01 else f"{1 - apart:.2g}"


def signal_grows(attempt: Attempt) -> Iterator[Finding]:
    """Find a signal that grows on its way: large logits have to come down first."""
    sizes = np.array([signal.rms for signal in attempt.exam.measured.signals])
    if not np.isfinite(sizes).all() or sizes.min() <= 0:
        return
    largest = int(np.argmax(sizes))
    typical = math.exp(float(np.median(np.diff(np.log(sizes[: largest + 1]))))) if largest else 1
    text = (
        f"RMS z grows from {sizes[0]:.2g} in {attempt.exam.graph.layers[0].path} to"
        f" {sizes[largest]:.2g} here, by {typical:.3g} in a typical layer"
    )
    yield Finding(largest, text, float(np.log(sizes[largest] / sizes[0])) / FACTOR_SPREAD)


def gradient_below_epsilon(attempt: Attempt) -> Iterator[Finding]:
    """Find the layer whose steps a relative optimizer's epsilon shortens most."""
    shortfall = np.nan_to_num(attempt.first.shortfall)
    worst = int(np.argmax(shortfall))
    if shortfall[worst] > 0:
        number = int(np.sum(shortfall > math.exp(NAMED * FACTOR_SPREAD)))
        text = (
            f"its gradient is so small compared with the optimizer's epsilon that its steps are"
            f" {shortfall[worst]:.2g} times too small; so are those of {number} of"
            f" {len(shortfall)} layers"
        )
        strength = math.log(max(float(shortfall[worst]), 1.0)) / FACTOR_SPREAD
        yield Finding(worst, text, strength)


def wrong_rate(attempt: Attempt, *, small: bool) -> Iterator[Finding]:
    """Blame the learning rate where a greater one, or a smaller, alone makes the network train.

    It ranks first where no change of the network does it, and last where one does it better.
    """
    if any(finding.strength >= NAMED for finding in gradient_below_epsilon(attempt)):
        return
    rates = [
        each
        for each in attempt.tried
        if each.fix.kind is FixKind.LEARNING_RATE and each.score >= TRAINS
    ]
    if not rates or (rates[0].fix.scales.rate > 1) != small:
        return
    rate, layer = rates[0].fix.scales.rate, attempt.first.greatest
    text = (
        f"the first step moves its weights by {attempt.first.relative[layer]:.2g} of their RMS,"
        f" further than those of any other layer; {rate:g} times the rate makes the network train"
    )
    networks = (each.score for each in attempt.tried if each.fix.kind is FixKind.NETWORK)
    best = max(networks, default=0.0)
    strength = max(NAMED, abs(math.log(rate)) / FACTOR_SPREAD)
    if best < TRAINS:
        strength = CERTAIN
    elif rates[0].score < _AS_GOOD * best:
        strength = NAMED
    yield Finding(layer, text, strength)


def narrow_layers(attempt: Attempt) -> Iterator[Finding]:
    """Blame hidden layers of few units where the network learns with more, and not without."""
    wide = [each for each in attempt.tried if each.fix.kind is FixKind.WIDTH]
    others = (each.score for each in attempt.tried if each.fix.kind is not FixKind.WIDTH)
    if not wide or wide[0].score < TRAINS or max(others, default=0.0) >= TRAINS:
        return
    graph = attempt.exam.graph
    units = [graph.value_of(layer).shape[-1] for layer in graph.layers[:-1]]
    layer = int(np.argmin(units))
    text = f"it has {units[layer]} units: what comes through them is not enough to tell the inputs"
    yield Finding(layer, f"{text} apart", STRUCTURAL)


def other_optimizer(attempt: Attempt) -> Iterator[Finding]:
    """Blame the optimizer where no rate of it makes the network train, and Adam does."""
    scores = {
        kind: max(
            (each.score for each in attempt.tried if each.fix.kind is kind),
            default=0.0,
        )
        for kind in (FixKind.LEARNING_RATE, FixKind.OPTIMIZER)
    }
    if scores[FixKind.OPTIMIZER] >= TRAINS > scores[FixKind.LEARNING_RATE]:
        text = "no rate of this optimizer makes the network learn, and Adam does"
        yield Finding(None, text, STRUCTURAL)


def strong_decay(attempt: Attempt) -> Iterator[Finding]:
    """Blame weight decay where the network learns without it."""
    scores = [each.score for each in attempt.tried if each.fix.kind is FixKind.DECAY]
    if scores and max(scores) >= TRAINS:
        params = jax.tree.map(jnp.asarray, attempt.exam.params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        optimizer = attempt.trials.optimizer
        state = optimizer.init(params)
        decay, both = (
            host_rms(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]))
            for updates in (
                optimizer.update(zeros, state, params)[0],
                optimizer.update(jax.tree.map(jnp.asarray, attempt.exam.grads), state, params)[0],
            )
        )
        text = (
            f"of the first step's size of {both:.2g}, weight decay alone makes {decay:.2g}: the"
            " weights are drawn to 0 faster than the gradient moves them"
        )
        yield Finding(None, text, CERTAIN)
