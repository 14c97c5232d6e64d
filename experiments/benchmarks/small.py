"""Small images prepared once: from array_record files into batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.photographs import write_folder
from jaxdnn.data import Reader, image_folder, open_source, prepare, tfds

BATCH_SIZE, WORKERS = 128, 2
STEPS = 8  # Training takes the batches of so many steps, or more, at once.
IN_MEMORY, BY_PLACE = "encoded in memory", "read by place"


def measure(encoded: list[bytes], num: int, rounds: int) -> dict[str, list[float]]:
    """Return images per second of each set, way to read it, and round."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs = image_folder(write_folder(encoded, num, Path(folder, "photographs")))
        silhouettes, out = open_source("silhouettes"), Path(folder, "prepared")
        for source, size, channels in ((silhouettes, 28, 1), (photographs, 32, 3)):
            name = f"of_{size}"
            prepare(
                source,
                out,
                name=name,
                image_size=size,
                channels=channels,
                on_done=lambda num: None,
            )
            for reader, how in _readers(name, out, (size, size, channels)):
                title = f"{size}x{size}x{channels}, {how}"
                rates[title] = [_rate(reader) for _ in range(rounds)]
    return rates


def _readers(name: str, out: Path, shape: tuple[int, int, int]) -> Iterator[tuple[Reader, str]]:
    """Give readers as a small set is read, and as one that is too large for memory."""
    size, _, channels = shape
    for kept_bytes, how in ((2**40, IN_MEMORY), (0, BY_PLACE)):
        source = tfds(name, str(out), kept_bytes=kept_bytes)
        yield Reader(source, size, channels, max_workers=WORKERS), how


def _rate(reader: Reader) -> float:
    num = len(reader.source.labels)
    order = np.random.default_rng(0).permutation(num)
    size = STEPS * BATCH_SIZE
    batches = [order[start : start + size] for start in range(0, num, size)]
    start = time.perf_counter()
    seen = sum(len(batch) for batch in reader.batches(batches))
    return seen / (time.perf_counter() - start)


def report(rates: dict[str, list[float]]) -> str:
    """Return the rates as a Markdown table."""
    lines = [
        f"| from array_record, batches of {BATCH_SIZE}, {STEPS} at a time | images/s | range |",
        "|---|---:|---:|",
    ]
    for name, found in rates.items():
        median = np.median(found)
        lines.append(f"| {name} | {median:,.0f} | {min(found):,.0f} to {max(found):,.0f} |")
    return "\n".join(lines) + "\n"
