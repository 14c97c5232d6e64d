"""Fixed points, critical initialisations, depth scales and the phase diagram."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import ACTIVATIONS, make_activation
from jaxdnn.propagation import mean_field
from jaxdnn.propagation.critical import critical_points, gains
from jaxdnn.propagation.depth_scales import theory
from jaxdnn.propagation.fixed_points import fixed_point, fixed_points
from jaxdnn.propagation.phase_diagram import critical_line, phase_diagram

TANH, RELU, GELU = (make_activation(name) for name in ("tanh", "relu", "gelu"))


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


@pytest.mark.parametrize("name", ["sigmoid", "selu", "hard_tanh"])
def test_iterating_the_map_reaches_the_fixed_point(name):
    phi = make_activation(name)
    q = 1.0
    for _ in range(300):
        q = float(mean_field.variance_map(phi, 1.4, 0.1, q))
    assert float(fixed_point(phi, 1.4, 0.1)) == pytest.approx(q, rel=1e-10)


@pytest.mark.parametrize(("phi", "sigma_w2"), [(TANH, 2.0), (jnp.sin, 3.0), (GELU, 1.9)])
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
    np.testing.assert_allclose(np.asarray(found), alone, rtol=1e-13)
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


@pytest.mark.parametrize("name", ["tanh", "elu", "gelu", "soft_sign"])
def test_critical_points_are_critical_fixed_points(name):
    phi = make_activation(name)
    for point in critical_points(phi, 0.1).points:
        assert float(mean_field.chi(phi, point.sigma_w2, point.q)) == pytest.approx(1, rel=1e-11)
        after = mean_field.variance_map(phi, point.sigma_w2, 0.1, point.q)
        assert float(after) == pytest.approx(point.q, rel=1e-11)


def test_gelu_is_critical_with_a_marginal_signal_at_one_bias_variance():
    """Roberts, Yaida and Hanin, 2022: chi_1 = V' = 1 at (0.17292239, 1.98305826)."""
    (point,) = critical_points(GELU, 0.17292239).points
    assert point.sigma_w2 == pytest.approx(1.98305826, rel=1e-8)
    assert point.slope == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_no_critical_initialisation_is_said(name):
    found = critical_points(make_activation(name), 0.0)
    assert found.points == ()
    assert found.note.startswith("no critical initialisation")


def test_the_sigmoid_is_critical_with_enormous_weights():
    (point,) = critical_points(make_activation("sigmoid"), 0.0, max_sigma_w2=200).points
    assert 100 < point.sigma_w2 < 110
    found = theory(make_activation("sigmoid"), point.sigma_w2, 0.0)
    assert found.chi1 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gains_keep_what_they_promise(name):
    phi = make_activation(name)
    gain = gains(phi)
    assert float(mean_field.variance_map(phi, gain.forward**2, 0.0, 1.0)) == pytest.approx(1)
    assert float(mean_field.chi(phi, gain.backward**2, 1.0)) == pytest.approx(1)


def test_common_gains_are_off_for_tanh_and_right_for_leaky_relu():
    tanh = gains(TANH)
    assert tanh.common == pytest.approx(5 / 3)
    assert tanh.common_forward == pytest.approx(tanh.common / tanh.forward)
    leaky = gains(make_activation("leaky_relu", negative_slope=0.2))
    # The slope is read off in float32.
    assert leaky.common_backward == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", ["selu"])
def test_phase_diagram_agrees_with_the_theory_of_each_point(name):
    phi = make_activation(name)
    sigma_w2, sigma_b2 = np.array([0.5, 1.2, 1.75, 2.5, 4.0]), np.array([0.0, 0.05, 0.4])
    found = phase_diagram(phi, sigma_w2, sigma_b2)
    for (i, j), q in np.ndenumerate(found.q):
        alone = theory(phi, sigma_w2[j], sigma_b2[i])
        assert q == pytest.approx(alone.q, rel=1e-10)
        assert found.chi1[i, j] == pytest.approx(alone.chi1, rel=1e-9)
        if math.isfinite(alone.q):
            # c and xi_c are interpolated where the phase is chaotic.
            assert found.c[i, j] == pytest.approx(alone.c, abs=1e-4)
            assert found.xi_c[i, j] == pytest.approx(alone.xi_c, rel=2e-3)


def test_critical_line_goes_through_the_critical_points():
    line = critical_line(TANH)
    inside = np.isfinite(line.sigma_b2) & (line.sigma_b2 > 0)
    for sigma_b2 in (0.05, 0.3):
        (point,) = critical_points(TANH, sigma_b2).points
        found = np.interp(sigma_b2, line.sigma_b2[inside], line.sigma_w2[inside])
        assert found == pytest.approx(point.sigma_w2, rel=1e-3)
