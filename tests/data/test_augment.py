"""Augmentation: exact flips, crops and right angles; laws of what changes values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.data import augment
from jaxdnn.data.augment import warp

RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
SQUARE = jnp.asarray(RNG.integers(0, 256, (6, 6, 1), np.uint8))
KEY = jax.random.key(0)
keys = jax.random.split


def grey_values(pixels):
    """The uint8 image that these floats are, to a rounding error."""
    values = np.rint(255 * np.asarray(pixels, np.float64))
    np.testing.assert_allclose(255 * np.asarray(pixels, np.float64), values, rtol=0, atol=1e-4)
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
    np.testing.assert_array_equal(grey_values(warp(IMAGE, affine(np.eye(2)))), IMAGE)


@pytest.mark.parametrize("seed", range(3))
def test_warp_interpolates_between_four_pixels_and_reflects_at_the_edges(seed):
    rng = np.random.default_rng(seed)
    matrix, shift = np.eye(2) + rng.normal(size=(2, 2)) / 4, rng.normal(size=2)
    expected = bilinear_reference(IMAGE, matrix, shift)
    # Positions in float32 are off by some 1e-6 of a pixel.
    np.testing.assert_allclose(warp(IMAGE, affine(matrix, shift)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("move", augment.GEOMETRIC)
def test_at_strength_0_nothing_moves(move):
    strength = 0 if move == "random_crop" else 0.0
    np.testing.assert_array_equal(augment.GEOMETRIC[move](KEY, strength), affine(np.eye(2)))


@pytest.mark.parametrize(("flip", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
@pytest.mark.parametrize("image", [IMAGE, SQUARE], ids=["odd", "even"])
def test_flips_are_exact_involutions(flip, axis, image):
    mirror = augment.GEOMETRIC[flip](KEY, 1.0)
    flipped = warp(image, mirror)
    np.testing.assert_array_equal(grey_values(flipped), np.flip(image, axis))
    np.testing.assert_array_equal(augment._compose(mirror, mirror), affine(np.eye(2)))


def test_flips_happen_as_often_as_their_probability():
    num, probability = 2000, 0.3
    flips = jax.vmap(lambda key: augment.horizontal_flip(key, probability))(keys(KEY, num))
    share = float((flips[:, 1, 1] < 0).mean())
    assert abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / num)


def test_random_crop_is_every_crop_of_the_reflected_image():
    pixels = 2
    maps = np.asarray(jax.vmap(lambda key: augment.random_crop(key, pixels))(keys(KEY, 400)))
    np.testing.assert_array_equal(maps[:, :, :2], np.broadcast_to(np.eye(2), (400, 2, 2)))
    shifts = {(int(down), int(right)) for down, right in maps[:, :, 2]}
    # 25 shifts: one is missing after 400 draws with probability 25 * (24/25)^400 = 2e-6.
    assert shifts == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    for down, right in shifts:
        cropped = padded[2 + down : 7 + down, 2 + right : 9 + right]
        result = warp(IMAGE, affine(np.eye(2), (down, right)))
        np.testing.assert_array_equal(grey_values(result), cropped)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotation_by_right_angles_is_numpy_s(quarter_turns):
    cos, sin = [(0, 1), (-1, 0), (0, -1)][quarter_turns - 1]
    turned = warp(SQUARE, affine(np.array([[cos, -sin], [sin, cos]])))
    # An output pixel is read clockwise of where it stands: the image turns clockwise on the screen.
    np.testing.assert_array_equal(grey_values(turned), np.rot90(SQUARE, -quarter_turns))


def test_rotations_are_rotations_by_angles_uniform_within_the_bound():
    num, degrees = 2000, 30.0
    maps = np.asarray(jax.vmap(lambda key: augment.rotation(key, degrees))(keys(KEY, num)))
    matrices = maps[:, :, :2]
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(2), (num, 1, 1)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, rtol=1e-5)
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= degrees * (1 + 1e-5)
    assert_uniform(angles, -degrees, degrees)


def test_scales_are_uniform_factors():
    maps = np.asarray(jax.vmap(lambda key: augment.random_scale(key, 0.3))(keys(KEY, 2000)))
    np.testing.assert_array_equal(maps[:, 0, 0], maps[:, 1, 1])
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
