"""Causes that count where a network does not train: its signal, and steps of the wrong size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.first_step import FirstStep
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Tried
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.strengths import CERTAIN, FACTOR_SPREAD, NAMED
from jaxdnn.diagnosis.verdict import TRAINS

# Of the entries of a kernel.
_MOST_LOST = 0.5
# Of the score of the best change of the network.
_AS_GOOD = 0.9


def find_training_causes(
    seen: Examination, first: FirstStep, tried: Sequence[Tried]
) -> list[Cause]:
    """Say why a network does not train that may be sound at its start.

    Args:
      seen: of the network.
      first: the optimizer's first step.
      tried: changes that help.
    """
    graph, measured = seen.graph, seen.measured
    below_epsilon = _below_epsilon(graph, first)
    return [
        *_alike(graph, measured),
        *_grown(graph, measured),
        *below_epsilon,
        *_rounded(graph, first, tried),
        *(_rate(graph, first, tried) if not below_epsilon else ()),
    ]


def _alike(graph: Graph, measured: Measurement) -> list[Cause]:
    """Tell whether the inputs grow alike on their way: then no layer above can part them."""
    values = graph.program.values
    # Two numbers always have a cosine of 1 or -1.
    wide = [
        (site.path, max(1 - forward.correlation, float(jnp.finfo(values[site.z].dtype).eps)))
        for site, forward in zip(graph.layers, measured.forward, strict=True)
        if math.prod(values[site.z].shape[1:]) > 1
    ]
    logs = np.log([apart for _, apart in wide])
    if len(logs) < 2 or not np.isfinite(logs).all():
        return []
    (first, start), (last, end) = wide[0], wide[-1]
    # Of the largest fall, the layer that it ends in.
    path = wide[int(np.argmin(np.diff(logs))) + 1][0]
    text = (
        f"1 - cosine between two inputs falls from {start:.2g} in {first} to {end:.2g} in {last},"
        " most of all here"
    )
    strength = float(logs[0] - logs[-1]) / FACTOR_SPREAD
    return _named([Cause(path, "inputs look alike", text, strength)])


def _grown(graph: Graph, measured: Measurement) -> list[Cause]:
    """Tell whether the signal grows on its way: large logits have to come down first."""
    sizes = np.array([forward.rms for forward in measured.forward])
    if not np.isfinite(sizes).all() or sizes.min() <= 0:
        return []
    largest = int(np.argmax(sizes))
    typical = math.exp(float(np.median(np.diff(np.log(sizes[: largest + 1]))))) if largest else 1
    path = graph.layers[largest].path
    text = (
        f"RMS z grows from {sizes[0]:.2g} in {graph.layers[0].path} to {sizes[largest]:.2g} here,"
        f" by {typical:.3g} in a typical layer"
    )
    strength = float(np.log(sizes[largest] / sizes[0])) / FACTOR_SPREAD
    return _named([Cause(path, "signal too large", text, strength)])


def _below_epsilon(graph: Graph, first: FirstStep) -> list[Cause]:
    """Find the layer whose steps a relative optimizer's epsilon shortens most."""
    shortfall = np.nan_to_num(first.shortfall)
    worst = int(np.argmax(shortfall))
    if shortfall[worst] <= 0:
        return []
    strength = math.log(max(float(shortfall[worst]), 1.0)) / FACTOR_SPREAD
    number = int(np.sum(shortfall > math.exp(NAMED * FACTOR_SPREAD)))
    text = (
        f"its gradient is so small beside the optimizer's epsilon that its steps are"
        f" {shortfall[worst]:.2g} times too small; so are those of {number} of"
        f" {len(graph.layers)} layers"
    )
    return _named([Cause(graph.layers[worst].path, "gradient below epsilon", text, strength)])


def _rounded(graph: Graph, first: FirstStep, tried: Sequence[Tried]) -> list[Cause]:
    """Find parameters whose format is too coarse for the steps."""
    worst = int(np.argmax(first.lost))
    if first.lost[worst] < _MOST_LOST or not any(each.change.kind == "float32" for each in tried):
        return []
    text = f"{first.lost[worst]:.0%} of its weights are rounded back to what they were by a step"
    strength = NAMED * (1 + first.lost[worst])
    return [Cause(graph.layers[worst].path, "step rounded away", text, strength)]


def _rate(graph: Graph, first: FirstStep, tried: Sequence[Tried]) -> list[Cause]:
    """Blame the learning rate where another one alone makes the network train.

    It ranks first where no change of the network does it, and last where one does it better.
    """
    rates = [each for each in tried if each.change.kind == "rate" and each.score >= TRAINS]
    if not rates:
        return []
    rate, layer = rates[0].change.scales.rate, first.greatest
    name = "learning rate too small" if rate > 1 else "learning rate too large"
    text = (
        f"the first step moves its weights by {first.relative[layer]:.2g} of their RMS, further"
        f" than those of any other layer; {rate:g} times the rate makes the network train"
    )
    best = max((each.score for each in tried if each.change.kind == "network"), default=0.0)
    strength = max(NAMED, abs(math.log(rate)) / FACTOR_SPREAD)
    if best < TRAINS:
        strength = CERTAIN
    elif rates[0].score < _AS_GOOD * best:
        strength = NAMED
    return [Cause(graph.layers[layer].path, name, text, strength)]


def _named(causes: Sequence[Cause]) -> list[Cause]:
    return [cause for cause in causes if cause.strength >= NAMED]
