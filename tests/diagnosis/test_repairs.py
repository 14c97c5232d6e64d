"""Repairs of data, targets, last activation and loss: each does what it says."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import Trials, examine, repairs
from jaxdnn.diagnosis.answers import Answers, LossTraits

from . import zoo

NUM, WIDTH = 12, 6
INPUTS, AMOUNTS = zoo.normal(0, NUM, WIDTH), zoo.normal(1, NUM, 1)
CLASSES = jnp.arange(NUM) % 3
KERNELS = [zoo.normal(2, WIDTH, WIDTH), zoo.normal(3, WIDTH, 1)]
TAKES_P = LossTraits(probabilities=True)
PLAIN = LossTraits()


@functools.cache
def single():
    """A network with one ReLU at its output; what it is asked for is put in by the tests."""

    def apply(params, x):
        return jax.nn.relu(jnp.tanh(x @ params[0]) @ params[1])

    return examine((apply, KERNELS), INPUTS, AMOUNTS)


def asked(targets, *, traits=PLAIN, inputs=INPUTS, num_outputs=1):
    outputs = np.resize(single().outputs, (NUM, num_outputs))
    return dataclasses.replace(
        single(), targets=targets, traits=traits, inputs=inputs, outputs=outputs,
        answers=Answers(1.0, 1.0, 0.0),
    )  # fmt: skip


def only(fixes) -> Any:
    """The one fix."""
    (fix,) = fixes
    return fix


def outputs_of(exam, fix):
    setup = Trials(exam, optax.sgd(0.1)).setup(fix)
    return setup.forward(setup.params, setup.inputs, setup.key)


Z = jnp.tanh(INPUTS @ KERNELS[0]) @ KERNELS[1]


@pytest.mark.parametrize("shape", [(NUM,), (NUM, 1), (NUM, 2)])
def test_standardised_targets_have_mean_0_and_variance_1(shape):
    targets = 400 + 70 * zoo.normal(4, *shape)
    fix = only(repairs.standardised_targets(asked(targets), None))
    new = fix.targets(targets)
    chex.assert_equal_shape((new, targets))
    chex.assert_trees_all_close(new.mean(0), jnp.zeros(shape[1:]), atol=1e-5, rtol=0)
    chex.assert_trees_all_close(new.std(0), jnp.ones(shape[1:]), rtol=1e-5)


def test_standardised_inputs_have_mean_0_and_variance_1_each_where_their_scales_differ():
    scales = jnp.array([1.0, 1e4, 1e-3, 1.0, 50.0, 0.0])
    inputs = {"table": 3 + INPUTS * scales, "word": CLASSES}
    fix = only(repairs.standardised_inputs(asked(AMOUNTS, inputs=inputs), None))
    new = fix.inputs(inputs)
    chex.assert_trees_all_equal(new["word"], CLASSES)
    table = np.asarray(new["table"])[:, :5]
    # Float32 holds 3 + 1e-3 x with 4 digits of x.
    chex.assert_trees_all_close(table.mean(0), np.zeros(5), atol=1e-2, rtol=0)
    chex.assert_trees_all_close(table.std(0), np.ones(5), rtol=1e-3)
    # A feature that never varies stays finite.
    chex.assert_tree_all_finite(new)
    assert np.ptp(np.asarray(new["table"])[:, 5]) == 0
    # The same numbers for another batch.
    chex.assert_trees_all_close(
        fix.inputs({"table": inputs["table"][:2], "word": CLASSES[:2]})["table"], new["table"][:2]
    )
    alike = only(repairs.standardised_inputs(asked(AMOUNTS, inputs=127 + 50 * INPUTS), None))
    images = alike.inputs(127 + 50 * INPUTS)
    chex.assert_trees_all_close((images.mean(), images.std()), (0.0, 1.0), atol=1e-4)
    assert not list(repairs.standardised_inputs(asked(AMOUNTS, inputs=CLASSES), None))


def test_a_classifier_has_an_output_for_every_class_and_they_sum_to_1():
    exam = asked(CLASSES[:, None].astype(jnp.float32))
    fix = only(repairs.classifier(exam, None))
    p = outputs_of(exam, fix)
    chex.assert_shape(p, (NUM, 3))
    chex.assert_trees_all_close(p.sum(-1), jnp.ones(NUM), rtol=1e-5)
    assert (np.asarray(p) > 0).all()
    labels = jax.nn.one_hot(CLASSES, 3)
    expected = -jnp.mean(jnp.sum(labels * jnp.log(p), -1))
    chex.assert_trees_all_close(fix.loss(p, exam.targets), expected, rtol=1e-5)


def test_a_classifier_of_two_gives_one_probability_and_takes_labels_of_any_sign():
    exam = asked(2.0 * (CLASSES[:, None] % 2) - 1)
    fix = only(repairs.classifier(exam, None))
    p = outputs_of(exam, fix)
    chex.assert_trees_all_close(p, jax.nn.sigmoid(Z), rtol=1e-5)
    labels = fix.targets(exam.targets)
    chex.assert_trees_all_equal(np.unique(labels), np.array([0.0, 1.0], np.float32))
    expected = optax.sigmoid_binary_cross_entropy(Z, labels).mean()
    chex.assert_trees_all_close(fix.loss(p, labels), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("targets", "traits", "num_outputs", "names"),
    [
        (AMOUNTS, PLAIN, 1, ["linear_output"]),
        (CLASSES[:, None] % 2, TAKES_P, 1, ["sigmoid_output"]),
        (CLASSES[:, None] % 2, PLAIN, 1, ["linear_output", "sigmoid_output"]),
        (jax.nn.one_hot(CLASSES, 3), TAKES_P, 3, ["softmax_output", "sigmoid_output"]),
        (CLASSES, LossTraits(normalises=True), 3, ["softmax_output"]),
        ((zoo.normal(5, NUM, 3) > 0).astype(jnp.float32), TAKES_P, 3, ["sigmoid_output"]),
        (CLASSES, LossTraits(softmax=True), 3, ["linear_output"]),
    ],
)  # fmt: skip
def test_the_last_activation_is_what_targets_and_loss_ask_for(targets, traits, num_outputs, names):
    exam = asked(targets, traits=traits, num_outputs=num_outputs)
    fixes = list(repairs.fitting_output(exam, None))
    assert [fix.name for fix in fixes] == names
    functions = {
        "linear_output": lambda z: z, "sigmoid_output": jax.nn.sigmoid,
        "softmax_output": jax.nn.softmax,
    }  # fmt: skip
    for fix in fixes:
        assert "in place of the relu" in fix.words
        assert fix.output is not None
        chex.assert_trees_all_close(fix.output.after(Z), functions[fix.name](Z))


@pytest.mark.parametrize(
    ("targets", "num_outputs", "name"),
    [
        (CLASSES, 3, "classifier"),
        (CLASSES[:, None] % 2, 1, "binary_classifier"),
        (CLASSES % 2, 2, "classifier"),
        ((zoo.normal(5, NUM, 3) > 0).astype(jnp.float32), 3, "binary_cross_entropy"),
        (AMOUNTS, 1, "squared_error"),
    ],
)
def test_every_kind_of_target_has_its_usual_loss(targets, num_outputs, name):
    fix = only(repairs.usual_loss(asked(targets, num_outputs=num_outputs), None))
    assert fix.name == name


def test_labels_are_shifted_only_where_all_then_stand_for_an_output():
    fix = only(repairs.shifted_labels(asked(CLASSES + 1, num_outputs=3), None))
    chex.assert_trees_all_equal(fix.targets(CLASSES + 1), CLASSES)
    assert not list(repairs.shifted_labels(asked(CLASSES, num_outputs=3), None))
    assert not list(repairs.shifted_labels(asked(CLASSES + 1, num_outputs=2), None))


def test_targets_get_the_shape_of_the_outputs_and_keep_their_order():
    fix = only(repairs.reshaped_targets(asked(AMOUNTS[:, 0]), None))
    chex.assert_trees_all_equal(fix.targets(AMOUNTS[:, 0]), AMOUNTS)
    # Of a batch of another size as well.
    chex.assert_trees_all_equal(fix.targets(AMOUNTS[:5, 0]), AMOUNTS[:5])
    assert not list(repairs.reshaped_targets(asked(jnp.ones((NUM, 2))), None))


def test_the_sign_of_a_loss_is_turned_and_nothing_else():
    exam = single()
    fix = only(repairs.negated_loss(exam, None))
    own = jax.value_and_grad(exam.loss)(Z, AMOUNTS)
    chex.assert_trees_all_close(
        jax.value_and_grad(fix.loss)(Z, AMOUNTS), jax.tree.map(jnp.negative, own), rtol=1e-6
    )


def test_inputs_are_stretched_over_the_words_of_a_table():
    tokens = zoo.TOKENS[:, 0] / 6.0

    def apply(params, x):
        return params["table"][x.astype(int)] @ params["head"]

    params = {"table": zoo.normal(6, 7, 4), "head": zoo.normal(7, 4, 3)}
    exam = examine((apply, params), tokens, zoo.TARGETS)
    fix = only(repairs.whole_numbers(exam, None))
    chex.assert_trees_all_equal(fix.inputs(tokens).astype(int), zoo.TOKENS[:, 0])
    assert not list(repairs.whole_numbers(single(), None))


def test_words_that_were_divided_row_by_row_come_back_in_other_rows_too():
    words = np.random.default_rng(0).integers(0, 400, (40, 12))
    rows = (words / np.linalg.norm(words, axis=1, keepdims=True)).astype(np.float32)

    def apply(params, x):
        return params["table"][x.astype(int)].mean(1) @ params["head"]

    params = {"table": zoo.normal(6, 400, 4), "head": zoo.normal(7, 4, 3)}
    exam = examine((apply, params), rows[:20], jnp.arange(20) % 3)
    fix = only(repairs.whole_numbers(exam, None))
    chex.assert_trees_all_equal(fix.inputs(rows), words.astype(np.float32))


def test_losses_of_probabilities_are_those_of_logits():
    z, bits = zoo.normal(8, NUM, 3), (zoo.normal(9, NUM, 3) > 0).astype(jnp.float32)
    expected = optax.sigmoid_binary_cross_entropy(z, bits).mean()
    own = repairs.binary_cross_entropy(jax.nn.sigmoid(z), bits)
    chex.assert_trees_all_close(own, expected, rtol=1e-5)
    expected = optax.softmax_cross_entropy_with_integer_labels(z, CLASSES).mean()
    for targets in (CLASSES, CLASSES[:, None].astype(jnp.float32), jax.nn.one_hot(CLASSES, 3)):
        own = repairs.class_cross_entropy(jax.nn.softmax(z), targets)
        chex.assert_trees_all_close(own, expected, rtol=1e-5)
        chex.assert_trees_all_close(repairs.logit_cross_entropy(z, targets), expected, rtol=1e-5)
    # Certain and wrong is finite, and (n,) stands for (n, 1).
    wrong = repairs.binary_cross_entropy(jnp.zeros((NUM, 1)), jnp.ones(NUM))
    chex.assert_trees_all_close(wrong, -np.log(1e-7), rtol=1e-3)
    chex.assert_trees_all_close(repairs.squared_error(AMOUNTS, AMOUNTS[:, 0]), 0.0)
