"""Moments of every layer: against the general network code, closed forms and theory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import gradient_flow
from jaxdnn.activations import make_activation
from jaxdnn.initializers import make_initializer
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.norms import Norm
from jaxdnn.propagation.gradient_flow import (
    LOSSES,
    Architecture,
    draw_kernels,
    flow,
    gaussian_batch,
)
from jaxdnn.propagation.moments import correlation, dead_fraction, rms, saturated_fraction
from tests.propagation.cases import slow_but

DEPTH, WIDTH, BATCH = 5, 12, 7


def small(norm: Norm = "none", activation="tanh", **options):
    """A small network, its batch, and the moments of one pass."""
    architecture = Architecture(DEPTH, WIDTH, norm, num_outputs=3, **options)
    kernels = draw_kernels(make_initializer("he_normal"), jax.random.key(1), 4, architecture)
    batch = gaussian_batch(jax.random.key(2), BATCH, 4, 3)
    phi = make_activation(activation)
    measured = jax.jit(
        lambda kernels, batch: flow(kernels, batch, phi, phi.max_slope, architecture)
    )
    return kernels, batch, measured(kernels, batch)


@pytest.mark.parametrize("norm", slow_but(("none", "batch", "layer"), "batch"))
def test_agrees_with_the_general_network_code(norm):
    kernels, batch, moments = small(norm)
    options = BlockOptions(make_activation("tanh"), norm=norm)
    model = make_mlp((4,), 3, widths=(WIDTH,) * (DEPTH - 1), options=options)
    params, stats = model.init(jax.random.key(0))
    all_kernels = [kernels.first, *kernels.hidden, kernels.last]
    for layer, kernel in enumerate(all_kernels[:-1]):
        params["layers"][layer]["linear"]["kernel"] = kernel
    params["head"]["kernel"] = kernels.last
    paths = [*(f"layers/{layer}" for layer in range(DEPTH - 1)), "head"]
    probes = {path: jnp.zeros((BATCH, 3 if path == "head" else WIDTH)) for path in paths}

    def loss(params, probes):
        output = model.apply(params, stats, batch.inputs, training=True, probes=probes)
        return LOSSES["cross_entropy"](output.logits, batch.labels), output.pre_activations

    both = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (grads, deltas), z = both(params, probes)
    for layer, path in enumerate(paths):
        grad = grads["head"] if path == "head" else grads["layers"][layer]["linear"]
        kernel_grad = root_mean_square(grad["kernel"])
        expected = {
            "delta_rms": root_mean_square(deltas[path]),
            "pre_activation_rms": root_mean_square(z[path]),
            "kernel_grad_rms": kernel_grad,
            "delta_rms_by_example": np.sqrt(np.mean(np.square(deltas[path]), axis=1)),
            "kernel_grad_ratio": kernel_grad / root_mean_square(all_kernels[layer]),
        }
        found = {name: getattr(moments, name)[layer] for name in expected}
        chex.assert_trees_all_close(found, expected, rtol=2e-5)


def flow_of(seed=0, **options):
    """The moments of one network, compiled as a whole."""
    return jax.jit(lambda key: gradient_flow(key, **options))(jax.random.key(seed))


def root_mean_square(x):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))


def test_residual_gradient_is_that_of_autodiff():
    kernels, batch, moments = small(residual=True)

    def loss(probes):
        h = jnp.tanh(batch.inputs @ kernels.first + probes[0])
        for kernel, probe in zip(kernels.hidden, probes[1:], strict=True):
            h = h + jnp.tanh(h @ kernel + probe)
        return LOSSES["cross_entropy"](h @ kernels.last, batch.labels)

    deltas = jax.jit(jax.grad(loss))([jnp.zeros((BATCH, WIDTH))] * (DEPTH - 1))
    chex.assert_trees_all_close(
        moments.delta_rms[:-1], np.array([root_mean_square(d) for d in deltas]), rtol=2e-5
    )


def test_forward_statistics_are_those_of_the_arrays():
    kernels, batch, moments = small(activation="relu")
    h = np.asarray(batch.inputs, np.float64)
    for layer, kernel in enumerate([kernels.first, *kernels.hidden]):
        z = h @ np.asarray(kernel, np.float64)
        h = np.maximum(z, 0)
        dead = np.mean((z <= 0).all(axis=0))
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines = np.sum(unit[1:] * unit[:-1], axis=1)
        expected = {
            "pre_activation_mean": z.mean(),
            "pre_activation_second_moment": np.mean(z**2),
            "dead_fraction": dead,
            # ReLU's slope is 0 or its maximum: saturated means not active.
            "saturated_fraction": np.mean(z <= 0),
            "correlation": np.mean(cosines),
        }
        found = {name: getattr(moments, name)[layer] for name in expected}
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_zero_initialization_gives_exact_zeros_below_the_last_layer():
    """The inputs have another size than the layers, and are the caller's."""
    inputs = jax.random.normal(jax.random.key(3), (5, 9))
    options = {"initializer": "zeros", "activation": "sigmoid", "depth": 6, "width": 16}
    moments = flow_of(inputs=inputs, labels=jnp.arange(5), **options)
    chex.assert_shape([moments.delta_rms, moments.delta_rms_by_example], [(6,), (6, 5)])
    assert not np.asarray(moments.delta_rms[:-1]).any()
    assert moments.delta_rms[-1] > 0
    # The last kernel does get a gradient: sigmoid(0) is not zero.
    assert moments.kernel_grad_rms[-1] > 0


def test_kernel_gradients_stay_flat_while_delta_dies_under_xavier_and_relu():
    moments = flow_of(initializer="xavier", activation="relu", depth=20, width=512)
    delta, grads = (np.asarray(x[:-1]) for x in (moments.delta_rms, moments.kernel_grad_rms))
    # Theory: delta shrinks by sqrt(1/2) a layer backward, the activation by as much forward.
    assert delta[0] / delta[-1] == pytest.approx(2 ** (-18 / 2), rel=0.5)
    assert grads[0] / grads[-1] == pytest.approx(1, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("initializer", "activation", "factor"),
    [
        ("lecun", "sigmoid", 0.2361),
        ("lecun", "relu", 0.7071),
        ("he", "relu", 1.0),
        ("he", "tanh", 1.0514),
        ("lecun", "selu", 1.0352),
    ],
)
def test_factor_is_that_of_mean_field_theory(initializer, activation, factor):
    """Deep half of 20 layers of 512 units, 3 seeds: within 3 % of the root of chi_1."""
    logs = []
    for seed in range(3):
        moments = flow_of(seed, initializer=initializer, activation=activation, depth=20)
        logs.append(np.diff(np.log(np.asarray(moments.delta_rms[8:-1], np.float64))))
    assert np.exp(-np.median(logs)) == pytest.approx(factor, rel=0.03)


def test_rms_reaches_where_squares_leave_float32():
    for scale in (1e-35, 1e-20, 1.0, 1e20, 1e35):
        assert float(rms(jnp.array([3.0, 4.0]) * scale)) == pytest.approx(
            np.sqrt(12.5) * scale, rel=1e-6
        )
    assert np.isnan(float(rms(jnp.array([1.0, jnp.nan]))))
    assert float(rms(jnp.zeros(3))) == 0


@pytest.mark.slow
def test_float16_loses_gradients_that_float32_keeps():
    options = {"initializer": "lecun", "activation": "sigmoid", "depth": 20, "width": 64}
    kept, lost = (flow_of(precision=name, **options) for name in ("float32", "float16"))
    assert kept.delta_rms[0] > 0
    assert lost.delta_rms[0] == 0
    # Where float16 holds them, both agree to its 11 bits, summed over a few layers.
    chex.assert_trees_all_close(lost.delta_rms[-3:], kept.delta_rms[-3:], rtol=0.01)


def test_reductions_are_those_of_numpy_on_the_host():
    z, slope = np.random.default_rng(0).standard_normal((2, 6, 4))
    slope[:, 1] = 0
    slope[0, 0] = 1e-3
    for reduce in (dead_fraction, lambda x: saturated_fraction(x, 1.0)):
        chex.assert_trees_all_close(reduce(jnp.asarray(slope)), reduce(slope))
    assert dead_fraction(slope) == 1 / 4
    assert saturated_fraction(slope, 1.0) >= 7 / 24
    chex.assert_trees_all_close(correlation(jnp.asarray(z)), correlation(z), rtol=1e-5)
