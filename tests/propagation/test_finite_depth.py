"""Layer by layer, with norms and shortcuts: closed forms, and random networks.

Each test with samples states how many networks it draws; its tolerance comes from their spread.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.propagation import (
    OUTSIDE,
    Kernels,
    batch_norm_rate,
    depth_limits,
    layer_norm_rate,
    measure,
    phi_moments,
    predict,
)
from tests.propagation.cases import slow_but


@pytest.mark.shared_data
def test_norms(reference):
    for name, rate in reference["batch_norm_rate"].items():
        assert batch_norm_rate(make_activation(name)).rate == pytest.approx(rate, rel=1e-9)
    for name, rate in reference["layer_norm_rate"].items():
        assert layer_norm_rate(make_activation(name)).rate == pytest.approx(rate, rel=2e-8)


# phi, sigma_w², norm; without shortcuts see test_sweep_theory.py
NETWORKS = [("elu", 1.0, "none"), ("relu", 2.0, "batch"), ("relu", 2.0, "layer")]


def factors_of_residual_networks(phi, sigma_w2, norm, *, width, depth, num_networks, batch_size):
    """Return delta's RMS factors (network, layer) and E z² (network, layer) of `measure`."""

    def one(key):
        keys = jax.random.split(key, 5)
        std = math.sqrt(sigma_w2 / width)
        kernels = Kernels(
            std * jax.random.normal(keys[0], (width, width)),
            std * jax.random.normal(keys[1], (depth - 1, width, width)),
            std * jax.random.normal(keys[2], (width, width)),
        )
        inputs = jax.random.normal(keys[3], (batch_size, width))
        # A gradient that is independent for each example and output.
        directions = jax.random.normal(keys[4], (batch_size, width))
        found = measure(
            kernels,
            inputs,
            directions,
            phi,
            max_slope=1.0,
            loss=lambda logits, labels: jnp.mean(logits * labels),
            norm=norm,
            residual=True,
        )
        delta = found.delta_rms[:depth]
        return delta[:-1] / delta[1:], found.pre_activation_second_moment[:depth]

    keys = jax.random.split(jax.random.key(0), num_networks)
    return (np.asarray(x, np.float64) for x in jax.jit(lambda k: jax.lax.map(one, k))(keys))


@pytest.mark.parametrize("width", slow_but((192, 512), 192))
@pytest.mark.parametrize(("name", "sigma_w2", "norm"), slow_but(NETWORKS, *NETWORKS[:2]))
def test_wide_residual_networks_follow_the_prediction_layer_by_layer(name, sigma_w2, norm, width):
    phi = make_activation(name)
    depth = 6
    factors, second = factors_of_residual_networks(
        phi, sigma_w2, norm, width=width, depth=depth, num_networks=6, batch_size=64
    )
    found = predict(phi, sigma_w2, depth=depth, norm=norm, residual=True)
    # A layer's mean square varies by about 5/(2 width) of itself (ReLU, the worst), six networks;
    # batch norm over 64 examples adds 1/64 of bias.
    tolerance = 4 * math.sqrt(5 / width / 6) / 2 + (1 / 64 if norm == "batch" else 0)
    chex.assert_trees_all_close(factors.mean(0), np.asarray(found.factor)[:-1], rtol=tolerance)
    chex.assert_trees_all_close(second.mean(0), np.asarray(found.q), rtol=4 * tolerance)


@pytest.mark.parametrize(
    ("name", "sigma_w2"),
    [
        ("softplus", 2.0),
        pytest.param("tanh", 1.5, marks=pytest.mark.slow),
        pytest.param("gelu", 2.0, marks=pytest.mark.slow),
    ],
)
def test_part_along_the_signal_is_the_change_of_its_size(name, sigma_w2):
    """Over many layers: (d ln q_last / d ln q_first) √(q_last / q_first), by differences."""
    phi, step = make_activation(name), 1e-5
    low, middle, high = (
        predict(phi, sigma_w2, 0.0, 3.0 * math.exp(change), depth=8) for change in (-step, 0, step)
    )
    changes = (np.log(np.asarray(high.q)) - np.log(np.asarray(low.q))) / (2 * step)
    q = np.asarray(middle.q)
    expected = changes[1:] / changes[0] * np.sqrt(q[1:] / q[0])
    chex.assert_trees_all_close(np.cumprod(np.asarray(middle.along))[:-1], expected, rtol=1e-6)


def test_part_along_the_signal_takes_over_in_deep_residual_networks_of_relu():
    """Its share grows 1.45 times per layer from 1/64 on; 28 layers of 8 networks are compared."""
    relu = make_activation("relu")
    width, depth, num_networks = 64, 60, 8
    factors, _ = factors_of_residual_networks(
        relu, 1.0, "none", width=width, depth=depth, num_networks=num_networks, batch_size=16
    )
    found = predict(relu, 1.0, depth=depth, residual=True)
    low, deep = slice(2, 30), np.log(np.asarray(found.factor)[2:30])
    measured = np.log(factors[:, low]).mean()
    tolerance = 4 * math.sqrt(5 / width / num_networks / 28) / 2
    assert measured == pytest.approx(np.log(np.asarray(found.along)[low]).mean(), abs=tolerance)
    assert measured > deep.mean() + 4 * tolerance


def test_signals_too_small_for_the_rule_go_on_shrinking():
    """At sigma_w² = 0.02 ReLU takes 1 % of the variance to the next layer, at any scale."""
    found = predict(make_activation("relu"), 0.02, depth=100)
    chex.assert_trees_all_close(
        np.log10(np.asarray(found.q)), math.log10(2) - 2 * np.arange(1, 101)
    )


def test_tanh_under_xavier_decays_like_a_power_of_the_depth():
    """V(q) = q - 2 q² + ..., so q goes to 1/(2 depth)."""
    found = predict(make_activation("tanh"), 1.0, depth=2000)
    assert float(found.q[-1]) * 2000 == pytest.approx(0.5, rel=0.01)


def test_gelu_under_he_depends_on_the_scale_of_its_input():
    small, large = (
        predict(make_activation("gelu"), 2.0, 0.0, scale, depth=50) for scale in (1.0, 1e4)
    )
    assert float(small.factor[-1]) == pytest.approx(math.sqrt(1 / 2), abs=1e-4)
    assert float(large.factor[-1]) == pytest.approx(1, abs=1e-3)
    assert float(small.q[-1]) < 1e-10
    assert float(large.q[-1]) == pytest.approx(2e4, rel=1e-3)


def test_factors_do_not_depend_on_the_scale_of_the_weights_under_norms():
    relu = make_activation("relu")
    for norm in ("batch", "layer"):
        a, b = (predict(relu, w, depth=4, norm=norm).factor for w in (0.5, 3.0))
        chex.assert_trees_all_close(np.asarray(a), np.asarray(b), rtol=1e-4)


def test_fan_ratio_multiplies_the_variance_of_the_gradient():
    relu = make_activation("relu")
    found = predict(relu, 2.0, 0.0, 1.0, 0.25, depth=3)
    chex.assert_trees_all_close(np.asarray(found.factor), 0.5, rtol=1e-12)


@pytest.mark.parametrize("name", slow_but(("relu", "tanh", "sigmoid"), "relu"))
def test_factors_under_norms_are_the_rates(name):
    phi = make_activation(name)
    for norm, rate in (("batch", batch_norm_rate(phi)), ("layer", layer_norm_rate(phi))):
        found = float(predict(phi, 1.0, depth=3, norm=norm).factor[-1])
        # The norms' epsilon is 1e-5, of a variance of 0.04 or more.
        assert found**2 == pytest.approx(rate.rate, rel=3e-4)


GROW = ("gelu", "silu", "softplus")
SHRINK = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "soft_sign", "hard_tanh")


@pytest.mark.parametrize("name", slow_but(GROW + SHRINK, "relu", "gelu"))
def test_batch_norm_is_outside_theory_where_long_inputs_grow(name):
    note = batch_norm_rate(make_activation(name)).note
    assert note.startswith(OUTSIDE) == (name in GROW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "grows"), [("silu", True), ("elu", False)])
def test_lengths_of_inputs_spread_under_batch_norm_as_the_criterion_says(name, grows):
    """Four networks of width 256 and depth 24: one input in 64 is longer by 20 % at the start."""
    phi = make_activation(name)

    def lengths(key):
        keys = jax.random.split(key, 25)
        h = jax.random.normal(keys[0], (64, 256)).at[0].multiply(1.2)
        z = h
        for layer_key in keys[1:]:
            u = h @ jax.random.normal(layer_key, (256, 256))
            z = (u - u.mean(0)) / u.std(0)
            h = phi(z)
        return jnp.mean(z[0] ** 2)

    found = jnp.mean(jax.vmap(lengths)(jax.random.split(jax.random.key(1), 4)))
    assert (float(found) > 1.5) == grows
    assert (batch_norm_rate(phi).lambda_norm > 1) == grows


def test_residual_branches_without_norm_grow_by_the_rate():
    relu = make_activation("relu")
    found = predict(relu, 2.0, 0.0, 1.0, 1.0, 0.5, depth=8, residual=True)
    # Yang and Schoenholz, 2017: 1 + alpha² sigma_w² E phi'².
    chex.assert_trees_all_close(np.asarray(found.factor)[2:] ** 2, 1.25, rtol=1e-12)


@pytest.mark.parametrize(("name", "norm"), [("relu", "batch"), ("tanh", "layer")])
def test_residual_branches_with_norm_grow_like_a_power(name, norm):
    """Block l is divided by a variance of about l Var phi (E phi² under layer norm)."""
    phi = make_activation(name)
    m1, m2, d2 = (float(moment) for moment in phi_moments(phi))
    exponent = d2 / (m2 - m1**2 if norm == "batch" else m2)
    found = predict(phi, 1.0, depth=4000, norm=norm, residual=True)
    total = np.cumsum(np.log(np.asarray(found.factor)[::-1])[1:])[::-1] * 2
    # From layer 400 to layer 40 the variance grows by 10^p.
    assert (total[40] - total[400]) / math.log(10) == pytest.approx(exponent, rel=0.03)


def test_depth_limits_of_a_constant_factor():
    """0.25 per layer: 2^-126 is left after 63 steps, float16's 2^-14 after 7."""
    found = depth_limits(np.full(100, 0.25))
    assert found.depths == {"float32": 65, "bfloat16": 65, "float16": 9}
    assert all(math.isnan(depth) for depth in depth_limits(np.ones(100)).depths.values())


def test_depth_limits_of_a_power_of_the_depth():
    """RMS depth^-1/2 meets 2^-14 at depth 2^28, and float32's limit at none that counts."""
    layers = np.arange(1.0, 5000.0)
    found = depth_limits(np.sqrt(layers / (layers + 1)))
    assert found.depths["float16"] == pytest.approx(2**28, rel=0.01)
    assert math.isnan(found.depths["float32"])
