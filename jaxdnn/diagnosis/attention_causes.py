"""Finders of attention that passes nothing on, and their answers.

References:
  Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023.
  Henry et al., "Query-Key Normalization for Transformers", 2020. Noci et al., "Signal Propagation
  in Transformers: Theoretical Perspectives and the Role of Rank Collapse", 2022: branches scaled by
  one over the root of the depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.diagnosis.attention import find_attentions
from jaxdnn.diagnosis.edit_fixes import scaled_branches
from jaxdnn.diagnosis.findings import STRUCTURAL, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Edit
from jaxdnn.diagnosis.setups import Fix

# Causes that say better what weights of queries and keys of another scale do.
COLLAPSES = ("attention to one token", "tokens become alike")
# A head with less entropy, of what it could have, and a greater weight looks at one token.
_SHARP, _ONE = 0.15, 0.85
# Tokens whose mean cosine is greater are one token.
_SAME = 0.98
_FEWEST_TOKENS = 4


def entropy_collapse(exam: Exam) -> Iterator[Finding]:
    """Find attention in which each token looks at one other."""
    places = {each.weights: each for each in find_attentions(exam.graph)}
    sharp = [
        each
        for each in exam.measured.attentions
        if np.mean(each.entropy) < _SHARP
        and np.mean(each.largest) > _ONE
        and exam.graph.program.full_shape(each.number)[-1] >= _FEWEST_TOKENS
    ]
    if not sharp:
        return
    largest = float(np.mean([each.largest for each in sharp]))
    where = (
        f" in {len(sharp)} of {len(exam.measured.attentions)} attentions" if len(places) > 1 else ""
    )
    text = (
        f"each token looks at one other{where}: in the mean over heads the largest weight is"
        f" {largest:.2g}, where the softmax lets {_slope(largest):.1g} of the gradient through to"
        " queries and keys"
    )
    yield Finding(places[sharp[0].number].asked, text, STRUCTURAL)


def _slope(largest: float) -> float:
    """The slope of a softmax at its largest weight, over the greatest that it has anywhere."""
    return 4 * largest * (1 - largest)


def rank_collapse(exam: Exam) -> Iterator[Finding]:
    """Find tokens that have become the same."""
    behind = [each for each in exam.measured.streams if not math.isnan(each.alike)]
    if not behind or behind[-1].alike < _SAME:
        return
    first = next(each for each in behind if each.alike >= _SAME)
    text = (
        f"the tokens of an example are all alike from here on: their mean cosine is"
        f" {first.alike:.3g}, and {behind[-1].alike:.4g} behind the last block; attention takes the"
        " mean of them, and too little of a token's own is carried past"
    )
    yield Finding(exam.graph.index_of(first.path), text, STRUCTURAL)


def softer_scores(exam: Exam, index: int | None) -> Iterator[Fix]:
    """Divide scores by the root of the length of a key; then normalise queries and keys."""
    del index
    places = find_attentions(exam.graph)
    values = exam.graph.program.values
    scaled: dict[int, Edit] = {}
    normed: dict[int, Edit] = {}
    for each in places:
        for number, axis in (each.queries, each.keys):
            size = values[number].shape[axis]
            scaled[number] = lambda x, _, size=size: x * jnp.asarray(size**-0.25, x.dtype)
            normed[number] = lambda x, _, axis=axis: _normed(x, axis)
    if places:
        number, axis = places[0].queries
        root = f"{math.sqrt(values[number].shape[axis]):.3g}"
        words = f"scores divided by the root of a key's length, {root}"
        yield Fix("scale_scores", words, f"scores = scores / {root}", size=1, edits=scaled)
        code = "query, key = nnx.RMSNorm(d)(query), nnx.RMSNorm(d)(key)  # normalize_qk=True"
        words = "queries and keys normalised"
        yield Fix("normalise_queries_and_keys", words, code, size=2, edits=normed)


def _normed(x: Array, axis: int) -> Array:
    wide = x.astype(jnp.float32)
    size = lax.rsqrt(jnp.mean(wide**2, axis=axis, keepdims=True) + 1e-6)
    return (wide * size).astype(x.dtype)


def carried_past(exam: Exam, index: int | None) -> Iterator[Fix]:
    """Carry each token past the attention, or weaken the branches beside what is carried."""
    del index
    if exam.graph.segments("residual"):
        yield from scaled_branches(exam)
        return
    values, edits = exam.graph.program.values, dict[int, Edit]()
    for each in find_attentions(exam.graph):
        if each.layer is None or each.asked is None:
            continue
        x, z = exam.graph.layers[each.asked].x, exam.graph.layers[each.layer].z
        if x is not None and values[x].is_like(values[z]):
            edits[z] = _plus(x)
    if edits:
        words = "each token carried past the attention"
        yield Fix("attention_shortcuts", words, "x = x + attention(x)", size=2, edits=edits)


def _plus(x: int) -> Edit:
    def edit(value: Any, values: Any) -> Any:
        return value + values[x].astype(value.dtype)

    return edit
