"""Image files in a folder or a zip archive, by name."""

import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.errors import InputError

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif")
IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_OTHER_SUFFIXES})
MAX_FILE_BYTES = 256 * 2**20
"""Larger files and archive members are not read: no photograph is, a zip bomb may be."""

_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Files:
    """Image files below one root.

    Attributes:
      names: paths relative to the root with "/" between the parts, sorted.
      read: the bytes of the file at that place in `names`; thread-safe; raises UnreadableImage.
    """

    names: tuple[str, ...]
    read: Callable[[int], bytes]


def is_image_name(name: str) -> bool:
    """Whether a relative path ends like an image and no part of it is hidden or a system's."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file of bounded size. Raises UnreadableImage with the reason."""
    try:
        with open(path, "rb") as file:
            return _bounded(file.read(max_bytes + 1), max_bytes)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def folder_files(root: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images below a folder; linked folders are followed, each folder once.

    Raises:
      InputError: a folder cannot be listed.
    """
    names = sorted(_walk(str(root), "", set()))
    return Files(
        names=tuple(names),
        read=lambda index: read_file(os.path.join(root, names[index]), max_bytes=max_bytes),
    )


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"cannot list folder {folder!r}: {error.strerror}; expected a readable folder; "
            "change its permissions or remove it"
        ) from error
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        name = prefix + entry.name
        if not entry.name.startswith(".") and _is_folder(entry):
            yield from _walk(entry.path, name + "/", seen)
        elif is_image_name(name) and _is_file(entry):
            yield name


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


def zip_files(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images in a zip archive.

    Raises:
      InputError: no complete zip, encrypted, or a member's name points outside the archive.
    """
    archive = _open_archive(path)
    members = {_member_name(info, path): info for info in archive.infolist()}
    names = sorted(name for name in members if is_image_name(name))
    for name in names:
        if members[name].flag_bits & _ENCRYPTED:
            raise InputError(
                f"zip {str(path)!r} is encrypted (member {name!r}); expected no password; "
                "unpack it and give the folder"
            )
    lock = threading.Lock()
    return Files(
        names=tuple(names),
        read=lambda index: _read_member(archive, members[names[index]], lock, max_bytes),
    )


def _open_archive(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(
            f"cannot read zip {str(path)!r}: {error}; expected a complete zip archive; "
            "fetch or pack it again"
        ) from error


def _member_name(info: zipfile.ZipInfo, path: str | Path) -> str:
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise InputError(
            f"zip {str(path)!r} holds the unsafe path {info.filename!r}; expected paths inside the "
            "archive; do not trust it, or pack it again from its folder"
        )
    return name.removeprefix("./")


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock, max_bytes: int
) -> bytes:
    if info.file_size > max_bytes:
        raise UnreadableImage(f"{info.file_size:,} bytes are more than the {max_bytes:,} allowed")
    try:
        with lock:  # ZipFile counts its open members without one; reads have a lock of their own.
            member = archive.open(info)
        try:
            return _bounded(member.read(max_bytes + 1), max_bytes)
        finally:
            with lock:
                member.close()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UnreadableImage(f"damaged in the zip: {error}") from error


def _bounded(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise UnreadableImage(f"more than the {max_bytes:,} bytes allowed")
    return data
