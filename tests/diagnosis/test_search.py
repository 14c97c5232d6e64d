"""What is wrong and what to change, as trials of the repairs decide it."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdnn.diagnosis import AS_IT_IS, Trials, diagnose, examine, find_causes, find_fixes
from jaxdnn.diagnosis.search import bridged_change, with_alternative
from jaxdnn.diagnosis.setups import Fix
from jaxdnn.diagnosis.trial import AT_RISK, TRAINS

from . import zoo

NUM, WIDTH, HORIZON = 32, 8, 120
INPUTS = zoo.normal(0, NUM, WIDTH)
TARGETS = jnp.sin(2 * INPUTS[:, :1])
# One feature that tells nothing outweighs the others, so that no learning rate is right for all.
FAR_INPUTS, FAR_TARGETS = INPUTS.at[:, 5].multiply(3000.0), 1000 * TARGETS + 5000


def apply(params, x):
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


KERNELS = [
    zoo.normal(1, WIDTH, 32) * (2 / WIDTH) ** 0.5,
    zoo.normal(2, 32, 32) * (2 / 32) ** 0.5,
    zoo.normal(3, 32, 1) / 32**0.5,
]


def squared(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@functools.cache
def searched(which):
    """The base and what is found for far inputs, far targets, both, or none of them."""
    inputs = FAR_INPUTS if "inputs" in which else INPUTS
    targets = FAR_TARGETS if "targets" in which else TARGETS
    exam = examine((apply, KERNELS), inputs, targets)
    trials = Trials(exam, optax.sgd(0.1), horizon=HORIZON)
    base = trials.try_fix(AS_IT_IS)
    return base, find_fixes(trials, find_causes(exam), base)


def test_the_sound_network_learns():
    base, found = searched("nothing")
    assert base.score > TRAINS
    assert found.causes == ()


def test_a_finding_whose_repair_alone_cures_stands_first():
    base, found = searched("inputs")
    assert base.score < TRAINS
    first = found.causes[0]
    assert first.category == "input scale"
    assert first.repaired >= TRAINS
    best = found.tried[0]
    assert best.fix.name == "standardise_inputs"
    assert best.score == first.repaired
    assert all(each.score - base.score > 0.1 * (1 - base.score) for each in found.tried)


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ({"rate": 0.9, "other rate": 0.95, "norm": 0.7, "activation": 0.8}, (0, 3, 1, 2)),
        ({"rate": 0.9, "other rate": 0.95, "norm": 0.2}, (0, 1, 2)),
        ({"rate": 0.9}, (0,)),
        ({}, ()),
    ],
)
def test_the_second_change_is_another_that_cures_best(scores, order):
    base, _ = searched("nothing")
    tried = [
        base._replace(fix=Fix(words.removeprefix("other "), words, ""), score=score)
        for words, score in scores.items()
    ]
    assert with_alternative(tried) == [tried[place] for place in order]


def test_where_two_together_cure_both_are_said():
    base, found = searched("inputs and targets")
    assert base.score < TRAINS
    assert {cause.category for cause in found.causes} == {"input scale", "target scale"}
    assert all(cause.repaired < TRAINS for cause in found.causes)
    best = found.tried[0]
    assert best.score >= TRAINS
    assert {*best.fix.name.split(" + ")} == {"standardise_inputs", "standardise_targets"}


def test_a_finding_that_changes_little_in_a_network_that_learns_is_no_cause():
    """Inputs five times as large are found, and Adam learns all the same."""
    exam = examine((apply, KERNELS), 5 * INPUTS, TARGETS)
    causes = find_causes(exam)
    assert "inputs not standardised" in [cause.cause for cause in causes]
    trials = Trials(exam, optax.adam(0.001), horizon=HORIZON)
    base = trials.try_fix(AS_IT_IS)
    assert base.score >= TRAINS
    assert find_fixes(trials, causes, base).causes == ()


def test_a_prescription_for_data_carries_what_is_done_to_them():
    diagnosis = diagnose(
        (apply, KERNELS), FAR_INPUTS, TARGETS, optimizer="sgd:0.1", horizon=HORIZON
    )
    first = diagnosis.prescriptions[0]
    assert diagnosis.causes[0].category == "input scale"
    assert first.prepare is not None
    inputs, targets = first.prepare(FAR_INPUTS, TARGETS)
    chex.assert_trees_all_close(inputs.std(0), jnp.ones(WIDTH), rtol=1e-3)
    chex.assert_trees_all_equal(targets, TARGETS)
    # For new rows with the numbers of these.
    chex.assert_trees_all_close(first.prepare(FAR_INPUTS[:3], TARGETS[:3])[0], inputs[:3])
    model, params = first.network
    chex.assert_trees_all_close(model(params, inputs), apply(KERNELS, inputs), rtol=1e-5)


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


def test_a_layer_of_few_units_is_the_cause_where_more_units_alone_cure():
    """The parity of four signs asks for four hidden units."""
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    parity = (signs.prod(1, keepdims=True) > 0).astype(jnp.float32)

    def network(params, x):
        (first, bias), (last, level) = params
        return jax.nn.sigmoid(jnp.tanh(x @ first + bias) @ last + level)

    def judged(units):
        keys = jax.random.split(jax.random.key(0))
        first = jax.random.normal(keys[0], (4, units)) / 2
        last = jax.random.normal(keys[1], (units, 1)) / units**0.5
        params = [(first, jnp.zeros(units)), (last, jnp.zeros(1))]
        return diagnose((network, params), signs, parity, loss=squared, optimizer="adam:0.01")

    narrow = judged(2)
    assert narrow.verdict != "trains"
    assert (narrow.causes[0].cause, narrow.causes[0].path) == ("too few units", "0")
    assert narrow.prescriptions[0].name == "wider_layers"
    assert judged(32).verdict == "trains"


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
