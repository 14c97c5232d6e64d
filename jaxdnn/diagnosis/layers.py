"""The layers of a program: where inputs meet a kernel.

A layer is a matrix product, convolution or look-up with one operand that depends on parameters
only. Its pre-activation z is its result after the bias, where one is added.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from jaxdnn.diagnosis.program import Dependence, Program, Step

_PASSES = {"convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "copy"}
_ADDS = {"add", "add_any"}
_KINDS = {"dot_general": "dense", "conv_general_dilated": "conv"}


@dataclasses.dataclass(frozen=True)
class LayerSite:
    """Where a layer stands in a program.

    Attributes:
      path: in the user's model, `#2` for the second use of the same kernel.
      kind: `dense`, `conv` or `embedding`.
      step: index of the product.
      x: number of what the layer sees; None for a look-up by indices.
      kernel: number of the kernel as used.
      leaf: the parameter that it comes from, and the slice of a scan.
      y: number of the product.
      z: number of the pre-activation.
      bias: number of what is added in between; None if nothing.
      fan_in: summands of one entry of y.
      fan_out: entries of y that one entry of x reaches, were there no border.
      inside: share of a convolution's taps that fall on the map rather than on its padding.
    """

    path: str
    kind: str
    step: int
    x: int | None
    kernel: int
    leaf: tuple[int, int | None]
    y: int
    z: int
    bias: int | None
    fan_in: float
    fan_out: float
    inside: float


def find_layers(program: Program, names: Sequence[str]) -> tuple[LayerSite, ...]:
    """Find the layers in the order in which they run.

    Args:
      program: of the network.
      names: path of every parameter leaf.
    """
    found = [
        (index, step, operands)
        for index, step in enumerate(program.steps)
        if (operands := _operands(program, step)) is not None
    ]
    leaves = [_main_leaf(program, kernel, names) for _, _, (_, kernel) in found]
    used = {leaf for leaf, _ in leaves}
    crowded = Counter(names[leaf].rpartition("/")[0] for leaf in used)
    uses: dict[str, int] = defaultdict(int)
    consumers = find_consumers(program)
    sites = []
    for (index, step, (x, kernel)), (leaf, part) in zip(found, leaves, strict=True):
        parent = names[leaf].rpartition("/")[0]
        path = parent if parent and crowded[parent] == 1 else names[leaf]
        path = path if part is None else f"{path}[{part}]"
        uses[path] += 1
        if uses[path] > 1:
            path = f"{path}#{uses[path]}"
        y = step.outputs[0]
        z, bias = _after_bias(program, consumers, y)
        fans = _fans(step.linear, program.values[kernel].shape)
        kind = "embedding" if step.linear is None else _KINDS[step.linear.primitive.name]
        shown = None if kind == "embedding" else x
        sites.append(LayerSite(path, kind, index, shown, kernel, (leaf, part), y, z, bias, *fans))
    return tuple(sites)


def find_consumers(program: Program) -> dict[int, list[Step]]:
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
    seen = [number for number, value in values if value.depends & Dependence.INPUTS]
    kernels = [
        number
        for number, value in values
        if value.leaves and not value.depends & Dependence.INPUTS and len(value.shape) > 1
    ]
    if len(seen) != 1 or not kernels:
        return None
    return seen[0], max(kernels, key=lambda number: math.prod(program.values[number].shape))


def _main_leaf(program: Program, kernel: int, names: Sequence[str]) -> tuple[int, int | None]:
    """Return the largest of the parameters that a kernel is made of."""
    shapes = [program.values[number].shape for number in program.arguments[: len(names)]]
    leaves = sorted(program.values[kernel].leaves, key=str)
    return max(leaves, key=lambda leaf: math.prod(shapes[leaf[0]]))


def _after_bias(
    program: Program, consumers: dict[int, list[Step]], y: int
) -> tuple[int, int | None]:
    """Return the numbers of the pre-activation and of the bias."""
    value = y
    while len(consumers[value]) == 1:
        (step,) = consumers[value]
        if step.name in _ADDS:
            others = [number for number in step.inputs if number != value]
            if len(others) == 1 and program.values[others[0]].depends is Dependence.PARAMS:
                return step.outputs[0], others[0]
        if step.name not in _PASSES:
            break
        value = step.outputs[0]
    return y, None


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
    counts = [
        _pairs(size, tap, stride, pads, dilation)
        for size, tap, stride, pads, dilation in zip(
            sizes,
            taps,
            params["window_strides"],
            params["padding"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
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
