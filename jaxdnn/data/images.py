"""The images of a split: in memory, or decoded when a batch needs them; both answer alike.

Streamed images stand where an array would: with a shape, a length, and images by place, so that
their number does not matter. What is asked of all of them - which can be read, mean and standard
deviation - is found in one pass and kept with the data under a fingerprint.
"""

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8

from jaxdnn.data.cache import cache_dir, concurrent_write, key_of, open_caches
from jaxdnn.data.decode import DECODING
from jaxdnn.data.pipeline import NUM_VALUES, PixelStats, count_values, pixel_stats_from_counts
from jaxdnn.data.reader import PER_GROUP, Inventory, OnDone, Reader, ReadImage, Survey
from jaxdnn.errors import InputError

Loaded = TypeVar("Loaded")
Places = Int[np.ndarray, " num"]
Batch = UInt8[np.ndarray, "num height width channel"]


class Images(Protocol):
    """uint8 images [num, height, width, channel] of one split, wherever they are."""

    is_streamed: ClassVar[bool]
    """Whether they are decoded only when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(number, height, width, channels)."""
        ...

    @property
    def pixel_stats(self) -> PixelStats:
        """Mean and standard deviation: of these, or of a stream those of its training images."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any) -> Any:
        """Return the images at these places, or at this one."""
        ...

    def batches(self, batches: Iterable[Places], *, num_rows: int = 0) -> Generator[Batch]:
        """Yield the images at each batch of places.

        Args:
          batches: places; taken only as fast as the results are.
          num_rows: least length of the arrays; what a batch does not fill is undefined.
        """
        ...

    def in_memory(self) -> Any:
        """Return all of them as one array. Raises InputError where they are streamed."""
        ...

    def keep(self) -> None:
        """Write what has been decoded so far to the disk, where it is kept at all."""
        ...


@dataclass(frozen=True)
class ImagesInMemory:
    """Decoded images, in one array of this machine or of the devices; methods as in `Images`."""

    array: Any
    is_streamed: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @functools.cached_property
    def pixel_stats(self) -> PixelStats:
        return pixel_stats_from_counts(count_values(np.asarray(self.array)))

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, places: Any) -> Any:
        return self.array[places]

    def batches(self, batches: Iterable[Places], *, num_rows: int = 0) -> Generator[Batch]:
        for places in batches:
            yield self.array[np.pad(places, (0, max(0, num_rows - len(places))))]

    def in_memory(self) -> Any:
        return self.array

    def keep(self) -> None:
        pass


@dataclass(frozen=True)
class StreamedImages:
    """Readable images of one split; methods as in `Images`.

    Attributes:
      reader: decodes the images to one size.
      items: index of each in the reader's source.
      pixel_stats: mean and standard deviation of the training images.
    """

    reader: Reader
    items: Int[np.ndarray, " num"]
    pixel_stats: PixelStats
    is_streamed: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.items), *self.reader.image_shape)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: Any) -> Any:
        if np.ndim(places) == 0 and not isinstance(places, slice):
            return self[np.asarray([places])][0]
        (images,) = self.batches([places])
        return images

    def batches(self, batches: Iterable[Places], *, num_rows: int = 0) -> Generator[Batch]:
        items = (self.items[places] for places in batches)
        return self.reader.batches(items, num_rows=num_rows)

    def in_memory(self) -> Any:
        raise InputError(
            f"{len(self):,} images are streamed; expected them in memory here; leave "
            "--streaming out, raise --max-memory-gib, or choose a smaller --image-size"
        )

    def keep(self) -> None:
        if self.reader.cache is not None:
            self.reader.cache.flush()


def decode_all(
    reader: Reader, parts: Sequence[Int[np.ndarray, " _"]], on_done: OnDone
) -> tuple[list[Images], Survey]:
    """Decode items into memory.

    Args:
      reader: with a size and channels chosen.
      parts: items of each split.
      on_done: called with the number of items done since the last call.

    Returns:
      The readable images of each part, in its order, and what is known of every item.
    """
    items = np.concatenate(parts)
    images = np.empty((len(items), *reader.image_shape), np.uint8)

    def fill(group: list[ReadImage]) -> None:
        for image in group:
            if image.pixels is not None:
                images[image.place] = image.pixels

    survey = reader.survey(items.tolist(), fill, lambda num, _: on_done(num))
    is_readable = survey.is_readable
    # Moved row by row towards the front: a copy would need the memory twice.
    kept = np.flatnonzero(is_readable[items])
    for place, row in enumerate(kept):
        if place != row:
            images[place] = images[row]
    ends = np.cumsum([is_readable[part].sum() for part in parts])
    return [ImagesInMemory(rows) for rows in np.split(images[: len(kept)], ends[:-1])], survey


def stream_all(
    reader: Reader,
    parts: Sequence[Int[np.ndarray, " _"]],
    on_done: OnDone,
    *,
    cache_bytes: float,
) -> tuple[list[Images], Survey]:
    """Make items ready to be streamed.

    The first time every image is decoded once, into the cache as far as it reaches; later times
    find the results with the data, unless the data has changed, or the machine failed to read some.

    Args:
      reader: with a size and channels chosen, without a cache.
      parts: items of each split; the first one's mean and standard deviation are wanted.
      on_done: called with the number of items done since the last call.
      cache_bytes: most disk for decoded images; 0 for none.

    Returns:
      The readable images of each part, in its order, and what is known of every item.
    """
    source, train, num = reader.source, parts[0], len(reader.source.labels)
    folder = cache_dir(source.home)
    key = key_of(DECODING, source.fingerprint(), reader.image_shape, reader.resampling)
    row_bytes = int(np.prod(reader.image_shape))
    (cache,) = open_caches(
        folder, "pixels", [key], num_images=num, row_bytes=row_bytes, max_bytes=cache_bytes
    )
    reader = dataclasses.replace(reader, cache=cache)
    survey_name = f"survey-{key}.npz"
    stats_name = f"standard-{key_of(key, train)}.json"
    survey = _load(folder, survey_name, lambda path: _load_survey(path, num))
    pixel_stats = _load(folder, stats_name, _load_pixel_stats)
    if survey is None:
        is_counted = np.zeros(num, bool)
        is_counted[train] = True
        survey, counts = take_survey(reader, is_counted, on_done)
        pixel_stats = pixel_stats_from_counts(counts)
        if not survey.failed:
            _save(folder, survey_name, functools.partial(_save_survey, survey))
    elif pixel_stats is None:
        counts = _count_items(reader, train[survey.is_readable[train]], on_done)
        pixel_stats = pixel_stats_from_counts(counts)
    if not survey.failed:
        _save(folder, stats_name, functools.partial(_save_pixel_stats, pixel_stats))
    if cache is not None:
        cache.flush()
    is_readable = survey.is_readable
    images = [StreamedImages(reader, part[is_readable[part]], pixel_stats) for part in parts]
    return [*images], survey


def take_survey(
    reader: Reader, is_counted: Bool[np.ndarray, " num_items"], on_done: OnDone
) -> tuple[Survey, Int64[np.ndarray, "channel 256"]]:
    """Decode every item once, in the order of the source, filling the reader's cache.

    Args:
      reader: with a size and channels chosen.
      is_counted: whose values to count: the training images'.
      on_done: called with the number of items done since the last call.

    Returns:
      The survey, and the counts of the values of the readable items among those counted.
    """
    total = np.zeros((reader.image_shape[-1], NUM_VALUES), np.int64)
    none = np.empty((0, *reader.image_shape), np.uint8)

    def count(group: list[ReadImage]) -> np.ndarray:
        found = [i.pixels for i in group if i.pixels is not None and is_counted[i.item]]
        return count_values(np.stack(found) if found else none)

    def add(num: int, counts: np.ndarray) -> None:
        np.add(total, counts, out=total)
        on_done(num)

    return reader.survey(range(len(is_counted)), count, add), total


def _count_items(
    reader: Reader, items: Int[np.ndarray, " num"], on_done: OnDone
) -> Int64[np.ndarray, "channel 256"]:
    """Count the values of readable items only."""
    total = np.zeros((reader.image_shape[-1], NUM_VALUES), np.int64)
    groups = (items[start : start + PER_GROUP] for start in range(0, len(items), PER_GROUP))
    for images in reader.batches(groups):
        total += count_values(images)
        on_done(len(images))
    return total


def _load(folder: Path | None, name: str, load: Callable[[Path], Loaded | None]) -> Loaded | None:
    return None if folder is None else load(folder / name)


def _save(folder: Path | None, name: str, save: Callable[[Path], None]) -> None:
    if folder is not None:
        # A full disk: it will be computed again.
        with contextlib.suppress(OSError), concurrent_write(folder / name) as draft:
            save(draft)


def _save_survey(survey: Survey, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            digests=survey.digests,
            unreadable=np.array(list(survey.reasons), np.int64),
            reasons=np.array(list(survey.reasons.values()), np.str_),
            inventory=np.array(json.dumps(vars(survey.inventory))),
        )


def _load_survey(path: Path, num_items: int) -> Survey | None:
    """Read a survey; None where there is none, or none that is complete and of so many items."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            digests, unreadable = arrays["digests"], arrays["unreadable"]
            reasons = dict(zip(unreadable.tolist(), arrays["reasons"].tolist(), strict=True))
            counts = json.loads(str(arrays["inventory"]))
            inventory = Inventory(*(Counter(counts[name]) for name in ("sizes", "modes", "notes")))
    except Exception:  # Missing or damaged, in any of the ways of zip and npy: taken again.
        return None
    return Survey(digests, reasons, inventory) if len(digests) == num_items else None


def _load_pixel_stats(path: Path) -> PixelStats | None:
    """Read them; None where they are missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        stats = PixelStats(tuple(stored["mean"]), tuple(stored["std"]))
        return stats if stored["key"] == key_of(*stats) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_pixel_stats(pixel_stats: PixelStats, path: Path) -> None:
    path.write_text(json.dumps(pixel_stats._asdict() | {"key": key_of(*pixel_stats)}) + "\n")
