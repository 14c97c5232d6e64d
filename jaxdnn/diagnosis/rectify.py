"""Another activation in every hidden layer: ReLU with He's weights, alone and with shortcuts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax import Array

from jaxdnn.diagnosis.critical import init_line, with_sigma
from jaxdnn.diagnosis.gains import Gain
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.probe import Edit, Environment
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.remedies import Change, shortcuts
from jaxdnn.diagnosis.stations import Station

# E relu'² = E relu² = 1/2, E relu = 1 / sqrt(2 pi).
_RELU = Gain(math.sqrt(0.5), math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))


def rectifiers(
    graph: Graph, measured: Measurement, params: Any, gains: Mapping[str, Gain]
) -> Iterator[Change]:
    """Changes to ReLU and He's weights, where another activation is in use.

    References:
      He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    final = len(graph.layers)
    stations = [
        station
        for name, station in named_stations(graph, "activation").items()
        if not name.startswith(f"{final}.")
        and graph.links[int(name.split(".")[0])].below is not None
    ]
    if not stations or all(_is_relu(station) for station in stations):
        return
    relu = {station.end: _relu_of(station.start) for station in stations}
    sigmas = _he(graph)
    he = with_sigma(graph, measured, params, sigmas)
    words = f"ReLU as activation of {len(stations)} layers, with He's weights"
    code = f"x = nnx.relu(x); {init_line(math.sqrt(2))}"
    yield Change(words, code, he, relu)
    rectified = {name: _RELU for name in gains}
    for shortcut in shortcuts(graph, params, rectified):
        edits = _composed(relu, shortcut.edits)
        yield Change(f"{words}; {shortcut.words}", f"{code}; {shortcut.code}", he, edits)


def _is_relu(station: Station) -> bool:
    return station.label == "relu" or station.steps[-1].name == "max"


def _relu_of(start: int) -> Edit:
    return lambda value, seen: jax.nn.relu(seen[start]).astype(value.dtype)


def _he(graph: Graph) -> dict[int, float]:
    """Return sigma_w = sqrt(2) for layers that see an activation, 1 for the others."""
    return {
        upper: math.sqrt(2)
        if any(station.kind == "activation" for station in graph.links[upper].stations)
        and graph.links[upper].below is not None
        else 1.0
        for upper, site in enumerate(graph.layers)
        if site.kind != "embedding"
    }


def _composed(first: Mapping[int, Edit], second: Mapping[int, Edit]) -> dict[int, Edit]:
    """Return edits that do the first, and then the second with what came of it."""

    def after(one: Edit, two: Edit) -> Edit:
        def edit(value: Array, seen: Environment) -> Array:
            return two(one(value, seen), seen)

        return edit

    common = {number: after(first[number], second[number]) for number in first.keys() & second}
    return {**first, **second, **common}
