"""Where signals settle, and the depth scales there."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.propagation import mean_field, theory
from jaxdnn.propagation.fixed_points import fixed_point, fixed_points
from tests.propagation.cases import slow_but

TANH, RELU, GELU = (make_activation(name) for name in ("tanh", "relu", "gelu"))


@pytest.mark.slow
@pytest.mark.shared_data
def test_chi(reference):
    for row in reference["chi"]:
        phi = make_activation(row["activation"])
        found = theory(phi, row["sigma_w2"], row["sigma_b2"])
        assert found.chi1 == pytest.approx(row["chi1"], rel=1e-7)
        if "q" in row:
            assert found.q == pytest.approx(row["q"], rel=1e-7)


@pytest.mark.slow  # The command's test covers one row of it.
@pytest.mark.shared_data
def test_depth_scales(reference):
    scales = reference["depth_scales"]
    phi = make_activation(scales["activation"])
    for row in scales["rows"]:
        found = theory(phi, row["sigma_w2"], scales["sigma_b2"])
        assert found.xi_q == pytest.approx(row["xi_q"], rel=1e-6)
        assert found.xi_c == pytest.approx(row["xi_c"], rel=1e-6)
        assert found.c == pytest.approx(row["c"], abs=1e-8)


def test_relu_below_he_settles_where_the_line_crosses():
    """V(q) = sigma_w² q/2 + sigma_b², so q* = sigma_b² / (1 - sigma_w²/2)."""
    found = theory(RELU, 1.5, 0.05)
    assert found.q == pytest.approx(0.2, rel=1e-12)
    assert [found.chi1, found.slope] == pytest.approx([0.75, 0.75], rel=1e-12)
    scale = -1 / math.log(0.75)
    assert [found.xi_q, found.xi_c] == pytest.approx([scale, scale], rel=1e-11)


def test_relu_at_he_has_every_q_and_infinite_scales():
    found = theory(RELU, 2.0, 0.0)
    assert found.fixed_points.every
    assert math.isnan(found.q)
    assert found.chi1 == 1.0
    assert math.isnan(found.xi_gradient)
    assert any("every q" in note for note in found.notes)
    assert float(fixed_point(RELU, 2.0, 0.0, 3.5)) == 3.5


@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), [(2.5, 0.0), (2.0, 0.1)])
def test_relu_above_he_grows_without_bound(sigma_w2, sigma_b2):
    found = theory(RELU, sigma_w2, sigma_b2)
    assert math.isinf(found.q)
    assert found.fixed_points.grows
    assert any("without bound" in note for note in found.notes)


def test_several_fixed_points_are_all_reported():
    """tanh in the chaotic phase without bias: 0, which repels with V' = sigma_w², and another."""
    found = fixed_points(TANH, 2.0, 0.0)
    assert len(found.q) == 2
    assert found.q[0] == 0
    assert found.slopes == pytest.approx([2.0, found.slopes[1]])
    assert abs(found.slopes[1]) < 1
    q = found.q[1]
    assert float(mean_field.variance_map(TANH, 2.0, 0.0, q)) == pytest.approx(q, rel=1e-12)


def test_gelu_repels_and_depends_on_the_start():
    found = fixed_points(GELU, 2.1, 0.0)
    assert len(found.q) == 2
    assert found.slopes[1] > 1
    threshold = found.q[1]
    assert float(fixed_point(GELU, 2.1, 0.0, 0.9 * threshold)) == 0
    assert math.isinf(float(fixed_point(GELU, 2.1, 0.0, 1.1 * threshold)))
    at_it = theory(GELU, 2.1, 0.0, start=threshold)
    assert any("repels" in note for note in at_it.notes)


@pytest.mark.parametrize("name", slow_but(("sigmoid", "selu", "hard_tanh"), "selu"))
def test_iterating_the_map_reaches_the_fixed_point(name):
    phi = make_activation(name)
    q = 1.0
    for _ in range(300):
        q = float(mean_field.variance_map(phi, 1.4, 0.1, q))
    assert float(fixed_point(phi, 1.4, 0.1)) == pytest.approx(q, rel=1e-10)


@pytest.mark.parametrize(
    ("phi", "sigma_w2"),
    [
        (TANH, 2.0),
        pytest.param(jnp.sin, 3.0, marks=pytest.mark.slow),
        pytest.param(GELU, 1.9, marks=pytest.mark.slow),
    ],
)
def test_iterating_the_correlation_reaches_c_at_the_rate_xi(phi, sigma_w2):
    found = theory(phi, sigma_w2, 0.3)
    c, apart = found.c - 1e-3, []
    for _ in range(6):
        c = float(mean_field.correlation_map(phi, sigma_w2, 0.3, found.q, c))
        apart.append(found.c - c)
    # Curvature of C: relative error about 1e-3.
    assert apart[-1] / apart[-2] == pytest.approx(math.exp(-1 / found.xi_c), rel=3e-3)


def test_fixed_point_jits_and_vmaps():
    sigma_w2 = np.array([1.5, 2.0, 1.0], np.float32)
    sigma_b2 = np.array([0.25, 0.0, 0.0], np.float32)
    start = np.array([1.0, 0.5, 2.0], np.float32)
    found = jax.jit(jax.vmap(lambda *args: fixed_point(TANH, *args)))(sigma_w2, sigma_b2, start)
    alone = [
        float(fixed_point(TANH, *args)) for args in zip(sigma_w2, sigma_b2, start, strict=True)
    ]
    chex.assert_trees_all_close(np.asarray(found), np.array(alone), rtol=1e-13)
    assert alone[2] == 0


def test_dropout_leaves_no_critical_point():
    """Schoenholz et al., 2017: with dropout c = 1 is no fixed point."""
    for sigma_w2 in (1.0, 1.76, 3.0):
        found = theory(TANH, sigma_w2, 0.05, dropout=0.1)
        assert found.c < 1
        again = mean_field.correlation_map(TANH, sigma_w2, 0.05, found.q, found.c, dropout=0.1)
        assert float(again) == pytest.approx(found.c, abs=1e-12)


def test_a_jump_makes_every_network_chaotic():
    found = theory(lambda x: jnp.where(x > 0, 1.0, -1.0).astype(x.dtype), 1.0, 0.2)
    assert found.q == pytest.approx(1.2)
    assert found.c < 1
    assert any("jumps" in note for note in found.notes)
