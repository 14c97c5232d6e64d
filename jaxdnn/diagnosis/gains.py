"""What each activation does at standard normal values: a property of the function alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations, slope_function
from jaxdnn.diagnosis.probe import Environment, replay
from jaxdnn.diagnosis.program import Dependence, Program
from jaxdnn.diagnosis.reduce import host_rms
from jaxdnn.diagnosis.stations import Station


class Gain(NamedTuple):
    """What an activation does at standard normal values.

    Attributes:
      slope: root mean square of phi'.
      value: root mean square of phi.
      mean: of phi.
    """

    slope: float
    value: float
    mean: float


def activation_gains(graph: Graph, params: Any) -> dict[str, Gain]:
    """Return what each activation does at standard normal values, by station.

    Args:
      graph: of the network.
      params: that trained slopes come from.
    """
    environment = _without_inputs(graph.program, params)
    drawn: dict[tuple[int, ...], Array] = {}
    known: dict[Any, Gain] = {}
    gains = {}
    for name, station in named_stations(graph, "activation").items():
        if not _is_closed(station, environment):
            continue
        value = graph.program.values[station.start]
        if value.shape not in drawn:
            normal = np.random.default_rng(0).standard_normal(value.shape)
            drawn[value.shape] = jnp.asarray(normal, value.dtype)
        signature = (value.shape, *(step.signature for step in station.steps))
        if signature not in known or any(len(step.inputs) > 1 for step in station.steps):
            known[signature] = _gain(station, environment, drawn[value.shape])
        gains[name] = known[signature]
    return gains


def _gain(station: Station, environment: Environment, z: Array) -> Gain:
    function = replay(station.steps, environment, station.start, station.end)
    slope = slope_function(station, environment)
    slopes, values = jax.jit(lambda z: (slope(z), function(z)))(z)
    mean = float(np.mean(np.asarray(values, np.float64)))
    return Gain(host_rms(slopes), host_rms(values), mean)


def _without_inputs(program: Program, params: Any) -> Environment:
    """Compute what depends on parameters only."""
    environment = dict(program.constants)
    leaves = jax.tree.leaves(params)
    environment.update(zip(program.arguments[: len(leaves)], leaves, strict=True))
    for step in program.steps:
        depends = program.values[step.outputs[0]].depends
        if not depends & (Dependence.INPUTS | Dependence.KEY):
            operands = [environment[number] for number in step.inputs]
            environment.update(zip(step.outputs, step.run(*operands), strict=True))
    return environment


def _is_closed(station: Station, environment: Environment) -> bool:
    """Tell whether the activation takes nothing but its input and parameters."""
    inside = {station.start}.union(*(step.outputs for step in station.steps))
    outside = {n for step in station.steps for n in step.inputs} - inside
    return outside <= environment.keys()
