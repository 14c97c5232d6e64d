"""The optimizer: penalties, schedules and momentum against their formulas."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.optim import kernel_mask, make_optimizer, make_schedule
from jaxdnn.options import OptimizerOptions

RNG = np.random.default_rng(0)
NUM_EXAMPLES = 50


def tree(seed=0):
    """Parameters as networks have them: kernels, biases, norms, a trained slope."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.float32(rng.normal(size=shape))

    layer = {
        "linear": {"kernel": normal(4, 3), "bias": normal(3)},
        "norm": {"scale": normal(3), "bias": normal(3)},
        "slope": normal(3),
    }
    return {"layers": {0: layer}, "head": {"kernel": normal(3, 2), "bias": normal(2)}}


PARAMS, GRADS = tree(0), tree(1)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def options(**given: Any) -> OptimizerOptions:
    defaults: dict[str, Any] = {"learning_rate": 1.0, "schedule": "constant"}
    return OptimizerOptions(**(defaults | given))


def optimizer(steps_per_epoch=10, num_steps=100, **given):
    chosen = options(**given)
    schedule = make_schedule(chosen, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
    return make_optimizer(chosen, schedule, num_examples=NUM_EXAMPLES)


def applied(gradients, **given):
    """The updates that the chain makes of a sequence of gradients at fixed parameters."""
    chain = optimizer(**given)
    state, updates, move = chain.init(PARAMS), [], jax.jit(chain.update)
    for gradient in gradients:
        update, state = move(gradient, state, PARAMS)
        updates.append(update)
    return updates


def rates(steps, steps_per_epoch=10, num_steps=100, **given):
    schedule = make_schedule(options(**given), steps_per_epoch=steps_per_epoch, num_steps=num_steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps)), np.float64)


@pytest.mark.parametrize(("l2", "l1"), [(3.0, 0.0), (0.0, 2.0), (3.0, 2.0), (0.0, 0.0)])
def test_applied_gradient_is_that_of_loss_plus_the_written_out_penalty(l2, l1):
    target = tree(2)

    def loss(params):
        return optax.tree.norm(optax.tree.sub(params, target), squared=True) / 2

    def written_out(params):
        kernels = [params["layers"][0]["linear"]["kernel"], params["head"]["kernel"]]
        squares = sum((w**2).sum() for w in kernels)
        sizes = sum(jnp.abs(w).sum() for w in kernels)
        m = NUM_EXAMPLES
        return loss(params) + l2 / (2 * m) * squares + l1 / (2 * m) * sizes

    (update,) = applied([jax.jit(jax.grad(loss))(PARAMS)], l2=l2, l1=l1)
    expected = jax.tree.map(jnp.negative, jax.jit(jax.grad(written_out))(PARAMS))
    chex.assert_trees_all_close(update, expected, **CLOSE)


def test_only_kernels_are_penalised():
    mask = kernel_mask(PARAMS)
    flags = {"linear": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}}
    assert mask == {
        "layers": {0: {**flags, "slope": False}},
        "head": {"kernel": True, "bias": False},
    }
    (update,) = applied([jax.tree.map(jnp.zeros_like, PARAMS)], l2=1.0, l1=1.0)
    moved = jax.tree.map(lambda u: bool((u != 0).any()), update)
    assert moved == mask


def test_l1_leaves_a_weight_of_zero():
    params = {"kernel": jnp.array([[-2.0, 0.0, 3.0]])}
    chain = optimizer(l1=10.0)
    zero = jax.tree.map(jnp.zeros_like, params)
    update, _ = chain.update(zero, chain.init(params), params)
    chex.assert_trees_all_close(update, {"kernel": np.array([[0.1, 0.0, -0.1]])}, **CLOSE)


STEPS = np.array([0, 1, 7, 10, 19, 20, 55, 100])


@pytest.mark.parametrize(
    ("given", "formula"),
    [
        ({"schedule": "constant"}, lambda t: 0.5 + 0 * t),
        ({"schedule": "exponential_decay", "decay_steps": 5}, lambda t: 0.5 * 0.9 ** (t / 5)),
        ({"schedule": "exponential_decay"}, lambda t: 0.5 * 0.9 ** (t / 10)),
        (
            {"schedule": "exponential_decay", "decay_steps": 4, "staircase": True},
            lambda t: 0.5 * 0.9 ** (t // 4),
        ),
        ({"schedule": "exponential_decay", "staircase": True}, lambda t: 0.5 * 0.9 ** (t // 10)),
        ({"schedule": "inverse_time_decay"}, lambda t: 0.5 / (1 + 0.9 * t)),
        ({"schedule": "cosine_decay"}, lambda t: 0.5 * (1 + np.cos(np.pi * t / 100)) / 2),
    ],
)
def test_schedules_follow_their_formulas(given, formula):
    given = {"learning_rate": 0.5, "decay_rate": 0.9, **given}
    chex.assert_trees_all_close(rates(STEPS, **given), formula(STEPS), rtol=1e-5, atol=1e-7)
    warm = rates(STEPS, warmup_steps=8, **given)
    ramp = np.minimum(1, (STEPS + 1) / 8)
    chex.assert_trees_all_close(warm, formula(STEPS) * ramp, rtol=1e-5, atol=1e-7)


def test_decay_steps_default_to_one_epoch():
    per_epoch = rates([37], steps_per_epoch=37, schedule="exponential_decay", decay_rate=0.5)
    chex.assert_trees_all_close(per_epoch, 0.5, rtol=1e-6)


def test_each_step_is_taken_at_its_own_rate():
    given = {"schedule": "inverse_time_decay", "decay_rate": 0.5, "learning_rate": 0.2}
    updates = applied([GRADS] * 4, **given)
    for step, update in enumerate(updates):
        expected = jax.tree.map(lambda g, step=step: -0.2 / (1 + 0.5 * step) * g, GRADS)
        chex.assert_trees_all_close(update, expected, **CLOSE)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_follows_its_recursion(nesterov):
    gradients = [tree(seed) for seed in (3, 4, 5)]
    updates = applied(gradients, learning_rate=0.3, momentum=0.8, nesterov=nesterov)
    velocity = np.zeros((3, 2))
    for gradient, update in zip(gradients, updates, strict=True):
        g = np.asarray(gradient["head"]["kernel"])
        velocity = g + 0.8 * velocity
        ahead = g + 0.8 * velocity if nesterov else velocity
        chex.assert_trees_all_close(update["head"]["kernel"], -0.3 * ahead, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov"), [(None, False), (0.8, False), (0.8, True)])
def test_adam_follows_its_recursion(momentum, nesterov):
    gradients = [tree(seed) for seed in (3, 4, 5)]
    updates = applied(
        gradients, optimizer="adam", learning_rate=0.3, momentum=momentum, nesterov=nesterov
    )
    b1, b2 = momentum or 0.9, 0.999
    first = second = np.zeros((3, 2))
    for t, (gradient, update) in enumerate(zip(gradients, updates, strict=True), start=1):
        g = np.asarray(gradient["head"]["kernel"], np.float64)
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
        mean = first / (1 - b1**t)
        if nesterov:  # Dozat, "Incorporating Nesterov Momentum into Adam", 2016
            mean = b1 * first / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        expected = -0.3 * mean / (np.sqrt(second / (1 - b2**t)) + 1e-8)
        chex.assert_trees_all_close(update["head"]["kernel"], expected, rtol=1e-4)


def test_clipping_bounds_the_norm_of_gradient_and_penalty_and_keeps_the_direction():
    (whole,) = applied([GRADS], l2=30.0, l1=5.0)
    norm = float(optax.tree.norm(whole))
    (clipped,) = applied([GRADS], l2=30.0, l1=5.0, clip_norm=norm / 4)
    chex.assert_trees_all_close(clipped, jax.tree.map(lambda u: u / 4, whole), **CLOSE)
    (untouched,) = applied([GRADS], l2=30.0, l1=5.0, clip_norm=norm * 1.01)
    chex.assert_trees_all_close(untouched, whole, **CLOSE)


def test_clipping_comes_before_momentum():
    updates = applied([GRADS] * 3, momentum=0.5, clip_norm=0.1)
    norms = [float(optax.tree.norm(update)) for update in updates]
    chex.assert_trees_all_close(norms, [0.1, 0.15, 0.175], rtol=1e-4)
