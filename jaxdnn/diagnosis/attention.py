"""What attention does to tokens: how widely each head looks, and how alike the tokens become.

Of each head the entropy of its weights, over the log of the number of tokens it may look at: 1
where it looks at all alike, 0 where at one alone. Two failures lie at the two ends. Where every
token looks at one other, the softmax has no slope (entropy collapse). Where all look at everything
alike and nothing of a token's own is carried past, all tokens become the same (rank collapse).

References:
  Dong, Cordonnier and Loukas, "Attention Is Not All You Need: Pure Attention Loses Rank Doubly
  Exponentially with Depth", 2021. Zhai et al., "Stabilizing Transformer Training by Preventing
  Attention Entropy Collapse", 2023. Noci et al., "Signal Propagation in Transformers", 2022.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.program import Dependence, Step

# How many steps are followed from a product down to the softmax, and from there to the scores.
_NEAR = 12
# What may stand between weights and product, or between scores and softmax.
_BESIDE = {
    "add",
    "broadcast_in_dim",
    "convert_element_type",
    "div",
    "exp",
    "max",
    "mul",
    "reshape",
    "select_n",
    "squeeze",
    "stop_gradient",
    "sub",
    "transpose",
}
# What the sum of a row of weights may be off by, in low precision.
_ROUNDING = 0.02
# An entry below is none that may be looked at.
_MASKED = 1e-12
# More tokens are not compared with each other.
_MOST_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Attention:
    """Where an attention stands in a graph.

    Attributes:
      layer: index of the layer that takes what it gives; None where there is none.
      asked: index of the layer that makes the queries; None where there is none.
      seen: index of the layer that makes the keys; None where there is none.
      weights: number of what the softmax gives.
      queries: number of an operand of the scores, and the axis that is summed over.
      keys: as queries.
    """

    layer: int | None
    asked: int | None
    seen: int | None
    weights: int
    queries: tuple[int, int]
    keys: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class AttentionProfile:
    """One attention.

    Attributes:
      number: of its weights in the program.
      path: of the layer that takes what it gives.
      entropy: of each head, over that of looking at all tokens alike, in [0, 1].
      largest: of each head, the mean over tokens of the greatest weight, in [0, 1].
    """

    number: int
    path: str
    entropy: tuple[float, ...]
    largest: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class StreamProfile:
    """The stream of tokens behind one residual branch.

    Attributes:
      path: of the branch's last layer.
      branch: root mean square of the branch over that of their sum.
      alike: mean cosine between the tokens of an example, behind it.
      norm: `before` the branch, `after` the sum, or `none`.
    """

    path: str
    branch: float
    alike: float
    norm: str


def find_attentions(graph: Graph) -> list[Attention]:
    """Return the attentions of a graph, in the order in which they run; none inside loops."""
    program = graph.program
    producers = {number: step for step in program.steps for number in step.outputs}
    layers = {id(program.steps[layer.step]) for layer in graph.layers}
    found = []
    for step in program.steps:
        if step.name != "dot_general" or id(step) in layers or step.loop is not None:
            continue
        if not all(program.values[n].depends & Dependence.INPUTS for n in step.inputs):
            continue
        for operand in step.inputs:
            softmax = _climb(producers, operand, _is_softmax)
            scores = softmax and _climb(producers, softmax.inputs[0], _is_product)
            if softmax is not None and scores is not None and len(scores.inputs) == 2:
                left, right = scores.params["dimension_numbers"][0]
                queries, keys = zip(scores.inputs, (left[0], right[0]), strict=True)
                found.append(
                    Attention(
                        _next_layer(graph, step.outputs[0]),
                        graph.layer_below(queries[0]),
                        graph.layer_below(keys[0]),
                        softmax.outputs[0],
                        queries,
                        keys,
                    )
                )
                break
    return found


def _climb(producers: Mapping[int, Step], number: int, wanted: Any) -> Step | None:
    """The nearest step below a value, past what may stand between, that is what is wanted."""
    waiting, seen = [(number, 0)], set[int]()
    while waiting:
        value, far = waiting.pop(0)
        step = producers.get(value)
        if step is None or far > _NEAR or value in seen:
            continue
        seen.add(value)
        if wanted(step, producers):
            return step
        if step.name in _BESIDE or step.inner & {"custom_jvp_call"}:
            waiting.extend((each, far + 1) for each in step.inputs)
    return None


def _is_softmax(step: Step, producers: Mapping[int, Step]) -> bool:
    if "exp" in step.inner and "reduce_sum" in step.inner:
        return True
    above = producers.get(step.inputs[0]) if step.inputs else None
    return step.name == "div" and above is not None and above.name == "exp"


def _is_product(step: Step, producers: Mapping[int, Step]) -> bool:
    del producers
    return step.name == "dot_general"


def _next_layer(graph: Graph, number: int) -> int | None:
    """The first layer whose operand comes of a value."""
    made = {number}
    layers = {layer.step: index for index, layer in enumerate(graph.layers)}
    for place, step in enumerate(graph.program.steps):
        if made.intersection(step.inputs):
            if place in layers:
                return layers[place]
            made.update(step.outputs)
    return None


def shown_numbers(graph: Graph) -> list[int]:
    """Return the numbers of the values that profiles are made of."""
    attentions = find_attentions(graph)
    sides = [n for each in streams(graph) for n in each] if attentions else []
    outputs = [_output(graph, each) for each in attentions]
    own = {each for each in outputs if each is not None} if not sides else set()
    return sorted({each.weights for each in attentions} | {*sides} | own)


def _output(graph: Graph, attention: Attention) -> int | None:
    """What the layer above an attention gives, where it is tokens."""
    if attention.layer is None:
        return None
    z = graph.layers[attention.layer].z
    return z if len(graph.program.values[z].shape) == 3 else None


def streams(graph: Graph) -> Iterator[tuple[int, int]]:
    """Yield numbers of a branch and of the sum, where tokens pass: (batch, token, channel)."""
    values = graph.program.values
    seen = set()
    for segment in graph.segments("residual"):
        (total,) = segment.steps[-1].outputs
        inside = values[total].loop is not None
        if total not in seen and not inside and len(values[total].shape) == 3:
            seen.add(total)
            yield segment.start, total


def attention_profiles(graph: Graph, shown: Mapping[int, Any]) -> tuple[AttentionProfile, ...]:
    """Return what each attention does, of those whose weights are shares.

    Args:
      graph: of the network.
      shown: number -> what the value is for the batch.
    """
    found = []
    for each in find_attentions(graph):
        weights = np.asarray(shown[each.weights], np.float64)
        axis = _axis_of_shares(weights)
        if axis is None:
            continue
        rows = np.squeeze(np.moveaxis(weights, axis, -1))
        if rows.ndim >= 3:
            path = "" if each.layer is None else graph.layers[each.layer].path
            found.append(AttentionProfile(each.weights, path, *_heads(rows)))
    return tuple(found)


def _axis_of_shares(weights: np.ndarray) -> int | None:
    """The axis along which entries are shares of one."""
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        return None
    for axis in reversed(range(weights.ndim)):
        sums = weights.sum(axis)
        # A row that may look at nothing has no shares.
        if weights.shape[axis] > 1 and np.mean(np.abs(sums - 1) < _ROUNDING) > 0.5:
            return axis
    return None


def _heads(weights: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Entropy and largest weight of each head; weights are (batch, heads ..., query, key)."""
    heads = math.prod(weights.shape[1:-2])
    weights = weights.reshape(len(weights), heads, *weights.shape[-2:])
    allowed = (weights > _MASKED).any((0, 1))
    choices = allowed.sum(-1)
    rows = np.flatnonzero(choices > 1)
    logs = np.log(np.maximum(weights, _MASKED))
    entropy = -(weights * logs).sum(-1)[:, :, rows] / np.log(choices[rows])
    largest = weights.max(-1)[:, :, rows]
    return tuple(map(float, entropy.mean((0, 2)))), tuple(map(float, largest.mean((0, 2))))


def stream_profiles(graph: Graph, shown: Mapping[int, Any]) -> tuple[StreamProfile, ...]:
    """Return how alike tokens are behind each residual branch, or without any each attention.

    Args:
      graph: of the network.
      shown: number -> what the value is for the batch.
    """
    below = {each.start: each for each in graph.segments("residual")}
    found = []
    for branch, total in streams(graph):
        if total not in shown:
            continue
        layer = below[branch].below
        path = "" if layer is None else graph.layers[layer].path
        tokens = np.asarray(shown[total], np.float64)
        size = math.sqrt(float(np.mean(tokens**2)))
        own = math.sqrt(float(np.mean(np.asarray(shown[branch], np.float64) ** 2)))
        norm = _norm_of(graph, layer, total)
        found.append(StreamProfile(path, own / size if size else math.nan, alike(tokens), norm))
    if found:
        return tuple(found)
    for each in find_attentions(graph):
        z = _output(graph, each)
        if z is not None and each.layer is not None:
            tokens = np.asarray(shown[z], np.float64)
            found.append(StreamProfile(graph.layers[each.layer].path, 1.0, alike(tokens), "none"))
    return tuple(found)


def alike(tokens: np.ndarray) -> float:
    """Return the mean cosine between two tokens of an example; NaN for fewer than two.

    Args:
      tokens: (batch, token, channel).
    """
    tokens = tokens[:, :_MOST_TOKENS]
    count = tokens.shape[1]
    if count < 2:
        return math.nan
    lengths = np.linalg.norm(tokens, axis=-1, keepdims=True)
    units = tokens / np.maximum(lengths, 1e-30)
    sums = np.sum(units.sum(1) ** 2, axis=-1)
    present = (lengths > 0).sum((1, 2))
    return float(np.mean((sums - present) / (count * (count - 1))))


def _norm_of(graph: Graph, layer: int | None, total: int) -> str:
    """Where the norm stands that belongs to a branch."""
    after = [edge for edge in graph.edges for each in edge.segments if each.end == total]
    for edge in after:
        kinds = [each.kind for each in edge.segments]
        ends = [each.end for each in edge.segments]
        following = kinds[ends.index(total) + 1 :]
        if following[:1] == ["norm"] and _carries(graph, edge.segments[ends.index(total) + 1].end):
            return "after"
    first = layer
    while first is not None:
        edge = graph.edges[first]
        norms = [each for each in edge.segments if each.kind == "norm"]
        if norms:
            # What is carried on after the norm was normed by the branch before.
            return "after" if _carries(graph, norms[-1].end) else "before"
        if "residual" in edge.kinds:
            break
        first = edge.below
    return "none"


def _carries(graph: Graph, number: int) -> bool:
    """Tell whether a norm's result is added to again, rather than only looked at by a branch."""
    sums = {
        n for step in graph.program.steps if step.name in ("add", "add_any") for n in step.inputs
    }
    return number in sums
