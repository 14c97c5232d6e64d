"""Finders of what is wrong with a layer, from one pass forward and back.

A fault is a property of the layer itself, not of the signal that reaches it: its weights' scale
against that of its neighbours, a bias that outweighs the signal, an activation unlike the others, a
norm that the others have, what dropout leaves, padding. Each deviation is
a log over the spread that healthy networks show, so that they can be ranked. The last one
finds what does not fit the numbers' format.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.edit_fixes import bare_layers
from jaxdnn.diagnosis.findings import (
    ACTIVATION_SPREAD,
    CERTAIN,
    DROPOUT_SPREAD,
    FACTOR_SPREAD,
    NAMED,
    PADDING_SPREAD,
    STRUCTURAL,
    WEIGHT_SPREAD,
    Finding,
)
from jaxdnn.diagnosis.fixes import underflowing
from jaxdnn.diagnosis.gates import KEEPING
from jaxdnn.diagnosis.graph import Layer
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.profile import log, log_factor

# What the products of orthogonal rows are off by.
_ROUNDING = 0.01
# An activation that passes less on of the gradient, in the mean, makes it vanish with depth.
_FLAT = 0.5
_MANY_SATURATED = 0.1
# A gate is stuck where more of its units and examples are saturated.
_STUCK = 0.5
# Variance times fan of the initializers of LeCun and Glorot, and of He.
_USUAL_GAINS = (1.0, 2.0)
# A mean of weights so large beside their spread is none of chance; fewer weights tell nothing.
_ONE_SIDED, _FEWEST = 0.8, 30


def zero_weights(exam: Exam) -> Iterator[Finding]:
    """Find kernels of zeros."""
    for index, rms in enumerate(exam.measured.kernel_rms):
        if rms == 0 and exam.graph.layers[index].kind != "embedding":
            yield Finding(index, "every weight is zero: nothing gets through", CERTAIN)


def one_sided_weights(exam: Exam) -> Iterator[Finding]:
    """Find kernels whose entries are all alike, or lie on one side of zero."""
    leaves = jax.tree.leaves(exam.params)
    for index, layer in enumerate(exam.graph.layers):
        kernel = np.asarray(layer.leaf.take(leaves), np.float64)
        if (
            layer.kind == "embedding"
            or "#" in layer.path
            or kernel.size < _FEWEST
            or not kernel.any()
        ):
            continue
        mean, std = float(kernel.mean()), float(kernel.std())
        if std <= 1e-6 * abs(mean):
            text = (
                f"every weight is {mean:.3g}: all units of the layer compute the same, and stay so"
            )
            yield Finding(index, text, CERTAIN)
        elif abs(mean) > _ONE_SIDED * std and layer.fan_in > 1:
            text = (
                f"the weights lie on one side of zero (mean {mean:.2g}, standard deviation"
                f" {std:.2g}):"
                f" their sum over {layer.fan_in:.0f} inputs outweighs every difference"
            )
            yield Finding(index, text, STRUCTURAL * abs(mean) / std)


def fan_out_weights(exam: Exam) -> Iterator[Finding]:
    """Find kernels that deviate from the others', and would not if fan_out were fan_in."""
    for scale in _weight_scales(exam):
        # Cells scale all their kernels by the size of their state.
        if scale.is_fan_out and not _is_repeated(exam, scale.layer):
            layer = exam.graph.layers[scale.layer]
            text = f"weights scaled by fan_out {layer.fan_out:.0f}, not fan_in {layer.fan_in:.0f}"
            yield scale.finding(text)


def deviating_weights(exam: Exam, *, large: bool) -> Iterator[Finding]:
    """Find kernels far larger, or smaller, than the others, for their fan."""
    for scale in _weight_scales(exam):
        if not scale.is_fan_out and (scale.deviation > 0) == large:
            text = f"weights {math.exp(scale.deviation):.3g} x those of the other layers"
            yield scale.finding(text)


class _WeightScale(NamedTuple):
    """The scale of a layer's kernel, compared with those of the others.

    Attributes:
      layer: index.
      sigma: RMS(W) sqrt(fan_in).
      deviation: log of the scale over the median layer's, under the rule that the layers follow.
      is_fan_out: the layers follow fan_in, and it deviates much less under fan_out.
    """

    layer: int
    sigma: float
    deviation: float
    is_fan_out: bool

    def finding(self, text: str) -> Finding:
        evidence = f"{text} (sigma_w = {self.sigma:.3g})"
        return Finding(self.layer, evidence, abs(self.deviation) / WEIGHT_SPREAD)


def _weight_scales(exam: Exam) -> list[_WeightScale]:
    """The scales of all kernels that are not zero; none of fewer than three."""
    alive = [
        (index, layer)
        for index, layer in enumerate(exam.graph.layers)
        if layer.kind != "embedding"
        and exam.measured.kernel_rms[index] > 0
        and "#" not in layer.path
    ]
    if len(alive) < 3:
        return []
    rms = np.log([exam.measured.kernel_rms[index] for index, _ in alive])
    fans = np.log([[s.fan_in, (s.fan_in + s.fan_out) / 2, s.fan_out] for _, s in alive])
    scales = rms[:, None] + fans / 2
    deviations = scales - np.median(scales, axis=0)
    mode = _fan_mode(deviations)
    return [
        _WeightScale(
            index,
            math.exp(scale[0]),
            float(row[mode]),
            mode == 0 and layer.fan_in != layer.fan_out and abs(row[2]) < 0.25 * abs(row[0]),
        )
        for (index, layer), row, scale in zip(alive, deviations, scales, strict=True)
        if not _is_usual(exam, layer, exam.measured.kernel_rms[index])
    ]


def _is_usual(exam: Exam, layer: Layer, rms: float) -> bool:
    """Tell whether a kernel has the scale that a common initializer gives it."""
    fans = layer.fan_in, (layer.fan_in + layer.fan_out) / 2
    leaf = layer.leaf.take(jax.tree.leaves(exam.params))
    if len(jnp.shape(leaf)) > 1:
        # Of a convolution with strides, what initializers call its fan_out.
        *window, num_in, num_out = jnp.shape(leaf)
        fans += (math.prod(window) * (num_in + num_out) / 2,)
    near = 0.02 + 3 / math.sqrt(2 * jnp.size(leaf))
    return is_orthogonal(leaf) or any(
        abs(math.log(rms * math.sqrt(fan / gain))) < near for fan in fans for gain in _USUAL_GAINS
    )


def is_orthogonal(kernel: Any) -> bool:
    """Tell whether a matrix keeps all lengths on the side of its fewer rows or columns.

    Args:
      kernel: an array; only one of two axes can be.
    """
    if jnp.ndim(kernel) != 2:
        return False
    matrix = np.asarray(kernel, np.float64)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Of all other matrices the first row says it.
    products = (matrix[rows] @ matrix.T for rows in (slice(0, 1), slice(None)))
    return all(bool(np.abs(p - np.eye(*p.shape)).max() < _ROUNDING) for p in products)


def _fan_mode(deviations: np.ndarray) -> int:
    """Column of the fan (in, average, out) that the layers' scales follow; fan_in in doubt.

    One layer that deviates makes its neighbour deviate under another rule, so that the other rule
    has to explain more than that one.
    """
    outliers = (np.abs(deviations) > NAMED * WEIGHT_SPREAD).sum(axis=0)
    best = int(np.argmin(outliers))
    return best if outliers[best] + 1 < outliers[0] else 0


def heavy_bias(exam: Exam, *, dead: bool) -> Iterator[Finding]:
    """Find biases that outweigh the signal, and leave most units without a slope or do not."""
    for index in range(len(exam.graph.layers)):
        ratio = 0.0 if _is_usual_bias(exam, index) else _bias_over_signal(exam, index)
        share = exam.slope_behind(index).dead
        if ratio > 1 and (share > 0.5) == dead and not _is_open_gate(exam, index):
            text = f"the bias is {ratio:.3g} x the signal"
            text += f"; {share:.0%} of the units are dead" if share else ""
            yield Finding(index, text, STRUCTURAL * (1 + log(ratio)))


def _is_open_gate(exam: Exam, index: int) -> bool:
    """Tell the gates of a recurrent cell of which none is stuck.

    A bias that holds open what keeps the state says how long the cell remembers.
    """
    parts = exam.measured.parts.get(index, ())
    return any(part.gate is not None for part in parts) and not any(
        part.saturated > _STUCK and part.name not in KEEPING for part in parts
    )


def _is_usual_bias(exam: Exam, index: int) -> bool:
    """Tell whether a bias is no greater than where it is drawn like the weights."""
    return exam.measured.bias_rms[index] ** 2 * exam.graph.layers[index].fan_in < 1.2 / 3


def _bias_over_signal(exam: Exam, index: int) -> float:
    """RMS of a layer's bias over that of what it is added to; 0 where there is no signal."""
    bias, total = exam.measured.bias_rms[index], exam.measured.signals[index].rms
    signal = math.sqrt(max(total**2 - bias**2, (1e-3 * bias) ** 2))
    return bias / signal if signal > 0 else 0.0


def saturating_activation(exam: Exam) -> Iterator[Finding]:
    """Find activations whose slope is unlike that of the others."""
    # The gates of a recurrent cell are used at every step, and flat on purpose; what has no slope
    # at all, such as rounding, is no activation.
    gates = _gates(exam)
    hidden = {
        each: gain.slope
        for each, gain in exam.gains.items()
        if each.above is not None and gain.slope > 0 and not _is_repeated(exam, each.below)
        if each.below not in gates
    }
    if len(hidden) < 3:
        return
    usual = float(np.median([log(slope) for slope in hidden.values()]))
    for segment, gain in hidden.items():
        if segment.below is not None:
            text = (
                f"the activation's slope (RMS at standard normal values) is {gain:.3g}, the"
                f" others' {math.exp(usual):.3g};"
                f" {exam.measured.slopes[segment].saturated:.0%} saturated"
            )
            # A greater slope is a fault where it comes with flat sides, as of a steep tanh.
            flat = exam.measured.slopes[segment].saturated > _MANY_SATURATED
            deviation = abs(log(gain) - usual) if flat else usual - log(gain)
            yield Finding(segment.below, text, deviation / ACTIVATION_SPREAD)


def _gates(exam: Exam) -> set[int]:
    """Layers whose outputs, after an activation, are factors of another signal."""
    found = set()
    for edge in exam.graph.edges:
        for first, second in itertools.pairwise(edge.segments):
            joins = second.kind == "other" and second.label == "mul"
            if edge.below is not None and first.kind == "activation" and joins:
                found.add(edge.below)
    return found


def _is_repeated(exam: Exam, index: int | None) -> bool:
    """Tell whether a layer's kernel is used more than once, or at every time step."""
    if index is None:
        return False
    leaf, step = exam.graph.layers[index].leaf, exam.graph.layers[index].step
    if exam.graph.program.steps[step].loop is not None:
        return True
    return sum(layer.leaf == leaf for layer in exam.graph.layers) > 1


def missing_norm(exam: Exam) -> Iterator[Finding]:
    """Compare ways between layers that are alike but for a norm.

    Norms that open residual blocks do not count: the way out of the last block has none.
    """
    alike: dict[tuple[str, ...], list[tuple[int, bool]]] = defaultdict(list)
    gates = _gates(exam)
    for edge in exam.graph.edges[:-1]:
        # What leads to a gate, as in squeeze and excitation, has no norm on purpose.
        if edge.above in gates or edge.below in gates:
            continue
        kinds = edge.kinds
        opens = "norm" in kinds and "residual" in kinds[: kinds.index("norm")]
        if edge.below is not None:
            alike[_without_norm(kinds)].append((edge.below, "norm" in kinds and not opens))
    for ways in alike.values():
        having = sum(has for _, has in ways)
        if len(ways) >= 3 and having > len(ways) / 2:
            text = f"{having} of {len(ways)} layers like it are followed by a norm; it is not"
            yield from (Finding(below, text, STRUCTURAL) for below, has in ways if not has)


def _without_norm(kinds: Sequence[str]) -> tuple[str, ...]:
    return tuple(k for k in kinds if k not in ("norm", "shape", "pooling", "gain", "scale"))


def strong_dropout(exam: Exam) -> Iterator[Finding]:
    """Find dropouts that leave little."""
    for segment in exam.graph.segments("dropout"):
        kept = exam.measured.kept[segment]
        if segment.below is not None:
            text = f"dropout leaves {kept:.0%} of the units"
            yield Finding(segment.below, text, -log(kept) / DROPOUT_SPREAD)


def padding(exam: Exam) -> Iterator[Finding]:
    """Find windows whose taps see zeros at the border; layer after layer a factor below 1."""
    padded = [(i, layer.inside) for i, layer in enumerate(exam.graph.layers) if layer.inside < 1]
    if not padded:
        return
    total = sum(0.5 * math.log(inside) for _, inside in padded)
    worst, inside = min(padded, key=lambda each: each[1])
    text = (
        f"{1 - inside:.0%} of the window's taps fall on padding; over {len(padded)}"
        f" convolutions that is a factor of {math.exp(total):.2g}"
    )
    yield Finding(worst, text, -total / PADDING_SPREAD)


def linear_stack(exam: Exam) -> Iterator[Finding]:
    """Find hidden layers without an activation after them."""
    bare = sorted(
        bare_layers(exam), key=lambda index: -math.prod(_shape(exam, exam.graph.layers[index])[1:])
    )
    if bare:
        paths = ", ".join(exam.graph.layers[index].path for index in bare[:3])
        text = (
            f"no activation after {paths}{' and others' if len(bare) > 3 else ''}: layers"
            " that follow"
            " each other directly are one layer"
        )
        yield Finding(bare[0], text, STRUCTURAL)


def _shape(exam: Exam, layer: Layer) -> tuple[int, ...]:
    return exam.graph.value_of(layer).shape


def dead_layers(exam: Exam) -> Iterator[Finding]:
    """Find layers whose units are all on their flat side for every input."""
    for index in range(len(exam.graph.layers)):
        # Zero weights and heavy biases are findings of their own; what follows is dead of them.
        if exam.measured.kernel_rms[index] == 0:
            return
        for segment in exam.graph.following(index, "activation"):
            gain = exam.gains.get(segment)
            shown = gain is not None and gain.slope > 0 and not _is_repeated(exam, index)
            if shown and exam.measured.slopes[segment].dead >= 1:
                if _bias_over_signal(exam, index) > 1:
                    return
                last = segment.above is None
                name = segment.label or "the activation"
                text = (
                    f"{name} gives the same for every unit and every input of the batch, so its"
                    f" slope is 0 and no gradient passes (its inputs are about"
                    f" {exam.measured.signals[index].rms:.2g})"
                )
                yield Finding(
                    index, text, CERTAIN, "output activation" if last else "hidden activation"
                )
                return


def flat_activations(exam: Exam) -> Iterator[Finding]:
    """Find activations that each let a small part of the gradient through."""
    shown = [
        (index, segment, exam.measured.delta[segment.start] / exam.measured.delta[segment.end])
        for index in range(len(exam.graph.layers) - 1)
        for segment in exam.graph.following(index, "activation")
        if exam.measured.delta.get(segment.end, 0.0) > 0 and segment.start in exam.measured.delta
    ]
    if len(shown) < 2:
        return
    typical = float(np.median([passed for _, _, passed in shown]))
    first = exam.measured.delta[exam.graph.layers[0].z]
    if 0 < typical < _FLAT:
        label = next((segment.label for _, segment, _ in shown if segment.label), "activation")
        text = (
            f"{len(shown)} {label} layers, each passes {typical:.2g} of the gradient back:"
            f" {first:.2g} reaches {exam.graph.layers[0].path}"
        )
        yield Finding(shown[0][0], text, -math.log(typical) * len(shown) / FACTOR_SPREAD)


def shared_gain(exam: Exam, *, small: bool) -> Iterator[Finding]:
    """Find a factor below 1, or above, that most layers share and that adds up to the first."""
    layers = exam.graph.layers
    factors = [log_factor(exam, i) for i in range(len(layers)) if exam.graph.above(i) is not None]
    if len(factors) < 3 or not np.isfinite(factors).all():
        return
    typical = float(np.median(factors))
    if (typical < 0) == small:
        first, last = (log(exam.measured.delta[layers[i].z]) for i in (0, -1))
        total = math.copysign(first - last, (first - last) * typical)
        text = f"the gradient changes by {math.exp(typical):.3g} in a typical layer"
        strength = min(abs(typical) * len(factors), max(total, 0.0)) / FACTOR_SPREAD
        yield Finding(0, text, strength)


def underflow(exam: Exam) -> Iterator[Finding]:
    """Find the uppermost layer whose delta lies below the format's normal numbers."""
    found = underflowing(exam)
    if found:
        layers, delta = exam.graph.layers, exam.measured.delta
        layer = layers[found[-1]]
        dtype = exam.graph.value_of(layer).dtype
        smallest = float(jnp.finfo(dtype).tiny)
        text = (
            f"delta's RMS of {delta[layer.z]:.2g} lies below {jnp.dtype(dtype).name}'s smallest"
            f" normal number, {smallest:.2g}"
        )
        lowest = min(value for each in layers if (value := delta[each.z]) > 0)
        strength = max(NAMED, math.log(smallest / lowest) / FACTOR_SPREAD)
        yield Finding(found[-1], text, strength)
