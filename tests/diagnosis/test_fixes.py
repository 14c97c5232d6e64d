"""Remedies: what they make of the forward pass and of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import Scales, Trial, examine, make_trial, score_trial
from jaxdnn.diagnosis.edit_fixes import batch_norms, rectifiers, shortcuts
from jaxdnn.diagnosis.fixes import critical_weights
from jaxdnn.diagnosis.profile import log_factor
from tests.diagnosis import zoo

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


def logits_of(exam, group):
    return exam.edited(group.edits)(group.fixes[0].params, INPUTS, exam.key)


@pytest.mark.parametrize(("skip", "words"), [(0, "shortcuts past 4"), (1, "residual branches")])
def test_every_block_then_adds_over_the_root_of_their_number(skip, words):
    exam = examine((network(skip, 1.0), KERNELS), INPUTS, TARGETS)
    (group,) = shortcuts(exam, critical_weights(exam))
    assert group.fixes[0].words.startswith(words)
    expected = network(1, 1 / np.sqrt(HIDDEN))(KERNELS, INPUTS)
    np.testing.assert_allclose(logits_of(exam, group), expected, rtol=1e-5, atol=1e-5)


def plain(phi, norm=lambda z: z):
    """Layers of norm and activation alone."""

    def apply(params, x):
        for kernel in params[:-1]:
            x = phi(norm(x @ kernel))
        return x @ params[-1]

    return apply


def test_what_has_a_mean_is_added_over_the_number_of_blocks():
    exam = examine((plain(jax.nn.relu), KERNELS), INPUTS, TARGETS)
    (group,) = shortcuts(exam, critical_weights(exam))
    h = jax.nn.relu(INPUTS @ KERNELS[0])
    for kernel in KERNELS[1:-1]:
        h = h + jax.nn.relu(h @ kernel) / HIDDEN
    np.testing.assert_allclose(logits_of(exam, group), h @ KERNELS[-1], rtol=1e-5, atol=1e-5)


def test_relu_replaces_the_activations_with_hes_weights():
    exam = examine((plain(jax.nn.sigmoid), KERNELS), INPUTS, TARGETS)
    group = next(rectifiers(exam))
    sigmas = [np.sqrt(np.mean(k**2) * len(k)) for k in group.fixes[0].params]
    np.testing.assert_allclose(sigmas, [1.0, *[np.sqrt(2)] * (HIDDEN + 1)], rtol=1e-5)
    expected = plain(jax.nn.relu)(group.fixes[0].params, INPUTS)
    np.testing.assert_allclose(logits_of(exam, group), expected, rtol=1e-5, atol=1e-5)
    rectified = examine((plain(jax.nn.relu), KERNELS), INPUTS, TARGETS)
    assert not list(rectifiers(rectified))


def normalised(axis):
    def norm(z):
        centred = z - z.mean(axis, keepdims=True)
        return centred * jax.lax.rsqrt(z.var(axis, keepdims=True) + 1e-5)

    return norm


def test_batch_norm_stands_in_for_layer_norm():
    exam = examine((plain(jnp.tanh, normalised(-1)), KERNELS), INPUTS, TARGETS)
    (group,) = batch_norms(exam)
    expected = plain(jnp.tanh, normalised(0))(KERNELS, INPUTS)
    np.testing.assert_allclose(logits_of(exam, group), expected, rtol=1e-4, atol=1e-4)
    over_batch = examine((plain(jnp.tanh, normalised(0)), KERNELS), INPUTS, TARGETS)
    assert not list(batch_norms(over_batch))


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
        assert after.measured.signals[layer].rms == pytest.approx(1, rel=0.05)
        factor = log_factor(after, layer - 1)
        assert factor == pytest.approx(0, abs=0.05)
    assert "sigma_b" in fix.words


def test_rate_of_a_rehearsal_is_a_factor_on_the_learning_rate():
    def loss(logits, targets):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def tried(learning_rate, rate=1.0):
        rehearse = make_trial(
            lambda params, x, _: x @ params, loss, optax.sgd(learning_rate), num_steps=5
        )
        return rehearse(jnp.zeros((5, 3)), INPUTS, TARGETS, jax.random.key(0), Scales(rate)).loss

    np.testing.assert_allclose(tried(1.0, 0.1), tried(0.1), rtol=1e-6)
    assert tried(1.0)[-1] < tried(0.1)[-1]


def test_loss_that_comes_down_from_far_scores_by_when_it_is_down():
    steps, constant = np.arange(61.0), np.ones(61)

    def down(pace):
        loss = np.exp(20 - pace * steps)
        return score_trial(Trial(loss, loss, constant, np.ones(())), horizon=300)

    assert down(0.0) == 0
    assert down(-0.1) == 0
    # From the middle of the last quarter, at step 53, e^(20 - 53 pace) is still to go.
    late = (60 + 20 / 0.1 - 53) * (1 + 20 / 4)
    assert down(0.1) == pytest.approx(300 / (300 + late), rel=1e-6)
    assert down(0.1) < down(0.2)
    # Down there for long, and nothing learnt: it is dead.
    stuck = np.maximum(np.exp(20 - 2 * steps), 1.0)
    assert score_trial(Trial(stuck, stuck, constant, np.ones(())), horizon=300) == 0
