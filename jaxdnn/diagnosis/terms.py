"""Why a layer's factor is what it is, as a sum of logs.

    log(delta_l / delta_above) = weights + padding + activation + norm + ... + remainder

Each term is the log of delta's root mean square behind a station over that before it, so that they
add up exactly. `weights` and `padding` are what independent random weights of the realised scale
would do; what the real ones do besides stands in the remainder.
"""

from __future__ import annotations

import math

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement

TERMS = (
    "weights",
    "padding",
    "activation",
    "norm",
    "pooling",
    "dropout",
    "residual",
    "attention",
    "softmax",
    "remainder",
)
# Below the smallest normal float32, so that a gradient of exactly zero shows as such.
_FLOOR = 1e-45


def log(x: float) -> float:
    """Natural log, of zero that of less than float32 holds; NaN of NaN."""
    return math.log(max(x, _FLOOR)) if not math.isnan(x) else math.nan


def layer_terms(graph: Graph, measured: Measurement, index: int) -> dict[str, float]:
    """Return the terms of a layer's log factor; they sum to it.

    Args:
      graph: of the network.
      measured: of one pass.
      index: of the layer.
    """
    terms = dict.fromkeys(TERMS, 0.0)
    above = graph.above(index)
    total = log_factor(graph, measured, index)
    top = len(graph.layers) if above is None else above
    if graph.links[top].below == index:
        for station in graph.links[top].stations:
            change = log(measured.delta[station.start]) - log(measured.delta[station.end])
            terms[station.kind if station.kind in terms else "remainder"] += change
        if above is not None:
            _add_layer(terms, graph, measured, above)
    terms["remainder"] += total - sum(terms.values())
    return terms


def _add_layer(terms: dict[str, float], graph: Graph, measured: Measurement, above: int) -> None:
    """Add what the kernel above does, and what joins its gradient from other branches."""
    site = graph.layers[above]
    terms["weights"] += log(measured.kernel_rms[above] * math.sqrt(site.fan_out))
    terms["padding"] += 0.5 * math.log(site.inside)
    if site.x is not None and site.x in measured.delta:
        terms["residual"] += log(measured.delta[site.x]) - log(measured.through[above])


def log_factor(graph: Graph, measured: Measurement, index: int) -> float:
    """Log of a layer's delta over that of the layer (or the logits) above."""
    above = graph.above(index)
    z = graph.program.output if above is None else graph.layers[above].z
    upper = measured.delta.get(z, measured.delta[graph.layers[-1].z])
    return log(measured.delta[graph.layers[index].z]) - log(upper)
