"""EfficientNet-Lite0 with the ImageNet weights that come with the package.

    model = make_efficientnet_lite0()
    params, batch_stats = load_weights()
    output = model.apply(params, batch_stats, scale_pixels(images))
    output.features, output.logits, dog_logits(output.logits)

A residual network of inverted bottlenecks: a 1x1 convolution widens, a depthwise convolution looks
around, a 1x1 convolution narrows, without an activation. Lite: ReLU6 and no squeeze-and-excitation.

It can be cut where its last blocks begin: `make_lower` is what lies below, for ever as it is, with
its batch norms folded into its kernels; `Upper` what lies above, to be trained.

References:
  EfficientNet: rethinking model scaling for convolutional neural networks (Tan and Le, 2019).
  MobileNetV2: inverted residuals and linear bottlenecks (Sandler et al., 2018), for the block.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open

from jaxdnn.activations import Activation
from jaxdnn.errors import InputError
from jaxdnn.initializers import Draw
from jaxdnn.layers import Block, BlockOptions, ForwardContext, make_dense
from jaxdnn.models import BatchStats, Model, Params, export

IMAGE_SIZE = 227
"""Side of the images, in pixels, at which the package uses it; it takes any other as well."""

NUM_CLASSES = 1000
"""Classes of ImageNet (ILSVRC 2012), in the order of their synsets."""

DOG_CLASSES = slice(151, 269)
"""The 118 breeds of dogs, Chihuahua to Mexican hairless, side by side in that order."""


class _Stage(NamedTuple):
    """Blocks of one width; the first of them strides."""

    window: int
    stride: int
    expansion: int
    width: int
    num_blocks: int


_STEM, _TOP = 32, 1280
_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
NUM_BLOCKS = sum(stage.num_blocks for stage in _STAGES)
"""How many blocks there are, each of three layers (the first has two)."""

NUM_FEATURES = _TOP
"""Entries of the features, means over the image, from which the output is made."""

# Of each block the channels that go in, and the rest.
_BLOCKS = tuple(
    itertools.chain.from_iterable(
        [(num_in, stage)] + [(stage.width, stage._replace(stride=1))] * (stage.num_blocks - 1)
        for num_in, stage in zip([_STEM, *(s.width for s in _STAGES[:-1])], _STAGES, strict=True)
    )
)
_RELU6 = Activation("relu6", jax.nn.relu6, (0.0, 6.0), (0.0, 1.0))
_DROPOUT = 0.2
_PIXEL_MEAN, _PIXEL_SCALE = 127.0, 128.0
_BATCH_NORM_EPSILON = 1e-3

# Parameters and batch norms' statistics of the network or of a part of it.
Weights = tuple[Params, BatchStats]
# The lower part as nested dicts that end in `kernel` and `bias`.
Folded = Any

_LAYERS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "top": ("_conv_head", "_bn1"),
}
_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_TIMM_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_TIMM_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block does not widen, and timm counts and names its layers without that.
_TIMM_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_COUNTER = ".num_batches_tracked"  # PyTorch's, for a momentum that nobody uses.
_SHOWN = 3


class _Convolution(nnx.Module):
    """A convolution of all channels, padded so that the output is ceil(size / stride) wide."""

    def __init__(self, window: int, stride: int, num_in: int, num_out: int, draw: Draw, key: Array):
        self.stride = stride
        self.kernel = nnx.Param(draw(key, (window, window, num_in, num_out), jnp.float32))

    def __call__(self, x: Array) -> Array:
        return _convolve(x, self.kernel[...], self.stride)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    strides, dimensions = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=dimensions)


class _Depthwise(nnx.Module):
    """A convolution of each channel by itself, padded likewise."""

    def __init__(self, window: int, stride: int, channels: int, draw: Draw, key: Array):
        self.stride = stride
        self.kernel = nnx.Param(draw(key, (window, window, 1, channels), jnp.float32))

    def __call__(self, x: Array) -> Array:
        return depthwise(x, self.kernel[...], self.stride)


def depthwise(
    x: Float[Array, "batch height width channel"],
    kernel: Float[Array, "window window 1 channel"],
    stride: int,
) -> Float[Array, "batch out_height out_width channel"]:
    """Convolve each channel with a window of its own, zero-padded to ceil(size / stride).

    Where the padding is odd, the smaller half comes first, as in TensorFlow's "SAME".

    Written as one multiplication and addition for each place of the window because XLA's CPU
    backend takes 4 to 15 times as long for a grouped convolution (at this network's sizes).
    """
    window = kernel.shape[0]
    pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (-(-side // stride) for side in x.shape[1:3])
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    terms = (
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j]
        for i, j in itertools.product(range(window), repeat=2)
    )
    return functools.reduce(jnp.add, terms)


class _Bottleneck(nnx.Module):
    """Widen by a factor, look around, narrow; plus the input where it has the output's shape."""

    def __init__(self, path: str, num_in: int, stage: _Stage, options: BlockOptions, key: Array):
        window, stride, expansion, width, _ = stage
        keys = jax.random.split(key, 3)
        wide = num_in * expansion
        self.expand = (
            None if expansion == 1 else _pointwise(f"{path}/expand", num_in, wide, options, keys[0])
        )
        linear = _Depthwise(window, stride, wide, options.kernel_init, keys[1])
        self.depthwise = Block(f"{path}/depthwise", linear, wide, options, activation=_RELU6)
        self.project = _pointwise(f"{path}/project", wide, width, options, keys[2], None)
        self.is_residual = stride == 1 and num_in == width

    def __call__(self, x: Array, forward: ForwardContext) -> Array:
        y = x if self.expand is None else self.expand(x, forward)
        y = self.project(self.depthwise(y, forward), forward)
        return x + y if self.is_residual else y


def _pointwise(
    path: str,
    num_in: int,
    num_out: int,
    options: BlockOptions,
    key: Array,
    activation: Activation | None = _RELU6,
) -> Block:
    """Make a 1x1 convolution: a dense layer at every place."""
    linear = make_dense(num_in, num_out, options, key, bias=False)
    return Block(path, linear, num_out, options, activation=activation)


class _EfficientNetLite0(nnx.Module):
    """`stem`, `blocks/0` to `blocks/15`, `top`, a mean over the image, a dense `head`."""

    def __init__(self, num_outputs: int, key: Array):
        options = _block_options()
        stem_key, top_key, head_key, *keys = jax.random.split(key, 3 + NUM_BLOCKS)
        stem = _Convolution(3, 2, 3, _STEM, options.kernel_init, stem_key)
        self.stem = Block("stem", stem, _STEM, options, activation=_RELU6)
        self.blocks = nnx.List(
            _Bottleneck(f"blocks/{index}", num_in, stage, options, block_key)
            for index, ((num_in, stage), block_key) in enumerate(zip(_BLOCKS, keys, strict=True))
        )
        self.top = _pointwise("top", _STAGES[-1].width, _TOP, options, top_key)
        self.head = make_dense(_TOP, num_outputs, options, head_key, bias=True)

    def __call__(self, images: Array, forward: ForwardContext) -> tuple[Array, Array]:
        x = self.stem(_three_channels(images), forward)
        for block in self.blocks:
            x = block(x, forward)
        features = self.top(x, forward).mean((1, 2))
        key = forward.next_key()
        kept = nnx.Dropout(_DROPOUT, deterministic=key is None)(features, rngs=key)
        return features, forward.record("head", self.head(kept))


def _block_options() -> BlockOptions:
    return BlockOptions(
        _RELU6, norm="batch", norm_momentum=0.99, batch_norm_epsilon=_BATCH_NORM_EPSILON
    )


class Upper(nnx.Module):
    """The last blocks and the layer on top, from the activation below them to the features.

    Its batch norms keep to ImageNet's running averages, in training as well: a batch of one's own
    images is small, and what lies below it was made for these.
    """

    def __init__(self, path: str, num_blocks: int, key: Array):
        """Make them, with weights yet to come.

        Args:
          path: of this module in the network that it is part of.
          num_blocks: 1 to 16.
          key: for the weights.
        """
        options = _block_options()
        top_key, *keys = jax.random.split(key, num_blocks + 1)
        first = NUM_BLOCKS - num_blocks
        self.blocks = nnx.Dict(
            {
                str(index): _Bottleneck(f"{path}/blocks/{index}", *_BLOCKS[index], options, own)
                for index, own in enumerate(keys, first)
            }
        )
        self.top = _pointwise(f"{path}/top", _STAGES[-1].width, _TOP, options, top_key)

    def __call__(self, x: Array, forward: ForwardContext) -> Array:
        """Return features (batch, 1280) of an activation (batch, height, width, channel)."""
        forward = dataclasses.replace(forward, training=False)
        for index in sorted(self.blocks, key=int):
            x = self.blocks[index](x, forward)
        return self.top(x, forward).mean((1, 2))


def upper_weights(variables: Weights, num_blocks: int) -> Weights:
    """Take the weights of `Upper` out of the whole network's."""

    def of(tree: Any) -> Any:
        indices = range(NUM_BLOCKS - num_blocks, NUM_BLOCKS)
        return {"blocks": {str(i): tree["blocks"][i] for i in indices}, "top": tree["top"]}

    params, batch_stats = variables
    return of(params), of(batch_stats)


def num_frozen(num_blocks: int) -> int:
    """Return how many parameters lie below the cut, `num_blocks` being above it."""
    params, _ = jax.eval_shape(make_efficientnet_lite0().init, jax.random.key(0))
    below = [params["stem"], [params["blocks"][i] for i in range(NUM_BLOCKS - num_blocks)]]
    below += [] if num_blocks else [params["top"]]
    return sum(leaf.size for leaf in jax.tree.leaves(below))


def cut_shape(num_blocks: int, height: int, width: int) -> tuple[int, ...]:
    """Return the shape of what `make_lower` gives for one image.

    Args:
      num_blocks: above the cut; 0 for the features.
      height: of the image, in pixels.
      width: likewise.
    """
    if num_blocks == 0:
        return (NUM_FEATURES,)
    below = _BLOCKS[: NUM_BLOCKS - num_blocks]
    for stride in (2, *(stage.stride for _, stage in below)):
        height, width = -(-height // stride), -(-width // stride)
    return height, width, below[-1][1].width if below else _STEM


def make_lower(num_blocks: int) -> Callable[[Folded, Array], Array]:
    """Return `(folded weights, scaled images) -> activation at the cut`.

    Args:
      num_blocks: above the cut; 0 for all up to the features.
    """

    def lower(folded: Folded, images: Array) -> Array:
        stem = folded["stem"]
        kernel = stem["kernel"]
        # The three channels of a grey image are one, seen by the sum of their kernels.
        kernel = kernel.sum(2, keepdims=True) if images.shape[-1] == 1 else kernel
        x = jax.nn.relu6(_convolve(_checked(images), kernel, 2) + stem["bias"])
        for index, (num_in, stage) in enumerate(_BLOCKS[: NUM_BLOCKS - num_blocks]):
            x = _folded_block(folded["blocks"][index], x, num_in, stage)
        if num_blocks:
            return x
        top = folded["top"]
        return jax.nn.relu6(x @ top["kernel"] + top["bias"]).mean((1, 2))

    return lower


def _folded_block(layers: Folded, x: Array, num_in: int, stage: _Stage) -> Array:
    y = x
    if "expand" in layers:
        y = jax.nn.relu6(y @ layers["expand"]["kernel"] + layers["expand"]["bias"])
    around = layers["depthwise"]
    y = jax.nn.relu6(depthwise(y, around["kernel"], stage.stride) + around["bias"])
    y = y @ layers["project"]["kernel"] + layers["project"]["bias"]
    return x + y if stage.stride == 1 and num_in == stage.width else y


def fold_norms(variables: Weights) -> Folded:
    """Return kernel and bias of every layer, its batch norm's running averages multiplied in."""
    params, batch_stats = variables

    def of(layer: Any, stats: Any) -> Any:
        if "norm" not in layer:
            return {name: of(inner, stats[name]) for name, inner in layer.items()}
        mean, var = stats["norm"]["mean"], stats["norm"]["var"]
        factor = layer["norm"]["scale"] / jnp.sqrt(var + _BATCH_NORM_EPSILON)
        return {
            "kernel": layer["linear"]["kernel"] * factor,
            "bias": layer["norm"]["bias"] - mean * factor,
        }

    return {name: of(params[name], batch_stats[name]) for name in ("stem", "blocks", "top")}


def classify(variables: Weights, features: Float[Array, "batch 1280"]) -> Array:
    """Return ImageNet's logits (batch, 1000), `variables` being those of the whole network."""
    head = variables[0]["head"]
    return features @ head["kernel"] + head["bias"]


def _checked(images: Array) -> Array:
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"EfficientNet-Lite0 got images of shape {images.shape}; expected (batch, height, "
            "width, channel) with 1 channel (grey) or 3; decode them to one of these"
        )
    return images


def _three_channels(images: Array) -> Array:
    return jnp.broadcast_to(_checked(images), (*images.shape[:-1], 3))


# Tracing 49 layers takes most of a second; what is made twice is the same.
@functools.cache
def make_efficientnet_lite0(num_outputs: int = NUM_CLASSES) -> Model:
    """Make the network: images of any size, grey (used as three equal channels) or RGB.

    Its `Output.features` are (batch, 1280).

    Args:
      num_outputs: k >= 2 softmax units, or 1 sigmoid unit.
    """
    return export(lambda key: _EfficientNetLite0(num_outputs, key))


def scale_pixels(
    images: UInt8[Array, "batch height width channel"],
) -> Float[Array, "batch height width channel"]:
    """Return (x - 127) / 128, what the weights were trained with."""
    return (images.astype(jnp.float32) - _PIXEL_MEAN) / _PIXEL_SCALE


def dog_logits(logits: Float[Array, "batch 1000"]) -> Float[Array, "batch 2"]:
    """Return logits of (other, dog); their softmax is ImageNet's, summed over all else and dogs."""
    log_sum = jax.nn.logsumexp
    others = jnp.delete(logits, DOG_CLASSES, axis=-1, assume_unique_indices=True)
    return jnp.stack([log_sum(others, -1), log_sum(logits[..., DOG_CLASSES], -1)], -1)


def load_weights(path: Path | None = None) -> tuple[Params, BatchStats]:
    """Read ImageNet's weights of the network with 1000 outputs, as float32.

    Args:
      path: a .safetensors file in float32 or float16 with PyTorch's axes and the names of either
        `efficientnet_lite_pytorch` (`_blocks.0._depthwise_conv.weight`) or timm
        (`blocks.0.0.conv_dw.weight`); None for the weights in the package. Of timm's two networks
        of these names it is `tf_efficientnet_lite0` that pads and normalises as this one.

    Raises:
      InputError: the file cannot be read, is cut short, or holds another architecture.
    """
    if path is not None:
        return _read(path)
    name = "data/efficientnet_lite0/efficientnet_lite0.safetensors"
    with resources.as_file(resources.files("jaxdnn").joinpath(name)) as embedded:
        return _read(embedded)


def _read(path: Path) -> tuple[Params, BatchStats]:
    shapes = jax.eval_shape(make_efficientnet_lite0().init, jax.random.key(0))
    places, structure = jax.tree_util.tree_flatten_with_path(shapes)
    wanted = {_tensor_name(place): leaf.shape for place, leaf in places}
    try:
        with safe_open(path, "np") as file:
            if "conv_stem.weight" in file.keys():  # noqa: SIM118 - it is no dict
                wanted = {_timm_name(name): shape for name, shape in wanted.items()}
            _check(path, file, wanted)
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason}); expected a whole .safetensors file; copy it again"
        ) from error
    if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise InputError(
            f"{path} is damaged ({broken[0]} is not finite everywhere); expected the trained "
            "weights; copy it again"
        )
    leaves = [_converted(tensors[name], shape) for name, shape in wanted.items()]
    return jax.tree.unflatten(structure, leaves)


def _tensor_name(place: tuple[Any, ...]) -> str:
    """(0, blocks, 0, expand, linear, kernel) -> _blocks.0._expand_conv.weight."""
    *above, leaf = (entry.key for entry in place[1:])
    if above == ["head"]:
        return "_fc.weight" if leaf == "kernel" else "_fc.bias"
    *block, layer, part = above
    prefix = f"_blocks.{block[1]}." if block else ""
    convolution, norm = _LAYERS[layer]
    return prefix + (f"{convolution}.weight" if part == "linear" else f"{norm}.{_LEAVES[leaf]}")


def _timm_name(name: str) -> str:
    """_blocks.1._expand_conv.weight -> blocks.1.0.conv_pw.weight."""
    if not name.startswith("_blocks"):
        layer, leaf = name.split(".")
        return f"{_TIMM_OUTER[layer]}.{leaf}"
    _, index, layer, leaf = name.split(".")
    ends = list(itertools.accumulate(stage.num_blocks for stage in _STAGES))
    stage = bisect.bisect(ends, int(index))
    within = int(index) - (ends[stage] - _STAGES[stage].num_blocks)
    names = _TIMM_LAYERS if stage else _TIMM_FIRST
    return f"blocks.{stage}.{within}.{names[layer]}.{leaf}"


def _check(path: Path, file: Any, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names, shapes and types before anything is read."""
    names = {name for name in file.keys() if not name.endswith(_COUNTER)}  # noqa: SIM118
    wrong = [f"no {name}" for name in wanted if name not in names]
    wrong += [f"{name} besides" for name in sorted(names - wanted.keys())]
    for name in names & wanted.keys():
        tensor = file.get_slice(name)
        found, expected = tuple(tensor.get_shape()), _stored_shape(name, wanted[name])
        if found != expected:
            wrong.append(f"{name} is {found}, not {expected}")
        elif tensor.get_dtype() not in ("F16", "F32"):
            wrong.append(f"{name} is {tensor.get_dtype()}, not F16 or F32")
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(
            f"{path} holds another network ({', '.join(sorted(wrong)[:_SHOWN])}{more}); expected "
            f"the {len(wanted)} tensors of EfficientNet-Lite0; leave the path out for the package's"
        )


def _stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return PyTorch's shape, (out, in / groups, height, width), of an array of ours."""
    if len(shape) == 4:
        height, width, num_in, num_out = shape
        return num_out, num_in, height, width
    is_pointwise = len(shape) == 2 and not name.startswith(("_fc", "classifier"))
    return (*shape[::-1], 1, 1) if is_pointwise else shape[::-1]


def _converted(tensor: np.ndarray, shape: tuple[int, ...]) -> Array:
    """Move PyTorch's axes to ours."""
    if len(shape) == 4:
        return jnp.asarray(tensor.transpose(2, 3, 1, 0), jnp.float32)
    return jnp.asarray(tensor.reshape(shape[::-1]).T, jnp.float32)
