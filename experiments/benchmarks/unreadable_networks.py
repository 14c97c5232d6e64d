"""Ten kinds of networks with data that have a rule, trained for a while and kept in a folder.

Each kind is made by plain functions of (params, stats), so that one layer's weights, the running
averages or the rows can be changed while the program stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

# What a loss leaves out: the target of a row, or of a place in a sequence, that only fills up.
IGNORED = -1
# Of the loaded networks' short training.
_RATE, _BATCH, _ROWS = 2e-3, 128, 4096


class Data(NamedTuple):
    """Rows.

    Attributes:
      inputs: (row, ...), floats with mean 0 and variance 1 by feature, or tokens.
      targets: (row,) classes, (row, place) tokens, or (row, 1) floats.
    """

    inputs: np.ndarray
    targets: np.ndarray


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
      params: nested dicts of float32 arrays.
      stats: running averages, nested dicts; empty without batch norm.
    """

    params: Any
    stats: Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the ten networks.

    Attributes:
      name: in the table.
      draw: `(seed, rows) -> Data`; the rule is the same for every seed.
      init: `seed -> Weights`.
      model: `(weights, evaluating) -> model` as `diagnose` takes it.
      forward: `(params, stats, inputs, training) -> (outputs, stats)`.
      rows: of the batch that is diagnosed.
      steps: of the training that the loaded weights have behind them.
      square: path of a kernel whose transposed has the same shape, joined by `/`.
      pair: paths of two kernels of one shape.
      num_classes: 0 for a regression.
      batch_norm: whether it has running averages.
      tokens: size of the vocabulary; 0 for floats.
    """

    name: str
    draw: Callable[[int, int], Data]
    init: Callable[[int], Weights]
    model: Callable[[Weights, bool], Any]
    forward: Callable[..., tuple[Any, Any]]
    rows: int
    steps: int
    square: str
    pair: tuple[str, str]
    num_classes: int
    batch_norm: bool = False
    tokens: int = 0

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return cross-entropy without the ignored, or the squared error of a regression."""
        if not self.num_classes:
            return jnp.mean((outputs - targets) ** 2)
        counted = targets != IGNORED
        each = optax.softmax_cross_entropy_with_integer_labels(
            outputs, jnp.where(counted, targets, 0)
        )
        return jnp.sum(jnp.where(counted, each, 0)) / jnp.maximum(jnp.sum(counted), 1)


def load(kind: Kind, folder: Path) -> Weights:
    """Return the weights of a network that was trained before; trained now if the folder lacks it.

    Args:
      kind: one of `KINDS`.
      folder: of the files, made if it is not there.
    """
    described = f"{kind.name} {kind.steps} {_RATE} {_BATCH}"
    path = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.pickle"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(_train(kind)))
    return Weights(*pickle.loads(path.read_bytes()))


def _train(kind: Kind) -> Weights:
    data = kind.draw(1, _ROWS)
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, kind.steps))

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: Any, y: Any) -> Any:
        def objective(params: Any) -> Any:
            outputs, moved = kind.forward(params, stats, x, True)
            return kind.loss(outputs, y), moved

        grads, moved = jax.grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), moved, state

    params, stats = kind.init(0)
    state, rng = optimizer.init(params), np.random.default_rng(2)
    for _ in range(kind.steps):
        rows = rng.integers(0, len(data.inputs), _BATCH)
        params, stats, state = step(params, stats, state, data.inputs[rows], data.targets[rows])
    return Weights(*jax.device_get((params, stats)))


# Data with a rule.


def _vectors(features: int, num_classes: int, *, linear: float = 1.0) -> Callable[[int, int], Data]:
    """Standard normal features; a random network of one hidden layer says the answer."""

    def draw(seed: int, rows: int) -> Data:
        rule, rng = np.random.default_rng(77), np.random.default_rng(1000 + seed)
        first = rule.standard_normal((features, 24)) / math.sqrt(features)
        second = rule.standard_normal((24, max(num_classes, 1))) / 5
        direct = linear * rule.standard_normal((features, max(num_classes, 1)))
        x = rng.standard_normal((rows, features))
        answer = np.tanh(2 * x @ first) @ second * 2 + x @ direct / math.sqrt(features)
        y = answer.argmax(1).astype(np.int32) if num_classes else _standard(answer)
        return Data(x.astype(np.float32), y)

    return draw


def _standard(answer: np.ndarray) -> np.ndarray:
    return ((answer - answer.mean(0)) / answer.std(0)).astype(np.float32)


def _images(side: int, channels: int, num_classes: int) -> Callable[[int, int], Data]:
    """Smooth patterns of the classes, moved by up to two pixels, under noise."""

    def draw(seed: int, rows: int) -> Data:
        rule, rng = np.random.default_rng(78), np.random.default_rng(2000 + seed)
        coarse = rule.standard_normal((num_classes, side // 4, side // 4, channels))
        patterns = coarse.repeat(4, 1).repeat(4, 2)
        y = rng.integers(0, num_classes, rows).astype(np.int32)
        moved = [np.roll(patterns[k], tuple(rng.integers(-2, 3, 2)), (0, 1)) for k in y]
        x = np.stack(moved) + 1.2 * rng.standard_normal((rows, side, side, channels))
        return Data((x / math.sqrt(1 + 1.2**2)).astype(np.float32), y)

    return draw


def _series(length: int, features: int, num_classes: int) -> Callable[[int, int], Data]:
    """Which of some slow waves runs through the features, under noise."""

    def draw(seed: int, rows: int) -> Data:
        rule, rng = np.random.default_rng(79), np.random.default_rng(3000 + seed)
        mix = rule.standard_normal((num_classes, 2, features))
        y = rng.integers(0, num_classes, rows).astype(np.int32)
        angle = (y[:, None] + 1) * 0.35 * np.arange(length) + rng.uniform(0, 6.28, (rows, 1))
        waves = np.stack([np.sin(angle), np.cos(angle)], -1)
        x = np.einsum("btw,bwf->btf", waves, mix[y]) + 0.8 * rng.standard_normal(
            (rows, length, features)
        )
        return Data(_standard(x.reshape(-1, features)).reshape(x.shape), y)

    return draw


def _sentences(length: int, tokens: int, num_classes: int) -> Callable[[int, int], Data]:
    """Each class prefers tokens of its own; token 0 fills up and does not occur otherwise."""

    def draw(seed: int, rows: int) -> Data:
        rule, rng = np.random.default_rng(80), np.random.default_rng(4000 + seed)
        likely = np.exp(rule.standard_normal((num_classes, tokens)) * 0.8)
        likely[:, 0] = 0
        likely /= likely.sum(1, keepdims=True)
        y = rng.integers(0, num_classes, rows).astype(np.int32)
        x = np.stack([rng.choice(tokens, length, p=likely[k]) for k in y])
        return Data(x.astype(np.int32), y)

    return draw


def _text(length: int, tokens: int) -> Callable[[int, int], Data]:
    """A chain in which every token has four successors; the targets are the next tokens."""

    def draw(seed: int, rows: int) -> Data:
        rule, rng = np.random.default_rng(81), np.random.default_rng(5000 + seed)
        after = rule.integers(1, tokens, (tokens, 4))
        chain = np.zeros((rows, length + 1), np.int32)
        chain[:, 0] = rng.integers(1, tokens, rows)
        for place in range(length):
            pick = np.minimum(rng.geometric(0.6, rows) - 1, 3)
            chain[:, place + 1] = after[chain[:, place], pick]
        return Data(chain[:, :-1].copy(), chain[:, 1:].copy())

    return draw


# Networks as functions of their parameters.


def _dense(rng: np.random.Generator, num_in: int, num_out: int, gain: float = 2.0) -> Any:
    kernel = rng.standard_normal((num_in, num_out)) * math.sqrt(gain / num_in)
    return {"kernel": kernel.astype(np.float32), "bias": np.zeros(num_out, np.float32)}


def _linear(params: Any, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def _layer_norm(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def _plain(params: Any, x: Any) -> Any:
    x = jax.nn.relu(_linear(params["first"], x))
    for name in sorted(params["hidden"]):
        x = jax.nn.relu(_linear(params["hidden"][name], x))
    return _linear(params["head"], x)


def _blocks(params: Any, x: Any) -> Any:
    x = _linear(params["first"], x)
    for name in sorted(params["blocks"]):
        block = params["blocks"][name]
        x = x + _linear(block["down"], jax.nn.gelu(_linear(block["up"], _layer_norm(x))))
    return _linear(params["head"], _layer_norm(x))


def _init_plain(features: int, width: int, depth: int, outputs: int) -> Callable[[int], Weights]:
    def init(seed: int) -> Weights:
        rng = np.random.default_rng(seed)
        hidden = {f"l{i}": _dense(rng, width, width) for i in range(depth)}
        first, head = _dense(rng, features, width), _dense(rng, width, outputs, 1.0)
        return Weights({"first": first, "hidden": hidden, "head": head}, {})

    return init


def _init_blocks(features: int, width: int, depth: int, outputs: int) -> Callable[[int], Weights]:
    def init(seed: int) -> Weights:
        rng = np.random.default_rng(seed)
        blocks = {
            f"b{i}": {"up": _dense(rng, width, width), "down": _dense(rng, width, width, 0.5)}
            for i in range(depth)
        }
        first, head = _dense(rng, features, width, 1.0), _dense(rng, width, outputs, 1.0)
        return Weights({"first": first, "blocks": blocks, "head": head}, {})

    return init


def _function(name: str, apply: Callable[[Any, Any], Any], **fields: Any) -> Kind:
    return Kind(
        name,
        model=lambda weights, _: (apply, weights.params),
        forward=lambda params, stats, x, _: (apply(params, x), stats),
        **fields,
    )


# Flax NNX.


class _TanhMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(16, 48, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(48, 48, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(48, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.tanh(self.first(x))
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return self.head(x)


class _ConvBlock(nnx.Module):
    def __init__(self, num_in: int, num_out: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(num_in, num_out, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(num_out, momentum=0.9, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class _ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = ((3, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1))
        self.blocks = nnx.List([_ConvBlock(*size, rngs) for size in sizes])
        self.head = nnx.Linear(32, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(x.mean((1, 2)))


class _BasicBlock(nnx.Module):
    def __init__(self, num_in: int, num_out: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = _ConvBlock(num_in, num_out, stride, rngs)
        self.second = _ConvBlock(num_out, num_out, 1, rngs)
        conv = nnx.Conv(num_in, num_out, (1, 1), strides=stride, use_bias=False, rngs=rngs)
        self.shortcut = nnx.List([conv] if stride != 1 else [])

    def __call__(self, x: Any) -> Any:
        y = self.second(nnx.relu(self.first(x)))
        for conv in self.shortcut:
            x = conv(x)
        return nnx.relu(y + x)


class _ResNet18(nnx.Module):
    """Of a quarter of the usual width."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = _ConvBlock(3, 16, 1, rngs)
        self.blocks = nnx.List(
            [
                _BasicBlock(num_in, num_out, stride, rngs)
                for a, b, first in ((16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 128, 2))
                for num_in, num_out, stride in ((a, b, first), (b, b, 1))
            ]
        )
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class _Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(40, 32, rngs=rngs)
        self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (16, 32)))
        self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(4)])
        self.attention = nnx.List(
            [nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs) for _ in range(2)]
        )
        self.up = nnx.List([nnx.Linear(32, 64, rngs=rngs) for _ in range(2)])
        self.down = nnx.List([nnx.Linear(64, 32, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens) + self.places[...]
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.down[i](nnx.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(x.mean(1))


def _nnx(name: str, make: Callable[[nnx.Rngs], nnx.Module], **fields: Any) -> Kind:
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, *states = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)

    def merged(params: Any, stats: Any) -> Any:
        filled = [_fill(s, d) for s, d in zip(states[:2], (params, stats), strict=True)]
        rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)[3]
        return nnx.merge(graphdef, *filled, rest)

    def init(seed: int) -> Weights:
        _, params, stats, _ = nnx.split(make(nnx.Rngs(seed)), nnx.Param, nnx.BatchStat, ...)
        return Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(stats))

    def forward(params: Any, stats: Any, x: Any, training: bool) -> Any:
        module = merged(params, stats)
        module.train() if training else module.eval()
        outputs = module(x)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def model(weights: Weights, evaluating: bool) -> Any:
        if evaluating:
            return lambda params, x: forward(params, weights.stats, x, False)[0], weights.params
        return merged(*jax.tree.map(jnp.asarray, weights))

    return Kind(name, init=init, model=model, forward=forward, **fields)


def _fill(state: Any, values: Any) -> Any:
    """Put plain arrays into a state."""
    leaves = dict(nnx.to_flat_state(nnx.State(values)))
    return nnx.from_flat_state(
        [(path, var.replace(leaves[path])) for path, var in nnx.to_flat_state(state)]
    )


# Flax Linen.


class _NormMLP(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(5):
            x = linen.gelu(linen.LayerNorm()(linen.Dense(64)(x)))
        return linen.Dense(6)(x)


class _LinenConvNet(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1)):
            x = linen.Conv(width, (3, 3), strides=stride)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return linen.Dense(4)(x.mean((1, 2)))


class _GRU(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(32)(x)
        for _ in range(2):
            x = jnp.asarray(linen.RNN(linen.GRUCell(32))(x))
        return linen.Dense(4)(linen.tanh(linen.Dense(32)(x[:, -1])))


class _LanguageModel(linen.Module):
    @linen.compact
    def __call__(self, tokens: Any) -> Any:
        x = linen.Embed(32, 48)(tokens)
        x = x + self.param("places", linen.initializers.normal(0.1), (tokens.shape[1], 48))
        mask = linen.make_causal_mask(tokens)
        for _ in range(2):
            y = linen.LayerNorm()(x)
            x = x + jnp.asarray(linen.MultiHeadDotProductAttention(4)(y, y, mask=mask))
            y = linen.gelu(linen.Dense(96)(linen.LayerNorm()(x)))
            x = x + linen.Dense(48)(y)
        return linen.Dense(32)(linen.LayerNorm()(x))


def _linen(name: str, module: linen.Module, example: np.ndarray, **fields: Any) -> Kind:
    flags = bool(fields.get("batch_norm"))

    def init(seed: int) -> Weights:
        args = (True,) if flags else ()
        variables = module.init(jax.random.key(seed), example, *args)
        return Weights(variables["params"], variables.get("batch_stats", {}))

    def forward(params: Any, stats: Any, x: Any, training: bool) -> Any:
        if not flags:
            return module.apply({"params": params}, x), stats
        variables = {"params": params, "batch_stats": stats}
        if not training:
            return module.apply(variables, x, train=False), stats
        outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return outputs, moved["batch_stats"]

    def model(weights: Weights, evaluating: bool) -> Any:
        if evaluating:
            return lambda params, x: forward(params, weights.stats, x, False)[0], weights.params
        variables = {"params": weights.params}
        return module, variables | ({"batch_stats": weights.stats} if flags else {})

    return Kind(name, init=init, model=model, forward=forward, **fields)


_ENCODER = "MultiHeadDotProductAttention"
KINDS = (
    _function(
        "MLP, ReLU (function)", _plain, draw=_vectors(20, 5), init=_init_plain(20, 64, 4, 5),
        rows=1024, steps=400, square="hidden/l1/kernel",
        pair=("hidden/l0/kernel", "hidden/l2/kernel"), num_classes=5,
    ),
    _function(
        "residual MLP (function)", _blocks, draw=_vectors(24, 8), init=_init_blocks(24, 64, 4, 8),
        rows=1024, steps=400, square="blocks/b1/down/kernel",
        pair=("blocks/b0/up/kernel", "blocks/b2/up/kernel"), num_classes=8,
    ),
    _nnx(
        "MLP, tanh, regression (NNX)", _TanhMLP, draw=_vectors(16, 0), rows=1024, steps=500,
        square="layers/1/kernel", pair=("layers/0/kernel", "layers/2/kernel"), num_classes=0,
    ),
    _linen(
        "MLP, layer norm (Linen)", _NormMLP(), np.zeros((2, 24), np.float32),
        draw=_vectors(24, 6), rows=1024, steps=400, square="Dense_2/kernel",
        pair=("Dense_1/kernel", "Dense_3/kernel"), num_classes=6,
    ),
    _nnx(
        "convnet, batch norm (NNX)", _ConvNet, draw=_images(16, 3, 5), rows=384, steps=150,
        square="blocks/1/conv/kernel", pair=("blocks/1/conv/kernel", "blocks/2/conv/kernel"),
        num_classes=5, batch_norm=True,
    ),
    _linen(
        "convnet, batch norm (Linen)", _LinenConvNet(), np.zeros((2, 16, 16, 2), np.float32),
        draw=_images(16, 2, 4), rows=384, steps=150, square="Conv_2/kernel",
        pair=("Conv_1/kernel", "Conv_2/kernel"), num_classes=4, batch_norm=True,
    ),
    _nnx(
        "ResNet-18, 32 x 32 (NNX)", _ResNet18, draw=_images(32, 3, 10), rows=128, steps=120,
        square="blocks/2/second/conv/kernel",
        pair=("blocks/0/first/conv/kernel", "blocks/1/second/conv/kernel"), num_classes=10,
        batch_norm=True,
    ),
    _linen(
        "GRU (Linen)", _GRU(), np.zeros((2, 12, 6), np.float32), draw=_series(12, 6, 4),
        rows=512, steps=300, square="GRUCell_1/hn/kernel",
        pair=("GRUCell_0/hz/kernel", "GRUCell_1/hr/kernel"), num_classes=4,
    ),
    _nnx(
        "transformer (NNX)", _Transformer, draw=_sentences(16, 40, 4), rows=512, steps=300,
        square="attention/0/value/kernel",
        pair=("attention/0/value/kernel", "attention/1/query/kernel"), num_classes=4, tokens=40,
    ),
    _linen(
        "language model (Linen)", _LanguageModel(), np.zeros((2, 16), np.int32),
        draw=_text(16, 32), rows=256, steps=400, square=f"{_ENCODER}_1/value/kernel",
        pair=(f"{_ENCODER}_0/value/kernel", f"{_ENCODER}_1/query/kernel"), num_classes=32,
        tokens=32,
    ),
)  # fmt: skip
