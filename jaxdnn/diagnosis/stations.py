"""What a gradient passes between two layers: activation, norm, pooling, dropout, residual sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxdnn.diagnosis.program import Dependence, Program, Step

Kind = Literal[
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

_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax"}
_SHAPES = {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "convert_element_type",
    "copy",
    "broadcast_in_dim",
}
_AFFINE = {"add", "sub", "mul", "div", "neg", "add_any"}
_CUTS = {"slice", "dynamic_slice", "gather", "pad", "slice_of_scan", "rev", "concatenate"}
_PRODUCTS = {"dot_general", "conv_general_dilated"}


@dataclasses.dataclass(frozen=True)
class Station:
    """A piece of the way between two layers.

    Attributes:
      kind: what it does.
      start: number of the value it takes.
      end: number of the value it gives.
      steps: from start to end; of a join its last step only.
      label: name of the function, such as `relu`, where known.
    """

    kind: Kind
    start: int
    end: int
    steps: tuple[Step, ...]
    label: str


def classify(program: Program, region: Sequence[Step], start: int, end: int) -> Station:
    """Name a region without layers."""
    label = next((step.label for step in region[::-1] if step.label), "")
    return Station(_kind(program, region, start, end), start, end, tuple(region), label)


def join(step: Step, branch: int, end: int) -> Station:
    """Name the step at which a branch with layers meets another."""
    kinds: dict[str, Kind] = {"add": "residual", "add_any": "residual", "sub": "residual"}
    kind: Kind = "attention" if step.inner & _PRODUCTS else kinds.get(step.name, "other")
    return Station(kind, branch, end, (step,), step.label)


def _kind(program: Program, region: Sequence[Step], start: int, end: int) -> Kind:
    names = frozenset().union(*(step.inner | {step.name} for step in region))
    if names & _PRODUCTS:
        return "attention" if "exp" in names or len(region) > 1 else "other"
    if _has_mask(program, region):
        return "dropout"
    if any(name.startswith("reduce_window") for name in names) or names & {"select_and_gather_add"}:
        return "pooling"
    if names & _REDUCTIONS:
        same = program.values[start].shape == program.values[end].shape
        return _kind_of_reduction(names, same)
    if names & _CUTS:
        return "pooling"
    if names & {"slice_of_scan", "stack_of_scan"} or names <= _SHAPES:
        return "shape"
    if len(region) == 1 and region[0].name in _AFFINE and _is_affine(program, region[0], start):
        return "gain" if _has_params(program, region[0]) else "scale"
    return "activation"


def _kind_of_reduction(names: frozenset[str], same_shape: bool) -> Kind:
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
    return step.inputs.count(start) == 1 and (
        not others or not any(program.values[n].depends & Dependence.INPUTS for n in others)
    )


def _has_params(program: Program, step: Step) -> bool:
    return any(program.values[number].depends is Dependence.PARAMS for number in step.inputs)


# What two neighbours are together: first a norm's gain and dropout's division, then the rest.
_PAIRS: tuple[dict[tuple[Kind, Kind], Kind], ...] = (
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


def tidy(stations: Sequence[Station]) -> tuple[Station, ...]:
    """Join what belongs together: a norm's gain and shift, dropout's division, activation parts."""
    for pairs in _PAIRS:
        joined: list[Station] = []
        for station in stations:
            kind = _together(pairs, joined[-1], station) if joined else None
            if kind is None:
                joined.append(station)
            else:
                last = joined[-1]
                steps = (*last.steps, *station.steps)
                label = station.label or last.label
                joined[-1] = Station(kind, last.start, station.end, steps, label)
        stations = joined
    return tuple(stations)


def _together(pairs: dict[tuple[Kind, Kind], Kind], last: Station, new: Station) -> Kind | None:
    """The kind of two neighbouring stations taken as one, or None where they are two."""
    if last.kind == "softmax" and [step.name for step in new.steps] == ["exp"]:
        return "softmax"
    return pairs.get((last.kind, new.kind))
