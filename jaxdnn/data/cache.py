"""What is known about images, kept with them or in the user's cache folder.

PATH.u8 holds what was made of each image, as one row of bytes: its pixels, so that only the first
epoch has to decode, or what a network makes of them; PATH.sums the checksum of each row, 0 where it
is not there. A row whose bytes have another checksum counts as not there, and is made again. Rows
are read and written with pread and pwrite: mapped pages would count as resident memory, and a full
disk would end the process with a signal.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_FREE_SHARE = 0.5  # Of the free disk, what a cache may take.
_FLUSH_SECONDS = 30.0
_KEY_LENGTH = 16


def cache_dir(home: Path | str | None) -> Path | None:
    """Return a folder for what is known about the images of a source; None where there is none.

    It is `.jaxdnn` in a folder of images, `.NAME.jaxdnn` next to a zip; where that cannot be
    written, or is not on this machine, a folder in $XDG_CACHE_HOME or ~/.cache.

    Args:
      home: the folder or file that holds the images, or its address; None where none does.
    """
    if home is None:
        return None
    own = []
    if isinstance(home, Path):
        home = home.absolute()
        own = [home / ".jaxdnn" if home.is_dir() else home.with_name(f".{home.name}.jaxdnn")]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return next(filter(_can_write, (*own, caches / "jaxdnn" / name)), None)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def concurrent_write(path: Path) -> Iterator[Path]:
    """Give a path to write to, then move it: several processes may find out the same at once.

    Raises:
      OSError: as on a full disk; nothing is left of the draft.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def key_of(*parts: object) -> str:
    """Return a short hash of all that something depends on: arrays, or values with a `repr`."""
    total = hashlib.sha256()
    for part in parts:
        text = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        total.update(hashlib.sha256(text).digest())
    return total.hexdigest()[:_KEY_LENGTH]


class RowCache:
    """Rows of one size by the index of their image; thread-safe.

    Only the first `capacity` images have a place, as many as fit into the bytes allowed.
    """

    def __init__(self, path: Path, *, num_images: int, row_bytes: int, max_bytes: float):
        """Open or make the files.

        Args:
          path: without ending; its name says what the rows hold, or rows of others are read.
          num_images: places in all, whether or not they fit.
          row_bytes: size of one row.
          max_bytes: most that the rows may take on disk; half of what is free at most.

        Raises:
          OSError: the files cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sums_path = path.with_suffix(".sums")
        self._file = os.open(path.with_suffix(".u8"), os.O_RDWR | os.O_CREAT, 0o644)
        room = os.fstat(self._file).st_blocks * 512 + _FREE_SHARE * _free_bytes(path.parent)
        self.capacity = min(num_images, int(min(max_bytes, room) // row_bytes))
        self._row_bytes = row_bytes
        self._sums = np.zeros(num_images, np.uint32)
        self._sums[: self.capacity] = self._stored_sums()[: self.capacity]
        self._is_checked = np.zeros(num_images, bool)
        self._lock = threading.Lock()
        self._writable, self._unsaved, self._flushed_at = True, False, time.monotonic()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def holds(self, index: int) -> bool:
        """Whether a row need not be made, unless it turns out to be damaged."""
        return bool(self._sums[index])

    def read(self, index: int, row: np.ndarray) -> bool:
        """Copy an image's row into `row`, contiguous; False where it is not there, or damaged.

        The checksum is compared when a row is read for the first time.
        """
        if not self._sums[index]:
            return False
        if os.preadv(self._file, [row.data], index * self._row_bytes) != self._row_bytes:
            return False
        if not self._is_checked[index]:
            if _checksum(row.data) != self._sums[index]:
                self._sums[index] = 0
                return False
            self._is_checked[index] = True
        return True

    def write(self, index: int, row: np.ndarray) -> None:
        """Keep an image's row if it has a place; a full disk ends the writing and nothing else.

        Now and then all that has been written is flushed: a cache may take hours to fill.
        """
        if index >= self.capacity or self._sums[index] or not self._writable:
            return
        try:
            data = np.ascontiguousarray(row).data
            written = os.pwrite(self._file, data, index * self._row_bytes)
        except OSError:
            self._writable = False
            return
        if written == self._row_bytes:
            self._sums[index] = _checksum(data)
            self._unsaved = True
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Keep what has been written: a row counts only once its bytes are on the disk."""
        with self._lock:
            if not self._unsaved:
                return
            self._unsaved, self._flushed_at = False, time.monotonic()
            sums = self._sums.copy()
            try:
                os.fsync(self._file)
                sums = np.where(sums, sums, self._stored_sums())
                with concurrent_write(self._sums_path) as draft:
                    draft.write_bytes(sums.tobytes())
            except OSError:
                self._writable = False

    def _stored_sums(self) -> np.ndarray:
        try:
            sums = np.fromfile(self._sums_path, np.uint32)
        except OSError:
            return np.zeros_like(self._sums)
        return sums if len(sums) == len(self._sums) else np.zeros_like(self._sums)


def _checksum(data: memoryview) -> int:
    return zlib.crc32(data) or 1


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def open_caches(
    folder: Path | None,
    kind: str,
    keys: Sequence[str],
    *,
    num_images: int,
    row_bytes: int,
    max_bytes: float,
) -> list[RowCache | None]:
    """Open the caches of some keys in a folder, making room; None where there can be none.

    Args:
      folder: None for no cache.
      kind: what the rows are, in one word, with which the files' names begin.
      keys: of `key_of`.
      num_images: rows of each cache.
      row_bytes: size of one row.
      max_bytes: most that all caches of this kind in the folder may take; those used longest ago
        make room.
    """
    if folder is None or max_bytes <= 0:
        return [None] * len(keys)
    paths = [folder / f"{kind}-{key}" for key in keys]
    caches: list[RowCache | None] = []
    for path in paths:
        try:
            _remove_others(kind, paths, max_bytes - len(keys) * num_images * row_bytes)
            room = max_bytes - sum(cache.capacity for cache in caches if cache) * row_bytes
            caches.append(
                RowCache(path, num_images=num_images, row_bytes=row_bytes, max_bytes=room)
            )
        except OSError:  # Slower without, but not wrong.
            caches.append(None)
    return caches


def _remove_others(kind: str, paths: Sequence[Path], max_bytes: float) -> None:
    """Remove the longest unused caches of a kind until they and those to come fit."""
    stems = {path.stem for path in paths}
    others = [
        other
        for other in paths[0].parent.glob(f"{kind}-{'[0-9a-f]' * _KEY_LENGTH}.u8")
        if other.stem not in stems
    ]
    others.sort(key=lambda other: other.stat().st_mtime)
    sizes = {other: other.stat().st_blocks * 512 for other in others}
    while others and sum(sizes[other] for other in others) > max_bytes:
        oldest = others.pop(0)
        for file in (oldest.with_suffix(".sums"), oldest):
            file.unlink(missing_ok=True)
