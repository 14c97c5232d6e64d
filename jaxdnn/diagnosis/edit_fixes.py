"""Fixes that edit the forward pass: shortcuts, norms, other activations, and less of what is there.

An edit stands in place of one value; fixes with the same edits form a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax import Array

from jaxdnn.activations import jax_activation
from jaxdnn.diagnosis.fixes import Fix, FixGroup, init_line, with_sigma
from jaxdnn.diagnosis.graph import Graph, Segment, SegmentKind
from jaxdnn.diagnosis.measure import Exam, Gain
from jaxdnn.diagnosis.program import Edit, Environment
from jaxdnn.layers import BATCH_NORM_EPSILON

# Of an activation, in units of its root mean square.
_MEAN = 0.1
# E relu'² = E relu² = 1/2, E relu = 1 / sqrt(2 pi).
_RELU = Gain(math.sqrt(0.5), math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))


def no_dropout(exam: Exam, index: int) -> Iterator[FixGroup]:
    """Leave out the dropout that follows a layer."""
    path = exam.graph.layers[index].path
    yield from _without(exam, index, "dropout", f"no dropout after {path}", "nnx.Dropout(0.0)")


def no_softmax(exam: Exam, index: int) -> Iterator[FixGroup]:
    """Leave out the softmax that follows a layer."""
    words = "return logits, without softmax"
    yield from _without(exam, index, "softmax", words, "return self.head(x)")


def _without(
    exam: Exam, index: int, kind: SegmentKind, words: str, code: str
) -> Iterator[FixGroup]:
    edits = {
        segment.end: lambda value, values, start=segment.start: values[start].reshape(value.shape)
        for segment in exam.graph.following(index, kind)
    }
    if edits:
        yield FixGroup(edits, (Fix(words, code, exam.params),))


def usual_activation(exam: Exam, index: int) -> Iterator[FixGroup]:
    """Replace the activation that follows a layer by the commonest one."""
    segments = exam.graph.segments("activation")
    signatures = {each: tuple(step.name for step in each.steps) for each in segments}
    counts = list(signatures.values())
    usual = max(segments, key=lambda segment: counts.count(signatures[segment]))
    function = jax_activation(usual.label or usual.steps[-1].name)
    if function is not None:
        edits = {
            segment.end: _in_place(function, segment.start)
            for segment in exam.graph.following(index, "activation")
        }
        words = f"after {exam.graph.layers[index].path} the other layers' activation"
        yield FixGroup(edits, (Fix(words, "x = nnx.relu(x)", exam.params),))


def _in_place(function: Callable[[Array], Array], start: int) -> Edit:
    """An edit that puts a function of the value `start` in place of what was made of it."""
    return lambda value, values: function(values[start]).astype(value.dtype)


def shortcuts(exam: Exam, weights: Fix) -> Iterator[FixGroup]:
    """Scale what every block adds by 1 / sqrt(number of blocks); build shortcuts if there are none.

    The gradient's factor over all blocks is then at most about (1 + 1 / number)^number < e. What
    ends in an activation with a mean, such as ReLU, adds up in one direction: 1 / number.

    Args:
      exam: where the blocks are found, and the gains of their activations.
      weights: other parameters, tried together with the same shortcuts.

    References:
      Hayou, Clerico, He, Deligiannidis, Doucet and Rousseau, "Stable ResNet", 2021.
    """
    for edits, (alone,) in _shortcuts(exam, exam.gains):
        yield FixGroup(edits, (alone, _both(alone, weights, weights.params)))


def _both(one: Fix, other: Fix, params: Any) -> Fix:
    return Fix(f"{one.words}; {other.words}", f"{one.code}; {other.code}", params)


def _shortcuts(exam: Exam, gains: Mapping[Segment, Gain]) -> Iterator[FixGroup]:
    """At most one group, of one fix."""
    graph = exam.graph
    branches = {segment.start for segment in graph.segments("residual")}
    # Ends of activations whose mean is not small compared with their size.
    biased = {segment.end for segment, gain in gains.items() if abs(gain.mean) > _MEAN * gain.value}
    if branches:
        scale = _scale(len(branches), bool(biased & branches))
        edits: dict[int, Edit] = dict.fromkeys(branches, lambda value, _: scale * value)
        code = f"x = x + {scale:.2g} * self.block(x)"
        yield FixGroup(edits, (Fix(f"residual branches x {scale:.2g}", code, exam.params),))
    elif blocks := _blocks(graph):
        scale = _scale(len(blocks), bool(biased & blocks.keys()))
        words = f"shortcuts past {len(blocks)} hidden layers, what they add x {scale:.2g}"
        code = f"x = x + {scale:.2g} * self.activation(self.layer(x))"
        edits = {end: _add(x, scale) for end, x in blocks.items()}
        yield FixGroup(edits, (Fix(words, code, exam.params),))


def _scale(number: int, biased: bool) -> float:
    return 1 / number if biased else 1 / math.sqrt(number)


def _blocks(graph: Graph) -> dict[int, int]:
    """By the end of a layer's activation, the layer's operand, if they are alike."""
    values = graph.program.values
    found = {}
    for edge in graph.edges:
        ends = [segment.end for segment in edge.segments if segment.kind == "activation"]
        x = None if edge.below is None else graph.layers[edge.below].x
        if ends and x is not None and values[ends[-1]].shape == values[x].shape:
            found[ends[-1]] = x
    return found


def _add(x: int, scale: float) -> Edit:
    return lambda value, values: values[x].astype(value.dtype) + scale * value


def batch_norms(exam: Exam) -> Iterator[FixGroup]:
    """Batch rather than layer norms, or batch norms where there are none."""
    over_features = {
        segment.end: _in_place(_batch_norm, segment.start)
        for segment in exam.graph.segments("norm")
        if _is_over_features(exam.graph, segment)
    }
    if over_features:
        words = f"BatchNorm in place of {len(over_features)} LayerNorms"
        yield FixGroup(over_features, (Fix(words, _norm_line("BatchNorm"), exam.params),))
    yield from _norm_everywhere(exam, "BatchNorm", _batch_norm)


def layer_norms(exam: Exam) -> Iterator[FixGroup]:
    """Layer norms where there are no norms."""
    yield from _norm_everywhere(exam, "LayerNorm", _layer_norm)


def _norm_everywhere(exam: Exam, name: str, norm: Callable[[Array], Array]) -> Iterator[FixGroup]:
    """Normalise the pre-activations of hidden layers that an activation follows."""
    hidden = {
        exam.graph.layers[edge.below].z
        for edge in exam.graph.edges[:-1]
        if edge.below is not None and "activation" in edge.kinds and "norm" not in edge.kinds
    }
    if hidden:
        words = f"{name} after {len(hidden)} hidden layers, before their activation"
        edits: dict[int, Edit] = dict.fromkeys(sorted(hidden), lambda z, _: norm(z))
        yield FixGroup(edits, (Fix(words, _norm_line(name), exam.params),))


def _norm_line(name: str) -> str:
    return f"x = self.norm(x)  # self.norm = nnx.{name}(width, rngs=rngs)"


def _is_over_features(graph: Graph, segment: Segment) -> bool:
    """Tell whether a norm takes its mean over the last axis alone."""
    last = len(graph.program.values[segment.start].shape) - 1
    axes = [step.params["axes"] for step in segment.steps if step.name == "reduce_sum"]
    return bool(axes) and all(tuple(each) == (last,) for each in axes)


def _layer_norm(z: Array) -> Array:
    return _normalised(z, (z.ndim - 1,))


def _batch_norm(z: Array) -> Array:
    return _normalised(z, tuple(range(z.ndim - 1)))


def _normalised(z: Array, axes: tuple[int, ...]) -> Array:
    variance = z.var(axes, keepdims=True)
    return (z - z.mean(axes, keepdims=True)) * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)


def relu_everywhere(exam: Exam) -> Iterator[FixGroup]:
    """ReLU with He's weights in place of another activation, alone and with shortcuts.

    References:
      He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    segments = [
        segment
        for segment in exam.graph.segments("activation")
        if segment.above is not None and segment.below is not None
    ]
    if not segments or all(_is_relu(segment) for segment in segments):
        return
    relu = {segment.end: _in_place(jax.nn.relu, segment.start) for segment in segments}
    he = with_sigma(exam, _he_sigmas(exam.graph))
    words = f"ReLU as activation of {len(segments)} layers, with He's weights"
    code = f"x = nnx.relu(x); {init_line(math.sqrt(2))}"
    with_relu = Fix(words, code, he)
    yield FixGroup(relu, (with_relu,))
    for edits, (shortcut,) in _shortcuts(exam, dict.fromkeys(exam.gains, _RELU)):
        yield FixGroup(_composed(relu, edits), (_both(with_relu, shortcut, he),))


def _is_relu(segment: Segment) -> bool:
    return segment.label == "relu" or segment.steps[-1].name == "max"


def _he_sigmas(graph: Graph) -> dict[int, float]:
    """sigma_w = sqrt(2) for layers that see an activation, 1 for the others."""
    return {
        index: math.sqrt(2) if edge.below is not None and "activation" in edge.kinds else 1.0
        for index, (layer, edge) in enumerate(zip(graph.layers, graph.edges[:-1], strict=True))
        if layer.kind != "embedding"
    }


def _composed(first: Mapping[int, Edit], second: Mapping[int, Edit]) -> dict[int, Edit]:
    """Edits that do the first, and then the second with what came of it."""

    def after(one: Edit, two: Edit) -> Edit:
        def edit(value: Array, values: Environment) -> Array:
            return two(one(value, values), values)

        return edit

    common = {number: after(first[number], second[number]) for number in first.keys() & second}
    return {**first, **second, **common}
