"""Changes that help many networks, whatever is wrong: shortcuts and norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax import Array

from jaxdnn.diagnosis.gains import Gain
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.probe import Edit, Environment
from jaxdnn.diagnosis.rehearsal import Scales
from jaxdnn.diagnosis.stations import Station
from jaxdnn.layers import BATCH_NORM_EPSILON

# Of an activation, beside its root mean square.
_MEAN = 0.1


class Change(NamedTuple):
    """A change to try.

    Attributes:
      words: what to change.
      code: the line of Flax that does it.
      params: changed parameters.
      edits: of the forward pass.
      scales: factors on learning rate, gradient and loss.
      kind: what it changes: `network`, or of the step `rate`, `gradient`, `loss scale`, `float32`.
    """

    words: str
    code: str
    params: Any
    edits: Mapping[int, Edit]
    scales: Scales = Scales()
    kind: Literal["network", "rate", "gradient", "loss scale", "float32"] = "network"


class Tried(NamedTuple):
    """A change that was tried.

    Attributes:
      change: what was done.
      score: with it.
    """

    change: Change
    score: float


def both(one: Change, other: Change) -> Change:
    """Return the edits of one change on the parameters of another."""
    return Change(
        f"{one.words}; {other.words}",
        f"{one.code}; {other.code}",
        other.params,
        one.edits,
        Scales(*(a * b for a, b in zip(one.scales, other.scales, strict=True))),
    )


def shortcuts(graph: Graph, params: Any, gains: Mapping[str, Gain]) -> Iterator[Change]:
    """Scale what every block adds by 1 / sqrt(number of blocks); build shortcuts if there are none.

    The gradient's factor over all blocks is then at most about (1 + 1 / number)^number < e. What
    ends in an activation with a mean, such as ReLU, adds up in one direction: 1 / number.

    References:
      Hayou, Clerico, He, Deligiannidis, Doucet and Rousseau, "Stable ResNet", 2021.
    """
    branches = {station.start for station in named_stations(graph, "residual").values()}
    biased = _ends_with_a_mean(graph, gains)
    if branches:
        scale = _scale(len(branches), bool(biased & branches))
        words = f"residual branches x {scale:.2g}"
        edits: dict[int, Edit] = dict.fromkeys(branches, lambda value, _: scale * value)
        yield Change(words, f"x = x + {scale:.2g} * self.block(x)", params, edits)
        return
    blocks = _blocks(graph)
    if blocks:
        scale = _scale(len(blocks), bool(biased & blocks.keys()))
        words = f"shortcuts past {len(blocks)} hidden layers, what they add x {scale:.2g}"
        code = f"x = x + {scale:.2g} * self.activation(self.layer(x))"
        yield Change(words, code, params, {end: _add(x, scale) for end, x in blocks.items()})


def _scale(number: int, biased: bool) -> float:
    return 1 / number if biased else 1 / math.sqrt(number)


def _ends_with_a_mean(graph: Graph, gains: Mapping[str, Gain]) -> set[int]:
    """Return the ends of activations whose mean is not small beside their size."""
    stations = named_stations(graph, "activation")
    return {
        stations[name].end for name, gain in gains.items() if abs(gain.mean) > _MEAN * gain.value
    }


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


def batch_norms(graph: Graph, params: Any) -> Iterator[Change]:
    """Batch rather than layer norms, or batch norms where there are none."""
    over_features = {
        station.end: _over_the_batch(station.start)
        for station in named_stations(graph, "norm").values()
        if _is_over_features(graph, station)
    }
    if over_features:
        words = f"BatchNorm in place of {len(over_features)} LayerNorms"
        yield Change(words, _norm_line("BatchNorm"), params, over_features)
    yield from _norm_everywhere(graph, params, "BatchNorm", _batch_norm)


def layer_norms(graph: Graph, params: Any) -> Iterator[Change]:
    """Layer norms where there are no norms."""
    yield from _norm_everywhere(graph, params, "LayerNorm", _layer_norm)


def _norm_everywhere(graph: Graph, params: Any, name: str, edit: Edit) -> Iterator[Change]:
    """Normalise the pre-activations of hidden layers that an activation follows."""
    hidden = {
        graph.layers[link.below].z
        for link in graph.links[:-1]
        if link.below is not None
        and any(station.kind == "activation" for station in link.stations)
        and all(station.kind != "norm" for station in link.stations)
    }
    if hidden:
        words = f"{name} after {len(hidden)} hidden layers, before their activation"
        yield Change(words, _norm_line(name), params, dict.fromkeys(sorted(hidden), edit))


def _norm_line(name: str) -> str:
    return f"x = self.norm(x)  # self.norm = nnx.{name}(width, rngs=rngs)"


def _is_over_features(graph: Graph, station: Station) -> bool:
    """Tell whether a norm takes its mean over the last axis alone."""
    last = len(graph.program.values[station.start].shape) - 1
    axes = [step.params["axes"] for step in station.steps if step.name == "reduce_sum"]
    return bool(axes) and all(tuple(each) == (last,) for each in axes)


def _over_the_batch(start: int) -> Edit:
    return lambda value, seen: _batch_norm(seen[start], None).astype(value.dtype)


def _layer_norm(z: Array, _: Any) -> Array:
    return _normalised(z, (z.ndim - 1,))


def _batch_norm(z: Array, _: Any) -> Array:
    return _normalised(z, tuple(range(z.ndim - 1)))


def _normalised(z: Array, axes: tuple[int, ...]) -> Array:
    variance = z.var(axes, keepdims=True)
    return (z - z.mean(axes, keepdims=True)) * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
