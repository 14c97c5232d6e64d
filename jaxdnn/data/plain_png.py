"""PNG without filters: the small images of prepared data sets, read several times as fast.

A general reader spends most of its time on a small image before the first pixel. A PNG of 8-bit
grey or RGB that consists of one header, one block of data and an end, whose rows are stored as they
are (filter 0), is one zlib stream and a reshape. Any reader reads it.

References:
  Portable Network Graphics (PNG) Specification (W3C, 2003), sections 5, 9 and 11.
"""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = _SIGNATURE + struct.pack(">I", 13) + b"IHDR"
_DATA_AT = len(_START) + 13 + 4
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_CHANNELS = {0: 1, 2: 3}
_COLOUR_TYPES = {1: 0, 3: 2}


def write_png(pixels: UInt8[np.ndarray, "height width channel"]) -> bytes:
    """Encode grey or RGB values (1 or 3 channels) losslessly."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 6)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _END


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_png(data: bytes, *, max_pixels: int) -> UInt8[np.ndarray, "height width channel"] | None:
    """Decode such a PNG; None for every other, damaged and too large ones among them."""
    if not data.startswith(_START) or not data.endswith(_END) or len(data) < _DATA_AT + 24:
        return None
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    length, kind = struct.unpack_from(">I4s", data, _DATA_AT)
    end = _DATA_AT + 8 + length
    channels = _CHANNELS.get(colour)
    is_plain = depth == 8 and channels and not any(methods) and kind == b"IDAT"
    if not is_plain or end + 4 + len(_END) != len(data) or not 0 < width * height <= max_pixels:
        return None
    checks = zlib.crc32(data[12:29]), zlib.crc32(memoryview(data)[_DATA_AT + 4 : end])
    if checks != (*struct.unpack_from(">I", data, 29), *struct.unpack_from(">I", data, end)):
        return None
    return _pixels(memoryview(data)[_DATA_AT + 8 : end], height, width, channels)


def _pixels(stream: memoryview, height: int, width: int, channels: int) -> np.ndarray | None:
    num_bytes = height * (1 + width * channels)
    try:
        raw = zlib.decompressobj().decompress(stream, num_bytes + 1)
    except zlib.error:
        return None
    if len(raw) != num_bytes:
        return None
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    if rows[:, 0].any():
        return None
    return rows[:, 1:].reshape(height, width, channels)
