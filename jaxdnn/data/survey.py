"""One look at every image: which can be read, which are the same, how their values are spread.

Its results are kept beside the data under a fingerprint, so that it is done once.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt64

from jaxdnn.data.beside import draft_beside
from jaxdnn.data.decode import Header, Stored, UnreadableImage, look
from jaxdnn.data.inventory import Inventory
from jaxdnn.data.parallel import chunks_of, map_in_order
from jaxdnn.data.pixel_cache import PixelCache
from jaxdnn.data.pixel_stats import NUM_VALUES, count_values
from jaxdnn.data.reader import Reader

_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Survey:
    """What is known of every item of a source.

    Attributes:
      is_readable: whether it could be decoded.
      digests: 64-bit hash of what is stored; 0 where it could not be read.
      reasons: why an item is unreadable, by index.
      inventory: sizes and modes of the others.
    """

    is_readable: Bool[np.ndarray, " num_items"]
    digests: UInt64[np.ndarray, " num_items"]
    reasons: dict[int, str]
    inventory: Inventory


def digest_of(stored: Stored) -> int:
    """Return a 64-bit hash: two different images among 10 million share one 3 times in 10^6."""
    data = stored if isinstance(stored, bytes) else stored.tobytes()
    return int.from_bytes(sha1(data, usedforsecurity=False).digest()[:8], "little")


def take_survey(
    reader: Reader,
    is_counted: Bool[np.ndarray, " num_items"],
    on_done: Callable[[int], None],
) -> tuple[Survey, Int64[np.ndarray, "channel 256"]]:
    """Decode every item once, in the order of the source, filling the reader's cache.

    Args:
      reader: of the source.
      is_counted: whose values to count: the training images'.
      on_done: called with the number of items done since the last call.

    Returns:
      The survey, and the counts of the values of the readable items among those counted.
    """
    num_items = len(is_counted)
    digests = np.zeros(num_items, np.uint64)
    reasons: dict[int, str] = {}

    def look_at(items: range) -> tuple[np.ndarray, list[Header]]:
        images, headers = np.empty((len(items), *reader.image_shape), np.uint8), []
        read = reader.source.reading(items)
        for row, item in zip(images, items, strict=True):
            try:
                stored = read(item)
                header = reader.read_into(row, item, {item: stored}.__getitem__)
                headers.append(header or look(stored))
                digests[item] = digest_of(stored)
            except UnreadableImage as error:
                reasons[item] = str(error)
        counted = [is_counted[item] and item not in reasons for item in items]
        return count_values(images[counted]), headers

    total = np.zeros((reader.image_shape[-1], NUM_VALUES), np.int64)
    chunks = chunks_of(num_items)
    inventory = Inventory()
    results = map_in_order(look_at, chunks, max_workers=reader.max_workers)
    with _kept(reader.cache) as keep, contextlib.closing(results):
        for chunk, (counts, headers) in zip(chunks, results, strict=True):
            total += counts
            inventory.add(headers)
            on_done(len(chunk))
            keep()
    is_readable = np.ones(num_items, bool)
    is_readable[list(reasons)] = False
    return Survey(is_readable, digests, dict(sorted(reasons.items())), inventory), total


@contextlib.contextmanager
def _kept(cache: PixelCache | None) -> Iterator[Callable[[], None]]:
    """Flush a cache now and then and at the end, however it comes: it may take hours to fill."""
    flushed_at = time.monotonic()

    def keep() -> None:
        nonlocal flushed_at
        if cache is not None and time.monotonic() - flushed_at > _FLUSH_SECONDS:
            cache.flush()
            flushed_at = time.monotonic()

    try:
        yield keep
    finally:
        if cache is not None:
            cache.flush()


def count_items(
    reader: Reader, items: Int[np.ndarray, " num"], on_done: Callable[[int], None]
) -> Int64[np.ndarray, "channel 256"]:
    """Count the values of readable items only."""
    total = np.zeros((reader.image_shape[-1], NUM_VALUES), np.int64)
    batches = [items[chunk.start : chunk.stop] for chunk in chunks_of(len(items))]
    for images in reader.batches(batches):
        total += count_values(images)
        on_done(len(images))
    return total


def save_survey(survey: Survey, path: Path) -> None:
    """Write a survey in one piece. Raises OSError."""
    with draft_beside(path) as draft, draft.open("wb") as file:
        np.savez_compressed(
            file,
            digests=survey.digests,
            unreadable=np.array(list(survey.reasons), np.int64),
            reasons=np.array(list(survey.reasons.values()), np.str_),
            inventory=np.array(json.dumps(vars(survey.inventory))),
        )


def load_survey(path: Path, num_items: int) -> Survey | None:
    """Read a survey; None where there is none, or none that is whole and of so many items."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            digests, unreadable = arrays["digests"], arrays["unreadable"]
            reasons = dict(zip(unreadable.tolist(), arrays["reasons"].tolist(), strict=True))
            counts = json.loads(str(arrays["inventory"]))
            inventory = Inventory(Counter(counts["sizes"]), Counter(counts["modes"]))
    except Exception:  # Missing or damaged, in any of the ways of zip and npy: taken again.
        return None
    if len(digests) != num_items:
        return None
    is_readable = np.ones(num_items, bool)
    is_readable[unreadable] = False
    return Survey(is_readable, digests, reasons, inventory)
