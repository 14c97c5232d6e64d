"""Networks as Flax NNX modules, exported as two pure functions.

    model = make_mlp((28, 28, 1), num_outputs=2, widths=(512,), options=BlockOptions(norm="batch"))
    params, batch_stats = model.init(key)
    output = model.apply(params, batch_stats, images, training=True, key=key)
    output.logits, output.features, output.batch_stats, output.pre_activations

`apply` returns the pre-activation of every layer by its path, and adds to it a probe where one is
given: the gradient of the loss with respect to a probe of zeros is delta = dL/dz, the signal that
vanishes or explodes. What nobody uses is compiled away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array

from jaxdnn.layers import (
    Block,
    BlockOptions,
    Conv3x3,
    ForwardContext,
    make_dense,
    mean_pool,
    space_to_depth,
)

Params = Any
BatchStats = Any


class Output(NamedTuple):
    """What a network returns.

    Attributes:
      logits: (batch, output).
      features: (batch, feature), what the dense layer that ends the network makes logits of.
      batch_stats: running averages of the batch norms, moved by one step if `training`.
      pre_activations: path of each layer -> its z.
    """

    logits: Array
    features: Array
    batch_stats: BatchStats
    pre_activations: dict[str, Array]


class Model(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `key -> (params, batch_stats)`, nested dicts of float32 arrays.
      apply: `(params, batch_stats, images, *, training=False, key=None, probes=None) -> Output`.
        Images are (batch, height, width, channel) or (batch, feature). `training` normalises with
        the batch's own statistics. Dropout and random slopes act only where a `key` is given.
        `probes` maps paths to arrays that are added to pre-activations.
    """

    init: Callable[[Array], tuple[Params, BatchStats]]
    apply: Callable[..., Output]


class _MLP(nnx.Module):
    """Dense hidden layers `layers/0`, `layers/1`, ... and a dense `head`."""

    def __init__(
        self,
        num_inputs: int,
        widths: Sequence[int],
        num_outputs: int,
        options: BlockOptions,
        key: Array,
    ):
        sizes = [num_inputs, *widths]
        *keys, head_key = jax.random.split(key, len(sizes))
        bias = options.norm != "batch"
        self.layers = nnx.List(
            Block(
                f"layers/{index}",
                make_dense(num_in, num_out, options, layer_key, bias),
                num_out,
                options,
                activation=options.activation,
            )
            for index, (num_in, num_out, layer_key) in enumerate(
                zip(sizes[:-1], sizes[1:], keys, strict=True)
            )
        )
        self.head = make_dense(sizes[-1], num_outputs, options, head_key, bias=True)

    def __call__(self, images: Array, forward: ForwardContext) -> tuple[Array, Array]:
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers:
            x = layer(x, forward)
        return x, forward.record("head", self.head(x))


def make_mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    widths: Sequence[int],
    options: BlockOptions | None = None,
) -> Model:
    """Make a multi-layer perceptron.

    Args:
      input_shape: (height, width, channel) or (feature,) of one example; flattened, row by row.
      num_outputs: k >= 2 softmax units, or 1 sigmoid unit.
      widths: units of each hidden layer, from the input on; may be empty.
      options: norm, activation, initializers and dropout of all hidden layers; None for the
        defaults of `BlockOptions`.
    """
    size, filled = math.prod(input_shape), options or BlockOptions()
    return export(lambda key: _MLP(size, widths, num_outputs, filled, key))


class _Residual(nnx.Module):
    """x + second(first(x))."""

    def __init__(self, path: str, width: int, options: BlockOptions, key: Array):
        first_key, second_key = jax.random.split(key)
        self.first = _conv_block(f"{path}/first", width, width, options, first_key)
        self.second = _conv_block(f"{path}/second", width, width, options, second_key)

    def __call__(self, x: Array, forward: ForwardContext) -> Array:
        return x + self.second(self.first(x, forward), forward)


class _Stage(nnx.Module):
    """A layer that widens, then residual blocks, all at one resolution."""

    def __init__(
        self, path: str, num_in: int, width: int, blocks: int, options: BlockOptions, key: Array
    ):
        key, *block_keys = jax.random.split(key, blocks + 1)
        self.widen = _conv_block(f"{path}/widen", num_in, width, options, key)
        self.blocks = nnx.List(
            _Residual(f"{path}/blocks/{index}", width, options, block_key)
            for index, block_key in enumerate(block_keys)
        )

    def __call__(self, x: Array, forward: ForwardContext) -> Array:
        x = self.widen(x, forward)
        for block in self.blocks:
            x = block(x, forward)
        return x


def _conv_block(path: str, num_in: int, width: int, options: BlockOptions, key: Array) -> Block:
    """Make a hidden convolution layer."""
    conv = Conv3x3(num_in, width, options, key, bias=options.norm != "batch")
    return Block(path, conv, width, options, activation=options.activation)


class _ConvNet(nnx.Module):
    """Squares of pixels, stages with mean pooling between, a mean over the image, a dense head."""

    def __init__(
        self,
        channels: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        num_outputs: int,
        options: BlockOptions,
        key: Array,
    ):
        self.stem = stem
        *keys, head_key = jax.random.split(key, len(widths) + 1)
        inputs = [channels * stem**2, *widths[:-1]]
        self.stages = nnx.List(
            _Stage(f"stages/{index}", num_in, width, blocks, options, stage_key)
            for index, (num_in, width, stage_key) in enumerate(
                zip(inputs, widths, keys, strict=True)
            )
        )
        self.head = make_dense(widths[-1], num_outputs, options, head_key, bias=True)

    def __call__(self, images: Array, forward: ForwardContext) -> tuple[Array, Array]:
        x = space_to_depth(images, self.stem)
        for index, stage in enumerate(self.stages):
            x = stage(mean_pool(x) if index else x, forward)
        features = x.mean((1, 2))
        return features, forward.record("head", self.head(features))


def make_convnet(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    widths: Sequence[int],
    blocks: int = 1,
    stem: int | None = None,
    options: BlockOptions | None = None,
) -> Model:
    """Make a small residual convolutional network.

    Args:
      input_shape: (height, width, channel).
      num_outputs: k >= 2 softmax units, or 1 sigmoid unit.
      widths: channels of each stage; each has half the resolution of the one before.
      blocks: residual blocks of each stage.
      stem: side of the squares of pixels that become the first stage's channels; default so that
        about 28 x 28 squares, at most, are left.
      options: norm, activation, initializers and dropout of all hidden layers; None for the
        defaults of `BlockOptions`.

    References:
      Deep residual learning for image recognition (He, Zhang, Ren and Sun, 2016).
    """
    height, width, channels = input_shape
    side = max(2, round(max(height, width) / 28)) if stem is None else stem
    filled = options or BlockOptions()
    return export(lambda key: _ConvNet(channels, side, widths, blocks, num_outputs, filled, key))


def export(make_module: Callable[[Array], nnx.Module]) -> Model:
    """Turn a module into pure init and apply functions.

    Args:
      make_module: `key -> module`, called with (images, ForwardContext); it returns features and
        logits.
    """

    def split(key: Array) -> tuple[nnx.GraphDef, Params, BatchStats]:
        graphdef, params, batch_stats = nnx.split(make_module(key), nnx.Param, nnx.BatchStat)
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_module(jax.random.key(0))))

    def init(key: Array) -> tuple[Params, BatchStats]:
        return split(key)[1:]

    def apply(
        params: Params,
        batch_stats: BatchStats,
        images: Array,
        *,
        training: bool = False,
        key: Array | None = None,
        probes: Mapping[str, Array] | None = None,
    ) -> Output:
        module = nnx.merge(graphdef, params, batch_stats, copy=True)
        forward = ForwardContext(training, key, probes or {})
        features, logits = module(images, forward)
        if unknown := forward.probes.keys() - forward.pre_activations.keys():
            known = ", ".join(forward.pre_activations)
            raise ValueError(f"no layer is called {', '.join(unknown)}; there are {known}")
        stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return Output(logits, features, stats, forward.pre_activations)

    return Model(init, apply)
