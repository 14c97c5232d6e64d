"""The one loop over images: in threads, read, decoded, hashed and counted, in order.

Whatever goes through the items of a source - into memory, into a stream's survey, onto contact
sheets, into a prepared data set - goes through `Reader`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64

from jaxdnn.data.cache import RowCache
from jaxdnn.data.decode import (
    Header,
    ReadFailed,
    Resampling,
    Stored,
    UnreadableImage,
    decode,
    read_header,
)
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError
from jaxdnn.names import printable
from jaxdnn.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

OnDone = Callable[[int], object]
"""Called with the number of items done since the last call."""

_AHEAD_PER_WORKER = 4
_BAR_DELAY_SECONDS = 2.0
_MOST_FAILED = 100

PER_GROUP = 32
"""Items that a thread takes at a time: to hand over one costs as much as to decode a small one."""

# The same for batches: few enough for all threads to be busy with one batch, and of small images
# enough to be read from records at once.
_LEAST_CHUNK, _MOST_CHUNK, _CHUNK_BYTES = 16, 512, 2**20


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, max_workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield `function(item)` for every item, in order, a bounded number of items ahead.

    Args:
      function: thread-safe; worth a thread's while where it releases the interpreter's lock.
      items: consumed only as fast as the results are.
      max_workers: number of threads; None for one per usable processor.
    """
    workers = max_workers or _num_processors()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="jaxdnn-data")
    remaining = iter(items)
    try:
        bound = _AHEAD_PER_WORKER * workers
        pending = deque(pool.submit(function, item) for item in islice(remaining, bound))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prefetch(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Yield the items, the next one being made in a thread while the last is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="jaxdnn-ahead") as pool:
        try:
            pending = pool.submit(list, islice(items, 1))
            while found := pending.result():
                pending = pool.submit(list, islice(items, 1))
                yield found[0]
        finally:
            pool.submit(items.close)  # Behind what is being made: a generator runs in one thread.


def image_bar(total: int, *, disable: bool, desc: str = "decoding", unit: str = "images") -> Any:
    """Return a bar on stderr, a context manager, shown if the work takes more than two seconds."""
    return progress_bar(
        total=total,
        desc=desc,
        unit=f" {unit}",
        delay=_BAR_DELAY_SECONDS,
        leave=False,
        disable=disable,
    )


class ReadImage(NamedTuple):
    """What became of one item.

    Attributes:
      place: among the items asked for.
      item: index in the source.
      pixels: decoded; None where it is unreadable.
      header: what it says of itself; None where it is unreadable.
      digest: 64-bit hash of what is stored; 0 where it is unreadable.
      is_encoded: whether the source holds bytes and no array.
      reason: why it is unreadable; '' where it is not.
      has_failed: whether that was the machine's fault.
    """

    place: int
    item: int
    pixels: UInt8[np.ndarray, "height width channel"] | None = None
    header: Header | None = None
    digest: int = 0
    is_encoded: bool = False
    reason: str = ""
    has_failed: bool = False


@dataclass
class Inventory:
    """Numbers of readable images by 'WIDTHxHEIGHT', Pillow's mode as stored, and what is odd."""

    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, header: Header) -> None:
        """Count an image."""
        self.sizes[f"{header.width}x{header.height}"] += 1
        self.modes[header.mode] += 1
        if header.note:
            self.notes[header.note] += 1

    def summary(self, num_shown: int) -> list[str]:
        """Return a line for the modes, one for the sizes, the commonest first, and the notes."""
        counted = [
            f"{title}: {_listed(counts, num_shown)}"
            for title, counts in (("modes", self.modes), ("sizes", self.sizes))
            if counts
        ]
        notes = [f"note: {number:,} images with {note}" for note, number in self.notes.items()]
        return [*counted, *notes]


def _listed(counts: Counter[str], num_shown: int) -> str:
    shown = [f"{value}: {number:,}" for value, number in counts.most_common(num_shown)]
    more = len(counts) - len(shown)
    return ", ".join([*shown, *([f"… ({more:,} more)"] if more else [])])


@dataclass(frozen=True)
class Survey:
    """What is known of every item of a source once each has been read.

    Attributes:
      digests: 64-bit hash of what is stored; 0 where it could not be read.
      reasons: why an item is unreadable, by index.
      inventory: sizes and modes of the others.
      failed: the unreadable items that the machine failed to read, and that it may read next time.
    """

    digests: UInt64[np.ndarray, " num_items"]
    reasons: dict[int, str] = field(default_factory=dict)
    inventory: Inventory = field(default_factory=Inventory)
    failed: set[int] = field(default_factory=set)

    @property
    def is_readable(self) -> Bool[np.ndarray, " num_items"]:
        """Whether each item could be decoded."""
        is_readable = np.ones(len(self.digests), bool)
        is_readable[list(self.reasons)] = False
        return is_readable

    def add(self, image: ReadImage) -> None:
        """Enter what became of one item.

        Raises:
          InputError: the machine fails again and again.
        """
        self.digests[image.item] = image.digest
        if image.header is not None:
            self.inventory.add(image.header)
        else:
            self.reasons[image.item] = image.reason
            if image.has_failed:
                self.failed.add(image.item)
                self._check_failed(image.reason)

    def _check_failed(self, reason: str) -> None:
        if len(self.failed) > _MOST_FAILED:
            raise InputError(
                f"the machine failed to read more than {_MOST_FAILED} images, the last one: "
                f"{reason}; expected none or few; see to the machine, and try again"
            )


@dataclass(frozen=True)
class Reader:
    """Decodes the items of a source; thread-safe.

    Attributes:
      source: where the items are.
      image_size: side in pixels of the squares to decode to; None keeps each image's own size.
      channels: 1 for grey, 3 for colour; None keeps what each image has.
      cache: decoded images by index of their item; None decodes each time.
      max_workers: decoding threads; None for one per processor.
      resampling: how images are resized.
    """

    source: Source
    image_size: int | None
    channels: int | None
    cache: RowCache | None = None
    max_workers: int | None = None
    resampling: Resampling = "bilinear"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every decoded image, where they have been chosen."""
        assert self.image_size is not None
        assert self.channels is not None
        return self.image_size, self.image_size, self.channels

    def read_all(
        self,
        items: Sequence[int],
        use: Callable[[Iterator[ReadImage]], Result],
        *,
        per_group: int = PER_GROUP,
    ) -> Generator[Result, None, None]:
        """Read, decode and hash items in threads; an unreadable one is given with its reason.

        Args:
          items: indices in the source, in the order wanted.
          use: takes the images of a group as they are decoded, in the thread that decodes them.
          per_group: items of a group.

        Yields:
          What `use` has made of each group, in order.
        """

        def read_group(start: int) -> Result:
            group = items[start : start + per_group]
            read = self.source.read_together(group)
            return use(self._read(place, item, read) for place, item in enumerate(group, start))

        starts = range(0, len(items), per_group)
        return map_in_order(read_group, starts, max_workers=self.max_workers)

    def survey(
        self,
        items: Sequence[int],
        use: Callable[[list[ReadImage]], Result],
        take: Callable[[int, Result], object],
    ) -> Survey:
        """Read items like `read_all`, and note what became of each.

        Args:
          items: indices in the source, in the order wanted.
          use: takes the images of a group, in the thread that has decoded them.
          take: called with the number of items of each group and what `use` has made of them, in
            order.
        """
        survey = Survey(np.zeros(len(self.source.labels), np.uint64))

        def use_group(images: Iterator[ReadImage]) -> tuple[list[ReadImage], Result]:
            group = list(images)
            return [image._replace(pixels=None) for image in group], use(group)

        try:
            with contextlib.closing(self.read_all(items, use_group)) as groups:
                for group, result in groups:
                    for image in group:
                        survey.add(image)
                    take(len(group), result)
        finally:  # However it ends: it may have taken hours.
            if self.cache is not None:
                self.cache.flush()
        return survey

    def _read(self, place: int, item: int, read: Callable[[int], Stored]) -> ReadImage:
        try:
            stored = read(item)
            if (pixels := self._cached(item)) is not None:
                header = read_header(stored)
            else:
                pixels, header = self._decode(item, stored)
            digest = digest_of(stored)
        except UnreadableImage as error:
            failed = isinstance(error, ReadFailed)
            return ReadImage(place, item, reason=printable(str(error)), has_failed=failed)
        return ReadImage(place, item, pixels, header, digest, isinstance(stored, bytes))

    def _cached(self, item: int) -> np.ndarray | None:
        if self.cache is None or not self.cache.holds(item):
            return None
        row = np.empty(self.image_shape, np.uint8)
        return row if self.cache.read(item, row) else None

    def _decode(self, item: int, stored: Stored) -> tuple[np.ndarray, Header]:
        pixels, header = decode(
            stored,
            image_size=self.image_size,
            channels=self.channels,
            resampling=self.resampling,
        )
        if self.cache is not None:
            self.cache.write(item, pixels)
        return pixels, header

    def batches(
        self, batches: Iterable[Int[np.ndarray, " _"]], *, num_rows: int = 0
    ) -> Generator[UInt8[np.ndarray, "num height width channel"], None, None]:
        """Yield the images of each batch of items, in order, decoded a bounded number ahead.

        Args:
          batches: indices in the source, of images that are known to be readable; taken only as
            fast as the results are.
          num_rows: least length of the arrays; what a batch does not fill is left as it comes.

        Raises:
          InputError: an image cannot be read any more.
        """
        chunks = _chunks(batches, self.image_shape, num_rows)
        for images in map_in_order(self._fill, chunks, max_workers=self.max_workers):
            if images is not None:
                yield images

    def _fill(self, chunk: _Chunk) -> np.ndarray | None:
        cache, items = self.cache, chunk.items.tolist()
        read = self.source.read_together(
            [item for item in items if cache is None or not cache.holds(item)]
        )
        for row, item in zip(chunk.rows, items, strict=True):
            try:
                if cache is None or not cache.read(item, row):
                    row[...], _ = self._decode(item, read(item))
            except UnreadableImage as error:
                raise InputError(
                    f"{self.source.item_names[item]} in {self.source.name} cannot be read any more "
                    f"({error}); expected the images that the run began with; put it back and "
                    "resume, or train again"
                ) from error
        return chunk.batch


class _Chunk(NamedTuple):
    """What one thread fills; the last chunk of a batch gives it."""

    rows: np.ndarray
    items: np.ndarray
    batch: np.ndarray | None


def _chunks(
    batches: Iterable[np.ndarray], image_shape: tuple[int, ...], num_rows: int
) -> Iterator[_Chunk]:
    row_bytes = int(np.prod(image_shape))
    chunk = min(max(_LEAST_CHUNK, _CHUNK_BYTES // row_bytes), _MOST_CHUNK)
    for items in batches:
        images = np.empty((max(len(items), num_rows), *image_shape), np.uint8)
        for start in range(0, max(len(items), 1), chunk):
            end = min(start + chunk, len(items))
            yield _Chunk(images[start:end], items[start:end], images if end == len(items) else None)


def digest_of(stored: Stored) -> int:
    """Return a 64-bit hash: two different images among 10 million share one 3 times in 10^6."""
    data = stored if isinstance(stored, bytes) else stored.tobytes()
    return int.from_bytes(sha1(data, usedforsecurity=False).digest()[:8], "little")


def read_headers(source: Source) -> Iterator[Header]:
    """Yield the header of each readable item, in order, without decoding any."""

    def read_group(start: int) -> list[Header]:
        headers = []
        for item in range(start, min(start + PER_GROUP, len(source.labels))):
            with contextlib.suppress(UnreadableImage):
                headers.append(read_header(source.read(item)))
        return headers

    for group in map_in_order(read_group, range(0, len(source.labels), PER_GROUP)):
        yield from group
