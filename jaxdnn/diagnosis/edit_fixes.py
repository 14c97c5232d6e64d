"""Fixes that edit the forward pass: shortcuts, norms, other activations, and less of what is there.

An edit stands in place of one value; fixes that hold the same edits share a compiled program.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax
from jax import Array

from jaxdnn.activations import jax_activation
from jaxdnn.diagnosis.fixes import init_line, with_sigma
from jaxdnn.diagnosis.graph import Graph, Segment
from jaxdnn.diagnosis.measure import Exam, Gain
from jaxdnn.diagnosis.program import Edit
from jaxdnn.diagnosis.setups import Fix, both
from jaxdnn.norms import BATCH_NORM_EPSILON

# What leaves a way linear.
_LINEAR_WAYS = {"shape", "scale", "gain", "dropout", "norm"}
# Of a dropout that is left out.
_KEPT = 0.5
# Share of units without a slope for any input.
_DEAD = 0.99
# Of an activation, in units of its root mean square.
_MEAN = 0.1
# E relu'² = E relu² = 1/2, E relu = 1 / sqrt(2 pi).
_RELU = Gain(math.sqrt(0.5), math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))


def no_dropout(exam: Exam, index: int) -> Iterator[Fix]:
    """Leave out every dropout that leaves less than half."""
    del index
    segments = [each for each in exam.graph.segments("dropout") if exam.measured.kept[each] < _KEPT]
    edits: dict[int, Edit] = {
        each.end: lambda value, values, start=each.start: values[start].reshape(value.shape)
        for each in segments
    }
    if edits:
        paths = [exam.graph.layers[e.below].path for e in segments if e.below is not None]
        words = f"no dropout after {', '.join(paths) or 'the inputs'}"
        yield Fix("no_dropout", words, "nnx.Dropout(0.0)", size=1, edits=edits)


def usual_activation(exam: Exam, index: int) -> Iterator[Fix]:
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
        yield Fix("usual_activation", words, "x = nnx.relu(x)", size=1, edits=edits)


def _in_place(function: Callable[[Array], Array], start: int) -> Edit:
    """An edit that puts a function of the value `start` in place of what was made of it."""
    return lambda value, values: function(values[start]).astype(value.dtype)


def shortcuts(exam: Exam, weights: Fix) -> Iterator[Fix]:
    """Scale what every block adds by 1 / sqrt(number of blocks); build shortcuts if there are none.

    The gradient's factor over all blocks is then at most about (1 + 1 / number)^number < e. What
    ends in an activation with a mean, such as ReLU, adds up in one direction: 1 / number.

    Args:
      exam: where the blocks are found, and the gains of their activations.
      weights: other parameters, tried together with the same shortcuts.

    References:
      Hayou, Clerico, He, Deligiannidis, Doucet and Rousseau, "Stable ResNet", 2021.
    """
    for alone in _past_blocks(exam, exam.gains):
        yield alone
        yield both(alone, weights)


def _past_blocks(exam: Exam, gains: Mapping[Segment, Gain]) -> Iterator[Fix]:
    """At most one fix."""
    biased = _biased(gains)
    if exam.graph.segments("residual"):
        yield from scaled_branches(exam, biased)
    else:
        yield from _new_shortcuts(exam, biased)


def scaled_branches(exam: Exam, biased: Collection[int] = ()) -> Iterator[Fix]:
    """Scale what every residual branch adds, where there are any; see `shortcuts`.

    Args:
      exam: of the network.
      biased: numbers of values with a mean.
    """
    branches = {segment.start for segment in exam.graph.segments("residual")}
    if branches:
        scale = _scale(len(branches), bool(branches.intersection(biased)))
        edits: dict[int, Edit] = dict.fromkeys(branches, lambda value, _: scale * value)
        code = f"x = x + {scale:.2g} * self.block(x)"
        words = f"residual branches x {scale:.2g}"
        yield Fix("scaled_branches", words, code, size=4, edits=edits)


def _new_shortcuts(exam: Exam, biased: Collection[int]) -> Iterator[Fix]:
    if blocks := _blocks(exam.graph):
        scale = _scale(len(blocks), bool(blocks.keys() & biased))
        words = f"shortcuts past {len(blocks)} hidden layers, what they add x {scale:.2g}"
        code = f"x = x + {scale:.2g} * self.activation(self.layer(x))"
        edits = {end: _add(x, scale) for end, x in blocks.items()}
        yield Fix("shortcuts", words, code, size=5, edits=edits)


def _biased(gains: Mapping[Segment, Gain]) -> set[int]:
    """Ends of activations whose mean is not small compared with their size."""
    return {each.end for each, gain in gains.items() if abs(gain.mean) > _MEAN * gain.value}


def _scale(number: int, biased: bool) -> float:
    return 1 / number if biased else 1 / math.sqrt(number)


def _blocks(graph: Graph) -> dict[int, int]:
    """By the end of a layer's activation, the layer's operand, if they are alike."""
    values = graph.program.values
    found = {}
    for edge in graph.edges:
        ends = [segment.end for segment in edge.segments if segment.kind == "activation"]
        x = None if edge.below is None else graph.layers[edge.below].x
        if ends and x is not None and values[ends[-1]].is_like(values[x]):
            found[ends[-1]] = x
    return found


def _add(x: int, scale: float) -> Edit:
    return lambda value, values: values[x].astype(value.dtype) + scale * value


def batch_norms(exam: Exam) -> Iterator[Fix]:
    """Batch rather than layer norms, or batch norms where there are none."""
    over_features = {
        segment.end: _in_place(_batch_norm, segment.start)
        for segment in exam.graph.segments("norm")
        if _is_over_features(exam.graph, segment)
    }
    if over_features:
        words = f"BatchNorm in place of {len(over_features)} LayerNorms"
        line = _norm_line("BatchNorm")
        yield Fix("batch_norm", words, line, size=4, edits=over_features)
    yield from _norm_everywhere(exam, "BatchNorm", _batch_norm)


def layer_norms(exam: Exam) -> Iterator[Fix]:
    """Layer norms where there are no norms."""
    yield from _norm_everywhere(exam, "LayerNorm", _layer_norm)


def _norm_everywhere(exam: Exam, name: str, norm: Callable[[Array], Array]) -> Iterator[Fix]:
    """Normalise the pre-activations of hidden layers that an activation follows."""
    hidden = {
        exam.graph.layers[edge.below].z
        for edge in exam.graph.edges[:-1]
        if edge.below is not None and "activation" in edge.kinds and "norm" not in edge.kinds
    }
    if hidden:
        words = f"{name} after {len(hidden)} hidden layers, before their activation"
        edits: dict[int, Edit] = dict.fromkeys(sorted(hidden), lambda z, _: norm(z))
        code_name = "batch_norm" if name == "BatchNorm" else "layer_norm"
        yield Fix(code_name, words, _norm_line(name), size=4, edits=edits)


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


def _other_activations(exam: Exam) -> list[Segment]:
    """Hidden activations, unless all are ReLU."""
    segments = [
        segment
        for segment in exam.graph.segments("activation")
        if segment.above is not None and segment.below is not None
    ]
    return [] if all(_is_relu(segment) for segment in segments) else segments


def _relus(segments: Sequence[Segment]) -> dict[int, Edit]:
    return {segment.end: _in_place(jax.nn.relu, segment.start) for segment in segments}


def relu_in_place(exam: Exam, index: int | None = None) -> Iterator[Fix]:
    """ReLU in place of another activation, the weights as they are."""
    del index
    segments = _other_activations(exam)
    if segments:
        words = f"ReLU as activation of {len(segments)} layers"
        yield Fix("relu", words, "x = nnx.relu(x)", size=2, edits=_relus(segments))


def relu_everywhere(exam: Exam, index: int | None = None) -> Iterator[Fix]:
    """ReLU with He's weights in place of another activation, alone and with shortcuts.

    References:
      He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    segments = _other_activations(exam)
    if not segments:
        return
    relu = _relus(segments)
    he = with_sigma(exam, _he_sigmas(exam.graph))
    words = f"ReLU as activation of {len(segments)} layers, with He's weights"
    code = f"x = nnx.relu(x); {init_line(math.sqrt(2))}"
    with_relu = Fix("relu_he", words, code, size=3, params=he, edits=relu)
    yield with_relu
    if index is not None:
        return
    for shortcut in _past_blocks(exam, dict.fromkeys(exam.gains, _RELU)):
        yield both(with_relu, shortcut)


def _is_relu(segment: Segment) -> bool:
    return segment.label == "relu" or segment.steps[-1].name == "max"


def _he_sigmas(graph: Graph) -> dict[int, float]:
    """sigma_w = sqrt(2) for layers that see an activation, 1 for the others."""
    return {
        index: math.sqrt(2) if edge.below is not None and "activation" in edge.kinds else 1.0
        for index, (layer, edge) in enumerate(zip(graph.layers, graph.edges[:-1], strict=True))
        if layer.kind != "embedding"
    }


def leaky_activations(exam: Exam, index: int) -> Iterator[Fix]:
    """Give activations that are flat for every input a slope on that side."""
    segments = [
        segment
        for segment in exam.graph.segments("activation")
        if exam.measured.slopes[segment].dead > _DEAD
    ]
    edits = {segment.end: _in_place(_leaky, segment.start) for segment in segments}
    if edits:
        words = f"leaky ReLU in {len(edits)} activation{'s' if len(edits) > 1 else ''}"
        yield Fix("leaky_relu", words, "x = nnx.leaky_relu(x, 0.1)", size=1, edits=edits)


def _leaky(z: Array) -> Array:
    return jax.nn.leaky_relu(z, 0.1)


def added_activations(exam: Exam, index: int) -> Iterator[Fix]:
    """Put a ReLU between layers that follow each other directly."""
    edits: dict[int, Edit] = {
        exam.graph.layers[lower].z: lambda z, _: jax.nn.relu(z) for lower in bare_layers(exam)
    }
    if edits:
        words = f"a ReLU after {len(edits)} hidden layer{'s' if len(edits) > 1 else ''}"
        yield Fix("add_activations", words, "x = nnx.relu(self.layer(x))", size=2, edits=edits)


def _loop_of(exam: Exam, index: int | None) -> int | None:
    if index is None:
        return None
    return exam.graph.program.steps[exam.graph.layers[index].step].loop


def bare_layers(exam: Exam) -> list[int]:
    """Return the layers from which a linear way, and no other, leads straight to the next."""
    uses = Counter(number for step in exam.graph.program.steps for number in set(step.inputs))
    return [
        edge.below
        for edge in exam.graph.edges[:-1]
        if edge.below is not None
        and set(edge.kinds) <= _LINEAR_WAYS
        and exam.graph.layers[edge.below].kind != "embedding"
        # What a shortcut takes besides, or a loop carries, is the start of a residual stream.
        and uses[exam.graph.layers[edge.below].z] < 2
        and _loop_of(exam, edge.below) == _loop_of(exam, edge.above)
    ]
