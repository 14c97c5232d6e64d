"""The records of a prepared data set: every label at once, images when they are asked for."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from jaxdnn.data import beside
from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.source import Source

KEPT_BYTES = 64 * 2**20
"""A data set whose files are smaller is kept in memory, encoded: read from there several times as
fast."""

_RECORDS_PER_READ = 1024
_BYTES_PER_READ = 16 * 2**20
_BAR_DELAY_SECONDS = 2.0


class Records:
    """One split.

    Attributes:
      labels: class of each record, -1 where there is none.
    """

    def __init__(self, records: Any, image_key: str, label_key: str):
        self._records, self._image_key, self._label_key = records, image_key, label_key
        self._images: list[bytes] = []
        self.labels: Int32[np.ndarray, " num_records"] = np.empty(len(records), np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def load(self, *, per_read: int, keep_images: bool, on_done: Callable[[int], Any]) -> None:
        """Read all records for their labels, so many at a time."""
        for start in range(0, len(self), per_read):
            places = range(start, min(start + per_read, len(self)))
            found = self._records.__getitems__(places)
            self.labels[start : places.stop] = [record[self._label_key] for record in found]
            if keep_images:
                self._images.extend(record[self._image_key] for record in found)
            on_done(len(places))

    def read_many(self, places: Sequence[int]) -> list[bytes]:
        """Return encoded images. Raises UnreadableImage."""
        if self._images:
            return [self._images[place] for place in places]
        try:
            found = self._records.__getitems__([int(place) for place in places])
            return [record[self._image_key] for record in found]
        except Exception as error:  # RuntimeError, ValueError, OSError, … by file format.
            raise UnreadableImage(f"damaged record: {error}") from error


class Names(Sequence[str]):
    """SPLIT/PLACE of every item, made when asked for: millions of names would be gigabytes."""

    def __init__(self, splits: Sequence[str], split_of: np.ndarray, places: np.ndarray):
        self._splits, self._split_of, self._places = splits, split_of, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[place] for place in range(*item.indices(len(self)))]
        return f"{self._splits[self._split_of[item]]}/{self._places[item]}"

    def __iter__(self) -> Iterator[str]:
        return (self[item] for item in range(len(self)))


def load_labels(parts: Sequence[Records], source: Source, *, progress: bool) -> None:
    """Fill in the labels: from beside the data, or by reading everything once.

    Args:
      parts: the splits of a data set.
      source: its folder and fingerprint.
      progress: show a bar on stderr if it takes more than two seconds.
    """
    num, num_bytes = sum(map(len, parts)), _size_of(source.home)
    keep = num_bytes <= KEPT_BYTES
    stored = None if keep else beside.folder_beside(source)
    path = stored / f"labels-{beside.key_of(source.fingerprint())}.npy" if stored else None
    if path is not None and _load(parts, path):
        return
    per_read = max(1, min(_RECORDS_PER_READ, _BYTES_PER_READ * num // max(num_bytes, 1)))
    with tqdm(
        total=num,
        desc="labels",
        unit=" records",
        delay=_BAR_DELAY_SECONDS,
        leave=False,
        file=sys.stderr,
        disable=not progress,
    ) as bar:
        for part in parts:
            part.load(per_read=per_read, keep_images=keep, on_done=bar.update)
    if path is not None:
        _save(parts, path)


def _size_of(folder: Path | str | None) -> int:
    return sum(path.stat().st_size for path in Path(folder or ".").iterdir() if path.is_file())


def _load(parts: Sequence[Records], path: Path) -> bool:
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    if labels.dtype != np.int32 or labels.shape != (sum(map(len, parts)),):
        return False
    ends = np.cumsum([len(part) for part in parts])
    for part, of_part in zip(parts, np.split(labels, ends[:-1]), strict=True):
        part.labels = of_part
    return True


def _save(parts: Sequence[Records], path: Path) -> None:
    with (
        contextlib.suppress(OSError),  # A full disk: they will be read again.
        beside.draft_beside(path) as draft,
        draft.open("wb") as file,
    ):
        np.save(file, np.concatenate([part.labels for part in parts]))
