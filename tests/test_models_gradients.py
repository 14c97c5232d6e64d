"""Gradients inside the multi-layer perceptron: probes and slopes against a NumPy backprop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import cross_entropy
from jaxdnn.models import make_mlp

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
PATHS = ("layers/0", "layers/1", "head")
SLOPE = 0.3
# phi and phi', written out.
ACTIVATIONS = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "parametric_relu": (
        lambda z: np.where(z > 0, z, SLOPE * z),
        lambda z: np.where(z > 0, 1, SLOPE),
    ),
}
each_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def network(name):
    given = {"negative_slope": SLOPE} if name == "parametric_relu" else {}
    unit = BlockOptions(activation=make_activation(name, **given), bias_init=0.1)
    model = make_mlp((4,), 3, widths=(5, 3), unit=unit)
    return model, *model.init(jax.random.key(0))


def backprop(params, name):
    """Pre-activations and deltas dL/dz of every layer, in float64; L is the mean cross-entropy."""
    phi, dphi = ACTIVATIONS[name]
    maps = [params["layers"][0]["linear"], params["layers"][1]["linear"], params["head"]]
    weights = [np.asarray(linear["kernel"], np.float64) for linear in maps]
    biases = [np.asarray(linear["bias"], np.float64) for linear in maps]
    z1 = X @ weights[0] + biases[0]
    z2 = phi(z1) @ weights[1] + biases[1]
    z3 = phi(z2) @ weights[2] + biases[2]
    shares = np.exp(z3) / np.exp(z3).sum(axis=1, keepdims=True)
    delta3 = (shares - np.eye(3)[LABELS]) / len(X)
    delta2 = delta3 @ weights[2].T * dphi(z2)
    delta1 = delta2 @ weights[1].T * dphi(z1)
    return (z1, z2, z3), (delta1, delta2, delta3), weights


@each_activation
def test_gradients_of_zero_probes_are_the_deltas_of_backprop(name):
    model, params, batch_stats = network(name)
    zs, deltas, _ = backprop(params, name)
    probes = {path: jnp.zeros(z.shape) for path, z in zip(PATHS, zs, strict=True)}

    def loss(probes):
        output = model.apply(params, batch_stats, X, training=True, probes=probes)
        return cross_entropy(output.logits, LABELS).mean(), output.pre_activations

    gradients, pre_activations = jax.grad(loss, has_aux=True)(probes)
    for path, z, delta in zip(PATHS, zs, deltas, strict=True):
        chex.assert_trees_all_close(pre_activations[path], z, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(gradients[path], delta, rtol=1e-4, atol=1e-6)


@each_activation
def test_gradients_of_parameters_follow_from_the_deltas(name):
    model, params, batch_stats = network(name)
    phi, _ = ACTIVATIONS[name]
    (z1, z2, _), deltas, weights = backprop(params, name)

    def loss(params):
        return cross_entropy(model.apply(params, batch_stats, X).logits, LABELS).mean()

    gradients = jax.grad(loss)(params)
    maps = [gradients["layers"][0]["linear"], gradients["layers"][1]["linear"], gradients["head"]]
    for linear, inputs, delta in zip(maps, (X, phi(z1), phi(z2)), deltas, strict=True):
        chex.assert_trees_all_close(linear["kernel"], inputs.T @ delta, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(linear["bias"], delta.sum(axis=0), rtol=1e-4, atol=1e-6)
    if name == "parametric_relu":
        # dL/dslope sums dL/da * min(z, 0) over the examples, for each feature.
        for index, z in enumerate((z1, z2)):
            upstream = deltas[index + 1] @ weights[index + 1].T
            expected = (upstream * np.minimum(z, 0)).sum(axis=0)
            slope = gradients["layers"][index]["slope"]
            chex.assert_trees_all_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_a_probe_is_added_to_its_pre_activation_and_passed_on():
    model, params, batch_stats = network("tanh")
    probe = jnp.float32(RNG.normal(size=(6, 5)))
    plain = model.apply(params, batch_stats, X).pre_activations
    probed = model.apply(params, batch_stats, X, probes={"layers/0": probe}).pre_activations
    chex.assert_trees_all_equal(probed["layers/0"], plain["layers/0"] + probe)
    linear = params["layers"][1]["linear"]
    expected = np.tanh(plain["layers/0"] + probe) @ linear["kernel"] + linear["bias"]
    chex.assert_trees_all_close(probed["layers/1"], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_s_probe_comes_after_the_norm():
    model = make_mlp((4,), 3, widths=(5,), unit=BlockOptions(norm="batch"))
    params, batch_stats = model.init(jax.random.key(0))
    # A constant added before the norm would vanish in it; added behind, it moves the mean.
    probes = {"layers/0": jnp.full((6, 5), 2.0)}
    output = model.apply(params, batch_stats, X, training=True, probes=probes)
    chex.assert_trees_all_close(output.pre_activations["layers/0"].mean(axis=0), 2, rtol=1e-5)


def test_an_unused_probe_and_an_unused_key_change_nothing():
    model, params, batch_stats = network("tanh")
    plain = model.apply(params, batch_stats, X, training=True).logits
    zero = model.apply(
        params, batch_stats, X, training=True, key=jax.random.key(1), probes={"head": jnp.zeros(3)}
    ).logits
    chex.assert_trees_all_equal(plain, zero)
