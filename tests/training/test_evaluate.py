"""Evaluation: every image once, metrics by brute force, and statistics pooled over batches."""

import functools
import itertools
import json
import math
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data import Dataset, ImagesInMemory, Split, normalise_images
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.options import ModelOptions, TrainOptions
from jaxdnn.training import init_state, make_setup, make_trainer
from jaxdnn.training.evaluate import (
    accuracy,
    area_under_curve,
    auc,
    balanced_accuracy,
    classification_metrics,
    confusion_matrix,
    confusion_summary,
    log_odds,
    majority_fraction,
    make_estimate_batch_stats,
    make_predict,
    most_confused,
    pool,
    recalls,
)
from jaxdnn.training.step import Variables

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 2, 3, 1), np.uint8)
STATS = ImagesInMemory(IMAGES).pixel_stats
NORMALISE = functools.partial(normalise_images, pixel_stats=STATS)


@functools.cache
def network(norm_momentum=0.9):
    options = BlockOptions(norm="batch", norm_momentum=norm_momentum, dropout=0.5)
    model = make_mlp((2, 3, 1), 3, widths=(5, 4), options=options)
    return model, Variables(*jax.jit(model.init)(jax.random.key(0)))


@functools.partial(jax.jit, static_argnames="training")
def applied(variables, *, training=False):
    model, _ = network()
    batch = normalise_images(jnp.asarray(IMAGES), STATS)
    return model.apply(*variables, batch, training=training).logits


SLOW_SIZES = [pytest.param(num, marks=pytest.mark.slow) for num in (7, 8)]


@pytest.mark.parametrize("num", [1, *SLOW_SIZES, 9, 24])
def test_predict_gives_each_image_its_own_logits(num):
    model, variables = network()
    images = ImagesInMemory(jnp.asarray(IMAGES[:num]))
    logits = make_predict(model, NORMALISE, batch_size=8)(variables, images)
    expected = np.asarray(applied(variables))[:num]
    chex.assert_shape(logits, (num, 3))
    chex.assert_trees_all_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_flips_average_an_image_with_its_mirror_image_and_so_cannot_tell_them_apart():
    model, variables = network()
    ours, mirrored = (ImagesInMemory(jnp.asarray(x)) for x in (IMAGES, IMAGES[:, :, ::-1]))
    plain, flipped = (make_predict(model, NORMALISE, flip=flip) for flip in (False, True))
    expected = (plain(variables, ours) + plain(variables, mirrored)) / 2
    chex.assert_trees_all_close(flipped(variables, ours), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        flipped(variables, ours), flipped(variables, mirrored), rtol=1e-6, atol=1e-7
    )
    assert np.abs(plain(variables, ours) - plain(variables, mirrored)).max() > 0.1


def shuffled_batches(num, batch_size):
    order = np.random.default_rng(1).permutation(num).astype(np.int32)
    return order.reshape(-1, batch_size)


@functools.cache
def estimated(batch_size, shift=0.0):
    """A network with statistics estimated from running averages that were moved by `shift`."""
    model, variables = network(norm_momentum=0.0)
    estimate = make_estimate_batch_stats(model, NORMALISE, shuffled_batches(24, batch_size))
    moved = jax.tree.map(lambda leaf: leaf + shift, variables.batch_stats)
    moved = variables._replace(batch_stats=moved)
    return variables._replace(batch_stats=estimate(moved, ImagesInMemory(jnp.asarray(IMAGES))))


@pytest.mark.parametrize("batch_size", [8, 24])
def test_the_first_layer_s_statistics_are_those_of_the_whole_set(batch_size):
    params, stats = estimated(batch_size)
    x = (IMAGES.reshape(24, -1) / 255 - STATS.mean) / STATS.std
    z = x @ np.asarray(params["layers"][0]["linear"]["kernel"])
    expected = jax.tree.map(np.float32, {"mean": z.mean(axis=0), "var": z.var(axis=0)})
    chex.assert_trees_all_close(stats["layers"][0]["norm"], expected, rtol=1e-4, atol=1e-5)


def test_in_one_batch_evaluation_equals_training():
    """Every layer then sees in evaluation the normalisation that it saw in training."""
    training = applied(estimated(24), training=True)
    chex.assert_trees_all_close(applied(estimated(24)), training, rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_the_running_averages():
    first, second = (estimated(8, shift) for shift in (0.0, 3.0))
    chex.assert_trees_all_equal(first, second)


@pytest.mark.slow
def test_statistics_do_not_depend_on_whether_the_images_are_sorted_by_class():
    """Folders come class by class, but no batch of the estimate may be of one class alone."""
    num = 4096
    labels = np.arange(num, dtype=np.int32) * 2 // num
    levels = RNG.integers(0, 40, (num, 2, 3, 1)) + 200 * labels[:, None, None, None]
    config = Config(
        model=ModelOptions(widths=(5, 4), norm_statistics="training_set"),
        train=TrainOptions(batch_size=64, epochs=1),
    )

    def second_layer(order):
        images = ImagesInMemory(levels[order].astype(np.uint8))
        train = Split(images, labels[order], ("",) * num)
        few = Split(ImagesInMemory(train.images[:4]), train.labels[:4], train.names[:4])
        setup = make_setup(config, Dataset(("dark", "bright"), train, few, few, (), "random"))
        _, stats = make_trainer(setup).evaluate(init_state(setup))
        return stats.batch_stats["layers"][1]["norm"]

    ours, theirs = second_layer(np.arange(num)), second_layer(RNG.permutation(num))
    # Two estimates of mean and variance, each from 4096 images: 5 sigma = 5 * sqrt(2 * 2 / 4096).
    deviation = jnp.sqrt(theirs["var"])
    means = (ours["mean"] / deviation, theirs["mean"] / deviation)
    chex.assert_trees_all_close(*means, rtol=0, atol=0.16)
    chex.assert_trees_all_close(ours["var"], theirs["var"], rtol=0.16)


def test_pooling_equal_batches_gives_mean_and_variance_of_all():
    x = RNG.normal(size=(6, 10, 3)) * 2 + 5
    stats = {"a": {"norm": {"mean": x.mean(axis=1), "var": x.var(axis=1)}}}
    pooled = pool(jax.tree.map(np.float32, stats))["a"]["norm"]
    whole = x.reshape(60, 3)
    expected = jax.tree.map(np.float32, {"mean": whole.mean(axis=0), "var": whole.var(axis=0)})
    chex.assert_trees_all_close(pooled, expected, rtol=1e-5)


def test_a_network_without_batch_norm_has_nothing_to_pool():
    model = make_mlp((2, 3, 1), 3, widths=(4,))
    variables = Variables(*jax.jit(model.init)(jax.random.key(0)))
    estimate = make_estimate_batch_stats(model, NORMALISE, shuffled_batches(24, 8))
    assert jax.tree.leaves(estimate(variables, ImagesInMemory(jnp.asarray(IMAGES)))) == []


LABELS = RNG.integers(0, 3, 40).astype(np.int32)
PREDICTED = np.where(RNG.random(40) < 0.5, LABELS, RNG.integers(0, 3, 40)).astype(np.int32)
NAMES = {"loss", "accuracy", "balanced_accuracy", "auc", "majority_fraction"}


def pair_counting(positive, scores):
    """The share of pairs in which the positive scores higher, ties half."""
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs)


def test_confusion_counts_every_pair():
    confusion = confusion_matrix(LABELS, PREDICTED, 3)
    for label, predicted in itertools.product(range(3), repeat=2):
        count = np.sum(np.equal(LABELS, label) & np.equal(PREDICTED, predicted))
        assert confusion[label, predicted] == count
    assert confusion_matrix(LABELS, PREDICTED, 5).shape == (5, 5)


def test_accuracies_are_their_definitions():
    assert accuracy(LABELS, PREDICTED) == pytest.approx(np.mean(LABELS == PREDICTED))
    shares = [np.mean(PREDICTED[label == LABELS] == label) for label in range(3)]
    chex.assert_trees_all_close(recalls(LABELS, PREDICTED, 3), np.array(shares))
    assert balanced_accuracy(LABELS, PREDICTED) == pytest.approx(np.mean(shares))
    shares = [np.mean(label == PREDICTED) for label in range(3)]
    assert majority_fraction(PREDICTED) == pytest.approx(max(shares))


def test_balanced_accuracy_does_not_depend_on_how_common_a_class_is():
    often = LABELS == 1
    labels = np.concatenate([LABELS, *[LABELS[often]] * 9])
    predicted = np.concatenate([PREDICTED, *[PREDICTED[often]] * 9])
    once = balanced_accuracy(LABELS, PREDICTED)
    assert balanced_accuracy(labels, predicted) == pytest.approx(once)
    assert accuracy(labels, predicted) != pytest.approx(accuracy(LABELS, PREDICTED))
    assert balanced_accuracy((LABELS + 1) % 3, (PREDICTED + 1) % 3) == pytest.approx(once)


def test_a_class_that_does_not_occur_is_left_out():
    apart = balanced_accuracy(2 * LABELS, 2 * PREDICTED)
    assert apart == pytest.approx(balanced_accuracy(LABELS, PREDICTED))


@pytest.mark.parametrize("constant", [0, 1, 2])
def test_a_constant_prediction_is_a_majority_of_1_and_a_balanced_accuracy_of_guessing(constant):
    predicted = np.full_like(LABELS, constant)
    assert majority_fraction(predicted) == 1
    assert balanced_accuracy(LABELS, predicted) == pytest.approx(1 / 3)


def test_the_commonest_mistakes_are_the_matrix_beside_its_diagonal():
    confusion = confusion_matrix(LABELS, PREDICTED, 3)
    pairs = most_confused(LABELS, PREDICTED)
    counts = [count for *_, count in pairs]
    assert counts == sorted(counts, reverse=True)
    assert all(label != says and confusion[label, says] == n for label, says, n in pairs)
    assert sum(counts) == confusion.sum() - np.trace(confusion)
    assert most_confused(LABELS, PREDICTED, 2) == pairs[:2]
    assert most_confused(LABELS, LABELS) == []


@pytest.mark.parametrize("num_classes", [200, 201, 10_000])
def test_what_a_summary_holds_of_mistakes_does_not_grow_as_classes_squared(num_classes):
    has_matrix = num_classes <= 200
    labels = np.arange(3 * num_classes) % num_classes
    predicted = np.roll(labels, num_classes // 2)
    about = confusion_summary(labels, predicted, num_classes)
    assert (about["confusion"] is not None) == has_matrix
    assert about["recalls"] == [0.0] * num_classes
    assert len(json.dumps(about)) < (1_000_000 if has_matrix else 10_000 + 10 * num_classes)


def test_metrics_of_many_classes_take_no_memory_of_classes_squared():
    num_classes, labels = 10_000, np.arange(8, dtype=np.int32) * 1000
    logits = RNG.normal(size=(8, num_classes)).astype(np.float32)
    logits[np.arange(8), labels] = 100.0  # A share that rounds to 1.
    tracemalloc.start()
    metrics = classification_metrics(logits, labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * logits.nbytes
    assert (metrics["accuracy"], metrics["balanced_accuracy"], metrics["auc"]) == (1, 1, 1)


@pytest.mark.parametrize("num_values", [2, 5, 1000])
def test_area_is_the_share_of_pairs_in_order_ties_half(num_values):
    positive = RNG.random(50) < 0.3
    scores = RNG.integers(0, num_values, 50) / 7
    expected = pair_counting(positive, scores)
    assert area_under_curve(positive, scores) == pytest.approx(expected, abs=1e-12)
    assert area_under_curve(positive, np.exp(scores)) == pytest.approx(expected, abs=1e-12)
    assert area_under_curve(positive, -scores) == pytest.approx(1 - expected, abs=1e-12)
    assert area_under_curve(~positive, scores) == pytest.approx(1 - expected, abs=1e-12)


def test_area_at_its_limits():
    positive = np.array([False, False, True, True])
    assert area_under_curve(positive, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert area_under_curve(positive, np.array([0.4, 0.3, 0.2, 0.1])) == 0
    assert area_under_curve(positive, np.zeros(4)) == 0.5
    assert math.isnan(area_under_curve(np.ones(4, bool), np.arange(4.0)))
    assert math.isnan(area_under_curve(np.zeros(4, bool), np.arange(4.0)))


def test_area_of_many_classes_is_the_mean_of_one_against_the_rest():
    logits = RNG.normal(size=(40, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    areas = [pair_counting(label == LABELS, shares[:, label]) for label in range(3)]
    assert auc(LABELS, logits) == pytest.approx(np.mean(areas), abs=1e-12)
    few = LABELS != 1  # a class that does not occur is left out
    areas = [pair_counting(label == LABELS[few], shares[few, label]) for label in (0, 2)]
    assert auc(LABELS[few], logits[few]) == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_log_odds_are_those_of_the_probabilities(num_outputs):
    logits, _ = logits_of(num_outputs)
    full = np.concatenate([np.zeros_like(logits), logits], 1) if num_outputs == 1 else logits
    shares = np.exp(full) / np.exp(full).sum(axis=1, keepdims=True)
    chex.assert_trees_all_close(log_odds(logits), np.log(shares / (1 - shares)), rtol=1e-9)


def logits_of(num_outputs):
    """Logits that lean towards the label."""
    labels = LABELS % max(num_outputs, 2)
    if num_outputs == 1:
        return RNG.normal(size=(40, 1)) + 2.0 * labels[:, None] - 1, labels
    return RNG.normal(size=(40, num_outputs)) + np.eye(num_outputs)[labels], labels


@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_metrics_of_logits(num_outputs):
    logits, labels = logits_of(num_outputs)
    metrics = classification_metrics(logits.astype(np.float32), labels)
    assert set(metrics) == NAMES
    full = np.concatenate([np.zeros_like(logits), logits], 1) if num_outputs == 1 else logits
    shares = np.exp(full) / np.exp(full).sum(axis=1, keepdims=True)
    losses = -np.log(shares[np.arange(40), labels])
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(full.argmax(axis=1) == labels))
    if num_outputs < 3:
        expected = pair_counting(labels == 1, full[:, 1] - full[:, 0])
    else:
        expected = np.mean([pair_counting(labels == c, shares[:, c]) for c in range(3)])
    assert metrics["auc"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_area_does_not_depend_on_the_scale_of_the_logits(num_outputs):
    """Also where float32 probabilities are all 0 or 1."""
    logits, labels = logits_of(num_outputs)
    small = classification_metrics(logits.astype(np.float32), labels)["auc"]
    large = classification_metrics(logits.astype(np.float32) * 128, labels)["auc"]
    assert large == small


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_give_nan_for_everything(bad):
    logits, labels = logits_of(2)
    logits[7, 1] = bad
    metrics = classification_metrics(logits.astype(np.float32), labels)
    assert set(metrics) == NAMES
    assert all(math.isnan(value) for value in metrics.values())
