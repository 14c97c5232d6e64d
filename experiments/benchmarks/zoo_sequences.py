"""Networks for text and series in the manner of public ones, each in its library's own idiom."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from jax import Array
from zoo_tasks import (
    KEY,
    NUM_CLASSES,
    NUM_WORDS,
    Call,
    Entry,
    next_words,
    normal,
    sentences,
    text,
    waves,
)

_WORDS = optax.softmax_cross_entropy_with_integer_labels


class LSTM(nnx.Module):
    """The last state of an LSTM."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.lstm = nnx.RNN(nnx.LSTMCell(2, 16, rngs=rngs))
        self.head = nnx.Linear(16, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        return self.head(self.lstm(x)[:, -1])


def lstm() -> Call:
    """LSTM in NNX."""
    return Call((LSTM(nnx.Rngs(0)), *waves()))


class GRU(eqx.Module):
    """As in Equinox's example."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        one, two = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(2, 16, key=one)
        self.head = eqx.nn.Linear(16, NUM_CLASSES, key=two)

    def __call__(self, series: Array) -> Array:
        """Return the logits of one series."""

        def step(state: Array, x: Array) -> tuple[Array, None]:
            return self.cell(x, state), None

        state, _ = jax.lax.scan(step, jnp.zeros(16), series)
        return self.head(state)


def gru() -> Call:
    """GRU in Equinox."""
    return Call((GRU(KEY), *waves()))


def stacked_rnn() -> Call:
    """Two LSTMs and a skip connection in Haiku."""

    def forward(x: Array) -> Array:
        core = hk.deep_rnn_with_skip_connections([hk.LSTM(16), hk.LSTM(16)])
        outputs: Any = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(NUM_CLASSES)(outputs[0][:, -1])

    x, labels = waves()
    transformed = hk.without_apply_rng(hk.transform(forward))
    return Call(((transformed, transformed.init(KEY, x)), x, labels))


class Bidirectional(nn.Module):
    """GRUs both ways, after embeddings."""

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Return logits."""
        embedded = nn.Embed(NUM_WORDS, 8)(tokens)
        x: Any = nn.Bidirectional(nn.RNN(nn.GRUCell(16)), nn.RNN(nn.GRUCell(16)))(embedded)
        return nn.Dense(NUM_CLASSES)(x[:, 0])


def bidirectional() -> Call:
    """A bidirectional GRU in Linen."""
    return Call((Bidirectional(), *sentences()))


class Seq2Seq(nn.Module):
    """An encoder, a decoder that sees the answer so far, and attention between them."""

    @nn.compact
    def __call__(self, source: Array, before: Array) -> Array:
        """Return logits of each next word."""
        embed = nn.Embed(NUM_WORDS, 16)
        encoded: Any = nn.RNN(nn.OptimizedLSTMCell(16))(embed(source))
        decoded: Any = nn.RNN(nn.OptimizedLSTMCell(16))(embed(before))
        scores = nn.Dense(16, use_bias=False, name="query")(decoded) @ encoded.swapaxes(1, 2)
        context = nn.softmax(scores / 4.0) @ encoded
        x = nn.tanh(nn.Dense(16, name="mix")(jnp.concatenate([decoded, context], -1)))
        return nn.Dense(NUM_WORDS, name="head")(x)


def seq2seq() -> Call:
    """Translation with Luong's attention in Linen: a sentence turned round."""
    source = text(length=6)
    target = source[:, ::-1]
    before = jnp.concatenate([jnp.zeros((len(target), 1), target.dtype), target[:, :-1]], 1)
    return Call((Seq2Seq(), (source, before), target))


def char_rnn() -> Call:
    """A language model in Haiku, as a loss function, time first."""

    def forward(words: Array) -> Array:
        core = hk.GRU(24)
        x = hk.Embed(NUM_WORDS, 16)(words)
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(words.shape[1]))
        return hk.Linear(NUM_WORDS)(x)

    model = hk.without_apply_rng(hk.transform(forward))
    words = text().T

    def loss_fn(params: Any, batch: dict[str, Array]) -> Array:
        logits = model.apply(params, batch["input"])
        targets = jax.nn.one_hot(batch["target"], NUM_WORDS)
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))

    batch = {"input": words[:-1], "target": words[1:]}
    return Call((loss_fn, model.init(KEY, batch["input"]), batch))


def tcn() -> Call:
    """Dilated causal convolutions with residuals, as plain functions."""

    def conv(x: Array, layer: dict[str, Array], dilation: int) -> Array:
        y = jax.lax.conv_general_dilated(
            x, layer["w"], (1,), [(2 * dilation, 0)], rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip
        return y + layer["b"]

    def apply(params: Any, x: Array) -> Array:
        x = x @ params["stem"]
        for index, block in enumerate(params["blocks"]):
            y = jax.nn.relu(conv(x, block[0], 2**index))
            x = jax.nn.relu(x + conv(y, block[1], 2**index))
        return x[:, -1] @ params["head"]

    def layer(seed: int) -> dict[str, Array]:
        return {"w": normal(seed, 3, 16, 16) / 48**0.5, "b": jnp.zeros(16)}

    params = {
        "stem": normal(40, 2, 16) / 2**0.5,
        "blocks": [[layer(41 + 2 * i), layer(42 + 2 * i)] for i in range(2)],
        "head": normal(47, 16, NUM_CLASSES) / 4,
    }
    return Call(((apply, params), *waves()))


def wavenet() -> Call:
    """Gated dilated convolutions whose skips add up, in Haiku."""

    def forward(words: Array) -> Array:
        x, skips = hk.Embed(NUM_WORDS, 16)(words), jnp.zeros(())
        for rate in (1, 2, 4):
            conv = {"kernel_shape": 2, "rate": rate, "padding": hk.pad.causal}
            y = jnp.tanh(hk.Conv1D(16, **conv, name="filter")(x))
            y = y * jax.nn.sigmoid(hk.Conv1D(16, **conv, name="gate")(x))
            skips = skips + hk.Linear(16, name="skip")(y)
            # Only the skips of the last one are used.
            x = x + hk.Linear(16, name="residual")(y) if rate < 4 else x
        x = jax.nn.relu(hk.Linear(16)(jax.nn.relu(skips)))
        return hk.Linear(NUM_WORDS)(x)

    words, targets = next_words()
    transformed = hk.transform(forward)
    return Call(((transformed, transformed.init(KEY, words)), words, targets))


class BERTLayer(nn.Module):
    """Norms after the sums."""

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Return norm(x + MLP(norm(x + attention)))."""
        y = nn.MultiHeadDotProductAttention(num_heads=2, deterministic=deterministic)(x)
        x = nn.LayerNorm()(x + nn.Dropout(0.1)(y, deterministic=deterministic))
        y = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(32)(x)))
        return nn.LayerNorm()(x + nn.Dropout(0.1)(y, deterministic=deterministic))


class BERT(nn.Module):
    """Three tables, layers, and a pooler of the first word."""

    @nn.compact
    def __call__(self, input_ids: Array, token_types: Array, deterministic: bool = False) -> Array:
        """Return logits."""
        table = nn.initializers.normal(0.02)
        x = nn.Embed(NUM_WORDS, 16, embedding_init=table, name="word_embeddings")(input_ids)
        places = jnp.arange(input_ids.shape[1])[None]
        x = x + nn.Embed(16, 16, embedding_init=table, name="position_embeddings")(places)
        x = x + nn.Embed(2, 16, embedding_init=table, name="token_type_embeddings")(token_types)
        x = nn.LayerNorm(name="embeddings_norm")(x)
        for index in range(2):
            x = BERTLayer(name=f"layer_{index}")(x, deterministic)
        return nn.Dense(NUM_CLASSES)(nn.tanh(nn.Dense(16, name="pooler")(x[:, 0])))


def bert() -> Call:
    """BERT in Linen, with inputs by name."""
    words, labels = sentences()
    types = jnp.zeros_like(words).at[:, 4:].set(1)
    return Call((BERT(), {"input_ids": words, "token_types": types}, labels))


class GPTBlock(nnx.Module):
    """Norms before attention and MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.ln1, self.ln2 = nnx.LayerNorm(24, rngs=rngs), nnx.LayerNorm(24, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 24, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(24, 48, rngs=rngs), nnx.Linear(48, 24, rngs=rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        """Return x + attention + MLP."""
        x = x + self.attention(self.ln1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.ln2(x))))


class GPT(nnx.Module):
    """A decoder whose head is its table of words."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        table = nnx.initializers.normal(0.02)
        self.words = nnx.Embed(NUM_WORDS, 24, embedding_init=table, rngs=rngs)
        self.places = nnx.Embed(16, 24, embedding_init=table, rngs=rngs)
        self.blocks = nnx.List([GPTBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(24, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Return logits of each next word."""
        x = self.words(tokens) + self.places(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.words.attend(self.norm(x))


def gpt() -> Call:
    """GPT in NNX."""
    return Call((GPT(nnx.Rngs(0)), *next_words()))


class T5Attention(nn.Module):
    """Without biases or scale, with a bias by distance."""

    @nn.compact
    def __call__(self, x: Array, memory: Array, bias: Array) -> Array:
        """Return what is seen of the memory."""
        shape, width = (2, 8), x.shape[-1]
        q = nn.DenseGeneral(shape, use_bias=False, name="q")(x)
        k = nn.DenseGeneral(shape, use_bias=False, name="k")(memory)
        v = nn.DenseGeneral(shape, use_bias=False, name="v")(memory)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q / 8**0.5, k) + bias)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.DenseGeneral(width, (-2, -1), use_bias=False, name="o")(y)


def _distance_bias(module: nn.Module, length: int, causal: bool) -> Array:
    table = module.param("relative_bias", nn.initializers.normal(1.0), (9, 2))
    distance = jnp.arange(length)[None] - jnp.arange(length)[:, None]
    bias = jnp.take(table, jnp.clip(distance, -4, 4) + 4, axis=0).transpose(2, 0, 1)[None]
    return jnp.where(distance > 0, -1e9, bias) if causal else bias


class T5(nn.Module):
    """An encoder and a decoder with gated MLPs and RMS norms."""

    @nn.compact
    def __call__(self, source: Array, before: Array) -> Array:
        """Return logits of each next word."""

        def mlp(x: Array, name: str) -> Array:
            gate = nn.gelu(nn.Dense(32, use_bias=False, name=f"{name}_wi_0")(x))
            y = gate * nn.Dense(32, use_bias=False, name=f"{name}_wi_1")(x)
            return nn.Dense(16, use_bias=False, name=f"{name}_wo")(y)

        embed, length = nn.Embed(NUM_WORDS, 16, name="shared"), source.shape[1]
        x = embed(source)
        bias = _distance_bias(self, length, causal=False)
        y = nn.RMSNorm()(x)
        x = x + T5Attention(name="encoder")(y, y, bias)
        memory = nn.RMSNorm()(x + mlp(nn.RMSNorm()(x), "encoder_mlp"))
        x = embed(before)
        mask = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, -1e9)
        y = nn.RMSNorm()(x)
        x = x + T5Attention(name="decoder")(y, y, mask)
        x = x + T5Attention(name="cross")(nn.RMSNorm()(x), memory, jnp.zeros(()))
        x = nn.RMSNorm()(x + mlp(nn.RMSNorm()(x), "decoder_mlp"))
        return nn.Dense(NUM_WORDS, use_bias=False, name="lm_head")(x)


def t5() -> Call:
    """T5 in Linen: a sentence turned round."""
    source = text(length=6)
    target = source[:, ::-1]
    before = jnp.concatenate([jnp.zeros((len(target), 1), target.dtype), target[:, :-1]], 1)
    return Call((T5(), (source, before), target))


class Perceiver(eqx.Module):
    """A few latents look at a long input, again and again."""

    latents: Array
    embed: eqx.nn.Linear
    places: Array
    look: eqx.nn.MultiheadAttention
    think: eqx.nn.MultiheadAttention
    norms: list[eqx.nn.LayerNorm]
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        keys = jax.random.split(key, 7)
        self.latents = 0.02 * jax.random.normal(keys[0], (4, 16))
        self.places = 0.02 * jax.random.normal(keys[1], (12, 16))
        self.embed = eqx.nn.Linear(2, 16, key=keys[2])
        self.look = eqx.nn.MultiheadAttention(2, 16, key=keys[3])
        self.think = eqx.nn.MultiheadAttention(2, 16, key=keys[4])
        self.norms = [eqx.nn.LayerNorm(16) for _ in range(4)]
        self.mlp = eqx.nn.MLP(16, 16, 32, 1, jax.nn.gelu, key=keys[5])
        self.head = eqx.nn.Linear(16, NUM_CLASSES, key=keys[6])

    def __call__(self, series: Array) -> Array:
        """Return the logits of one series."""
        seen = jax.vmap(self.norms[0])(jax.vmap(self.embed)(series) + self.places)
        x = self.latents
        x = x + self.look(jax.vmap(self.norms[1])(x), seen, seen)
        y = jax.vmap(self.norms[2])(x)
        x = x + self.think(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[3])(x))
        return self.head(x.mean(0))


def perceiver() -> Call:
    """Perceiver in Equinox."""
    return Call((Perceiver(KEY), *waves()))


def _rms_norm(x: Array, gain: Array) -> Array:
    return gain * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def linear_attention() -> Call:
    """Causal attention without softmax, by sums, as plain functions."""

    def attend(x: Array, layer: dict[str, Array]) -> Array:
        q, k = (jax.nn.elu(x @ layer[name]) + 1 for name in ("wq", "wk"))
        kv = jnp.cumsum(jnp.einsum("btd,bte->btde", k, x @ layer["wv"]), 1)
        total = jnp.einsum("btd,btd->bt", q, jnp.cumsum(k, 1))
        return jnp.einsum("btd,btde->bte", q, kv) / total[..., None] @ layer["wo"]

    def apply(params: Any, words: Array) -> Array:
        x = params["embed"][words] + params["places"]
        for layer in params["layers"]:
            x = x + attend(_rms_norm(x, layer["g1"]), layer)
            x = x + jax.nn.gelu(_rms_norm(x, layer["g2"]) @ layer["up"]) @ layer["down"]
        return _rms_norm(x, params["gain"]) @ params["head"]

    def layer(seed: int) -> dict[str, Array]:
        square = {
            name: normal(seed + i, 16, 16) / 4 for i, name in enumerate(("wq", "wk", "wv", "wo"))
        }
        mlp = {"up": normal(seed + 5, 16, 32) / 4, "down": normal(seed + 6, 32, 16) / 32**0.5}
        return {**square, **mlp, "g1": jnp.ones(16), "g2": jnp.ones(16)}

    params = {
        "embed": 0.02 * normal(60, NUM_WORDS, 16),
        "places": 0.02 * normal(61, 8, 16),
        "layers": [layer(62), layer(70)],
        "gain": jnp.ones(16),
        "head": normal(78, 16, NUM_WORDS) / 4,
    }
    return Call(((apply, params), *next_words()))


def s4() -> Call:
    """Diagonal state-space layers by an associative scan, as plain functions."""

    def ssm(x: Array, layer: dict[str, Array]) -> Array:
        step = jnp.exp(layer["log_dt"])
        decay = jnp.exp(-jnp.exp(layer["log_a"]) * step)
        driven = (x @ layer["b"]) * step

        def join(left: Any, right: Any) -> Any:
            return left[0] * right[0], left[1] * right[0] + right[1]

        decays = jnp.broadcast_to(decay, driven.shape)
        _, states = jax.lax.associative_scan(join, (decays, driven), axis=1)
        return states @ layer["c"] + layer["d"] * x

    def apply(params: Any, x: Array) -> Array:
        x = x @ params["encoder"]
        for layer in params["layers"]:
            y = jax.nn.gelu(ssm(_rms_norm(x, layer["gain"]), layer))
            x = x + y @ layer["out"]
        return x.mean(1) @ params["head"]

    def layer(seed: int) -> dict[str, Array]:
        matrices = {n: normal(seed + i, 16, 16) / 4 for i, n in enumerate(("b", "c", "out"))}
        log_a = jnp.log(0.5 + jnp.arange(16) / 4)
        log_dt = jnp.linspace(jnp.log(0.01), jnp.log(0.3), 16)
        return {
            **matrices,
            "log_a": log_a,
            "log_dt": log_dt,
            "d": jnp.ones(16),
            "gain": jnp.ones(16),
        }

    params = {
        "encoder": normal(80, 2, 16) / 2**0.5,
        "layers": [layer(81), layer(85)],
        "head": normal(89, 16, NUM_CLASSES) / 4,
    }
    return Call(((apply, params), *waves()))


class MambaBlock(nnx.Module):
    """A short convolution, a selective scan, and a gate."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        inner, states = 2 * width, 4
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.in_proj = nnx.Linear(width, 2 * inner, use_bias=False, rngs=rngs)
        self.conv = nnx.Conv(
            inner, inner, (4,), feature_group_count=inner, padding="CAUSAL", rngs=rngs
        )
        self.x_proj = nnx.Linear(inner, 2 * states + 2, use_bias=False, rngs=rngs)
        self.dt_proj = nnx.Linear(2, inner, rngs=rngs)
        self.A_log = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, states + 1), (inner, 1))))
        self.D = nnx.Param(jnp.ones(inner))
        self.out_proj = nnx.Linear(inner, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return x + branch."""
        u, gate = jnp.split(self.in_proj(self.norm(x)), 2, -1)
        u = nnx.silu(self.conv(u))
        dt, b, c = jnp.split(self.x_proj(u), [2, 6], -1)
        dt = nnx.softplus(self.dt_proj(dt))
        decay = jnp.exp(-dt[..., None] * jnp.exp(self.A_log[...]))
        drive = (dt * u)[..., None] * b[..., None, :]

        def step(state: Array, now: Any) -> tuple[Array, Array]:
            decay, drive, c = now
            state = decay * state + drive
            return state, jnp.einsum("bds,bs->bd", state, c)

        now = tuple(jnp.moveaxis(each, 1, 0) for each in (decay, drive, c))
        _, y = jax.lax.scan(step, jnp.zeros_like(drive[:, 0]), now)
        y = jnp.moveaxis(y, 0, 1) + self.D[...] * u
        return x + self.out_proj(y * nnx.silu(gate))


class Mamba(nnx.Module):
    """A language model of such blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.embed = nnx.Embed(NUM_WORDS, 16, rngs=rngs)
        self.blocks = nnx.List([MambaBlock(16, rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, NUM_WORDS, use_bias=False, rngs=rngs)

    def __call__(self, words: Array) -> Array:
        """Return logits of each next word."""
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mamba() -> Call:
    """Mamba in NNX."""
    return Call((Mamba(nnx.Rngs(0)), *next_words()))


class RetNet(nn.Module):
    """Retention: attention with a fixed decay in place of softmax."""

    @nn.compact
    def __call__(self, words: Array) -> Array:
        """Return logits of each next word."""
        x = nn.Embed(NUM_WORDS, 16)(words)
        time = jnp.arange(words.shape[1])
        distance = time[:, None] - time[None]
        for index in range(2):
            y = nn.RMSNorm()(x)
            q, k, v, gate = jnp.split(nn.Dense(64, use_bias=False, name=f"qkvg_{index}")(y), 4, -1)
            decay = jnp.where(distance >= 0, 0.9 ** jnp.maximum(distance, 0), 0.0)
            y = (q @ k.swapaxes(1, 2) / 4 * decay) @ v
            y = nn.RMSNorm(name=f"head_norm_{index}")(y) * nn.swish(gate)
            x = x + nn.Dense(16, use_bias=False, name=f"out_{index}")(y)
            y = nn.gelu(nn.Dense(32, name=f"up_{index}")(nn.RMSNorm()(x)))
            x = x + nn.Dense(16, name=f"down_{index}")(y)
        return nn.Dense(NUM_WORDS)(nn.RMSNorm()(x))


def retnet() -> Call:
    """RetNet in Linen."""
    return Call((RetNet(), *next_words()))


def word2vec() -> Call:
    """Skip-grams with negative samples, as a loss function."""

    def loss_fn(params: dict[str, Array], batch: dict[str, Array]) -> Array:
        centre = params["in"][batch["centre"]]
        context = params["out"][batch["context"]]
        negative = params["out"][batch["negative"]]
        near = jnp.einsum("bd,bd->b", centre, context)
        far = jnp.einsum("bd,bnd->bn", centre, negative)
        return -jnp.mean(jax.nn.log_sigmoid(near)) - jnp.mean(jax.nn.log_sigmoid(-far))

    centre = jnp.arange(64) % NUM_WORDS
    draws = 2 + jax.random.randint(KEY, (64, 4), 0, NUM_WORDS - 2)
    batch = {
        "centre": centre,
        "context": (centre + 1) % NUM_WORDS,
        "negative": (centre[:, None] + draws) % NUM_WORDS,
    }
    tables = {"in": normal(90, NUM_WORDS, 16) / 16, "out": normal(91, NUM_WORDS, 16) / 16}
    return Call((loss_fn, tables, batch))


def bag_of_words() -> Call:
    """Mean of embeddings, then two layers, in Haiku, the bare transform."""

    def forward(words: Array) -> Array:
        return hk.nets.MLP([16, 2])(hk.Embed(NUM_WORDS, 16)(words).mean(1))

    words, _ = sentences()
    return Call((hk.transform(forward), words, (words < 6).sum(1) // 5))


SEQUENCES = {
    "lstm": Entry("nnx", lstm, "adam:0.01"),
    "gru": Entry("equinox", gru, "adam:0.01"),
    "stacked_rnn": Entry("haiku", stacked_rnn, "adam:0.01"),
    "bidirectional": Entry("linen", bidirectional, "adam:0.01"),
    "seq2seq": Entry("linen", seq2seq, "adam:0.01"),
    "char_rnn": Entry("door", char_rnn, "adam:0.01", learnt=1.24),
    "tcn": Entry("plain", tcn),
    "wavenet": Entry("haiku", wavenet),
    "bert": Entry("linen", bert),
    "gpt": Entry("nnx", gpt),
    "t5": Entry("linen", t5),
    "perceiver": Entry("equinox", perceiver),
    "linear_attention": Entry("plain", linear_attention),
    "s4": Entry("plain", s4, "adam:0.01"),
    "mamba": Entry("nnx", mamba),
    "retnet": Entry("linen", retnet),
    "word2vec": Entry("door", word2vec, "adam:0.01", learnt=0.69),
    "bag_of_words": Entry("haiku", bag_of_words, "adam:0.01"),
}
