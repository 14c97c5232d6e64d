"""Image files in a zip archive, also in one that was cut short."""

import functools
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from jaxdnn.data import cut_zip
from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.files import (
    MAX_FILE_BYTES,
    Files,
    bounded,
    digest,
    is_image_name,
    is_shown,
    not_used,
)
from jaxdnn.data.remote import is_remote, open_remote
from jaxdnn.errors import InputError

Member = TypeVar("Member")

_ENCRYPTED = 0x1
_UNSAFE = "its path points outside the archive"


def zip_files(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images in a zip archive.

    Of an archive that was cut short, those that are whole are listed. Members whose path points
    outside the archive are set aside; nothing is ever unpacked to disk.

    Raises:
      InputError: no zip, or encrypted.
    """
    try:
        archive = _open(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        if isinstance(error, zipfile.BadZipFile) and (found := _cut(path, max_bytes)):
            return found
        raise InputError(
            f"cannot read zip {str(path)!r}: {error}; expected a zip archive; fetch or pack it "
            "again"
        ) from error
    members, unsafe = _by_name((info.filename, info) for info in archive.infolist())
    names = sorted(name for name in members if is_image_name(name))
    _check_not_encrypted(path, [members[name] for name in names])
    lock = threading.Lock()
    return Files(
        names=tuple(names),
        set_aside=(*unsafe, *not_used([name for name in members if is_shown(name)])),
        read=lambda index: _read_member(archive, members[names[index]], lock, max_bytes),
        fingerprint=lambda: digest(
            f"{name}:{members[name].file_size}:{members[name].CRC}" for name in names
        ),
    )


def _open(path: str | Path) -> zipfile.ZipFile:
    if not is_remote(path):
        return zipfile.ZipFile(path)
    file = open_remote(str(path))
    try:
        archive = zipfile.ZipFile(file)
    except BaseException:
        file.close()
        raise
    weakref.finalize(archive, file.close)  # ZipFile only closes what it has opened itself.
    return archive


def _check_not_encrypted(path: str | Path, members: Iterable[zipfile.ZipInfo]) -> None:
    for info in members:
        if info.flag_bits & _ENCRYPTED:
            raise InputError(
                f"zip {str(path)!r} is encrypted (member {info.filename!r}); expected no password; "
                "unpack it and give the folder"
            )


def _cut(path: str | Path, max_bytes: int) -> Files | None:
    """List what is whole in an archive without its end; None where nothing is."""
    open_file = functools.partial(open_remote, str(path))
    if not is_remote(path):
        open_file = functools.partial(open, path, "rb")
    with open_file() as file:
        listed = cut_zip.members_of(file)
    if not listed:
        return None
    members, unsafe = _by_name((member.name, member) for member in listed)
    names = sorted(name for name in members if is_image_name(name))
    lost = f"cut short: the {len(listed):,} members before the cut are read, what followed is lost"
    return Files(
        names=tuple(names),
        set_aside=(
            (Path(path).name, lost),
            *unsafe,
            *not_used([name for name in members if is_shown(name)]),
        ),
        read=lambda index: cut_zip.read(open_file, members[names[index]], max_bytes),
        fingerprint=lambda: digest(f"{name}:{members[name].crc}" for name in names),
    )


def _by_name(
    listed: Iterable[tuple[str, Member]],
) -> tuple[dict[str, Member], list[tuple[str, str]]]:
    """Return the members by name, and the names that are not safe."""
    members, unsafe = {}, []
    for stored, member in listed:
        name = stored.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            unsafe.append((stored, _UNSAFE))
        else:
            members[name.removeprefix("./")] = member
    return members, unsafe


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock, max_bytes: int
) -> bytes:
    if info.file_size > max_bytes:
        raise UnreadableImage(f"{info.file_size:,} bytes are more than the {max_bytes:,} allowed")
    try:
        with lock:  # ZipFile counts its open members without one; reads have a lock of their own.
            member = archive.open(info)
        try:
            return bounded(member.read(max_bytes + 1), max_bytes)
        finally:
            with lock:
                member.close()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UnreadableImage(f"damaged in the zip: {error}") from error
