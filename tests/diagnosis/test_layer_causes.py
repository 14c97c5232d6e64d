"""One fault is planted in a network of six layers; its layer and its kind are named first."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.diagnosis import examine, find_causes
from jaxdnn.diagnosis.findings import CERTAIN

from .zoo import normal

DEPTH, WIDTH, BATCH = 6, 48, 24


def make(fault=None, layer=3):
    """The causes found in a ReLU network with layer norms, but for one fault."""
    widths = [WIDTH] * DEPTH + [10]
    if fault == "fan-out":
        widths[layer + 1] = 6 * WIDTH
    kernels = [
        normal(i, a, b) * np.sqrt(2 / a) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    biases = [jnp.zeros(width) for width in widths[1:]]
    kernels[layer] *= {"small": 0.1, "large": 10.0, "zero": 0.0}.get(str(fault), 1.0)
    if fault == "fan-out":
        kernels[layer] *= np.sqrt(1 / 6)
    if fault == "dead":
        biases[layer] -= 20.0

    def apply(params, x, key):
        for i, (kernel, bias) in enumerate(params[:-1]):
            z = x @ kernel + bias
            if not (fault == "norm" and i == layer) and fault != "dead":
                z = (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-6)
            x = jnp.tanh(10 * z) if fault == "tanh" and i == layer else jax.nn.relu(z)
            if fault == "dropout" and i == layer:
                x = jnp.where(jax.random.bernoulli(key, 0.1, x.shape), x / 0.1, 0)
        logits = x @ params[-1][0] + params[-1][1]
        return jax.nn.softmax(logits) if fault == "softmax" else logits

    params = list(zip(kernels, biases, strict=True))
    return find_causes(examine((apply, params), normal(99, BATCH, WIDTH), jnp.arange(BATCH) % 10))


@pytest.mark.parametrize(
    ("fault", "cause", "path"),
    [
        ("small", "weights too small", "3"),
        pytest.param("large", "weights too large", "3", marks=pytest.mark.slow),
        ("zero", "zero weights", "3"),
        ("fan-out", "fan-out for fan-in", "3"),
        ("dead", "dead units", "3"),
        pytest.param("norm", "missing norm", "3", marks=pytest.mark.slow),
        ("tanh", "saturating activation", "3"),
        pytest.param("dropout", "dropout", "3", marks=pytest.mark.slow),
        ("softmax", "outputs cannot reach targets", "5"),
    ],
)
def test_fault_is_named_first(fault, cause, path):
    first = make(fault)[0]
    assert (first.cause, first.path) == (cause, path)
    assert first.category == first.kind.category


def test_healthy_network_has_no_cause():
    assert make() == ()


def test_block_opened_by_a_norm_misses_none_at_its_end():
    """Pre-norm blocks, each with a norm of its own, and none after the last."""
    kernels = [normal(i, WIDTH, WIDTH) / np.sqrt(WIDTH) for i in range(DEPTH)]

    def apply(params, x):
        x = x @ params[0]
        for kernel in params[1:-1]:
            h = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x + jax.nn.gelu(h @ kernel)
        return x @ params[-1]

    exam = examine((apply, kernels), normal(99, BATCH, WIDTH), jnp.arange(BATCH) % 10)
    assert "missing norm" not in {cause.cause for cause in find_causes(exam)}


def plain(phi, scales, change=lambda kernels: None):
    """The causes found in layers without norm.

    Args:
      phi: between the layers.
      scales: of each kernel, times 1 / sqrt(fan_in).
      change: what is done to the kernels, in place.
    """
    kernels = [scale * normal(i, WIDTH, WIDTH) / np.sqrt(WIDTH) for i, scale in enumerate(scales)]
    change(kernels)

    def apply(params, x):
        for kernel in params[:-1]:
            x = phi(x @ kernel)
        return x @ params[-1]

    exam = examine((apply, kernels), normal(99, BATCH, WIDTH), jnp.arange(BATCH) % 10)
    return {cause.cause: cause for cause in find_causes(exam)}


def test_layers_without_activation_between_are_one_layer():
    found = plain(lambda z: z, [1.0] * 3)
    assert found["no activation between layers"].path == "0"
    assert "0, 1" in found["no activation between layers"].evidence
    assert "no activation between layers" not in plain(jnp.tanh, [1.0] * 3)


def test_a_layer_without_a_living_unit_is_certain():
    """Negative weights on what a ReLU gives."""

    def kill(kernels, num=WIDTH):
        kernels[1] = kernels[1].at[:, :num].set(-jnp.abs(kernels[1][:, :num]))

    found = plain(jax.nn.relu, [2**0.5] * 4, kill)
    assert found["dead layer"].path == "1"
    assert found["dead layer"].strength == CERTAIN
    # One unit that lives is enough.
    assert "dead layer" not in plain(
        jax.nn.relu, [2**0.5] * 4, lambda kernels: kill(kernels, WIDTH - 1)
    )


def test_what_each_activation_lets_through_is_said():
    """RMS of a sigmoid's slope near 0 is 1/4; of tanh's near 0 it is 1."""
    found = plain(jax.nn.sigmoid, [0.1] * 8)["flat activations"]
    assert "each passes 0.25 of the gradient back" in found.evidence
    assert "flat activations" not in plain(jnp.tanh, [0.1] * 8)


@pytest.mark.parametrize(
    "initializer",
    [
        "glorot_uniform",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("glorot_normal", "he_normal", "lecun_normal")
        ),
    ],
)
def test_usual_initializers_are_no_deviation_whatever_the_widths(initializer):
    widths = [40, 200, 12, 120, 30, 10]
    draw = getattr(jax.nn.initializers, initializer)()
    kernels = [draw(jax.random.key(i), shape) for i, shape in enumerate(itertools.pairwise(widths))]

    def apply(params, x):
        for kernel in params[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ params[-1]

    exam = examine((apply, kernels), normal(99, BATCH, 40), jnp.arange(BATCH) % 10)
    about_weights = ("weights too small", "weights too large", "fan-out for fan-in")
    assert not [cause for cause in find_causes(exam) if cause.cause in about_weights]
