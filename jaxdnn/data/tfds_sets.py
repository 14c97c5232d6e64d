"""Data sets prepared by tensorflow_datasets, read without TensorFlow.

Every label is read at once, images when they are asked for.
"""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from jaxdnn.data.cache import cache_dir, concurrent_write, key_of
from jaxdnn.data.decode import ReadFailed, UnreadableImage
from jaxdnn.data.files import (
    AGAIN,
    first_line,
    folder_fingerprint,
    is_passing,
    patiently,
)
from jaxdnn.data.layout import split_of
from jaxdnn.data.reader import OnDone, image_bar
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError
from jaxdnn.names import printable, shown_apart

if TYPE_CHECKING:
    import tensorflow_datasets

_INFO, _FEATURES = "dataset_info.json", "features.json"
_KINDS = frozenset(
    f"tensorflow_datasets.core.features.{module}.{name}"
    for module, name in (
        ("bounding_boxes", "BBoxFeature"),
        ("class_label_feature", "ClassLabel"),
        ("features_dict", "FeaturesDict"),
        ("image_feature", "Image"),
        ("labeled_image", "LabeledImage"),
        ("scalar", "Scalar"),
        ("sequence_feature", "Sequence"),
        ("tensor_feature", "Tensor"),
        ("feature", "Tensor"),
        ("text_feature", "Text"),
    )
)
"""Kinds of features that a data set may have. TFDS imports whatever else a file names."""

# Under which the files name a kind, and keep further JSON as text.
_KIND_KEYS, _TEXT_KEYS = ("pythonClassName", "python_class_name", "type"), ("json", "content")

_LABEL_KEYS = {"oxford_iiit_pet": "species"}
"""Which class label counts where a data set has several: cat or dog, not the breed."""

KEPT_BYTES = 64 * 2**20
"""A data set whose files are smaller is kept in memory, encoded: read from there several times as
fast."""

_RECORDS_PER_READ = 1024
_BYTES_PER_READ = 16 * 2**20


def tfds(
    name: str,
    data_dir: str | None = None,
    *,
    progress: bool = False,
    kept_bytes: int = KEPT_BYTES,
) -> Source:
    """Open a data set that `tensorflow_datasets` has prepared as array_record or Parquet.

    Args:
      name: NAME[/CONFIG][:VERSION]; the newest version that is there when none is named.
      data_dir: the folder of prepared data sets; None for $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      progress: show a bar on stderr if it takes more than two seconds.
      kept_bytes: most bytes of files that are kept in memory.

    Raises:
      InputError: not prepared there, in a format that needs TensorFlow, or without an image and a
        class label.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = _find(name, root)
    return _open_folder(folder, name, _full_name(folder, root), progress, kept_bytes)


def prepared_below(path: Path) -> Path | None:
    """Return the folder that holds a prepared data set: this one, or its newest version below."""
    if (path / _INFO).is_file():
        return path
    versions = sorted((info.parent for info in path.glob(f"*/{_INFO}")), key=_by_version)
    return versions[-1] if versions else None


def tfds_folder(folder: Path, *, progress: bool = False) -> Source:
    """Open the prepared data set in a folder; see `tfds`. Raises InputError."""
    folder = folder.absolute()
    name = f"{folder.parent.name}:{folder.name}"
    return _open_folder(folder, name, name, progress, KEPT_BYTES)


def _open_folder(
    folder: Path, name: str, full_name: str, progress: bool, kept_bytes: int
) -> Source:
    _check_format(name, folder)
    _check_kinds(name, folder)
    try:
        # TFDS prints that TensorFlow is missing wherever a damaged description leads it there.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = quiet_tfds().builder_from_directory(folder)
            image_key, label_key = _feature_keys(name, builder.info.features)
            return _open(full_name, builder, image_key, label_key, folder, progress, kept_bytes)
    except InputError:
        raise
    except Exception as error:  # Of a type that depends on what is damaged or missing.
        if is_passing(error):
            raise InputError(
                f"data set {name!r} in {str(folder)!r} cannot be read: {first_line(error)}; {AGAIN}"
            ) from error
        raise InputError(
            f"data set {name!r} in {str(folder)!r} is damaged: {first_line(error)}; "
            "expected a complete data set; prepare it again"
        ) from error


def quiet_tfds() -> Any:
    """Return the module, set to warn of nothing but errors."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets  # Half a second: only when asked for.

    return tensorflow_datasets


def _find(name: str, root: Path) -> Path:
    base, _, version = name.partition(":")
    there = sorted(_prepared(root), key=_by_version)
    matches = [
        folder
        for folder in there
        if folder.parent.relative_to(root).as_posix() == base and version in ("", folder.name)
    ]
    if matches:
        return matches[-1]
    names = [_full_name(folder, root) for folder in there]
    raise InputError(
        f"data set {name!r} is not prepared in {str(root)!r}; there: "
        f"{', '.join(names[:20]) or 'nothing'}; prepare it with tensorflow_datasets "
        "(file_format='array_record') or change --data-dir"
    )


def _prepared(root: Path) -> Iterator[Path]:
    for pattern in (f"*/*/{_INFO}", f"*/*/*/{_INFO}"):
        yield from (info.parent for info in root.glob(pattern))


def _by_version(folder: Path) -> tuple[str, list[int], str]:
    numbers = [int(part) for part in folder.name.split(".") if part.isdecimal()]
    return str(folder.parent), numbers, folder.name


def _full_name(folder: Path, root: Path) -> str:
    return f"{folder.parent.relative_to(root).as_posix()}:{folder.name}"


def _check_format(name: str, folder: Path) -> None:
    file_format = _read_json(name, folder / _INFO).get("fileFormat", "tfrecord")
    if file_format not in ("array_record", "parquet"):
        raise InputError(
            f"data set {name!r} is prepared as {file_format!r}, which only TensorFlow reads; "
            "expected array_record or parquet; prepare it again with file_format='array_record'"
        )


def _check_kinds(name: str, folder: Path) -> None:
    """Check every kind of feature that the files name, before TFDS would import it."""
    described = [_read_json(name, folder / _INFO).get("features")]
    if (folder / _FEATURES).exists():
        described.append(_read_json(name, folder / _FEATURES))
    unknown = sorted({repr(kind) for kind in _named_kinds(described)} - set(map(repr, _KINDS)))
    if unknown:
        raise InputError(
            f"data set {name!r} in {str(folder)!r} has features of kind {unknown[0]}, which is "
            "code that is not known here; expected images, labels, text and numbers of "
            "tensorflow_datasets; prepare it again with these alone, if you trust it"
        )


def _named_kinds(content: Any) -> Iterator[Any]:
    """Yield what stands for a kind anywhere in JSON, and in JSON that is kept in it as text."""
    if isinstance(content, list):
        for each in content:
            yield from _named_kinds(each)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in _KIND_KEYS and not isinstance(value, dict):
                yield value
            elif key in _TEXT_KEYS and isinstance(value, str):
                yield from _named_kinds(_parsed(value))
            else:
                yield from _named_kinds(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # Then TFDS cannot read it either.
        return None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    """Read an object. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} at its top, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"data set {name!r} has a damaged {path.name} in {str(path.parent)!r}: {error}; "
            "prepare it again"
        ) from error
    return content


def _feature_keys(name: str, features: Any) -> tuple[str, str]:
    from tensorflow_datasets import features as kinds

    images = [key for key, kind in features.items() if isinstance(kind, kinds.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
    if not images or not labels:
        raise InputError(
            f"data set {name!r} has the features {', '.join(features)}; expected an Image and a "
            "ClassLabel; choose an image classification data set"
        )
    usual = _LABEL_KEYS.get(name.partition(":")[0].partition("/")[0], "label")
    image_key = "image" if "image" in images else images[0]
    return image_key, usual if usual in labels else labels[0]


def _open(
    name: str,
    builder: "tensorflow_datasets.core.DatasetBuilder",
    image_key: str,
    label_key: str,
    folder: Path,
    progress: bool,
    kept_bytes: int,
) -> Source:
    from tensorflow_datasets import decode

    known = list(builder.info.splits)
    splits = [split for split in known if split_of(split)] or known
    decoders = {image_key: decode.SkipDecoding()}
    parts = [
        _Records(builder.as_data_source(split, decoders=decoders), image_key, label_key)
        for split in splits
    ]
    for split, part in zip(splits, parts, strict=True):
        expected = builder.info.splits[split].num_examples
        if len(part) != expected:  # TFDS's writer of Parquet, as of 4.9.10, leaves most out.
            raise InputError(
                f"data set {name!r} holds {len(part):,} of the {expected:,} records of its split "
                f"{split}; expected all; prepare it again with file_format='array_record'"
            )
    _load_labels(parts, folder, progress=progress, kept_bytes=kept_bytes)
    class_names = shown_apart(builder.info.features[label_key].names)
    for split, part in zip(splits, parts, strict=True):
        _check_labels(name, split, part.labels, len(class_names))
    records = [np.flatnonzero(part.labels >= 0) for part in parts]  # -1: a test without answers.
    part_of = np.repeat(np.arange(len(parts), dtype=np.int8), [len(found) for found in records])
    record = np.concatenate(records).astype(np.int64)

    def read_many(items: Sequence[int]) -> list[bytes]:
        wanted = np.asarray(items)
        found: dict[int, bytes] = {}
        for number in np.unique(part_of[wanted]):
            of_part = wanted[part_of[wanted] == number]
            images = parts[number].read_many(record[of_part].tolist())
            found |= dict(zip(of_part.tolist(), images, strict=True))
        return [found[item] for item in wanted.tolist()]

    features = builder.info.features
    return Source(
        name=printable(f"tfds:{name}"),
        class_names=tuple(class_names),
        item_names=_ItemNames([*map(printable, splits)], part_of, record),
        labels=np.concatenate([part.labels[part.labels >= 0] for part in parts]),
        splits=np.array([split_of(split) for split in splits], dtype="U10")[part_of],
        read=lambda item: read_many([item])[0],
        item_shape=tuple(features[image_key].shape),
        home=folder,
        fingerprint=lambda: folder_fingerprint(folder),
        read_many=read_many,
    )


def _check_labels(name: str, split: str, labels: np.ndarray, num_classes: int) -> None:
    wrong = np.flatnonzero((labels < -1) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"data set {name!r} has the label {labels[wrong[0]]} in record {wrong[0]} of its split "
            f"{split}, and {len(wrong) - 1:,} more like it; expected 0 to {num_classes - 1}, as it "
            f"has {num_classes} class names, or -1 for none; prepare it again"
        )


class _Records:
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

    def load(self, *, per_read: int, keep_images: bool, on_done: OnDone) -> None:
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
            found = patiently(lambda: self._records.__getitems__([int(each) for each in places]))
            return [record[self._image_key] for record in found]
        except Exception as error:  # RuntimeError, ValueError, OSError, … by file format.
            if is_passing(error):
                raise ReadFailed(f"cannot be read: {error}") from error
            raise UnreadableImage(f"damaged record: {error}") from error


class _ItemNames(Sequence[str]):
    """SPLIT/PLACE of every item, made when asked for: millions of names would be gigabytes."""

    def __init__(self, splits: Sequence[str], split_of: np.ndarray, places: np.ndarray):
        self._splits, self._split_of, self._places = splits, split_of, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[place] for place in range(*item.indices(len(self)))]
        return f"{self._splits[self._split_of[item]]}/{self._places[item]}"


def _load_labels(
    parts: Sequence[_Records], folder: Path, *, progress: bool, kept_bytes: int
) -> None:
    """Fill in the labels: from the cache folder, or by reading everything once."""
    files = [path for path in folder.iterdir() if path.is_file()]
    num, num_bytes = sum(map(len, parts)), sum(path.stat().st_size for path in files)
    keep = num_bytes <= kept_bytes
    stored = None if keep else cache_dir(folder)
    path = stored / f"labels-{key_of(folder_fingerprint(folder))}.npz" if stored else None
    if path is not None and _load_kept(parts, path):
        return
    per_read = max(1, min(_RECORDS_PER_READ, _BYTES_PER_READ * num // max(num_bytes, 1)))
    with image_bar(num, disable=not progress, desc="labels", unit="records") as bar:
        for part in parts:
            part.load(per_read=per_read, keep_images=keep, on_done=bar.update)
    if path is not None:
        _keep(parts, path)


def _load_kept(parts: Sequence[_Records], path: Path) -> bool:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            labels = arrays["labels"]
    except Exception:  # Missing or damaged, in any of the ways of zip and npy.
        return False
    if labels.dtype != np.int32 or labels.shape != (sum(map(len, parts)),):
        return False
    ends = np.cumsum([len(part) for part in parts])
    for part, of_part in zip(parts, np.split(labels, ends[:-1]), strict=True):
        part.labels = of_part
    return True


def _keep(parts: Sequence[_Records], path: Path) -> None:
    with (
        contextlib.suppress(OSError),  # A full disk: they will be read again.
        concurrent_write(path) as draft,
        draft.open("wb") as file,
    ):
        # In a zip, which has a checksum.
        np.savez(file, labels=np.concatenate([part.labels for part in parts]))
