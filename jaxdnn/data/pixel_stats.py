"""Mean and standard deviation of images, from how often each 8-bit value occurs.

Counts of whole numbers add up exactly: in whatever portions the images come, the result is the same
to the last digit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

NUM_VALUES = 256
_PORTION = 64


class PixelStats(NamedTuple):
    """Mean and standard deviation of each channel of the training images, black 0 to white 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def count_values(
    images: UInt8[np.ndarray, "num height width channel"],
) -> Int64[np.ndarray, "channel 256"]:
    """Count how often each value occurs in each of 1 or 3 channels."""
    _, height, width, channels = images.shape
    counts = np.zeros((channels, NUM_VALUES), np.int64)
    for start in range(0, len(images), _PORTION):
        portion = images[start : start + _PORTION]
        tall = portion.reshape(len(portion) * height, width, channels)
        # Pillow counts several times as fast as NumPy, which makes 64-bit numbers of them first.
        picture = Image.fromarray(tall[..., 0] if channels == 1 else tall)
        counts += np.reshape(picture.histogram(), counts.shape)
    return counts


def pixel_stats_from_counts(counts: Int64[np.ndarray, "channel 256"]) -> PixelStats:
    """Return mean and standard deviation of values / 255 that occur so often."""
    values = np.arange(NUM_VALUES) / 255
    means = [float(np.average(values, weights=weights)) for weights in counts]
    stds = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
        for mean, weights in zip(means, counts, strict=True)
    ]
    # A channel without variation would be divided by 0; it is left at 0 instead.
    return PixelStats(tuple(means), tuple(std or 1.0 for std in stds))


def measure_pixel_stats(images: UInt8[np.ndarray, "num height width channel"]) -> PixelStats:
    """Measure images in portions that fit in memory."""
    return pixel_stats_from_counts(count_values(images))
