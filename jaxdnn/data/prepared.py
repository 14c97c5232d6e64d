"""Data sets prepared by tensorflow_datasets, read without TensorFlow."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdnn.data.folders import folder_fingerprint
from jaxdnn.data.layout import split_of
from jaxdnn.data.records import Names, Records, load_labels
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets

_INFO = "dataset_info.json"

LABEL_KEYS = {"oxford_iiit_pet": "species"}
"""Which class label counts where a data set has several: cat or dog, not the breed."""


def tfds(name: str, data_dir: str | None = None, *, progress: bool = False) -> Source:
    """Open a data set that `tensorflow_datasets` has prepared as array_record or Parquet.

    Args:
      name: NAME[/CONFIG][:VERSION]; the newest version that is there when none is named.
      data_dir: the folder of prepared data sets; None for $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      progress: show a bar on stderr if it takes more than two seconds.

    Raises:
      InputError: not prepared there, in a format that needs TensorFlow, or without an image and a
        class label.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = _find(name, root)
    return _open_folder(folder, name, _full_name(folder, root), progress)


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
    return _open_folder(folder, name, name, progress)


def _open_folder(folder: Path, name: str, full_name: str, progress: bool) -> Source:
    _check_format(name, folder)
    try:
        builder = quiet_tfds().builder_from_directory(folder)
        image_key, label_key = _feature_keys(name, builder.info.features)
        return _open(full_name, builder, image_key, label_key, folder, progress)
    except InputError:
        raise
    except Exception as error:  # Of a type that depends on what is damaged or missing.
        raise InputError(
            f"data set {name!r} in {str(folder)!r} is damaged: {_first_line(error)}; "
            "expected a complete data set; prepare it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quiet_tfds() -> Any:
    """Return the module, told to warn of nothing but errors."""
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
    try:
        info = json.loads((folder / _INFO).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"data set {name!r} has a damaged {_INFO} in {str(folder)!r}: {error}; prepare it again"
        ) from error
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in ("array_record", "parquet"):
        raise InputError(
            f"data set {name!r} is prepared as {file_format}, which only TensorFlow reads; "
            "expected array_record or parquet; prepare it again with file_format='array_record'"
        )


def _check_complete(name: str, split: str, found: int, expected: int) -> None:
    if found != expected:  # TFDS's writer of Parquet, as of 4.9.10, leaves most records out.
        raise InputError(
            f"data set {name!r} holds {found:,} of the {expected:,} records of its split {split}; "
            "expected all; prepare it again with file_format='array_record'"
        )


def _feature_keys(name: str, features: Any) -> tuple[str, str]:
    from tensorflow_datasets import features as kinds

    images = [key for key, kind in features.items() if isinstance(kind, kinds.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
    if not images or not labels:
        raise InputError(
            f"data set {name!r} has the features {', '.join(features)}; expected an Image and a "
            "ClassLabel; choose an image classification data set"
        )
    usual = LABEL_KEYS.get(name.partition(":")[0].partition("/")[0], "label")
    return _preferred(images, "image"), _preferred(labels, usual)


def _preferred(keys: list[str], usual: str) -> str:
    return usual if usual in keys else keys[0]


def _open(
    name: str,
    builder: "tensorflow_datasets.core.DatasetBuilder",
    image_key: str,
    label_key: str,
    folder: Path,
    progress: bool,
) -> Source:
    from tensorflow_datasets import decode

    known = list(builder.info.splits)
    splits = [split for split in known if split_of(split)] or known
    decoders = {image_key: decode.SkipDecoding()}
    parts = [
        Records(builder.as_data_source(split, decoders=decoders), image_key, label_key)
        for split in splits
    ]
    for split, part in zip(splits, parts, strict=True):
        _check_complete(name, split, len(part), builder.info.splits[split].num_examples)
    features = builder.info.features
    source = Source(
        name=f"tfds:{name}",
        class_names=tuple(features[label_key].names),
        item_names=(),
        labels=np.zeros(0, np.int32),
        splits=np.zeros(0, "U10"),
        read=lambda item: read_many([item])[0],
        item_shape=tuple(features[image_key].shape),
        home=folder,
        fingerprint=lambda: folder_fingerprint(folder),
        read_many=lambda items: read_many(items),
    )
    load_labels(parts, source, progress=progress)
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

    return dataclasses.replace(
        source,
        item_names=Names(splits, part_of, record),
        labels=np.concatenate([part.labels[part.labels >= 0] for part in parts]),
        splits=np.array([split_of(split) for split in splits], dtype="U10")[part_of],
    )
