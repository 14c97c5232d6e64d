"""What does not fit the numbers' format: values that are not finite, gradients that underflow."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.strengths import CERTAIN, FACTOR_SPREAD, NAMED


def find_format_causes(graph: Graph, measured: Measurement) -> list[Cause]:
    """Name the first layer that is not finite, and the first whose gradient underflows.

    Args:
      graph: of the network.
      measured: of one pass.
    """
    return [*_not_finite(graph, measured), *_underflow(graph, measured)]


def _not_finite(graph: Graph, measured: Measurement) -> list[Cause]:
    sites, sizes = graph.layers, [forward.rms for forward in measured.forward]
    bad = [i for i, size in enumerate(sizes) if not math.isfinite(size)]
    if bad and not math.isfinite(measured.kernel_rms[bad[0]]):
        text = "its weights are not finite"
        return [Cause(sites[bad[0]].path, "not finite", text, CERTAIN)]
    if bad:
        text = f"its pre-activation is not finite; {_limit(graph, bad[0])}"
        return [Cause(sites[bad[0]].path, "not finite", text + _growth(sizes[: bad[0]]), CERTAIN)]
    # The gradient comes from the last layer down.
    deltas = [measured.delta[site.z] for site in reversed(sites)]
    bad = [i for i, delta in enumerate(deltas) if not math.isfinite(delta)]
    if not bad:
        return []
    text = f"its delta is not finite; {_limit(graph, len(sites) - 1 - bad[0])}"
    path = sites[len(sites) - 1 - bad[0]].path
    return [Cause(path, "not finite", text + _growth(deltas[: bad[0]]), CERTAIN)]


def _limit(graph: Graph, index: int) -> str:
    dtype = graph.program.values[graph.layers[index].z].dtype
    return f"{jnp.dtype(dtype).name} ends at {float(jnp.finfo(dtype).max):.3g}"


def _growth(sizes: list[float]) -> str:
    """Say by how much the layers before it multiply."""
    if len(sizes) < 2 or min(sizes) <= 0:
        return ""
    return f", and {len(sizes)} layers before it grow by {_typical(sizes):.3g} each"


def _typical(sizes: list[float]) -> float:
    return math.exp(float(np.median(np.diff(np.log(sizes)))))


def _underflow(graph: Graph, measured: Measurement) -> list[Cause]:
    """Find the uppermost layer whose delta lies below the format's normal numbers.

    A delta of exactly zero says nothing: dead units and zero weights make one as well.
    """
    for site in reversed(graph.layers):
        dtype = graph.program.values[site.z].dtype
        smallest, delta = float(jnp.finfo(dtype).tiny), measured.delta[site.z]
        if 0 < delta < smallest:
            text = (
                f"delta's RMS of {delta:.2g} lies below {jnp.dtype(dtype).name}'s smallest normal"
                f" number, {smallest:.2g}"
            )
            lowest = min(value for each in graph.layers if (value := measured.delta[each.z]) > 0)
            strength = max(NAMED, math.log(smallest / lowest) / FACTOR_SPREAD)
            return [Cause(site.path, "underflow", text, strength)]
    return []
