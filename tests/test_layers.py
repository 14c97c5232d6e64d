"""Convolution, its written-out gradient and the reshaping of images: NumPy and autodiff agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdnn.activations import make_activation
from jaxdnn.initializers import fans
from jaxdnn.layers import BlockOptions, convolve, mean_pool, space_to_depth
from jaxdnn.losses import cross_entropy
from jaxdnn.models import make_convnet

RNG = np.random.default_rng(0)
each_window = pytest.mark.parametrize("window", [1, 3, 5])


def operands(window):
    x, kernel = RNG.normal(size=(2, 6, 5, 3)), RNG.normal(size=(window, window, 3, 4))
    return jnp.float32(x), jnp.float32(kernel)


@each_window
def test_convolution_is_a_sum_over_its_window(window):
    x, kernel = operands(window)
    pad = window // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((2, 6, 5, 4))
    for row, column in np.ndindex(window, window):
        shifted = padded[:, row : row + 6, column : column + 5]
        expected += shifted @ np.asarray(kernel)[row, column]
    chex.assert_trees_all_close(convolve(x, kernel), expected, rtol=1e-4, atol=1e-5)


@each_window
def test_the_written_out_gradient_is_the_automatic_one(window):
    x, kernel = operands(window)
    upstream = jnp.float32(RNG.normal(size=(2, 6, 5, 4)))

    def automatic(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    ours, theirs = (
        jax.jit(lambda x, kernel, f=f: jax.vjp(f, x, kernel)[1](upstream))(x, kernel)
        for f in (convolve, automatic)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pooling_takes_means_of_squares_edges_repeated():
    x = jnp.float32(RNG.normal(size=(2, 5, 6, 3)))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge")
    corners = [padded[:, row::2, column::2] for row, column in np.ndindex(2, 2)]
    chex.assert_trees_all_close(mean_pool(x), sum(corners) / 4, rtol=1e-5, atol=1e-6)


def test_squares_become_channels_and_nothing_is_lost():
    x = jnp.float32(RNG.normal(size=(2, 4, 6, 3)))
    deep = space_to_depth(x, 2)
    chex.assert_shape(deep, (2, 2, 3, 12))
    for row, column in np.ndindex(2, 3):
        square = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        chex.assert_trees_all_equal(deep[:, row, column], square.reshape(2, -1))
    chex.assert_trees_all_equal(space_to_depth(x, 1), x)


@pytest.mark.parametrize("norm", [pytest.param("none", marks=pytest.mark.slow), "batch"])
def test_convnet(norm):
    options = BlockOptions(activation=make_activation("tanh"), norm=norm)  # smooth
    model = make_convnet((8, 6, 1), 3, widths=(4, 5), blocks=1, stem=2, options=options)
    params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    images = jnp.float32(RNG.normal(size=(7, 8, 6, 1)))
    labels = jnp.arange(7) % 3
    shapes = {
        **{f"stages/0/{layer}": (7, 4, 3, 4) for layer in ("widen", "blocks/0/first")},
        **{f"stages/1/{layer}": (7, 2, 2, 5) for layer in ("widen", "blocks/0/first")},
        "stages/0/blocks/0/second": (7, 4, 3, 4),
        "stages/1/blocks/0/second": (7, 2, 2, 5),
        "head": (7, 3),
    }
    assert ("bias" in params["stages"][0]["widen"]["linear"]) == (norm == "none")
    assert fans(params["stages"][1]["widen"]["linear"]["kernel"].shape) == (36, 45)

    def loss(probes):
        output = model.apply(params, batch_stats, images, training=True, probes=probes)
        return cross_entropy(output.logits, labels).mean(), (
            output.pre_activations,
            output.features,
        )

    probes = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    # One program gives the losses too.
    examine = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (pre_activations, features)), gradients = examine(probes)
    ended = features @ params["head"]["kernel"] + params["head"]["bias"]
    chex.assert_trees_all_close(pre_activations["head"], ended, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(pre_activations, probes)
    for path in shapes:
        # Two routes: the directional derivative, and central differences with float32's accuracy.
        direction = jnp.float32(RNG.normal(size=shapes[path]))
        direction = 1e-2 * direction / jnp.linalg.norm(direction)
        ahead, behind = (examine({**probes, path: s * direction})[0][0] for s in (1.0, -1.0))
        slope = jnp.vdot(gradients[path], direction)
        assert float(ahead - behind) / 2 == pytest.approx(float(slope), rel=2e-2, abs=2e-6)
