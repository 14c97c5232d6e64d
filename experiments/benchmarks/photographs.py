"""Photographs to read: those of a zip, or made-up ones of the same kind."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdnn.data import image_zip

_NUM, _HEIGHT, _WIDTH, _QUALITY = 160, 375, 500, 95


def load(photos: Path | None) -> list[bytes]:
    """Return encoded photographs: a zip's, or as many made-up ones of ImageNet's usual size."""
    if photos is None:
        return [make(np.random.default_rng(number)) for number in range(_NUM)]
    source = image_zip(photos)
    stored = [source.read(item) for item in range(len(source.labels))]
    return [data for data in stored if isinstance(data, bytes)]


def make(rng: np.random.Generator) -> bytes:
    """Encode an image whose amplitudes fall as 1/f, as those of photographs do.

    References:
      Relations between the statistics of natural images and the response properties of cortical
      cells (Field, 1987).
    """
    rows, columns = np.fft.fftfreq(_HEIGHT)[:, None], np.fft.rfftfreq(_WIDTH)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / _WIDTH)
    shared, own = (rng.normal(size=(3, *falling.shape, 2)) @ (1, 1j) for _ in range(2))
    waves = np.fft.irfft2((shared[:1] + 0.3 * own) * falling, s=(_HEIGHT, _WIDTH))
    pixels = np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def write_folder(encoded: list[bytes], num: int, folder: Path) -> Path:
    """Write a folder of `num` photographs in two classes: each once, and links to it."""
    for number in range(num):
        path = folder / ("dog", "other")[number % 4 > 0] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        first = folder / f"{number % len(encoded)}.stored"
        if not first.exists():
            first.write_bytes(encoded[number % len(encoded)])
        os.link(first, path)
    return folder
