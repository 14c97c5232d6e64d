"""Changes that may help: answers to the causes, critical weights, remedies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.probe import Edit
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Change, remedies
from jaxdnn.diagnosis.result import Cause


def candidates(
    graph: Graph,
    measured: Measurement,
    params: Any,
    causes: Sequence[Cause],
    gains: Mapping[str, float],
) -> Iterator[Change]:
    """Changes that answer the causes first, then those that help many networks."""
    for cause in causes[:2]:
        yield from _answer(graph, measured, params, cause)
    yield from _critical(graph, measured, params, gains)
    yield from remedies(graph, params)


def _answer(graph: Graph, measured: Measurement, params: Any, cause: Cause) -> Iterator[Change]:
    index = [site.path for site in graph.layers].index(cause.path)
    site = graph.layers[index]
    if cause.cause.startswith("weights") or cause.cause in ("zero weights", "fan-out for fan-in"):
        sigma = _usual_sigma(graph, measured)
        yield Change(
            f"weights of {site.path} like those of the other layers (sigma_w = {sigma:.3g})",
            _init_line(sigma),
            _with_sigma(graph, measured, params, {index: sigma}),
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


def _usual_sigma(graph: Graph, measured: Measurement) -> float:
    sigmas = [
        rms * math.sqrt(site.fan_in)
        for site, rms in zip(graph.layers, measured.kernel_rms, strict=True)
        if rms > 0 and site.kind != "embedding"
    ]
    return float(np.median(sigmas)) if sigmas else 1.0


def _init_line(sigma: float) -> str:
    return f'kernel_init=nnx.initializers.variance_scaling({sigma**2:.3g}, "fan_in", "normal")'


def _with_sigma(
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


def _critical(
    graph: Graph, measured: Measurement, params: Any, gains: Mapping[str, float]
) -> Iterator[Change]:
    """Keep delta: sigma_w² E phi'² = 1 in every layer."""
    sigmas = {}
    for upper, link in enumerate(graph.links[:-1]):
        if graph.layers[upper].kind == "embedding":
            continue
        slopes = [
            gain
            for name, gain in gains.items()
            if int(name.split(".")[0]) == upper and link.below is not None
        ]
        sigmas[upper] = 1 / max(math.prod(slopes), 1e-3)
    usual = float(np.median(list(sigmas.values()))) if sigmas else 1.0
    yield Change(
        f"critical weights in all layers: sigma_w² E phi'² = 1 (mostly sigma_w = {usual:.3g})",
        _init_line(usual),
        _with_sigma(graph, measured, params, sigmas),
        {},
    )
