"""Image files in a zip archive, also in one that was cut short.

The list of members stands at the end of an archive, so that it is the first to be lost; but every
member begins with a header of its own.

References:
  APPNOTE: .ZIP File Format Specification (PKWARE, 2022), section 4.3.
"""

import functools
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.files import (
    AGAIN,
    MAX_FILE_BYTES,
    Files,
    bounded,
    is_passing,
    is_remote,
    list_files,
    open_remote,
    patiently,
    unreadable,
)
from jaxdnn.data.kinds import START_BYTES
from jaxdnn.errors import InputError

Member = TypeVar("Member")

_UNSAFE = "its path points outside the archive"
_HEADER = struct.Struct("<4s5H3L2H")
_MAGIC, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_IN_EXTRA = 0xFFFFFFFF
_SEARCHED_BYTES = 2**20


def zip_files(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images in a zip archive.

    Of an archive that was cut short, those that are whole are listed. Members whose path points
    outside the archive are ignored; nothing is ever unpacked to disk.

    Raises:
      InputError: no zip, or encrypted.
    """
    try:
        archive = patiently(lambda: _open(path))
    except InputError:
        raise
    except Exception as error:  # Damaged, in any of its ways.
        is_damage = isinstance(error, zipfile.BadZipFile | UnicodeDecodeError)
        if is_damage and (found := _without_list(path, max_bytes)):
            return found
        raise InputError(
            f"cannot read zip {str(path)!r}: {error}; expected a zip archive; "
            f"{AGAIN if is_passing(error) else 'fetch or pack it again'}"
        ) from error
    members, unsafe = _by_name((info.filename, info) for info in archive.infolist())
    lock = threading.Lock()
    files = list_files(
        members,
        read=lambda name: _read_member(archive, members[name], lock, max_bytes),
        start=lambda name: _start_of(archive, members[name], lock),
        stamp=lambda name: f"{members[name].file_size}:{members[name].CRC}",
        ignored=unsafe,
    )
    for info in map(members.__getitem__, files.names):
        if info.flag_bits & _ENCRYPTED:
            raise InputError(
                f"zip {str(path)!r} is encrypted (member {info.filename!r}); expected no password; "
                "unpack it and give the folder"
            )
    return files


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


def _without_list(path: str | Path, max_bytes: int) -> Files | None:
    """List what is whole in an archive whose list of members cannot be read; None if nothing is."""
    open_file = functools.partial(open_remote, str(path))
    if not is_remote(path):
        open_file = functools.partial(open, path, "rb")
    with open_file() as file:
        listed = _whole_members(file)
    if not listed:
        return None
    members, unsafe = _by_name((member.name, member) for member in listed)
    lost = (
        f"cut short or damaged: the {len(listed):,} members before that are read, what followed is "
        "lost"
    )
    return list_files(
        members,
        read=lambda name: _read_stored(open_file, members[name], max_bytes),
        start=lambda name: _start_of_stored(open_file, members[name]),
        stamp=lambda name: f"{members[name].crc}",
        ignored=((Path(path).name, lost), *unsafe),
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

    def read() -> bytes:
        with lock:  # ZipFile counts its open members without one; reads have a lock of their own.
            member = archive.open(info)
        try:
            return bounded(member.read(max_bytes + 1), max_bytes)
        finally:
            with lock:
                member.close()

    try:
        return patiently(read)
    except UnreadableImage:
        raise
    except Exception as error:  # Damaged, in any of the ways of its kind of compression.
        raise unreadable(error, "damaged in the zip") from error


def _start_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    try:
        with lock, archive.open(info) as member:
            return member.read(START_BYTES)
    except Exception:  # Damaged or encrypted; it is not read in any case.
        return b""


class _Member(NamedTuple):
    """One file in the archive: where its stored bytes are, and how."""

    name: str
    start: int
    length: int
    method: int
    crc: int


def _whole_members(file: BinaryIO) -> list[_Member]:
    """Return the members whose bytes are all there, as far as one header leads to the next."""
    size = file.seek(0, 2)
    members: list[_Member] = []
    at = 0
    while (found := _member_at(file, at)) is not None:
        member, is_encrypted = found
        if member.start + member.length > size:
            break
        if not is_encrypted:
            members.append(member)
        at = _next_header(file, member)
    return members


def _start_of_stored(open_file: Callable[[], BinaryIO], member: _Member) -> bytes:
    try:
        return _read_stored(open_file, member, MAX_FILE_BYTES)[:START_BYTES]
    except UnreadableImage:  # It is not read in any case.
        return b""


def _read_stored(open_file: Callable[[], BinaryIO], member: _Member, max_bytes: int) -> bytes:
    """Return the bytes of a member. Raises UnreadableImage."""

    def read() -> bytes:
        with open_file() as file:
            file.seek(member.start)
            return file.read(min(member.length, max_bytes))

    try:
        stored = patiently(read)
        is_plain = member.method == zipfile.ZIP_STORED
        data = stored if is_plain else zlib.decompressobj(-15).decompress(stored, max_bytes)
    except UnreadableImage:
        raise
    except Exception as error:  # Damaged, in any of the ways of its kind of compression.
        raise unreadable(error, "damaged in the zip") from error
    if zlib.crc32(data) != member.crc:
        raise UnreadableImage("damaged in the zip: wrong checksum")
    return data


def _member_at(file: BinaryIO, at: int) -> tuple[_Member, bool] | None:
    file.seek(at)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return None
    _, _, flags, method, _, _, crc, length, full, num_name, num_extra = _HEADER.unpack(header)
    name = file.read(num_name).decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
    extra, start = file.read(num_extra), at + _HEADER.size + num_name + num_extra
    if flags & _SIZES_FOLLOW and not length:
        sizes = _find_descriptor(file, start)
        if sizes is None:
            return None
        crc, length = sizes
    elif length == _IN_EXTRA or full == _IN_EXTRA:
        if len(extra) < 20:
            return None
        length = struct.unpack_from("<Q", extra, 12)[0]
    return _Member(name, start, length, method, crc), bool(flags & _ENCRYPTED)


def _find_descriptor(file: BinaryIO, start: int) -> tuple[int, int] | None:
    """Return checksum and length of a member whose writer only knew them afterwards."""
    file.seek(start)
    data, at = b"", 0
    while chunk := file.read(_SEARCHED_BYTES):
        data += chunk
        while (at := data.find(_DESCRIPTOR, at)) >= 0 and len(data) >= at + 12:
            crc, length = struct.unpack_from("<LL", data, at + 4)
            if length == at:
                return crc, length
            at += 1
        at = at if at >= 0 else max(len(data) - 16, 0)
        if len(data) > 256 * 2**20:
            return None
    return None


def _next_header(file: BinaryIO, member: _Member) -> int:
    """Return where the next header is: right behind, or behind the sizes that follow."""
    end = member.start + member.length
    file.seek(end)
    behind = file.read(28)
    if not behind.startswith(_DESCRIPTOR):
        return end
    return end + max(behind.find(_MAGIC), 0)
