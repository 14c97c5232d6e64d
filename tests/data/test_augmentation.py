"""Augmentation: exact flips, crops and right angles; laws of what changes values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.data import ImagesInMemory, augmentation, make_augment, make_prepare
from jaxdnn.options import AugmentOptions

RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
SQUARE = jnp.asarray(RNG.integers(0, 256, (6, 6, 1), np.uint8))
KEY = jax.random.key(0)
keys = jax.random.split
warp = jax.jit(augmentation.warp)  # One program for every map of one shape.


def grey_values(pixels):
    """The uint8 image that these floats are, to a rounding error."""
    values = np.rint(255 * np.asarray(pixels, np.float64))
    chex.assert_trees_all_close(255 * np.asarray(pixels, np.float64), values, rtol=0, atol=1e-4)
    return values.astype(np.uint8)


def affine(matrix, shift=(0.0, 0.0)):
    return jnp.float32(np.concatenate([matrix, np.reshape(shift, (2, 1))], axis=1))


def reflected(index, size):
    """The pixel that numpy.pad(reflect) shows at `index`."""
    period = 2 * (size - 1)
    index = index % period
    return min(index, period - index)


def bilinear_reference(image, matrix, shift):
    """Every output pixel by hand: affine map about the centre, four weighted neighbours."""
    image = np.asarray(image, np.float64)
    height, width, _ = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    result = np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        y, x = matrix @ (np.array([row, column]) - centre) + shift + centre
        for dy, dx in np.ndindex(2, 2):
            corner_y, corner_x = int(np.floor(y)) + dy, int(np.floor(x)) + dx
            weight = (1 - abs(y - corner_y)) * (1 - abs(x - corner_x))
            pixel = image[reflected(corner_y, height), reflected(corner_x, width)]
            result[row, column] += weight * pixel / 255
    return result


def test_warp_by_the_identity_changes_nothing():
    chex.assert_trees_all_equal(grey_values(warp(IMAGE, affine(np.eye(2)))), IMAGE)


@pytest.mark.parametrize("seed", range(3))
def test_warp_interpolates_between_four_pixels_and_reflects_at_the_edges(seed):
    rng = np.random.default_rng(seed)
    matrix, shift = np.eye(2) + rng.normal(size=(2, 2)) / 4, rng.normal(size=2)
    expected = bilinear_reference(IMAGE, matrix, shift)
    # Positions in float32 are off by some 1e-6 of a pixel.
    chex.assert_trees_all_close(warp(IMAGE, affine(matrix, shift)), expected, rtol=0, atol=1e-5)
    if not seed:
        chex.assert_trees_all_close(
            augmentation.warp(IMAGE, affine(matrix, shift)), expected, atol=1e-5
        )


@pytest.mark.parametrize("move", augmentation.GEOMETRIC)
def test_at_strength_0_nothing_moves(move):
    strength = 0 if move == "random_crop" else 0.0
    chex.assert_trees_all_equal(augmentation.GEOMETRIC[move](KEY, strength), affine(np.eye(2)))


@pytest.mark.parametrize(("flip", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
@pytest.mark.parametrize("image", [IMAGE, SQUARE], ids=["odd", "even"])
def test_flips_are_exact_involutions(flip, axis, image):
    mirror = augmentation.GEOMETRIC[flip](KEY, 1.0)
    flipped = warp(image, mirror)
    chex.assert_trees_all_equal(grey_values(flipped), np.flip(image, axis))
    chex.assert_trees_all_equal(augmentation._compose(mirror, mirror), affine(np.eye(2)))


def test_flips_happen_as_often_as_their_probability():
    num, probability = 2000, 0.3
    flips = jax.vmap(lambda key: augmentation.horizontal_flip(key, probability))(keys(KEY, num))
    share = float((flips[:, 1, 1] < 0).mean())
    assert abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / num)


def test_random_crop_is_every_crop_of_the_reflected_image():
    pixels = 2
    maps = np.asarray(jax.vmap(lambda key: augmentation.random_crop(key, pixels))(keys(KEY, 400)))
    chex.assert_trees_all_equal(maps[:, :, :2], np.broadcast_to(np.eye(2), (400, 2, 2)))
    shifts = {(int(down), int(right)) for down, right in maps[:, :, 2]}
    # 25 shifts: one is missing after 400 draws with probability 25 * (24/25)^400 = 2e-6.
    assert shifts == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    for down, right in shifts:
        cropped = padded[2 + down : 7 + down, 2 + right : 9 + right]
        result = warp(IMAGE, affine(np.eye(2), (down, right)))
        chex.assert_trees_all_equal(grey_values(result), cropped)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotation_by_right_angles_is_numpy_s(quarter_turns):
    cos, sin = [(0, 1), (-1, 0), (0, -1)][quarter_turns - 1]
    turned = warp(SQUARE, affine(np.array([[cos, -sin], [sin, cos]])))
    # An output pixel is read clockwise of where it stands: the image turns clockwise on the screen.
    chex.assert_trees_all_equal(grey_values(turned), np.rot90(SQUARE, -quarter_turns))


def test_rotations_are_rotations_by_angles_uniform_within_the_bound():
    num, degrees = 2000, 30.0
    maps = np.asarray(jax.vmap(lambda key: augmentation.rotation(key, degrees))(keys(KEY, num)))
    matrices = maps[:, :, :2]
    chex.assert_trees_all_close(
        matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(2), (num, 1, 1)), atol=1e-6
    )
    chex.assert_trees_all_close(np.linalg.det(matrices), 1, rtol=1e-5)
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= degrees * (1 + 1e-5)
    assert_uniform(angles, -degrees, degrees)


def test_scales_are_uniform_factors():
    maps = np.asarray(jax.vmap(lambda key: augmentation.random_scale(key, 0.3))(keys(KEY, 2000)))
    chex.assert_trees_all_equal(maps[:, 0, 0], maps[:, 1, 1])
    assert not maps[:, [0, 1], [1, 0]].any()
    assert_uniform(1 / maps[:, 0, 0], 0.7, 1.3)  # enlarging reads closer together


def assert_uniform(samples, low, high):
    """Compare mean and variance with the uniform distribution's, within 5 standard errors."""
    num, width = len(samples), high - low
    assert low - 1e-5 * width <= samples.min()
    assert samples.max() <= high + 1e-5 * width
    assert abs(samples.mean() - (low + high) / 2) < 5 * width / np.sqrt(12 * num)
    # Kurtosis 9/5.
    assert samples.var() == pytest.approx(width**2 / 12, rel=5 * np.sqrt(0.8 / num))


FLOATS = jnp.float32(RNG.uniform(0.3, 0.7, (4, 5, 3)))
LUMA = np.array([0.299, 0.587, 0.114])
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


@pytest.mark.parametrize("name", augmentation.PHOTOMETRIC)
def test_values_stay_between_black_and_white(name):
    extremes = jnp.float32(RNG.integers(0, 2, (4, 5, 3)))
    results = many(augmentation.PHOTOMETRIC[name], extremes, 1.0, 100)
    assert results.min() >= 0
    assert results.max() <= 1


@pytest.mark.parametrize("name", augmentation.PHOTOMETRIC)
def test_at_strength_0_no_value_changes(name):
    result = augmentation.PHOTOMETRIC[name](KEY, FLOATS, 0.0)
    chex.assert_trees_all_close(result, FLOATS, rtol=1e-6)


def assert_uniform_factors(factors, strength):
    """Mean 1 and variance strength² / 3, within 5 standard errors (kurtosis 9/5)."""
    num = len(factors)
    assert np.abs(factors - 1).max() <= strength * (1 + 1e-3)
    assert abs(factors.mean() - 1) < 5 * strength / np.sqrt(3 * num)
    assert factors.var() == pytest.approx(strength**2 / 3, rel=5 * np.sqrt(0.8 / num))


def test_brightness_multiplies_by_one_uniform_factor():
    ratios = many(augmentation.brightness, FLOATS, 0.3, 1000) / np.asarray(FLOATS)
    factors = ratios[:, 0, 0, 0]
    chex.assert_trees_all_close(
        ratios, np.broadcast_to(factors[:, None, None, None], ratios.shape), rtol=1e-5
    )
    assert_uniform_factors(factors, 0.3)


def test_contrast_keeps_the_mean_and_scales_the_distance_from_it():
    results = many(augmentation.contrast, FLOATS, 0.4, 1000)  # nothing is clipped: 0.5 ± 1.4 * 0.2
    mean = np.asarray(FLOATS).mean()
    chex.assert_trees_all_close(results.mean(axis=(1, 2, 3)), mean, rtol=1e-5)
    distance = np.asarray(FLOATS) - mean
    factors = ((results - mean) * distance).sum((1, 2, 3)) / (distance**2).sum()
    expected = mean + factors[:, None, None, None] * distance
    chex.assert_trees_all_close(results, expected, rtol=1e-4, atol=1e-5)
    assert_uniform_factors(factors, 0.4)


def test_saturation_keeps_the_luma_and_scales_the_distance_from_grey():
    results = many(augmentation.saturation, FLOATS, 0.4, 1000)
    grey = (np.asarray(FLOATS) @ LUMA)[..., None]
    luma = (results @ LUMA)[..., None]
    chex.assert_trees_all_close(luma, np.broadcast_to(grey, luma.shape), rtol=1e-5)
    distance = np.asarray(FLOATS) - grey
    factors = ((results - grey) * distance).sum((1, 2, 3)) / (distance**2).sum()
    expected = grey + factors[:, None, None, None] * distance
    chex.assert_trees_all_close(results, expected, rtol=1e-4, atol=1e-5)
    assert_uniform_factors(factors, 0.4)


def test_saturation_leaves_grey_images():
    grey = FLOATS[..., :1]
    chex.assert_trees_all_equal(augmentation.saturation(KEY, grey, 1.0), grey)
    three = jnp.repeat(grey, 3, axis=-1)
    chex.assert_trees_all_close(augmentation.saturation(KEY, three, 1.0), three, rtol=1e-5)


def test_noise_has_mean_0_its_standard_deviation_and_no_neighbours_in_common():
    std, num = 0.05, 1000
    added = many(augmentation.noise, jnp.full((4, 5, 1), 0.5), std, num) - 0.5
    assert abs(added.mean()) < 5 * std / np.sqrt(added.size)  # 20,000 values
    assert added.std() == pytest.approx(std, rel=5 / np.sqrt(2 * added.size))
    pixels = added.reshape(num, 20)
    correlations = np.asarray(np.corrcoef(pixels.T))[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(num)  # 190 pairs


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_cutout_fills_the_right_share_of_an_image(side):
    """A pixel is within the square if that is centred on one of `side` pixels around it, or fewer
    near the edges; nothing else changes.
    """
    height, width, num, fill = 5, 7, 2000, (0.2, 0.4, 0.6)
    keys = jax.random.split(KEY, num)
    image = jnp.full((height, width, 3), 0.9)
    cut = np.asarray(jax.vmap(lambda key: augmentation.cutout(key, image, side, fill))(keys))
    is_cut = (cut == np.array(fill, np.float32)).all(-1)
    chex.assert_trees_all_equal(cut[~is_cut], np.full_like(cut[~is_cut], 0.9))
    shares = []
    for size in (height, width):
        pixels, centres = np.mgrid[:size, :size]
        offsets = pixels - (centres - side // 2)
        shares.append(((offsets >= 0) & (offsets < side)).mean(axis=1))
    chances = np.outer(*shares)
    tolerance = 5 * np.sqrt(chances * (1 - chances) / num) + 1e-9
    assert (np.abs(is_cut.mean(0) - chances) < tolerance).all()
    assert is_cut.sum((1, 2)).max() == min(side, height) * min(side, width)


def test_what_is_cut_out_is_the_mean_colour_of_the_training_images_so_that_it_becomes_0():
    images = RNG.integers(0, 256, (3, 5, 7, 3), np.uint8)
    pixel_stats = ImagesInMemory(images).pixel_stats
    batch = make_prepare(AugmentOptions(cutout=100), pixel_stats)(KEY, jnp.asarray(images))
    chex.assert_trees_all_close(batch, jnp.zeros_like(batch), atol=1e-6)


def test_the_chain_is_a_pure_function_of_key_and_image_and_vmaps():
    function = jax.jit(chex.assert_max_traces(make_augment(EVERYTHING), 2))  # The other for vmap.
    keys = jax.random.split(KEY, 4)
    images = jnp.asarray(RNG.integers(0, 256, (4, 5, 7, 3), np.uint8))
    looped = np.stack([function(key, image) for key, image in zip(keys, images, strict=True)])
    again = np.stack([function(key, image) for key, image in zip(keys, images, strict=True)])
    chex.assert_trees_all_equal(looped, again)
    chex.assert_trees_all_close(jax.vmap(function)(keys, images), looped, rtol=0, atol=1e-5)
    chex.assert_type(looped, np.float32)
    chex.assert_equal_shape([looped, images])
    assert looped.min() >= 0
    assert looped.max() <= 1
    other = np.stack([function(key, images[0]) for key in keys])
    assert all((other[i] != other[j]).any() for i in range(4) for j in range(i))


def test_without_options_only_the_type_changes():
    result = make_augment(AugmentOptions())(KEY, IMAGE)
    chex.assert_type(result, jnp.float32)
    chex.assert_trees_all_close(result, np.asarray(IMAGE) / 255, rtol=1e-6)


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
    names = [*augmentation.GEOMETRIC, *augmentation.PHOTOMETRIC]
    key = whole_key[names.index(option)]
    result = make_augment(AugmentOptions(**{option: strength}))(KEY, IMAGE)
    if option in augmentation.GEOMETRIC:
        expected = warp(IMAGE, augmentation.GEOMETRIC[option](key, strength))
    else:
        expected = augmentation.PHOTOMETRIC[option](key, jnp.float32(IMAGE) / 255, strength)
    chex.assert_trees_all_close(result, expected, rtol=0, atol=1e-6)
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
