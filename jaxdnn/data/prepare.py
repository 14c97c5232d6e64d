"""From a folder or a zip to a TFDS data set in array_record files, without TensorFlow."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdnn.data.beside import DECODING, key_of
from jaxdnn.data.decode import Stored, UnreadableImage, decode_and_look
from jaxdnn.data.parallel import map_in_order
from jaxdnn.data.plain_png import write_png
from jaxdnn.data.prepared import quiet_tfds
from jaxdnn.data.source import Source
from jaxdnn.data.staging import Done, Entry, Staging
from jaxdnn.errors import InputError
from jaxdnn.run_folder import write_json

VERSION = "1.0.0"
_PER_ENTRY = 256  # Items whose bytes go to the disk together.


def prepare(
    source: Source,
    out: Path,
    *,
    name: str,
    image_size: int | None,
    channels: int | None,
    max_workers: int | None = None,
    on_done: Callable[[int], None],
    on_written: Callable[[int], None] = lambda num: None,
) -> dict[str, Any]:
    """Write the readable images of a source as the data set OUT/NAME/VERSION.

    Without a size or channels the images are kept as they are stored. With either they are decoded
    as training would, and stored as PNG. Interrupted, it goes on where it was.

    Args:
      source: of encoded images, or of arrays.
      out: the folder for data sets.
      name: of the data set: lower-case letters, digits and underscores, a letter first.
      image_size: side of the squares to store, in pixels.
      channels: 1 or 3.
      max_workers: threads; None for one per processor.
      on_done: called with the number of items decoded since the last call.
      on_written: the same of those that are in the data set's own files, or nearly so.

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
    folder = out / name / VERSION
    if folder.exists():
        raise InputError(f"{folder} is there already; remove it, or choose another --out or --name")
    key = key_of(DECODING, source.fingerprint(), image_size, channels)
    staged = out / f".{name}-{key}"
    try:
        with Staging(staged) as staging:
            _stage(source, staging, image_size, channels, max_workers, on_done)
            entries = [staging.entries[item] for item in range(len(source.labels))]
            kept = [entry for entry in entries if not entry.reason]
            if not kept:
                raise InputError(f"no readable image in {source.name}; expected some; add images")
            _build(source, staging, kept, out, name, image_size, channels, on_written)
        about = _report(source, entries, folder)
        write_json(folder / "skipped.json", about)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror or error}); what is there stays "
            "valid; make room or choose another folder, and call again to go on"
        ) from error
    for remains in out.glob(f".{name}-*"):  # Also of attempts before the images changed.
        shutil.rmtree(remains)
    return about


def _stage(
    source: Source,
    staging: Staging,
    image_size: int | None,
    channels: int | None,
    max_workers: int | None,
    on_done: Callable[[int], None],
) -> None:
    """Decode what has not been decoded yet, in threads, and keep the outcome."""

    def finish(items: list[int]) -> list[Done]:
        read = source.reading(items)
        return [_finished(read, item, image_size, channels) for item in items]

    left = [item for item in range(len(source.labels)) if item not in staging.entries]
    on_done(len(staging.entries))
    groups = [left[start : start + _PER_ENTRY] for start in range(0, len(left), _PER_ENTRY)]
    for batch in map_in_order(finish, groups, max_workers=max_workers):
        staging.add(batch)
        on_done(len(batch))


def _finished(
    read: Callable[[int], Stored], item: int, image_size: int | None, channels: int | None
) -> Done:
    try:
        stored = read(item)
        pixels, header = decode_and_look(stored, image_size=image_size, channels=channels)
        if isinstance(stored, bytes) and image_size is None and channels is None:
            return Done(item, None, header.is_grey)
    except UnreadableImage as error:
        return Done(item, None, False, str(error))
    return Done(item, write_png(pixels), pixels.shape[-1] == 1)


def _build(
    source: Source,
    staging: Staging,
    kept: list[Entry],
    out: Path,
    name: str,
    image_size: int | None,
    channels: int | None,
    on_written: Callable[[int], None],
) -> None:
    """Let TFDS write the records; it renames the folder once they are complete."""
    tfds = quiet_tfds()
    depth = channels or (1 if all(entry.is_grey for entry in kept) else 3)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(image_size, image_size, depth)),
            "label": tfds.features.ClassLabel(names=[*source.class_names]),
            "name": tfds.features.Text(),
        }
    )
    splits = [source.splits[entry.item] or "train" for entry in kept]

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for entry, of_entry in zip(kept, splits, strict=True):
            if of_entry == split:
                own = entry.offset >= 0
                on_written(1)
                yield (
                    entry.item,
                    {
                        "image": staging.bytes_of(entry) if own else source.read(entry.item),
                        "label": int(source.labels[entry.item]),
                        "name": source.item_names[entry.item],
                    },
                )

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """What `jaxdnn.data prepare` has made."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: examples(split) for split in sorted(set(splits))}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    Prepared.name = name
    for remains in (out / name).glob("incomplete.*"):
        shutil.rmtree(remains)  # Of a build that was ended.
    builder = Prepared(data_dir=out, file_format="array_record")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=staging.folder)
    except RuntimeError as error:  # How array_record tells of a disk that is full.
        raise OSError(*error.args) from error


def _report(source: Source, entries: list[Entry], folder: Path) -> dict[str, Any]:
    splits = [source.splits[entry.item] or "train" for entry in entries if not entry.reason]
    return {
        "folder": str(folder),
        "images": {split: splits.count(split) for split in sorted(set(splits))},
        "skipped": {
            **{name: "outside every class folder" for name in source.outside},
            **dict(source.set_aside),
            **{source.item_names[entry.item]: entry.reason for entry in entries if entry.reason},
        },
    }
