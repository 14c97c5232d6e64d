"""Weights, and biases where they are needed, that keep the gradient's length from layer to layer.

    sigma_w² E phi'² = 1    and    sigma_w² E phi² + sigma_b² = 1,    z standard normal

keep the length of delta and the variance of z: one point of the critical line. For some activations
(the sigmoid: sigma_b² < 0) it does not exist; then only the first is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdnn.diagnosis.gains import Gain
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Change

# A greater sigma_w is no remedy but a step function.
_MOST_SIGMA = 1e3
# Of a bias; less is none.
_LEAST_SIGMA = 0.05


def critical(graph: Graph, measured: Measurement, params: Any, gains: Mapping[str, Gain]) -> Change:
    """Return the change to critical weights in all layers that no norm follows.

    References:
      Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017.
    """
    weights: dict[int, float] = {}
    biases: dict[int, float] = {}
    # What a norm follows has no scale.
    normed = {
        link.below
        for link in graph.links
        if any(station.kind == "norm" for station in link.stations[:1])
    }
    for upper, site in enumerate(graph.layers):
        if site.kind == "embedding" or upper in normed:
            continue
        below = graph.links[upper].below
        own = [gains[name] for name in gains if name.startswith(f"{upper}.")]
        own = own if below is not None else []
        weights[upper] = min(1 / max(math.prod(gain.slope for gain in own), 1e-9), _MOST_SIGMA)
        kinds = {station.kind for station in graph.links[upper].stations}
        if len(own) == 1 and not kinds & {"norm", "residual"} and upper < len(graph.layers) - 1:
            biases[upper] = math.sqrt(max(1 - (weights[upper] * own[0].value) ** 2, 0.0))
    changed = with_sigma(graph, measured, params, weights)
    usual = float(np.median(list(weights.values()))) if weights else 1.0
    words, code = f"mostly sigma_w = {usual:.3g}", init_line(usual)
    biases = {
        index: sigma
        for index, sigma in biases.items()
        if sigma > _LEAST_SIGMA and _bias_leaf(graph, index) is not None
    }
    if biases:
        usual_bias = float(np.median(list(biases.values())))
        words += f", sigma_b = {usual_bias:.3g}"
        code += f", bias_init=nnx.initializers.normal({usual_bias:.3g})"
        changed = _with_biases(graph, changed, biases)
    return Change(f"critical weights in all layers: {words}", code, changed, {})


def usual_sigma(graph: Graph, measured: Measurement) -> float:
    """Return the median of RMS(W) sqrt(fan_in) over the layers that are not zero."""
    sigmas = [
        rms * math.sqrt(site.fan_in)
        for site, rms in zip(graph.layers, measured.kernel_rms, strict=True)
        if rms > 0 and site.kind != "embedding"
    ]
    return float(np.median(sigmas)) if sigmas else 1.0


def init_line(sigma: float) -> str:
    """Return the argument of a Flax layer that draws such weights."""
    return f'kernel_init=nnx.initializers.variance_scaling({sigma**2:.3g}, "fan_in", "normal")'


def with_sigma(
    graph: Graph, measured: Measurement, params: Any, sigmas: Mapping[int, float]
) -> Any:
    """Scale kernels to a standard deviation of sigma / sqrt(fan_in); draw those that are zero."""
    leaves, structure = jax.tree.flatten(params)
    for index, sigma in sigmas.items():
        site = graph.layers[index]
        leaf, part = site.leaf
        std = sigma / math.sqrt(site.fan_in * site.inside)
        shape = leaves[leaf].shape if part is None else leaves[leaf].shape[1:]
        if measured.kernel_rms[index] > 0:
            old = leaves[leaf] if part is None else leaves[leaf][part]
            new = old * (std / measured.kernel_rms[index])
        else:
            new = std * jax.random.normal(jax.random.key(index), shape, leaves[leaf].dtype)
        leaves[leaf] = new if part is None else leaves[leaf].at[part].set(new)
    return jax.tree.unflatten(structure, leaves)


def _with_biases(graph: Graph, params: Any, sigmas: Mapping[int, float]) -> Any:
    """Draw biases anew."""
    leaves, structure = jax.tree.flatten(params)
    for index, sigma in sigmas.items():
        found = _bias_leaf(graph, index)
        if found is not None:
            leaf, part = found
            key = jax.random.fold_in(jax.random.key(1), index)
            shape = leaves[leaf].shape if part is None else leaves[leaf].shape[1:]
            new = sigma * jax.random.normal(key, shape, leaves[leaf].dtype)
            leaves[leaf] = new if part is None else leaves[leaf].at[part].set(new)
    return jax.tree.unflatten(structure, leaves)


def _bias_leaf(graph: Graph, index: int) -> tuple[int, int | None] | None:
    """Return the parameter that a layer's bias is, and the slice of a scan."""
    bias = graph.layers[index].bias
    leaves = () if bias is None else graph.program.values[bias].leaves
    return next(iter(leaves)) if len(leaves) == 1 else None
