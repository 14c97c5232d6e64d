"""Evaluation: every image once, and statistics pooled over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset, Split
from jaxdnn.data.pipeline import normalise_images
from jaxdnn.data.pixel_stats import measure_pixel_stats
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.options import ModelOptions, TrainOptions
from jaxdnn.training.evaluate import make_estimate_batch_stats, make_predict, pool
from jaxdnn.training.setup import init_state, make_program, make_setup

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 2, 3, 1), np.uint8)
STANDARD = measure_pixel_stats(IMAGES)


def network(norm_momentum=0.9, widths=(5, 4)):
    unit = BlockOptions(norm="batch", norm_momentum=norm_momentum, dropout=0.5)
    model = make_mlp((2, 3, 1), 3, widths=widths, unit=unit)
    return model, *model.init(jax.random.key(0))


@pytest.mark.parametrize("num", [1, 7, 8, 9, 24])
def test_predict_gives_each_image_its_own_logits(num):
    model, params, batch_stats = network()
    images = jnp.asarray(IMAGES[:num])
    logits = make_predict(model, STANDARD, batch_size=8)(params, batch_stats, images)
    expected = model.apply(params, batch_stats, normalise_images(images, STANDARD)).logits
    assert logits.shape == (num, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def shuffled_batches(num, batch_size):
    order = np.random.default_rng(1).permutation(num).astype(np.int32)
    return order.reshape(-1, batch_size)


def estimated(batch_size, shift=0.0):
    """Parameters, and their statistics, starting from running averages moved by `shift`."""
    model, params, batch_stats = network(norm_momentum=0.0)
    estimate = make_estimate_batch_stats(model, STANDARD, shuffled_batches(24, batch_size))
    start = jax.tree.map(lambda leaf: leaf + shift, batch_stats)
    return params, estimate(params, start, jnp.asarray(IMAGES))


@pytest.mark.parametrize("batch_size", [4, 8, 24])
def test_the_first_layer_s_statistics_are_those_of_the_whole_set(batch_size):
    params, stats = estimated(batch_size)
    x = np.asarray(normalise_images(jnp.asarray(IMAGES), STANDARD)).reshape(24, -1)
    z = x @ np.asarray(params["layers"][0]["linear"]["kernel"])
    np.testing.assert_allclose(stats["layers"][0]["norm"]["mean"], z.mean(axis=0), 1e-4, 1e-5)
    np.testing.assert_allclose(stats["layers"][0]["norm"]["var"], z.var(axis=0), rtol=1e-4)


def test_in_one_batch_evaluation_equals_training():
    """Every layer then sees in evaluation the normalisation that it saw in training."""
    params, stats = estimated(24)
    model, *_ = network()
    batch = normalise_images(jnp.asarray(IMAGES), STANDARD)
    training = model.apply(params, stats, batch, training=True).logits
    np.testing.assert_allclose(model.apply(params, stats, batch).logits, training, 1e-4, 1e-4)


def test_statistics_do_not_depend_on_the_running_averages():
    first, second = (estimated(8, shift)[1] for shift in (0.0, 3.0))
    jax.tree.map(np.testing.assert_array_equal, first, second)


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
        train = Split(levels[order].astype(np.uint8), labels[order], ("",) * num)
        few = Split(train.images[:4], train.labels[:4], train.names[:4])
        setup = make_setup(config, Dataset(("dark", "bright"), train, few, few, (), "random"))
        _, stats = make_program(setup).evaluate(init_state(setup))
        return stats["layers"][1]["norm"]

    ours, theirs = second_layer(np.arange(num)), second_layer(RNG.permutation(num))
    # Two estimates of mean and variance, each from 4096 images: 5 sigma = 5 * sqrt(2 * 2 / 4096).
    deviation = np.sqrt(theirs["var"])
    np.testing.assert_allclose(ours["mean"] / deviation, theirs["mean"] / deviation, atol=0.16)
    np.testing.assert_allclose(ours["var"], theirs["var"], rtol=0.16)


def test_pooling_equal_batches_gives_mean_and_variance_of_all():
    x = RNG.normal(size=(6, 10, 3)) * 2 + 5
    stats = {"a": {"norm": {"mean": x.mean(axis=1), "var": x.var(axis=1)}}}
    pooled = pool(jax.tree.map(jnp.float32, stats))["a"]["norm"]
    np.testing.assert_allclose(pooled["mean"], x.reshape(60, 3).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pooled["var"], x.reshape(60, 3).var(axis=0), rtol=1e-5)


def test_a_network_without_batch_norm_has_nothing_to_pool():
    model = make_mlp((2, 3, 1), 3, widths=(4,))
    params, batch_stats = model.init(jax.random.key(0))
    estimate = make_estimate_batch_stats(model, STANDARD, shuffled_batches(24, 8))
    assert jax.tree.leaves(estimate(params, batch_stats, jnp.asarray(IMAGES))) == []
