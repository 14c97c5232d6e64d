"""Image files in a folder or a zip archive, by name."""

import hashlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
      fingerprint: of names, sizes and times of change, in a zip of names, sizes and checksums.
      set_aside: what a user may take for images and is none, with the reason.
    """

    names: tuple[str, ...]
    read: Callable[[int], bytes]
    fingerprint: Callable[[], str]
    set_aside: tuple[tuple[str, str], ...] = ()


def is_image_name(name: str) -> bool:
    """Whether a relative path ends like an image and no part of it is hidden or a system's."""
    suffix = os.path.splitext(name.rpartition("/")[2])[1]
    return _is_shown(name) and suffix.lower() in IMAGE_SUFFIXES


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


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
    found = list(_walk(str(root), "", set()))
    names = sorted(name for name in found if is_image_name(name))
    return Files(
        names=tuple(names),
        set_aside=_set_aside(found),
        read=lambda index: read_file(os.path.join(root, names[index]), max_bytes=max_bytes),
        fingerprint=lambda: digest(f"{name}:{_stamp(os.path.join(root, name))}" for name in names),
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of the files right in a folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return digest(f"{name}:{_stamp(os.path.join(folder, name))}" for name in names)


def digest(parts: Iterable[str]) -> str:
    """Return a hash of texts in their order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(os.fsencode(part) + b"\0")
    return total.hexdigest()


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_mode:o}"


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
        elif (is_image_name(name) or _is_zip_name(name)) and _is_file(entry):
            yield name
    if prefix:
        yield prefix


def _is_zip_name(name: str) -> bool:
    return name.lower().endswith(".zip") and not name.rpartition("/")[2].startswith(".")


def _set_aside(found: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Name the zips, and the folders (ending in "/") that hold no image on any level."""
    images = [name for name in found if is_image_name(name)]
    used = {name[: end + 1] for name in images for end, c in enumerate(name) if c == "/"}
    empty = (name for name in found if name.endswith("/") and name not in used)
    zips = (name for name in found if _is_zip_name(name))
    return (
        *((name, "a folder without images") for name in sorted(empty)),
        *((name, "a zip inside is not opened: unpack it") for name in sorted(zips)),
    )


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
        set_aside=_set_aside([name for name in members if _is_shown(name)]),
        read=lambda index: _read_member(archive, members[names[index]], lock, max_bytes),
        fingerprint=lambda: digest(
            f"{name}:{members[name].file_size}:{members[name].CRC}" for name in names
        ),
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
