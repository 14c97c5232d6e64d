"""Encoded images on their way into a prepared data set: appended to one file, noted in a journal.

A line of the journal is written only after the bytes that it tells of are on the disk, so that
whatever ends the work - Ctrl-C, a full disk, a power cut - what the journal says is true, and the
next attempt goes on from there.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What became of one item.

    Attributes:
      item: index in the source.
      offset: of its bytes; -1 where the source's own are taken, or there are none.
      length: in bytes.
      is_grey: whether it has one channel.
      reason: why it is skipped; '' where it is not.
    """

    item: int
    offset: int
    length: int
    is_grey: bool
    reason: str


@dataclass(frozen=True)
class Done:
    """One item's outcome before it is kept; `data` None where the source's bytes are taken."""

    item: int
    data: bytes | None
    is_grey: bool
    reason: str = ""


class Staging:
    """A folder of finished items. A context manager; OSError from `add` leaves it valid."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._images = (folder / "images.bin").open("ab+")
        self._journal = folder / "journal.jsonl"
        self.entries = {entry.item: entry for entry in self._read_journal()}

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()

    def add(self, batch: Iterable[Done]) -> None:
        """Keep some items: their bytes first, then the lines of the journal."""
        offset = self._images.seek(0, os.SEEK_END)
        entries = []
        for done in batch:
            length = len(done.data or b"")
            place = offset if done.data is not None else -1
            entries.append(Entry(done.item, place, length, done.is_grey, done.reason))
            self._images.write(done.data or b"")
            offset += length
        self._images.flush()
        os.fsync(self._images.fileno())
        with self._journal.open("a") as journal:
            journal.write("".join(json.dumps(entry) + "\n" for entry in entries))
        self.entries |= {entry.item: entry for entry in entries}

    def bytes_of(self, entry: Entry) -> bytes:
        """Return the bytes of an item that has its own."""
        return os.pread(self._images.fileno(), entry.length, entry.offset)

    def _read_journal(self) -> list[Entry]:
        if not self._journal.exists():
            return []
        size = self._images.seek(0, os.SEEK_END)
        text = self._journal.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # A line cut short: what follows must not be joined to it.
            self._journal.write_text(whole)
        entries = [Entry(*json.loads(line)) for line in whole.splitlines()]
        return [entry for entry in entries if entry.offset + entry.length <= size]
