"""How photographs become batches: against other readers, in training, and in memory.

decode: all contenders take the same encoded photographs from memory, in the same shuffled order,
with two workers each, and give uint8 batches of grey 227 x 227 images.

small: small images prepared once, from array_record files into batches.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import photographs
import streamed
from PIL import Image
from timing import HINT, describe_machine, make_folder

from jaxdnn import command_line
from jaxdnn.data import (
    Reader,
    RowCache,
    Source,
    image_folder,
    map_in_order,
    open_source,
    prepare,
    take_survey,
    tfds,
)
from jaxdnn.errors import InputError

DESCRIPTION = """Measure how photographs become batches, in four parts.

decode: images per second against other readers, with two workers each, in turns.

train: an MLP 51529-512-128-2 trained from the stream: how long does the device wait?

memory: the same with ten times the photographs: does it take more memory?

small: 28x28 and 32x32 images from array_record files."""

PARTS = ("decode", "train", "memory", "small")

SIZE, BATCH_SIZE, WORKERS = 227, 128, 2
OURS, CACHED = "jaxdnn, decoding", "jaxdnn, later epochs, from its cache"
FIRST = "jaxdnn, first pass: hash, statistics and cache too"
TORCH, PILLOW, OPENCV = "PyTorch DataLoader with Pillow", "Pillow in threads", "OpenCV in threads"

# Gives one epoch of batches.
Epoch = Callable[[], Iterable[Any]]
STEPS = 8  # Training takes the batches of so many steps, or more, at once.
IN_MEMORY, BY_PLACE = "encoded in memory", "read by place"


@dataclasses.dataclass(frozen=True)
class DataArguments:
    """The command line of `data`."""

    photos: Path | None = None
    """A zip of JPEG photographs in class folders; default: made-up ones of 500x375."""
    out: Path = Path("runs/bench")
    """Folder for data.json and data.md."""
    only: tuple[Literal["decode", "train", "memory", "small"], ...] = ()
    """Parts to measure; default all."""
    num: int = 5000
    """Photographs in an epoch: those of the zip, repeated."""
    rounds: int = 3
    """How often every contender takes its turn."""
    steps: int = 100
    """Optimizer steps that are measured."""


def main(args: list[str], prog: str) -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        DataArguments, default=None, args=args, prog=prog, description=DESCRIPTION
    )
    parts = arguments.only or PARTS
    if "decode" in parts and importlib.util.find_spec("torch") is None:
        raise InputError(f"{HINT}; or leave it out: --only train memory small")
    make_folder(arguments.out)
    encoded = photographs.load(arguments.photos)
    results = describe_machine() | {
        "photographs": str(arguments.photos or "made up"),
        "num": arguments.num,
    }
    lines = []
    for part in parts:
        results[part], text = _measure(part, encoded, arguments, results["cores"])
        lines.append(text)
        print(text, flush=True)
        (arguments.out / "data.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "data.md").write_text("\n".join(lines))
    print(f"everything is in {arguments.out}")
    return 0


def _measure(
    part: str, encoded: list[bytes], arguments: DataArguments, cores: int
) -> tuple[Any, str]:
    """Return the results of a part, and what to say of them."""
    num = arguments.num
    if part == "decode":
        found = _measure_decoding(encoded, num=num, rounds=arguments.rounds)
        return found, _report_decoding(found)
    if part == "train":
        found = streamed.measure_training(encoded, num, arguments.steps)
        return found, streamed.report_training(found, num, cores)
    if part == "memory":
        found = streamed.measure_memory(encoded, num, 10 * num, arguments.steps)
        return found, streamed.report_memory(found)
    found = _measure_small(encoded, num, arguments.rounds)
    return found, _report_small(found)


@dataclasses.dataclass(frozen=True)
class _Photographs:
    """Encoded photographs by index, repeated; what `torch.utils.data` calls a map-style set."""

    encoded: list[bytes]
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(_with_pillow(self.encoded[index % len(self.encoded)]))


def _with_pillow(encoded: bytes) -> np.ndarray:
    """Decode to RGB, resize, crop the middle and turn grey, as torchvision's transforms do."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.array(image.crop((left, top, left + SIZE, top + SIZE)).convert("L"))


def _with_opencv(encoded: bytes) -> np.ndarray:
    """Decode to grey, crop the middle and average down."""
    import cv2  # pyrefly: ignore[missing-import]

    pixels: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    side = min(pixels.shape)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _measure_decoding(encoded: list[bytes], *, num: int, rounds: int) -> dict[str, Any]:
    """Return images per second of each contender and round, the contenders taking turns."""
    source, batches = _in_memory(encoded, num), _batches(num)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = _new_cache(Path(folder, "pixels"), num)
        epochs = {
            OURS: lambda: Reader(source, SIZE, 1, None, WORKERS).batches(batches),
            **_others(_Photographs(encoded, num), batches),
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


def _new_cache(path: Path, num: int) -> RowCache:
    return RowCache(path, num_images=num, row_bytes=SIZE * SIZE, max_bytes=2**33)


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


def _others(given: _Photographs, batches: list[np.ndarray]) -> dict[str, Epoch]:
    import torch
    from torch.utils.data import DataLoader

    order = np.concatenate(batches).tolist()
    loader = DataLoader(
        given,  # pyrefly: ignore[bad-argument-type]
        batch_size=BATCH_SIZE,
        sampler=order,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    torch.set_num_threads(WORKERS)
    next(iter(loader))  # Starts the workers, which is not timed.
    others: dict[str, Epoch] = {TORCH: lambda: loader}
    decoders = {PILLOW: _with_pillow}
    if importlib.util.find_spec("cv2"):
        import cv2  # pyrefly: ignore[missing-import]

        cv2.setNumThreads(1)
        decoders[OPENCV] = _with_opencv
    for name, decoder in decoders.items():
        others[name] = lambda decoder=decoder: _threaded(decoder, given.encoded, batches)
    return others


def _threaded(
    decoder: Callable[[bytes], np.ndarray], encoded: list[bytes], batches: list[np.ndarray]
) -> Iterable[np.ndarray]:
    def one(batch: np.ndarray) -> np.ndarray:
        return np.stack([decoder(encoded[item % len(encoded)]) for item in batch])

    return map_in_order(one, batches, max_workers=WORKERS)


def _report_decoding(results: dict[str, Any]) -> str:
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


def _measure_small(encoded: list[bytes], num: int, rounds: int) -> dict[str, list[float]]:
    """Return images per second of each set, way to read it, and round."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures = image_folder(photographs.write_folder(encoded, num, Path(folder, "pictures")))
        silhouettes, out = open_source("silhouettes"), Path(folder, "prepared")
        for source, size, channels in ((silhouettes, 28, 1), (pictures, 32, 3)):
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
                rates[title] = [_small_rate(reader) for _ in range(rounds)]
    return rates


def _readers(name: str, out: Path, shape: tuple[int, int, int]) -> Iterator[tuple[Reader, str]]:
    """Give readers as a small set is read, and as one that is too large for memory."""
    size, _, channels = shape
    for kept_bytes, how in ((2**40, IN_MEMORY), (0, BY_PLACE)):
        source = tfds(name, str(out), kept_bytes=kept_bytes)
        yield Reader(source, size, channels, max_workers=WORKERS), how


def _small_rate(reader: Reader) -> float:
    num = len(reader.source.labels)
    order = np.random.default_rng(0).permutation(num)
    size = STEPS * BATCH_SIZE
    batches = [order[start : start + size] for start in range(0, num, size)]
    start = time.perf_counter()
    num_images = sum(len(batch) for batch in reader.batches(batches))
    return num_images / (time.perf_counter() - start)


def _report_small(rates: dict[str, list[float]]) -> str:
    """Return the rates as a Markdown table."""
    lines = [
        f"| from array_record, batches of {BATCH_SIZE}, {STEPS} at a time | images/s | range |",
        "|---|---:|---:|",
    ]
    for name, found in rates.items():
        median = np.median(found)
        lines.append(f"| {name} | {median:,.0f} | {min(found):,.0f} to {max(found):,.0f} |")
    return "\n".join(lines) + "\n"
