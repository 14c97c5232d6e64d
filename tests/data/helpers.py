"""Photographs to test with, and how they are loaded."""

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import chex
import numpy as np
from PIL import Image

from jaxdnn.data import Dataset, Split, load
from jaxdnn.data import decode as decode_module
from jaxdnn.options import DataOptions

CLASSES = ("bird", "cat", "dog")


def decode(item: bytes | np.ndarray, *, image_size: int | None, channels: int | None) -> np.ndarray:
    """Return the pixels alone."""
    return decode_module.decode(item, image_size=image_size, channels=channels)[0]


class Bar(contextlib.nullcontext[Any]):
    """Stands for a progress bar.

    Attributes:
      done: number of items after each report.
    """

    def __init__(self, stop_at: float = float("inf")):
        super().__init__(self)
        self.done: list[int] = []
        self._stop_at = stop_at

    def update(self, num: int) -> None:
        """Count, and interrupt the work where it shall stop."""
        self.done.append(num + sum(self.done[-1:]))
        if self.done[-1] >= self._stop_at:
            raise KeyboardInterrupt


def png(label: int, number: int, side: int = 6, mode: str = "L") -> bytes:
    """Return an image whose value tells its class and number."""
    stream = io.BytesIO()
    value = 80 * label + number
    colour = value if mode == "L" else (value, 10, 20)
    Image.new(mode, (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write a file and the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_folder(root: Path, names: list[str]) -> Path:
    """Write images whose value is their place among the names."""
    for number, name in enumerate(names):
        write(root / name, png(0, number, side=2))
    return root


def write_zip(path: Path, names: list[str]) -> Path:
    """Write the images of `write_folder` into a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, png(0, number, side=2))
    return path


def photos(root: Path, *, each: int = 10, prefix: str = "", **options: Any) -> Path:
    """Write grey images whose value tells their class and number, no two files the same."""
    for label, name in enumerate(CLASSES):
        for number in range(each):
            path = f"{prefix}/{name}/{number:02}.png".removeprefix("/")
            write(root / path, png(label, number, **options) + path.encode())
    return root


def loaded(data: object, *, seed: int = 0, progress: Any = False, **options: Any) -> Dataset:
    """Load a fifth of the images as test, a fifth of the rest as validation, without a cache."""
    defaults: dict[str, Any] = {
        "positive": (),
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "cache_gib": 0,
    }
    return load(DataOptions(str(data), **(defaults | options)), seed=seed, progress=progress)


def parts(dataset: Dataset) -> tuple[Split, Split, Split]:
    """Return the three splits."""
    return dataset.train, dataset.validation, dataset.test


def all_images(dataset: Dataset) -> list[np.ndarray]:
    """Return all images of each split, wherever they are."""
    return [split.images[np.arange(len(split.labels))] for split in parts(dataset)]


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    """Assert that two data sets hold the same images, labels and names in the same order."""
    for mine, yours in zip(parts(ours), parts(theirs), strict=True):
        assert mine.names == yours.names
        chex.assert_trees_all_equal(mine.labels, yours.labels)
    chex.assert_trees_all_equal(all_images(ours), all_images(theirs))
