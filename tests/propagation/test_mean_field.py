"""The maps of the theory: closed forms, two routes to one number, reference values."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import ACTIVATIONS, make_activation
from jaxdnn.propagation import mean_field
from tests.propagation.cases import slow_but

VARIANCES = [1e-8, 1e-3, 0.7, 1.0, 30.0, 1e5]
CORRELATIONS = [-1.0, -0.7, 0.0, 0.25, 0.75, 1 - 2.0**-20, 1.0]
EXACT = 1e-9


def erf(x):
    return jax.scipy.special.erf(x)


def step(x):
    return jnp.where(x > 0, 1.0, -1.0).astype(x.dtype)


def bent(x):
    return jnp.abs(x - 0.3)


@pytest.mark.shared_data
def test_moments(reference):
    for name, expected in reference["moments_q1"].items():
        phi = make_activation(name.partition("(")[0])
        found = [float(x) for x in mean_field.phi_moments(phi)]
        # The reference is printed to 9 digits.
        chex.assert_trees_all_close(found, expected, rtol=2e-8, atol=1e-12)


@pytest.mark.shared_data
def test_correlations(reference):
    relu, c = make_activation("relu"), [0.0]
    for _ in range(100):
        c.append(float(mean_field.correlation_map(relu, 2.0, 0.0, 1.0, c[-1])))
    for depth, expected in reference["correlation_relu_he"].items():
        # Printed to 6 decimals.
        assert c[int(depth)] == pytest.approx(expected, abs=5.1e-7)


@pytest.mark.parametrize("q", VARIANCES)
def test_variance_maps_with_closed_forms(q):
    """ReLU: q/2. erf: Williams, "Computing with Infinite Networks", 1997. |x - 0.3|: q + 0.09."""

    def found(phi):
        return float(mean_field.variance_map(phi, 1.5, 0.25, q))

    assert found(make_activation("relu")) == pytest.approx(0.75 * q + 0.25, rel=EXACT)
    assert found(bent) == pytest.approx(1.5 * (q + 0.09) + 0.25, rel=EXACT)
    assert found(step) == pytest.approx(1.75, rel=EXACT)
    square = 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
    assert found(erf) == pytest.approx(1.5 * square + 0.25, rel=EXACT)
    steepness = 4 / math.pi / math.sqrt(1 + 4 * q)
    assert float(mean_field.chi(erf, 1.5, q)) == pytest.approx(1.5 * steepness, rel=EXACT)


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize("c", CORRELATIONS)
def test_covariances_with_closed_forms(q, c):
    """ReLU: Cho and Saul, 2009. erf: Williams, 1997. Sign: Sheppard's arcsine law."""
    angle = math.acos(c)
    relu = make_activation("relu")
    arc_cosine = q * (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)
    assert float(mean_field.covariance(relu, q, c)) == pytest.approx(
        arc_cosine, rel=EXACT, abs=1e-15 * q
    )
    assert float(mean_field.correlation_slope(relu, 1.0, q, c)) == pytest.approx(
        (math.pi - angle) / (2 * math.pi), rel=EXACT, abs=1e-14
    )
    both = 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
    assert float(mean_field.covariance(erf, q, c)) == pytest.approx(both, rel=EXACT, abs=1e-15)
    signs = 2 / math.pi * math.asin(c)
    assert float(mean_field.covariance(step, q, c)) == pytest.approx(signs, rel=EXACT, abs=1e-13)


@pytest.mark.parametrize("c", [-0.7, 0.3, 0.8])
def test_covariance_where_several_jumps_meet(c):
    """Three steps: the mean of phi(v) given u in closed form, and one integral of 3 x 60 nodes."""
    q = 2.0
    s = math.sqrt(2 * q * (1 - c**2))
    erf_of = np.vectorize(math.erf)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    total = 0.0
    for low, high, value in [(-14, -0.5, -1.0), (0.5, 14, 1.0)]:
        u = (low + high) / 2 + (high - low) / 2 * nodes
        given_u = (erf_of((c * u - 0.5) / s) + erf_of((c * u + 0.5) / s)) / 2
        density = np.exp(-(u**2) / 2 / q) / math.sqrt(2 * math.pi * q)
        total += (high - low) / 2 * np.sum(weights * value * given_u * density)
    found = float(mean_field.covariance(lambda x: jnp.round(jnp.clip(x, -1, 1)), q, c))
    assert found == pytest.approx(total, rel=EXACT)


@pytest.mark.parametrize("c", [0.0, 0.3, 0.9])
def test_slope_of_the_correlation_map_counts_jumps(c):
    """d/dc of the arcsine law is 2/(π √(1 - c²)); automatic differentiation would give 0."""
    found = float(mean_field.correlation_slope(step, 1.0, 2.0, c))
    assert found == pytest.approx(2 / math.pi / math.sqrt(1 - c**2) / 2.0, rel=EXACT)
    assert float(mean_field.correlation_slope(step, 1.0, 2.0, 1.0)) == math.inf


def test_slope_of_the_variance_map_counts_jumps():
    """E 1[√q z > 1] = Phi(-1/√q), whose slope is the density at 1/√q over 2 q^1.5."""
    q = 0.8
    found = float(mean_field.slope(lambda x: jnp.where(x > 1, 1.0, 0.0).astype(x.dtype), 1.0, q))
    density = math.exp(-0.5 / q) / math.sqrt(2 * math.pi)
    assert found == pytest.approx(density / (2 * q**1.5), rel=EXACT)


@pytest.mark.parametrize(
    "name",
    slow_but(("sigmoid", "relu", "selu", "gelu", "soft_sign", "hard_tanh"), "sigmoid", "hard_tanh"),
)
def test_slopes_are_finite_differences(name):
    phi = make_activation(name)
    q, h = 0.9, 1e-4
    above, below = (mean_field.variance_map(phi, 1.3, 0.1, q + d) for d in (h, -h))
    # Truncation h² V'''/6, below 1e-8 here.
    assert float(mean_field.slope(phi, 1.3, q)) == pytest.approx(
        (float(above) - float(below)) / (2 * h), abs=1e-7
    )
    c = 0.4
    above, below = (mean_field.covariance(phi, q, c + d) for d in (h, -h))
    assert float(mean_field.correlation_slope(phi, 1.0, q, c)) == pytest.approx(
        (float(above) - float(below)) / (2 * h) / q, abs=1e-7
    )


@pytest.mark.parametrize("name", slow_but(("tanh", "gelu", "elu"), "tanh"))
def test_slope_of_the_correlation_map_at_one_is_chi(name):
    phi = make_activation(name)
    q, apart = 0.9, 1e-6
    mean_slope = 1.3 * float(mean_field.decorrelation(phi, q, 1 - apart)) / q
    assert mean_slope == pytest.approx(float(mean_field.chi(phi, 1.3, q)), abs=5 * apart)


@pytest.mark.parametrize("name", slow_but(ACTIVATIONS, "relu", "gelu"))
def test_covariance_agrees_with_samples(name):
    phi = make_activation(name)
    num, q, c = 200_000, 1.7, 0.6
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((2, num))
    u, v = math.sqrt(q) * x, math.sqrt(q) * (c * x + math.sqrt(1 - c**2) * y)
    products = np.asarray(phi(jnp.asarray(u, jnp.float32)) * phi(jnp.asarray(v, jnp.float32)))
    # Five standard errors of the mean.
    tolerance = 5 * float(products.std()) / math.sqrt(num)
    found = float(mean_field.covariance(phi, q, c))
    assert found == pytest.approx(products.mean(dtype=np.float64), abs=tolerance)


@pytest.mark.parametrize("name", slow_but(("sigmoid", "relu", "gelu"), "relu"))
def test_correlation_map_rises_and_is_convex(name):
    phi = make_activation(name)
    q = 1.2
    c = np.linspace(0, 1, 9)
    values = np.array([float(mean_field.correlation_map(phi, 1.5, 0.1, q, x)) for x in c])
    assert (np.diff(values) > 0).all()
    assert (np.diff(values, n=2) > -1e-12).all()
    assert values[-1] == pytest.approx(1, rel=1e-12)


def test_jit_and_vmap_over_all_numbers():
    phi = make_activation("tanh")
    sigma_w2 = np.array([1.0, 1.5], np.float32)
    sigma_b2 = np.array([0.0, 0.5, 0.25], np.float32)
    q = np.array([0.5, 1.0, 2.0, 8.0], np.float32)

    def all_of(function):
        over_q = jax.vmap(function, (None, None, 0))
        over_b = jax.vmap(over_q, (None, 0, None))
        return jax.jit(jax.vmap(over_b, (0, None, None)))

    found = all_of(lambda *args: mean_field.variance_map(phi, *args))(sigma_w2, sigma_b2, q)
    chex.assert_shape(found, (2, 3, 4))
    chex.assert_type(found, jnp.float64)
    for i, j, k in np.ndindex(2, 3, 4):
        alone = mean_field.variance_map(phi, sigma_w2[i], sigma_b2[j], q[k])
        assert float(np.asarray(found)[i, j, k]) == pytest.approx(float(alone), rel=1e-14)
    chis = jax.jit(jax.vmap(lambda w, q: mean_field.chi(phi, w, q)))(sigma_w2, q[:2])
    alone = [float(mean_field.chi(phi, *pair)) for pair in zip(sigma_w2, q, strict=False)]
    chex.assert_trees_all_close(np.asarray(chis), np.array(alone), rtol=1e-14)
    chex.assert_type(jnp.ones(1), jnp.float32)


def test_derivative_with_respect_to_the_variance_is_the_slope():
    phi = make_activation("gelu")
    one = jnp.float32(1)
    _, found = jax.jvp(
        lambda q: mean_field.variance_map(phi, 1.5, 0.1, q), (jnp.float32(0.75),), (one,)
    )
    assert float(found) == pytest.approx(float(mean_field.slope(phi, 1.5, 0.75)), rel=1e-12)


def test_dropout_divides_the_second_moment_by_the_share_kept():
    relu = make_activation("relu")
    found = float(mean_field.variance_map(relu, 2.0, 0.0, 1.0, dropout=0.2))
    assert found == pytest.approx(1 / 0.8, rel=EXACT)
    assert float(mean_field.correlation_map(relu, 2.0, 0.0, 1.0, 1.0, dropout=0.2)) == (
        pytest.approx(0.8, rel=EXACT)
    )
