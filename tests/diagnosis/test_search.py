"""What is wrong and what to change, as trials of the repairs decide it."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdnn.diagnosis import AS_IT_IS, Trials, diagnose, examine, find_causes, find_fixes
from jaxdnn.diagnosis.search import bridged_change
from jaxdnn.diagnosis.trial import AT_RISK, TRAINS

from . import zoo

NUM, WIDTH, HORIZON = 32, 8, 120
INPUTS = zoo.normal(0, NUM, WIDTH)
TARGETS = jnp.sin(2 * INPUTS[:, :1])
FAR_INPUTS, FAR_TARGETS = 300 * INPUTS + 1000, 1000 * TARGETS + 5000


def apply(params, x):
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


KERNELS = [
    zoo.normal(1, WIDTH, 32) * (2 / WIDTH) ** 0.5,
    zoo.normal(2, 32, 32) * (2 / 32) ** 0.5,
    zoo.normal(3, 32, 1) / 32**0.5,
]


@functools.cache
def searched(which):
    """The base and what is found for far inputs, far targets, both, or none of them."""
    inputs = FAR_INPUTS if "inputs" in which else INPUTS
    targets = FAR_TARGETS if "targets" in which else TARGETS
    exam = examine((apply, KERNELS), inputs, targets)
    trials = Trials(exam, optax.sgd(0.05, momentum=0.9), horizon=HORIZON)
    base = trials.try_fix(AS_IT_IS)
    return base, find_fixes(trials, find_causes(exam), base)


def causes(found):
    return [cause.cause for cause in found.causes]


def test_the_sound_network_learns():
    base, found = searched("nothing")
    assert base.score > TRAINS
    assert found.causes == ()


def test_a_finding_whose_repair_alone_cures_stands_first():
    base, found = searched("inputs")
    assert base.score < TRAINS
    first = found.causes[0]
    assert first.cause == "inputs not standardised"
    assert first.repaired >= TRAINS
    best = found.tried[0]
    assert best.fix.name == "standardise_inputs"
    assert best.score == first.repaired
    assert all(each.score - base.score > 0.1 * (1 - base.score) for each in found.tried)


def test_where_two_together_cure_both_are_said():
    base, found = searched("inputs and targets")
    assert base.score < TRAINS
    assert {*causes(found)[:2]} == {"inputs not standardised", "targets not standardised"}
    assert all(cause.repaired < TRAINS for cause in found.causes[:2])
    best = found.tried[0]
    assert best.score >= TRAINS
    assert {*best.fix.name.split(" + ")} == {"standardise_inputs", "standardise_targets"}


def test_a_finding_that_changes_nothing_in_a_network_that_learns_is_no_cause():
    """Inputs around 6 are found, and Adam learns all the same."""
    inputs = INPUTS + 6
    exam = examine((apply, KERNELS), inputs, TARGETS)
    assert "inputs not standardised" in [cause.cause for cause in find_causes(exam)]
    diagnosis = diagnose((apply, KERNELS), inputs, TARGETS, optimizer="adam:0.003")
    assert diagnosis.verdict == "trains"
    assert diagnosis.causes == ()


def test_a_fix_is_trained_as_it_was_tried():
    """Plain optax on the setup gives the losses of the trial."""
    _, found = searched("inputs")
    setup, trial = found.tried[0].setup, found.tried[0].trial
    params, state = setup.params, setup.optimizer.init(setup.params)
    step = jax.jit(
        jax.value_and_grad(
            lambda p: setup.loss(setup.forward(p, setup.inputs, None), setup.targets)
        )
    )
    losses = []
    for _ in range(20):
        loss, grads = step(params)
        losses.append(float(loss))
        updates, state = setup.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(losses, list(map(float, trial.loss[:20])), rtol=1e-3)


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (lambda y, t: -jnp.mean((y - t) ** 2), "loss of the wrong sign"),
        (lambda y, t: -jnp.mean(y * t), "loss without lower bound"),
    ],
)
def test_a_loss_that_falls_for_ever_has_no_score(loss, cause):
    diagnosis = diagnose(
        (apply, KERNELS), INPUTS, TARGETS, loss=loss, optimizer="adam:0.003", try_changes=False
    )
    assert diagnosis.score < AT_RISK
    assert cause in [each.cause for each in diagnosis.causes]


def test_bridge_takes_delta_past_a_small_layer():
    model, kernels = zoo.deep()
    kernels[4] = 0.01 * kernels[4]
    exam = examine((model, kernels), zoo.DEEP_INPUTS, zoo.DEEP_TARGETS)
    at, elsewhere = (bridged_change(exam, index) for index in (4, 6))
    chex.assert_trees_all_close(at, 2, atol=0.5, rtol=0)
    assert abs(elsewhere) < 0.5
    assert not math.isnan(elsewhere)
