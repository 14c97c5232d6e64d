"""Examples that meet are found with the operation where they do; a norm over the batch is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.findings import NAMED
from jaxdnn.diagnosis.mixing import find_mixture, mixed_examples

from . import zoo

BATCH, LENGTH, WIDTH = 8, 5, 6
INPUTS, TARGETS = zoo.normal(0, BATCH, LENGTH, WIDTH), jnp.arange(BATCH) % 3
TOKENS = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, 7)
PARAMS = [zoo.normal(1, WIDTH, WIDTH), zoo.normal(2, WIDTH, 3), zoo.normal(3, 7, WIDTH)]


def network(between):
    """A layer of every step, what is between, and a layer of every example."""
    return (lambda params, x: between(jax.nn.relu(x @ params[0])) @ params[1], PARAMS)


def cut_into_pieces(h):
    return h.reshape(LENGTH, BATCH, WIDTH).mean(0)


def over_the_batch(h):
    return h.mean(1) - h.mean((0, 1))


def attention_over_the_batch(h):
    h = h.mean(1)
    return jax.nn.softmax(h @ h.T) @ h


def largest_of_the_batch(h):
    h = h.mean(1)
    return h / h.max(0)


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (cut_into_pieces, "reshape"),
        (over_the_batch, "reduce_sum"),
        (attention_over_the_batch, "dot_general"),
        (largest_of_the_batch, "reduce_max"),
    ],
)
def test_operation_that_mixes_is_named_with_its_line(between, name):
    exam = examine(network(between), INPUTS, TARGETS)
    mixture = find_mixture(exam)
    assert mixture is not None
    assert mixture.step is not None
    step = exam.graph.program.steps[mixture.step]
    code = between.__code__
    assert step.name == name
    assert step.line is not None
    assert step.line.file == code.co_filename
    assert code.co_firstlineno < step.line.line <= code.co_firstlineno + 3
    (finding,) = mixed_examples(exam)
    assert finding.strength >= NAMED
    assert f"example {mixture.changed}" in finding.evidence


def batch_norm(h):
    h = h.mean(1)
    return (h - h.mean(0)) / (h.std(0) + 1e-3)


def layer_norm_in_another_order(h):
    h = h.transpose(1, 0, 2)
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return h.mean(0)


def merged_and_split(h):
    merged = h.reshape(-1, WIDTH)
    return jnp.tanh(merged).reshape(BATCH, LENGTH, WIDTH).max(1)


def looped(h):
    return jax.lax.scan(lambda carry, x: (jnp.tanh(carry + x), None), h[:, 0], h.swapaxes(0, 1))[0]


@pytest.mark.parametrize(
    "between", [batch_norm, layer_norm_in_another_order, merged_and_split, looped]
)
def test_examples_that_only_share_a_norm_do_not_meet(between):
    assert list(mixed_examples(examine(network(between), INPUTS, TARGETS))) == []


@pytest.mark.parametrize("make", [zoo.CNN, zoo.ResNet])
def test_networks_with_batch_norm_do_not_mix(make):
    images = zoo.normal(5, 6, 8, 8, 1)
    exam = examine(make(nnx.Rngs(0)), images, jnp.arange(6) % 3)
    assert find_mixture(exam) is None


def test_equal_examples_show_nothing():
    same = jnp.broadcast_to(INPUTS[:1], INPUTS.shape)
    assert find_mixture(examine(network(over_the_batch), same, TARGETS)) is None


def sequence(mask):
    """Attention over the steps of each example, and an output for each step."""

    def apply(params, tokens):
        h = params[2][tokens]
        scores = h @ h.swapaxes(1, 2)
        scores = scores if mask is None else jnp.where(mask, scores, -1e9)
        return jax.nn.softmax(scores) @ h @ params[1]

    return (apply, PARAMS)


TRIANGLE = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))


def test_causal_mask_lets_nothing_through():
    exam = examine(sequence(TRIANGLE), TOKENS, TOKENS % 3)
    assert list(mixed_examples(exam)) == []


@pytest.mark.parametrize(
    ("mask", "targets", "words", "is_named"),
    [
        (jnp.tril(jnp.ones((LENGTH, LENGTH), bool), 1), TOKENS % 3, "causal mask", True),
        (None, TOKENS % 3, "both directions", False),
    ],
)
def test_later_steps_that_are_seen(mask, targets, words, is_named):
    (finding,) = mixed_examples(examine(sequence(mask), TOKENS, targets))
    assert words in finding.evidence
    assert (finding.strength >= NAMED) == is_named


def test_network_that_is_shown_its_targets():
    tokens = TOKENS % 3
    (finding,) = mixed_examples(examine(sequence(None), tokens, jnp.roll(tokens, -1, axis=1)))
    assert "next input" in finding.evidence
    assert finding.strength >= NAMED


@pytest.mark.slow
def test_batch_as_long_as_the_sequence_is_told_apart():
    """Axes of one size: the batch is not taken for the steps."""
    inputs = zoo.normal(7, BATCH, BATCH, WIDTH)
    mixture = find_mixture(examine(network(lambda h: h.mean(1)), inputs, TARGETS))
    assert mixture is None
    swapped = find_mixture(examine(network(lambda h: h.mean(0)), inputs, TARGETS))
    assert swapped is not None
    np.testing.assert_array_equal(swapped.rows, [i for i in range(BATCH) if i != 1])
