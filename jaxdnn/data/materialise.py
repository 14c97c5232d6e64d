"""Decode the items of a source into arrays in memory."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from tqdm import tqdm

from jaxdnn.data.decode import UnreadableImage, decode
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
    """Readable images in order, which items they are, every item's hash, and what was skipped."""

    images: UInt8[np.ndarray, "num height width channel"] | StreamedImages
    is_readable: Bool[np.ndarray, " num_items"]
    digests: UInt64[np.ndarray, " num_items"]
    skipped: tuple[Skipped, ...]


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

    def fill(places: range) -> list[tuple[int, Skipped]]:
        return [(place, trouble) for place in places if (trouble := fill_one(place))]

    def fill_one(place: int) -> Skipped | None:
        index = int(indices[place])
        try:
            stored = source.read(index)
            digests[place] = digest_of(stored)
            images[place] = decode(stored, image_size=image_size, channels=channels)
        except UnreadableImage as error:
            return Skipped(source.item_names[index], str(error))
        return None

    chunks = chunks_of(len(indices))
    troubles = map_in_order(fill, chunks, max_workers=max_workers)
    for chunk, found in zip(chunks, troubles, strict=True):
        is_readable[[place for place, _ in found]] = False
        skipped.extend(trouble for _, trouble in found)
        on_done(len(chunk))
    return Decoded(_compacted(images, is_readable), is_readable, digests, tuple(skipped))


def _compacted(images: np.ndarray, is_readable: np.ndarray) -> np.ndarray:
    # Moved row by row towards the front: a copy would need the memory twice.
    kept = np.flatnonzero(is_readable)
    for place, row in enumerate(kept):
        if place != row:
            images[place] = images[row]
    return images[: len(kept)]


@contextlib.contextmanager
def reporting(total: int, progress: Progress | bool | None) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the number of items just done.

    Args:
      total: number of items in all.
      progress: a callback; True for a bar on stderr if the work takes more than two seconds.
    """
    if callable(progress):
        yield _counted(progress, total)
        return
    with tqdm(
        total=total,
        desc="decoding",
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
