"""Targets of other rows, at random or mixed up; features, rows and tokens that tell nothing."""

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.batch_causes import (
    constant_feature,
    contradictory_rows,
    feature_that_is_the_target,
    foreign_normalisation,
    not_finite_rows,
    outweighing_feature,
    padding_rows,
    token_use,
)
from jaxdnn.diagnosis.findings import NAMED
from jaxdnn.diagnosis.information import Probes, mixed_labels, random_targets, shifted_targets

from . import zoo

FEATURES, CLASSES, ROWS = 8, 5, 400
INPUTS = np.asarray(zoo.normal(0, ROWS, FEATURES))
LABELS = (INPUTS @ np.asarray(zoo.normal(1, FEATURES, CLASSES))).argmax(1)
BATCH = (outweighing_feature, constant_feature, foreign_normalisation, padding_rows, token_use)
TARGET = (shifted_targets, random_targets, mixed_labels)
SLOW = pytest.mark.slow


def network(width=32):
    params = [zoo.normal(2, FEATURES, width) / 3, zoo.normal(3, width, CLASSES) / width**0.5]
    return lambda p, x: jnp.tanh(x @ p[0]) @ p[1], params


def named(finders, inputs=INPUTS, targets=LABELS, model=None, loss=None):
    exam = examine(model or network(), jnp.asarray(inputs), jnp.asarray(targets), loss=loss)
    return [finder for finder in finders for each in finder(exam) if each.strength >= NAMED]


def test_sound_rows_have_no_finding():
    assert named([*BATCH, *TARGET]) == []


@pytest.mark.parametrize("shift", [1, *(pytest.param(n, marks=SLOW) for n in (-1, 2))])
def test_targets_of_other_rows_are_named(shift):
    assert named(TARGET, targets=np.roll(LABELS, shift)) == [shifted_targets]


@pytest.mark.slow
def test_numbers_of_other_rows_are_named():
    wanted = INPUTS @ np.asarray(zoo.normal(4, FEATURES, CLASSES)) + 0.3
    assert named(TARGET, targets=wanted) == []
    assert named(TARGET, targets=np.roll(wanted, 1, 0)) == [shifted_targets]


@pytest.mark.slow
def test_a_network_that_knows_finds_its_own_order():
    rule = zoo.normal(1, FEATURES, CLASSES)
    knows = (lambda p, x: 9 * x @ p, rule)
    assert named(TARGET, targets=np.roll(LABELS, -1), model=knows) == [shifted_targets]


@pytest.mark.parametrize(("rows", "finders"), [(ROWS, [random_targets]), (32, [])])
def test_random_labels_are_named_where_rows_suffice(rows, finders):
    labels = np.random.default_rng(5).integers(0, CLASSES, rows)
    model = network(256)
    assert named(TARGET, INPUTS[:rows], labels, model) == finders


def test_labels_at_random_in_some_classes_are_named():
    mixed, rng = LABELS.copy(), np.random.default_rng(6)
    some = np.flatnonzero(mixed < 2)
    mixed[some] = mixed[rng.permutation(some)]
    exam = examine(network(), jnp.asarray(INPUTS), jnp.asarray(mixed))
    (finding,) = mixed_labels(exam)
    assert "labels 0, 1 " in finding.evidence


@pytest.mark.slow
def test_exchanged_names_are_told_by_a_network_that_knows():
    knows = (lambda p, x: 9 * x @ p, zoo.normal(1, FEATURES, CLASSES))
    renamed = np.array([0, 2, 1, 3, 4])[LABELS]
    assert named(TARGET, targets=renamed, model=knows) == [mixed_labels]
    # To one that knows nothing they are names like any other.
    assert named(TARGET, targets=renamed) == []


def test_the_level_of_random_targets_is_uniform():
    """40 p-values of nothing: mean 1/2 within 4 / sqrt(12 * 40)."""
    levels = [
        Probes(
            [np.asarray(zoo.normal(seed, 60, 5))], np.asarray(zoo.normal(100 + seed, 60, 1))
        ).level()
        for seed in range(40)
    ]
    chex.assert_trees_all_close(np.mean([level.p for level in levels]), 0.5, atol=0.18)


def changed(column, value):
    inputs = INPUTS.copy()
    inputs[:, column] = value(inputs[:, column])
    return inputs


@pytest.mark.parametrize(
    ("value", "finders"),
    [
        (lambda x: 1e4 * x, [outweighing_feature]),
        (lambda x: 0 * x + 0.3, [constant_feature]),
        # A column of ones is meant.
        (lambda x: 0 * x + 1, []),
        pytest.param(lambda x: 3 * x, [], marks=SLOW),
    ],
)
def test_a_feature_unlike_the_others_is_named(value, finders):
    assert named(BATCH, changed(3, value)) == finders


def test_a_column_that_is_the_target_is_named_and_its_neighbours_are_not():
    def found(targets):
        exam = examine(network(), INPUTS, targets, loss=lambda y, t: jnp.mean((y[:, 0] - t) ** 2))
        return list(feature_that_is_the_target(exam))

    (finding,) = found(3 * INPUTS[:, 2] - 7)
    assert "feature 2" in finding.evidence
    assert not found(INPUTS[:, 2] + 1e-3 * INPUTS[:, 1])


def test_rows_that_contradict_each_other_are_named_and_repeated_ones_are_not():
    half = ROWS // 2
    twice, labels = np.concatenate([INPUTS[:half]] * 2), np.concatenate([LABELS[:half]] * 2)
    assert not list(contradictory_rows(examine(network(), twice, labels)))
    labels[:40] = (labels[:40] + 1) % CLASSES
    (finding,) = contradictory_rows(examine(network(), twice, labels))
    # Each of the 40 is contradicted by its copy.
    assert f"80 of {ROWS} rows" in finding.evidence


def test_rows_that_are_not_finite_are_named():
    assert not list(not_finite_rows(INPUTS, LABELS))
    (finding,) = not_finite_rows(changed(2, lambda x: np.where(np.arange(ROWS) == 7, np.nan, x)), 0)
    assert "1 of 400 rows (row 7), feature 2" in finding.evidence


@pytest.mark.slow
def test_images_normalised_twice_are_told_by_the_constants():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = np.asarray(zoo.normal(8, 40, 6, 6, 3))
    params = zoo.normal(9, 108, CLASSES) / 9
    model = (lambda p, x: x.reshape(len(x), -1) @ p, params)
    finders, targets = [foreign_normalisation], np.arange(40) % CLASSES
    assert named(finders, images, targets, model) == []
    assert named(finders, (images - mean) / std, targets, model) == finders


def masked(logits, targets):
    counted = targets >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(each * counted) / jnp.sum(counted)


@pytest.mark.parametrize(("target", "finders"), [(0, [padding_rows]), (-1, [])])
def test_padding_is_named_where_it_counts(target, finders):
    inputs, targets = INPUTS.copy(), LABELS.copy()
    inputs[-50:], targets[-50:] = 0, target
    assert named([padding_rows], inputs, targets, loss=masked) == finders


@pytest.mark.parametrize(("target", "finders"), [(0, [padding_rows]), (-1, [])])
@pytest.mark.slow
def test_places_that_fill_up_sentences_are_named_where_they_count(target, finders):
    rng = np.random.default_rng(10)
    tokens, targets = (rng.integers(1, 12, (64, 10)) for _ in range(2))
    over = np.arange(10) >= rng.integers(3, 10, 64)[:, None]
    model = (lambda p, x: p[x] @ p.T, zoo.normal(11, 12, 6))
    data = np.where(over, 0, tokens), np.where(over, target, targets)
    assert named([padding_rows], *data, model, masked) == finders


@pytest.mark.parametrize(
    ("use", "finders"),
    [
        pytest.param(lambda x: x, [], marks=SLOW),
        (lambda x: x % 4, [token_use]),
        (lambda x: np.where(x < 10, 3, x), [token_use]),
        # The ends of sentences are full of one token.
        (lambda x: np.where(np.arange(10) > 2, 0, x), []),
    ],
)
def test_tokens_that_are_never_or_always_used_are_named(use, finders):
    tokens = use(np.random.default_rng(12).integers(0, 12, (64, 10)))
    model = (lambda p, x: p[0][x].mean(1) @ p[1], [zoo.normal(13, 12, 6), zoo.normal(14, 6, 3)])
    assert named([token_use], tokens, np.arange(64) % 3, model) == finders


def test_a_table_of_two_rows_that_fills_up_sentences_is_used():
    """Segments 0 and 1, one after the other: the second is no padding."""
    types = np.broadcast_to(np.arange(10) > 4, (64, 10)).astype(np.int32)
    model = (lambda p, x: p[0][x].mean(1) @ p[1], [zoo.normal(13, 2, 6), zoo.normal(14, 6, 3)])
    assert named([token_use], types, np.arange(64) % 3, model) == []


def test_finders_take_any_tree_and_any_loss():
    """Rows of two arrays with a mask: nothing is known of such targets, and nothing is said."""
    inputs = {"a": jnp.asarray(INPUTS), "b": jnp.asarray(INPUTS[:, :1])}
    targets = (jnp.asarray(LABELS), jnp.ones(ROWS), jnp.float32(2))

    def apply(params, x):
        return jnp.tanh(x["a"] @ params) @ params.T

    def loss(logits, targets):
        labels, weights, factor = targets
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return factor * jnp.sum(weights * each) / jnp.sum(weights)

    exam = examine((apply, zoo.normal(1, FEATURES, CLASSES)), inputs, targets, loss=loss)
    assert [finder for finder in (*BATCH, *TARGET) for _ in finder(exam)] == []
