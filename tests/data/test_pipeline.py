"""From images to batches: every image once an epoch, balanced classes, exact statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.data import (
    ImagesInMemory,
    PixelStats,
    make_augment,
    make_order,
    make_prepare,
    normalise_images,
    resolve_batch_size,
)
from jaxdnn.errors import InputError
from jaxdnn.options import AugmentOptions

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 5, 3), np.uint8)
LABELS = np.array([0] * 20 + [1] * 7 + [2] * 3, np.int32)
RNG.shuffle(LABELS)
KEYS = jax.random.split(jax.random.key(0), 3)


def make(batch_size, balanced=False):
    return make_order(LABELS, batch_size=batch_size, balanced=balanced, num_classes=3)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 30])
def test_an_epoch_shows_every_image_at_most_once(batch_size):
    indices = np.asarray(make(batch_size)(KEYS[0]))
    chex.assert_shape(indices, (30 // batch_size, batch_size))
    assert len(np.unique(indices)) == indices.size  # 28 of 30 in batches of 4, otherwise all
    assert set(indices.ravel()) <= set(range(30))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_follows_from_the_epoch_s_key_alone(balanced):
    order = make(10, balanced)
    epochs = [np.asarray(order(key)) for key in KEYS]
    chex.assert_trees_all_equal(order(KEYS[0]), epochs[0])
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_every_image_comes_first_equally_often():
    num = 3000
    keys = jax.random.split(jax.random.key(1), num)
    first = np.asarray(jax.jit(jax.vmap(make(10)))(keys))[:, 0, 0]
    counts = np.bincount(first, minlength=30)
    share = 1 / 30
    assert (np.abs(counts - num * share) < 5 * np.sqrt(num * share * (1 - share))).all()


def test_balanced_batches_hold_every_class_equally_often_to_one():
    for batch_size in (6, 7, 10):
        indices = np.asarray(make(batch_size, balanced=True)(KEYS[0]))
        chex.assert_shape(indices, (30 // batch_size, batch_size))
        for batch in indices:
            counts = np.bincount(LABELS[batch], minlength=3)
            assert counts.max() - counts.min() <= (batch_size % 3 > 0)


def test_balanced_batches_draw_every_image_of_a_class_equally_often():
    num = 2000
    keys = jax.random.split(jax.random.key(2), num)
    indices = np.asarray(jax.jit(jax.vmap(make(30, balanced=True)))(keys)).ravel()
    counts = np.bincount(indices, minlength=30)
    for label in range(3):
        members = np.equal(LABELS, label)
        draws = counts[members].sum()
        assert draws == num * 10
        share = 1 / members.sum()
        error = 5 * np.sqrt(draws * share * (1 - share))
        assert (np.abs(counts[members] - draws * share) < error).all()


def test_statistics_are_numpy_s_over_the_normalised_images_mean_0_and_deviation_1():
    pixel_stats = ImagesInMemory(IMAGES).pixel_stats
    values = IMAGES.astype(np.float64) / 255
    chex.assert_trees_all_close(np.array(pixel_stats.mean), values.mean(axis=(0, 1, 2)), rtol=1e-12)
    chex.assert_trees_all_close(np.array(pixel_stats.std), values.std(axis=(0, 1, 2)), rtol=1e-12)
    result = np.asarray(normalise_images(jnp.asarray(IMAGES), pixel_stats), np.float64)
    chex.assert_trees_all_close(result.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    chex.assert_trees_all_close(result.std(axis=(0, 1, 2)), 1, rtol=1e-5)


def test_a_channel_without_variation_becomes_zero():
    images = IMAGES.copy()
    images[..., 1] = 100
    result = np.asarray(normalise_images(jnp.asarray(images), ImagesInMemory(images).pixel_stats))
    chex.assert_trees_all_close(result[..., 1], 0, atol=1e-6)
    chex.assert_tree_all_finite(result)


def test_whole_numbers_and_floats_normalise_alike():
    pixel_stats = PixelStats((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    floats = jnp.float32(IMAGES) / 255
    chex.assert_trees_all_close(
        normalise_images(jnp.asarray(IMAGES), pixel_stats),
        normalise_images(floats, pixel_stats),
        rtol=1e-6,
        atol=1e-6,
    )


def test_prepare_without_augmentation_is_normalisation():
    pixel_stats = ImagesInMemory(IMAGES).pixel_stats
    prepare = make_prepare(AugmentOptions(), pixel_stats)
    expected = normalise_images(jnp.asarray(IMAGES), pixel_stats)
    chex.assert_trees_all_close(
        prepare(KEYS[0], jnp.asarray(IMAGES)), expected, rtol=1e-5, atol=1e-6
    )


def test_prepare_augments_every_image_with_a_key_of_its_own():
    options, pixel_stats = AugmentOptions(noise=0.1), PixelStats((0.0,) * 3, (1.0,) * 3)
    same = jnp.asarray(np.tile(IMAGES[:1], (4, 1, 1, 1)))
    batch = np.asarray(make_prepare(options, pixel_stats)(KEYS[0], same))
    assert all((batch[i] != batch[j]).any() for i in range(4) for j in range(i))
    # A key that differs gives another batch, and each image is one that `augment` can give.
    assert (make_prepare(options, pixel_stats)(KEYS[1], same) != batch).any()
    keys = jax.random.split(KEYS[0], 4)
    expected = np.stack([make_augment(options)(key, same[0]) for key in keys])
    chex.assert_trees_all_close(batch, expected, rtol=1e-5, atol=1e-6)


def test_batch_size():
    assert resolve_batch_size("full", 30) == 30
    assert resolve_batch_size(30, 30) == 30
    assert resolve_batch_size(1, 30) == 1
    with pytest.raises(
        InputError, match="--batch-size 31 exceeds the 30 training images"
    ) as caught:
        resolve_batch_size(31, 30)
    assert resolve_batch_size("full", 30, accumulate=4) == 7
    with pytest.raises(InputError, match="--batch-size 8 times --accumulate 4 exceeds the 30 tr"):
        resolve_batch_size(8, 30, accumulate=4)
    with pytest.raises(InputError, match=r"--accumulate 31 takes more microbatches .* images, 30;"):
        resolve_batch_size("full", 30, accumulate=31)
    assert "\n" not in str(caught.value)
