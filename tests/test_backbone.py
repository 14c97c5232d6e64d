"""EfficientNet-Lite0: the plain formula on PyTorch's tensors, the reference, and bad weights."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.numpy import load_file, save_file

from jaxdnn import backbone
from jaxdnn.errors import InputError
from jaxdnn.training import load_pretrained_predictor

RNG = np.random.default_rng(0)
FOLDER = Path(backbone.__file__).parent / "data" / "efficientnet_lite0"
FILE = FOLDER / "efficientnet_lite0.safetensors"
# Window, stride and whether input and output are added, of blocks 0 to 15.
BLOCKS = [
    *[(3, 1, False), (3, 2, False), (3, 1, True), (5, 2, False), (5, 1, True), (3, 2, False)],
    *[(3, 1, True), (3, 1, True), (5, 1, False), (5, 1, True), (5, 1, True), (5, 2, False)],
    *[(5, 1, True), (5, 1, True), (5, 1, True), (3, 1, False)],
]


@pytest.fixture(scope="module")
def tensors():
    return load_file(FILE)


@pytest.fixture(scope="module")
def apply():
    """`(images, **options) -> Output`, with the weights of the package."""
    model, variables = backbone.make_efficientnet_lite0(), backbone.load_weights()
    compiled = jax.jit(model.apply, static_argnames="training")
    return lambda images, **options: compiled(*variables, images, **options)


def convolve(x, kernel, stride, groups=1):
    """Channels first, padded as TensorFlow does, by the formula of the data's README."""
    pads = []
    for side, window in zip(x.shape[2:], kernel.shape[2:], strict=True):
        total = max((-(-side // stride) - 1) * stride + window - side, 0)
        pads.append((total // 2, total - total // 2))
    kernel = jnp.asarray(kernel, jnp.float32)
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, feature_group_count=groups)


def plain(tensors, images):
    """Features and logits straight from PyTorch's tensors."""

    def layer(x, convolution, norm, stride=1, groups=1):
        x = convolve(x, tensors[f"{convolution}.weight"], stride, groups)
        scale, shift, mean, var = (
            tensors[f"{norm}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-3) * scale + shift

    def relu6(x):
        return jnp.clip(x, 0, 6)

    x = relu6(layer(jnp.asarray(images).transpose(0, 3, 1, 2), "_conv_stem", "_bn0", 2))
    for index, (window, stride, adds) in enumerate(BLOCKS):
        name = f"_blocks.{index}"
        assert tensors[f"{name}._depthwise_conv.weight"].shape[2:] == (window, window)
        y = relu6(layer(x, f"{name}._expand_conv", f"{name}._bn0")) if index else x
        groups = y.shape[1]
        y = relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if adds else y
    features = relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    return features, features @ tensors["_fc.weight"].T.astype(np.float32) + tensors["_fc.bias"]


def assert_close(actual, expected, rtol=1e-4):
    """To a relative error, or one relative to the root mean square where an entry is small."""
    scale = float(np.sqrt(np.mean(np.square(expected))))
    chex.assert_trees_all_close(
        np.asarray(actual), np.asarray(expected), rtol=rtol, atol=rtol * scale
    )


def random_images(height, width, channels=3, num=2):
    return RNG.normal(size=(num, height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("size", [pytest.param((32, 32), marks=pytest.mark.slow), (45, 38)])
def test_it_is_the_plain_formula_on_the_tensors_of_the_file(tensors, apply, size):
    images = random_images(*size)
    output, (features, logits) = apply(images), plain(tensors, images)
    chex.assert_shape([output.features, output.logits], [(2, 1280), (2, 1000)])
    assert_close(output.features, features)
    assert_close(output.logits, logits)


@pytest.mark.shared_data
def test_features_and_logits_are_those_of_the_reference(shared_data, apply):
    with np.load(shared_data / "data" / "efficientnet_lite0_reference.npz") as reference:
        pixels, features, logits = (reference[key] for key in ("pixels", "features", "logits"))
    output = apply(backbone.scale_pixels(pixels))
    assert_close(output.features, features)
    assert_close(output.logits, logits)
    dog = load_pretrained_predictor().predict(pixels)[:, 1]
    assert (dog > 0.5).tolist() == [True] * 4 + [False] * 4


def test_grey_images_are_three_equal_channels(apply):
    grey = random_images(32, 32, channels=1)
    grey_output, colour = apply(grey), apply(np.repeat(grey, 3, -1))
    assert_close(grey_output.features, colour.features, 1e-5)
    assert_close(grey_output.logits, colour.logits, 1e-5)


def test_other_channels_are_refused():
    model = backbone.make_efficientnet_lite0()
    images = jnp.zeros((1, 32, 32, 4))
    with pytest.raises(InputError, match=r"\(1, 32, 32, 4\); expected .* 1 channel"):
        jax.eval_shape(lambda key: model.apply(*model.init(key), images), jax.random.key(0))


@pytest.mark.slow
def test_training_moves_the_averages_and_only_a_key_drops_features(apply):
    images, (_, batch_stats) = random_images(32, 32), backbone.load_weights()
    resting, dropped = apply(images), apply(images, key=jax.random.key(0))
    chex.assert_trees_all_equal(resting.batch_stats, batch_stats)
    assert_close(dropped.features, resting.features, 1e-5)
    assert float(jnp.abs(dropped.logits - resting.logits).max()) > 0.1
    moved = apply(images, training=True).batch_stats
    change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), moved, batch_stats)
    assert all(float(leaf) > 0 for leaf in jax.tree.leaves(change))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("size", [(8, 7), (1, 2)])
def test_depthwise_is_a_grouped_convolution_and_so_is_its_gradient(size, window, stride):
    x = random_images(*size, channels=6)
    kernel = RNG.normal(size=(window, window, 1, 6)).astype(np.float32)

    def grouped(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", dimension_numbers=dimensions, feature_group_count=6
        )

    ours, back = jax.vjp(lambda x, kernel: backbone.depthwise(x, kernel, stride), x, kernel)
    expected, expected_back = jax.vjp(grouped, x, kernel)
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)
    grad = RNG.normal(size=ours.shape).astype(np.float32)
    chex.assert_trees_all_close(back(grad), expected_back(grad), rtol=1e-5, atol=1e-5)


def test_the_probability_of_a_dog_is_the_sum_over_breeds():
    logits = jnp.float32(RNG.normal(size=(4, 1000)))
    probabilities = jax.nn.softmax(backbone.dog_logits(logits))
    breeds = jax.nn.softmax(logits)[:, 151:269]
    assert breeds.shape == (4, 118)
    chex.assert_trees_all_close(probabilities[:, 1], breeds.sum(-1), rtol=1e-5)
    chex.assert_trees_all_close(probabilities.sum(-1), jnp.ones(4), rtol=1e-5)


def without(tensors):
    del tensors["_conv_stem.weight"]


def widened(tensors):
    tensors["_fc.weight"] = np.zeros((10, 1280), np.float32)


def added(tensors):
    tensors["_blocks.16._bn0.bias"] = np.zeros(4, np.float32)


def counted(tensors):
    tensors["_fc.bias"] = np.zeros(1000, np.int32)


def infinite(tensors):
    tensors["_bn1.running_var"][3] = np.inf


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, r"another network \(no _conv_stem.weight\); expected the 247"),
        (widened, r"_fc.weight is \(10, 1280\), not \(1000, 1280\)"),
        (added, r"_blocks.16._bn0.bias besides"),
        (counted, r"_fc.bias is I32, not F16 or F32"),
        (infinite, r"damaged \(_bn1.running_var is not finite"),
        (dict.clear, r"no _blocks.0.* and 244 more"),
    ],
)
def test_weights_of_another_network_are_refused(tensors, tmp_path, change, said):
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    change(changed)
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=said) as raised:
        backbone.load_weights(tmp_path / "other.safetensors")
    assert "\n" not in str(raised.value)


def timm_names(tensors):
    """The same tensors by timm's names, written out by its `efficientnet_lite0`."""
    blocks = [f"{s}.{b}" for s, num in enumerate((1, 2, 2, 3, 3, 4, 1)) for b in range(num)]
    layers = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    layers |= {f"_bn{i}": f"bn{i + 1}" for i in range(3)}
    first = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    named = {}
    for name, tensor in tensors.items():
        *block, layer, leaf = name.split(".")
        if block:
            known = first if block[1] == "0" else layers
            named[f"blocks.{blocks[int(block[1])]}.{known[layer]}.{leaf}"] = tensor
        else:
            named[f"{(outer | {'_fc': 'classifier'})[layer]}.{leaf}"] = tensor
    return named


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_timms_names_are_matched(tensors, tmp_path, dtype):
    named = {name: tensor.astype(dtype) for name, tensor in timm_names(tensors).items()}
    assert len(named) == len(tensors)
    named["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(named, tmp_path / "timm.safetensors")
    chex.assert_trees_all_close(
        backbone.load_weights(tmp_path / "timm.safetensors"),
        backbone.load_weights(),
        rtol=2e-3,
        atol=1e-6,
    )
    del named["blocks.6.0.bn3.bias"]
    save_file(named, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"another network \(no blocks.6.0.bn3.bias\)"):
        backbone.load_weights(tmp_path / "less.safetensors")


@pytest.mark.parametrize("num_bytes", [0, 5, 1000, 1_000_000])
def test_a_truncated_file_is_refused(tmp_path, num_bytes):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(FILE.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=r"cut.safetensors cannot be read \(.*copy it again") as it:
        backbone.load_weights(path)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize("name", [".", "missing.safetensors"])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        backbone.load_weights(tmp_path / name)
