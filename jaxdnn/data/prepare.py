"""From a folder or a zip to a TFDS data set in array_record files, without TensorFlow.

Encoded images on their way into the data set are appended to one file and noted in a journal. A
line of the journal is written only after the bytes that it names are on the disk, so that
whatever ends the work - Ctrl-C, a full disk, a power cut - what the journal says is true, and the
next attempt goes on from there.

Whatever is unfinished lies in one folder, which holds a file that only this program writes. Nothing
outside such a folder is ever removed, and of a folder only what was put there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxdnn.data.cache import key_of
from jaxdnn.data.decode import DECODING, Stored, UnreadableImage, write_png
from jaxdnn.data.reader import OnDone, Reader, ReadImage
from jaxdnn.data.source import Source
from jaxdnn.data.tfds_sets import quiet_tfds
from jaxdnn.errors import InputError
from jaxdnn.memory import check_memory
from jaxdnn.run_folder import lock_file, write_json

_VERSION = "1.0.0"
_PER_GROUP = 256  # Items whose bytes go to the disk together.
_IMAGES, _JOURNAL, _BUILD = "images.bin", "journal.jsonl", "build"
_MARK, _MARK_TEXT = "unfinished", "python -m jaxdnn.data prepare works here\n"


def prepare(
    source: Source,
    out: Path,
    *,
    name: str,
    image_size: int | None,
    channels: int | None,
    on_done: OnDone,
    on_written: OnDone = lambda num: None,
) -> dict[str, Any]:
    """Write the readable images of a source as the data set OUT/NAME/VERSION.

    Without a size or channels the images are kept as they are stored. With either they are decoded
    as training would, and stored as PNG. Interrupted, it goes on where it was.

    Args:
      source: encoded images, or arrays.
      out: the folder for data sets.
      name: lower-case letters, digits and underscores, a letter first.
      image_size: side of the squares to store, in pixels.
      channels: 1 or 3.
      on_done: called with the number of items decoded since the last call.
      on_written: called with the number of items written to the data set's own files, or nearly
        so, since the last call.

    Returns:
      The report, as written to OUT/NAME/VERSION/skipped.json: folder, images by split, and the
      reason of each that was skipped by name.

    Raises:
      InputError: it is there already, the name is none, nothing is readable, or the disk is full.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"--name {name!r}; expected lower-case letters, digits and underscores, a letter first"
        )
    if image_size is not None:
        _check_size(image_size, channels or 3)
    folder = out / name / _VERSION
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already; remove it, or choose another --out or --name")
    key = key_of(DECODING, source.fingerprint(), image_size, channels)
    reader = Reader(source, image_size, channels)
    try:
        with Staging(out / f".{name}-{key}") as staging:
            _stage(reader, staging, on_done)
            entries = [staging.entries[item] for item in range(len(source.labels))]
            kept = [entry for entry in entries if not entry.reason]
            if not kept:
                first = next((entry.reason for entry in entries), "there is none at all")
                raise InputError(
                    f"no readable image in {source.name} ({first}); expected some; mend them, or "
                    "add images"
                )
            built = _build(reader, staging, kept, name, on_written)
            about = _report(source, entries, folder)
            write_json(built / "skipped.json", about)
            folder.parent.mkdir(exist_ok=True)
            built.rename(folder)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror or error}); what is there stays "
            "valid; make room or choose another folder, and call again to go on"
        ) from error
    for remains in out.glob(f".{name}-*"):  # Also of attempts before the images changed.
        with contextlib.suppress(OSError):
            remove_staging(remains)
    return about


def _check_size(image_size: int, channels: int) -> None:
    if image_size < 1:
        raise InputError(f"--image-size {image_size}; expected 1 pixel or more; give another")
    check_memory(
        f"{_PER_GROUP} images of {image_size} x {image_size} x {channels}, prepared together,",
        (_PER_GROUP, image_size, image_size, channels),
        "choose a smaller --image-size, or --channels 1",
        itemsize=1,
    )


def _stage(reader: Reader, staging: Staging, on_done: OnDone) -> None:
    """Decode what has not been decoded yet, and keep the outcome."""
    keeps_bytes = reader.image_size is None and reader.channels is None

    def finish(image: ReadImage) -> tuple[Entry, bytes]:
        if image.has_failed:
            raise InputError(
                f"{reader.source.item_names[image.item]} cannot be read for now ({image.reason}); "
                "what is there stays valid; call again to go on"
            )
        if image.pixels is None or image.header is None:
            return Entry(image.item, reason=image.reason), b""
        if keeps_bytes and image.is_encoded:
            return Entry(image.item, is_grey=image.header.is_grey), b""
        return Entry(image.item, is_grey=image.pixels.shape[-1] == 1), write_png(image.pixels)

    left = [item for item in range(len(reader.source.labels)) if item not in staging.entries]
    on_done(len(staging.entries))
    groups = reader.read_all(
        left, lambda images: [finish(image) for image in images], per_group=_PER_GROUP
    )
    for group in groups:
        staging.add(group)
        on_done(len(group))


def _build(
    reader: Reader, staging: Staging, kept: list[Entry], name: str, on_written: OnDone
) -> Path:
    """Let TFDS write the records; return the folder that holds them."""
    tfds, source = quiet_tfds(), reader.source
    depth = reader.channels or (1 if all(entry.is_grey for entry in kept) else 3)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(reader.image_size, reader.image_size, depth)),
            "label": tfds.features.ClassLabel(names=[*source.class_names]),
            "name": tfds.features.Text(),
        }
    )
    splits = [source.splits[entry.item] or "train" for entry in kept]

    def stored(item: int) -> Stored:
        try:
            return source.read(item)
        except UnreadableImage as error:
            raise InputError(
                f"{source.item_names[item]} cannot be read any more ({error}); expected the images "
                "to stay while they are prepared; call again to go on"
            ) from error

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for entry, of_entry in zip(kept, splits, strict=True):
            if of_entry == split:
                item, own = entry.item, entry.offset >= 0
                on_written(1)
                example = {
                    "image": staging.bytes_of(entry) if own else stored(item),
                    "label": int(source.labels[item]),
                    "name": source.item_names[item],
                }
                yield item, example

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """What `jaxdnn.data prepare` has made."""

        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: examples(split) for split in sorted(set(splits))}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    Prepared.name = name
    builder = Prepared(data_dir=staging.empty_build(), file_format="array_record")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except RuntimeError as error:  # How array_record reports a disk that is full.
        raise OSError(*error.args) from error
    return Path(builder.data_dir)


def _report(source: Source, entries: list[Entry], folder: Path) -> dict[str, Any]:
    splits = [source.splits[entry.item] or "train" for entry in entries if not entry.reason]
    return {
        "folder": str(folder),
        "images": {split: splits.count(split) for split in sorted(set(splits))},
        "skipped": {
            **source.left_out(),
            **{source.item_names[entry.item]: entry.reason for entry in entries if entry.reason},
        },
    }


class Entry(NamedTuple):
    """What became of one item.

    Attributes:
      item: index in the source.
      offset: position of its first byte in the staging file; -1 where the source's own bytes are
        taken, or there are none.
      length: number of its bytes.
      is_grey: whether it has one channel.
      reason: why it is skipped; '' where it is not.
    """

    item: int
    offset: int = -1
    length: int = 0
    is_grey: bool = False
    reason: str = ""


class Staging:
    """A folder of finished items. A context manager; OSError from `add` leaves it valid."""

    def __init__(self, folder: Path):
        """Make the folder, or go on in it.

        Raises:
          InputError: the folder is not one of these, or another process is at work in it.
        """
        if not _is_free(folder) and not _has_mark(folder):
            raise InputError(
                f"{folder} is there, and not made by prepare; expected the place for unfinished "
                "work to be free; move it, or choose another --out or --name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._mark = _held(folder)
        self._images = (folder / _IMAGES).open("ab+")
        self._journal = folder / _JOURNAL
        self.entries = {entry.item: entry for entry in self._read_journal()}

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self._mark.close()

    def empty_build(self) -> Path:
        """Return a folder to build in, without what a build that was ended has left there."""
        build = self.folder / _BUILD
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        return build

    def add(self, batch: Iterable[tuple[Entry, bytes]]) -> None:
        """Keep some items and their bytes, if any: bytes first, then the lines of the journal."""
        offset, entries = self._images.seek(0, os.SEEK_END), []
        for entry, data in batch:
            entries.append(entry._replace(offset=offset, length=len(data)) if data else entry)
            offset += self._images.write(data)
        self._images.flush()
        os.fsync(self._images.fileno())
        with self._journal.open("a") as journal:
            journal.write("".join(map(_line_of, entries)))
        self.entries |= {entry.item: entry for entry in entries}

    def bytes_of(self, entry: Entry) -> bytes:
        """Return the bytes of an item that has its own."""
        return os.pread(self._images.fileno(), entry.length, entry.offset)

    def _read_journal(self) -> list[Entry]:
        if not self._journal.exists():
            return []
        size = self._images.seek(0, os.SEEK_END)
        stored = self._journal.read_bytes()
        complete = stored[: stored.rfind(b"\n") + 1]
        if complete != stored:  # A line cut short: what follows must not be joined to it.
            self._journal.write_bytes(complete)
        entries = [entry for line in complete.splitlines() if (entry := _entry_of(line))]
        return [entry for entry in entries if entry.offset + entry.length <= size]


def _line_of(entry: Entry) -> str:
    """Return a line of the journal: a checksum, and the entry."""
    text = json.dumps(entry)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _entry_of(line: bytes) -> Entry | None:
    """Return the entry of a line; None for a damaged one: its item is then done again."""
    checksum, _, text = line.partition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    return Entry(*json.loads(text))


def _has_mark(folder: Path) -> bool:
    try:
        return not folder.is_symlink() and (folder / _MARK).read_text() == _MARK_TEXT
    except (OSError, ValueError):
        return False


def _is_free(folder: Path) -> bool:
    """Whether nothing is there but an empty folder, or one whose mark was not yet written."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {_MARK}


def _held(folder: Path) -> IO[str]:
    """Write the mark and lock it until it is closed. Raises InputError."""
    mark = (folder / _MARK).open("a+")
    try:
        lock_file(mark)
    except OSError:
        mark.close()
        raise InputError(
            f"{folder} is being worked on by another process; wait for it, or stop it"
        ) from None
    mark.truncate(0)
    mark.write(_MARK_TEXT)
    mark.flush()
    return mark


def remove_staging(folder: Path) -> None:
    """Remove what `Staging` put into a folder, and the folder if nothing else is in it.

    A folder that is none of these, or that another process works in, stays as it is.
    """
    if not _has_mark(folder):
        return
    try:
        mark = _held(folder)
    except InputError:
        return
    with mark:
        shutil.rmtree(folder / _BUILD, ignore_errors=True)
        for name in (_IMAGES, _JOURNAL, _MARK):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
