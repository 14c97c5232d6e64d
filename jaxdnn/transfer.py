"""A network on top of a pretrained one: its last blocks, and new layers for classes of one's own.

    activation at the cut -> backbone -> features -> hidden layers -> head = logits

The head can start from what the pretrained network says already: with ImageNet's breeds of dogs,

    logits = head(hidden(features)) + scale * prior(features)

where head starts at zero and scale, trained like all else, at 1: before the first step the network
answers what the pretrained one does.

References:
  How transferable are features in deep neural networks? (Yosinski et al., 2014).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdnn.backbone import (
    NUM_FEATURES,
    Upper,
    Weights,
    classify,
    dog_logits,
    upper_weights,
)
from jaxdnn.layers import Block, BlockOptions, ForwardContext, make_dense
from jaxdnn.models import BatchStats, Model, Params, export

BACKBONE = "backbone"
"""Where the pretrained part stands in the trees of parameters."""

DOGS = ("dog", "dogs")

# features (batch, 1280) -> logits (batch, output)
Prior = Callable[[Array], Array]


class _Transfer(nnx.Module):
    """`backbone`, where some of it is trained, `hidden/0`, ..., a dense `head`, and its `scale`."""

    def __init__(
        self,
        num_blocks: int,
        widths: Sequence[int],
        num_outputs: int,
        options: BlockOptions,
        prior: Prior | None,
        key: Array,
    ):
        backbone_key, head_key, *keys = jax.random.split(key, 2 + len(widths))
        self.backbone = Upper(BACKBONE, num_blocks, backbone_key) if num_blocks else None
        sizes = [NUM_FEATURES, *widths]
        self.hidden = nnx.List(
            Block(
                f"hidden/{index}",
                make_dense(sizes[index], width, options, own_key, options.norm != "batch"),
                width,
                options,
                activation=options.activation,
            )
            for index, (width, own_key) in enumerate(zip(widths, keys, strict=True))
        )
        self.dropout = options.dropout
        at_head = options
        if prior is not None:
            at_head = dataclasses.replace(
                options, kernel_init=nnx.initializers.zeros, bias_init=0.0
            )
        self.head = make_dense(sizes[-1], num_outputs, at_head, head_key, bias=True)
        self.prior = prior
        self.scale = None if prior is None else nnx.Param(jnp.ones(()))

    def __call__(self, x: Array, forward: ForwardContext) -> tuple[Array, Array]:
        features = x if self.backbone is None else self.backbone(x, forward)
        key = forward.next_key() if self.dropout else None
        hidden = nnx.Dropout(self.dropout, deterministic=key is None)(features, rngs=key)
        for layer in self.hidden:
            hidden = layer(hidden, forward)
        logits = self.head(hidden)
        if self.prior is not None and self.scale is not None:
            logits = logits + (self.scale[...] * self.prior(features)).astype(logits.dtype)
        return features, forward.record("head", logits)


def make_transfer(
    weights: Weights,
    num_outputs: int,
    *,
    num_blocks: int,
    widths: Sequence[int] = (),
    options: BlockOptions | None = None,
    dog: int | None = None,
) -> Model:
    """Make a network that takes what EfficientNet-Lite0's lower blocks give.

    Its `init` draws the new layers alone; the blocks start with their weights.

    Args:
      weights: of the whole network, with ImageNet's 1000 outputs.
      num_outputs: k >= 2 softmax units, or 1 sigmoid unit.
      num_blocks: how many of its last blocks are part of it, 0 to 16; with 0 it takes features.
      widths: units of each hidden layer after the features; may be empty.
      options: norm, activation, initializers and dropout of the hidden layers; None for the
        defaults of `BlockOptions`.
      dog: label, 0 or 1, of the one of two classes that starts as ImageNet's breeds of dogs; None
        for a head that knows nothing.
    """
    filled = options or BlockOptions()
    prior = None if dog is None else _dog_prior(weights, dog, num_outputs)
    drawn = export(lambda key: _Transfer(num_blocks, widths, num_outputs, filled, prior, key))
    if num_blocks == 0:
        return drawn
    trained = upper_weights(weights, num_blocks)

    def init(key: Array) -> tuple[Params, BatchStats]:
        params, batch_stats = drawn.init(key)
        placed_params, placed_stats = jax.tree.map(jnp.asarray, trained)
        return params | {BACKBONE: placed_params}, batch_stats | {BACKBONE: placed_stats}

    return Model(init, drawn.apply)


def _dog_prior(weights: Weights, dog: int, num_outputs: int) -> Prior:
    def prior(features: Array) -> Array:
        logits = dog_logits(classify(weights, features))
        logits = logits if dog == 1 else logits[:, ::-1]
        return logits if num_outputs == 2 else logits[:, 1:] - logits[:, :1]

    return prior


def dog_label(class_names: Sequence[str]) -> int | None:
    """Return the label of the class of dogs where there are two classes and one is called so."""
    found = [label for label, name in enumerate(class_names) if name.casefold() in DOGS]
    return found[0] if len(class_names) == 2 and len(found) == 1 else None


def is_of_backbone(path: tuple[Any, ...]) -> bool:
    """Tell whether a path of a parameter tree leads into the pretrained part."""
    return jax.tree_util.keystr(path[:1], simple=True) == BACKBONE
