"""Short trainings: the score of what happened, the scales, the first step, and number formats."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdnn.diagnosis import (
    Scales,
    Trial,
    Trials,
    examine,
    make_scanned_trial,
    make_trial,
    score_trial,
)
from jaxdnn.diagnosis.trial import take_first_step

from . import zoo

INPUTS, TARGETS = zoo.DEEP_INPUTS, zoo.DEEP_TARGETS


def test_score_follows_what_is_learnt_and_not_the_constant():
    steps = np.arange(31.0)

    def tried(loss, constant):
        return Trial(loss, loss, constant, np.ones(()))

    flat = np.ones(31)
    assert score_trial(tried(1 - 0.01 * steps, 1 - 0.01 * steps)) == 0
    assert score_trial(tried(flat * math.nan, flat)) == 0
    assert score_trial(tried(flat + steps, flat)) == 0
    slow, fast = (score_trial(tried(1 - rate * steps, flat)) for rate in (1e-4, 1e-2))
    assert 0 < slow < 0.5 < fast < 1


def test_what_is_learnt_counts_beneath_random_logits_and_what_was_there_by_chance_does_not():
    steps, flat = np.arange(31.0), np.ones(31)
    learnt = score_trial(Trial(1 - 0.01 * steps, 1 - 0.01 * steps, flat, np.ones(())))
    # The same beneath random logits that cost 0.2, and with a chance gain of 0.1 from the start.
    beneath = score_trial(Trial(1.2 - 0.01 * steps, 1 - 0.01 * steps, flat, np.ones(())))
    assert beneath < learnt
    by_chance = score_trial(Trial(1.2 - 0.01 * steps, 0.9 - 0.01 * steps, flat, np.ones(())))
    chex.assert_trees_all_close(by_chance, beneath, rtol=1e-6)
    assert score_trial(Trial(1.2 * flat, 0.9 * flat, flat, np.ones(()))) == 0


def test_loss_that_comes_down_from_far_scores_by_when_it_is_down():
    steps, constant = np.arange(61.0), np.ones(61)

    def down(pace):
        loss = np.exp(20 - pace * steps)
        return score_trial(Trial(loss, loss, constant, np.ones(())), horizon=300)

    assert down(0.0) == 0
    assert down(-0.1) == 0
    # From the middle of the last quarter, at step 53, e^(20 - 53 pace) is still to go.
    late = (60 + 20 / 0.1 - 53) * (1 + 20 / 4)
    chex.assert_trees_all_close(down(0.1), 300 / (300 + late), rtol=1e-6)
    assert down(0.1) < down(0.2)
    # Down there for long, and nothing learnt: it is dead.
    stuck = np.maximum(np.exp(20 - 2 * steps), 1.0)
    assert score_trial(Trial(stuck, stuck, constant, np.ones(())), horizon=300) == 0


def test_rate_of_a_trial_is_a_factor_on_the_learning_rate():
    def losses(learning_rate, rate=1.0):
        options = {"loss": zoo.cross_entropy, "optimizer": optax.sgd(learning_rate)}
        trial = make_trial(lambda params, x, _: x @ params, num_steps=5, **options)
        start = jnp.zeros((zoo.WIDTH, 4))
        return trial(start, INPUTS, TARGETS, jax.random.key(0), Scales(rate)).loss

    chex.assert_trees_all_close(losses(1.0, 0.1), losses(0.1), rtol=1e-6)
    assert losses(1.0)[-1] < losses(0.1)[-1]


def test_one_program_serves_all_parameters_and_scales():
    forward: Any = chex.assert_max_traces(lambda params, x, _: x @ params, n=1)
    trial = make_trial(forward, zoo.cross_entropy, optax.sgd(0.1), num_steps=3)
    for seed, scales in enumerate((Scales(), Scales(rate=10.0), Scales(gradient=0.1, loss=8.0))):
        start = zoo.normal(seed, zoo.WIDTH, 4)
        chex.assert_tree_all_finite(trial(start, INPUTS, TARGETS, jax.random.key(0), scales))


def test_trials_by_call_and_in_one_program_agree():
    options = {"loss": zoo.cross_entropy, "optimizer": optax.adam(0.01), "num_steps": 5}
    (apply, kernels), key = zoo.deep(), jax.random.key(0)
    arguments = kernels, INPUTS, TARGETS, key
    called = make_trial(lambda p, x, _: apply(p, x), **options)(*arguments)
    scanned = make_scanned_trial(lambda p, x, _: apply(p, x), **options)(*arguments)
    chex.assert_trees_all_close(called, scanned, rtol=1e-4)


def test_a_loss_scale_changes_nothing_in_float32_and_saves_float16():
    def learnt(optimizer, dtype, scale):
        apply, kernels = zoo.deep(dtype=dtype)
        trial = make_trial(lambda p, x, _: apply(p, x), zoo.times(1e-6), optimizer, num_steps=20)
        loss = trial(kernels, INPUTS, TARGETS, jax.random.key(0), Scales(loss=scale)).loss
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
    run = Trials(exam, optax.sgd(1e-3)).program({})
    coarse, fine = (
        run(kernel.astype(dtype), Scales()).loss for dtype in (jnp.bfloat16, jnp.float32)
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
