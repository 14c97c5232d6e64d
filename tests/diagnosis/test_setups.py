"""Fixes as things that compose, and the networks that they make."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdnn.diagnosis import AS_IT_IS, HORIZON, NUM_STEPS, Scales, Trials, examine
from jaxdnn.diagnosis.case import open_case
from jaxdnn.diagnosis.edit_fixes import relu_in_place, shortcuts
from jaxdnn.diagnosis.fixes import critical_weights, with_sigma
from jaxdnn.diagnosis.program import trace
from jaxdnn.diagnosis.setups import (
    Fix,
    FixKind,
    Output,
    affordable_steps,
    both,
    composed,
    is_light,
)
from jaxdnn.errors import InputError

from . import zoo

WIDTH = 6
INPUTS, TARGETS = zoo.normal(9, 8, WIDTH), zoo.normal(10, 8, 3)
KERNELS = [*(zoo.normal(i, WIDTH, WIDTH) for i in range(3)), zoo.normal(8, WIDTH, 3)]


def apply(params, x):
    for kernel in params[:-1]:
        x = jnp.tanh(x @ kernel)
    return jax.nn.relu(x @ params[-1])


@functools.cache
def trials():
    return Trials(examine((apply, KERNELS), INPUTS, TARGETS), optax.sgd(0.1), horizon=NUM_STEPS)


def outputs_of(fix, inputs=INPUTS):
    setup = trials().setup(fix)
    return setup.forward(setup.params, inputs, setup.key)


def test_as_it_is_is_the_network_itself():
    setup = trials().setup(AS_IT_IS)
    chex.assert_trees_all_close(outputs_of(AS_IT_IS), apply(KERNELS, INPUTS), rtol=1e-6)
    assert (setup.inputs is INPUTS, setup.targets is TARGETS) == (True, True)
    assert setup.optimizer is trials().optimizer
    assert setup.scales == Scales()


def test_two_fixes_in_one_are_both_in_turn():
    """Twice the weights, then ReLU, then shortcuts past it, and a sigmoid at the end."""
    exam = trials().exam
    (relu,) = relu_in_place(exam)
    heavy = Fix("heavy", "", "", params=[2 * kernel for kernel in KERNELS])
    shortcut = next(shortcuts(exam, critical_weights(exam)))
    ending = Fix("ending", "", "", output=Output(jax.nn.sigmoid))
    fix = functools.reduce(both, (heavy, relu, shortcut, ending))
    h, scale = INPUTS, 1 / 3**0.5
    for kernel in KERNELS[:-1]:
        h = h + scale * jax.nn.relu(h @ (2 * kernel))
    expected = jax.nn.sigmoid(h @ (2 * KERNELS[-1]))
    chex.assert_trees_all_close(outputs_of(fix), expected, rtol=1e-4, atol=1e-5)
    assert fix.size == heavy.size + relu.size + shortcut.size + ending.size
    assert fix.name == f"heavy + relu + {shortcut.name} + ending"


def test_what_two_fixes_do_to_data_and_step_is_done_in_turn():
    one = Fix(
        "one", "", "", FixKind.DATA, 1, scales=Scales(rate=10.0),
        inputs=lambda x: x + 1, targets=lambda t: 2 * t, loss=zoo.cross_entropy,
    )  # fmt: skip
    other = Fix(
        "other", "", "", FixKind.DATA, 2, scales=Scales(rate=3.0, loss=8.0),
        inputs=lambda x: 5 * x, optimizer=optax.adam(0.1),
    )  # fmt: skip
    fix = both(one, other)
    setup = trials().setup(fix)
    chex.assert_trees_all_close(setup.inputs, 5 * (INPUTS + 1), rtol=1e-6)
    chex.assert_trees_all_close(setup.targets, 2 * TARGETS, rtol=1e-6)
    assert setup.scales == Scales(rate=30.0, loss=8.0)
    assert setup.loss is one.loss
    assert setup.optimizer is other.optimizer
    assert (fix.kind, both(one, Fix("", "", "")).kind) == (FixKind.DATA, FixKind.NETWORK)


def test_edits_of_one_value_are_composed():
    first, second = {1: lambda v, _: v + 1, 2: lambda v, _: v}, {1: lambda v, _: 10 * v}
    done = composed(first, second)
    assert (done[1](jnp.ones(()), {}), done[2](jnp.ones(()), {})) == (20, 1)


def test_a_wider_last_layer_takes_what_the_old_one_took():
    fix = Fix("wide", "", "", output=Output(jax.nn.softmax, 5), loss=lambda y, _: jnp.mean(y))
    setup = trials().setup(fix)
    h = INPUTS
    for kernel in KERNELS[:-1]:
        h = jnp.tanh(h @ kernel)
    head = setup.params["head"]
    expected = jax.nn.softmax(h @ head["kernel"] + head["bias"])
    chex.assert_shape(expected, (8, 5))
    chex.assert_trees_all_close(outputs_of(fix), expected, rtol=1e-5)
    chex.assert_trees_all_equal(setup.params["network"], KERNELS)


@pytest.mark.parametrize("num", [3, 17])
def test_a_changed_network_takes_batches_of_another_size(num):
    (relu,) = relu_in_place(trials().exam)
    inputs = zoo.normal(20, num, WIDTH)
    h = inputs
    for kernel in KERNELS[:-1]:
        h = jax.nn.relu(h @ kernel)
    expected = jax.nn.relu(h @ KERNELS[-1])
    chex.assert_trees_all_close(outputs_of(relu, inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_fix_that_does_not_fit_is_refused():
    narrow = Fix("narrow", "three outputs for five", "", output=Output(lambda z: z, 5))
    with pytest.raises(InputError, match="three outputs for five"):
        trials().setup(narrow)


def test_weights_are_scaled_to_the_sigma_asked_for():
    params = with_sigma(trials().exam, {0: 3.0, 3: 0.5})
    sigmas = [float(jnp.sqrt(jnp.mean(kernel**2) * len(kernel))) for kernel in params]
    chex.assert_trees_all_close(sigmas[0], 3.0, rtol=1e-5)
    chex.assert_trees_all_close(sigmas[3], 0.5, rtol=1e-5)
    chex.assert_trees_all_equal(params[1:3], KERNELS[1:3])


@pytest.mark.parametrize(("width", "steps"), [(32, HORIZON), (16_384, NUM_STEPS)])
def test_small_networks_are_tried_for_all_of_the_horizon_and_huge_ones_shortly(width, steps):
    kernels = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * 4
    batch = jax.ShapeDtypeStruct((256, width), jnp.float32)
    program = trace(lambda params, x, _: apply(params, x), kernels, batch, jax.random.key(0))
    assert affordable_steps(program, kernels) == steps


def square(width):
    return [jnp.zeros((width, width))]


def repeated(params, x):
    """The same kernel in a scan through time."""
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ params[0]), None), x, None, length=3)[0]


LIGHT = apply, square(300), 8


@pytest.mark.parametrize(
    ("network", "params", "batch", "light"),
    [
        (*LIGHT, True),
        # More parameters; as many, but a scan; as many, but a batch that makes each step dear.
        (apply, square(600), 8, False),
        (repeated, *LIGHT[1:], False),
        (*LIGHT[:2], 4096, False),
    ],
)
def test_what_is_larger_scans_or_costs_more_a_step_is_not_light(network, params, batch, light):
    inputs = jnp.ones((batch, len(params[0])))
    assert is_light(open_case((network, params), inputs, inputs)) is light
