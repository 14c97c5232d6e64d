"""A network as ONNX says what JAX says, for any number of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import backbone
from jaxdnn.activations import ACTIVATIONS
from jaxdnn.errors import InputError
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import probabilities
from jaxdnn.models import make_convnet, make_mlp
from jaxdnn.training.onnx_graph import to_onnx

runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
RNG = np.random.default_rng(0)


def check_same(function, shape, rtol=1e-5):
    model = to_onnx(function, shape, jnp.uint8, names=("x", "y"))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for num in (1, 3):
        images = RNG.integers(0, 256, (num, *shape), np.uint8)
        (found,) = session.run(None, {"x": images})
        expected = np.asarray(jax.jit(function)(images))
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5)


def whole(model, variables):
    def function(images):
        scaled = images.astype(jnp.float32) / 128 - 1
        return probabilities(model.apply(*variables, scaled).logits)

    return function


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation(name):
    options = BlockOptions(activation=ACTIVATIONS[name](), norm="layer")
    model = make_mlp((3, 3, 1), 2, widths=(8, 8), options=options)
    check_same(whole(model, model.init(jax.random.key(0))), (3, 3, 1))


@pytest.mark.parametrize(("size", "outputs"), [(8, 1), (7, 3)])
def test_convolutions_of_even_and_odd_size(size, outputs):
    model = make_convnet(
        (size, size, 3), outputs, widths=(4, 8), options=BlockOptions(norm="batch")
    )
    check_same(whole(model, model.init(jax.random.key(0))), (size, size, 3))


@pytest.mark.slow
def test_the_pretrained_network_and_its_dogs():
    model, variables = backbone.make_efficientnet_lite0(), backbone.load_weights()

    def function(images):
        logits = model.apply(*variables, backbone.scale_pixels(images)).logits
        return probabilities(backbone.dog_logits(logits))

    check_same(function, (64, 64, 3), rtol=1e-4)


def test_an_operation_that_is_not_known_is_named():
    with pytest.raises(InputError, match="operation cumsum"):
        to_onnx(lambda x: jnp.cumsum(x, axis=1), (4,), jnp.float32, names=("x", "y"))
