"""Evaluation: every image once, and statistics pooled over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.data.pipeline import measure_standard, standardise
from jaxdnn.models import UnitOptions, make_mlp
from jaxdnn.training.evaluate import make_estimate_batch_stats, make_predict, pool

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 2, 3, 1), np.uint8)
STANDARD = measure_standard(IMAGES)


def network(norm_momentum=0.9, widths=(5, 4)):
    unit = UnitOptions(norm="batch", norm_momentum=norm_momentum, dropout=0.5)
    model = make_mlp((2, 3, 1), 3, widths=widths, unit=unit)
    return model, *model.init(jax.random.key(0))


@pytest.mark.parametrize("num", [1, 7, 8, 9, 24])
def test_predict_gives_each_image_its_own_logits(num):
    model, params, batch_stats = network()
    images = jnp.asarray(IMAGES[:num])
    logits = make_predict(model, STANDARD, batch_size=8)(params, batch_stats, images)
    expected = model.apply(params, batch_stats, standardise(images, STANDARD)).logits
    assert logits.shape == (num, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def estimated(images, batch_size, norm_momentum=0.0):
    model, params, batch_stats = network(norm_momentum)
    estimate = make_estimate_batch_stats(model, STANDARD, batch_size=batch_size)
    return params, estimate(params, batch_stats, jnp.asarray(images))


@pytest.mark.parametrize("batch_size", [4, 8, 24, 100])
def test_the_first_layer_s_statistics_are_those_of_the_whole_set(batch_size):
    params, stats = estimated(IMAGES, batch_size)
    x = np.asarray(standardise(jnp.asarray(IMAGES), STANDARD)).reshape(24, -1)
    z = x @ np.asarray(params["layers"][0]["linear"]["kernel"])
    np.testing.assert_allclose(stats["layers"][0]["norm"]["mean"], z.mean(axis=0), 1e-4, 1e-5)
    np.testing.assert_allclose(stats["layers"][0]["norm"]["var"], z.var(axis=0), rtol=1e-4)


def test_in_one_batch_evaluation_equals_training():
    """Every layer then sees in evaluation the normalisation that it saw in training."""
    params, stats = estimated(IMAGES, 24)
    model, *_ = network()
    batch = standardise(jnp.asarray(IMAGES), STANDARD)
    training = model.apply(params, stats, batch, training=True).logits
    np.testing.assert_allclose(model.apply(params, stats, batch).logits, training, 1e-4, 1e-4)


def test_statistics_do_not_depend_on_the_running_averages():
    model, params, batch_stats = network(norm_momentum=0.0)
    estimate = make_estimate_batch_stats(model, STANDARD, batch_size=8)
    other = jax.tree.map(lambda leaf: leaf + 3, batch_stats)
    first, second = (estimate(params, stats, jnp.asarray(IMAGES)) for stats in (batch_stats, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_statistics_do_not_depend_on_whether_the_images_are_sorted_by_class():
    """Class by class, as folders are: batches must not be of one class, as none is in training."""
    num, batch_size = 4096, 64
    levels = RNG.integers(0, 40, (num, 2, 3, 1))
    bright = np.arange(num) >= num // 2
    images = (levels + 200 * bright[:, None, None, None]).astype(np.uint8)
    _, in_order = estimated(images, batch_size)
    _, shuffled = estimated(images[RNG.permutation(num)], batch_size)
    # The second layer's statistics from 64 batches of 64: about 5 sigma = 5 * sqrt(2 / 4096).
    deviation = np.sqrt(shuffled["layers"][1]["norm"]["var"])
    ours, theirs = (stats["layers"][1]["norm"] for stats in (in_order, shuffled))
    np.testing.assert_allclose(ours["mean"] / deviation, theirs["mean"] / deviation, atol=0.11)
    np.testing.assert_allclose(ours["var"], theirs["var"], rtol=0.11)


def test_pooling_equal_batches_gives_mean_and_variance_of_all():
    x = RNG.normal(size=(6, 10, 3)) * 2 + 5
    stats = {"a": {"norm": {"mean": x.mean(axis=1), "var": x.var(axis=1)}}}
    pooled = pool(jax.tree.map(jnp.float32, stats))["a"]["norm"]
    np.testing.assert_allclose(pooled["mean"], x.reshape(60, 3).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pooled["var"], x.reshape(60, 3).var(axis=0), rtol=1e-5)


def test_a_network_without_batch_norm_has_nothing_to_pool():
    model = make_mlp((2, 3, 1), 3, widths=(4,))
    params, batch_stats = model.init(jax.random.key(0))
    estimate = make_estimate_batch_stats(model, STANDARD, batch_size=8)
    assert jax.tree.leaves(estimate(params, batch_stats, jnp.asarray(IMAGES))) == []
