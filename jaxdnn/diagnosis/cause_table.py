"""The table of causes: what each is called, who finds it, the law behind it, and what answers it.

A new cause is one entry here and one finder.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from jaxdnn.diagnosis import (
    attention_causes,
    batch_causes,
    edit_fixes,
    fixes,
    hidden_causes,
    information,
    layer_causes,
    mixing,
    operations,
    output_causes,
    reach,
    repairs,
    running_averages,
    time_causes,
    training_causes,
)
from jaxdnn.diagnosis.findings import Category, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.setups import Fix
from jaxdnn.diagnosis.training_causes import Attempt


class Place(enum.Enum):
    """Where a fault lies, seen from the pre-activation of the layer that is named.

    Attributes:
      LAYER: in what makes it: weights, padding, or the way from below.
      ABOVE: in what follows it: bias, activation, norm, dropout.
      FORMAT: in the numbers' format.
      STEP: in what the optimizer does.
      OUTSIDE: in data, targets, last activation or loss.
    """

    LAYER = enum.auto()
    ABOVE = enum.auto()
    FORMAT = enum.auto()
    STEP = enum.auto()
    OUTSIDE = enum.auto()


def _nothing(_: Any) -> Iterable[Finding]:
    return ()


@dataclasses.dataclass(frozen=True)
class CauseKind:
    """A kind of cause.

    Attributes:
      name: what results show, such as `zero weights`; never changed, for programs read it.
      category: what the fault is of.
      place: where the fault lies, seen from the layer that is named.
      formula: the law behind it.
      words: the law in words.
      quantity: what its picture shows, a key of `QUANTITIES`.
      find: what finds it in one pass.
      find_in_training: what finds it where a network does not train.
      regardless: whether it counts even where a batch can be learnt by heart.
      fixes: `(exam, layer) -> fixes` that answer it, tried before those that help whatever is
        wrong.
    """

    name: str
    category: Category
    place: Place
    formula: str
    words: str
    quantity: str
    find: Callable[[Exam], Iterable[Finding]] = _nothing
    find_in_training: Callable[[Attempt], Iterable[Finding]] = _nothing
    regardless: bool = False
    fixes: tuple[Callable[[Exam, Any], Iterator[Fix]], ...] = ()


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
        "not finite",
        "numerics",
        Place.FORMAT,
        "log 0 = −∞,   0 / 0 = NaN,   |z| > z_max ⇒ z = ∞,   d√x/dx = ∞ at 0",
        "One operation gives infinity or NaN out of finite numbers, forward or in its slope, and "
        "everything computed from it is not a number either: no step can be taken.",
        "signal",
        find=operations.not_finite,
        fixes=(repairs.finite_inputs, repairs.guarded_operations),
    ),
    CauseKind(
        "no gradient",
        "architecture",
        Place.ABOVE,
        "d round(x)/dx = 0,   d argmax(x)/dx = 0,   d stop_gradient(x)/dx = 0",
        "These parameters stay as they are: on every way from them to the loss stands an operation "
        "whose slope is 0 everywhere, or they are not used at all.",
        "delta",
        find=reach.no_gradient,
        regardless=True,
        fixes=(reach.let_through,),
    ),
    CauseKind(
        "loss without gradient",
        "loss",
        Place.STEP,
        "∂L/∂outputs = 0",
        "The loss counts, rounds or compares the outputs, or does not use them: it does not change "
        "when they change a little, so that no parameter learns.",
        "delta",
        find=reach.loss_without_gradient,
        fixes=(repairs.usual_loss,),
    ),
    CauseKind(
        "examples mixed",
        "architecture",
        Place.LAYER,
        "∂ output_i / ∂ input_j ≠ 0,   j ≠ i",
        "The answer to one example depends on the other examples of its batch, or the answer"
        " at one "
        "step on inputs of later steps: what is learnt does not hold for an example by itself.",
        "signal",
        find=mixing.mixed_examples,
        regardless=True,
    ),
    CauseKind(
        "softmax over one unit",
        "output activation",
        Place.OUTSIDE,
        "softmax(z) = e^z / e^z = 1",
        "A softmax shares 1 out among its units. A single unit always gets all of it, so the"
        " answer "
        "is the same for every input and every weight.",
        "delta",
        find=output_causes.softmax_of_one,
        fixes=(repairs.classifier, repairs.fitting_output),
    ),
    CauseKind(
        "too few outputs",
        "architecture",
        Place.OUTSIDE,
        "k classes ⇒ k outputs",
        "One number between 0 and 1 cannot say which of several classes it is.",
        "delta",
        find=output_causes.too_few_outputs,
        fixes=(repairs.classifier,),
    ),
    CauseKind(
        "loss independent of outputs",
        "loss",
        Place.OUTSIDE,
        "∂L/∂y = 0",
        "Whatever the network answers, the loss stays the same, so nothing can be learnt.",
        "delta",
        find=output_causes.independent_loss,
        fixes=(repairs.usual_loss,),
    ),
    CauseKind(
        "loss cannot tell outputs apart",
        "loss",
        Place.OUTSIDE,
        "L(y_1, y_2) = L(y_2, y_1)",
        "The loss asks the same of every output, so that none can come to stand for a class.",
        "delta",
        find=output_causes.symmetric_loss,
        fixes=(repairs.usual_loss,),
    ),
    CauseKind(
        "loss without lower bound",
        "loss",
        Place.OUTSIDE,
        "L(c y) → −∞  for  c → ∞",
        "The loss can be lowered for ever by making the outputs larger, whatever the inputs are.",
        "delta",
        find=output_causes.unbounded_loss,
        regardless=True,
        fixes=(repairs.usual_loss, repairs.negated_loss),
    ),
    CauseKind(
        "loss of the wrong sign",
        "loss",
        Place.OUTSIDE,
        "L(t, t) > L(c, t)",
        "What makes the loss fall leads away from the targets.",
        "delta",
        find=output_causes.wrong_sign,
        regardless=True,
        fixes=(repairs.negated_loss,),
    ),
    CauseKind(
        "wrong labels",
        "labels",
        Place.OUTSIDE,
        "0 ≤ y < k",
        "A label has to stand for one of the outputs, and labels have to differ.",
        "delta",
        find=output_causes.wrong_labels,
        regardless=True,
        fixes=(repairs.shifted_labels,),
    ),
    CauseKind(
        "targets without a say",
        "labels",
        Place.OUTSIDE,
        "max(0, 1 − t y) = 1  for  t = 0",
        "The loss does not ask anything of the examples with one of the labels.",
        "delta",
        find=output_causes.blind_targets,
        fixes=(repairs.signed_labels,),
    ),
    CauseKind(
        "inputs not read",
        "architecture",
        Place.OUTSIDE,
        "∂y / ∂x_t = 0",
        "What the outputs do not depend on cannot be used, whatever it tells of the targets.",
        "signal",
        find=output_causes.unread_inputs,
        regardless=True,
    ),
    CauseKind(
        "targets broadcast",
        "target shape",
        Place.OUTSIDE,
        "(n, 1) − (n,) = (n, n)",
        "Arrays of unlike shapes are stretched against each other, so that every answer is"
        " compared "
        "with the targets of all the others.",
        "delta",
        find=output_causes.broadcast_targets,
        fixes=(repairs.reshaped_targets,),
    ),
    CauseKind(
        "error relative to zero",
        "loss",
        Place.OUTSIDE,
        "|y − t| / |t|,   t = 0",
        "An error divided by its target counts a target of zero without end.",
        "delta",
        find=output_causes.relative_error,
        fixes=(repairs.usual_loss,),
    ),
    CauseKind(
        "outputs cannot reach targets",
        "output activation",
        Place.OUTSIDE,
        "y ∉ φ(ℝ)",
        "The activation after the last layer gives only some numbers, and the targets are others.",
        "delta",
        find=output_causes.out_of_reach,
        fixes=(repairs.fitting_output,),
    ),
    CauseKind(
        "outputs are no probabilities",
        "output activation",
        Place.OUTSIDE,
        "L = −log p,   0 < p < 1",
        "The loss takes probabilities. Numbers outside 0 to 1 are cut off there, and what is"
        " cut off "
        "has no gradient.",
        "delta",
        find=output_causes.missing_squash,
        fixes=(repairs.fitting_output,),
    ),
    CauseKind(
        "inputs rounded",
        "input scale",
        Place.OUTSIDE,
        "⌊x⌋ = 0  for  0 ≤ x < 1",
        "A table is looked up by whole numbers. What lies between them is cut off.",
        "signal",
        find=output_causes.rounded_inputs,
        fixes=(repairs.whole_numbers,),
    ),
    CauseKind(
        "squared error on classes",
        "loss",
        Place.OUTSIDE,
        "∂(p − y)²/∂z = 2 (p − y) p (1 − p)",
        "An error of numbers says little where the answer is a class.",
        "delta",
        find=output_causes.squared_classes,
        fixes=(repairs.usual_loss,),
    ),
    CauseKind(
        "inputs not standardised",
        "input scale",
        Place.OUTSIDE,
        "z = (x − mean) / std",
        "Large inputs, or inputs of unlike scales, ask for steps of unlike sizes: what is"
        " right for "
        "one is far too much or too little for another.",
        "signal",
        find=output_causes.scale_of_inputs,
        fixes=(repairs.standardised_inputs,),
    ),
    CauseKind(
        "targets not standardised",
        "target scale",
        Place.OUTSIDE,
        "y = (t − mean) / std",
        "The outputs start near 0. Far targets take as many steps as it takes to get there,"
        " or steps "
        "too large for the rest of the network.",
        "signal",
        find=output_causes.target_scale,
        fixes=(repairs.standardised_targets,),
    ),
    CauseKind(
        "targets of unlike scales",
        "target scale",
        Place.OUTSIDE,
        "L = Σ_j (y_j − t_j)²,   Var t_1 ≫ Var t_2",
        "The loss adds up the errors of all columns; a column with small numbers does not count.",
        "delta",
        find=output_causes.unlike_targets,
        regardless=True,
        fixes=(repairs.standardised_targets,),
    ),
    CauseKind(
        "summed loss",
        "loss",
        Place.OUTSIDE,
        "L = Σ_i L_i   ⇒   ∂L/∂W ∝ n",
        "A loss that adds up the examples has a gradient that grows with the batch, and so does "
        "every step.",
        "step",
        find=output_causes.summed_loss,
        fixes=(repairs.mean_loss,),
    ),
    CauseKind(
        "no activation between layers",
        "hidden activation",
        Place.ABOVE,
        "W₂ (W₁ x) = (W₂ W₁) x",
        "Layers without an activation between them are one layer: only a straight line can"
        " be learnt.",
        "factor",
        find=layer_causes.linear_stack,
        fixes=(edit_fixes.added_activations,),
    ),
    CauseKind(
        "dead layer",
        "hidden activation",
        Place.ABOVE,
        "z < 0 for every input and unit ⇒ δ = 0",
        "All units of the layer are on their flat side for every input: no gradient passes it.",
        "dead",
        find=layer_causes.dead_layers,
        fixes=(edit_fixes.leaky_activations, repairs.fitting_output),
    ),
    CauseKind(
        "flat activations",
        "hidden activation",
        Place.ABOVE,
        "δ_l = Wᵀ δ_(l+1) · φ'(z_l),   max σ'(z) = 1/4",
        "Each activation lets only a part of the gradient through, and the depth is the exponent.",
        "factor",
        find=layer_causes.flat_activations,
        fixes=(edit_fixes.relu_in_place, edit_fixes.relu_everywhere),
    ),
    CauseKind(
        "zero weights",
        "initialisation",
        Place.LAYER,
        "W = 0 ⇒ ∂L/∂x = Wᵀ δ = 0",
        "No gradient passes through weights that are zero, and no unit differs from another.",
        "weights",
        find=layer_causes.zero_weights,
        fixes=(fixes.usual_weights, fixes.default_weights),
    ),
    CauseKind(
        "one-sided weights",
        "initialisation",
        Place.LAYER,
        "z = Σ w_i x_i ≈ E w · Σ x_i",
        "Weights that are all alike, or all of one sign, add everything up: the units hardly"
        " differ, "
        "and their sums are far from zero.",
        "weights",
        find=layer_causes.one_sided_weights,
        fixes=(fixes.default_weights,),
    ),
    CauseKind(
        "fan-out for fan-in",
        "initialisation",
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
        "initialisation",
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
        "initialisation",
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
        "hidden activation",
        Place.ABOVE,
        "z < 0 for every input ⇒ φ'(z) = 0 ⇒ δ = 0",
        "A unit that is on its flat side for every input has no gradient and never comes back.",
        "dead",
        find=partial(layer_causes.heavy_bias, dead=True),
        fixes=(fixes.zero_bias,),
    ),
    CauseKind(
        "bias too large",
        "initialisation",
        Place.ABOVE,
        "z = W x + b,   |b| ≫ RMS(W x)",
        "The bias outweighs the signal, so the unit says the same to every input.",
        "saturated",
        find=partial(layer_causes.heavy_bias, dead=False),
        fixes=(fixes.zero_bias,),
    ),
    CauseKind(
        "saturating activation",
        "hidden activation",
        Place.ABOVE,
        "δ_l = φ'(z_l) · ∂L/∂x_l,   φ'(z) ≈ 0",
        "Where the activation is flat, its slope is nearly zero and stops the gradient.",
        "saturated",
        find=layer_causes.saturating_activation,
        fixes=(edit_fixes.usual_activation,),
    ),
    CauseKind(
        "missing norm",
        "architecture",
        Place.ABOVE,
        "z = (h − mean h) / std h",
        "The other layers bring their pre-activations to unit variance; this one passes on "
        "whatever scale it receives.",
        "factor",
        find=layer_causes.missing_norm,
    ),
    CauseKind(
        "dropout",
        "regularisation",
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
        "architecture",
        Place.LAYER,
        "factor ≤ ((1 + 2 cos(π / (n + 1))) / 3)²  per 3×3 layer on an n×n map",
        "Windows at the border multiply zeros. On a small map that is most of them, and every "
        "layer loses part of the signal.",
        "factor",
        find=layer_causes.padding,
    ),
    CauseKind(
        "gain too small everywhere",
        "initialisation",
        Place.LAYER,
        _GAIN,
        "Every layer makes the gradient a little smaller, and the depth is the exponent.",
        "factor",
        find=partial(layer_causes.shared_gain, small=True),
        fixes=(fixes.default_weights, fixes.critical),
    ),
    CauseKind(
        "gain too large everywhere",
        "initialisation",
        Place.LAYER,
        _GAIN,
        "Every layer makes the gradient a little larger, and the depth is the exponent.",
        "factor",
        find=partial(layer_causes.shared_gain, small=False),
        fixes=(fixes.critical, fixes.default_weights),
    ),
    CauseKind(
        "not finite data",
        "numerics",
        Place.OUTSIDE,
        "NaN + x = NaN",
        "One row that is not a number makes the mean over the batch, and with it every"
        " gradient, not a number.",
        "signal",
        find=lambda exam: batch_causes.not_finite_rows(exam.inputs, exam.targets),
        regardless=True,
        fixes=(repairs.finite_inputs,),
    ),
    CauseKind(
        "transposed weights",
        "initialisation",
        Place.LAYER,
        "W x  instead of  Wᵀ x",
        "A square kernel fits either way round. Another library, or a reshape, keeps the other.",
        "weights",
        find=hidden_causes.transposed_weights,
        regardless=True,
    ),
    CauseKind(
        "weights of another layer",
        "initialisation",
        Place.LAYER,
        "W_a ↔ W_b",
        "Two layers of one shape can take each other's weights without an error. Names"
        " decide, not the order.",
        "weights",
        find=hidden_causes.exchanged_weights,
        regardless=True,
    ),
    CauseKind(
        "weights out of scale",
        "initialisation",
        Place.LAYER,
        _SCALE,
        "The layer's weights are many times larger, or smaller, than those that it was"
        " trained with.",
        "weights",
        find=hidden_causes.mis_scaled_weights,
        regardless=True,
    ),
    CauseKind(
        "untrained layer",
        "initialisation",
        Place.LAYER,
        "W = W_0",
        "The layer is as an initialiser leaves it, among layers that have been trained: it"
        " was not loaded, "
        "or left out of training.",
        "weights",
        find=hidden_causes.untrained_layer,
        regardless=True,
    ),
    CauseKind(
        "foreign running averages",
        "architecture",
        Place.ABOVE,
        "z = (h − m) / s,   m, s of other data",
        "In evaluation a batch norm takes the mean and variance that it has kept. If those"
        " are of other data, "
        "it shifts and stretches every signal.",
        "signal",
        find=running_averages.foreign_averages,
        regardless=True,
    ),
    CauseKind(
        "targets of other rows",
        "labels",
        Place.OUTSIDE,
        "(x_i, y_{i+1})",
        "Inputs and targets are in different orders: each row is asked for the answer of another.",
        "delta",
        find=information.shifted_targets,
        regardless=True,
        fixes=(information.realigned_targets,),
    ),
    CauseKind(
        "targets at random",
        "labels",
        Place.OUTSIDE,
        "p(y | x) = p(y)",
        "Nothing about a row tells its target. A batch can be learnt by heart, and no other"
        " row is answered "
        "better than by chance.",
        "delta",
        find=information.random_targets,
        regardless=True,
    ),
    CauseKind(
        "labels mixed up",
        "labels",
        Place.OUTSIDE,
        "p(y = a | x) = p(y = b | x)",
        "Some classes have each other's labels, in part or altogether.",
        "delta",
        find=information.mixed_labels,
        regardless=True,
    ),
    CauseKind(
        "feature is the target",
        "labels",
        Place.OUTSIDE,
        "x_j = a y + b",
        "Where a column of the inputs holds the answer, everything is learnt from it, and nothing "
        "from the others. Rows to which nobody knows the answer yet do not have it.",
        "signal",
        find=batch_causes.feature_that_is_the_target,
        regardless=True,
    ),
    CauseKind(
        "contradictory rows",
        "labels",
        Place.OUTSIDE,
        "x_i = x_j,   y_i ≠ y_j",
        "The same inputs ask for two answers. The best that a network can do is the answer between "
        "them; a loss of zero is out of reach.",
        "signal",
        find=batch_causes.contradictory_rows,
    ),
    CauseKind(
        "feature outweighs",
        "input scale",
        Place.OUTSIDE,
        "z = Σ w_j x_j ≈ w_k x_k   if   std x_k ≫ std x_j",
        "One feature is so large that the others do not show in the sum.",
        "signal",
        find=batch_causes.outweighing_feature,
        regardless=True,
        fixes=(repairs.standardised_inputs,),
    ),
    CauseKind(
        "constant feature",
        "input scale",
        Place.OUTSIDE,
        "x_k = c",
        "A feature that is the same in every row tells nothing; a bias says as much.",
        "signal",
        find=batch_causes.constant_feature,
        regardless=True,
    ),
    CauseKind(
        "inputs of another scale",
        "input scale",
        Place.OUTSIDE,
        "((x − m) / s − m) / s",
        "The inputs are normalised by other constants than the network was trained with, or twice.",
        "signal",
        find=batch_causes.foreign_normalisation,
        regardless=True,
        fixes=(repairs.standardised_inputs,),
    ),
    CauseKind(
        "padding counts",
        "loss",
        Place.OUTSIDE,
        "L = Σ m_i L_i / Σ m_i,   m_i = 0 for what fills up",
        "Rows, or places of a sequence, that only fill up a batch are learnt like data.",
        "delta",
        find=batch_causes.padding_rows,
        regardless=True,
    ),
    CauseKind(
        "token use",
        "input scale",
        Place.LAYER,
        "∂L/∂E_k = 0  for a token k that never occurs",
        "Most of the table is never looked up, or one row nearly always: tokens and table do"
        " not belong together.",
        "weights",
        find=batch_causes.token_use,
        regardless=True,
    ),
    CauseKind(
        "underflow",
        "numerics",
        Place.FORMAT,
        "|δ| < δ_min ⇒ δ loses its digits, then δ = 0",
        "Below the smallest normal number a format has ever fewer digits, and then only zero: "
        "the gradient is there, but it cannot be written down.",
        "delta",
        find=layer_causes.underflow,
    ),
    CauseKind(
        "attention to one token",
        "initialisation",
        Place.LAYER,
        "∂ softmax_i / ∂ s_j = p_i (1[i = j] − p_j) → 0   as max p → 1",
        "The scores of queries and keys are so large that the softmax gives nearly all weight to"
        " one token (entropy collapse). No gradient reaches queries and keys, and a small step"
        " moves all weight at once.",
        "signal",
        find=attention_causes.entropy_collapse,
        fixes=(attention_causes.softer_scores,),
    ),
    CauseKind(
        "tokens become alike",
        "architecture",
        Place.LAYER,
        "rank (x_1 … x_T) → 1  with depth",
        "Attention takes means of tokens. Where a token's own part is not carried past it, or too"
        " weakly, all tokens are the same after some blocks (rank collapse), and the gradient of"
        " queries and keys vanishes.",
        "apart",
        find=attention_causes.rank_collapse,
        fixes=(attention_causes.carried_past,),
    ),
    CauseKind(
        "gradient vanishes through time",
        "architecture",
        Place.LAYER,
        "∂h_T / ∂h_(T−k) = Π (diag(f_t) + …),   f^k → 0",
        "At every time step the state is multiplied, by a gate or by weights, and the gradient"
        " with it. What came longer ago than a few times the horizon has no say in what is learnt.",
        "factor",
        find=time_causes.vanishing_through_time,
        fixes=(
            time_causes.longer_memory,
            time_causes.orthogonal_recurrence,
            time_causes.slow_state,
        ),
    ),
    CauseKind(
        "gradient explodes through time",
        "initialisation",
        Place.LAYER,
        "‖∂h_T / ∂h_(T−k)‖ ∝ λ^k,   λ > 1",
        "At every time step the weights from state to state make the gradient a little longer."
        " Over a long sequence a step goes nowhere, or to infinity.",
        "factor",
        find=time_causes.exploding_through_time,
        fixes=(time_causes.orthogonal_recurrence, time_causes.slow_state),
    ),
    CauseKind(
        "inputs look alike",
        "initialisation",
        Place.LAYER,
        "cos(z_a, z_b) → 1  with depth",
        "Every layer makes two inputs a little more alike, or one mixes so many values that only "
        "their mean is left. What comes out hardly depends on what goes in.",
        "apart",
        find_in_training=training_causes.inputs_alike,
    ),
    CauseKind(
        "signal too large",
        "initialisation",
        Place.LAYER,
        "RMS z_(l+1) / RMS z_l > 1,   L ∝ |z|",
        "Every layer makes the signal a little larger. The outputs start far from anything asked "
        "of them, and all they learn at first is to come down.",
        "signal",
        find_in_training=training_causes.signal_grows,
    ),
    CauseKind(
        "gradient below epsilon",
        "optimizer",
        Place.STEP,
        "step = η m / (√v + ε),   √v ≪ ε ⇒ step ≈ η m / ε",
        "Adam and its like divide by the gradient's own size, which makes its scale irrelevant, "
        "until it is smaller than ε: then the steps shrink with it.",
        "gradient",
        find_in_training=training_causes.gradient_below_epsilon,
    ),
    CauseKind(
        "step rounded away",
        "numerics",
        Place.STEP,
        "|ΔW| < |W| 2^(−p−1) ⇒ W + ΔW = W",
        "A number of p binary digits does not change when less than half of its last digit is "
        "added to it. The parameters need a finer format than the calculation.",
        "step",
        find_in_training=lambda attempt: hidden_causes.rounded_steps(attempt.exam, attempt.first),
        regardless=True,
    ),
    CauseKind(
        "learning rate too small",
        "learning rate",
        Place.STEP,
        "ΔW = −η ∂L/∂W,   |ΔW| ≪ |W|",
        "The gradient arrives, but the steps are so small that nothing is learnt in the time "
        "there is. For plain SGD a factor on the loss is a factor on the rate.",
        "step",
        find_in_training=partial(training_causes.wrong_rate, small=True),
    ),
    CauseKind(
        "learning rate too large",
        "learning rate",
        Place.STEP,
        "L(W + ΔW) ≈ L + ∂L/∂W · ΔW  only for small ΔW",
        "A step goes further than the slope holds, and the loss rises. For plain SGD a factor on "
        "the loss is a factor on the rate.",
        "step",
        find_in_training=partial(training_causes.wrong_rate, small=False),
    ),
    CauseKind(
        "too few units",
        "architecture",
        Place.LAYER,
        "rank z ≤ units",
        "All that a layer tells those above goes through its units. Where these are fewer than "
        "what has to be told apart, or die, no training makes up for it.",
        "step",
        find_in_training=training_causes.narrow_layers,
    ),
    CauseKind(
        "weight decay",
        "regularisation",
        Place.STEP,
        "ΔW = −η (∂L/∂W + λ W)",
        "A penalty on the weights draws them to 0 at every step. Where it is stronger than the "
        "gradient, the weights go there, and the answers with them.",
        "step",
        find_in_training=training_causes.strong_decay,
    ),
    CauseKind(
        "optimizer",
        "optimizer",
        Place.STEP,
        "ΔW = −η m / (√v + ε)",
        "Parameters whose gradients differ by orders of magnitude need steps of their own sizes.",
        "step",
        find_in_training=training_causes.other_optimizer,
    ),
)
CAUSES = {kind.name: kind for kind in _TABLE}
