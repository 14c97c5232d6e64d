"""Augmentation: pure functions of (key, image) for one image, vmapped over the batch.

Images are uint8 (height, width, channel). All that moves pixels - scale, crop, flips, rotation -
is one affine map from the output's pixels to the input's, so that the image is interpolated once,
and positions outside it are reflected back. What changes values follows, on floats in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.options import AugmentOptions

# (2, 3): [matrix | shift] from an output pixel to an input pixel, in pixels (row, column) from the
# image's centre.
Affine = Array


def reflect(position: Array, size: int) -> Array:
    """Fold positions into [0, size - 1] by reflection at the edge pixels.

    Valid to one image beyond each edge. The position -1 is the pixel 1, as in `numpy.pad(reflect)`.
    """
    last = size - 1
    return jnp.clip(last - jnp.abs(last - jnp.abs(position)), 0, last)


def _neighbours(plane: Array) -> Array:
    """Pack each uint8 pixel with its right, lower and lower-right neighbour into one uint32."""
    padded = jnp.pad(plane, ((0, 1), (0, 1)), mode="edge").astype(jnp.uint32)
    upper = padded[:-1, :-1] | padded[:-1, 1:] << 8
    return upper | padded[1:, :-1] << 16 | padded[1:, 1:] << 24


def bilinear(plane: Array, rows: Array, columns: Array) -> Array:
    """Read a uint8 plane (height, width) at real positions inside it; float32 in [0, 255]."""
    height, width = plane.shape
    top = jnp.clip(rows.astype(jnp.int32), 0, height - 1)
    left = jnp.clip(columns.astype(jnp.int32), 0, width - 1)
    packed = _neighbours(plane).reshape(-1).at[top * width + left].get(mode="promise_in_bounds")
    # Without the barrier XLA:CPU repeats the gather for each of the four neighbours: 3x slower.
    packed = lax.optimization_barrier(packed)
    down, right = rows - top, columns - left
    corner = [((packed >> shift) & 255).astype(jnp.float32) for shift in (0, 8, 16, 24)]
    upper = corner[0] + right * (corner[1] - corner[0])
    lower = corner[2] + right * (corner[3] - corner[2])
    return upper + down * (lower - upper)


def warp(image: Array, affine: Affine) -> Array:
    """Read every output pixel at the input position that `affine` gives; float32 in [0, 1]."""
    height, width = image.shape[:2]
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = affine[0, 0] * y + affine[0, 1] * x + affine[0, 2] + (height - 1) / 2
    columns = affine[1, 0] * y + affine[1, 1] * x + affine[1, 2] + (width - 1) / 2
    rows, columns = reflect(rows, height), reflect(columns, width)
    # Channels one by one: a trailing axis of 1 in the gather costs XLA:CPU 1.5x.
    planes = [bilinear(image[..., c], rows, columns) for c in range(image.shape[-1])]
    return jnp.stack(planes, axis=-1) / 255


def _linear(matrix: Array) -> Affine:
    return jnp.concatenate([matrix, jnp.zeros((2, 1))], axis=1)


def random_scale(key: Array, strength: float) -> Affine:
    """Enlarge by a factor uniform in 1 ± strength."""
    factor = jax.random.uniform(key, (), minval=1 - strength, maxval=1 + strength)
    return _linear(jnp.eye(2) / factor)


def random_crop(key: Array, pixels: int) -> Affine:
    """Shift by whole pixels, uniform in ± `pixels`: a crop of the image padded by reflection."""
    shift = jax.random.randint(key, (2, 1), -pixels, pixels + 1).astype(jnp.float32)
    return jnp.concatenate([jnp.eye(2), shift], axis=1)


def horizontal_flip(key: Array, probability: float) -> Affine:
    """Mirror left and right with this probability."""
    sign = jnp.where(jax.random.bernoulli(key, probability), -1.0, 1.0)
    return _linear(jnp.diag(jnp.stack([jnp.ones(()), sign])))


def vertical_flip(key: Array, probability: float) -> Affine:
    """Mirror top and bottom with this probability."""
    sign = jnp.where(jax.random.bernoulli(key, probability), -1.0, 1.0)
    return _linear(jnp.diag(jnp.stack([sign, jnp.ones(())])))


def rotation(key: Array, degrees: float) -> Affine:
    """Rotate about the centre by an angle uniform in ± `degrees`."""
    angle = jnp.deg2rad(jax.random.uniform(key, (), minval=-degrees, maxval=degrees))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _linear(jnp.array([[cos, -sin], [sin, cos]]))


def brightness(key: Array, image: Array, strength: float) -> Array:
    """Multiply a float image in [0, 1] by a factor uniform in 1 ± strength; clipped to [0, 1]."""
    return jnp.clip(image * _factor(key, strength), 0, 1)


def contrast(key: Array, image: Array, strength: float) -> Array:
    """Multiply the distance from the image's mean by a factor uniform in 1 ± strength; clipped."""
    mean = image.mean()
    return jnp.clip(mean + (image - mean) * _factor(key, strength), 0, 1)


def saturation(key: Array, image: Array, strength: float) -> Array:
    """Multiply the distance from grey by a factor uniform in 1 ± strength; clipped.

    Grey is the luma of ITU-R BT.601. A one-channel image does not change.
    """
    if image.shape[-1] != 3:
        return image
    grey = (image @ jnp.array([0.299, 0.587, 0.114]))[..., None]
    return jnp.clip(grey + (image - grey) * _factor(key, strength), 0, 1)


def noise(key: Array, image: Array, std: float) -> Array:
    """Add normal noise of this standard deviation to every pixel; clipped to [0, 1]."""
    return jnp.clip(image + std * jax.random.normal(key, image.shape), 0, 1)


def cutout(key: Array, image: Array, side: int, fill: Sequence[float]) -> Array:
    """Fill a square of this side, centred on any pixel; what is beyond the edges is cut off.

    Improved regularization of convolutional neural networks with cutout (DeVries and Taylor, 2017).
    """
    height, width = image.shape[:2]
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - side // 2
    rows, columns = jnp.arange(height) - top, jnp.arange(width) - left
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
    return jnp.where(inside[..., None], jnp.array(fill), image)


def _factor(key: Array, strength: float) -> Array:
    return jax.random.uniform(key, (), minval=1 - strength, maxval=1 + strength)


GEOMETRIC: dict[str, Callable[..., Affine]] = {
    "random_scale": random_scale,
    "rotation": rotation,
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "random_crop": random_crop,
}
PHOTOMETRIC: dict[str, Callable[..., Array]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "noise": noise,
}


def _compose(outer: Affine, inner: Affine) -> Affine:
    """Return the map `outer after inner`."""
    matrix = outer[:, :2] @ inner[:, :2]
    shift = outer[:, :2] @ inner[:, 2:] + outer[:, 2:]
    return jnp.concatenate([matrix, shift], axis=1)


def make_augment(
    options: AugmentOptions, fill: Sequence[float] = (0.5,)
) -> Callable[[Array, Array], Array]:
    """Return `(key, image) -> image`: uint8 (height, width, channel) in, float32 in [0, 1] out.

    Args:
      options: what is changed, and how much.
      fill: colour of what is cut out, in [0, 1], one value or one for each channel.
    """
    moves = {name: getattr(options, name) for name in GEOMETRIC if getattr(options, name)}
    colours = {name: getattr(options, name) for name in PHOTOMETRIC if getattr(options, name)}

    def augment(key: Array, image: Array) -> Array:
        names = [*GEOMETRIC, *PHOTOMETRIC, "cutout"]
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        affine = _linear(jnp.eye(2))
        for name, strength in moves.items():
            affine = _compose(affine, GEOMETRIC[name](keys[name], strength))
        pixels = warp(image, affine) if moves else image.astype(jnp.float32) / 255
        for name, strength in colours.items():
            pixels = PHOTOMETRIC[name](keys[name], pixels, strength)
        if options.cutout:
            pixels = cutout(keys["cutout"], pixels, options.cutout, fill)
        return pixels

    return augment
