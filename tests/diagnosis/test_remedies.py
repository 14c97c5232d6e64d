"""Remedies: what they make of the forward pass and of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis.diagnose import edited
from jaxdnn.diagnosis.examine import examine
from jaxdnn.diagnosis.rehearsal import Rehearsal, make_rehearsal
from jaxdnn.diagnosis.remedies import shortcuts
from jaxdnn.diagnosis.verdict import score
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


@pytest.mark.parametrize(("skip", "words"), [(0, "shortcuts past 4"), (1, "residual branches")])
def test_every_block_then_adds_over_the_root_of_their_number(skip, words):
    seen = examine((network(skip, 1.0), KERNELS), INPUTS, TARGETS)
    (change,) = shortcuts(seen.graph, seen.params, seen.gains)
    assert change.words.startswith(words)
    logits = edited(seen, change.edits)(change.params, INPUTS, seen.key)
    expected = network(1, 1 / np.sqrt(HIDDEN))(KERNELS, INPUTS)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_rate_of_a_rehearsal_is_a_factor_on_the_learning_rate():
    def loss(logits, targets):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def rehearsed(learning_rate, *rate):
        rehearse = make_rehearsal(
            lambda params, x, _: x @ params, loss, optax.sgd(learning_rate), num_steps=5
        )
        return rehearse(jnp.zeros((5, 3)), INPUTS, TARGETS, jax.random.key(0), *rate).loss

    np.testing.assert_allclose(rehearsed(1.0, 0.1), rehearsed(0.1), rtol=1e-6)
    assert rehearsed(1.0)[-1] < rehearsed(0.1)[-1]


def test_loss_that_comes_down_from_far_scores_by_when_it_is_down():
    steps, constant = np.arange(61.0), np.ones(61)

    def down(pace):
        return score(Rehearsal(np.exp(20 - pace * steps), constant, np.ones(())), horizon=300)

    assert down(0.0) == 0
    assert down(-0.1) == 0
    # From the middle of the last quarter, at step 53, e^(20 - 53 pace) is still to go.
    late = (60 + 20 / 0.1 - 53) * (1 + 20 / 4)
    assert down(0.1) == pytest.approx(300 / (300 + late), rel=1e-6)
    assert down(0.1) < down(0.2)
