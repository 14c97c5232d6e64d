"""Every layer's numbers, as the result shows them."""

from __future__ import annotations

import math

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.result import Layer
from jaxdnn.diagnosis.terms import layer_terms, log_factor


def make_layers(graph: Graph, measured: Measurement) -> tuple[Layer, ...]:
    """Return all layers in the order in which they run."""
    return tuple(_layer(graph, measured, index) for index in range(len(graph.layers)))


def _layer(graph: Graph, measured: Measurement, index: int) -> Layer:
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
        delta_rms_by_example=tuple(measured.delta_by_example[index].tolist()),
        factor=math.exp(factor) if factor < 700 else math.inf,
        terms=layer_terms(graph, measured, index),
        dead=slopes[0].dead if slopes else 0.0,
        saturated=slopes[0].saturated if slopes else 0.0,
        kernel_rms=kernel,
        kernel_grad_rms=grad,
        kernel_grad_ratio=grad / kernel if kernel else math.nan,
    )
