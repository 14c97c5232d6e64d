"""Activations: closed forms, finite differences, and the ranges that each declares."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import ACTIVATIONS, jax_activation, make_activation
from jaxdnn.errors import InputError

erf = np.vectorize(math.erf)


def leaky(slope):
    return lambda x: np.where(x > 0, x, slope * x)


def elu(alpha, x):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def tanh_gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# Name, parameters, and the function as its paper gives it.
CASES = [
    ("sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
    ("tanh", {}, lambda x: 2 / (1 + np.exp(-2 * x)) - 1),
    ("relu", {}, lambda x: np.maximum(x, 0)),
    ("leaky_relu", {}, leaky(0.01)),
    ("leaky_relu", {"negative_slope": 0.0}, leaky(0.0)),
    ("leaky_relu", {"negative_slope": 1.5}, leaky(1.5)),
    ("leaky_relu", {"negative_slope": -0.2}, leaky(-0.2)),
    ("parametric_relu", {}, leaky(0.25)),
    ("parametric_relu", {"negative_slope": 0.1}, leaky(0.1)),
    ("randomized_relu", {}, leaky((1 / 8 + 1 / 3) / 2)),
    ("randomized_relu", {"lower": 0.2, "upper": 0.9}, leaky(0.55)),
    ("elu", {}, lambda x: elu(1.0, x)),
    ("elu", {"alpha": 0.5}, lambda x: elu(0.5, x)),
    ("elu", {"alpha": 2.0}, lambda x: elu(2.0, x)),
    ("selu", {}, lambda x: 1.0507009873554805 * elu(1.6732632423543772, x)),
    ("gelu", {}, lambda x: x / 2 * (1 + erf(x / np.sqrt(2)))),
    ("gelu", {"approximate": True}, tanh_gelu),
    ("silu", {}, lambda x: x / (1 + np.exp(-x))),
    ("softplus", {}, lambda x: np.log(1 + np.exp(x))),
    ("soft_sign", {}, lambda x: x / (1 + np.abs(x))),
    ("hard_tanh", {}, lambda x: np.minimum(1, np.maximum(-1, x))),
]
each_case = pytest.mark.parametrize(
    ("name", "parameters", "formula"), CASES, ids=[f"{name}{given}" for name, given, _ in CASES]
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_every_activation_has_a_case():
    assert {name for name, _, _ in CASES} == set(ACTIVATIONS)


@each_case
def test_made_twice_is_equal(name, parameters, formula):
    assert make_activation(name, **parameters) == make_activation(name, **parameters)


@each_case
def test_values_and_derivatives_follow_the_paper(x64, name, parameters, formula):
    activation = make_activation(name, **parameters)
    x = np.linspace(-6, 6, 1201) + 1 / 300  # no point within 1e-3 of the kinks at -1, 0 and 1
    h = 1e-5
    values, derivatives = jax.jit(lambda x: (activation(x), activation.derivative(x)))(x)
    chex.assert_trees_all_close(values, formula(x), rtol=1e-12, atol=1e-14)
    # Central differences: truncation h² max|phi'''| / 6 < 1e-10, rounding 6 eps / h < 2e-10.
    slopes = (formula(x + h) - formula(x - h)) / (2 * h)
    chex.assert_trees_all_close(derivatives, slopes, rtol=0, atol=1e-9)


@each_case
def test_ranges_hold_and_are_reached(x64, name, parameters, formula):
    activation = make_activation(name, **parameters)
    # Out to 1.6e6, where soft_sign is within 1e-6 of its limits. At the extremes the spacing is at
    # most 3e-3, so that a smooth one is missed by < 3e-3² / 8 = 1.1e-6 times the curvature (< 1).
    grid = np.sinh(np.linspace(-15, 15, 20001))
    x = np.concatenate([grid, [-1e-9, 1e-9, -1 - 1e-9, 1 + 1e-9]])

    @jax.jit
    def both(x, slope):
        return jax.jvp(lambda x: activation(x, slope), (x,), (jnp.ones_like(x),))

    slopes = [activation.slope.low, activation.slope.high] if activation.slope else [0.0]
    values, derivatives = np.stack([np.stack(both(x, slope)) for slope in slopes], axis=1)
    for found, (low, high) in (
        (values, activation.value_range),
        (derivatives, activation.derivative_range),
    ):
        assert np.isfinite(found).all()
        assert low - 1e-8 <= found.min()
        assert found.max() <= high + 1e-8
        assert found.min() <= (low + 2e-6 if math.isfinite(low) else -1e4)
        assert found.max() >= (high - 2e-6 if math.isfinite(high) else 1e4)


def test_selu_keeps_mean_0_and_variance_1(x64):
    z = np.linspace(-12, 12, 480001)  # trapezoid: error of order spacing² = 2.5e-9
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    values = np.asarray(make_activation("selu")(jnp.asarray(z)))
    chex.assert_trees_all_close((values * density).sum(), 0, atol=1e-8)
    chex.assert_trees_all_close((values**2 * density).sum(), 1, atol=1e-8)


def test_randomized_relu_draws_slopes_uniformly():
    num, low, high = 40_000, 0.2, 0.9
    slope = make_activation("randomized_relu", lower=low, upper=high).slope
    assert slope is not None
    assert slope.kind == "random"
    drawn = np.sort(np.asarray(slope.draw(jax.random.key(0), (num // 4, 4), jnp.float32)).ravel())
    assert drawn.min() >= np.float32(low)
    assert drawn.max() <= np.float32(high)
    # Kolmogorov and Smirnov: sqrt(num) * D exceeds 2.7 with probability 1e-6.
    theory = (drawn - low) / (high - low)
    distance = np.abs(theory - (np.arange(num) + 0.5) / num).max()
    assert distance < 2.7 / math.sqrt(num)


def test_randomized_relu_is_evaluated_at_its_mean_slope():
    activation = make_activation("randomized_relu", lower=0.1, upper=0.5)
    x = jnp.array([-2.0, -1.0, 3.0])
    chex.assert_trees_all_close(activation(x), np.array([-0.6, -0.3, 3.0]), rtol=1e-6)
    chex.assert_trees_all_close(activation(x, 0.5), np.array([-1.0, -0.5, 3.0]), rtol=1e-6)


def test_parametric_relu_slope_gets_its_gradient():
    activation = make_activation("prelu")
    x = jnp.array([[-2.0, 1.0], [-1.0, -3.0], [0.5, -0.25]])
    upstream = jnp.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 4.0]])
    gradient = jax.grad(lambda slope: jnp.sum(upstream * activation(x, slope)))(
        jnp.full((2,), 0.25)
    )
    # d phi / d slope = min(x, 0), summed over the examples of each feature.
    chex.assert_trees_all_close(gradient, (upstream * np.minimum(x, 0)).sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("prelu", "parametric_relu"),
        ("rrelu", "randomized_relu"),
        ("swish", "silu"),
        ("softsign", "soft_sign"),
        ("logistic", "sigmoid"),
        ("Leaky-ReLU", "leaky_relu"),
    ],
)
def test_aliases(alias, name):
    assert make_activation(alias).name == name


@pytest.mark.parametrize(
    "name", [name for name in (*ACTIVATIONS, "swish") if hasattr(jax.nn, name)]
)
def test_what_jax_calls_so_is_computed_as_jax_does(name):
    x = jnp.linspace(-3, 3, 13)
    activation = jax_activation(name)
    assert activation is not None
    chex.assert_trees_all_close(activation(x), getattr(jax.nn, name)(x), rtol=1e-6)


def test_the_primitive_of_relu_is_known_and_others_are_not():
    assert jax_activation("max") == make_activation("relu")
    assert jax_activation("sin") is None


def test_an_unknown_name_lists_all_names():
    with pytest.raises(InputError) as caught:
        make_activation("rellu")
    assert all(name in str(caught.value) for name in ACTIVATIONS)
    assert "did you mean 'relu'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("relu", {"alpha": 1.0}, "no parameters"),
        ("elu", {"negative_slope": 1.0}, "it takes alpha"),
        ("rrelu", {"alpha": 1.0}, "it takes lower, upper"),
        ("elu", {"alpha": -1.0}, "alpha -1.0 is negative"),
        ("randomized_relu", {"lower": 0.5, "upper": 0.1}, "lower 0.5 exceeds upper 0.1"),
    ],
)
def test_wrong_parameters_are_named(name, parameters, expected):
    with pytest.raises(InputError, match=expected):
        make_activation(name, **parameters)
