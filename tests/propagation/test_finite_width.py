"""What one random network adds to the mean: the band of its gradient, its Jacobian's spectrum."""

import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.propagation import gradient_band, jacobian_spectrum
from jaxdnn.propagation.finite_width import log_moments


@pytest.mark.shared_data
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_moments_of_the_log(reference, direction):
    for width, row in reference["finite_width_relu_he"].items():
        found = log_moments(make_activation("relu"), 1.0, int(width), direction=direction)
        assert float(found.mean) == pytest.approx(row["mean_log"], rel=1e-6)
        assert float(found.variance) == pytest.approx(row["var_log"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "sigma_w2"),
    [
        ("relu", 2.0),
        ("tanh", 2.0),
        pytest.param("sigmoid", 1.0, marks=pytest.mark.slow),
        pytest.param("selu", 1.0, marks=pytest.mark.slow),
    ],
)
def test_band_of_finite_width_holds_ninety_percent_of_networks(name, sigma_w2):
    """200 networks of width 64, depth 20: 90 % ± 2.1 %; 85 to 95 % is asked for."""
    phi = make_activation(name)
    width, depth, num_networks = 64, 20, 200
    draw = np.random.default_rng(2)
    std = math.sqrt(sigma_w2 / width)

    def apply(function, h):
        return np.asarray(function(jnp.asarray(h, jnp.float32)), np.float64)

    kernels = std * draw.standard_normal((depth, num_networks, width, width))
    x = draw.standard_normal((num_networks, width, 1))
    x *= math.sqrt(width) / np.linalg.norm(x, axis=1, keepdims=True)
    hs = []
    for kernel in kernels:
        hs.append(kernel @ x)
        x = apply(phi, hs[-1])
    delta = apply(phi.derivative, hs[-1]) * draw.standard_normal(x.shape)
    last = np.linalg.norm(delta, axis=(1, 2))
    for kernel, h in zip(kernels[:0:-1], hs[-2::-1], strict=True):
        delta = apply(phi.derivative, h) * (kernel.swapaxes(1, 2) @ delta)
    logs = np.log(np.linalg.norm(delta, axis=(1, 2)) / last)
    band = gradient_band(phi, sigma_w2, depth=depth, width=width)
    share = np.mean((logs > band.low) & (logs < band.high))
    assert 0.85 <= share <= 0.95
    assert logs.mean() == pytest.approx(band.mean, abs=5 * band.std / math.sqrt(num_networks))


def test_narrow_networks_have_wider_bands():
    relu = make_activation("relu")
    narrow, wide = (gradient_band(relu, 2.0, depth=10, width=width) for width in (32, 128))
    assert narrow.std > 1.9 * wide.std
    assert narrow.mean < wide.mean < 0


@pytest.mark.parametrize(
    ("weights", "closed"), [("normal", [1, 4, 22, 140]), ("orthogonal", 4 * [1])]
)
def test_spectrum_of_a_linear_network(weights, closed):
    """Normal: the Fuss-Catalan numbers C(4k, k) / (3k + 1) of three factors. Orthogonal: all 1."""
    found = jacobian_spectrum(lambda x: x, 1.0, 1.0, depth=3, weights=weights)
    chex.assert_trees_all_close(found.moments, np.array(closed), rtol=1e-10)


@pytest.mark.parametrize("weights", ["normal", "orthogonal"])
def test_spectrum_agrees_with_networks(weights):
    """Eight networks of width 64, depth 4: moments of 512 eigenvalues."""
    phi = make_activation("tanh")
    width, depth, q, sigma_w2 = 64, 4, 0.57, 1.761

    draw = np.random.default_rng(3)

    def moments():
        jacobian = np.eye(width)
        for _ in range(depth):
            kernel = draw.standard_normal((width, width))
            kernel = kernel / math.sqrt(width) if weights == "normal" else np.linalg.qr(kernel)[0]
            h = math.sqrt(q) * draw.standard_normal((width, 1))
            jacobian = (1 - np.tanh(h) ** 2) * math.sqrt(sigma_w2) * (kernel @ jacobian)
        squares = np.linalg.svd(jacobian, compute_uv=False) ** 2
        return squares.mean(), (squares**2).mean()

    first, second = np.mean([moments() for _ in range(8)], axis=0)
    found = jacobian_spectrum(phi, sigma_w2, q, depth=depth, weights=weights)
    # The mean's relative error is about √(spread/width/8), of the ratio a few times that.
    error = math.sqrt(found.spread / width / 8)
    assert first == pytest.approx(math.exp(found.log_mean), rel=4 * error)
    assert second / first**2 == pytest.approx(found.moments[1], rel=12 * error)


def test_spectrum_spreads_with_depth_by_the_closed_form():
    relu = make_activation("relu")
    for depth in (1, 10):
        found = jacobian_spectrum(relu, 2.0, 1.0, depth=depth, weights="orthogonal")
        # mu_2 / mu_1² - 1 = 1 for ReLU.
        assert found.spread == pytest.approx(depth, rel=1e-9)
