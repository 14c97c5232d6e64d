"""What is measured is the user's own network: same logits, same gradients, nothing changed."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdnn.activations import make_activation
from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.profile import (
    NUM_SEEDS,
    bands,
    layer_terms,
    log_factor,
    parameter_rows,
    redrawn_deltas,
)
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp

from . import zoo

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


# One network of every kind that a law is about; the others are of the same kinds.
SLOW = {"mlp", "cnn", "resnet", "linen_mlp", "linen_resnet", "linen_transformer"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in zoo.ZOO]


def state_of(model):
    """All arrays of an NNX module, keys as numbers; nothing of other models."""
    if not isinstance(model, nnx.Module):
        return {}

    def copied(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(copied, nnx.to_pure_dict(nnx.state(model)))


class Examined(NamedTuple):
    model: Any
    graphdef: Any
    state: Any
    exam: Exam


@functools.cache
def examined(name):
    """A network of the zoo in training mode, how it was before, and its examination."""
    make, inputs = zoo.ZOO[name]
    model, graphdef = make(), None
    if isinstance(model, nnx.Module):
        graphdef = nnx.graphdef(model)
    state = state_of(model)
    return Examined(model, graphdef, state, examine(model, inputs, zoo.TARGETS, seed=5))


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_those_of_the_untouched_model(name):
    exam = examined(name).exam
    arrays = exam.run_pass(exam.params, exam.inputs, exam.targets, exam.key)

    def loss(params):
        logits = exam.network.apply(params, exam.inputs, exam.key)
        return zoo.cross_entropy(logits, zoo.TARGETS), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(exam.params)
    chex.assert_trees_all_close(arrays.logits, logits, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(arrays.grads, grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_found_and_what_lies_between_them(name):
    graph = examined(name).exam.graph
    assert [layer.path for layer in graph.layers] == PATHS[name]
    for (model, path), kinds in WAYS.items():
        if model == name:
            edge = graph.edges[PATHS[name].index(path)]
            assert edge.kinds == kinds
            assert all(each.above == edge.above for each in edge.segments)
            assert all(each.below == edge.below for each in edge.segments)


def test_nnx_module_is_left_as_it_was_and_seen_in_the_mode_in_which_it_came():
    model, graphdef, state, exam = examined("cnn")
    (kept,) = exam.measured.kept.values()
    assert kept < 1
    assert nnx.graphdef(model) == graphdef
    chex.assert_trees_all_equal(state_of(model), state)


def test_a_model_set_to_evaluation_is_judged_in_evaluation():
    model = zoo.CNN(nnx.Rngs(0))
    model.eval()
    state = state_of(model)
    exam = examine(model, zoo.IMAGES, zoo.TARGETS)
    chex.assert_trees_all_close(exam.outputs, model(zoo.IMAGES), rtol=1e-4, atol=1e-5)
    assert exam.measured.kept == {}
    chex.assert_trees_all_equal(state_of(model), state)
    # In training mode the batch's own averages stand in place of the running ones.
    in_training = exam.network.in_training
    assert in_training is not None
    other = in_training(exam.params, zoo.IMAGES, exam.key)
    assert float(jnp.abs(other - exam.outputs).max()) > 0.1
    assert examined("cnn").exam.network.in_training is None


def test_delta_and_pre_activations_are_those_of_the_probes_in_models():
    options = BlockOptions(make_activation("tanh"))
    model = make_mlp((4,), 3, widths=(8, 8), options=options)
    params, stats = model.init(jax.random.key(0))
    zeros = {path: jnp.zeros((6, width)) for path, width in
             {"layers/0": 8, "layers/1": 8, "head": 3}.items()}  # fmt: skip

    def loss(probes):
        output = model.apply(params, stats, zoo.VECTORS, probes=probes)
        return zoo.cross_entropy(output.logits, zoo.TARGETS), output.pre_activations

    deltas, z = jax.grad(loss, has_aux=True)(zeros)
    exam = examine((lambda p, x: model.apply(p, stats, x).logits, params), zoo.VECTORS, zoo.TARGETS)
    assert [layer.path for layer in exam.graph.layers] == [
        "layers/0/linear",
        "layers/1/linear",
        "head",
    ]
    for index, path in enumerate(zeros):
        layer = exam.graph.layers[index]
        expected = np.sqrt(np.mean(np.square(deltas[path], dtype=np.float64)))
        chex.assert_trees_all_close(exam.measured.delta[layer.z], expected, rtol=1e-5)
        expected = np.sqrt(np.mean(np.square(z[path], dtype=np.float64)))
        chex.assert_trees_all_close(exam.measured.signals[index].rms, expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_terms_sum_to_the_log_of_the_factor(name):
    exam = examined(name).exam
    for index in range(len(exam.graph.layers)):
        terms = layer_terms(exam, index)
        factor = log_factor(exam, index)
        chex.assert_trees_all_close(sum(terms.values()), factor, atol=1e-9, rtol=0)


@pytest.mark.slow
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

    exam = examine((apply, params), zoo.normal(9, 64, 400), jnp.arange(64))
    for layer in (0, 1, 2):
        fan_in, fan_out = widths[layer + 1 : layer + 3]
        terms = layer_terms(exam, layer)
        chex.assert_trees_all_close(
            terms["weights"], np.log(2 * fan_out / fan_in) / 2, atol=0.02, rtol=0
        )
        chex.assert_trees_all_close(terms["activation"], -np.log(2) / 2, atol=0.05, rtol=0)
        chex.assert_trees_all_close(terms["remainder"], 0, atol=0.08, rtol=0)


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
    exam = examine(model, zoo.normal(1, 6, side, side, 2), zoo.TARGETS)
    chex.assert_trees_all_close(exam.graph.layers[0].inside, expected, rtol=1e-6)
    assert exam.graph.layers[0].fan_in == 18


def test_a_band_has_the_scale_of_the_weights_and_shows_what_is_not_chance():
    def examined(change):
        apply, kernels = zoo.deep(phi=lambda z: z)
        kernels[-1] = change(kernels[-1])
        exam = examine((apply, kernels), zoo.DEEP_INPUTS, zoo.DEEP_TARGETS)
        return exam, bands(exam.graph, redrawn_deltas(exam))

    exam, found = examined(lambda kernel: kernel)
    assert len(found) == zoo.DEPTH
    assert NUM_SEEDS > 1
    # A factor of variance 1 / WIDTH around sqrt(2), and 5 standard deviations to either side.
    spread = 5 * math.sqrt(2) / math.sqrt(zoo.WIDTH)
    for band in found[:-1]:
        assert math.sqrt(2) - spread < band.factor[0] < band.factor[1] < math.sqrt(2) + spread
    # The gradient of cross-entropy sums to zero over the classes: equal columns let none through.
    exam, found = examined(lambda kernel: jnp.full_like(kernel, kernel.std()))
    deltas = [exam.measured.delta[layer.z] for layer in exam.graph.layers]
    assert deltas[-2] / deltas[-1] < 1e-3 * found[-2].factor[0]


def test_a_table_of_positions_is_no_bias():
    def apply(params, x):
        h = jnp.einsum("btf,fg->btg", x, params["kernel"]) + params["places"]
        return (jnp.tanh(h + params["bias"])).mean(1) @ params["head"]

    params = {
        "kernel": zoo.normal(1, 4, 8),
        "places": zoo.normal(2, 5, 8),
        "bias": zoo.normal(3, 8),
        "head": zoo.normal(4, 8, 3),
    }
    exam = examine((apply, params), zoo.normal(5, 6, 5, 4), zoo.TARGETS)
    assert [layer.bias for layer in exam.graph.layers] == [None, None]
    roles = {row.path: row.role for row in parameter_rows(exam)}
    assert roles == {"bias": "shift", "head": "kernel", "kernel": "kernel", "places": "table"}


def test_a_running_sum_is_no_activation_and_a_product_without_softmax_no_attention():
    def apply(params, x):
        h = jnp.cumsum(x @ params[0], axis=1) @ params[1]
        h = (h @ h.swapaxes(1, 2)) @ h
        return h.mean(1) @ params[2]

    params = [zoo.normal(1, 4, 8), zoo.normal(2, 8, 8), zoo.normal(3, 8, 3)]
    graph = examine((apply, params), zoo.normal(5, 6, 5, 4), zoo.TARGETS).graph
    found = {(each.kind, each.label) for edge in graph.edges for each in edge.segments}
    assert ("other", "cumsum") in found
    assert not {"activation", "attention"} & {kind for kind, _ in found}


@pytest.mark.parametrize(
    ("groups", "kind"), [(1, "conv"), (2, "grouped conv"), (4, "depthwise conv")]
)
def test_convolutions_are_named_by_their_groups(groups, kind):
    conv = nnx.Conv(4, 8, (3, 3), feature_group_count=groups, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 4))
    (layer,) = examine(conv, images, images.mean() * jnp.ones((4, 6, 6, 8))).graph.layers
    assert layer.kind == kind
    assert layer.fan_in == 9 * 4 / groups
