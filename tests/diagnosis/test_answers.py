"""How low a loss can come, in closed form, and what a loss takes, as asked of the loss itself."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis.answers import Answers, LossProbe, LossTraits, best_answers, loss_traits
from jaxdnn.diagnosis.repairs import binary_cross_entropy, class_cross_entropy

from . import zoo

NUM = 24
AMOUNTS = 3 + 2 * zoo.normal(0, NUM, 1)
# Of four classes the first takes half of the rows, and of two every third row is a one.
CLASSES = jnp.array([0, 1, 0, 2, 0, 3] * 4)
BITS = (jnp.arange(NUM) % 3 == 0).astype(jnp.float32)[:, None]
DIRECTIONS = zoo.normal(1, NUM, 4) + 0.5
SIGNS = 2 * BITS - 1


def squared(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def cosine(outputs, targets):
    return jnp.mean(optax.cosine_distance(outputs, targets, epsilon=1e-6))


def entropy(shares):
    return -float(np.sum(shares * np.log(shares)))


def least_angle():
    """The mean direction is the nearest to all: 1 - |mean of the unit vectors|."""
    units = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    return 1 - float(np.linalg.norm(np.mean(units, 0)))


SHARES, BINARY = np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6]), np.array([1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("loss", "targets", "width", "tail", "constant"),
    [
        pytest.param(squared, AMOUNTS, 1, None, np.var(AMOUNTS), id="mean"),
        pytest.param(
            lambda y, t: jnp.abs(y - t).mean(), AMOUNTS, 1, None,
            np.abs(AMOUNTS - np.median(AMOUNTS)).mean(), id="median",
        ),
        pytest.param(zoo.cross_entropy, CLASSES, 4, None, entropy(SHARES), id="logits"),
        pytest.param(
            class_cross_entropy, CLASSES, 4, jax.nn.softmax, entropy(SHARES), id="probabilities"
        ),
        pytest.param(
            binary_cross_entropy, BITS, 1, jax.nn.sigmoid, entropy(BINARY), id="one probability"
        ),
        pytest.param(cosine, DIRECTIONS, 4, None, least_angle(), id="angle"),
    ],
)  # fmt: skip
def test_best_constant_answer_and_floor_are_those_of_theory(loss, targets, width, tail, constant):
    z = zoo.normal(2, NUM, width)
    outputs = z if tail is None else tail(z)
    answers = best_answers(LossProbe(loss, targets, z.dtype), z, outputs, tail)
    assert answers.floor <= answers.reachable <= answers.constant
    chex.assert_trees_all_close(answers.constant, constant, rtol=1e-3)
    # Right answers to all are within reach here, and cost nothing.
    chex.assert_trees_all_close(answers.reachable, 0, atol=5e-3 * constant, rtol=0)
    assert answers.reach > 0.99


@pytest.mark.parametrize(
    ("tail", "nearest"),
    [
        pytest.param(jax.nn.sigmoid, lambda t: np.clip(t, 0, 1), id="sigmoid"),
        pytest.param(jax.nn.relu, lambda t: np.maximum(t, 0), id="relu"),
        pytest.param(jax.nn.softmax, np.ones_like, id="softmax of one"),
    ],
)
def test_no_answer_comes_nearer_than_the_last_activation_lets_it(tail, nearest):
    targets = AMOUNTS - 3
    z = zoo.normal(3, NUM, 1)
    answers = best_answers(LossProbe(squared, targets, z.dtype), z, tail(z), tail)
    own = np.mean((nearest(np.asarray(targets)) - targets) ** 2)
    chex.assert_trees_all_close(answers.reachable, own, rtol=0.02)
    chex.assert_trees_all_close(answers.floor, 0, atol=1e-3, rtol=0)
    expected = (answers.constant - own) / answers.constant
    chex.assert_trees_all_close(answers.reach, expected, atol=0.02, rtol=0)


def test_what_there_is_to_learn_is_bounded_and_has_no_zero():
    assert Answers(2.0, 0.5, 0.5).to_learn == 1.5
    # A loss without a lower bound is no reason to ask for more than its own size, or 1.
    assert Answers(2.0, -1e9, -1e9).to_learn == 2.0
    assert Answers(0.1, -1e9, -1e9).to_learn == 1.0
    # Where nothing can be gained, no activation stands in the way.
    assert Answers(1.0, 1.0, 1.0).reach == 1.0


def share_cross_entropy(outputs, targets):
    """As a well-known framework takes it: the outputs over their sum, cut off at both ends."""
    p = jnp.clip(outputs / outputs.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    return -jnp.mean(jnp.log(jnp.take_along_axis(p, targets[:, None], -1)))


def ask(loss, targets, outputs):
    return loss_traits(LossProbe(loss, targets, outputs.dtype), outputs)


def likelihood(outputs, targets):
    """Of log-probabilities, which logits are not."""
    return -jnp.mean(jnp.take_along_axis(outputs, targets[:, None], -1))


def bits_cross_entropy(outputs, targets):
    return optax.sigmoid_binary_cross_entropy(outputs, targets).mean()


def of_softmax(outputs, targets):
    return squared(jax.nn.softmax(outputs), targets)


def hinge(outputs, targets):
    return optax.hinge_loss(outputs, targets).mean()


@pytest.mark.parametrize(
    ("loss", "targets", "width", "traits"),
    [
        pytest.param(zoo.cross_entropy, CLASSES, 4, {"softmax"}, id="softmax cross-entropy"),
        pytest.param(bits_cross_entropy, BITS, 1, set(), id="sigmoid cross-entropy"),
        pytest.param(binary_cross_entropy, BITS, 1, {"probabilities"}, id="of a probability"),
        pytest.param(share_cross_entropy, CLASSES, 4, {"normalises"}, id="of shares"),
        pytest.param(squared, AMOUNTS, 1, set(), id="squared error"),
        pytest.param(hinge, SIGNS, 1, set(), id="hinge"),
        pytest.param(cosine, DIRECTIONS, 4, {"normalises"}, id="angle"),
        pytest.param(likelihood, CLASSES, 4, {"unbounded"}, id="log-softmax forgotten"),
        pytest.param(lambda y, t: -squared(y, t), AMOUNTS, 1, {"unbounded"}, id="wrong sign"),
        pytest.param(bits_cross_entropy, BITS, 2, {"symmetric"}, id="one column for two outputs"),
        pytest.param(squared, AMOUNTS[:, 0], 1, {"mixes"}, id="(n, 1) against (n,)"),
        pytest.param(of_softmax, AMOUNTS, 1, {"independent"}, id="softmax of one"),
    ],
)  # fmt: skip
def test_a_loss_says_itself_what_it_takes(loss, targets, width, traits):
    asked = ask(loss, targets, zoo.normal(4, NUM, width))
    expected: dict[str, Any] = dict.fromkeys(traits, True)
    assert asked == LossTraits(**expected)


def test_a_narrow_format_does_not_hide_that_a_loss_has_no_bound():
    """Float16 ends at 65504."""
    outputs = zoo.normal(4, NUM, 4).astype(jnp.float16)
    assert ask(likelihood, CLASSES, outputs) == LossTraits(unbounded=True)
    assert ask(zoo.cross_entropy, CLASSES, outputs) == LossTraits(softmax=True)


@pytest.mark.parametrize("factor", [1e-12, 1e6])
def test_what_a_loss_takes_does_not_depend_on_its_unit(factor):
    outputs = zoo.normal(4, NUM, 4)
    assert ask(zoo.times(factor), CLASSES, outputs) == LossTraits(softmax=True)
