"""What is measured is the user's own network: same logits, same gradients, nothing changed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdnn.activations import make_activation
from jaxdnn.diagnosis.adapters import leaf_names, make_network
from jaxdnn.diagnosis.examine import examine
from jaxdnn.diagnosis.graph import make_graph
from jaxdnn.diagnosis.measure import make_pass
from jaxdnn.diagnosis.terms import layer_terms, log_factor
from jaxdnn.diagnosis.trace import trace
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from tests.diagnosis import zoo

PATHS = {
    "mlp": ["first", "layers/0", "layers/1", "layers/2", "head"],
    "cnn": ["conv1", "conv2", "linear"],
    "resnet": [
        "stem",
        "blocks/0/conv1",
        "blocks/0/conv2",
        "blocks/1/conv1",
        "blocks/1/conv2",
        "head",
    ],
    "transformer": [
        "embed",
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/out",
        "up",
        "down",
        "head",
    ],
    "linen_mlp": ["Dense_0", "Dense_1", "Dense_2", "Dense_3"],
    "linen_cnn": ["Conv_0", "Dense_0"],
    "linen_resnet": [
        "Conv_0",
        "LinenBlock_0/Conv_0",
        "LinenBlock_0/Conv_1",
        "LinenBlock_1/Conv_0",
        "LinenBlock_1/Conv_1",
        "Dense_0",
    ],
    "linen_transformer": [
        "Embed_0",
        "MultiHeadDotProductAttention_0/query",
        "MultiHeadDotProductAttention_0/key",
        "MultiHeadDotProductAttention_0/value",
        "MultiHeadDotProductAttention_0/out",
        "Dense_0",
        "Dense_1",
        "Dense_2",
    ],
    "scanned": ["first", "hidden[0]", "hidden[1]", "hidden[2]", "first#2", "head"],
}
# What lies between a layer and the one below, for some layers.
WAYS = {
    ("mlp", "head"): ["activation"],
    ("cnn", "conv2"): ["norm", "activation", "pooling"],
    ("cnn", "linear"): ["dropout", "activation", "pooling"],
    ("resnet", "blocks/0/conv2"): ["norm", "activation"],
    ("resnet", "blocks/1/conv1"): ["norm", "residual", "activation"],
    ("transformer", "attention/value"): ["norm"],
    ("transformer", "down"): ["activation"],
    ("linen_cnn", "Dense_0"): ["norm", "activation", "pooling", "dropout", "shape"],
    ("linen_resnet", "LinenBlock_0/Conv_1"): ["norm", "activation"],
    ("linen_resnet", "LinenBlock_1/Conv_0"): ["norm", "residual", "activation"],
    ("linen_transformer", "MultiHeadDotProductAttention_0/value"): ["norm"],
    ("linen_transformer", "Dense_1"): ["activation"],
    ("scanned", "first#2"): ["activation"],
}


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_logits_and_gradients_are_those_of_the_untouched_model(name):
    make, inputs = zoo.ZOO[name]
    network, key = make_network(make()), jax.random.key(5)
    graph = make_graph(
        trace(network.apply, network.params, inputs, key), leaf_names(network.params)
    )
    raw = make_pass(graph, cross_entropy)(network.params, inputs, zoo.TARGETS, key)
    assert [site.path for site in graph.layers] == PATHS[name]

    def loss(params):
        logits = network.apply(params, inputs, key)
        return cross_entropy(logits, zoo.TARGETS), logits

    grads, logits = jax.grad(loss, has_aux=True)(network.params)
    np.testing.assert_allclose(raw.logits, logits, rtol=2e-5, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(raw.grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for (model, path), kinds in WAYS.items():
        if model == name:
            link = graph.links[PATHS[name].index(path)]
            assert [station.kind for station in link.stations] == kinds


def test_nnx_module_is_left_as_it_was_and_seen_in_training_mode():
    model = zoo.CNN(nnx.Rngs(0))
    model.eval()
    before = jax.tree.map(lambda x: np.array(jax.random.key_data(x)) if is_key(x) else np.array(x),
                          nnx.to_pure_dict(nnx.state(model)))  # fmt: skip
    graphdef = nnx.graphdef(model)
    statistics = examine(model, zoo.IMAGES, zoo.TARGETS).measured
    assert statistics.kept
    assert min(statistics.kept.values()) < 1
    after = jax.tree.map(lambda x: np.array(jax.random.key_data(x)) if is_key(x) else np.array(x),
                         nnx.to_pure_dict(nnx.state(model)))  # fmt: skip
    assert nnx.graphdef(model) == graphdef
    jax.tree.map(np.testing.assert_array_equal, before, after)


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_delta_and_pre_activations_are_those_of_the_probes_in_models():
    unit = BlockOptions(make_activation("tanh"))
    model = make_mlp((4,), 3, widths=(8, 8), unit=unit)
    params, stats = model.init(jax.random.key(0))
    zeros = {path: jnp.zeros((6, width)) for path, width in
             {"layers/0": 8, "layers/1": 8, "head": 3}.items()}  # fmt: skip

    def loss(probes):
        output = model.apply(params, stats, zoo.VECTORS, probes=probes)
        return cross_entropy(output.logits, zoo.TARGETS), output.pre_activations

    deltas, z = jax.grad(loss, has_aux=True)(zeros)
    seen = examine((lambda p, x: model.apply(p, stats, x).logits, params), zoo.VECTORS, zoo.TARGETS)
    assert [site.path for site in seen.graph.layers] == [
        "layers/0/linear",
        "layers/1/linear",
        "head",
    ]
    for index, path in enumerate(zeros):
        site = seen.graph.layers[index]
        expected = np.sqrt(np.mean(np.square(deltas[path], dtype=np.float64)))
        assert seen.measured.delta[site.z] == pytest.approx(expected, rel=1e-5)
        expected = np.sqrt(np.mean(np.square(z[path], dtype=np.float64)))
        assert seen.measured.forward[index].rms == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["cnn", "resnet", "transformer", "linen_resnet", "linen_transformer"]
)
def test_terms_sum_to_the_log_of_the_factor(name):
    make, inputs = zoo.ZOO[name]
    seen = examine(make(), inputs, zoo.TARGETS)
    for index in range(len(seen.graph.layers)):
        terms = layer_terms(seen.graph, seen.measured, index)
        factor = log_factor(seen.graph, seen.measured, index)
        assert sum(terms.values()) == pytest.approx(factor, abs=1e-9)


def test_terms_of_a_wide_network_are_those_of_theory():
    """RMS over at least 12,800 entries of delta; a few per cent."""
    widths = (400, 400, 200, 400, 400)
    params = [
        zoo.normal(i, a, b) * np.sqrt(2 / a) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]

    def apply(params, x):
        for kernel in params[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ params[-1]

    seen = examine((apply, params), zoo.normal(9, 64, 400), jnp.arange(64))
    for layer in (0, 1, 2):
        fan_in, fan_out = widths[layer + 1 : layer + 3]
        terms = layer_terms(seen.graph, seen.measured, layer)
        assert terms["weights"] == pytest.approx(np.log(2 * fan_out / fan_in) / 2, abs=0.02)
        assert terms["activation"] == pytest.approx(-np.log(2) / 2, abs=0.05)
        assert terms["remainder"] == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize(
    ("side", "stride", "padding", "expected"),
    [(4, 1, "SAME", (10 / 12) ** 2), (8, 1, "SAME", (22 / 24) ** 2), (9, 1, "VALID", 1.0)],
)
def test_share_of_taps_inside_the_map(side, stride, padding, expected):
    def apply(kernels, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernels["conv"], (stride, stride), padding, dimension_numbers=dimensions
        )
        return y.mean((1, 2))

    model = (apply, {"conv": zoo.normal(0, 3, 3, 2, 3)})
    seen = examine(model, zoo.normal(1, 6, side, side, 2), zoo.TARGETS)
    assert seen.graph.layers[0].inside == pytest.approx(expected)
    assert seen.graph.layers[0].fan_in == 18
