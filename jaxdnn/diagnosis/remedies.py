"""Changes that help many networks, whatever is wrong: learning rate, shortcuts, norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.probe import Edit, Environment
from jaxdnn.layers import BATCH_NORM_EPSILON


class Change(NamedTuple):
    """A change to try.

    Attributes:
      words: what to change.
      code: the line of Flax that does it.
      params: changed parameters.
      edits: of the forward pass.
      rate: factor on the learning rate.
    """

    words: str
    code: str
    params: Any
    edits: Mapping[int, Edit]
    rate: float = 1.0


def remedies(graph: Graph, params: Any) -> Iterator[Change]:
    """Changes in the order in which they are tried; those without edits cost no compilation."""
    yield from _slower(params)
    yield from _shortcuts(graph, params)
    yield from _norms(graph, params)


def _slower(params: Any) -> Iterator[Change]:
    for rate in (0.1, 0.01):
        words = f"{rate:g} x the learning rate"
        yield Change(words, f"learning_rate = {rate:g} * learning_rate", params, {}, rate)


def _shortcuts(graph: Graph, params: Any) -> Iterator[Change]:
    """Scale what every block adds by 1 / sqrt(number of blocks); build shortcuts if there are none.

    The gradient's factor over all blocks is then at most about (1 + 1 / number)^number < e.

    References:
      Hayou, Clerico, He, Deligiannidis, Doucet and Rousseau, "Stable ResNet", 2021.
    """
    branches = {station.start for station in named_stations(graph, "residual").values()}
    if branches:
        scale = 1 / math.sqrt(len(branches))
        words = f"residual branches x {scale:.2g}, 1 / sqrt(their number)"
        edits: dict[int, Edit] = dict.fromkeys(branches, lambda value, _: scale * value)
        yield Change(words, f"x = x + {scale:.2g} * self.block(x)", params, edits)
        return
    blocks = _blocks(graph)
    if blocks:
        scale = 1 / math.sqrt(len(blocks))
        words = f"shortcuts past {len(blocks)} hidden layers, what they add x {scale:.2g}"
        code = f"x = x + {scale:.2g} * self.activation(self.layer(x))"
        yield Change(words, code, params, {end: _add(x, scale) for end, x in blocks.items()})


def _blocks(graph: Graph) -> dict[int, int]:
    """Return, by the end of a layer's activation, the layer's operand, if they are alike."""
    values = graph.program.values
    found = {}
    for link in graph.links:
        ends = [station.end for station in link.stations if station.kind == "activation"]
        x = None if link.below is None else graph.layers[link.below].x
        if ends and x is not None and values[ends[-1]].shape == values[x].shape:
            found[ends[-1]] = x
    return found


def _add(x: int, scale: float) -> Edit:
    def edit(value: Array, seen: Environment) -> Array:
        return seen[x].astype(value.dtype) + scale * value

    return edit


def _norms(graph: Graph, params: Any) -> Iterator[Change]:
    """Normalise the pre-activations of all hidden layers that an activation follows."""
    hidden = sorted(
        {
            graph.layers[link.below].z
            for link in graph.links[:-1]
            if link.below is not None
            and any(station.kind == "activation" for station in link.stations)
            and all(station.kind != "norm" for station in link.stations)
        }
    )
    for name, edit in {"BatchNorm": _batch_norm, "LayerNorm": _layer_norm}.items():
        if hidden:
            yield Change(
                f"{name} after {len(hidden)} hidden layers, before their activation",
                f"x = self.norm(x)  # self.norm = nnx.{name}(width, rngs=rngs)",
                params,
                dict.fromkeys(hidden, edit),
            )


def _layer_norm(z: Array, _: Any) -> Array:
    return _normalised(z, (z.ndim - 1,))


def _batch_norm(z: Array, _: Any) -> Array:
    return _normalised(z, tuple(range(z.ndim - 1)))


def _normalised(z: Array, axes: tuple[int, ...]) -> Array:
    variance = z.var(axes, keepdims=True)
    return (z - z.mean(axes, keepdims=True)) * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
