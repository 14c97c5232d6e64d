"""A run on made-up images, of any size, for any number of devices."""

from __future__ import annotations

import numpy as np

from jaxdnn.config import Config
from jaxdnn.data import Dataset, ImagesInMemory, Split
from jaxdnn.options import DeviceOptions
from jaxdnn.training import Setup, make_setup


def make_up(config: Config, num: int, shape: tuple[int, int, int], devices: DeviceOptions) -> Setup:
    """Return the setup of a run on so many random images of this shape, dog or other."""
    draw = np.random.default_rng(0)

    def split(num: int) -> Split:
        images = ImagesInMemory(draw.integers(0, 256, (num, *shape), dtype=np.uint8))
        return Split(images, np.arange(num, dtype=np.int32) % 2, tuple(map(str, range(num))))

    dataset = Dataset(("other", "dog"), split(num), split(16), split(16), (), "made up")
    return make_setup(config, dataset, devices)
