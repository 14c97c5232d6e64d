"""Decode the items of a source into arrays in memory."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from tqdm import tqdm

from jaxdnn.data.decode import Header, Stored, UnreadableImage, decode_and_look
from jaxdnn.data.inventory import Inventory
from jaxdnn.data.parallel import chunks_of, map_in_order
from jaxdnn.data.source import Source
from jaxdnn.data.stream import StreamedImages
from jaxdnn.data.survey import digest_of

_BAR_DELAY_SECONDS = 2.0

Progress = Callable[[int, int], None]
"""Called with the number of items done and their total."""


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Decoded:
    """Readable images in order, which items they are, every item's hash, and what was skipped.

    Attributes:
      inventory: sizes and modes of the readable ones; empty for a stream, whose survey has them.
    """

    images: UInt8[np.ndarray, "num height width channel"] | StreamedImages
    is_readable: Bool[np.ndarray, " num_items"]
    digests: UInt64[np.ndarray, " num_items"]
    skipped: tuple[Skipped, ...]
    inventory: Inventory = field(default_factory=Inventory)


def decode_items(
    source: Source,
    indices: Int[np.ndarray, " num_items"],
    *,
    image_size: int,
    channels: int,
    max_workers: int | None,
    on_done: Callable[[int], None],
) -> Decoded:
    """Decode items in threads into one array, in the order of `indices`.

    Args:
      on_done: called with the number of items done since the last call.
    """
    images = np.empty((len(indices), image_size, image_size, channels), np.uint8)
    is_readable = np.ones(len(indices), bool)
    digests = np.zeros(len(indices), np.uint64)
    skipped: list[Skipped] = []
    inventory = Inventory()

    def fill(places: range) -> list[Header | Skipped]:
        items = indices[places.start : places.stop].tolist()
        read = source.reading(items)
        return [fill_one(place, item, read) for place, item in zip(places, items, strict=True)]

    def fill_one(place: int, index: int, read: Callable[[int], Stored]) -> Header | Skipped:
        try:
            stored = read(index)
            images[place], header = decode_and_look(
                stored, image_size=image_size, channels=channels
            )
            digests[place] = digest_of(stored)
        except UnreadableImage as error:
            is_readable[place] = False
            return Skipped(source.item_names[index], str(error))
        return header

    chunks = chunks_of(len(indices))
    results = map_in_order(fill, chunks, max_workers=max_workers)
    for chunk, found in zip(chunks, results, strict=True):
        inventory.add(each for each in found if isinstance(each, Header))
        skipped.extend(each for each in found if isinstance(each, Skipped))
        on_done(len(chunk))
    return Decoded(_compacted(images, is_readable), is_readable, digests, tuple(skipped), inventory)


def _compacted(images: np.ndarray, is_readable: np.ndarray) -> np.ndarray:
    # Moved row by row towards the front: a copy would need the memory twice.
    kept = np.flatnonzero(is_readable)
    for place, row in enumerate(kept):
        if place != row:
            images[place] = images[row]
    return images[: len(kept)]


@contextlib.contextmanager
def reporting(
    total: int, progress: Progress | bool | None, what: str = "decoding"
) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the number of items just done.

    Args:
      total: number of items in all.
      progress: a callback; True for a bar on stderr if the work takes more than two seconds.
      what: is being done.
    """
    if callable(progress):
        yield _counted(progress, total)
        return
    with tqdm(
        total=total,
        desc=what,
        unit=" images",
        delay=_BAR_DELAY_SECONDS,
        leave=False,
        file=sys.stderr,
        disable=not progress,
    ) as bar:

        def on_done(num_items: int) -> None:
            bar.update(num_items)

        yield on_done


def _counted(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def on_done(num_items: int) -> None:
        nonlocal done
        done += num_items
        progress(done, total)

    return on_done
