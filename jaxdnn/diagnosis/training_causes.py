"""Causes that only training shows: steps of the wrong size, and inputs that look alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.first_step import FirstStep
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Tried
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.strengths import FACTOR_SPREAD, NAMED
from jaxdnn.diagnosis.verdict import TRAINS

# Of the entries of a kernel.
_MOST_LOST = 0.5


def find_training_causes(
    graph: Graph, measured: Measurement, first: FirstStep, tried: Sequence[Tried]
) -> list[Cause]:
    """Say why a network does not train that may be sound at its start.

    Args:
      graph: of the network.
      measured: of one pass.
      first: the optimizer's first step.
      tried: changes that help.
    """
    below_epsilon = _below_epsilon(graph, first)
    return [
        *_alike(graph, measured),
        *below_epsilon,
        *_rounded(graph, first, tried),
        *(_rate(graph, first, tried) if not below_epsilon else ()),
    ]


def _alike(graph: Graph, measured: Measurement) -> list[Cause]:
    """Tell whether the inputs grow alike on their way: then no layer above can part them."""
    apart = [
        max(1 - forward.correlation, float(jnp.finfo(graph.program.values[site.z].dtype).eps))
        for site, forward in zip(graph.layers, measured.forward, strict=True)
    ]
    logs = np.log(apart)
    if len(logs) < 2 or not np.isfinite(logs).all():
        return []
    # Of the largest fall, the layer that it ends in.
    path = graph.layers[int(np.argmin(np.diff(logs))) + 1].path
    text = (
        f"1 - cosine between two inputs falls from {apart[0]:.2g} in {graph.layers[0].path} to"
        f" {apart[-1]:.2g} in {graph.layers[-1].path}, most of all here"
    )
    strength = float(logs[0] - logs[-1]) / FACTOR_SPREAD
    return _named([Cause(path, "inputs look alike", text, strength)])


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


def _rate(graph: Graph, first: FirstStep, tried: Iterable[Tried]) -> list[Cause]:
    """Blame the learning rate where another one alone makes the network train."""
    rates = [
        each.change.scales.rate
        for each in tried
        if each.score >= TRAINS and each.change.kind == "rate"
    ]
    if not rates:
        return []
    rate, layer = rates[0], first.greatest
    name = "learning rate too small" if rate > 1 else "learning rate too large"
    text = (
        f"the first step moves its weights by {first.relative[layer]:.2g} of their RMS, further"
        f" than those of any other layer; {rate:g} times the rate makes the network train"
    )
    strength = max(NAMED, abs(math.log(rate)) / FACTOR_SPREAD)
    return [Cause(graph.layers[layer].path, name, text, strength)]


def _named(causes: Sequence[Cause]) -> list[Cause]:
    return [cause for cause in causes if cause.strength >= NAMED]
