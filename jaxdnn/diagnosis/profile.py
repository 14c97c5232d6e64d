"""Why a layer's factor is what it is, as a sum of logs, and how much of it is chance.

    log(delta_l / delta_above) = weights + padding + activation + norm + ... + remainder

Each term is the log of delta's root mean square behind a segment over that before it, so that they
add up exactly. `weights` and `padding` are what independent random weights of the realised scale
would do; what the real ones do besides stands in the remainder.

Each factor comes with its band: what the same network gives with its weights redrawn, each
kernel replaced by independent normal numbers of the same root mean square. Where the real factor
lies outside, it is the weights' structure that acts, not their scale.

Whatever else is trained, such as the gain of a norm, a table of positions or a class token, has a
row of its own, which says how the signal meets it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdnn.diagnosis.gates import PartProfile
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import Exam, host_rms, rms_of
from jaxdnn.diagnosis.program import Dependence, Program

TERMS = (
    "weights",
    "padding",
    "activation",
    "norm",
    "pooling",
    "dropout",
    "residual",
    "attention",
    "softmax",
    "remainder",
)
NUM_SEEDS = 4
# Below the smallest normal float32, so that a gradient of exactly zero shows as such.
_FLOOR = 1e-45
Band = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer, the first nearest the input.

    Attributes:
      path: where it is in the user's own model, such as `layers/3`.
      kind: `dense`, `conv`, `depthwise conv`, `grouped conv` or `embedding`.
      fan_in: summands of a pre-activation.
      fan_out: pre-activations that an input reaches.
      pre_activation_mean: mean of z over batch and units.
      pre_activation_rms: root mean square of z.
      correlation: mean cosine between the pre-activations of two examples.
      delta_rms: root mean square of dL/dz.
      delta_rms_by_example: root mean square of dL/dz for each example.
      delta_band: the least and the greatest delta_rms with redrawn weights of the same scale.
      factor: delta_rms over that of the layer above (of the logits for the last).
      factor_band: the least and the greatest factor with such redrawn weights.
      terms: log of the factor as a sum; see `jaxdnn.diagnosis.profile`.
      dead: share of units with slope 0 in the whole batch; 0 without an activation.
      saturated: share of units and examples with less than 1 % of the greatest slope.
      kernel_rms: root mean square of the weights.
      kernel_grad_rms: root mean square of dL/dW.
      kernel_grad_ratio: kernel_grad_rms over kernel_rms.
      parts: of a recurrent cell what the layer's units do in it, gate by gate, in the order of the
        units; one where all do the same. The squares of their delta add up to the layer's.
    """

    path: str
    kind: str
    fan_in: float
    fan_out: float
    pre_activation_mean: float
    pre_activation_rms: float
    correlation: float
    delta_rms: float
    delta_rms_by_example: tuple[float, ...]
    delta_band: Band
    factor: float
    factor_band: Band
    terms: dict[str, float]
    dead: float
    saturated: float
    kernel_rms: float
    kernel_grad_rms: float
    kernel_grad_ratio: float
    parts: tuple[PartProfile, ...] = ()


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """One leaf of the parameters.

    Attributes:
      path: in the user's model, such as `norm/scale`.
      layer: path of the row of the layer whose kernel or bias it is; empty for any other leaf.
      role: how the signal meets it: `kernel`, `bias`, `gain` (a factor), `shift` (added), `table`
        (added, and different from place to place), `token` (put beside the signal), or the
        primitive that takes both, such as `scan`; behind it in parentheses what is made of the leaf
        first, such as `gain (exp)`; `unused` where the outputs do not depend on it.
      shape: of its array.
      rms: root mean square.
      grad_rms: root mean square of its gradient.
    """

    path: str
    layer: str
    role: str
    shape: tuple[int, ...]
    rms: float
    grad_rms: float


# What gives the same numbers in another order or shape.
_MOVES = {
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "copy", "slice"),
    *("convert_element_type", "gather", "dynamic_slice", "concatenate", "slice_of_scan", "tile"),
    *("carry_of_loop", "slice_of_loop", "last_of_loop", "stack_of_loop", "split", "stack_of_scan"),
}
_ROLES = {
    **dict.fromkeys(("mul", "div"), "gain"),
    **dict.fromkeys(("add", "sub", "add_any"), "shift"),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), "kernel"),
    **dict.fromkeys(("concatenate", "stack_of_scan", "pad"), "token"),
    "gather": "table",
}


def parameter_rows(exam: Exam) -> tuple[ParameterRow, ...]:
    """Return a row for every leaf of the parameters, in the order of the tree."""
    graph, leaves, grads = exam.graph, jax.tree.leaves(exam.params), jax.tree.leaves(exam.grads)
    owners: dict[int, tuple[str, str]] = {}
    for layer in graph.layers[::-1]:
        if layer.bias is not None:
            of_bias = graph.program.values[layer.bias].leaves
            owners |= {leaf.index: (layer.path, "bias") for leaf in of_bias}
    for layer in graph.layers[::-1]:
        # A cell's kernel may be put together of several.
        made_of = [graph.program.values[n] for n in graph.program.steps[layer.step].inputs]
        kernels = {leaf.index for value in made_of for leaf in value.leaves}
        owners |= dict.fromkeys(kernels, (layer.path, "kernel"))
    owners |= {layer.leaf.index: (layer.path, "kernel") for layer in graph.layers[::-1]}
    rows = []
    for index, (name, leaf, grad) in enumerate(zip(exam.names, leaves, grads, strict=True)):
        path, role = owners.get(index) or ("", _role(graph.program, index))
        rows.append(
            ParameterRow(name, path, role, tuple(jnp.shape(leaf)), host_rms(leaf), host_rms(grad))
        )
    return tuple(rows)


def _role(program: Program, index: int) -> str:
    """Follow a leaf to where the signal meets it."""
    values, made, changes = program.values, {program.arguments[index]}, list[str]()
    is_table = sum(size > 1 for size in values[program.arguments[index]].shape) > 1
    for step in program.steps:
        if not made.intersection(step.inputs):
            continue
        if any(values[number].depends & Dependence.INPUTS for number in step.outputs):
            role = _ROLES.get(step.name, step.name)
            role = "table" if role == "shift" and is_table else role
            return f"{role} ({', '.join(dict.fromkeys(changes))})" if changes else role
        made.update(step.outputs)
        changes += [] if step.name in _MOVES else [step.name]
    return "unused"


def layer_profiles(
    exam: Exam, deltas: Float[np.ndarray, "seed layer+1"]
) -> tuple[LayerProfile, ...]:
    """Return every layer's numbers, in the order in which the layers run.

    Args:
      exam: what was measured.
      deltas: as `redrawn_deltas` returns them, one row for each draw of the weights.
    """
    return tuple(_profile(exam, index, own) for index, own in enumerate(bands(exam.graph, deltas)))


def _profile(exam: Exam, index: int, own: Bands) -> LayerProfile:
    layer, measured = exam.graph.layers[index], exam.measured
    signal, delta = measured.signals[index], measured.delta[layer.z]
    kernel, grad = measured.kernel_rms[index], measured.kernel_grad_rms[index]
    slope = exam.slope_behind(index)
    return LayerProfile(
        path=layer.path,
        kind=layer.kind,
        fan_in=layer.fan_in,
        fan_out=layer.fan_out,
        pre_activation_mean=signal.mean,
        pre_activation_rms=signal.rms,
        correlation=signal.correlation,
        delta_rms=delta,
        delta_band=own.delta,
        delta_rms_by_example=tuple(measured.delta_by_example[index].tolist()),
        factor=_factor(delta, log_factor(exam, index)),
        factor_band=own.factor,
        terms=layer_terms(exam, index),
        dead=slope.dead,
        saturated=slope.saturated,
        kernel_rms=kernel,
        kernel_grad_rms=grad,
        kernel_grad_ratio=grad / kernel if kernel else math.nan,
        parts=measured.parts.get(index, ()),
    )


def _factor(delta: float, log_factor: float) -> float:
    """The factor; NaN where delta is zero and that above it as well."""
    if delta == 0:
        return math.nan if log_factor == 0 else 0.0
    return math.exp(log_factor) if log_factor < 700 else math.inf


def log(x: float) -> float:
    """Return the natural log, of zero that of less than float32 holds; NaN of NaN."""
    return math.log(max(x, _FLOOR)) if not math.isnan(x) else math.nan


def log_factor(exam: Exam, index: int) -> float:
    """Return the log of a layer's delta over that of the layer (or the logits) above."""
    graph, delta = exam.graph, exam.measured.delta
    above = graph.above(index)
    z = graph.program.output if above is None else graph.layers[above].z
    upper = delta.get(z, delta[graph.layers[-1].z])
    return log(delta[graph.layers[index].z]) - log(upper)


def layer_terms(exam: Exam, index: int) -> dict[str, float]:
    """Return the terms of a layer's log factor by name, all of `TERMS`; they sum to it."""
    graph, delta = exam.graph, exam.measured.delta
    terms = dict.fromkeys(TERMS, 0.0)
    above = graph.above(index)
    edge = graph.edges[-1 if above is None else above]
    if edge.below == index:
        alive = delta[graph.layers[index].z] > 0
        for segment in edge.segments:
            # Beside a way that passes nothing there is another, which the remainder stands for.
            if alive and min(delta[segment.start], delta[segment.end]) == 0:
                continue
            change = log(delta[segment.start]) - log(delta[segment.end])
            terms[segment.kind if segment.kind in terms else "remainder"] += change
        if above is not None:
            _add_layer(terms, exam, above)
    terms["remainder"] += log_factor(exam, index) - sum(terms.values())
    return terms


def _add_layer(terms: dict[str, float], exam: Exam, above: int) -> None:
    """Add what the kernel above does, and what joins its gradient from other branches."""
    layer, measured = exam.graph.layers[above], exam.measured
    terms["weights"] += log(measured.kernel_rms[above] * math.sqrt(layer.fan_out))
    terms["padding"] += 0.5 * math.log(layer.inside)
    if layer.x is not None and layer.x in measured.delta:
        terms["residual"] += log(measured.delta[layer.x]) - log(measured.through[above])


class Bands(NamedTuple):
    """Least and greatest over the seeds.

    Attributes:
      delta: RMS of a layer's delta.
      factor: RMS of a layer's delta over that of the layer above.
    """

    delta: Band
    factor: Band


def bands(graph: Graph, deltas: Float[np.ndarray, "seed layer+1"]) -> list[Bands]:
    """Return every layer's bands, given what `redrawn_deltas` returns."""
    found = []
    for index in range(len(graph.layers)):
        above = graph.above(index)
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = deltas[:, index] / deltas[:, -1 if above is None else above]
        found.append(Bands(_band(deltas[:, index]), _band(factors)))
    return found


def _band(values: np.ndarray) -> Band:
    return float(values.min()), float(values.max())


def redrawn_deltas(exam: Exam) -> Float[np.ndarray, "seed layer+1"]:
    """Return every layer's RMS of delta with redrawn weights, that of the logits last."""
    numbers = [*(layer.z for layer in exam.graph.layers), exam.graph.program.output]
    numbers[-1] = numbers[-1] if numbers[-1] in exam.measured.delta else numbers[-2]
    rows = []
    for seed in range(NUM_SEEDS):
        arrays = exam.run_pass(_redrawn(exam, seed), exam.inputs, exam.targets, exam.key)
        deltas = jax.device_get([arrays.deltas[number] for number in numbers])
        rows.append(
            [rms_of(exam.graph.program, *pair) for pair in zip(numbers, deltas, strict=True)]
        )
    return np.array(rows)


def _redrawn(exam: Exam, seed: int) -> Any:
    leaves, structure = jax.tree.flatten(exam.params)
    rng = np.random.default_rng(seed)
    # A part of a stacked leaf is put into an array of JAX.
    whole = {layer.leaf.index: layer.leaf.part is None for layer in exam.graph.layers}
    for index, layer in enumerate(exam.graph.layers):
        kernel = layer.leaf.take(leaves)
        drawn = rng.standard_normal(jnp.shape(kernel), np.float32)
        drawn = np.asarray(exam.measured.kernel_rms[index] * drawn, jnp.result_type(kernel))
        if whole[layer.leaf.index]:
            leaves[layer.leaf.index] = drawn
        else:
            layer.leaf.put(leaves, jnp.asarray(drawn))
    return jax.tree.unflatten(structure, leaves)
