"""Every layer's statistics from one backward pass.

A zero is added to every pre-activation and at every station between; the gradient of the loss with
respect to it is delta there. One compiled program gives the arrays, and the host reduces them:
reduced inside the program, 50 layers took minutes to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.probe import Edit, Environment, bridge, replay, run
from jaxdnn.diagnosis.program import Value
from jaxdnn.diagnosis.stations import Kind, Station

Loss = Callable[[Any, Any], Array]


class Raw(NamedTuple):
    """The arrays of one pass forward and back.

    Attributes:
      loss: a scalar.
      logits: (batch, ...).
      pre_activations: of each layer.
      biases: of each layer that has one.
      slopes: |phi'| by station.
      kept: share that a dropout keeps, by station.
      deltas: by number of the value.
      through: gradient of each layer's operand through that layer alone.
      grads: of the parameters.
    """

    loss: Array
    logits: Array
    pre_activations: list[Array]
    biases: dict[int, Array]
    slopes: dict[str, Array]
    kept: dict[str, Array]
    deltas: dict[int, Array]
    through: list[Array]
    grads: Any


def make_pass(graph: Graph, loss: Loss, *, cut: int | None = None) -> Callable[..., Raw]:
    """Return the compiled `(params, inputs, targets, key) -> Raw`.

    Args:
      graph: of the network.
      loss: `(logits, targets) -> scalar`.
      cut: a layer from which the gradient goes to the layer below as it is, as if the Jacobian
        between were the identity.
    """
    values = graph.program.values
    numbers = _probed(graph)

    @jax.jit
    def forward_and_back(params: Any, inputs: Any, targets: Any, key: Array) -> Raw:
        def objective(params: Any, zeros: dict[int, Array], partials: list[Array]) -> Any:
            edits = _edits(graph, zeros, cut)
            uses = {
                (site.step, site.x): lambda x, zero=zero: x + zero
                for site, zero in zip(graph.layers, partials, strict=True)
                if site.x is not None
            }
            environment = run(graph.program, (params, inputs, key), edits, uses)
            logits = environment[graph.program.output]
            value = loss(logits, targets)
            return value, (value, logits, jax.lax.stop_gradient(_look(graph, environment)))

        zeros = {number: _zero(values[number]) for number in numbers}
        partials = [_zero(values[site.z if site.x is None else site.x]) for site in graph.layers]
        differentiate = jax.grad(objective, (0, 1, 2), has_aux=True)
        (grads, deltas, through), (value, logits, seen) = differentiate(params, zeros, partials)
        z, biases, slopes, kept = seen
        return Raw(value, logits, z, biases, slopes, kept, deltas, through, grads)

    return forward_and_back


def named_stations(graph: Graph, kind: Kind) -> dict[str, Station]:
    """Return all stations of a kind by the link and the place in it, such as `3.1`."""
    return {
        station_name(upper, position): station
        for upper, link in enumerate(graph.links)
        for position, station in enumerate(link.stations)
        if station.kind == kind
    }


def station_name(upper: int, position: int) -> str:
    """Name a station by its link and its place in it."""
    return f"{upper}.{position}"


def slope_function(station: Station, environment: Environment) -> Callable[[Array], Array]:
    """Return the |phi'| of an activation, elementwise."""
    function = replay(station.steps, environment, station.start, station.end)

    def slope(x: Array) -> Array:
        return jnp.abs(jax.jvp(function, (x,), (jnp.ones_like(x),))[1].astype(jnp.float32))

    return slope


def _probed(graph: Graph) -> list[int]:
    ends = {
        number
        for link in graph.links
        for station in link.stations
        for number in (station.start, station.end)
    }
    ends |= {site.z for site in graph.layers}
    ends |= {site.x for site in graph.layers if site.x is not None}
    values = graph.program.values
    return sorted(n for n in ends if jnp.issubdtype(values[n].dtype, jnp.floating))


def _edits(graph: Graph, zeros: dict[int, Array], cut: int | None) -> dict[int, Edit]:
    edits: dict[int, Edit] = {n: lambda x, _, zero=zero: x + zero for n, zero in zeros.items()}
    below = None if cut is None else graph.links[cut].below
    if cut is not None and below is not None:
        z, lower = graph.layers[cut].z, graph.layers[below].z
        edits[z] = lambda x, seen: bridge(x + zeros[z], seen[lower])
    return edits


def _zero(value: Value) -> Array:
    return jnp.zeros(value.shape, value.dtype)


def _look(graph: Graph, environment: Environment) -> tuple[Any, ...]:
    """Take out of a forward pass what is looked at."""
    slopes = {
        name: slope_function(station, environment)(environment[station.start])
        for name, station in named_stations(graph, "activation").items()
    }
    kept = {
        name: _kept(station, environment)
        for name, station in named_stations(graph, "dropout").items()
    }
    biases = {
        index: environment[site.bias]
        for index, site in enumerate(graph.layers)
        if site.bias is not None
    }
    return [environment[site.z] for site in graph.layers], biases, slopes, kept


def _kept(station: Station, environment: Environment) -> Array:
    function = replay(station.steps, environment, station.start, station.end)
    dropped = function(jnp.ones_like(environment[station.start]))
    return jnp.mean((dropped != 0).astype(jnp.float32))
