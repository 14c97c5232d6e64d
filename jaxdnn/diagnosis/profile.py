"""Every layer's numbers, as the result shows them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from jaxdnn.diagnosis.bands import Bands, bands_of
from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.result import Layer
from jaxdnn.diagnosis.terms import layer_terms, log_factor


def make_layers(seen: Examination, deltas: Float[np.ndarray, "seed layer+1"]) -> tuple[Layer, ...]:
    """Return all layers in the order in which they run.

    Args:
      seen: of the network.
      deltas: with weights drawn anew.
    """
    return tuple(
        _layer(seen.graph, seen.measured, index, bands)
        for index, bands in enumerate(bands_of(seen.graph, deltas))
    )


def _layer(graph: Graph, measured: Measurement, index: int, bands: Bands) -> Layer:
    site, forward = graph.layers[index], measured.forward[index]
    slopes = [
        measured.slopes[name]
        for upper, link in enumerate(graph.links)
        if link.below == index
        for position in range(len(link.stations))
        if (name := f"{upper}.{position}") in measured.slopes
    ]
    kernel, grad = measured.kernel_rms[index], measured.kernel_grad_rms[index]
    factor = log_factor(graph, measured, index)
    return Layer(
        path=site.path,
        kind=site.kind,
        fan_in=site.fan_in,
        fan_out=site.fan_out,
        pre_activation_mean=forward.mean,
        pre_activation_rms=forward.rms,
        correlation=forward.correlation,
        delta_rms=measured.delta[site.z],
        delta_band=bands.delta,
        delta_rms_by_example=tuple(measured.delta_by_example[index].tolist()),
        factor=_factor(measured.delta[site.z], factor),
        factor_band=bands.factor,
        terms=layer_terms(graph, measured, index),
        dead=slopes[0].dead if slopes else 0.0,
        saturated=slopes[0].saturated if slopes else 0.0,
        kernel_rms=kernel,
        kernel_grad_rms=grad,
        kernel_grad_ratio=grad / kernel if kernel else math.nan,
    )


def _factor(delta: float, log_factor: float) -> float:
    """Return the factor; NaN where delta is zero and that above it as well."""
    if delta == 0:
        return math.nan if log_factor == 0 else 0.0
    return math.exp(log_factor) if log_factor < 700 else math.inf
