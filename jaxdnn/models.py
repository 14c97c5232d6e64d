"""Networks as Flax NNX modules, exported as two pure functions.

    model = make_mlp((28, 28, 1), num_outputs=2, widths=(512, 512), unit=UnitOptions(norm="batch"))
    params, batch_stats = model.init(key)
    output = model.apply(params, batch_stats, images, training=True, key=key)
    output.logits, output.batch_stats, output.pre_activations

Every hidden layer is the same unit, dense or convolution:

    z = norm(x * kernel + bias),   a = dropout(phi(z))

z is the pre-activation. `apply` returns each one by its path, and adds to it a probe where one is
given: the gradient of the loss with respect to a probe of zeros is delta = dL/dz, the signal that
vanishes or explodes. What nobody uses is compiled away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdnn.activations import Activation, relu
from jaxdnn.initializers import Draw, he_normal

Norm = Literal["none", "batch", "layer"]
Params = Any
BatchStats = Any

BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class UnitOptions:
    """What all hidden layers of a network have in common.

    Attributes:
      activation: phi.
      kernel_init: draws the kernels, those of the output layer included.
      bias_init: every bias at the start.
      norm: `batch` (its beta replaces the bias), `layer` or `none`.
      norm_momentum: share of the old running average that a training step keeps; in [0, 1).
      dropout: share of the units dropped in training; in [0, 1).
    """

    activation: Activation = dataclasses.field(default_factory=relu)
    kernel_init: Draw = dataclasses.field(default_factory=he_normal)
    bias_init: float = 0.0
    norm: Norm = "none"
    norm_momentum: float = 0.9
    dropout: float = 0.0


class Output(NamedTuple):
    """What a network returns.

    Attributes:
      logits: (batch, output).
      batch_stats: running averages of the batch norms, moved by one step if `training`.
      pre_activations: path of each layer -> its z, in the order of the forward pass.
    """

    logits: Array
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


@dataclasses.dataclass
class Pass:
    """One forward pass: what the layers need to know, and what they leave behind."""

    training: bool
    key: Array | None
    probes: Mapping[str, Array]
    pre_activations: dict[str, Array] = dataclasses.field(default_factory=dict)

    def record(self, path: str, z: Array) -> Array:
        """Add the probe of this path to z, keep the sum, and return it."""
        if path in self.probes:
            z = z + self.probes[path]
        self.pre_activations[path] = z
        return z

    def next_key(self) -> Array | None:
        """Return a key that no other layer gets."""
        if self.key is None:
            return None
        self.key, key = jax.random.split(self.key)
        return key


class Unit(nnx.Module):
    """A hidden layer: linear map, norm, activation, dropout."""

    def __init__(
        self,
        path: str,
        linear: nnx.Linear | nnx.Conv,
        num_features: int,
        options: UnitOptions,
        *,
        activation: Activation | None,
    ):
        self.path = path
        self.linear = linear
        self.norm = make_norm(num_features, options)
        self.activation = activation
        self.slope = make_slope(num_features, activation)
        self.dropout = options.dropout

    def __call__(self, x: Array, forward: Pass) -> Array:
        z = self.linear(x)
        if isinstance(self.norm, nnx.BatchNorm):
            z = self.norm(z, use_running_average=not forward.training)
        elif self.norm is not None:
            z = self.norm(z)
        z = forward.record(self.path, z)
        return self._drop(self._activate(z, forward), forward)

    def _activate(self, z: Array, forward: Pass) -> Array:
        if self.activation is None:
            return z
        slope = None if self.slope is None else self.slope[...]
        if self.activation.slope and self.activation.slope.kind == "random":
            key = forward.next_key()
            slope = None if key is None else self.activation.slope.draw(key, z.shape, z.dtype)
        return self.activation(z, slope)

    def _drop(self, a: Array, forward: Pass) -> Array:
        key = forward.next_key() if self.dropout else None
        return a if key is None else nnx.Dropout(self.dropout)(a, deterministic=False, rngs=key)


def make_norm(num_features: int, options: UnitOptions) -> nnx.BatchNorm | nnx.LayerNorm | None:
    """Make the norm named in the options, over the last axis."""
    rngs = nnx.Rngs(0)  # scale starts at 1 and bias at 0: nothing is drawn
    if options.norm == "batch":
        return nnx.BatchNorm(
            num_features,
            momentum=options.norm_momentum,
            epsilon=BATCH_NORM_EPSILON,
            rngs=rngs,
        )
    return nnx.LayerNorm(num_features, rngs=rngs) if options.norm == "layer" else None


def make_slope(num_features: int, activation: Activation | None) -> nnx.Param | None:
    """Make the trained slope of an activation that has one, one entry for each feature."""
    if activation is None or activation.slope is None or activation.slope.kind != "trained":
        return None
    return nnx.Param(jnp.full((num_features,), activation.slope.mean))


def make_dense(
    num_in: int, num_out: int, options: UnitOptions, key: Array, bias: bool
) -> nnx.Linear:
    """Make a dense linear map with the options' initializers."""
    return nnx.Linear(
        num_in,
        num_out,
        use_bias=bias,
        kernel_init=options.kernel_init,
        bias_init=nnx.initializers.constant(options.bias_init),
        rngs=nnx.Rngs(key),
    )


class MLP(nnx.Module):
    """Dense hidden layers `layers/0`, `layers/1`, ... and a dense `head`."""

    def __init__(
        self,
        num_inputs: int,
        widths: Sequence[int],
        num_outputs: int,
        options: UnitOptions,
        key: Array,
    ):
        sizes = [num_inputs, *widths]
        *keys, head_key = jax.random.split(key, len(sizes))
        bias = options.norm != "batch"
        self.layers = nnx.List(
            Unit(
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

    def __call__(self, images: Array, forward: Pass) -> Array:
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers:
            x = layer(x, forward)
        return forward.record("head", self.head(x))


def make_mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    widths: Sequence[int],
    unit: UnitOptions | None = None,
) -> Model:
    """Make a multi-layer perceptron.

    Args:
      input_shape: of one example; flattened, row by row.
      num_outputs: k >= 2 softmax units, or 1 sigmoid unit.
      widths: units of each hidden layer, from the input on; may be empty.
      unit: what the hidden layers share.
    """
    num_inputs, options = math.prod(input_shape), unit or UnitOptions()
    return export(lambda key: MLP(num_inputs, widths, num_outputs, options, key))


def export(make_module: Callable[[Array], nnx.Module]) -> Model:
    """Turn a module whose call is `(images, Pass) -> logits` into pure init and apply functions."""

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
        forward = Pass(training, key, probes or {})
        logits = module(images, forward)
        stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return Output(logits, stats, forward.pre_activations)

    return Model(init, apply)
