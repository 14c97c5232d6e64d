"""Losses: the definition in float64, stability, gradients, and one sigmoid unit against two."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.losses import cross_entropy, predictions, probabilities, smooth, soft_cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(6, 4)) * 3
LABELS = jnp.array([0, 1, 2, 3, 3, 0])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


class TestDefinitions(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_cross_entropy_is_minus_the_log_of_the_label_s_share(self):
        losses = self.variant(cross_entropy)(jnp.float32(LOGITS), LABELS)
        expected = -np.log(softmax(LOGITS)[np.arange(6), LABELS])
        chex.assert_trees_all_close(losses, expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_probabilities_are_shares_of_the_powers(self):
        shares = self.variant(probabilities)(jnp.float32(LOGITS))
        chex.assert_trees_all_close(shares, softmax(LOGITS), rtol=1e-5)


def test_one_sigmoid_unit_equals_two_softmax_units_of_which_one_is_zero():
    z = jnp.float32(LOGITS[:, :1])
    pair = jnp.concatenate([jnp.zeros_like(z), z], axis=1)
    labels = LABELS % 2
    chex.assert_trees_all_close(cross_entropy(z, labels), cross_entropy(pair, labels), rtol=1e-5)
    chex.assert_trees_all_close(probabilities(z), probabilities(pair), rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(predictions(z), predictions(pair))


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_probabilities_are_shares_and_agree_with_predictions_and_loss(num_outputs):
    logits = jnp.float32(LOGITS[:, :num_outputs])
    labels = LABELS % max(num_outputs, 2)
    shares = np.asarray(probabilities(logits))
    chex.assert_shape(shares, (6, max(num_outputs, 2)))
    assert (shares >= 0).all()
    chex.assert_trees_all_close(shares.sum(1), 1, rtol=1e-6)
    chex.assert_trees_all_equal(predictions(logits), np.int32(shares.argmax(1)))
    losses = -np.log(shares[np.arange(6), labels])
    chex.assert_trees_all_close(cross_entropy(logits, labels), losses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_soft_targets_weigh_the_losses_of_the_classes(num_outputs):
    logits, num_classes = jnp.float32(LOGITS[:, :num_outputs]), max(num_outputs, 2)
    targets = np.random.default_rng(1).dirichlet(np.ones(num_classes), 6)
    each = [cross_entropy(logits, jnp.full(6, label)) for label in range(num_classes)]
    expected = (targets * np.stack(each, axis=1)).sum(1)
    found = soft_cross_entropy(logits, jnp.float32(targets))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    sharp = soft_cross_entropy(logits, smooth(LABELS % num_classes, num_classes, 0.0))
    chex.assert_trees_all_close(
        sharp, cross_entropy(logits, LABELS % num_classes), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_smoothed_targets_keep_the_rest_and_share_alike(share):
    targets = np.asarray(smooth(LABELS, 4, share))
    chex.assert_trees_all_close(targets.sum(1), np.ones(6), rtol=1e-6)
    own = targets[np.arange(6), LABELS]
    chex.assert_trees_all_close(own, np.full(6, 1 - share + share / 4), rtol=1e-6)
    chex.assert_trees_all_close(np.sort(targets)[:, :-1], np.full((6, 3), share / 4), rtol=1e-6)


def test_a_shift_of_all_logits_changes_nothing():
    logits = jnp.float32(LOGITS)
    shifted = logits + 8  # a power of two: the float32 error stays at 8 eps
    chex.assert_trees_all_close(
        cross_entropy(shifted, LABELS), cross_entropy(logits, LABELS), rtol=1e-5, atol=1e-5
    )
    chex.assert_trees_all_close(probabilities(shifted), probabilities(logits), rtol=1e-5)


def test_huge_logits_stay_finite():
    examine = jax.jit(jax.value_and_grad(lambda z, labels: cross_entropy(z, labels)[0]))
    for logits, label, expected in (
        ([[1e4, 0.0]], 1, 1e4),
        ([[1e4, 0.0]], 0, 0.0),
        ([[1e4]], 0, 1e4),
        ([[-1e4]], 1, 1e4),
        ([[1e4]], 1, 0.0),
    ):
        loss, gradient = examine(jnp.array(logits), jnp.array([label]))
        chex.assert_trees_all_close(loss, expected, rtol=1e-6)
        chex.assert_tree_all_finite(gradient)


def test_gradient_is_share_minus_label():
    gradient = jax.grad(lambda z: cross_entropy(z, LABELS).sum())(jnp.float32(LOGITS))
    chex.assert_trees_all_close(gradient, softmax(LOGITS) - np.eye(4)[LABELS], rtol=1e-4, atol=1e-6)
    labels = LABELS % 2
    gradient = jax.grad(lambda z: cross_entropy(z, labels).sum())(jnp.float32(LOGITS[:, :1]))
    shares = 1 / (1 + np.exp(-LOGITS[:, 0]))
    chex.assert_trees_all_close(gradient[:, 0], shares - labels, rtol=1e-4, atol=1e-6)


def test_equal_logits_mean_the_loss_of_guessing():
    chex.assert_trees_all_close(cross_entropy(jnp.ones((6, 4)), LABELS), np.log(4), rtol=1e-6)
    chex.assert_trees_all_close(cross_entropy(jnp.zeros((6, 1)), LABELS % 2), np.log(2), rtol=1e-6)
