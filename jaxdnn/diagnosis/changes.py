"""Changes that may help: answers to the causes, critical weights, remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.diagnosis.critical import critical, init_line, usual_sigma, with_sigma
from jaxdnn.diagnosis.first_step import FirstStep
from jaxdnn.diagnosis.gains import Gain
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.probe import Edit
from jaxdnn.diagnosis.rectify import rectifiers
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Change, batch_norms, both, layer_norms, shortcuts
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.step_changes import step_changes


def candidates(
    graph: Graph,
    measured: Measurement,
    params: Any,
    causes: Sequence[Cause],
    gains: Mapping[str, Gain],
    first: FirstStep,
) -> Iterator[Change]:
    """Changes that answer the causes first, then those that help many networks.

    Changes with the same edits follow each other: they share a compiled program.
    """
    for cause in causes[:2]:
        yield from _answer(graph, measured, params, cause)
    tuned = critical(graph, measured, params, gains)
    yield tuned
    yield from step_changes(measured, params, causes, first)
    for shortcut in shortcuts(graph, params, gains):
        yield shortcut
        yield both(shortcut, tuned)
    yield from batch_norms(graph, params)
    yield from rectifiers(graph, measured, params, gains)
    yield from layer_norms(graph, params)


def _answer(graph: Graph, measured: Measurement, params: Any, cause: Cause) -> Iterator[Change]:
    index = [site.path for site in graph.layers].index(cause.path)
    site = graph.layers[index]
    if cause.cause.startswith("weights") or cause.cause in ("zero weights", "fan-out for fan-in"):
        sigma = usual_sigma(graph, measured)
        yield Change(
            f"weights of {site.path} like those of the other layers (sigma_w = {sigma:.3g})",
            init_line(sigma),
            with_sigma(graph, measured, params, {index: sigma}),
            {},
        )
    if cause.cause in ("dead units", "bias too large") and site.bias is not None:
        bias = site.bias
        edit: Edit = lambda value, _: jnp.zeros_like(value)  # noqa: E731
        yield Change(
            f"bias of {site.path} zero", "bias_init=nnx.initializers.zeros", params, {bias: edit}
        )
    for kind, name, words, code in (
        ("softmax", "softmax twice", "return logits, without softmax", "return self.head(x)"),
        ("dropout", "dropout", f"no dropout after {site.path}", "nnx.Dropout(0.0)"),
    ):
        if cause.cause == name:
            yield Change(words, code, params, _without(graph, kind, index))
    if cause.cause == "saturating activation":
        edits = _like_neighbours(graph, index)
        yield Change(
            f"after {site.path} the other layers' activation", "x = nnx.relu(x)", params, edits
        )


def _without(graph: Graph, kind: Any, below: int) -> dict[int, Edit]:
    """Leave out the stations of a kind that follow a layer."""
    return {
        station.end: lambda value, seen, start=station.start: seen[start].reshape(value.shape)
        for name, station in named_stations(graph, kind).items()
        if graph.links[int(name.split(".")[0])].below == below
    }


# By the name of the function, or of its last operation.
ACTIVATION_OF: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "max": jax.nn.relu,
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
}


def _like_neighbours(graph: Graph, below: int) -> dict[int, Edit]:
    """Replace a layer's activation by the commonest one."""
    stations = named_stations(graph, "activation")
    signatures = {
        name: tuple(step.name for step in station.steps) for name, station in stations.items()
    }
    counts = list(signatures.values())
    usual = max(stations, key=lambda name: counts.count(signatures[name]))
    function = ACTIVATION_OF.get(stations[usual].label or stations[usual].steps[-1].name)
    if function is None:
        return {}
    return {
        station.end: lambda value, seen, start=station.start: function(seen[start]).astype(
            value.dtype
        )
        for name, station in stations.items()
        if graph.links[int(name.split(".")[0])].below == below
    }
