"""Decoded images kept on disk, so that only the first epoch has to decode.

PATH.u8 holds one row of bytes for each image, PATH.filled one byte for each that says whether the
row is there. Rows are read and written with pread and pwrite: mapped pages would count as resident
memory, and a full disk would end the process with a signal.
"""

import os
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdnn.data.beside import draft_beside

_FREE_SHARE = 0.5  # Of the free disk, what a cache may take.


class PixelCache:
    """Rows of one size by the index of their image; thread-safe.

    Only the first `capacity` images have a place, as many as fit into the bytes allowed.
    """

    def __init__(self, path: Path, *, num_images: int, row_bytes: int, max_bytes: float):
        """Open or make the files.

        Args:
          path: without ending; its name tells what the rows hold, or rows of others are read.
          num_images: of the source.
          row_bytes: bytes of a decoded image.
          max_bytes: most that the rows may take on disk; half of what is free at most.

        Raises:
          OSError: the files cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._flags_path = path.with_suffix(".filled")
        self._file = os.open(path.with_suffix(".u8"), os.O_RDWR | os.O_CREAT, 0o644)
        room = os.fstat(self._file).st_blocks * 512 + _FREE_SHARE * _free_bytes(path.parent)
        self.capacity = min(num_images, int(min(max_bytes, room) // row_bytes))
        self._row_bytes = row_bytes
        self._filled = np.zeros(num_images, np.uint8)
        self._filled[: self.capacity] = self._stored_flags(num_images)[: self.capacity]
        self._lock = threading.Lock()
        self._writable, self._unsaved = True, False

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def num_filled(self) -> int:
        """Number of images that need not be decoded."""
        return int(self._filled.sum())

    def holds(self, index: int) -> bool:
        """Whether an image need not be decoded."""
        return bool(self._filled[index])

    def read(self, index: int, row: UInt8[np.ndarray, "height width channel"]) -> bool:
        """Copy an image into `row`, contiguous; False where it is not there."""
        if not self._filled[index]:
            return False
        got = os.preadv(self._file, [row.data], index * self._row_bytes)
        return got == self._row_bytes

    def write(self, index: int, row: UInt8[np.ndarray, "height width channel"]) -> None:
        """Keep an image if it has a place; a full disk ends the writing and nothing else."""
        if index >= self.capacity or self._filled[index] or not self._writable:
            return
        try:
            written = os.pwrite(self._file, row.data, index * self._row_bytes)
        except OSError:
            self._writable = False
            return
        if written == self._row_bytes:
            self._filled[index] = 1
            self._unsaved = True

    def flush(self) -> None:
        """Keep what has been written: a row counts only once its bytes are on the disk."""
        with self._lock:
            if not self._unsaved:
                return
            self._unsaved, flags = False, self._filled.copy()
            try:
                os.fsync(self._file)
                flags |= self._stored_flags(len(flags))
                with draft_beside(self._flags_path) as draft:
                    draft.write_bytes(flags.tobytes())
            except OSError:
                self._writable = False

    def _stored_flags(self, num_images: int) -> np.ndarray:
        try:
            flags = np.fromfile(self._flags_path, np.uint8)
        except OSError:
            return np.zeros(num_images, np.uint8)
        return flags if len(flags) == num_images else np.zeros(num_images, np.uint8)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
