"""Classes and splits from where files lie: {split}/{class}/… or {class}/…"""

import os
import unicodedata
from dataclasses import dataclass

from jaxdnn.errors import InputError

SPLIT_SPELLINGS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Folder or split name in lower case -> the split that it means."""

_EXPECTED = "expected {class}/… or {split}/{class}/… with splits train, validation, test"


@dataclass(frozen=True, slots=True)
class Labelled:
    """One file in its place: its index in the listing, its class and its split ('' if none)."""

    index: int
    class_name: str
    split: str


@dataclass(frozen=True)
class Layout:
    """Files by class, and the indices of those that lie outside every class folder."""

    files: tuple[Labelled, ...]
    outside: tuple[int, ...]


def split_of(name: str) -> str:
    """Return 'train', 'validation' or 'test' for its usual spellings, otherwise ''."""
    return SPLIT_SPELLINGS.get(name.lower(), "")


def printable(name: str) -> str:
    """Return a file's name as text of one line for any stream, in Unicode's composed form."""
    text = os.fsencode(name).decode("utf-8", "replace")
    if not text.isprintable():
        text = "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in text)
    return unicodedata.normalize("NFC", text)


def class_layout(names: tuple[str, ...], *, origin: str) -> Layout:
    """Find the class and split of every file; folders below the class's own do not matter.

    A single folder around all others is looked through. Files that lie beside the class folders
    are set aside.

    Raises:
      InputError: no image, no class folder, or split folders mixed with others.
    """
    # Told by the folders that occur: they are few, the files may be millions.
    heads = [name.rpartition("/")[0] for name in names]
    folders = {head: tuple(printable(head).split("/")) if head else () for head in set(heads)}
    if not names:
        raise InputError(f"no images in {origin}; {_EXPECTED}; put images there or change --data")
    num_wrapping = _num_wrapping([*folders.values()])
    folders = {head: path[num_wrapping:] for head, path in folders.items()}
    has_splits = _has_splits([*folders.values()], origin)
    depth = 2 if has_splits else 1
    files = tuple(
        Labelled(index, path[depth - 1], split_of(path[0]) if has_splits else "")
        for index, head in enumerate(heads)
        if len(path := folders[head]) >= depth
    )
    if not files:
        raise InputError(
            f"{len(names)} images but no class folders in {origin} (such as {names[0]!r}); "
            f"{_EXPECTED}; put the images of each class in a folder of its own"
        )
    outside = tuple(index for index, head in enumerate(heads) if len(folders[head]) < depth)
    return Layout(files, outside)


def _num_wrapping(paths: list[tuple[str, ...]]) -> int:
    """Return how many single folders lie around all others."""
    tops = {path[0] for path in paths if path}
    inner = {path[1] for path in paths if len(path) > 1}
    holds_folders = len(inner) > 1 or (inner and all(len(path) != 1 for path in paths))
    if len(tops) == 1 and not split_of(min(tops)) and holds_folders:
        return 1 + _num_wrapping([path[1:] for path in paths])
    return 0


def _has_splits(paths: list[tuple[str, ...]], origin: str) -> bool:
    tops = {path[0] for path in paths if path}
    splits = {top for top in tops if split_of(top)}
    nested = any(len(path) > 1 and path[0] in splits for path in paths)
    if splits and splits != tops and nested:
        raise InputError(
            f"split folders ({', '.join(sorted(splits))}) beside others "
            f"({', '.join(sorted(tops - splits)[:5])}) in {origin}; {_EXPECTED}; move the others"
        )
    return bool(splits) and splits == tops
