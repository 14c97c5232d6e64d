"""Images that are decoded when a batch needs them, so that their number does not matter.

They stand where an array of decoded images would: with a shape, a length, and images by place.
What is asked of all of them - which can be read, mean and standard deviation - is found in one
pass and kept beside the data.
"""

import contextlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from jaxdnn.data import beside
from jaxdnn.data.pixel_cache import PixelCache
from jaxdnn.data.pixel_stats import PixelStats, pixel_stats_from_counts
from jaxdnn.data.reader import Reader
from jaxdnn.data.source import Source
from jaxdnn.data.survey import Survey, count_items, load_survey, save_survey, take_survey

OnDone = Callable[[int], None]


@dataclass(frozen=True)
class StreamedImages:
    """Readable images of one split.

    Attributes:
      reader: decodes them.
      items: index of each in the reader's source.
      standard: mean and standard deviation of the training images.
    """

    reader: Reader
    items: Int[np.ndarray, " num"]
    pixel_stats: PixelStats

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(number, height, width, channels)."""
        return (len(self.items), *self.reader.image_shape)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: Any) -> UInt8[np.ndarray, "..."]:
        """Decode the images at these places, or at this one."""
        if np.ndim(places) == 0:
            return self[np.asarray([places])][0]
        (images,) = self.batches([places])
        return images

    def batches(
        self, batches: Iterable[Int[np.ndarray, " _"]], *, num_rows: int = 0
    ) -> Generator[UInt8[np.ndarray, "num height width channel"], None, None]:
        """Yield the images at each batch of places, decoded ahead; see `Reader.batches`."""
        items = (self.items[places] for places in batches)
        return self.reader.batches(items, num_rows=num_rows)

    def keep(self) -> None:
        """Write what the cache of decoded images has got to disk."""
        if self.reader.cache is not None:
            self.reader.cache.flush()


@dataclass(frozen=True)
class Stream:
    """A source that is known but not decoded.

    Attributes:
      reader: of its items.
      survey: of all items.
      standard: of the training images.
    """

    reader: Reader
    survey: Survey
    pixel_stats: PixelStats

    def images(self, part: Int[np.ndarray, " num"]) -> StreamedImages:
        """Return the readable images among these items."""
        return StreamedImages(self.reader, part[self.survey.is_readable[part]], self.pixel_stats)


def open_stream(
    source: Source,
    image_shape: tuple[int, int, int],
    *,
    train: Int[np.ndarray, " num_train"],
    cache_bytes: float,
    max_workers: int | None,
    on_done: OnDone,
) -> Stream:
    """Make the images of a source ready to be streamed.

    The first time every image is decoded once, into the cache as far as it reaches; later times
    find the results beside the data, unless the data has changed.

    Args:
      source: of the images.
      image_shape: height, width and channels to decode to.
      train: items whose mean and standard deviation are wanted.
      cache_bytes: most disk for decoded images; 0 for none.
      max_workers: decoding threads; None for one per processor.
      on_done: called with the number of items done since the last call.
    """
    folder = beside.folder_beside(source)
    key = beside.key_of(beside.DECODING, source.fingerprint(), image_shape)
    cache = _open_cache(folder, key, len(source.labels), image_shape, cache_bytes)
    reader = Reader(source, image_shape, cache, max_workers)
    pixel_stats_key = beside.key_of(key, train)
    survey = _load(folder, f"survey-{key}.npz", lambda path: load_survey(path, len(source.labels)))
    pixel_stats = _load(folder, f"standard-{pixel_stats_key}.json", _load_pixel_stats)
    if survey is None:
        is_counted = np.zeros(len(source.labels), bool)
        is_counted[train] = True
        survey, counts = take_survey(reader, is_counted, on_done)
        pixel_stats = pixel_stats_from_counts(counts) if counts.any() else None
        _save(folder, f"survey-{key}.npz", lambda path: save_survey(survey, path))
    elif pixel_stats is None:
        counts = count_items(reader, train[survey.is_readable[train]], on_done)
        pixel_stats = pixel_stats_from_counts(counts) if counts.any() else None
    if pixel_stats is None:  # No readable training image; whoever counts them will say so.
        pixel_stats = PixelStats((0.0,) * image_shape[-1], (1.0,) * image_shape[-1])
    _save(
        folder,
        f"standard-{pixel_stats_key}.json",
        lambda path: _save_pixel_stats(pixel_stats, path),
    )
    if cache is not None:
        cache.flush()
    return Stream(reader, survey, pixel_stats)


def _open_cache(
    folder: Path | None, key: str, num_items: int, shape: Sequence[int], max_bytes: float
) -> PixelCache | None:
    if folder is None or max_bytes <= 0:
        return None
    row_bytes, path = int(np.prod(shape)), folder / f"pixels-{key}"
    try:
        beside.remove_others(folder, path, max_bytes - num_items * row_bytes)
        return PixelCache(path, num_images=num_items, row_bytes=row_bytes, max_bytes=max_bytes)
    except OSError:  # Slower without, but not wrong.
        return None


Loaded = TypeVar("Loaded")


def _load(folder: Path | None, name: str, load: Callable[[Path], Loaded | None]) -> Loaded | None:
    return None if folder is None else load(folder / name)


def _save(folder: Path | None, name: str, save: Callable[[Path], None]) -> None:
    if folder is not None:
        with contextlib.suppress(OSError):  # A full disk: it will be computed again.
            save(folder / name)


def _load_pixel_stats(path: Path) -> PixelStats | None:
    try:
        stored = json.loads(path.read_text())
        return PixelStats(tuple(stored["mean"]), tuple(stored["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_pixel_stats(pixel_stats: PixelStats, path: Path) -> None:
    with beside.draft_beside(path) as draft:
        draft.write_text(json.dumps(pixel_stats._asdict()) + "\n")
