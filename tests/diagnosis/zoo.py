"""Small networks in the manner of Flax's own examples, in NNX and in Linen, and deep plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx


class MLP(nnx.Module):
    def __init__(self, rngs, width=8):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.first(x))
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return self.head(x)


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.linear = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.dropout(self.conv2(x))), (2, 2), (2, 2))
        return self.linear(x.reshape(x.shape[0], -1))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(nnx.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        for _ in range(3):
            x = linen.relu(linen.Dense(8)(x))
        return linen.Dense(3)(x)


class LinenCNN(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Conv(4, (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = linen.Dropout(0.25, deterministic=not train)(x)
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        y = linen.Conv(4, (3, 3), use_bias=False)(x)
        y = linen.relu(linen.BatchNorm(use_running_average=not train)(y))
        y = linen.Conv(4, (3, 3), use_bias=False)(y)
        return linen.relu(x + linen.BatchNorm(use_running_average=not train)(y))


class LinenResNet(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Conv(4, (3, 3))(x)
        for _ in range(2):
            x = LinenBlock()(x, train)
        return linen.Dense(3)(x.mean((1, 2)))


class LinenTransformer(linen.Module):
    @linen.compact
    def __call__(self, tokens, deterministic: bool):
        x = linen.Embed(7, 8)(tokens)
        y = linen.LayerNorm()(x)
        y = linen.MultiHeadDotProductAttention(2, deterministic=deterministic)(y, y)
        x = x + jnp.asarray(y)
        y = linen.gelu(linen.Dense(16)(linen.LayerNorm()(x)))
        x = x + linen.Dropout(0.1, deterministic=deterministic)(linen.Dense(8)(y))
        return linen.Dense(3)(x.mean(1))


def scanned(params, x):
    """Stacked layers in a scan, rematerialised, with a kernel that is used twice."""

    @jax.checkpoint
    def layer(h, unit):
        return jnp.tanh(h @ unit["kernel"] + unit["bias"]), None

    h, _ = jax.lax.scan(layer, x @ params["first"]["kernel"], params["hidden"])
    h = h @ params["first"]["kernel"].T
    return h @ params["head"]["kernel"]


def normal(seed, *shape):
    """Standard normal float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def linen_pair(module, inputs, *args):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return module, module.init(keys, inputs, *args)


def scanned_params():
    return {
        "first": {"kernel": normal(0, 4, 4)},
        "hidden": {"kernel": normal(1, 3, 4, 4), "bias": normal(2, 3, 4)},
        "head": {"kernel": normal(3, 4, 3)},
    }


TARGETS = jnp.arange(6) % 3
VECTORS, IMAGES = normal(7, 6, 4), normal(8, 6, 8, 8, 1)
TOKENS = jnp.arange(30).reshape(6, 5) % 7
# name -> (make model, inputs)
ZOO = {
    "mlp": (lambda: MLP(nnx.Rngs(0)), VECTORS),
    "cnn": (lambda: CNN(nnx.Rngs(0)), IMAGES),
    "resnet": (lambda: ResNet(nnx.Rngs(0)), IMAGES),
    "transformer": (lambda: Transformer(nnx.Rngs(0)), TOKENS),
    "linen_mlp": (lambda: linen_pair(LinenMLP(), VECTORS), VECTORS),
    "linen_cnn": (lambda: linen_pair(LinenCNN(), IMAGES, True), IMAGES),
    "linen_resnet": (lambda: linen_pair(LinenResNet(), IMAGES, True), IMAGES),
    "linen_transformer": (lambda: linen_pair(LinenTransformer(), TOKENS, False), TOKENS),
    "scanned": (lambda: (scanned, scanned_params()), VECTORS),
}


# Of the deep plain network.
DEPTH, WIDTH, BATCH = 8, 32, 32
DEEP_INPUTS, DEEP_TARGETS = normal(50, BATCH, WIDTH), jnp.arange(BATCH) % 4


def cross_entropy(logits, targets):
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def times(factor):
    return lambda logits, targets: factor * cross_entropy(logits, targets)


def deep(gain=2.0, phi=jax.nn.relu, dtype=jnp.float32, param_dtype=jnp.float32, depth=DEPTH):
    """A network with weights of variance gain / fan_in, that calculates in `dtype`."""
    kernels = [normal(i, WIDTH, WIDTH) * np.sqrt(gain / WIDTH) for i in range(depth)]

    def apply(params, x):
        x = x.astype(dtype)
        for kernel in params[:-1]:
            x = phi(x @ kernel.astype(dtype))
        return x @ params[-1].astype(dtype)

    return apply, [kernel.astype(param_dtype) for kernel in kernels]
