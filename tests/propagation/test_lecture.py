"""The lecture's chain: the slides' digits, three routes to one number, closed forms."""

import csv
import functools
from decimal import Decimal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import ACTIVATIONS, make_activation
from jaxdnn.propagation.lecture import (
    LECTURE_X,
    autodiff_gradients,
    rows,
    slide_gradients,
    spans,
    start,
    train,
    train_network,
    unmoved_in_float32,
)

SIGMOID = make_activation("sigmoid")
X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])


def lecture(depth=5, x=LECTURE_X, phi=SIGMOID, bias=1.0):
    params = start(x.shape[1], depth, weight=1.0, bias=bias)
    return train(params, x, np.ones(len(x)), phi=phi, learning_rate=1.0)


def agree(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def half_of_last_digit(text):
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int)
    return 0.0 if exponent == 0 else 0.5 * 10.0**exponent


@pytest.mark.shared_data
def test_every_digit_of_the_slides(shared_data):
    with (shared_data / "reference" / "lecture_chain.csv").open() as file:
        _, *lines = csv.reader(file)
    table = rows(lecture())
    assert list(table) == [name for name, *_ in lines]
    for name, *printed in lines:
        for found, text in zip(table[name], printed, strict=True):
            # In w1 and D1 all 16 digits are printed: the last may differ by rounding.
            rounding = 2e-15 * abs(float(text)) if name[:2] in ("w1", "D1") else 0.0
            allowed = half_of_last_digit(text) + rounding
            assert abs(found - float(text)) <= allowed, (name, found, text)


def test_slides_agree_with_finite_differences_in_python():
    params = start(3, 4, weight=0.8, bias=-0.2)
    step = train(params, X[:1], Y[:1], phi=SIGMOID, learning_rate=1.0)

    def loss(first, weights, biases):
        a = first @ X[0] + biases[0]
        for w, b in zip(weights, biases[1:], strict=True):
            a = w / (1 + np.exp(-a)) + b
        return np.log1p(np.exp(-a))

    for part, gradients in enumerate(step.gradients):
        for index in range(gradients.shape[1]):
            high, low = ([np.array(p) for p in params] for _ in range(2))
            high[part][index] += 1e-5
            low[part][index] -= 1e-5
            slope = (loss(*high) - loss(*low)) / 2e-5
            assert gradients[0, index] == pytest.approx(slope, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slides_agree_with_autodiff(name):
    phi = make_activation(name)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def both(params, x, y):
        slides = slide_gradients(params, x, y, phi)
        return slides, autodiff_gradients(params, x, y, phi)

    with jax.enable_x64(True):
        slides, autodiff = both(start(3, 4, weight=-0.7, bias=0.3), X, Y)
    assert np.abs(slides.first).max() > 1e-6
    chex.assert_type(jax.tree.leaves(slides), np.float64)
    agree(slides, autodiff)


def test_slides_agree_with_autodiff_over_the_steps():
    options = {"phi": SIGMOID, "learning_rate": 0.5}
    params = start(3, 4, weight=-0.7, bias=0.3)
    slides = train(params, X, Y, **options)
    agree(slides, train(params, X, Y, **options, gradients=autodiff_gradients))


# A trained slope, a random one, and a chain without hidden neurons are the network's special cases.
@pytest.mark.parametrize(
    ("name", "depth"),
    [("sigmoid", 5), ("tanh", 1), ("parametric_relu", 3), ("randomized_relu", 2)],
)
def test_slides_agree_with_the_network(name, depth):
    options = {"phi": make_activation(name), "learning_rate": 0.5}
    params = start(3, depth, weight=-0.7, bias=0.3)
    slides = train(params, X, Y, **options)
    agree(train_network(params, X, Y, **options), (slides.params, slides.gradients))


def test_float64_inside_and_the_default_outside():
    chex.assert_type(jax.tree.leaves(lecture()), np.float64)
    chex.assert_type([jnp.ones(1), jax.jit(jnp.sin)(1.0)], jnp.float32)


def test_delta_is_a_product_over_the_neurons():
    depth = 7
    steps = lecture(depth)
    factors = steps.params.weights * steps.a[:, :-1] * (1 - steps.a[:, :-1])
    products = np.cumprod(factors[:, ::-1], axis=1)[:, ::-1] * (steps.a[:, -1:] - 1)
    chex.assert_trees_all_close(steps.delta[:, :-1], products, rtol=1e-13)
    assert (np.abs(factors) < 1 / 4 * np.abs(steps.params.weights)).all()


def test_biases_start_at_one_and_are_trained():
    biases = lecture().params.biases
    assert (biases[0] == 1).all()
    chex.assert_trees_all_close(biases[1], 1 - lecture().delta[0], rtol=1e-15)


def test_each_step_is_the_learning_rate_times_the_gradient():
    params = start(3, 4, weight=0.9, bias=0.1)
    steps = train(params, X, Y, phi=SIGMOID, learning_rate=0.25)
    for values, gradients in zip(steps.params, steps.gradients, strict=True):
        chex.assert_trees_all_close(np.diff(values, axis=0), -0.25 * gradients[:-1], atol=1e-15)


def test_one_neuron_is_logistic_regression():
    step = lecture(depth=1, x=LECTURE_X[:1])
    a = 1 / (1 + np.exp(-LECTURE_X[0].sum() - 1))
    chex.assert_shape(step.gradients.weights, (1, 0))
    chex.assert_trees_all_close(step.gradients.first[0], LECTURE_X[0] * (a - 1), rtol=1e-14)


def test_a_thousand_neurons():
    steps = lecture(depth=1000)
    # Far from both ends every a is the fixed point of sigmoid(a + 1).
    a = 0.9
    for _ in range(100):
        a = 1 / (1 + np.exp(-a - 1))
    assert steps.delta[0, 900] / steps.delta[0, 901] == pytest.approx(a * (1 - a), rel=1e-12)
    assert not steps.gradients.first.any()
    assert steps.gradients.weights[:, -1].all()


def test_dead_neurons_let_nothing_through():
    steps = lecture(phi=make_activation("relu"), bias=-2.0)
    assert not steps.gradients.first.any()
    assert not steps.gradients.weights.any()
    assert steps.delta[:, -1].all()


def test_float32_loses_what_a_float32_network_loses():
    steps = lecture(depth=20)
    unmoved = unmoved_in_float32(steps, 1.0)
    assert unmoved == list(range(1, 14))
    params = start(2, 20, weight=1.0, bias=1.0)
    found, _ = train_network(
        params, LECTURE_X, np.ones(5), phi=SIGMOID, learning_rate=1.0, dtype=np.float32
    )
    weights = np.concatenate([found.first[:, 1:], found.weights], axis=1)
    chex.assert_type(weights, np.float32)
    still = (weights[-1] == weights[0]).nonzero()[0] + 1
    assert still.tolist() == unmoved
    assert unmoved_in_float32(lecture(), 1.0) == []


def test_spans():
    assert spans([1, 2, 3, 7, 9, 10]) == "w1 to w3, w7, w9 to w10"
