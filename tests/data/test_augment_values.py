"""Augmentation of values, and the whole chain: laws that hold for every draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.data import augment
from jaxdnn.data.augment import make_augment
from jaxdnn.options import AugmentOptions

RNG = np.random.default_rng(1)
FLOATS = jnp.float32(RNG.uniform(0.3, 0.7, (4, 5, 3)))
IMAGE = jnp.asarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
LUMA = np.array([0.299, 0.587, 0.114])
KEY = jax.random.key(0)
EVERYTHING = AugmentOptions(
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    random_scale=0.2,
    random_crop=2,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation=20.0,
    noise=0.1,
)


def many(function, image, strength, num):
    """`num` draws of a one-example function."""
    keys = jax.random.split(KEY, num)
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, image, strength)))(keys))


@pytest.mark.parametrize("name", augment.PHOTOMETRIC)
def test_values_stay_between_black_and_white(name):
    extremes = jnp.float32(RNG.integers(0, 2, (4, 5, 3)))
    results = many(augment.PHOTOMETRIC[name], extremes, 1.0, 100)
    assert results.min() >= 0
    assert results.max() <= 1


@pytest.mark.parametrize("name", augment.PHOTOMETRIC)
def test_at_strength_0_no_value_changes(name):
    result = augment.PHOTOMETRIC[name](KEY, FLOATS, 0.0)
    np.testing.assert_allclose(result, FLOATS, rtol=1e-6)


def assert_uniform_factors(factors, strength):
    """Mean 1 and variance strength² / 3, within 5 standard errors (kurtosis 9/5)."""
    num = len(factors)
    assert np.abs(factors - 1).max() <= strength * (1 + 1e-3)
    assert abs(factors.mean() - 1) < 5 * strength / np.sqrt(3 * num)
    assert factors.var() == pytest.approx(strength**2 / 3, rel=5 * np.sqrt(0.8 / num))


def test_brightness_multiplies_by_one_uniform_factor():
    ratios = many(augment.brightness, FLOATS, 0.3, 1000) / np.asarray(FLOATS)
    factors = ratios[:, 0, 0, 0]
    np.testing.assert_allclose(
        ratios, np.broadcast_to(factors[:, None, None, None], ratios.shape), 1e-5
    )
    assert_uniform_factors(factors, 0.3)


def test_contrast_keeps_the_mean_and_scales_the_distance_from_it():
    results = many(augment.contrast, FLOATS, 0.4, 1000)  # nothing is clipped: 0.5 ± 1.4 * 0.2
    mean = np.asarray(FLOATS).mean()
    np.testing.assert_allclose(results.mean(axis=(1, 2, 3)), mean, rtol=1e-5)
    distance = np.asarray(FLOATS) - mean
    factors = ((results - mean) * distance).sum((1, 2, 3)) / (distance**2).sum()
    expected = mean + factors[:, None, None, None] * distance
    np.testing.assert_allclose(results, expected, rtol=1e-4, atol=1e-5)
    assert_uniform_factors(factors, 0.4)


def test_saturation_keeps_the_luma_and_scales_the_distance_from_grey():
    results = many(augment.saturation, FLOATS, 0.4, 1000)
    grey = (np.asarray(FLOATS) @ LUMA)[..., None]
    luma = (results @ LUMA)[..., None]
    np.testing.assert_allclose(luma, np.broadcast_to(grey, luma.shape), rtol=1e-5)
    distance = np.asarray(FLOATS) - grey
    factors = ((results - grey) * distance).sum((1, 2, 3)) / (distance**2).sum()
    expected = grey + factors[:, None, None, None] * distance
    np.testing.assert_allclose(results, expected, rtol=1e-4, atol=1e-5)
    assert_uniform_factors(factors, 0.4)


def test_saturation_leaves_grey_images():
    grey = FLOATS[..., :1]
    np.testing.assert_array_equal(augment.saturation(KEY, grey, 1.0), grey)
    three = jnp.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(augment.saturation(KEY, three, 1.0), three, rtol=1e-5)


def test_noise_has_mean_0_its_standard_deviation_and_no_neighbours_in_common():
    std, num = 0.05, 1000
    added = many(augment.noise, jnp.full((4, 5, 1), 0.5), std, num) - 0.5
    assert abs(added.mean()) < 5 * std / np.sqrt(added.size)  # 20,000 values
    assert added.std() == pytest.approx(std, rel=5 / np.sqrt(2 * added.size))
    pixels = added.reshape(num, 20)
    correlations = np.asarray(np.corrcoef(pixels.T))[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(num)  # 190 pairs


def test_the_chain_is_a_pure_function_of_key_and_image_and_vmaps():
    function = jax.jit(make_augment(EVERYTHING))
    keys = jax.random.split(KEY, 4)
    images = jnp.asarray(RNG.integers(0, 256, (4, 5, 7, 3), np.uint8))
    looped = np.stack([function(key, image) for key, image in zip(keys, images, strict=True)])
    again = np.stack([function(key, image) for key, image in zip(keys, images, strict=True)])
    np.testing.assert_array_equal(looped, again)
    np.testing.assert_allclose(jax.vmap(function)(keys, images), looped, rtol=0, atol=1e-5)
    assert looped.dtype == np.float32
    assert looped.shape == images.shape
    assert looped.min() >= 0
    assert looped.max() <= 1
    other = np.stack([function(key, images[0]) for key in keys])
    assert all((other[i] != other[j]).any() for i in range(4) for j in range(i))


def test_without_options_only_the_type_changes():
    result = make_augment(AugmentOptions())(KEY, IMAGE)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, np.asarray(IMAGE) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "strength"),
    [
        ("brightness", 0.5),
        ("contrast", 0.5),
        ("saturation", 0.5),
        ("random_scale", 0.5),
        ("random_crop", 2),
        ("horizontal_flip", 1.0),
        ("vertical_flip", 1.0),
        ("rotation", 30.0),
        ("noise", 0.1),
    ],
)
def test_each_option_alone_does_what_its_function_does(option, strength):
    """The same key gives each option the same draw whatever else is switched on."""
    whole_key = jax.random.split(KEY, 9)
    names = [*augment.GEOMETRIC, *augment.PHOTOMETRIC]
    key = whole_key[names.index(option)]
    result = make_augment(AugmentOptions(**{option: strength}))(KEY, IMAGE)
    if option in augment.GEOMETRIC:
        expected = augment.warp(IMAGE, augment.GEOMETRIC[option](key, strength))
    else:
        expected = augment.PHOTOMETRIC[option](key, jnp.float32(IMAGE) / 255, strength)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert float(jnp.abs(result - jnp.float32(IMAGE) / 255).max()) > 0.01


def test_moves_combine_into_one_map_in_the_order_given():
    """Two flips and a crop: numpy's flips of the crop of the reflected image."""
    options = AugmentOptions(horizontal_flip=1.0, vertical_flip=1.0, random_crop=1)
    function = jax.jit(make_augment(options))
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    crops = [padded[a : a + 5, b : b + 7] for a in range(3) for b in range(3)]
    possible = [np.float32(crop[::-1, ::-1]) / 255 for crop in crops]
    for key in jax.random.split(KEY, 10):
        result = np.asarray(function(key, IMAGE))
        assert any(np.allclose(result, crop, rtol=0, atol=1e-6) for crop in possible)
