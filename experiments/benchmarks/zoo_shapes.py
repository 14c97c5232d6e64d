"""Networks for vectors, sets, graphs and fields, generative ones, and losses without targets."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from jax import Array
from jax.example_libraries import stax
from zoo_tasks import (
    KEY,
    NUM_CLASSES,
    Call,
    Entry,
    channels_first,
    coordinates,
    images,
    normal,
    point_sets,
    vectors,
)


class MLP(nnx.Module):
    """Of the first page of Flax NNX."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.linear1 = nnx.Linear(8, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.bn = nnx.BatchNorm(32, rngs=rngs)
        self.linear2 = nnx.Linear(32, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        return self.linear2(nnx.gelu(self.dropout(self.bn(self.linear1(x)))))


def mlp() -> Call:
    """MLP in NNX, with dropout and batch norm."""
    return Call((MLP(rngs=nnx.Rngs(0)), *vectors()))


def mlp_equinox() -> Call:
    """The MLP that Equinox brings."""
    return Call((eqx.nn.MLP(8, NUM_CLASSES, 32, 2, key=KEY), *vectors()))


def mlp_haiku() -> Call:
    """The MLP that Haiku brings."""
    x, labels = vectors()
    transformed = hk.transform(lambda x: hk.nets.MLP([32, 32, NUM_CLASSES])(x))
    return Call(((transformed, transformed.init(KEY, x)), x, labels))


def mlp_stax() -> Call:
    """The MLP of JAX's own examples, which ends in LogSoftmax."""
    init, apply = stax.serial(
        stax.Dense(32), stax.Relu, stax.Dense(32), stax.Relu, stax.Dense(NUM_CLASSES),
        stax.LogSoftmax,
    )  # fmt: skip
    x, labels = vectors()
    _, params = init(KEY, x.shape)

    def loss(predicted: Array, targets: Array) -> Array:
        return -jnp.mean(jnp.sum(predicted * jax.nn.one_hot(targets, NUM_CLASSES), axis=1))

    return Call(((apply, params), x, labels), {"loss": loss})


def deep_sets() -> Call:
    """A sum over the points of a set, as plain functions."""

    def dense(x: Array, layer: dict[str, Array]) -> Array:
        return x @ layer["w"] + layer["b"]

    def apply(params: Any, x: Array) -> Array:
        for layer in params["phi"]:
            x = jax.nn.relu(dense(x, layer))
        x = jax.nn.relu(dense(x.sum(1), params["rho"]))
        return dense(x, params["head"])

    def layer(seed: int, num_in: int, num_out: int) -> dict[str, Array]:
        return {"w": normal(seed, num_in, num_out) * (2 / num_in) ** 0.5, "b": jnp.zeros(num_out)}

    params = {
        "phi": [layer(100, 2, 32), layer(101, 32, 32)],
        "rho": layer(102, 32, 32),
        "head": layer(103, 32, NUM_CLASSES),
    }
    return Call(((apply, params), *point_sets()))


class GraphNetwork(nn.Module):
    """Messages along edges, added up by `segment_sum`, as in jraph."""

    @nn.compact
    def __call__(self, nodes: Array, senders: Array, receivers: Array) -> Array:
        """Return logits of each node."""
        x = nn.relu(nn.Dense(16, name="embed")(nodes))
        for index in range(2):
            pairs = jnp.concatenate([x[senders], x[receivers]], -1)
            messages = nn.relu(nn.Dense(16, name=f"edge_{index}")(pairs))
            total = jax.ops.segment_sum(messages, receivers, num_segments=len(nodes))
            update = nn.Dense(16, name=f"node_{index}")(jnp.concatenate([x, total], -1))
            x = nn.LayerNorm(name=f"norm_{index}")(x + nn.relu(update))
        return nn.Dense(NUM_CLASSES, name="head")(x)


def graph_network() -> Call:
    """A graph network in Linen, as a loss function of a graph."""
    rows = 48
    nodes, _ = vectors(rows)
    senders = jnp.arange(rows)
    receivers = (senders + 5) % rows
    labels = (nodes + nodes[(senders - 5) % rows])[:, :NUM_CLASSES].argmax(1)
    graph = {"nodes": nodes, "senders": senders, "receivers": receivers, "labels": labels}
    model = GraphNetwork()

    def loss_fn(params: Any, graph: dict[str, Array]) -> Array:
        logits: Any = model.apply(params, graph["nodes"], graph["senders"], graph["receivers"])
        one_hot = jax.nn.one_hot(graph["labels"], NUM_CLASSES)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * one_hot, -1))

    return Call((loss_fn, model.init(KEY, nodes, senders, receivers), graph))


def gcn() -> Call:
    """Graph convolutions with an adjacency matrix, in Haiku."""
    nodes, adjacency = normal(110, 32, 6, 4), np.zeros((32, 6, 6), np.float32)
    for row in range(32):
        for a in range(6):
            adjacency[row, a, (a + 1 + row % 3) % 6] = adjacency[row, a, a] = 0.5
    labels = jnp.einsum("rab,rbf->rf", jnp.asarray(adjacency), nodes)[:, :NUM_CLASSES].argmax(1)

    def forward(nodes: Array, adjacency: Array) -> Array:
        x = nodes
        for width in (32, 32):
            x = jax.nn.relu(adjacency @ hk.Linear(width)(x))
        return hk.Linear(NUM_CLASSES)(x.mean(1))

    inputs = (nodes, jnp.asarray(adjacency))
    transformed = hk.without_apply_rng(hk.transform(forward))
    return Call(((transformed, transformed.init(KEY, *inputs)), inputs, labels))


class NeRF(nn.Module):
    """Sines and cosines of coordinates, an MLP with a skip, two heads."""

    @nn.compact
    def __call__(self, points: Array) -> tuple[Array, Array]:
        """Return colour and density."""
        scaled = [2.0**power * points for power in range(3)]
        encoded = jnp.concatenate([points, *map(jnp.sin, scaled), *map(jnp.cos, scaled)], -1)
        x = encoded
        for index in range(4):
            x = nn.relu(nn.Dense(32)(x))
            x = jnp.concatenate([x, encoded], -1) if index == 1 else x
        density = nn.Dense(1, name="density")(x)
        x = nn.relu(nn.Dense(32, name="bottleneck")(x))
        return nn.Dense(3, name="colour")(x), density


def nerf() -> Call:
    """NeRF in Linen, with `outputs` that puts colour and opacity together."""
    return Call((NeRF(), *coordinates()), {"outputs": lambda said: said[0] * nn.sigmoid(said[1])})


class Siren(eqx.Module):
    """Sines in place of activations."""

    layers: list[eqx.nn.Linear]
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        keys = jax.random.split(key, 7)
        layers = [eqx.nn.Linear(2 if i == 0 else 32, 32, key=keys[i]) for i in range(3)]
        self.head = eqx.nn.Linear(32, 3, key=keys[3])
        bounds = [1 / 2, (6 / 32) ** 0.5 / 30, (6 / 32) ** 0.5 / 30]
        self.layers = [
            eqx.tree_at(
                lambda layer: layer.weight, layer,
                jax.random.uniform(own, layer.weight.shape, minval=-bound, maxval=bound),
            )
            for layer, own, bound in zip(layers, keys[4:], bounds, strict=True)
        ]  # fmt: skip

    def __call__(self, xy: Array) -> Array:
        """Return the colour of one point."""
        for layer in self.layers:
            xy = jnp.sin(30 * layer(xy))
        return self.head(xy)


def siren() -> Call:
    """SIREN in Equinox."""
    return Call((Siren(KEY), *coordinates()))


class FourierFeatures(nnx.Module):
    """Random frequencies that are not trained, then an MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.frequencies = nnx.Variable(jax.random.normal(rngs.params(), (2, 16)))
        self.layers = nnx.List([nnx.Linear(32, 32, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, xy: Array) -> Array:
        """Return colours."""
        angle = xy @ self.frequencies[...]
        x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def fourier_features() -> Call:
    """Fourier features in NNX."""
    return Call((FourierFeatures(nnx.Rngs(0)), *coordinates()))


class Coupling(nn.Module):
    """Half of a vector scaled and shifted by what the other half says; at first not at all."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return the vector and the log of its volume's change."""
        kept, moved = jnp.split(x, 2, -1)
        h = nn.relu(nn.Dense(16)(nn.relu(nn.Dense(16)(kept))))
        out = nn.Dense(2 * moved.shape[-1], kernel_init=nn.initializers.zeros)(h)
        scale, shift = jnp.split(out, 2, -1)
        scale = jnp.tanh(scale)
        return jnp.concatenate([moved * jnp.exp(scale) + shift, kept], -1), scale.sum(-1)


class RealNVP(nn.Module):
    """Four couplings."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return noise and the log of the volume's change."""
        total = jnp.zeros(len(x))
        for _ in range(4):
            x, change = Coupling()(x)
            total = total + change
        return x, total


def flow() -> Call:
    """A normalising flow in Linen, as the likelihood of a batch."""
    model = RealNVP()

    def nll(params: Any, batch: Array) -> Array:
        said: Any = model.apply(params, batch)
        z, change = said
        return jnp.mean(0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi), -1) - change)

    x = normal(120, 64, 4)
    x = jnp.stack(
        [x[:, 0], x[:, 0] ** 2 + 0.1 * x[:, 1], 0.2 * x[:, 2], x[:, 2] + 0.1 * x[:, 3]], 1
    )
    return Call((nll, model.init(KEY, x), x))


def energy_model() -> Call:
    """Denoising score matching of an energy in Equinox, as a loss function."""
    energy = eqx.nn.MLP(2, "scalar", 32, 2, jax.nn.softplus, use_final_bias=False, key=KEY)
    params, rest = eqx.partition(energy, eqx.is_inexact_array)

    def loss_fn(params: Any, batch: tuple[Array, Array]) -> Array:
        x, noise = batch
        score = jax.vmap(jax.grad(lambda x: -eqx.combine(params, rest)(x)))(x + 0.5 * noise)
        return jnp.mean(jnp.sum((0.5 * score + noise) ** 2, -1))

    angle = jnp.arange(64) / 64 * 2 * jnp.pi
    circle = 3 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return Call((loss_fn, params, (circle, normal(121, 64, 2))))


class MixtureOfExperts(nn.Module):
    """Each example goes mostly to two experts of four."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = nn.relu(nn.Dense(16, name="stem")(x))
        gates = nn.softmax(nn.Dense(4, use_bias=False, name="router")(x))
        top, chosen = jax.lax.top_k(gates, 2)
        weights = (jax.nn.one_hot(chosen, 4) * (top / top.sum(-1, keepdims=True))[..., None]).sum(1)
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        up = self.param("experts_up", init, (4, 16, 32))
        down = self.param("experts_down", init, (4, 32, 16))
        y = jnp.einsum("beh,ehd->bed", nn.relu(jnp.einsum("bd,edh->beh", x, up)), down)
        return nn.Dense(NUM_CLASSES, name="head")(x + jnp.einsum("bed,be->bd", y, weights))


def mixture_of_experts() -> Call:
    """A mixture of experts in Linen."""
    return Call((MixtureOfExperts(), *vectors()))


def hypernetwork() -> Call:
    """One network gives the weights of another, as plain functions."""

    def apply(params: Any, x: Array) -> Array:
        hidden = jnp.tanh(x[:, 4:] @ params["condition"])
        kernels = (hidden @ params["kernels"]).reshape(-1, 4, 16)
        y = jax.nn.relu(jnp.einsum("bi,bio->bo", x[:, :4], kernels) + hidden @ params["biases"])
        return y @ params["head"]

    params = {
        "condition": normal(130, 4, 16) / 2,
        "kernels": normal(131, 16, 64) / 8,
        "biases": normal(132, 16, 16) / 8,
        "head": normal(133, 16, NUM_CLASSES) / 4,
    }
    return Call(((apply, params), *vectors()))


class ReZeroBlock(nnx.Module):
    """A branch times one number that begins at zero."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.up, self.down = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.alpha = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Array) -> Array:
        """Return x + alpha * branch."""
        return x + self.alpha[...] * self.down(nnx.relu(self.up(x)))


class ReZero(nnx.Module):
    """Such blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.stem = nnx.Linear(8, 16, rngs=rngs)
        self.blocks = nnx.List([ReZeroBlock(rngs) for _ in range(6)])
        self.head = nnx.Linear(16, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def rezero() -> Call:
    """ReZero in NNX."""
    return Call((ReZero(nnx.Rngs(0)), *vectors()))


class KANLayer(nnx.Module):
    """A function of each input for each output: a sum of bumps, and silu."""

    def __init__(self, num_in: int, num_out: int, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        draw = jax.random.normal(rngs.params(), (num_in, 6, num_out))
        self.coefficients = nnx.Param(0.3 * draw / num_in**0.5)
        self.base = nnx.Linear(num_in, num_out, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the sums."""
        bumps = jnp.exp(-((x[..., None] - jnp.linspace(-2, 2, 6)) ** 2))
        return self.base(nnx.silu(x)) + jnp.einsum("bik,iko->bo", bumps, self.coefficients[...])


def kan() -> Call:
    """A Kolmogorov-Arnold network in NNX."""
    rngs = nnx.Rngs(0)
    return Call(
        (nnx.Sequential(KANLayer(8, 16, rngs), KANLayer(16, NUM_CLASSES, rngs)), *vectors())
    )


class ActorCritic(nn.Module):
    """As in Flax's PPO: a trunk with two heads."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return log-probabilities and value."""
        x = nn.relu(nn.Dense(32, name="hidden")(x))
        x = nn.relu(nn.Dense(32, name="trunk")(x))
        logits = nn.Dense(NUM_CLASSES, name="logits")(x)
        return nn.log_softmax(logits), nn.Dense(1, name="value")(x)


def ppo() -> Call:
    """PPO's loss of an actor-critic in Linen."""
    model = ActorCritic()
    states, best = vectors()
    actions = jnp.arange(len(best)) % NUM_CLASSES
    params = model.init(KEY, states)
    old, _ = model.apply(params, states)
    won = (actions == best).astype(jnp.float32)
    batch = {
        "states": states,
        "actions": actions,
        "old": jnp.take_along_axis(old, actions[:, None], 1)[:, 0],
        "returns": won,
        "advantages": (won - won.mean()) / won.std(),
    }

    def loss_fn(params: Any, batch: dict[str, Array]) -> Array:
        said: Any = model.apply(params, batch["states"])
        log_probs, values = said
        chosen = jax.vmap(lambda row, action: row[action])(log_probs, batch["actions"])
        ratios = jnp.exp(chosen - batch["old"])
        clipped = jnp.clip(ratios, 0.8, 1.2) * batch["advantages"]
        policy = -jnp.mean(jnp.minimum(ratios * batch["advantages"], clipped))
        value = jnp.mean((batch["returns"] - values[:, 0]) ** 2)
        entropy = jnp.mean(jnp.sum(-log_probs * jnp.exp(log_probs), axis=1))
        return policy + 0.5 * value - 0.01 * entropy

    return Call((loss_fn, params, batch))


class VAE(nn.Module):
    """As in Flax's example."""

    @nn.compact
    def __call__(self, x: Array, key: Array) -> tuple[Array, Array, Array]:
        """Return reconstruction, mean and log of the variance."""
        h = nn.relu(nn.Dense(32, name="encoder")(x))
        mean, logvar = nn.Dense(4, name="mean")(h), nn.Dense(4, name="logvar")(h)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        h = nn.relu(nn.Dense(32, name="decoder")(z))
        return nn.Dense(x.shape[-1], name="reconstruction")(h), mean, logvar


def vae() -> Call:
    """A variational autoencoder in Linen, as a loss function with a key."""
    model = VAE()

    def loss_fn(params: Any, batch: Array, key: Array) -> Array:
        outputs: Any = model.apply({"params": params}, batch, key)
        said, mean, logvar = outputs
        kl = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar), -1)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(said, batch).sum(-1) + kl)

    labels = jnp.arange(48) % 4
    pictures = (normal(140, 4, 16) > 0).astype(jnp.float32)
    flips = (normal(141, 48, 16) > 1.6).astype(jnp.float32)
    x = jnp.abs(pictures[labels] - flips)
    return Call((loss_fn, model.init(KEY, x, KEY)["params"], x))


def gan_discriminator() -> Call:
    """A discriminator in Haiku, real images against given false ones."""

    def discriminator(x: Array) -> Array:
        for width in (16, 32):
            x = jax.nn.leaky_relu(hk.Conv2D(width, 4, stride=2)(x), 0.2)
        return hk.Linear(1)(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform(discriminator))
    real, _ = images()

    def loss_fn(params: Any, batch: dict[str, Array]) -> Array:
        said_real = model.apply(params, batch["real"])
        said_fake = model.apply(params, batch["fake"])
        return jnp.mean(jax.nn.softplus(-said_real)) + jnp.mean(jax.nn.softplus(said_fake))

    batch = {"real": real, "fake": normal(142, *real.shape)}
    return Call((loss_fn, model.init(KEY, real), batch))


class Embedder(eqx.Module):
    """Images to unit vectors."""

    conv: eqx.nn.Conv2d
    projection: eqx.nn.MLP

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 16, 3, stride=2, key=one)
        self.projection = eqx.nn.MLP(144, 8, 32, 1, key=two)

    def __call__(self, x: Array) -> Array:
        """Return the vector of one image."""
        z = self.projection(jax.nn.relu(self.conv(x)).reshape(-1))
        return z / jnp.linalg.norm(z)


def contrastive() -> Call:
    """SimCLR's loss of two views, in Equinox."""
    params, rest = eqx.partition(Embedder(KEY), eqx.is_inexact_array)

    def nt_xent(params: Any, views: tuple[Array, Array]) -> Array:
        embed = jax.vmap(eqx.combine(params, rest))
        left, right = embed(views[0]), embed(views[1])
        logits = left @ right.T / 0.2
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(left))).mean()

    x, _ = channels_first(24)
    views = x, x + 0.3 * normal(143, *x.shape)
    return Call((nt_xent, params, views))


class DiTBlock(nn.Module):
    """Norms whose scale, shift and gate come from the condition, zero at first."""

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """Return x + gated attention + gated MLP."""
        zeros = nn.initializers.zeros
        six = nn.Dense(6 * x.shape[-1], kernel_init=zeros, name="modulation")(nn.silu(c))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(six[:, None], 6, -1)
        plain = {"use_bias": False, "use_scale": False}
        y = nn.LayerNorm(**plain)(x) * (1 + scale_a) + shift_a
        attended: Any = nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
        x = x + gate_a * attended
        y = nn.LayerNorm(**plain)(x) * (1 + scale_m) + shift_m
        y = nn.Dense(x.shape[-1], name="down")(nn.gelu(nn.Dense(32, name="up")(y)))
        return x + gate_m * y


class DiT(nn.Module):
    """A diffusion transformer."""

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """Return the noise in each patch."""
        frequencies = jnp.exp(jnp.linspace(0, 3, 8))
        angle = t[:, None] * frequencies
        c = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        c = nn.Dense(16, name="time_2")(nn.silu(nn.Dense(16, name="time_1")(c)))
        x = nn.Dense(16, name="patches")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], 16))
        for index in range(2):
            x = DiTBlock(name=f"block_{index}")(x, c)
        x = nn.LayerNorm(use_bias=False, use_scale=False)(x)
        return nn.Dense(12, kernel_init=nn.initializers.zeros, name="final")(x)


def _noised(x: Array) -> tuple[Array, Array, Array]:
    time = (jnp.arange(len(x)) % 8 + 1) / 8
    noise = normal(144, *x.shape)
    share = time.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.sqrt(1 - share) * x + jnp.sqrt(share) * noise, time, noise


def dit() -> Call:
    """DiT in Linen, that finds the noise; two inputs."""
    x, _ = images(32, 4)
    patches = x.reshape(32, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(32, 4, 12)
    noised, time, noise = _noised(patches)
    return Call((DiT(), (noised, time), noise))


class EpsNet(nnx.Module):
    """A small U-Net that knows the time."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.time = nnx.Linear(1, 16, rngs=rngs)
        self.into = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
        self.down = nnx.Conv(16, 16, (3, 3), strides=2, rngs=rngs)
        self.up = nnx.ConvTranspose(16, 16, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Conv(32, 3, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Array, time: Array) -> Array:
        """Return the noise."""
        t = nnx.silu(self.time(time[:, None]))[:, None, None]
        x = nnx.silu(self.norm(self.into(x)) + t)
        y = nnx.silu(self.up(nnx.silu(self.down(x))))
        return self.out(jnp.concatenate([x, y], -1))


def diffusion() -> Call:
    """Denoising diffusion in NNX, as a loss function of a split model."""
    graphdef, params = nnx.split(EpsNet(nnx.Rngs(0)))

    def loss_fn(params: Any, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        said = nnx.merge(graphdef, params)(batch["x"], batch["time"])
        loss = jnp.mean((said - batch["noise"]) ** 2)
        return loss, {"loss": loss}

    x, _ = images(24)
    noised, time, noise = _noised(x)
    return Call((loss_fn, params, {"x": noised, "time": time, "noise": noise}))


class NeuralODE(eqx.Module):
    """Twelve steps of Euler's method along a field that a network gives."""

    into: eqx.nn.Linear
    field: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        one, two, three = jax.random.split(key, 3)
        self.into = eqx.nn.Linear(8, 16, key=one)
        self.field = eqx.nn.MLP(16, 16, 32, 1, jnp.tanh, key=two)
        self.head = eqx.nn.Linear(16, NUM_CLASSES, key=three)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        state = jax.lax.fori_loop(0, 12, lambda _, y: y + self.field(y) / 12, self.into(x))
        return self.head(state)


def neural_ode() -> Call:
    """A neural ODE in Equinox."""
    return Call((NeuralODE(KEY), *vectors()))


def highway() -> Call:
    """Gates between a layer and its input, as plain functions."""

    def apply(params: Any, x: Array) -> Array:
        x = jnp.tanh(x @ params["stem"])
        for layer in params["layers"]:
            gate = jax.nn.sigmoid(x @ layer["gate"] + layer["gate_bias"])
            x = gate * jnp.tanh(x @ layer["kernel"] + layer["bias"]) + (1 - gate) * x
        return x @ params["head"]

    def layer(seed: int) -> dict[str, Array]:
        kernels = {"gate": normal(seed, 16, 16) / 4, "kernel": normal(seed + 1, 16, 16) / 4}
        return {**kernels, "gate_bias": -jnp.ones(16), "bias": jnp.zeros(16)}

    params = {
        "stem": normal(150, 8, 16) / 8**0.5,
        "layers": [layer(151 + 2 * index) for index in range(5)],
        "head": normal(162, 16, NUM_CLASSES) / 4,
    }
    return Call(((apply, params), *vectors()))


SHAPES = {
    "mlp": Entry("nnx", mlp),
    "mlp_equinox": Entry("equinox", mlp_equinox),
    "mlp_haiku": Entry("haiku", mlp_haiku),
    "mlp_stax": Entry("stax", mlp_stax, learnt=0.55),
    "deep_sets": Entry("plain", deep_sets),
    "graph_network": Entry("door", graph_network, learnt=0.55),
    "gcn": Entry("haiku", gcn),
    "nerf": Entry("linen", nerf),
    "siren": Entry("equinox", siren, "adam:0.001"),
    "fourier_features": Entry("nnx", fourier_features),
    "flow": Entry("door", flow, learnt=4.0),
    "energy_model": Entry("door", energy_model, learnt=1.6),
    "mixture_of_experts": Entry("linen", mixture_of_experts),
    "hypernetwork": Entry("plain", hypernetwork, "adam:0.01"),
    "rezero": Entry("nnx", rezero, "adam:0.01"),
    "kan": Entry("nnx", kan),
    "ppo": Entry("door", ppo, learnt=-0.05),
    "vae": Entry("door", vae, learnt=9.0),
    "gan_discriminator": Entry("door", gan_discriminator, learnt=0.69),
    "contrastive": Entry("door", contrastive, learnt=1.6),
    "dit": Entry("linen", dit),
    "diffusion": Entry("door", diffusion, learnt=0.5),
    "neural_ode": Entry("equinox", neural_ode),
    "highway": Entry("plain", highway),
}
