"""Image files in a folder of this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.files import (
    MAX_FILE_BYTES,
    Files,
    bounded,
    digest,
    is_image_name,
    is_zip_name,
    not_used,
    stamp,
)
from jaxdnn.errors import InputError


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file of bounded size. Raises UnreadableImage with the reason."""
    try:
        with open(path, "rb") as file:
            return bounded(file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def folder_files(root: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images below a folder; linked folders are followed, each folder once.

    A folder inside that cannot be listed is set aside.

    Raises:
      InputError: the folder itself cannot be listed.
    """
    closed: list[tuple[str, str]] = []
    found = list(_walk(str(root), "", set(), closed))
    names = sorted(name for name in found if is_image_name(name))
    return Files(
        names=tuple(names),
        set_aside=(*closed, *not_used(found)),
        read=lambda index: read_file(os.path.join(root, names[index]), max_bytes=max_bytes),
        fingerprint=lambda: digest(f"{name}:{stamp(os.path.join(root, name))}" for name in names),
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of the files right in a folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return digest(f"{name}:{stamp(folder / name)}" for name in names)


def _walk(
    folder: str, prefix: str, seen: set[tuple[int, int]], closed: list[tuple[str, str]]
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
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        name = prefix + entry.name
        if not entry.name.startswith(".") and _is_folder(entry):
            yield from _walk(entry.path, name + "/", seen, closed)
        elif (is_image_name(name) or is_zip_name(name)) and _is_file(entry):
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
