"""Image files below one root - a folder or a bucket - and the class and split of each.

A bucket is any address that etils.epath opens, such as gs:// or s3://. Classes and splits follow
from where files lie: {split}/{class}/… or {class}/…
"""

import contextlib
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.reader import map_in_order
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif")
_IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_OTHER_SUFFIXES})
MAX_FILE_BYTES = 256 * 2**20
"""Larger files and archive members are not read: no photograph is, a zip bomb may be."""

_AT_A_TIME = 32  # Answers from afar are waited for, not worked for.
_DEEPEST = 200  # Folders in folders: Python calls itself for each.

_SPLIT_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_EXPECTED = "expected {class}/… or {split}/{class}/… with splits train, validation, test"


@dataclass(frozen=True)
class Files:
    """Image files below one root.

    Attributes:
      names: paths relative to the root with "/" between the parts, sorted.
      read: the bytes of the file at that place in `names`; thread-safe; raises UnreadableImage.
      fingerprint: returns a hash of names, sizes and times of change, in a zip of checksums.
      ignored: what a user may take for images and is none, with the reason.
    """

    names: tuple[str, ...]
    read: Callable[[int], bytes]
    fingerprint: Callable[[], str]
    ignored: tuple[tuple[str, str], ...] = ()


def list_files(
    found: Iterable[str],
    *,
    read: Callable[[str], bytes],
    stamp: Callable[[str], str],
    ignored: Sequence[tuple[str, str]] = (),
    map_stamps: Callable[..., Iterable[str]] = map,
) -> Files:
    """Choose the images among what was found, and name what only looks like some.

    Args:
      found: relative paths of files, and of folders with "/" at the end.
      read: the bytes of a file; thread-safe; raises UnreadableImage.
      stamp: another text for every change of a file.
      ignored: what else was found, with the reason.
      map_stamps: stands for `map` where stamps come from afar.
    """
    found = list(found)
    names = tuple(sorted(filter(_is_image, found)))
    used = {name[: end + 1] for name in names for end, c in enumerate(name) if c == "/"}
    empty = sorted(name for name in found if name.endswith("/") and name not in used)
    zips = sorted(filter(_is_zip, found))
    return Files(
        names=names,
        read=lambda index: read(names[index]),
        fingerprint=lambda: digest(
            map(":".join, zip(names, map_stamps(stamp, names), strict=True))
        ),
        ignored=(
            *ignored,
            *((name, "a folder without images") for name in empty),
            *((name, "a zip inside is not opened: unpack it") for name in zips),
        ),
    )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES and is_shown(name)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip") and not name.rpartition("/")[2].startswith(".")


def is_shown(name: str) -> bool:
    """Whether no part of a relative path is hidden or made by a system for itself."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def bounded(data: bytes, max_bytes: int) -> bytes:
    """Return the data. Raises UnreadableImage where it is longer than that."""
    if len(data) > max_bytes:
        raise UnreadableImage(f"more than the {max_bytes:,} bytes allowed")
    return data


def digest(parts: Iterable[str]) -> str:
    """Return a hash of texts in their order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(os.fsencode(part) + b"\0")
    return total.hexdigest()


def _stamp(path: str | Path) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_mode:o}"


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file of bounded size. Raises UnreadableImage with the reason."""
    try:
        with open(path, "rb") as file:
            return bounded(file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def folder_files(root: str | Path) -> Files:
    """List the images below a folder; linked folders are followed, each folder once.

    A folder inside that cannot be listed is ignored.

    Raises:
      InputError: the folder itself cannot be listed.
    """
    closed: list[tuple[str, str]] = []
    return list_files(
        _walk(str(root), "", set(), closed),
        read=lambda name: read_file(os.path.join(root, name)),
        stamp=lambda name: _stamp(os.path.join(root, name)),
        ignored=closed,
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of the files right in a folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return digest(f"{name}:{_stamp(folder / name)}" for name in names)


def _walk(
    folder: str, prefix: str, visited: set[tuple[int, int]], closed: list[tuple[str, str]]
) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if prefix:
            closed.append((prefix, f"a folder that cannot be listed: {error.strerror}"))
            return
        raise InputError(
            f"cannot list folder {folder!r}: {error.strerror}; expected a readable folder; "
            "change its permissions or choose another"
        ) from error
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    if prefix.count("/") > _DEEPEST:
        closed.append((prefix, f"a folder more than {_DEEPEST} folders deep: move it up"))
        return
    for entry in entries:
        name = prefix + entry.name
        if not entry.name.startswith(".") and _is_folder(entry):
            yield from _walk(entry.path, name + "/", visited, closed)
        elif (_is_image(name) or _is_zip(name)) and _is_file(entry):
            yield name
    if prefix:
        yield prefix


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that points at itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:  # A broken link is listed, so that it is reported; a pipe or a device is not.
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def is_remote(path: str | Path) -> bool:
    """Whether this is an address, such as gs://bucket/photos."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def is_remote_folder(address: str) -> bool:
    """Whether there is a folder there; False for a file.

    Raises:
      InputError: nothing is there, or what opens such addresses is missing.
    """
    with _one_line(address):
        path = _open_address(address)
        if path.is_dir():
            return True
        if path.exists():
            return False
    raise InputError(f"--data {address!r} does not exist; check the spelling")


def open_remote(address: str) -> BinaryIO:
    """Open a file to read. Raises InputError."""
    with _one_line(address):
        return _open_address(address).open("rb")


def remote_files(root: str) -> Files:
    """List the images below a folder that is not on this machine. Raises InputError."""
    with _one_line(root):
        top = _open_address(root)
        found = list(_walk_bucket(top, ""))

    def read(name: str) -> bytes:
        try:
            with (top / name).open("rb") as file:
                return bounded(file.read(MAX_FILE_BYTES + 1), MAX_FILE_BYTES)
        except UnreadableImage:
            raise
        except Exception as error:  # Of a type that depends on who keeps the bucket.
            raise UnreadableImage(f"cannot be read: {error}") from error

    def stamp(name: str) -> str:
        try:
            status = (top / name).stat()
        except Exception as error:
            return type(error).__name__
        return f"{status.length}:{status.mtime}"

    in_threads = functools.partial(map_in_order, max_workers=_AT_A_TIME)
    return list_files(found, read=read, stamp=stamp, map_stamps=in_threads)


def _open_address(address: str) -> Any:
    from etils import epath

    return epath.Path(address)


def _walk_bucket(folder: Any, prefix: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + path.name
        if _is_image(name) or _is_zip(name):  # Asking what it is would be a call for each.
            yield name
        elif is_shown(name) and path.is_dir():
            yield from _walk_bucket(path, name + "/")
    if prefix:
        yield prefix


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn whatever goes wrong with an address into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{address!r} cannot be opened: {first_line(error)}; expected an address that "
            "etils.epath opens; install what it names, check your rights and the spelling"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def split_of(name: str) -> str:
    """Return 'train', 'validation' or 'test' for its usual spellings, otherwise ''."""
    split = (split for split, names in _SPLIT_SPELLINGS.items() if name.lower() in names)
    return next(split, "")


def printable(name: str) -> str:
    """Return a file's name as text of one line for any stream, in Unicode's composed form."""
    text = os.fsencode(name).decode("utf-8", "replace")
    if not text.isprintable():
        text = "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in text)
    return unicodedata.normalize("NFC", text)


def labelled_source(files: Files, *, name: str, home: str | Path) -> Source:
    """Find the class and split of every file; folders below the class's own do not matter.

    A single folder around all others is opened. Files that lie next to the class folders
    are left without a label.

    Args:
      files: images and other files, as found.
      name: where it was found, for people.
      home: the folder or zip that holds them, or its address.

    Raises:
      InputError: no image, no class folder, one class only, or split folders mixed with others.
    """
    folders = _class_and_split(files.names, name)
    heads = [file.rpartition("/")[0] for file in files.names]
    indices = [index for index, head in enumerate(heads) if folders[head] is not None]
    if not indices:
        raise InputError(
            f"{len(heads)} images but no class folders in {name} (such as {files.names[0]!r}); "
            f"{_EXPECTED}; put the images of each class in a folder of its own"
        )
    found = [folder for index in indices if (folder := folders[heads[index]])]
    class_names = tuple(sorted({class_name for class_name, _ in found}))
    if len(class_names) < 2:
        raise InputError(
            f"one class only ({class_names[0]!r}) in {name}; expected a folder of images for "
            "each of two or more classes; add the others"
        )
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    return Source(
        name=name,
        class_names=class_names,
        item_names=[printable(files.names[index]) for index in indices],
        labels=np.array([label_of[class_name] for class_name, _ in found], np.int32),
        splits=np.array([split for _, split in found], dtype="U10"),
        read=lambda item: files.read(indices[item]),
        unlabelled=tuple(
            printable(file)
            for file, head in zip(files.names, heads, strict=True)
            if folders[head] is None
        ),
        ignored=tuple((printable(name), reason) for name, reason in files.ignored),
        home=str(home) if is_remote(home) else Path(home),
        fingerprint=files.fingerprint,
    )


def _class_and_split(names: Sequence[str], origin: str) -> dict[str, tuple[str, str] | None]:
    """Return class and split ('' if none) for each folder that holds files; None outside."""
    # By the folders that occur: they are few, the files may be millions.
    heads = {name.rpartition("/")[0] for name in names}
    paths = {head: tuple(printable(head).split("/")) if head else () for head in heads}
    if not names:
        raise InputError(f"no images in {origin}; {_EXPECTED}; put images there or change --data")
    num_wrapping = _num_wrapping([*paths.values()])
    paths = {head: path[num_wrapping:] for head, path in paths.items()}
    has_splits = _has_splits([*paths.values()], origin)
    depth = 2 if has_splits else 1
    return {
        head: (path[depth - 1], split_of(path[0]) if has_splits else "")
        if len(path) >= depth
        else None
        for head, path in paths.items()
    }


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
            f"split folders ({', '.join(sorted(splits))}) next to others "
            f"({', '.join(sorted(tops - splits)[:5])}) in {origin}; {_EXPECTED}; move the others"
        )
    return bool(splits) and splits == tops
