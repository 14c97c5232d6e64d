"""The table of causes: what each is called, who finds it, the law behind it, and what answers it.

A new cause is one entry here and one finder.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from jaxdnn.diagnosis import edit_fixes, fixes, layer_causes, training_causes
from jaxdnn.diagnosis.findings import NAMED, Finding
from jaxdnn.diagnosis.fixes import FixGroup
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.training_causes import Attempt


class Place(enum.Enum):
    """Where a fault lies, seen from the pre-activation of the layer that is named.

    Attributes:
      LAYER: in what makes it: weights, padding, or the way from below.
      ABOVE: in what follows it: bias, activation, norm, dropout.
      FORMAT: in the numbers' format.
      STEP: in what the optimizer does.
    """

    LAYER = enum.auto()
    ABOVE = enum.auto()
    FORMAT = enum.auto()
    STEP = enum.auto()


def _nothing(_: Any) -> Iterable[Finding]:
    return ()


@dataclasses.dataclass(frozen=True)
class CauseKind:
    """A kind of cause.

    Attributes:
      name: what results show, such as `zero weights`; never changed, for programs read it.
      place: where the fault lies, seen from the layer that is named.
      formula: the law behind it.
      words: the law in words.
      quantity: what its picture shows, a key of `QUANTITIES`.
      find: what finds it in one pass.
      find_in_training: what finds it where a network does not train.
      fixes: `(exam, layer) -> groups of fixes` that answer it, tried before those that help
        whatever is wrong.
    """

    name: str
    place: Place
    formula: str
    words: str
    quantity: str
    find: Callable[[Exam], Iterable[Finding]] = _nothing
    find_in_training: Callable[[Attempt], Iterable[Finding]] = _nothing
    fixes: tuple[Callable[[Exam, int], Iterator[FixGroup]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Cause:
    """Something wrong with a layer.

    Attributes:
      path: where the layer is in the model, such as `layers/3`; None for what is not about one.
      cause: name of its kind, a key of `CAUSES`.
      evidence: the numbers that say so.
      strength: deviation over the spread of healthy networks; 3 or more.
      recovery: log10 of the factor by which the first layer's delta changes once the Jacobian of
        this layer is the identity; NaN where that was not tried.
    """

    path: str | None
    cause: str
    evidence: str
    strength: float
    recovery: float = math.nan

    @property
    def kind(self) -> CauseKind:
        """Its entry in the table."""
        return CAUSES[self.cause]


def find_causes(exam: Exam) -> tuple[Cause, ...]:
    """Return what one pass shows to be wrong, worst first."""
    return ranked(
        cause for kind in CAUSES.values() for cause in _causes(exam, kind, kind.find(exam))
    )


def find_training_causes(attempt: Attempt) -> tuple[Cause, ...]:
    """Return why a network does not train that may be sound at its start, worst first."""
    return ranked(
        cause
        for kind in CAUSES.values()
        for cause in _causes(attempt.exam, kind, kind.find_in_training(attempt))
    )


def _causes(exam: Exam, kind: CauseKind, findings: Iterable[Finding]) -> Iterator[Cause]:
    for layer, evidence, strength in findings:
        if strength >= NAMED:
            path = None if layer is None else exam.graph.layers[layer].path
            yield Cause(path, kind.name, evidence, strength)


def ranked(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Return causes, the worst first."""
    return tuple(sorted(causes, key=lambda cause: -cause.strength))


# Name -> (label of the axis, value of a layer).
QUANTITIES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "weights": ("σ_w = RMS(W) √fan_in", lambda layer: layer["kernel_rms"] * layer["fan_in"] ** 0.5),
    "dead": ("share of dead units", lambda layer: layer["dead"]),
    "saturated": ("share of saturated units", lambda layer: layer["saturated"]),
    "factor": ("factor of δ", lambda layer: layer["factor"]),
    "signal": ("RMS z", lambda layer: layer["pre_activation_rms"]),
    "delta": ("RMS δ", lambda layer: layer["delta_rms"]),
    "apart": ("1 − cosine", lambda layer: 1 - layer["correlation"]),
    "gradient": ("RMS ∂L/∂W", lambda layer: layer["kernel_grad_rms"]),
    "step": ("RMS ∂L/∂W over RMS W", lambda layer: layer["kernel_grad_ratio"]),
}
_GAIN = "RMS δ_l / RMS δ_(l+1) = σ_w √(fan_out / fan_in) · RMS φ'(z_l)"
_SCALE = "σ_w = RMS(W) √fan_in,   RMS δ_l ∝ σ_w,   RMS z_(l+1) ∝ σ_w"
_TABLE = (
    CauseKind(
        "zero weights",
        Place.LAYER,
        "W = 0 ⇒ ∂L/∂x = Wᵀ δ = 0",
        "No gradient passes through weights that are zero, and no unit differs from another.",
        "weights",
        find=layer_causes.zero_weights,
        fixes=(fixes.usual_weights,),
    ),
    CauseKind(
        "fan-out for fan-in",
        Place.LAYER,
        "Var W = g² / fan_out  instead of  g² / fan_in",
        "The weights have the variance that fits the layer's outputs, not its inputs, so the "
        "signal changes by √(fan_in / fan_out).",
        "weights",
        find=layer_causes.fan_out_weights,
        fixes=(fixes.usual_weights,),
    ),
    CauseKind(
        "weights too small",
        Place.LAYER,
        _SCALE,
        "Every signal and every gradient that passes this layer is multiplied by the scale of "
        "its weights, which is far below that of the other layers.",
        "weights",
        find=partial(layer_causes.deviating_weights, large=False),
        fixes=(fixes.usual_weights,),
    ),
    CauseKind(
        "weights too large",
        Place.LAYER,
        _SCALE,
        "Every signal and every gradient that passes this layer is multiplied by the scale of "
        "its weights, which is far above that of the other layers.",
        "weights",
        find=partial(layer_causes.deviating_weights, large=True),
        fixes=(fixes.usual_weights,),
    ),
    CauseKind(
        "dead units",
        Place.ABOVE,
        "z < 0 for every input ⇒ φ'(z) = 0 ⇒ δ = 0",
        "A unit that is on its flat side for every input has no gradient and never comes back.",
        "dead",
        find=partial(layer_causes.heavy_bias, dead=True),
        fixes=(fixes.zero_bias,),
    ),
    CauseKind(
        "bias too large",
        Place.ABOVE,
        "z = W x + b,   |b| ≫ RMS(W x)",
        "The bias outweighs the signal, so the unit says the same to every input.",
        "saturated",
        find=partial(layer_causes.heavy_bias, dead=False),
        fixes=(fixes.zero_bias,),
    ),
    CauseKind(
        "saturating activation",
        Place.ABOVE,
        "δ_l = φ'(z_l) · ∂L/∂x_l,   φ'(z) ≈ 0",
        "Where the activation is flat, its slope is nearly zero and stops the gradient.",
        "saturated",
        find=layer_causes.saturating_activation,
        fixes=(edit_fixes.usual_activation,),
    ),
    CauseKind(
        "missing norm",
        Place.ABOVE,
        "z = (h − mean h) / std h",
        "The other layers bring their pre-activations to unit variance; this one passes on "
        "whatever scale it receives.",
        "factor",
        find=layer_causes.missing_norm,
    ),
    CauseKind(
        "dropout",
        Place.ABOVE,
        "x → x · mask / p,   Var → Var / p",
        "So few units are kept that noise outweighs the signal: two passes of one input hardly "
        "resemble each other.",
        "factor",
        find=layer_causes.strong_dropout,
        fixes=(edit_fixes.no_dropout,),
    ),
    CauseKind(
        "padding",
        Place.LAYER,
        "factor ≤ ((1 + 2 cos(π / (n + 1))) / 3)²  per 3×3 layer on an n×n map",
        "Windows at the border multiply zeros. On a small map that is most of them, and every "
        "layer loses part of the signal.",
        "factor",
        find=layer_causes.padding,
    ),
    CauseKind(
        "softmax twice",
        Place.LAYER,
        "∂L/∂z = p − y,   p = softmax(softmax(z)) ≈ 1/n",
        "The loss takes logits. After a softmax of the network's own they lie between 0 and 1, "
        "and the loss can neither fall far nor send much back.",
        "factor",
        find=layer_causes.softmax_on_logits,
        fixes=(edit_fixes.no_softmax,),
    ),
    CauseKind(
        "gain too small everywhere",
        Place.LAYER,
        _GAIN,
        "Every layer makes the gradient a little smaller, and the depth is the exponent.",
        "factor",
        find=partial(layer_causes.shared_gain, small=True),
    ),
    CauseKind(
        "gain too large everywhere",
        Place.LAYER,
        _GAIN,
        "Every layer makes the gradient a little larger, and the depth is the exponent.",
        "factor",
        find=partial(layer_causes.shared_gain, small=False),
    ),
    CauseKind(
        "not finite",
        Place.FORMAT,
        "|z| > z_max ⇒ z = ∞,   ∞ − ∞ = NaN",
        "A number beyond the end of its format is infinite, and what is made of infinities is "
        "not a number: no step can be taken.",
        "signal",
        find=layer_causes.not_finite,
    ),
    CauseKind(
        "underflow",
        Place.FORMAT,
        "|δ| < δ_min ⇒ δ loses its digits, then δ = 0",
        "Below the smallest normal number a format has ever fewer digits, and then only zero: "
        "the gradient is there, but it cannot be written down.",
        "delta",
        find=layer_causes.underflow,
    ),
    CauseKind(
        "inputs look alike",
        Place.LAYER,
        "cos(z_a, z_b) → 1  with depth",
        "Every layer makes two inputs a little more alike, or one mixes so many values that only "
        "their mean is left. What comes out hardly depends on what goes in.",
        "apart",
        find_in_training=training_causes.inputs_alike,
    ),
    CauseKind(
        "signal too large",
        Place.LAYER,
        "RMS z_(l+1) / RMS z_l > 1,   L ∝ |z|",
        "Every layer makes the signal a little larger. The outputs start far from anything asked "
        "of them, and all they learn at first is to come down.",
        "signal",
        find_in_training=training_causes.signal_grows,
    ),
    CauseKind(
        "gradient below epsilon",
        Place.STEP,
        "step = η m / (√v + ε),   √v ≪ ε ⇒ step ≈ η m / ε",
        "Adam and its like divide by the gradient's own size, which makes its scale irrelevant, "
        "until it is smaller than ε: then the steps shrink with it.",
        "gradient",
        find_in_training=training_causes.gradient_below_epsilon,
    ),
    CauseKind(
        "step rounded away",
        Place.STEP,
        "|ΔW| < |W| 2^(−p−1) ⇒ W + ΔW = W",
        "A number of p binary digits does not change when less than half of its last digit is "
        "added to it. The parameters need a finer format than the calculation.",
        "step",
        find_in_training=training_causes.step_rounded_away,
    ),
    CauseKind(
        "learning rate too small",
        Place.STEP,
        "ΔW = −η ∂L/∂W,   |ΔW| ≪ |W|",
        "The gradient arrives, but the steps are so small that nothing is learnt in the time "
        "there is. For plain SGD a factor on the loss is a factor on the rate.",
        "step",
        find_in_training=partial(training_causes.wrong_rate, small=True),
    ),
    CauseKind(
        "learning rate too large",
        Place.STEP,
        "L(W + ΔW) ≈ L + ∂L/∂W · ΔW  only for small ΔW",
        "A step goes further than the slope holds, and the loss rises. For plain SGD a factor on "
        "the loss is a factor on the rate.",
        "step",
        find_in_training=partial(training_causes.wrong_rate, small=False),
    ),
)
CAUSES = {kind.name: kind for kind in _TABLE}
