"""Fixes: what they make of the forward pass, of the parameters and of the step."""

import dataclasses
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import Trials, examine
from jaxdnn.diagnosis.edit_fixes import (
    added_activations,
    batch_norms,
    layer_norms,
    leaky_activations,
    relu_everywhere,
    relu_in_place,
    shortcuts,
)
from jaxdnn.diagnosis.fixes import critical_weights, no_decay, step_fixes, wider_layers
from jaxdnn.diagnosis.profile import log_factor
from jaxdnn.diagnosis.setups import FixKind
from jaxdnn.diagnosis.trial import take_first_step

from . import zoo

WIDTH, HIDDEN = 6, 4
INPUTS, TARGETS = zoo.normal(9, 8, 5), jnp.arange(8) % 3
KERNELS = [zoo.normal(0, 5, WIDTH), *(zoo.normal(i, WIDTH, WIDTH) for i in range(1, 1 + HIDDEN))]
KERNELS += [zoo.normal(8, WIDTH, 3)]


def network(skip, scale):
    """First layer, then `skip * h + scale * tanh(h W)` for each hidden layer, then the logits."""

    def apply(params, x):
        h = jnp.tanh(x @ params[0])
        for kernel in params[1:-1]:
            h = skip * h + scale * jnp.tanh(h @ kernel) if skip else jnp.tanh(h @ kernel)
        return h @ params[-1]

    return apply


def only(fixes) -> Any:
    """The one fix."""
    (fix,) = fixes
    return fix


def logits_of(exam, fix):
    setup = Trials(exam, optax.sgd(0.1)).setup(fix)
    return setup.forward(setup.params, INPUTS, exam.key)


@pytest.mark.parametrize(("skip", "words"), [(0, "shortcuts past 4"), (1, "residual branches")])
def test_every_block_then_adds_over_the_root_of_their_number(skip, words):
    exam = examine((network(skip, 1.0), KERNELS), INPUTS, TARGETS)
    weights = critical_weights(exam)
    alone, with_weights = shortcuts(exam, weights)
    assert alone.words.startswith(words)
    for fix, kernels in ((alone, KERNELS), (with_weights, weights.params)):
        expected = network(1, 1 / np.sqrt(HIDDEN))(kernels, INPUTS)
        chex.assert_trees_all_close(logits_of(exam, fix), expected, rtol=1e-5, atol=1e-5)


def plain(phi, norm=lambda z: z):
    """Layers of norm and activation alone."""

    def apply(params, x):
        for kernel in params[:-1]:
            x = phi(norm(x @ kernel))
        return x @ params[-1]

    return apply


def test_what_has_a_mean_is_added_over_the_number_of_blocks():
    exam = examine((plain(jax.nn.relu), KERNELS), INPUTS, TARGETS)
    alone = next(shortcuts(exam, critical_weights(exam)))
    h = jax.nn.relu(INPUTS @ KERNELS[0])
    for kernel in KERNELS[1:-1]:
        h = h + jax.nn.relu(h @ kernel) / HIDDEN
    chex.assert_trees_all_close(logits_of(exam, alone), h @ KERNELS[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_relu_replaces_the_activations_with_hes_weights():
    exam = examine((plain(jax.nn.sigmoid), KERNELS), INPUTS, TARGETS)
    fix = next(relu_everywhere(exam))
    sigmas = [np.sqrt(np.mean(k**2) * len(k)) for k in fix.params]
    chex.assert_trees_all_close(sigmas, [1.0, *[np.sqrt(2)] * (HIDDEN + 1)], rtol=1e-5)
    expected = plain(jax.nn.relu)(fix.params, INPUTS)
    chex.assert_trees_all_close(logits_of(exam, fix), expected, rtol=1e-5, atol=1e-5)
    (in_place,) = relu_in_place(exam)
    expected = plain(jax.nn.relu)(KERNELS, INPUTS)
    chex.assert_trees_all_close(logits_of(exam, in_place), expected, rtol=1e-5, atol=1e-5)
    with_relu = examine((plain(jax.nn.relu), KERNELS), INPUTS, TARGETS)
    assert not [*relu_everywhere(with_relu), *relu_in_place(with_relu)]


def test_activations_are_put_where_layers_follow_each_other_directly():
    exam = examine((plain(lambda z: z), KERNELS), INPUTS, TARGETS)
    fix = only(added_activations(exam, 0))
    assert fix.words.startswith(f"a ReLU after {HIDDEN + 1} hidden layers")
    expected = plain(jax.nn.relu)(KERNELS, INPUTS)
    chex.assert_trees_all_close(logits_of(exam, fix), expected, rtol=1e-5, atol=1e-5)
    assert not list(added_activations(examine((plain(jnp.tanh), KERNELS), INPUTS, TARGETS), 0))


def test_only_activations_that_are_flat_for_all_get_a_slope():
    """Negative weights on positive inputs: all units of the first layer are dead."""
    inputs = jnp.abs(INPUTS)
    kernels = [-jnp.abs(KERNELS[0]), *KERNELS[1:3], KERNELS[-1]]

    def apply(params, x):
        x = jax.nn.relu(x @ params[0])
        for kernel in params[1:-1]:
            x = jax.nn.relu(x @ kernel + 1.0)
        return x @ params[-1]

    exam = examine((apply, kernels), inputs, TARGETS)
    fix = only(leaky_activations(exam, 0))
    assert fix.words == "leaky ReLU in 1 activation"
    h = jax.nn.leaky_relu(inputs @ kernels[0], 0.1)
    for kernel in kernels[1:-1]:
        h = jax.nn.relu(h @ kernel + 1.0)
    setup = Trials(exam, optax.sgd(0.1)).setup(fix)
    given = setup.forward(kernels, inputs, exam.key)
    chex.assert_trees_all_close(given, h @ kernels[-1], rtol=1e-5, atol=1e-5)


def normalised(axis):
    def norm(z):
        centred = z - z.mean(axis, keepdims=True)
        return centred * jax.lax.rsqrt(z.var(axis, keepdims=True) + 1e-5)

    return norm


@pytest.mark.slow
def test_batch_norm_stands_in_for_layer_norm():
    exam = examine((plain(jnp.tanh, normalised(-1)), KERNELS), INPUTS, TARGETS)
    fix = only(batch_norms(exam))
    expected = plain(jnp.tanh, normalised(0))(KERNELS, INPUTS)
    chex.assert_trees_all_close(logits_of(exam, fix), expected, rtol=1e-4, atol=1e-4)
    over_batch = examine((plain(jnp.tanh, normalised(0)), KERNELS), INPUTS, TARGETS)
    assert not list(batch_norms(over_batch))


@pytest.mark.parametrize(("norms", "axis"), [(batch_norms, 0), (layer_norms, -1)])
def test_norms_are_put_before_every_activation_where_there_are_none(norms, axis):
    exam = examine((plain(jnp.tanh), KERNELS), INPUTS, TARGETS)
    fix = only(norms(exam))
    expected = plain(jnp.tanh, normalised(axis))(KERNELS, INPUTS)
    chex.assert_trees_all_close(logits_of(exam, fix), expected, rtol=1e-4, atol=1e-4)


def test_no_decay_leaves_the_gradients_own_step():
    exam = examine(zoo.deep(depth=2), zoo.DEEP_INPUTS, zoo.DEEP_TARGETS)
    rate = 0.1
    sgd = optax.sgd(rate)
    assert not list(no_decay(take_first_step(exam, sgd), sgd))
    decaying = optax.chain(optax.add_decayed_weights(0.5), sgd)
    fix = only(no_decay(take_first_step(exam, decaying), decaying))
    params = exam.params
    updates, _ = fix.optimizer.update(exam.grads, fix.optimizer.init(params), params)
    plain_step = jax.tree.map(lambda grad: -rate * grad, exam.grads)
    chex.assert_trees_all_close(updates, plain_step, rtol=1e-6)


@pytest.mark.slow
def test_critical_weights_and_biases_keep_a_wide_network_at_one():
    """sigma_w² E phi'² = 1 and sigma_w² E phi² + sigma_b² = 1 for tanh; width 500, so 5 %."""
    width = 500
    params = [{"kernel": zoo.normal(i, width, width), "bias": jnp.zeros(width)} for i in range(6)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"]

    inputs = zoo.normal(9, 32, width)
    exam = examine((apply, params), inputs, jnp.arange(32))
    fix = critical_weights(exam)
    after = examine((apply, fix.params), inputs, jnp.arange(32))
    for layer in range(1, 5):
        chex.assert_trees_all_close(after.measured.signals[layer].rms, 1, rtol=0.05)
        factor = log_factor(after, layer - 1)
        chex.assert_trees_all_close(factor, 0, atol=0.05, rtol=0)
    assert "sigma_b" in fix.words


def test_a_loss_scale_is_found_beside_a_delta_that_overflows():
    exam = examine(zoo.deep(), zoo.DEEP_INPUTS, zoo.DEEP_TARGETS)
    first = take_first_step(exam, optax.sgd(0.1))
    numbers = [layer.z for layer in exam.graph.layers]
    deltas = [math.inf, 2.0**-10, 1e-40, *[math.nan] * (zoo.DEPTH - 3)]
    mixed = exam.measured._replace(delta=dict(zip(numbers, deltas, strict=True)))
    fixes = step_fixes(dataclasses.replace(exam, measured=mixed), first)
    (scale,) = [each.scales.loss for each in fixes if each.kind is FixKind.LOSS_SCALE]
    assert scale == 2.0**10


def test_narrow_layers_get_units_and_the_others_stay():
    def apply(params, x):
        for kernel, bias in params:
            x = jnp.tanh(x @ kernel + bias)
        return x

    widths = [5, 16, 2, 3, 3]
    params = [
        (zoo.normal(i, a, b), jnp.ones(b)) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    exam = examine((apply, params), INPUTS, TARGETS)
    new = only(wider_layers(exam)).params
    assert [kernel.shape for kernel, _ in new] == [(5, 16), (16, 32), (32, 32), (32, 3)]
    chex.assert_trees_all_equal((new[0], new[-1][1]), (params[0], params[-1][1]))
    chex.assert_shape(apply(new, INPUTS), (len(INPUTS), 3))
    # LeCun: variance 1 / fan_in, of 1,024 draws.
    chex.assert_trees_all_close(np.var(new[2][0]) * 32, 1, atol=5 * (2 / 1024) ** 0.5, rtol=0)
    wide = [(zoo.normal(0, 5, 16), jnp.zeros(16)), (zoo.normal(1, 16, 3), jnp.zeros(3))]
    assert not list(wider_layers(examine((apply, wide), INPUTS, TARGETS)))
