"""The multi-layer perceptron against NumPy: shapes, norms, dropout, slopes, and a backprop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import cross_entropy
from jaxdnn.models import make_mlp
from jaxdnn.norms import BATCH_NORM_EPSILON

IDENTITY = make_activation("leaky_relu", negative_slope=1.0)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 2, 3, 1)).astype(np.float32)
ROWS = IMAGES.reshape(8, 6)


def mlp(widths=(5, 4), num_outputs=3, input_shape=(2, 3, 1), seed=0, **options):
    model = make_mlp(input_shape, num_outputs, widths=widths, options=BlockOptions(**options))
    return model, *model.init(jax.random.key(seed))


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def randomised(tree, seed=1):
    """The same tree with other numbers, all positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0.5, 2, leaf.shape)), tree)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_shapes(norm):
    model, params, batch_stats = mlp(norm=norm)
    layers = shapes(params)["layers"]
    # beta of the batch norm replaces the bias.
    bias = {} if norm == "batch" else {"bias": (5,)}
    scale = {} if norm == "none" else {"norm": {"scale": (5,), "bias": (5,)}}
    assert layers[0] == {"linear": {"kernel": (6, 5), **bias}, **scale}
    assert layers[1]["linear"]["kernel"] == (5, 4)
    assert shapes(params)["head"] == {"kernel": (4, 3), "bias": (3,)}
    means = {"norm": {"mean": (5,), "var": (5,)}}
    assert shapes(batch_stats).get("layers", {}).get(0) == (means if norm == "batch" else None)
    output = model.apply(params, batch_stats, IMAGES, training=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(output.batch_stats, batch_stats)
    layers = (output.pre_activations[path] for path in ("layers/0", "layers/1", "head"))
    chex.assert_shape([output.logits, *layers], [(8, 3), (8, 5), (8, 4), (8, 3)])
    assert list(output.pre_activations) == ["layers/0", "layers/1", "head"]
    chex.assert_trees_all_equal(output.pre_activations["head"], output.logits)
    head = params["head"]
    expected = output.features @ head["kernel"] + head["bias"]
    chex.assert_trees_all_close(output.logits, expected, rtol=1e-5, atol=1e-6)


def test_without_hidden_layers_it_is_linear_and_images_are_flattened_row_by_row():
    model, params, batch_stats = mlp(widths=(), bias_init=0.5)
    kernel = np.asarray(params["head"]["kernel"])
    logits = model.apply(params, batch_stats, IMAGES).logits
    chex.assert_trees_all_close(logits, ROWS @ kernel + 0.5, rtol=1e-5, atol=1e-6)


def test_apply_is_pure_and_compiles_to_the_same():
    model, params, batch_stats = mlp(norm="batch", dropout=0.3)
    before = jax.tree.map(np.array, (params, batch_stats))
    key = jax.random.key(3)

    def apply(params, batch_stats):
        return model.apply(params, batch_stats, IMAGES, training=True, key=key)

    first, second = apply(params, batch_stats), apply(params, batch_stats)
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal((params, batch_stats), before)
    compiled = jax.jit(apply)(params, batch_stats)
    chex.assert_trees_all_close(first, compiled, rtol=1e-5, atol=1e-5)


def test_init_follows_from_the_key_and_no_two_layers_share_weights():
    model = make_mlp((4,), 4, widths=(4, 4))
    first, again, other = (model.init(jax.random.key(seed))[0] for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    kernels = [first["layers"][index]["linear"]["kernel"] for index in (0, 1)]
    kernels += [first["head"]["kernel"], other["layers"][0]["linear"]["kernel"]]
    for index, kernel in enumerate(kernels):
        assert all((kernel != later).all() for later in kernels[index + 1 :])


def test_batch_norm_gives_each_feature_mean_beta_and_variance_gamma_squared():
    model, params, batch_stats = mlp(norm="batch")
    norm = randomised(params["layers"][0]["norm"])
    params["layers"][0]["norm"] = norm
    z = np.asarray(
        model.apply(params, batch_stats, IMAGES, training=True).pre_activations["layers/0"]
    )
    variance = (ROWS @ np.asarray(params["layers"][0]["linear"]["kernel"])).var(axis=0)
    shrinks = variance / (variance + BATCH_NORM_EPSILON)
    chex.assert_trees_all_close(z.mean(axis=0), norm["bias"], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(z.var(axis=0), norm["scale"] ** 2 * shrinks, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_running_averages_keep_the_share_momentum_of_the_old(momentum):
    model, params, batch_stats = mlp(norm="batch", norm_momentum=momentum)
    old = randomised(batch_stats)
    new = model.apply(params, old, IMAGES, training=True).batch_stats["layers"][0]["norm"]
    z = ROWS @ np.asarray(params["layers"][0]["linear"]["kernel"])
    for name, current in (("mean", z.mean(axis=0)), ("var", z.var(axis=0))):
        expected = momentum * old["layers"][0]["norm"][name] + (1 - momentum) * current
        chex.assert_trees_all_close(new[name], expected, rtol=1e-5, atol=1e-6)


def test_evaluation_normalises_by_the_running_averages_and_leaves_them():
    model, params, batch_stats = mlp(norm="batch")
    stats, norm = randomised(batch_stats), randomised(params["layers"][0]["norm"], seed=2)
    params["layers"][0]["norm"] = norm
    output = model.apply(params, stats, IMAGES)
    chex.assert_trees_all_equal(output.batch_stats, stats)
    z = ROWS @ np.asarray(params["layers"][0]["linear"]["kernel"])
    mean, var = (stats["layers"][0]["norm"][name] for name in ("mean", "var"))
    expected = norm["scale"] * (z - mean) / np.sqrt(var + BATCH_NORM_EPSILON) + norm["bias"]
    chex.assert_trees_all_close(output.pre_activations["layers/0"], expected, rtol=1e-4, atol=1e-5)
    alone = model.apply(params, stats, IMAGES[:1]).logits
    chex.assert_trees_all_close(alone, output.logits[:1], rtol=1e-4, atol=1e-5)


def test_layer_norm_gives_each_example_mean_0_and_variance_1():
    model, params, batch_stats = mlp(norm="layer", widths=(50,))
    for training in (True, False):
        output = model.apply(params, batch_stats, IMAGES, training=training)
        z = np.asarray(output.pre_activations["layers/0"])
        chex.assert_trees_all_close(z.mean(axis=1), 0, atol=1e-5)
        chex.assert_trees_all_close(z.var(axis=1), 1, rtol=1e-3)


def test_dropout_keeps_the_expectation():
    num, rate = 4000, 0.4
    model, params, batch_stats = mlp(widths=(5,), activation=IDENTITY, dropout=rate)
    keys = jax.random.split(jax.random.key(7), num)
    logits = jax.jit(
        jax.vmap(lambda key: model.apply(params, batch_stats, IMAGES, training=True, key=key)[0])
    )(keys)
    kept = model.apply(params, batch_stats, IMAGES)
    hidden = np.asarray(kept.pre_activations["layers/0"])
    kernel = np.asarray(params["head"]["kernel"])
    # A unit is 0, or a / (1 - rate): variance a² rate / (1 - rate); the units are independent.
    variance = hidden**2 @ kernel**2 * rate / (1 - rate)
    error = np.sqrt(variance / num)
    assert (np.abs(np.asarray(logits).mean(axis=0) - kept.logits) < 5 * error).all()
    # The sampled variance has the relative error sqrt((kurtosis - 1) / num); the kurtosis of one
    # unit is 1 / rate + 1 / (1 - rate) - 3 = 1.2, that of their sum below 3: 5 sigma < 0.12.
    chex.assert_trees_all_close(np.asarray(logits).var(axis=0), variance, rtol=0.12)


def test_dropout_needs_training_s_key():
    model, params, batch_stats = mlp(dropout=0.5, activation=IDENTITY)
    plain, p, s = mlp(activation=IDENTITY)
    expected = plain.apply(p, s, IMAGES).logits
    for training in (False, True):
        logits = model.apply(params, batch_stats, IMAGES, training=training).logits
        chex.assert_trees_all_equal(logits, expected)
    first, second = (
        model.apply(params, batch_stats, IMAGES, training=True, key=jax.random.key(seed)).logits
        for seed in (0, 1)
    )
    assert (first != second).any()


def test_randomized_relu_draws_a_slope_for_each_unit_and_example_and_evaluates_the_mean():
    num, low, high = 50, 0.2, 0.8
    activation = make_activation("randomized_relu", lower=low, upper=high)
    model, params, batch_stats = mlp((num,), num, (num,), activation=activation)
    params = jax.tree.map(lambda w: jnp.eye(num) if w.ndim == 2 else w, params)
    images = -jnp.ones((40, num))
    slopes = -model.apply(params, batch_stats, images, training=True, key=jax.random.key(2)).logits
    assert low <= slopes.min()
    assert slopes.max() <= high
    assert len(np.unique(slopes)) > 1990  # of 2000; float32 draws hardly ever coincide
    # Uniform: variance (high - low)² / 12, over 2000 draws, 5 sigma.
    assert abs(slopes.mean() - 0.5) < 5 * (high - low) / np.sqrt(12 * slopes.size)
    for training in (False, True):
        mean = -model.apply(params, batch_stats, images, training=training).logits
        chex.assert_trees_all_close(mean, 0.5, rtol=1e-6)


DRAW = np.random.default_rng(5)
X = DRAW.normal(size=(6, 4)).astype(np.float32)
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
    options = BlockOptions(activation=make_activation(name, **given), bias_init=0.1)
    model = make_mlp((4,), 3, widths=(5, 3), options=options)
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
    probe = jnp.float32(DRAW.normal(size=(6, 5)))
    plain = model.apply(params, batch_stats, X).pre_activations
    probed = model.apply(params, batch_stats, X, probes={"layers/0": probe}).pre_activations
    chex.assert_trees_all_equal(probed["layers/0"], plain["layers/0"] + probe)
    linear = params["layers"][1]["linear"]
    expected = np.tanh(plain["layers/0"] + probe) @ linear["kernel"] + linear["bias"]
    chex.assert_trees_all_close(probed["layers/1"], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_s_probe_comes_after_the_norm():
    model = make_mlp((4,), 3, widths=(5,), options=BlockOptions(norm="batch"))
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
