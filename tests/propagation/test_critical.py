"""Critical initialisations and the phase diagram around them; gains."""

import math

import numpy as np
import pytest

from jaxdnn.activations import ACTIVATIONS, make_activation
from jaxdnn.propagation import (
    critical_line,
    critical_points,
    gains,
    mean_field,
    phase_diagram,
    theory,
)
from tests.propagation.cases import slow_but

TANH, GELU = make_activation("tanh"), make_activation("gelu")


@pytest.mark.shared_data
def test_critical_points(reference):
    for row in reference["critical"]:
        phi = make_activation(row["activation"])
        (found,) = critical_points(phi, row["sigma_b2"]).points
        assert found.sigma_w2 == pytest.approx(row["sigma_w2"], rel=1e-9)
        if "q" in row:
            assert found.q == pytest.approx(row["q"], rel=1e-8)


@pytest.mark.parametrize("name", slow_but(("tanh", "elu", "gelu", "soft_sign"), "tanh", "gelu"))
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


def test_critical_line_goes_through_the_critical_points():
    line = critical_line(TANH)
    inside = np.isfinite(line.sigma_b2) & (line.sigma_b2 > 0)
    for sigma_b2 in (0.05, 0.3):
        (point,) = critical_points(TANH, sigma_b2).points
        found = np.interp(sigma_b2, line.sigma_b2[inside], line.sigma_w2[inside])
        assert found == pytest.approx(point.sigma_w2, rel=1e-3)


@pytest.mark.parametrize("name", slow_but(("tanh", "selu"), "tanh"))
def test_phase_diagram_agrees_with_the_theory_of_each_point(name):
    phi = make_activation(name)
    sigma_w2, sigma_b2 = np.array([0.5, 1.75, 4.0]), np.array([0.0, 0.05])
    found = phase_diagram(phi, sigma_w2, sigma_b2)
    for (i, j), q in np.ndenumerate(found.q):
        alone = theory(phi, sigma_w2[j], sigma_b2[i])
        assert q == pytest.approx(alone.q, rel=1e-10)
        assert found.chi1[i, j] == pytest.approx(alone.chi1, rel=1e-9)
        if math.isfinite(alone.q):
            # c and xi_c are interpolated where the phase is chaotic.
            assert found.c[i, j] == pytest.approx(alone.c, abs=1e-4)
            assert found.xi_c[i, j] == pytest.approx(alone.xi_c, rel=2e-3)


@pytest.mark.parametrize("name", slow_but(ACTIVATIONS, "tanh", "gelu", "softplus"))
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
    assert leaky.common_backward == pytest.approx(1, abs=1e-12)
