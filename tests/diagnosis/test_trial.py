"""Short trainings: the score of what happened, the scales, the first step, and number formats."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import (
    AS_IT_IS,
    Answers,
    Scales,
    TrainingStep,
    Trial,
    Trials,
    examine,
    make_scanned_trial,
    make_trial,
    score_trial,
    verdict_of,
)
from jaxdnn.diagnosis.trial import TRAINS, rate_curve, take_first_step

from . import zoo

INPUTS, TARGETS = zoo.DEEP_INPUTS, zoo.DEEP_TARGETS


ANSWERS = Answers(1.0, 0.0, 0.0)


def trial_of(forward, loss, optimizer, **options):
    return make_trial(TrainingStep(forward, loss, optimizer), **options)


def tried(loss, constant=1.0, shrunk=None):
    """A trial of numbers; outputs made more alike give no less unless said."""
    loss = np.asarray(loss, np.float64)
    constant = np.broadcast_to(constant, loss.shape)
    return Trial(loss, loss if shrunk is None else shrunk, constant)


@pytest.mark.parametrize("half", [20, 100, 180])
def test_score_of_a_whole_trial_is_by_when_half_is_learnt(half):
    """Read from a mean of ten steps at most: half is seen by then up to nine steps later."""
    steps, horizon = np.arange(301.0), 300
    score = score_trial(tried(np.maximum(1 - steps / (2 * half), 0)), ANSWERS, horizon=horizon)
    most, least = (horizon / (horizon + 2 * (half + late)) for late in (0, 9))
    assert least <= score <= most


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_score_of_a_whole_trial_that_stays_below_half_is_by_its_share(share):
    score = score_trial(tried(np.full(301, 1 - share)), ANSWERS, horizon=300)
    chex.assert_trees_all_close(score, share / (1 + share), rtol=1e-6)
    assert score < TRAINS


def test_half_that_is_lost_again_does_not_count():
    loss = np.concatenate([np.zeros(150), np.full(151, 0.9)])
    score = score_trial(tried(loss), ANSWERS, horizon=300)
    chex.assert_trees_all_close(score, 0.1 / 1.1, rtol=1e-6)


def test_what_starts_late_is_at_risk():
    loss = np.ones(301)
    loss[200:] = np.linspace(1.0, 0.96, 101)
    assert verdict_of(score_trial(tried(loss), ANSWERS, horizon=300)) == "at risk"
    flat = np.full(301, 0.96)
    assert verdict_of(score_trial(tried(flat), ANSWERS, horizon=300)) == "will not train"


def test_a_step_traces_the_loss_once():
    traced = []

    def loss(outputs, targets):
        traced.append(outputs)
        return jnp.mean((outputs - targets) ** 2)

    trial = trial_of(lambda params, x, _: x @ params, loss, optax.sgd(0.1), num_steps=3)
    trial(jnp.ones((3, 2)), jnp.ones((8, 3)), jnp.zeros((8, 2)), jax.random.key(0))
    assert len(traced) == 1


def test_what_moves_without_a_gradient_decays():
    exam = examine(zoo.deep(depth=2), INPUTS, TARGETS)
    sgd = optax.sgd(0.1)
    assert not take_first_step(exam, sgd).decays
    assert not take_first_step(exam, optax.adam(0.1)).decays
    assert take_first_step(exam, optax.chain(optax.add_decayed_weights(0.5), sgd)).decays


def test_score_follows_what_is_learnt_and_not_the_constant():
    steps, flat = np.arange(31.0), np.ones(31)
    assert score_trial(tried(1 - 0.01 * steps, 1 - 0.01 * steps), ANSWERS) == 0
    assert score_trial(tried(flat * math.nan), ANSWERS) == 0
    assert score_trial(tried(flat, flat * math.nan), ANSWERS) == 0
    assert score_trial(tried(flat + steps), ANSWERS) == 0
    slow, fast = (score_trial(tried(1 - rate * steps), ANSWERS) for rate in (1e-4, 1e-2))
    assert 0 < slow < 0.5 < fast < 1
    # The last quarter, seven of 31 steps, lies around step 27: what is learnt by then in 30 steps.
    learnt = 1e-4 * 27
    chex.assert_trees_all_close(slow, 1000 / (1000 + 30 / learnt), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_score_has_no_unit_and_no_zero(scale):
    """A loss in other units, or with a number added, is the same loss."""
    steps = np.arange(31.0)
    loss, answers = 1 - 0.01 * steps, ANSWERS
    score = score_trial(tried(loss), answers)
    other = tried(scale * loss, scale)
    chex.assert_trees_all_close(score_trial(other, Answers(scale, 0.0, 0.0)), score, rtol=1e-6)
    raised = score_trial(tried(loss + 5, 6.0), Answers(6.0, 5.0, 5.0))
    chex.assert_trees_all_close(raised, score, rtol=1e-6)


def test_what_is_learnt_counts_beneath_random_logits_and_what_was_there_by_chance_does_not():
    steps, flat = np.arange(31.0), np.ones(31)
    learnt = score_trial(tried(1 - 0.01 * steps), ANSWERS)
    # The same beneath random logits that cost 0.2, and with a chance gain of 0.1 from the start.
    beneath = score_trial(tried(1.2 - 0.01 * steps, shrunk=1 - 0.01 * steps), ANSWERS)
    assert beneath < learnt
    by_chance = score_trial(tried(1.2 - 0.01 * steps, shrunk=0.9 - 0.01 * steps), ANSWERS)
    chex.assert_trees_all_close(by_chance, beneath, rtol=1e-6)
    assert score_trial(tried(1.2 * flat, shrunk=0.9 * flat), ANSWERS) == 0


def test_loss_that_only_comes_down_is_at_risk_at_most():
    """All answers stay the same; a short trial may go on to learn, a whole one has not."""
    steps = np.arange(61.0)

    def down(pace):
        loss = np.maximum(np.exp(20 - pace * steps), 1.0)
        return score_trial(tried(loss, np.maximum(loss, 1.0)), ANSWERS, horizon=300)

    assert down(0.0) == 0
    assert down(-0.1) == 0
    assert 0 < down(0.1) < down(0.2) < TRAINS
    assert verdict_of(down(0.33)) == "at risk"
    # Down there for long, and nothing learnt: it is dead.
    assert down(2.0) == 0
    whole = np.maximum(np.exp(20 - 0.1 * np.arange(301.0)), 1.0)
    assert score_trial(tried(whole, whole), ANSWERS, horizon=300) == 0


def test_a_network_that_gives_all_inputs_the_same_answer_does_not_train():
    """Its hidden units are dead; its loss falls by a factor of thousands to the best constant's."""
    targets = 100 + zoo.normal(60, zoo.BATCH, 1)
    params = {
        "hidden": zoo.normal(61, zoo.WIDTH, 4),
        "last": {"kernel": zoo.normal(62, 4, 1), "bias": jnp.zeros(1)},
    }

    def apply(params, x):
        h = jax.nn.relu(x @ params["hidden"] - 100)
        return h @ params["last"]["kernel"] + params["last"]["bias"]

    exam = examine((apply, params), INPUTS, targets)
    done = Trials(exam, optax.adam(1.0), horizon=300).try_fix(AS_IT_IS)
    assert done.trial.loss[0] > 1000 * done.trial.loss[-1]
    assert verdict_of(done.score) != "trains"


def test_an_early_end_gives_the_score_of_the_whole_trial():
    exam = examine(zoo.deep(depth=3), INPUTS, TARGETS)
    answers, arguments = exam.answers, (exam.params, INPUTS, TARGETS, exam.key)
    options = {"loss": exam.loss, "optimizer": optax.adam(0.001), "num_steps": 250}
    early, whole = (
        trial_of(exam.network.apply, answers=given, horizon=250, **options)(*arguments)[0]
        for given in (answers, None)
    )
    assert len(early.loss) < len(whole.loss) == 251
    chex.assert_trees_all_close(early.loss, whole.loss[: len(early.loss)], rtol=1e-5)
    scores = [score_trial(trial, answers, horizon=250) for trial in (early, whole)]
    chex.assert_trees_all_close(*scores, rtol=0.05)


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.003, "trains"), (1e-9, "will not train")], ids=["clear", "hopeless"]
)
def test_a_trial_shorter_than_the_horizon_ends_once_it_is_decided(rate, verdict):
    exam = examine(zoo.deep(depth=3), INPUTS, TARGETS)
    options = {"loss": exam.loss, "optimizer": optax.adam(rate), "num_steps": 250}
    patient, impatient, whole = (
        trial_of(exam.network.apply, answers=answers, **options)(
            exam.params, INPUTS, TARGETS, exam.key, impatient=hurried
        )[0]
        for answers, hurried in ((exam.answers, False), (exam.answers, True), (None, False))
    )
    assert len(impatient.loss) < len(whole.loss) == 251
    # Of the network as it stands nobody loses patience.
    assert (len(patient.loss) < 251) == (verdict == "trains")
    for trial in (patient, impatient, whole):
        assert verdict_of(score_trial(trial, exam.answers)) == verdict


def test_what_stands_still_ends_early_and_is_filled_up():
    frozen = trial_of(
        lambda params, x, _: x @ params, zoo.cross_entropy, optax.sgd(0.0), num_steps=200,
    )  # fmt: skip
    trial, _ = frozen(zoo.normal(0, zoo.WIDTH, 4), INPUTS, TARGETS, jax.random.key(0))
    chex.assert_shape(trial, (201,))
    assert np.ptp(trial.loss) == 0


def test_the_curve_of_rates_has_no_hole_and_shows_where_steps_become_unstable():
    """Squared error of one number: stable for rates below 2 / curvature, exact at 1 / curvature."""
    options = {"loss": lambda y, t: jnp.mean((y - t) ** 2), "optimizer": optax.sgd(0.01)}
    factors, losses = rate_curve(
        lambda params, x, _: x * params, params=jnp.ones(()), inputs=jnp.ones((4, 1)),
        targets=jnp.zeros((4, 1)), key=jax.random.key(0), **options,
    )  # fmt: skip
    # Beyond, what a tiny factor on the loss asks for.
    usual = factors <= 1e4 * 1.001
    factors, losses = factors[usual], losses[usual]
    assert np.diff(np.log10(factors)).max() < 0.41
    # The curvature is 2: a step of rate r multiplies the number by 1 - 2 r, the loss by its square.
    expected = (1 - 2 * 0.01 * factors) ** (2 * 20)
    stable = expected < 1
    chex.assert_trees_all_close(losses[stable], expected[stable], rtol=1e-3, atol=1e-6)
    assert (np.nan_to_num(losses[~stable], nan=np.inf) > 0.99).all()


def test_rate_of_a_trial_is_a_factor_on_the_learning_rate():
    def losses(learning_rate, rate=1.0):
        options = {"loss": zoo.cross_entropy, "optimizer": optax.sgd(learning_rate)}
        trial = trial_of(lambda params, x, _: x @ params, num_steps=5, **options)
        start = jnp.zeros((zoo.WIDTH, 4))
        return trial(start, INPUTS, TARGETS, jax.random.key(0), Scales(rate))[0].loss

    chex.assert_trees_all_close(losses(1.0, 0.1), losses(0.1), rtol=1e-6)
    assert losses(1.0)[-1] < losses(0.1)[-1]


def test_one_program_serves_all_parameters_and_scales():
    forward: Any = chex.assert_max_traces(lambda params, x, _: x @ params, n=1)
    trial = trial_of(forward, zoo.cross_entropy, optax.sgd(0.1), num_steps=3)
    for seed, scales in enumerate((Scales(), Scales(rate=10.0), Scales(gradient=0.1, loss=8.0))):
        start = zoo.normal(seed, zoo.WIDTH, 4)
        chex.assert_tree_all_finite(trial(start, INPUTS, TARGETS, jax.random.key(0), scales))


def test_a_step_built_ahead_is_the_step_and_serves_other_shapes_too():
    traced = []

    def loss(outputs, targets):
        traced.append(outputs)
        return jnp.mean((outputs - targets) ** 2)

    step = TrainingStep(lambda params, x, _: x @ params, loss, optax.adam(0.1))
    batch = jnp.ones((3, 2)), zoo.normal(0, 8, 3), jnp.zeros((8, 2)), jax.random.key(0)
    step.build(*batch)
    assert len(traced) == 1
    ahead, params = make_trial(step, num_steps=3)(*batch)
    assert len(traced) == 1
    chex.assert_trees_all_equal(batch[0], jnp.ones((3, 2)))
    fresh = trial_of(lambda params, x, _: x @ params, loss, optax.adam(0.1), num_steps=3)
    chex.assert_trees_all_equal((ahead, params), fresh(*batch))
    fewer = batch[0], batch[1][:4], batch[2][:4], batch[3]
    chex.assert_trees_all_equal(make_trial(step, num_steps=3)(*fewer), fresh(*fewer))


def test_parameters_are_shown_on_the_way():
    trial = trial_of(
        lambda params, x, _: x @ params, zoo.cross_entropy, optax.sgd(0.1), num_steps=40
    )
    batch = zoo.normal(0, zoo.WIDTH, 4), INPUTS, TARGETS, jax.random.key(0)
    seen: list[Any] = []
    trial(*batch, look=lambda params: seen.append(np.asarray(params)))
    ends = [trial(*batch, most_steps=steps - 1)[1] for steps in (10, 20, 40)]
    chex.assert_trees_all_close(seen, ends, rtol=1e-6)


def test_trials_by_call_and_in_one_program_agree():
    options = {"loss": zoo.cross_entropy, "optimizer": optax.adam(0.01), "num_steps": 5}
    (apply, kernels), key = zoo.deep(), jax.random.key(0)
    arguments = kernels, INPUTS, TARGETS, key
    called, _ = trial_of(lambda p, x, _: apply(p, x), **options)(*arguments)
    scanned = make_scanned_trial(lambda p, x, _: apply(p, x), **options)(*arguments)
    chex.assert_trees_all_close(called, scanned, rtol=1e-4)


def test_a_loss_scale_changes_nothing_in_float32_and_saves_float16():
    def learnt(optimizer, dtype, scale):
        apply, kernels = zoo.deep(dtype=dtype)
        trial = trial_of(lambda p, x, _: apply(p, x), zoo.times(1e-6), optimizer, num_steps=20)
        loss = trial(kernels, INPUTS, TARGETS, jax.random.key(0), Scales(loss=scale))[0].loss
        return loss[0] / loss[-1]

    sgd, adam = optax.sgd(3e4), optax.adam(0.01, eps=1e-20)
    plain, scaled = (learnt(sgd, jnp.float32, scale) for scale in (1.0, 2.0**20))
    assert plain > 1.5
    chex.assert_trees_all_close(scaled, plain, rtol=1e-3)
    # Of 1e-6 times this gradient float16 holds next to nothing.
    assert learnt(adam, jnp.float16, 2.0**20) > 10 * learnt(adam, jnp.float16, 1.0)


def test_wider_parameters_change_nothing_but_the_steps():
    """The network itself still calculates in bfloat16."""
    kernel, types = zoo.normal(3, zoo.WIDTH, 4).astype(jnp.bfloat16), set()

    def apply(params, x):
        types.add(params.dtype)
        return x.astype(jnp.bfloat16) @ params

    exam = examine((apply, kernel), INPUTS, TARGETS, loss=zoo.cross_entropy)
    trials = Trials(exam, optax.sgd(1e-3), horizon=60)
    coarse, fine = (
        trials.try_fix(AS_IT_IS._replace(params=kernel.astype(dtype))).trial.loss
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert types == {jnp.dtype(jnp.bfloat16)}
    assert fine[0] == coarse[0]
    assert fine[-1] < coarse[-1]


def test_first_step_of_sgd_and_of_adam_in_closed_form():
    exam = examine(zoo.deep(), INPUTS, TARGETS, loss=zoo.times(1e-6))
    grads, kernels = (np.array(tree, np.float64) for tree in (exam.grads, exam.params))

    def rms(x):
        return np.sqrt(np.mean(x**2, axis=(1, 2)))

    sgd = take_first_step(exam, optax.sgd(0.1))
    chex.assert_trees_all_close(np.array(sgd.relative), 0.1 * rms(grads) / rms(kernels), rtol=1e-5)
    assert all(map(math.isnan, sgd.shortfall))
    # Clipping by length acts only on gradients longer than these: it makes nothing relative.
    clipped = take_first_step(exam, optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.1)))
    assert all(map(math.isnan, clipped.shortfall))
    # The first step of Adam is rate x g / (|g| + epsilon).
    rate, epsilon = 0.01, 1e-6
    adam = take_first_step(exam, optax.adam(rate, eps=epsilon))
    unit = grads / np.sqrt(np.sum(grads**2))
    steps = [rms(rate * g / (np.abs(g) + epsilon)) for g in (grads, unit)]
    chex.assert_trees_all_close(np.array(adam.relative), steps[0] / rms(kernels), rtol=1e-4)
    chex.assert_trees_all_close(np.array(adam.shortfall), steps[1] / steps[0], rtol=1e-4)


def test_steps_below_half_a_digit_are_lost():
    def apply(params, x):
        return x.astype(jnp.float16) @ params

    def lost(step):
        """Share of float16 ones that keep their value: the next below is 1 - 2^-11."""
        kernel = jnp.ones((4, 4), jnp.float16)
        exam = examine((apply, kernel), zoo.normal(0, 4, 4), jnp.arange(4))
        grads = np.full((4, 4), step, np.float16)
        return take_first_step(dataclasses.replace(exam, grads=grads), optax.sgd(1.0)).lost[0]

    assert lost(2.0**-11) == 0
    assert lost(2.0**-13) == 1
