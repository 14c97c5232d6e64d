"""What is left of a zip archive that was cut short.

The list of members stands at the end of an archive, so that it is the first to be lost; but every
member begins with a header of its own.

References:
  APPNOTE: .ZIP File Format Specification (PKWARE, 2022), section 4.3.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from jaxdnn.data.decode import UnreadableImage

_HEADER = struct.Struct("<4s5H3L2H")
_MAGIC, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_SIZES_FOLLOW, _UTF8, _ENCRYPTED = 0x8, 0x800, 0x1
_IN_EXTRA = 0xFFFFFFFF
_SEARCHED_BYTES = 2**20


class Member(NamedTuple):
    """One file in the archive: where its stored bytes are, and how."""

    name: str
    start: int
    length: int
    method: int
    crc: int


def members_of(file: BinaryIO) -> list[Member]:
    """Return the members whose bytes are all there, as far as one header leads to the next."""
    size = file.seek(0, 2)
    members: list[Member] = []
    at = 0
    while (found := _member_at(file, at)) is not None:
        member, is_encrypted = found
        if member.start + member.length > size:
            break
        if not is_encrypted:
            members.append(member)
        at = _next_header(file, member)
    return members


def read(open_file: Callable[[], BinaryIO], member: Member, max_bytes: int) -> bytes:
    """Return the bytes of a member. Raises UnreadableImage."""
    try:
        with open_file() as file:
            file.seek(member.start)
            stored = file.read(min(member.length, max_bytes))
        data = stored if member.method == zipfile.ZIP_STORED else _inflated(stored, max_bytes)
    except (OSError, zlib.error) as error:
        raise UnreadableImage(f"damaged in the zip: {error}") from error
    if zlib.crc32(data) != member.crc:
        raise UnreadableImage("damaged in the zip: wrong checksum")
    return data


def _inflated(stored: bytes, max_bytes: int) -> bytes:
    return zlib.decompressobj(-15).decompress(stored, max_bytes)


def _member_at(file: BinaryIO, at: int) -> tuple[Member, bool] | None:
    file.seek(at)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return None
    _, _, flags, method, _, _, crc, length, full, num_name, num_extra = _HEADER.unpack(header)
    name = file.read(num_name).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
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
    return Member(name, start, length, method, crc), bool(flags & _ENCRYPTED)


def _find_descriptor(file: BinaryIO, start: int) -> tuple[int, int] | None:
    """Return checksum and length of a member whose writer only knew them afterwards."""
    file.seek(start)
    data, at = b"", 0
    while portion := file.read(_SEARCHED_BYTES):
        data += portion
        while (at := data.find(_DESCRIPTOR, at)) >= 0 and len(data) >= at + 12:
            crc, length = struct.unpack_from("<LL", data, at + 4)
            if length == at:
                return crc, length
            at += 1
        at = at if at >= 0 else max(len(data) - 16, 0)
        if len(data) > 256 * 2**20:
            return None
    return None


def _next_header(file: BinaryIO, member: Member) -> int:
    """Return where the next header is: right behind, or behind the sizes that follow."""
    end = member.start + member.length
    file.seek(end)
    behind = file.read(28)
    if not behind.startswith(_DESCRIPTOR):
        return end
    return end + max(behind.find(_MAGIC), 0)
