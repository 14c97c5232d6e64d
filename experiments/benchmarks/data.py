"""Images per second into batches: the package's reader against others, on the same photographs.

All contenders take the same encoded photographs from memory, in the same shuffled order, with two
workers each, and give uint8 batches of grey 227 x 227 images.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdnn.data import PixelCache, Reader, Source, map_in_order, take_survey

SIZE, BATCH_SIZE, WORKERS = 227, 128, 2
OURS, CACHED = "jaxdnn, decoding", "jaxdnn, later epochs, from its cache"
FIRST = "jaxdnn, first look: hash, statistics and cache too"
TORCH, PILLOW, OPENCV = "PyTorch DataLoader with Pillow", "Pillow in threads", "OpenCV in threads"

# Gives one epoch of batches.
Epoch = Callable[[], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Encoded photographs by index, repeated; what `torch.utils.data` calls a map-style set."""

    encoded: list[bytes]
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(with_pillow(self.encoded[index % len(self.encoded)]))


def with_pillow(encoded: bytes) -> np.ndarray:
    """Decode to RGB, resize, crop the middle and turn grey, as torchvision's transforms do."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.array(image.crop((left, top, left + SIZE, top + SIZE)).convert("L"))


def with_opencv(encoded: bytes) -> np.ndarray:
    """Decode to grey, crop the middle and average down."""
    import cv2  # pyrefly: ignore[missing-import]

    pixels: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    side = min(pixels.shape)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def measure(encoded: list[bytes], *, num: int, rounds: int) -> dict[str, Any]:
    """Return images per second of each contender and round, the contenders taking turns."""
    source, batches = _in_memory(encoded, num), _batches(num)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = _new_cache(Path(folder, "pixels"), num)
        epochs = {
            OURS: lambda: Reader(source, SIZE, 1, None, WORKERS).batches(batches),
            **_others(Photographs(encoded, num), batches),
            FIRST: lambda: _first_look(source, Path(folder)),
            CACHED: lambda: Reader(source, SIZE, 1, cache, WORKERS).batches(batches),
        }
        for _ in epochs[CACHED]():  # As the first epoch fills it.
            pass
        for _ in range(rounds):
            for name, epoch in epochs.items():
                rates.setdefault(name, []).append(_rate(epoch))
    return {"images": num, "workers": WORKERS, "images_per_second": rates}


def _first_look(source: Source, folder: Path) -> list[range]:
    """Do what a first start does with every image: hash, decode, count its values, keep it."""
    num = len(source.labels)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        reader = Reader(source, SIZE, 1, _new_cache(Path(own, "pixels"), num), WORKERS)
        done: list[range] = []
        take_survey(reader, np.ones(num, bool), lambda number: done.append(range(number)))
    return done


def _new_cache(path: Path, num: int) -> PixelCache:
    return PixelCache(path, num_images=num, row_bytes=SIZE * SIZE, max_bytes=2**33)


def _in_memory(encoded: list[bytes], num: int) -> Source:
    return Source(
        name="photographs",
        class_names=("photograph",),
        item_names=[str(item) for item in range(num)],
        labels=np.zeros(num, np.int32),
        splits=np.full(num, ""),
        read=lambda item: encoded[item % len(encoded)],
    )


def _batches(num: int) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(num)
    return [order[start : start + BATCH_SIZE] for start in range(0, num, BATCH_SIZE)]


def _rate(epoch: Epoch) -> float:
    start = time.perf_counter()
    num = sum(len(batch) for batch in epoch())
    return num / (time.perf_counter() - start)


def _others(photographs: Photographs, batches: list[np.ndarray]) -> dict[str, Epoch]:
    import torch
    from torch.utils.data import DataLoader

    order = np.concatenate(batches).tolist()
    loader = DataLoader(
        photographs,  # pyrefly: ignore[bad-argument-type]
        batch_size=BATCH_SIZE,
        sampler=order,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    torch.set_num_threads(WORKERS)
    next(iter(loader))  # Starts the workers, which is not timed.
    others: dict[str, Epoch] = {TORCH: lambda: loader}
    decoders = {PILLOW: with_pillow}
    if importlib.util.find_spec("cv2"):
        import cv2  # pyrefly: ignore[missing-import]

        cv2.setNumThreads(1)
        decoders[OPENCV] = with_opencv
    for name, decoder in decoders.items():
        others[name] = lambda decoder=decoder: _threaded(decoder, photographs.encoded, batches)
    return others


def _threaded(
    decoder: Callable[[bytes], np.ndarray], encoded: list[bytes], batches: list[np.ndarray]
) -> Iterable[np.ndarray]:
    def one(batch: np.ndarray) -> np.ndarray:
        return np.stack([decoder(encoded[item % len(encoded)]) for item in batch])

    return map_in_order(one, batches, max_workers=WORKERS)


def report(results: dict[str, Any]) -> str:
    """Return the rates as a Markdown table, with their ratio to PyTorch's loader by round."""
    lines = [
        f"{results['images']:,} photographs to grey {SIZE}x{SIZE}, {results['workers']} workers, "
        "images per second into batches (median, range), and the median ratio to PyTorch's loader",
        "",
        "| | images/s | range | ratio |",
        "|---|---:|---:|---:|",
    ]
    theirs = results["images_per_second"][TORCH]
    for name, rates in results["images_per_second"].items():
        ratio = float(np.median([a / b for a, b in zip(rates, theirs, strict=True)]))
        cells = f"{np.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {ratio:.2f}x"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"
