"""Kinks and jumps are found where they are; what is no activation gets one line."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.errors import InputError
from jaxdnn.propagation import phi_moments
from jaxdnn.propagation.nonlinearity import make_nonlinearity

EXACT = 1e-9

KINKED = [
    (lambda x: jnp.abs(x - 0.3), (0.3,), ()),
    (lambda x: jnp.clip(x, -0.7, 0.9), (-0.7, 0.9), ()),
    (lambda x: jnp.where(x > jnp.pi, x**2, x), (), (math.pi,)),
    (lambda x: jnp.round(jnp.clip(x, -1, 1)), (), (-0.5, 0.5)),
    (lambda x: jnp.tanh(200 * (x - 0.123)), (), ()),
    (make_activation("elu", alpha=0.5), (0.0,), ()),
    (jnp.sin, (), ()),
]


@pytest.mark.parametrize(("phi", "kinks", "jumps"), KINKED)
def test_kinks_and_jumps_are_found(phi, kinks, jumps):
    found = make_nonlinearity(phi)
    assert sorted(found.kinks) == pytest.approx(sorted(kinks), abs=1e-12)
    assert sorted(found.jumps) == pytest.approx(sorted(jumps), abs=1e-12)


def test_a_narrow_bump_far_from_zero_is_not_missed():
    """E exp(-(x - 7.3)² / (2 s²)) under N(0, 1) is s/√(1 + s²) exp(-7.3² / (2 (1 + s²)))."""
    s2 = 0.05**2
    found = float(phi_moments(lambda x: jnp.exp(-((x - 7.3) ** 2) / (2 * s2)), 9.0).m1)
    expected = math.sqrt(s2 / (9 + s2)) * math.exp(-(7.3**2) / (2 * (9 + s2)))
    assert found == pytest.approx(expected, rel=EXACT)


BAD = [
    (jnp.log, "is nan at x = "),
    (lambda x: 1 / x, "has no bound near x = "),
    (lambda x: x > 0, "keeps the dtype"),
    (lambda x: jnp.tanh(x.astype(jnp.float32)), "keeps the dtype"),
    (lambda x: jnp.tanh(x.astype(jnp.float32)).astype(x.dtype), "computed in float32"),
    (lambda x: jnp.sum(x), "elementwise"),
    (np.tanh, "jax.numpy"),
]


@pytest.mark.parametrize(("phi", "message"), BAD)
def test_functions_that_are_no_activation(phi, message):
    with pytest.raises(InputError, match=message) as error:
        phi_moments(phi)
    assert "\n" not in str(error.value)
