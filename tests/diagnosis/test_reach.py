"""What cuts the gradient off is named with its line; what only looks like a cut is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.findings import NAMED
from jaxdnn.diagnosis.reach import (
    find_cuts,
    frozen,
    let_through,
    loss_without_gradient,
    no_gradient,
)
from jaxdnn.diagnosis.replay import run

from . import zoo

WIDTH, BATCH, CLASSES = 6, 12, 3
INPUTS, TARGETS = zoo.normal(9, BATCH, WIDTH), jnp.arange(BATCH) % CLASSES
ONE_HOT = jax.nn.one_hot(TARGETS, CLASSES)


def layer(seed, width, *, trained=False):
    bias = zoo.normal(seed + 50, width) if trained else jnp.zeros(width)
    return {"kernel": zoo.normal(seed, WIDTH, width) / WIDTH**0.5, "bias": bias}


PARAMS = {"first": layer(0, WIDTH), "hidden": layer(1, WIDTH), "last": layer(2, CLASSES)}


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def network(between=lambda h: h, at_the_end=lambda h: h):
    def apply(params, x):
        h = between(jax.nn.relu(dense(params["first"], x)))
        return at_the_end(dense(params["last"], jax.nn.relu(dense(params["hidden"], h))))

    return apply


def squared_error(outputs, targets):
    return jnp.mean((outputs - jax.nn.one_hot(targets, CLASSES)) ** 2)


def exam_of(apply, params=PARAMS, loss=squared_error):
    return examine((apply, params), INPUTS, TARGETS, loss=loss)


def looped(h):
    return jax.lax.scan(lambda carry, _: (stop_gradient(jnp.sin(carry)), None), h, None, 2)[0]


def carried(h):
    """What one iteration makes is stopped in the next."""
    zeros = jnp.zeros(h.shape)

    def body(carry, _):
        return (stop_gradient(carry[1]), jnp.sin(h)), None

    return jax.lax.scan(body, (zeros, zeros), None, 2)[0][0]


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (stop_gradient, "stop_gradient"),
        (jnp.round, "`round`"),
        (lambda h: (h > 0).astype(jnp.float32), "`gt`"),
        (lambda h: h.astype(jnp.int32).astype(jnp.float32), "int32"),
        (jax.jit(jax.checkpoint(jnp.floor)), "`floor`"),
        (looped, "stop_gradient"),
        (carried, "stop_gradient"),
    ],
)
def test_cut_between_layers_is_named_with_its_line(between, words):
    exam = exam_of(network(between))
    (finding,) = no_gradient(exam)
    assert finding.layer == exam.graph.index_of("first")
    assert finding.strength >= NAMED
    assert "first/bias, first/kernel" in finding.evidence
    assert words in finding.evidence
    assert "test_reach.py:" in finding.evidence


def test_cut_at_the_outputs_is_about_all_parameters():
    exam = exam_of(network(at_the_end=lambda z: jax.nn.one_hot(jnp.argmax(z, -1), CLASSES)))
    (finding,) = no_gradient(exam)
    assert "any of the 6 parameters" in finding.evidence
    assert "`argmax`" in finding.evidence


def test_accuracy_as_a_loss_is_the_losss():
    def accuracy(outputs, targets):
        return -jnp.mean((jnp.argmax(outputs, -1) == targets).astype(jnp.float32))

    exam = exam_of(network(), loss=accuracy)
    assert list(no_gradient(exam)) == []
    (finding,) = loss_without_gradient(exam)
    assert "`argmax`" in finding.evidence


def test_loss_that_does_not_use_the_outputs():
    (finding,) = loss_without_gradient(
        exam_of(network(), loss=lambda z, t: jnp.mean(t.astype(jnp.float32)))
    )
    assert "does not use the outputs" in finding.evidence


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h,
        # A comparison beside a smooth way.
        lambda h: jnp.where(h > 0, h, 0.1 * h),
        lambda h: h + stop_gradient(jnp.round(h) - h),
        lambda h: h * (jnp.argmax(h, -1, keepdims=True) > 0),
        lambda h: jnp.sort(h, -1),
    ],
)
def test_smooth_ways_are_no_finding(between):
    exam = exam_of(network(between))
    for finder in (no_gradient, loss_without_gradient, frozen):
        assert list(finder(exam)) == []


def test_dead_units_are_not_cut_off():
    hidden = {**PARAMS["hidden"], "bias": jnp.full(WIDTH, -100.0)}
    exam = exam_of(network(), {**PARAMS, "hidden": hidden})
    assert not np.any(exam.grads["first"]["kernel"])
    assert find_cuts(exam) == []


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_frozen_on_purpose_is_said_and_no_alarm(whole):
    """A parameter that is stopped as such, or a part that was trained before."""

    def apply(params, x):
        first = jax.tree.map(stop_gradient, params["first"])
        return network()({**params, "first": first}, x)

    trained = {**PARAMS, "first": layer(0, WIDTH, trained=True)}
    exam = exam_of(apply) if whole else exam_of(network(stop_gradient), trained)
    assert list(no_gradient(exam)) == []
    (finding,) = frozen(exam)
    assert finding.strength < NAMED
    assert "first/bias, first/kernel stay" in finding.evidence


def test_unused_parameters_are_told():
    exam = exam_of(lambda params, x: dense(params["last"], jax.nn.relu(dense(params["first"], x))))
    (finding,) = no_gradient(exam)
    assert "do not depend on hidden/bias, hidden/kernel" in finding.evidence


@pytest.mark.parametrize("between", [stop_gradient, jnp.round])
def test_fix_keeps_the_outputs_and_lets_the_gradient_through(between):
    exam = exam_of(network(between))
    index = exam.graph.index_of("first")
    assert index is not None
    (group,) = let_through(exam, index)
    program = exam.graph.program

    def loss(params):
        environment = run(program, (params, INPUTS, exam.key), group.edits)
        return exam.loss(environment[program.output], TARGETS)

    value, grads = jax.value_and_grad(loss)(PARAMS)
    chex.assert_trees_all_close(value, exam.measured.loss, rtol=1e-6)
    assert np.any(grads["first"]["kernel"])
