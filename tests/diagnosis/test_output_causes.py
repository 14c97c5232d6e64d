"""What data, targets, last activation and loss show before any layer does."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.diagnosis import examine, output_causes
from jaxdnn.diagnosis.answers import Answers, LossTraits
from jaxdnn.diagnosis.findings import BLOCKING, NAMED
from jaxdnn.diagnosis.repairs import binary_cross_entropy

from . import zoo

NUM, WIDTH = 24, 5
INPUTS, AMOUNTS = zoo.normal(0, NUM, WIDTH), zoo.normal(1, NUM, 1)
CLASSES = jnp.arange(NUM) % 3
BITS = (CLASSES[:, None] == 0).astype(jnp.float32)
ENDINGS = {
    "nothing": lambda z: z,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}


def squared(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@functools.cache
def ending_in(ending, width=1):
    """A network of two layers; what it is asked for is put in by the tests."""
    kernels = [zoo.normal(2, WIDTH, WIDTH), zoo.normal(3, WIDTH, width)]

    def apply(params, x):
        return ENDINGS[ending](jnp.tanh(x @ params[0]) @ params[1])

    return examine((apply, kernels), INPUTS, jnp.tile(AMOUNTS, (1, width)))


def asked(
    targets,
    *,
    ending="nothing",
    width=1,
    loss=squared,
    traits=(),
    answers=(1.0, 0.0, 0.0),
    **others,
):
    """An examination with what is asked for, and with what `loss` is said to take."""
    taken: dict[str, Any] = dict.fromkeys(traits, True)
    return dataclasses.replace(
        ending_in(ending, width), targets=targets, loss=loss,
        answers=Answers(*answers, from_start=False),
        traits=LossTraits(**taken), **others,
    )  # fmt: skip


def found(find, exam) -> Any:
    """The one finding, or None."""
    findings = list(find(exam))
    assert len(findings) <= 1
    return findings[0] if findings else None


SOUND = {
    "amounts": lambda: asked(AMOUNTS),
    "one probability": lambda: asked(
        BITS, ending="sigmoid", loss=binary_cross_entropy, traits=["probabilities"]
    ),
    "logits": lambda: asked(CLASSES, width=3, loss=zoo.cross_entropy, traits=["softmax"]),
}


@pytest.mark.parametrize("sound", list(SOUND))
def test_a_sound_ending_has_no_finding(sound):
    exam = SOUND[sound]()
    finders = (
        output_causes.softmax_of_one, output_causes.too_few_outputs, output_causes.independent_loss,
        output_causes.symmetric_loss, output_causes.unbounded_loss, output_causes.wrong_sign,
        output_causes.wrong_labels, output_causes.out_of_reach, output_causes.missing_squash,
        output_causes.relative_error, output_causes.squared_classes,
        output_causes.broadcast_targets, output_causes.target_scale, output_causes.scale_of_inputs,
        output_causes.rounded_inputs, output_causes.blind_targets, output_causes.summed_loss,
        output_causes.unlike_targets, output_causes.unread_inputs,
    )  # fmt: skip
    assert [finding for find in finders for finding in find(exam)] == []


def test_a_softmax_over_one_unit_is_named_at_the_last_layer():
    exam = asked(BITS, ending="softmax", traits=["independent"])
    finding = found(output_causes.softmax_of_one, exam)
    assert (finding.layer, finding.strength >= BLOCKING) == (1, True)
    assert found(output_causes.independent_loss, exam).layer == 1
    assert found(output_causes.softmax_of_one, asked(CLASSES, width=3, ending="softmax")) is None


def test_one_output_for_three_classes_is_too_few():
    labels = CLASSES[:, None].astype(jnp.float32)
    options = {"ending": "sigmoid", "loss": binary_cross_entropy, "traits": ["probabilities"]}
    finding = found(output_causes.too_few_outputs, asked(labels, **options))
    assert "1 output for 3 classes" in finding.evidence
    assert found(output_causes.too_few_outputs, asked(BITS, **options)) is None


def test_a_loss_that_asks_the_same_of_all_outputs_cannot_tell_them_apart():
    exam = asked(CLASSES[:, None] % 2, width=2, traits=["symmetric"], answers=(1.0, 0.9, 0.0))
    assert "each of the 2 outputs" in found(output_causes.symmetric_loss, exam).evidence


@pytest.mark.parametrize(
    ("traits", "answers", "says"),
    [
        (["unbounded"], (-1e6, -1e6, -1e6), "log_softmax is missing"),
        (["probabilities"], (-30.0, -30.0, -30.0), "takes targets between 0 and 1"),
    ],
)
def test_a_loss_without_a_lower_bound_is_named(traits, answers, says):
    exam = asked(CLASSES, width=3, traits=traits, answers=answers)
    finding = found(output_causes.unbounded_loss, exam)
    assert says in finding.evidence
    assert finding.strength >= BLOCKING


def test_a_loss_that_is_worst_for_the_right_answers_has_the_wrong_sign():
    exam = asked(AMOUNTS, loss=lambda y, t: -squared(y, t), answers=(-1e6, -1e6, -1e6))
    assert "its sign is wrong" in found(output_causes.wrong_sign, exam).evidence


@pytest.mark.parametrize(
    ("labels", "mask", "is_wrong"),
    [
        ([-1, 0, 1, 2], True, False),
        ([-1, 0, 1, 2], False, True),
        # What is left of two classes is one.
        ([-1, 1, -1, 1], True, True),
        ([-1, 1, 2, 3], True, True),
    ],
)
def test_labels_below_zero_are_wrong_unless_the_loss_leaves_them_out(labels, mask, is_wrong):
    def loss(outputs, targets):
        each = -jax.nn.log_softmax(outputs) * jax.nn.one_hot(targets % 3, 3)
        return (each.sum(-1) * (targets >= 0 if mask else 1)).mean()

    exam = examine(
        (lambda p, x: x @ p, zoo.normal(0, 4, 3)), zoo.normal(1, NUM, 4),
        jnp.array(labels * (NUM // 4)), loss=loss,
    )  # fmt: skip
    found = [each for each in output_causes.wrong_labels(exam) if "lie outside" in each.evidence]
    assert bool(found) == is_wrong


def test_labels_that_no_output_stands_for_are_counted():
    exam = asked(CLASSES + 1, width=3, traits=["softmax"])
    finding = found(output_causes.wrong_labels, exam)
    assert "8 of 24 labels lie outside 0 to 2: they go from 1 to 3" in finding.evidence
    same = found(output_causes.wrong_labels, asked(jnp.ones((NUM, 1))))
    assert "every target of this batch is 1" in same.evidence


@pytest.mark.parametrize(
    ("ending", "targets", "says"),
    [
        ("relu", AMOUNTS, "the relu at the output gives nothing below 0"),
        ("sigmoid", 100 * jnp.abs(AMOUNTS), "only 0 to 1, and the targets go from"),
    ],
)
def test_an_ending_that_cannot_reach_the_targets_is_named_with_its_range(ending, targets, says):
    exam = asked(targets, ending=ending, answers=(1.0, 0.6, 0.0))
    finding = found(output_causes.out_of_reach, exam)
    assert says in finding.evidence
    assert finding.layer == 1
    reaches = asked(targets, ending=ending, answers=(1.0, 0.1, 0.0))
    assert found(output_causes.out_of_reach, reaches) is None


def test_class_numbers_are_not_compared_with_the_outputs():
    exam = asked(CLASSES, width=3, ending="sigmoid", traits=["softmax"], answers=(1.1, 0.5, 0.0))
    finding = found(output_causes.out_of_reach, exam)
    assert "through the logistic at the output the loss can come down by 55%" in finding.evidence


def test_a_softmax_is_said_to_be_taken_twice_only_if_the_loss_takes_one():
    options = {"width": 3, "ending": "softmax", "answers": (1.1, 0.55, 0.0)}
    twice = found(output_causes.out_of_reach, asked(CLASSES, traits=["softmax"], **options))
    assert "the loss takes another" in twice.evidence
    once = found(output_causes.out_of_reach, asked(CLASSES, traits=["probabilities"], **options))
    assert "another" not in once.evidence


@pytest.mark.parametrize(
    ("width", "targets", "needed"), [(1, BITS, "sigmoid"), (3, CLASSES, "softmax")]
)
def test_a_loss_of_probabilities_without_them_is_named(width, targets, needed):
    exam = asked(targets, width=width, ending="relu", traits=["probabilities"])
    finding = found(output_causes.missing_squash, exam)
    assert (
        f"ends in relu: outputs outside 0 to 1 send no gradient back; a {needed}"
        in finding.evidence
    )
    squashed = asked(targets, width=width, ending=needed, traits=["probabilities"])
    assert found(output_causes.missing_squash, squashed) is None


def test_an_error_that_is_divided_by_a_target_of_zero_is_named():
    targets = jnp.where(CLASSES[:, None] == 0, 0.0, 1 + jnp.abs(AMOUNTS))

    def percentage(outputs, wanted):
        return 100 * jnp.mean(jnp.abs(outputs - wanted) / jnp.maximum(jnp.abs(wanted), 1e-7))

    finding = found(output_causes.relative_error, asked(targets, loss=percentage))
    assert "33% of the targets are 0" in finding.evidence
    assert found(output_causes.relative_error, asked(targets)) is None


def test_the_squared_error_on_classes_is_named():
    one_hot = jax.nn.one_hot(CLASSES, 3)
    assert found(output_causes.squared_classes, asked(one_hot, width=3)).strength >= NAMED
    taken = asked(one_hot, width=3, traits=["softmax"], loss=zoo.cross_entropy)
    assert found(output_causes.squared_classes, taken) is None


def test_targets_stretched_against_the_outputs_are_named_with_both_shapes():
    finding = found(output_causes.broadcast_targets, asked(AMOUNTS[:, 0], traits=["mixes"]))
    assert "targets (24,) against outputs (24, 1) make a table of 24 x 24" in finding.evidence
    # A loss that compares examples on purpose has targets of the outputs' shape.
    assert found(output_causes.broadcast_targets, asked(AMOUNTS, traits=["mixes"])) is None


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_targets_are_named_where_they_are_far_from_unit_size(factor):
    finding = found(output_causes.target_scale, asked(factor * AMOUNTS, answers=(factor**2, 0, 0)))
    assert (finding is None) == (factor == 1)
    far = found(output_causes.target_scale, asked(500 + AMOUNTS))
    assert "the targets go from 49" in far.evidence


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: 127 + 70 * x, "standard deviation 66"),
        (lambda x: x.at[:, 2].multiply(1e4), "; feature 2 is about"),
        (lambda x: x.at[:, 4].add(2000.0), "the inputs go from"),
        (lambda x: 1e-4 * x, "the inputs go from"),
        (lambda x: 0.5 + x, None),
    ],
)
def test_inputs_far_from_unit_size_or_unlike_are_named(change, says):
    finding = found(output_causes.scale_of_inputs, asked(AMOUNTS, inputs=change(INPUTS)))
    if says is None:
        assert finding is None
    else:
        assert says in finding.evidence
        assert finding.layer == 0


def test_inputs_that_an_embedding_cuts_to_one_word_are_named():
    def apply(params, x):
        return params["table"][x.astype(int)] @ params["head"]

    params = {"table": zoo.normal(6, 7, 4), "head": zoo.normal(7, 4, 3)}
    tokens = jnp.arange(24) % 7
    exam = examine((apply, params), tokens / 7.0, jnp.arange(24) % 3)
    finding = found(output_causes.rounded_inputs, exam)
    assert "7 different inputs from 0 to 0.857 become 1 whole number" in finding.evidence
    whole = dataclasses.replace(exam, inputs=tokens.astype(jnp.float32))
    assert found(output_causes.rounded_inputs, whole) is None
    assert np.unique(tokens).size == 7


def test_inputs_without_a_single_number_have_no_scale():
    inputs = INPUTS.at[:, 1].set(jnp.nan)
    assert found(output_causes.scale_of_inputs, asked(AMOUNTS, inputs=inputs)) is None
    assert found(output_causes.scale_of_inputs, asked(AMOUNTS, inputs=INPUTS * jnp.nan)) is None


def test_a_class_that_does_not_count_is_named():
    signs = 1 - 2 * (CLASSES[:, None] == 0).astype(jnp.float32)
    rows = tuple(int(row) for row in np.flatnonzero(signs[:, 0] == -1))
    exam = dataclasses.replace(asked(signs), traits=LossTraits(blind=rows))
    finding = found(output_causes.blind_targets, exam)
    assert (
        "the loss of the 8 examples with target -1 is the same whatever is answered"
        in finding.evidence
    )
    exam = dataclasses.replace(asked(signs), traits=LossTraits(blind=rows[:4]))
    assert found(output_causes.blind_targets, exam) is None


def test_a_sum_over_the_examples_and_columns_too_small_to_count_are_named():
    assert (
        "adds up 24 examples"
        in found(output_causes.summed_loss, asked(AMOUNTS, traits=["summed"])).evidence
    )
    both = jnp.concatenate([100 * AMOUNTS, 0.1 * AMOUNTS[::-1]], axis=1)
    finding = found(output_causes.unlike_targets, asked(both, width=2))
    assert "column 0" in finding.evidence
    assert "column 1" in finding.evidence
    assert found(output_causes.unlike_targets, asked(both / jnp.array([100, 0.1]), width=2)) is None
