"""A network as layers, where inputs meet a kernel, and the segments that a gradient passes between.

A layer is a matrix product, convolution or look-up with one operand that depends on parameters
only. Its pre-activation z is its result after the bias, where one is added.

A value dominates another if every path from the inputs to that one leads through it. Between a
value and its immediate dominator lies a segment: an activation, a norm, pooling, dropout; or a
residual block, whose branch is followed to its last layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from jax.extend import core

from jaxdnn.diagnosis.program import (
    CARRY,
    LAST,
    SLICE,
    STACK,
    Dependence,
    Leaf,
    Program,
    Step,
    Value,
)

SegmentKind = Literal[
    "activation",
    "norm",
    "pooling",
    "dropout",
    "residual",
    "attention",
    "softmax",
    "gain",
    "scale",
    "shape",
    "other",
]
# Names of jaxpr primitives.
_PASSES = {"convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "copy"}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax"}
_SHAPES = _PASSES | {"broadcast_in_dim"}
_AFFINE = {"add", "sub", "mul", "div", "neg", "add_any"}
_CUTS = {"slice", "dynamic_slice", "gather", "pad", "slice_of_scan", "rev", "concatenate"}
_TAKES = _CUTS - {"pad", "concatenate"} | {"lt", "add", "select_n", "clamp", "mul", "div"}
_ADDS = {"add", "add_any"}
# What makes one entry of many, so that it is no activation.
_MIXES = {
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k", "fft", "while"),
    *("scan", "scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_max"),
}
_BORDERS = {CARRY, LAST, SLICE, STACK}
_KINDS = {"dot_general": "dense", "conv_general_dilated": "conv"}
_PRODUCTS = frozenset(_KINDS)
_EXPONENTIALS = frozenset({"exp", "exp2"})
# Steps between a product and its softmax: a scale, a mask, minus the maximum, dropout.
_NEAR = 8
# Above all values; no value has this number.
_ROOT = -1


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a layer stands in a program.

    Attributes:
      path: in the user's model, `#2` for the second use of the same kernel.
      kind: `dense`, `conv`, `depthwise conv`, `grouped conv` or `embedding`.
      step: index of the product among the steps of the program.
      x: number of what the layer takes; None for a look-up by indices.
      leaf: the largest parameter that it is made of.
      z: number of the pre-activation.
      bias: number of what is added in between; None if nothing.
      fan_in: summands of one entry of the product.
      fan_out: entries of the product that one of x reaches, were there no border.
      inside: share of a convolution's taps that fall on the map rather than on its padding.
    """

    path: str
    kind: str
    step: int
    x: int | None
    leaf: Leaf
    z: int
    bias: int | None
    fan_in: float
    fan_out: float
    inside: float


def _find_layers(program: Program, names: Sequence[str]) -> tuple[Layer, ...]:
    """Find the layers in the order in which they run."""
    found = [
        (index, step, operands)
        for index, step in enumerate(program.steps)
        if (operands := _operands(program, step)) is not None
    ]
    leaves = [_main_leaf(program, kernel, names) for _, _, (_, kernel) in found]
    crowded = Counter(names[index].rpartition("/")[0] for index in {leaf.index for leaf in leaves})
    uses: dict[str, int] = defaultdict(int)
    consumers = _find_consumers(program)
    layers = []
    for (index, step, (x, kernel)), leaf in zip(found, leaves, strict=True):
        parent = names[leaf.index].rpartition("/")[0]
        path = parent if parent and crowded[parent] == 1 else names[leaf.index]
        path = path if leaf.part is None else f"{path}[{leaf.part}]"
        uses[path] += 1
        if uses[path] > 1:
            path = f"{path}#{uses[path]}"
        fans = _fans(step.linear, program.values[kernel].shape)
        kind = "embedding" if step.linear is None else _kind_of_layer(step.linear)
        z, bias = step.outputs[0], None
        if kind != "embedding":
            units = math.prod(program.values[kernel].shape) / fans[0]
            z, bias = _after_bias(program, consumers, z, units)
        shown = None if kind == "embedding" else x
        layers.append(Layer(path, kind, index, shown, leaf, z, bias, *fans))
    return tuple(layers)


def _kind_of_layer(linear: core.JaxprEqn) -> str:
    kind, groups = _KINDS[linear.primitive.name], linear.params.get("feature_group_count", 1)
    if groups == 1:
        return kind
    _, channel, *_ = linear.params["dimension_numbers"].lhs_spec
    return f"depthwise {kind}" if groups == _shapes(linear)[0][channel] else f"grouped {kind}"


def _find_consumers(program: Program) -> dict[int, list[Step]]:
    """Return the steps that read each value."""
    consumers: dict[int, list[Step]] = defaultdict(list)
    for step in program.steps:
        for number in step.inputs:
            consumers[number].append(step)
    return consumers


def _operands(program: Program, step: Step) -> tuple[int, int] | None:
    """Return (x, kernel) of a step that is a layer."""
    if step.linear is None and step.name != "gather":
        return None
    values = [(number, program.values[number]) for number in step.inputs]
    operands = [number for number, value in values if value.depends & Dependence.INPUTS]
    kernels = [
        number
        for number, value in values
        if value.leaves and not value.depends & Dependence.INPUTS and len(value.shape) > 1
    ]
    if len(operands) != 1 or not kernels:
        return None
    return operands[0], max(kernels, key=lambda number: math.prod(program.values[number].shape))


def _main_leaf(program: Program, kernel: int, names: Sequence[str]) -> Leaf:
    """Return the largest of the parameters that a kernel is made of."""
    shapes = [program.values[number].shape for number in program.arguments[: len(names)]]
    leaves = sorted(program.values[kernel].leaves, key=str)
    return max(leaves, key=lambda leaf: math.prod(shapes[leaf.index]))


def _after_bias(
    program: Program, consumers: dict[int, list[Step]], y: int, units: float
) -> tuple[int, int | None]:
    """Return the numbers of the pre-activation and of the bias, no more than one for each unit.

    What is more, such as a table of positions, is another input.
    """
    value = y
    while len(consumers[value]) == 1:
        (step,) = consumers[value]
        if step.name in _ADDS:
            others = [number for number in step.inputs if number != value]
            if len(others) == 1 and program.values[others[0]].depends is Dependence.PARAMS:
                sizes = [_size(program, leaf) for leaf in program.values[others[0]].leaves]
                return (step.outputs[0], others[0]) if max(sizes) <= units else (y, None)
        if step.name not in _PASSES:
            break
        value = step.outputs[0]
    return y, None


def _size(program: Program, leaf: Leaf) -> int:
    """Entries of a leaf, or of one layer's part of it."""
    shape = program.values[program.arguments[leaf.index]].shape
    return math.prod(shape if leaf.part is None else shape[1:])


def _fans(linear: core.JaxprEqn | None, kernel: tuple[int, ...]) -> tuple[float, float, float]:
    """Return fan_in, fan_out and the share of taps inside."""
    if linear is None:
        return 1.0, float(kernel[-1]), 1.0
    if linear.primitive.name == "conv_general_dilated":
        return _conv_fans(linear.params, *_shapes(linear))
    (left, right), (batch, _) = linear.params["dimension_numbers"]
    shapes = _shapes(linear)
    side = 1 if shapes[1] == kernel or math.prod(shapes[1]) == math.prod(kernel) else 0
    contracted = (left, right)[side]
    fan_in = math.prod(shapes[side][axis] for axis in contracted)
    looped = math.prod(shapes[side][axis] for axis in batch)
    return float(fan_in), math.prod(kernel) / fan_in / looped, 1.0


def _shapes(linear: core.JaxprEqn) -> list[tuple[int, ...]]:
    avals: list[Any] = [var.aval for var in linear.invars[:2]]
    return [tuple(aval.shape) for aval in avals]


def _conv_fans(
    params: dict[str, Any], x: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[float, float, float]:
    numbers = params["dimension_numbers"]
    out_axis, in_axis, *spatial = numbers.rhs_spec
    sizes = [x[axis] for axis in numbers.lhs_spec[2:]]
    taps = [kernel[axis] for axis in spatial]
    windows = (params[name] for name in ("window_strides", "padding", "rhs_dilation"))
    counts = [_pairs(*each) for each in zip(sizes, taps, *windows, strict=True)]
    if any(step != 1 for step in params["lhs_dilation"]):
        counts = [(size * tap, size) for size, tap in zip(sizes, taps, strict=True)]
    pairs = math.prod(pair for pair, _ in counts)
    positions = math.prod(out for _, out in counts)
    num_out = kernel[out_axis] / params["feature_group_count"]
    inside = pairs / (positions * math.prod(taps))
    fan_out = math.prod(taps) * positions / math.prod(sizes) * num_out
    return float(math.prod(taps) * kernel[in_axis]), fan_out, inside


def _pairs(
    size: int, taps: int, stride: int, pads: tuple[int, int], dilation: int
) -> tuple[int, int]:
    """Count the taps that fall on a line of `size`, and the positions of the window."""
    positions = (size + sum(pads) - dilation * (taps - 1) - 1) // stride + 1
    starts = [position * stride - pads[0] for position in range(positions)]
    hits = (0 <= start + tap * dilation < size for start in starts for tap in range(taps))
    return sum(hits), positions


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A piece of the way between two layers; a key for what is measured of it.

    Attributes:
      kind: what it does, a `SegmentKind`.
      start: number of the value it takes.
      end: number of the value it gives.
      steps: from start to end; of a join its last step only.
      label: name of the function, such as `relu`; empty where unknown.
      below: index of the layer that it follows; None for the inputs.
      above: index of the layer that it leads to; None for the logits.
    """

    kind: SegmentKind
    start: int
    end: int
    steps: tuple[Step, ...]
    label: str
    below: int | None = None
    above: int | None = None


def _classify(program: Program, region: Sequence[Step], start: int, end: int) -> Segment:
    """Name a region without layers."""
    label = next((step.label for step in region[::-1] if step.label), "")
    kind = _kind(program, region, start, end)
    if kind == "other":
        # Named by its primitive: that of a product or of what mixes, before any other.
        label = max((step.name for step in region), key=lambda name: name in _MIXES | _PRODUCTS)
    return Segment(kind, start, end, tuple(region), label)


def _join(step: Step, branch: int, end: int, *, weighted: bool) -> Segment:
    """Name the step at which a branch with layers meets another.

    Args:
      step: takes both.
      branch: number of the operand that is followed.
      end: number of what the step gives.
      weighted: whether a softmax makes an operand of it, or is made of its result.
    """
    kinds: dict[str, SegmentKind] = {"add": "residual", "add_any": "residual", "sub": "residual"}
    kind = kinds.get(step.name, "other")
    if weighted and step.inner & _PRODUCTS:
        kind = "attention"
    return Segment(kind, branch, end, (step,), step.label or (step.name if kind == "other" else ""))


def _kind(program: Program, region: Sequence[Step], start: int, end: int) -> SegmentKind:
    names = frozenset().union(*(step.inner | {step.name} for step in region))
    if names & _PRODUCTS:
        return "attention" if names & _EXPONENTIALS and "reduce_sum" in names else "other"
    if names & _BORDERS:
        return "shape"
    if _has_mask(program, region):
        return "dropout"
    if any(name.startswith("reduce_window") for name in names) or names & {"select_and_gather_add"}:
        return "pooling"
    if names & _REDUCTIONS:
        same = program.values[start].shape == program.values[end].shape
        return _kind_of_reduction(names, same)
    if names & _MIXES:
        return "other"
    if names & _CUTS:
        # A part that is taken, such as the last time step; to put parts together is something else.
        return "pooling" if names <= _TAKES | _SHAPES else "other"
    if names & {"slice_of_scan", "stack_of_scan"} or names <= _SHAPES:
        return "shape"
    if len(region) == 1 and region[0].name in _AFFINE and _is_affine(program, region[0], start):
        depends = [program.values[number].depends for number in region[0].inputs]
        return "gain" if Dependence.PARAMS in depends else "scale"
    return "activation"


def _kind_of_reduction(names: frozenset[str], same_shape: bool) -> SegmentKind:
    """Softmax may come in pieces: minus the maximum, exponential, over the sum."""
    if "exp" in names:
        return "softmax"
    if names & {"rsqrt", "sqrt", "pow"}:
        return "norm"
    return "softmax" if same_shape else "pooling"


def _has_mask(program: Program, region: Sequence[Step]) -> bool:
    """Tell whether something random but independent of the inputs meets the signal."""
    return any(
        program.values[number].depends & Dependence.KEY
        and not program.values[number].depends & Dependence.INPUTS
        for step in region
        for number in step.inputs
    )


def _is_affine(program: Program, step: Step, start: int) -> bool:
    """Tell whether the signal is one operand only, and not the divisor."""
    others = [number for number in step.inputs if number != start]
    from_inputs = any(program.values[n].depends & Dependence.INPUTS for n in others)
    return step.inputs.count(start) == 1 and not from_inputs


# What two neighbours are together: first a norm's gain and dropout's division, then the rest.
_PAIRS: tuple[dict[tuple[SegmentKind, SegmentKind], SegmentKind], ...] = (
    {
        ("norm", "gain"): "norm",
        ("scale", "dropout"): "dropout",
        ("softmax", "softmax"): "softmax",
        ("shape", "shape"): "shape",
    },
    {
        ("norm", "shape"): "norm",
        ("pooling", "pooling"): "pooling",
        ("pooling", "scale"): "pooling",
        ("pooling", "shape"): "pooling",
        ("shape", "pooling"): "pooling",
        ("activation", "activation"): "activation",
        ("scale", "activation"): "activation",
        ("activation", "scale"): "activation",
    },
)


def _tidy(segments: Sequence[Segment]) -> Sequence[Segment]:
    """Join what belongs together: a norm's gain and shift, dropout's division, activation parts."""
    for pairs in _PAIRS:
        joined: list[Segment] = []
        for segment in segments:
            kind = _together(pairs, joined[-1], segment) if joined else None
            if kind is None:
                joined.append(segment)
            else:
                last = joined[-1]
                steps = (*last.steps, *segment.steps)
                label = segment.label or last.label
                joined[-1] = Segment(kind, last.start, segment.end, steps, label)
        segments = joined
    return segments


def _together(
    pairs: dict[tuple[SegmentKind, SegmentKind], SegmentKind], last: Segment, new: Segment
) -> SegmentKind | None:
    """The kind of two neighbouring segments taken as one, or None where they are two."""
    if last.kind == "softmax" and [step.name for step in new.steps] == ["exp"]:
        return "softmax"
    return pairs.get((last.kind, new.kind))


@dataclasses.dataclass(frozen=True)
class Edge:
    """The way from a layer (or the inputs) up to the next layer's operand, or to the logits.

    Attributes:
      below: index of the layer below; None for the inputs.
      above: index of the layer above; None for the logits.
      segments: what lies between the two layers, from below to above.
    """

    below: int | None
    above: int | None
    segments: tuple[Segment, ...]

    @property
    def kinds(self) -> list[SegmentKind]:
        """Kinds of the segments, from below to above."""
        return [segment.kind for segment in self.segments]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network as layers and the ways between them.

    Attributes:
      program: a network written out.
      layers: in the order in which they run.
      edges: one to each layer, and one to the logits last.
    """

    program: Program
    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]

    def segments(self, kind: SegmentKind) -> list[Segment]:
        """Return all segments of a kind, from the inputs to the logits."""
        return [each for edge in self.edges for each in edge.segments if each.kind == kind]

    def following(self, index: int, kind: SegmentKind) -> list[Segment]:
        """Return the segments of a kind on the ways that start at a layer."""
        return [segment for segment in self.segments(kind) if segment.below == index]

    def index_of(self, path: str | None) -> int | None:
        """Return the index of the layer of this path; None where there is none."""
        return next((i for i, layer in enumerate(self.layers) if layer.path == path), None)

    def value_of(self, layer: Layer) -> Value:
        """Return shape and type of a layer's pre-activation."""
        return self.program.values[layer.z]

    def layer_below(self, number: int) -> int | None:
        """Return the index of the layer nearest below a value; None for the inputs."""
        by_z = {layer.z: index for index, layer in enumerate(self.layers)}
        producers = {n: step for step in self.program.steps for n in step.outputs}
        waiting, seen = [number], set()
        while waiting:
            value = waiting.pop(0)
            if value in by_z:
                return by_z[value]
            if value not in seen and value in producers:
                waiting.extend(producers[value].inputs)
            seen.add(value)
        return None

    def above(self, index: int) -> int | None:
        """Return the layer that a layer's gradient comes from; None for the logits."""
        if self.edges[-1].below == index:
            return None
        direct = [edge.above for edge in self.edges[:-1] if edge.below == index]
        return direct[-1] if direct else self._reached(index)

    def _reached(self, index: int) -> int | None:
        """The first later layer that sees anything of this one's output."""
        reached = {self.layers[index].z}
        layers = {layer.step: upper for upper, layer in enumerate(self.layers)}
        for number, step in enumerate(self.program.steps):
            if reached.intersection(step.inputs):
                if number in layers and number > self.layers[index].step:
                    return layers[number]
                reached.update(step.outputs)
        return None


def make_graph(program: Program, names: Sequence[str]) -> Graph:
    """Find the layers of a program and the segments between them.

    Args:
      program: a network written out, its parameters first among the arguments.
      names: path of every parameter leaf.
    """
    layers = _find_layers(program, names)
    walker = _Walker(program, layers)
    edges = [walker.walk(layer.x, above) for above, layer in enumerate(layers)]
    return Graph(program, layers, (*edges, walker.walk(program.output, None)))


class _Walker:
    """Finds the way down from a value."""

    def __init__(self, program: Program, layers: Sequence[Layer]) -> None:
        self._program = program
        self._producers = {number: step for step in program.steps for number in step.outputs}
        self._consumers = _find_consumers(program)
        self._by_z = {layer.z: index for index, layer in enumerate(layers)}
        self._layer_steps = {id(program.steps[layer.step]) for layer in layers}
        self._dominator: dict[int, int] = {}
        self._level: dict[int, int] = {_ROOT: 0}
        self._num_layers: dict[int, int] = {_ROOT: 0}
        for number in program.arguments:
            self._place(number, [], False)
        for step in program.steps:
            for number in step.outputs:
                self._place(number, self._sources(step), id(step) in self._layer_steps)

    def _sources(self, step: Step) -> list[int]:
        values = self._program.values
        return [n for n in step.inputs if values[n].depends & Dependence.INPUTS]

    def _place(self, number: int, sources: list[int], is_layer: bool) -> None:
        """Enter a value below which everything has been entered."""
        dominator = sources[0] if sources else _ROOT
        for source in sources[1:]:
            dominator = self._common(dominator, source)
        self._dominator[number] = dominator
        self._level[number] = self._level[dominator] + 1
        above = max((self._num_layers[source] for source in sources), default=0)
        self._num_layers[number] = above + is_layer

    def _common(self, a: int, b: int) -> int:
        while a != b:
            if self._level[a] < self._level[b]:
                a, b = b, a
            a = self._dominator[a]
        return a

    def walk(self, top: int | None, above: int | None) -> Edge:
        """Follow the way from the value that a layer sees down to the layer below."""
        segments: list[Segment] = []
        value = top
        while value is not None and value not in self._by_z and value in self._producers:
            start = self._dominator[value]
            region = self._region(value, start)
            if not any(id(step) in self._layer_steps for step in region):
                if start == _ROOT:
                    break
                segments.append(_classify(self._program, region, start, value))
                value = start
                continue
            step = self._producers[value]
            branch = self._branch(step)
            segments.append(_join(step, branch, value, weighted=self._meets_softmax(step)))
            value = branch
        below = None if value is None else self._by_z.get(value)
        own = [
            dataclasses.replace(segment, below=below, above=above)
            for segment in _tidy(segments[::-1])
        ]
        return Edge(below, above, tuple(own))

    def _meets_softmax(self, step: Step) -> bool:
        """Tell whether few steps lead from a softmax to a step, or from it to one."""
        before, after = {*step.inputs}, {*step.outputs}
        for _ in range(_NEAR):
            made_by = [self._producers[n] for n in before if n in self._producers]
            taken_by = [each for n in after for each in self._consumers.get(n, ())]
            near = [s for s in (*made_by, *taken_by) if id(s) not in self._layer_steps]
            if any(self._is_softmax(each) for each in near):
                return True
            before = {n for s in made_by if not s.inner & _PRODUCTS for n in s.inputs}
            after = {n for s in taken_by if not s.inner & _PRODUCTS for n in s.outputs}
        return False

    def _is_softmax(self, step: Step) -> bool:
        """Tell an exponential that is divided by its own sum."""
        if not step.inner & _EXPONENTIALS:
            return False
        later = {each.name for n in step.outputs for each in self._consumers.get(n, ())}
        return "reduce_sum" in step.inner or "reduce_sum" in later

    def _region(self, end: int, start: int) -> list[Step]:
        """All steps between two values, in the order in which they run."""
        found: dict[int, Step] = {}
        waiting = [end]
        while waiting:
            number = waiting.pop()
            if number == start or number not in self._producers:
                continue
            step = self._producers[number]
            if id(step) not in found:
                found[id(step)] = step
                waiting.extend(self._sources(step))
        return sorted(found.values(), key=lambda step: step.outputs[0])

    def _branch(self, step: Step) -> int:
        """The operand with the most layers below it; of equals the one that is nearer to them."""
        return max(
            self._sources(step),
            key=lambda source: (self._num_layers[source], -self._level[source]),
        )
