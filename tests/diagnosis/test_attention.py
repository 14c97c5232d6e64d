"""Attention: closed forms of what heads look at and how alike tokens become, in any spelling."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdnn.diagnosis.attention import alike
from jaxdnn.diagnosis.attention_causes import (
    carried_past,
    entropy_collapse,
    rank_collapse,
    softer_scores,
)
from jaxdnn.diagnosis.findings import NAMED
from jaxdnn.diagnosis.measure import examine
from jaxdnn.diagnosis.setups import Trials

BATCH, TOKENS, WIDTH, HEADS = 4, 6, 8, 2
KEY = jax.random.key(0)
SEQUENCES = jax.random.normal(KEY, (BATCH, TOKENS, WIDTH))
LABELS = jnp.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % 3


def by_hand(scores):
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def make_params(scale=1.0, depth=1):
    def block(key):
        names = ("query", "key", "value", "out")
        keys = jax.random.split(key, len(names))
        drawn = {
            name: jax.random.normal(own, (WIDTH, WIDTH)) / math.sqrt(WIDTH)
            for name, own in zip(names, keys, strict=True)
        }
        return drawn | {"query": scale * drawn["query"], "key": scale * drawn["key"]}

    keys = jax.random.split(KEY, depth + 1)
    blocks = [block(key) for key in keys[1:]]
    return {"blocks": blocks, "head": jax.random.normal(keys[0], (WIDTH, 3))}


def split(x):
    return x.reshape(*x.shape[:2], HEADS, WIDTH // HEADS)


def attend(block, x, *, softmax=jax.nn.softmax, mask=None):
    query, key, value = (split(x @ block[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(WIDTH // HEADS)
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", softmax(scores), value)
    return mixed.reshape(x.shape) @ block["out"]


def fused(block, x):
    query, key, value = (split(x @ block[name]) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(query, key, value)
    return mixed.reshape(x.shape) @ block["out"]


CAUSAL = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
SPELLINGS = {
    "softmax": attend,
    "by hand": lambda block, x: attend(block, x, softmax=by_hand),
    "fused": fused,
    "causal": lambda block, x: attend(block, x, mask=CAUSAL),
}


def network(attention, *, carries):
    def apply(params, x):
        for block in params["blocks"]:
            x = carries * x + attention(block, x) if carries else attention(block, x)
        return x @ params["head"]

    return apply


def exam_of(params, spelling="softmax", *, carries=True):
    apply = network(SPELLINGS[spelling], carries=carries)
    return examine((apply, params), SEQUENCES, LABELS)


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_scores_of_zero_look_at_all_tokens_alike(spelling):
    (found,) = exam_of(make_params(scale=0.0), spelling).measured.attentions
    np.testing.assert_allclose(found.entropy, np.ones(HEADS), atol=1e-6)
    seen = np.arange(2, TOKENS + 1) if spelling == "causal" else np.full(TOKENS, TOKENS)
    np.testing.assert_allclose(found.largest, np.full(HEADS, np.mean(1 / seen)), rtol=1e-5)
    assert found.path == "blocks/0/out"


@pytest.mark.parametrize("spelling", ["by hand", "fused"])
def test_the_spelling_changes_nothing(spelling):
    one, other = (exam_of(make_params(), each).measured for each in ("softmax", spelling))
    chex.assert_trees_all_close(
        [each.entropy for each in one.attentions],
        [each.entropy for each in other.attentions],
        rtol=1e-5,
    )
    assert len(one.streams) == len(other.streams) == 1


def test_great_scores_look_at_one_token_and_the_answers_open_them():
    exam = exam_of(make_params(scale=30.0))
    (found,) = exam.measured.attentions
    assert max(found.entropy) < 0.1
    (finding,) = entropy_collapse(exam)
    assert finding.layer == exam.graph.index_of("blocks/0/query")
    assert finding.strength > NAMED
    scaled, normed = softer_scores(exam, finding.layer)
    for fix, least in ((scaled, found.entropy), (normed, (0.5, 0.5))):
        setup = Trials(exam, optax.sgd(0.1)).setup(fix)
        (softer,) = examine((setup.forward, exam.params), SEQUENCES, LABELS).measured.attentions
        assert all(own > bound for own, bound in zip(softer.entropy, least, strict=True))


def test_a_sound_attention_is_no_finding():
    exam = exam_of(make_params())
    assert not list(entropy_collapse(exam))
    assert not list(rank_collapse(exam))


def test_the_mean_of_tokens_is_one_token_unless_each_is_carried_past():
    exam = exam_of(make_params(scale=0.0, depth=2), carries=False)
    np.testing.assert_allclose([each.alike for each in exam.measured.streams], 1, atol=1e-5)
    (finding,) = rank_collapse(exam)
    assert finding.layer == exam.graph.index_of("blocks/0/out")
    (fix,) = carried_past(exam, finding.layer)
    setup = Trials(exam, optax.sgd(0.1)).setup(fix)
    better = examine((setup.forward, exam.params), SEQUENCES, LABELS)
    assert not list(rank_collapse(better))


def test_branches_are_shares_of_the_stream():
    params = make_params(depth=2)
    streams = exam_of(params).measured.streams
    x = np.asarray(SEQUENCES)
    for block, found in zip(params["blocks"], streams, strict=True):
        branch = np.asarray(attend(block, jnp.asarray(x)))
        x = x + branch
        share = np.sqrt(np.mean(branch**2) / np.mean(x**2))
        np.testing.assert_allclose(found.branch, share, rtol=1e-4)
        np.testing.assert_allclose(found.alike, alike(x), rtol=1e-4)


def test_the_mean_cosine_is_that_over_all_pairs():
    tokens = np.random.default_rng(0).standard_normal((3, 5, 4))
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    pairs = [np.sum(units[:, a] * units[:, b], -1) for a, b in itertools.combinations(range(5), 2)]
    np.testing.assert_allclose(alike(tokens), np.mean(pairs), rtol=1e-12)
    np.testing.assert_allclose(alike(np.eye(4)[None]), 0, atol=1e-12)
    np.testing.assert_allclose(alike(np.ones((2, 4, 3))), 1)
    assert math.isnan(alike(np.ones((2, 1, 3))))


class Block(nnx.Module):
    def __init__(self, norm, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, rngs=rngs, decode=False)
        self.up, self.down = nnx.Linear(WIDTH, 16, rngs=rngs), nnx.Linear(16, WIDTH, rngs=rngs)
        self.first, self.second = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.norm = norm

    def __call__(self, x):
        def mlp(x):
            return self.down(nnx.gelu(self.up(x)))

        if self.norm == "before":
            x = x + self.attention(self.first(x))
            return x + mlp(self.second(x))
        if self.norm == "after":
            x = self.first(x + self.attention(x))
            return self.second(x + mlp(x))
        x = x + self.attention(x)
        return x + mlp(x)


class Blocks(nnx.Module):
    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(norm, rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    "norm", ["before", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("after", "none"))]
)
def test_where_norms_stand(norm):
    measured = examine(Blocks(norm), SEQUENCES, LABELS).measured
    assert [each.norm for each in measured.streams] == [norm] * 4
    assert [each.path for each in measured.attentions] == [
        "blocks/0/attention/out",
        "blocks/1/attention/out",
    ]
