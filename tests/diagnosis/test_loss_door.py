"""A loss function taken apart: what is put together again is the same to the last gradient."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn import diagnose
from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.loss_door import open_loss
from jaxdnn.errors import InputError

from . import zoo

KEY = jax.random.key(0)
ROWS = 24
X = zoo.normal(0, ROWS, 8)
LABELS = X[:, :3].argmax(1)
TOKENS = jnp.arange(ROWS)[:, None] * jnp.arange(1, 9) % 11


def layers(*widths, seed=1):
    return [
        (zoo.normal(seed + i, a, b) * (2 / a) ** 0.5, jnp.zeros(b))
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]


def perceptron(params, x):
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = params[-1]
    return x @ kernel + bias


def classifier(params, batch):
    logits = perceptron(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def penalised(params, batch):
    size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return classifier(params, batch) + 1e-3 * jax.lax.stop_gradient(size)


@jax.jit
def regression(params, batch):
    x, y = batch
    return jnp.mean((perceptron(params, x) - y) ** 2), {"anything": x}


def autoencoder(params, batch, key):
    mean, log_variance = jnp.split(perceptron(params["encoder"], batch), 2, axis=-1)
    z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    error = jnp.sum((perceptron(params["decoder"], z) - batch) ** 2, axis=-1)
    distance = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), axis=-1)
    return jnp.mean(error + distance)


def contrastive(params, batch):
    one, other = (perceptron(params, batch[name]) for name in ("one", "other"))
    one, other = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (one, other))
    return optax.softmax_cross_entropy_with_integer_labels(
        one @ other.T / 0.1, jnp.arange(len(one))
    ).mean()


def language_model(params, tokens):
    logits = jnp.tanh(params["table"][tokens[:, :-1]]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def time_major(params, batch):
    def cell(h, x):
        h = jnp.tanh(x @ params["x"] + h @ params["h"])
        return h, h

    _, states = jax.lax.scan(cell, jnp.zeros((batch["x"].shape[1], 8)), batch["x"])
    return jnp.mean((states @ params["out"] - batch["y"]) ** 2)


def policy(params, batch):
    logits = jax.nn.log_softmax(perceptron(params["policy"], batch["seen"]))
    taken = jnp.take_along_axis(logits, batch["action"][:, None], 1)[:, 0]
    ratio = jnp.exp(taken - batch["before"])
    gain = jnp.minimum(ratio * batch["gain"], jnp.clip(ratio, 0.8, 1.2) * batch["gain"])
    value = perceptron(params["value"], batch["seen"])[:, 0]
    return -jnp.mean(gain) + jnp.mean((value - batch["return"]) ** 2)


def discriminator(params, batch):
    real, fake = (perceptron(params, batch[name]) for name in ("real", "fake"))
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


PAIR = {"one": X, "other": X + 0.1 * zoo.normal(9, ROWS, 8)}
STEPS = {"x": zoo.normal(2, 5, ROWS, 4), "y": zoo.normal(3, 5, ROWS, 1)}
CELL = {"x": zoo.normal(4, 4, 8), "h": zoo.normal(5, 8, 8) / 3, "out": zoo.normal(6, 8, 1)}
SEEN = {
    "seen": X, "action": LABELS, "before": jnp.full(ROWS, -1.0), "gain": X[:, 1], "return": X[:, 0]
}  # fmt: skip
LOSSES: dict[str, Any] = {
    "classifier": (classifier, layers(8, 16, 3), {"x": X, "y": LABELS}),
    "penalty": (penalised, layers(8, 16, 3), {"x": X, "y": LABELS}),
    "jit with more": (regression, layers(8, 16, 1), (X, X[:, :1])),
    "autoencoder": (
        autoencoder,
        {"encoder": layers(8, 16, 4), "decoder": layers(2, 16, 8, seed=5)},
        X,
    ),
    "contrastive": (contrastive, layers(8, 16, 4), PAIR),
    "language model": (
        language_model,
        {"table": zoo.normal(7, 11, 6), "head": zoo.normal(8, 6, 11)},
        TOKENS,
    ),
    "time major": (time_major, CELL, STEPS),
    "policy": (policy, {"policy": layers(8, 16, 3), "value": layers(8, 16, 1, seed=4)}, SEEN),
    "discriminator": (discriminator, layers(8, 16, 1), {"real": X, "fake": 1 + 2 * X}),
}


def door_of(name):
    function, params, batch = LOSSES[name]
    return open_loss(function, params, batch, KEY)


FAST = {"classifier", "jit with more", "autoencoder", "policy"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in LOSSES],
)
def test_network_and_loss_together_are_the_function_and_so_are_their_gradients(name):
    function, params, batch = LOSSES[name]
    extra = (KEY,) if name == "autoencoder" else ()

    def own(params):
        said = function(params, batch, *extra)
        return said[0] if isinstance(said, tuple) else said

    door = door_of(name)

    def together(params):
        return door.loss(door.network.apply(params, door.inputs, KEY), door.targets)

    expected, found = (jax.jit(jax.value_and_grad(each))(params) for each in (own, together))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_inputs_are_what_the_network_takes_and_targets_what_the_loss_takes():
    door = door_of("classifier")
    chex.assert_trees_all_equal((door.inputs, door.targets), (X, LABELS))
    outputs = door.network.apply(door.network.params, X, KEY)
    chex.assert_trees_all_close(outputs, perceptron(door.network.params, X), rtol=1e-5)
    door = door_of("policy")
    assert set(door.targets) == {"action", "before", "gain", "return"}
    # Three logits and a value, side by side.
    chex.assert_shape(door.network.apply(door.network.params, door.inputs, KEY), (ROWS, 4))


def test_the_last_activation_stays_with_the_network():
    def loss(params, batch):
        return jnp.mean((jax.nn.sigmoid(perceptron(params, batch[0])) - batch[1]) ** 2)

    door = open_loss(loss, layers(8, 16, 1), (X, X[:, :1]), KEY)
    outputs = door.network.apply(door.network.params, door.inputs, KEY)
    chex.assert_trees_all_close(
        outputs, jax.nn.sigmoid(perceptron(door.network.params, X)), rtol=1e-5
    )


def test_a_batch_of_another_size_goes_through():
    door = door_of("classifier")
    outputs = door.network.apply(door.network.params, X[:7], KEY)
    chex.assert_shape(outputs, (7, 3))
    expected = classifier(door.network.params, {"x": X[:7], "y": LABELS[:7]})
    chex.assert_trees_all_close(door.loss(outputs, LABELS[:7]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["classifier", pytest.param("contrastive", marks=pytest.mark.slow)]
)
def test_a_sound_loss_function_is_said_to_train(name):
    diagnosis = diagnose(*LOSSES[name], optimizer="adam:0.01")
    assert (diagnosis.verdict, diagnosis.causes) == ("trains", ())


def test_a_broken_one_is_told_what_is_wrong_and_the_cure_is_tried():
    def loss(params, batch):
        return jnp.mean((jax.nn.sigmoid(perceptron(params, batch[0])) - batch[1]) ** 2)

    batch = X, 30 + 10 * X[:, :1]
    diagnosis = diagnose(loss, layers(8, 16, 1), batch, optimizer="adam:0.01")
    assert diagnosis.causes[0].cause == "outputs cannot reach targets"
    assert diagnosis.prescriptions[0].name == "linear_output"
    assert diagnosis.loss_name == "loss"


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda params, batch: perceptron(params, batch["x"]), "that returns a scalar"),
        (lambda params, _: sum(jnp.sum(k**2) for k, _ in params), "to the very end"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_a_line(function, line):
    with pytest.raises(InputError, match=line) as refused:
        diagnose(function, layers(8, 16, 3), {"x": X, "y": LABELS})
    assert "\n" not in str(refused.value)


def test_what_the_same_weights_make_of_two_inputs_has_one_constant_answer():
    """A discriminator that looks at nothing says the same of real and of false: 2 log 2."""

    def discriminator(params, batch):
        real, fake = (perceptron(params, batch[name]) for name in ("real", "fake"))
        return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))

    batch = {"real": X + 1.0, "fake": zoo.normal(60, ROWS, 8)}
    answers = examine(discriminator, layers(8, 8, 1), batch).answers
    chex.assert_trees_all_close(answers.constant, 2 * np.log(2), rtol=1e-3)
    assert answers.floor < 0.01


def test_parts_of_other_weights_have_constant_answers_of_their_own():
    def apart(params, batch):
        one, other = perceptron(params["a"], batch), perceptron(params["b"], batch)
        return jnp.mean((one - 1.0) ** 2) + jnp.mean((other + 1.0) ** 2)

    params = {"a": layers(8, 8, 1), "b": layers(8, 8, 1, seed=3)}
    assert examine(apart, params, X).answers.constant < 1e-3


def test_a_likelihood_without_targets_is_counted_from_its_start():
    """One answer to all would make a flow's volume as great as one likes."""

    def flow(params, batch):
        z, log_volume = perceptron(params["z"], batch), perceptron(params["volume"], batch)
        return jnp.mean(0.5 * jnp.sum(z**2, -1) - jnp.sum(log_volume, -1))

    exam = examine(flow, {"z": layers(8, 8, 4), "volume": layers(8, 8, 4, seed=3)}, X)
    assert exam.answers.from_start
    chex.assert_trees_all_close(exam.answers.constant, exam.measured.loss, rtol=1e-6)
