"""The class and the split of image files, from where they lie.

That is {split}/{class}/…, {class}/{split}/… or {class}/…, in a folder, a zip or a bucket.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdnn.data.files import MOST_FOLDERS, Files, is_remote
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError
from jaxdnn.names import printable, shown_apart

_SPLIT_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_EXPECTED = "expected {class}/… or {split}/{class}/… with splits train, validation, test"


def split_of(name: str) -> str:
    """Return 'train', 'validation' or 'test' for its usual spellings, otherwise ''."""
    split = (split for split, names in _SPLIT_SPELLINGS.items() if name.lower() in names)
    return next(split, "")


def labelled_source(files: Files, *, name: str, home: str | Path) -> Source:
    """Find the class and split of every file; folders below the class's own do not matter.

    A single folder around all others is opened. Where every image of every class lies in a folder
    of a split, such as dog/train/1.png, that is its split; where only some do, all are the class's.
    Files that lie next to the class folders are left without a label. A class is what the disk
    calls it, byte for byte; only what is shown of its name is made fit for that.

    Args:
      files: images and other files, as found.
      name: where it was found, for people.
      home: the folder or zip that holds them, or its address.

    Raises:
      InputError: no image, no class folder, one class only, or split folders mixed with others.
    """
    if not files.names:
        instead = "".join(f"; {printable(f'{kind}: {reason}')}" for kind, reason in files.ignored)
        raise InputError(
            f"no images in {name}{instead}; {_EXPECTED}; put images there or change --data"
        )
    folders, notes = _class_and_split(files.names, name)
    heads = [file.rpartition("/")[0] for file in files.names]
    indices = [index for index, head in enumerate(heads) if folders[head] is not None]
    if not indices:
        raise InputError(
            f"{len(heads)} images but no class folders in {name} (such as {files.names[0]!r}); "
            f"{_EXPECTED}; put the images of each class in a folder of its own"
        )
    found = [folder for index in indices if (folder := folders[heads[index]])]
    stored_names = sorted({class_name for class_name, _ in found})
    if len(stored_names) < 2:
        raise InputError(
            f"one class only ({printable(stored_names[0])!r}) in {name}; expected a folder of "
            "images for each of two or more classes; add the others"
        )
    label_of = {class_name: label for label, class_name in enumerate(stored_names)}
    return Source(
        name=name,
        class_names=tuple(shown_apart(stored_names)),
        item_names=[printable(files.names[index]) for index in indices],
        labels=np.array([label_of[class_name] for class_name, _ in found], np.int32),
        splits=np.array([split for _, split in found], dtype="U10"),
        read=lambda item: files.read(indices[item]),
        unlabelled=tuple(
            printable(file)
            for file, head in zip(files.names, heads, strict=True)
            if folders[head] is None
        ),
        ignored=tuple(
            (printable(found), printable(reason))
            for found, reason in (*files.ignored, *notes, *files.others)
        ),
        home=str(home) if is_remote(home) else Path(home),
        fingerprint=files.fingerprint,
    )


def _class_and_split(
    names: Sequence[str], origin: str
) -> tuple[dict[str, tuple[str, str] | None], list[tuple[str, str]]]:
    """Return class and split ('' if none) for each folder that holds files; None outside.

    With them, folders of a split's name that were taken for no split, and why.
    """
    # By the folders that occur: they are few, the files may be millions.
    heads = {name.rpartition("/")[0] for name in names}
    paths = {head: tuple(head.split("/")) if head else () for head in heads}
    num_wrapping = _num_wrapping([*paths.values()])
    paths = {head: path[num_wrapping:] for head, path in paths.items()}
    inside = [path for path in paths.values() if path]
    if _has_splits(inside, origin):
        return {
            head: (path[1], split_of(path[0])) if len(path) > 1 else None
            for head, path in paths.items()
        }, []
    named = {path[:2] for path in inside if len(path) > 1 and split_of(path[1])}
    splits = {split_of(split) for _, split in named}
    if "train" in splits and all(path[:2] in named for path in inside):
        return {
            head: (path[0], split_of(path[1])) if path else None for head, path in paths.items()
        }, []
    reason = "a split's name inside a class, but not every image lies in one: all are the class's"
    notes = [("/".join(path) + "/", reason) for path in sorted(named)[:MOST_FOLDERS]]
    return {head: (path[0], "") if path else None for head, path in paths.items()}, notes


def _num_wrapping(paths: list[tuple[str, ...]]) -> int:
    """Return how many single folders lie around all others."""
    tops = {path[0] for path in paths if path}
    inner = {path[1] for path in paths if len(path) > 1}
    holds_folders = len(inner) > 1 or (inner and all(len(path) != 1 for path in paths))
    if len(tops) == 1 and not split_of(min(tops)) and holds_folders:
        return 1 + _num_wrapping([path[1:] for path in paths])
    return 0


def _has_splits(paths: list[tuple[str, ...]], origin: str) -> bool:
    tops = {path[0] for path in paths}
    splits = {top for top in tops if split_of(top)}
    nested = any(len(path) > 1 and path[0] in splits for path in paths)
    if splits and splits != tops and nested:
        raise InputError(
            f"split folders ({printable(', '.join(sorted(splits)))}) next to others "
            f"({printable(', '.join(sorted(tops - splits)[:5]))}) in {origin}; {_EXPECTED}; move "
            "the others"
        )
    return bool(splits) and splits == tops
