"""What each cause of a diagnosis means: the law behind it, in a formula and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Words(NamedTuple):
    """What a cause means.

    Attributes:
      formula: the law behind it.
      words: the law in words.
      quantity: what its picture shows, a key of `QUANTITIES`.
    """

    formula: str
    words: str
    quantity: str


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
EXPLANATIONS: dict[str, Words] = {
    "weights too small": Words(
        _SCALE,
        "Every signal and every gradient that passes this layer is multiplied by the scale of its "
        "weights, which is far below that of the other layers.",
        "weights",
    ),
    "weights too large": Words(
        _SCALE,
        "Every signal and every gradient that passes this layer is multiplied by the scale of its "
        "weights, which is far above that of the other layers.",
        "weights",
    ),
    "zero weights": Words(
        "W = 0 ⇒ ∂L/∂x = Wᵀ δ = 0",
        "No gradient passes through weights that are zero, and no unit differs from another.",
        "weights",
    ),
    "fan-out for fan-in": Words(
        "Var W = g² / fan_out  instead of  g² / fan_in",
        "The weights have the variance that fits the layer's outputs, not its inputs, so the "
        "signal changes by √(fan_in / fan_out).",
        "weights",
    ),
    "saturating activation": Words(
        "δ_l = φ'(z_l) · ∂L/∂x_l,   φ'(z) ≈ 0",
        "Where the activation is flat, its slope is nearly zero and stops the gradient.",
        "saturated",
    ),
    "dead units": Words(
        "z < 0 for every input ⇒ φ'(z) = 0 ⇒ δ = 0",
        "A unit that is on its flat side for every input has no gradient and never comes back.",
        "dead",
    ),
    "bias too large": Words(
        "z = W x + b,   |b| ≫ RMS(W x)",
        "The bias outweighs the signal, so the unit says the same to every input.",
        "saturated",
    ),
    "softmax twice": Words(
        "∂L/∂z = p − y,   p = softmax(softmax(z)) ≈ 1/n",
        "The loss takes logits. After a softmax of the network's own they lie between 0 and 1, and "
        "the loss can neither fall far nor send much back.",
        "factor",
    ),
    "missing norm": Words(
        "z = (h − mean h) / std h",
        "The other layers bring their pre-activations to unit variance; this one passes on "
        "whatever scale it receives.",
        "factor",
    ),
    "dropout": Words(
        "x → x · mask / p,   Var → Var / p",
        "So few units are kept that noise outweighs the signal: two passes of one input hardly "
        "resemble each other.",
        "factor",
    ),
    "padding": Words(
        "factor ≤ ((1 + 2 cos(π / (n + 1))) / 3)²  per 3×3 layer on an n×n map",
        "Windows at the border multiply zeros. On a small map that is most of them, and every "
        "layer loses part of the signal.",
        "factor",
    ),
    "gain too small everywhere": Words(
        _GAIN,
        "Every layer makes the gradient a little smaller, and the depth is the exponent.",
        "factor",
    ),
    "gain too large everywhere": Words(
        _GAIN,
        "Every layer makes the gradient a little larger, and the depth is the exponent.",
        "factor",
    ),
    "not finite": Words(
        "|z| > z_max ⇒ z = ∞,   ∞ − ∞ = NaN",
        "A number beyond the end of its format is infinite, and what is made of infinities is not "
        "a number: no step can be taken.",
        "signal",
    ),
    "underflow": Words(
        "|δ| < δ_min ⇒ δ loses its digits, then δ = 0",
        "Below the smallest normal number a format has ever fewer digits, and then only zero: the "
        "gradient is there, but it cannot be written down.",
        "delta",
    ),
    "inputs look alike": Words(
        "cos(z_a, z_b) → 1  with depth",
        "Every layer makes two inputs a little more alike, or one mixes so many values that only "
        "their mean is left. What comes out hardly depends on what goes in.",
        "apart",
    ),
    "signal too large": Words(
        "RMS z_(l+1) / RMS z_l > 1,   L ∝ |z|",
        "Every layer makes the signal a little larger. The outputs start far from anything asked "
        "of them, and all they learn at first is to come down.",
        "signal",
    ),
    "gradient below epsilon": Words(
        "step = η m / (√v + ε),   √v ≪ ε ⇒ step ≈ η m / ε",
        "Adam and its like divide by the gradient's own size, which makes its scale irrelevant, "
        "until it is smaller than ε: then the steps shrink with it.",
        "gradient",
    ),
    "step rounded away": Words(
        "|ΔW| < |W| 2^(−p−1) ⇒ W + ΔW = W",
        "A number of p binary digits does not change when less than half of its last digit is "
        "added to it. The parameters need a finer format than the calculation.",
        "step",
    ),
    "learning rate too small": Words(
        "ΔW = −η ∂L/∂W,   |ΔW| ≪ |W|",
        "The gradient arrives, but the steps are so small that nothing is learnt in the time "
        "there is. For plain SGD a factor on the loss is a factor on the rate.",
        "step",
    ),
    "learning rate too large": Words(
        "L(W + ΔW) ≈ L + ∂L/∂W · ΔW  only for small ΔW",
        "A step goes further than the slope holds, and the loss rises. For plain SGD a factor on "
        "the loss is a factor on the rate.",
        "step",
    ),
}
