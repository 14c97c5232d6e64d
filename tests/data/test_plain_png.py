"""PNG without filters: what is written is what any reader reads, and nothing else is taken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdnn.data.decode import UnreadableImage, decode
from jaxdnn.data.plain_png import read_png, write_png

SHAPES = [(1, 1, 1), (5, 7, 1), (28, 28, 1), (32, 31, 3)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read_here_and_by_pillow(shape):
    pixels = noise(*shape)
    data = write_png(pixels)
    found = read_png(data, max_pixels=10_000)
    assert found is not None
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(shape), pixels)
    assert read_png(data, max_pixels=shape[0] * shape[1] - 1) is None


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_pillow_s_png_is_read_alike_or_left_to_pillow(mode):
    smooth = np.add.outer(np.arange(30), np.arange(30)).astype(np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(smooth).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(smooth.astype(np.uint16))
    image.save(stream, "PNG")
    found = read_png(stream.getvalue(), max_pixels=10_000)
    if found is not None:
        expected = np.asarray(Image.open(io.BytesIO(stream.getvalue()))).reshape(found.shape)
        np.testing.assert_array_equal(found, expected)
    assert found is None or mode in ("L", "RGB")


def test_every_damaged_byte_is_noticed():
    data = write_png(noise(5, 4, 1))
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        assert read_png(bytes(broken), max_pixels=1000) is None
        assert read_png(data[:place], max_pixels=1000) is None


def with_data(raw: bytes, width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("raw", [b"\0" * 3, b"\0" * 10_000_000, b"\1\5\5\5"], ids=len)
def test_too_little_too_much_and_filtered_data_are_left_to_pillow(raw):
    assert read_png(with_data(b"\0\7\7\7", 3, 1), max_pixels=10) is not None
    assert read_png(with_data(raw, 3, 1), max_pixels=10) is None


def test_what_it_reads_is_resized_like_any_other():
    pixels = noise(20, 30, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=None)
    for size, channels in ((None, None), (8, 1), (8, 3), (40, 3)):
        plain = decode(write_png(pixels), image_size=size, channels=channels)
        usual = decode(pixels, image_size=size, channels=channels)
        np.testing.assert_array_equal(plain, usual)
    with pytest.raises(UnreadableImage, match="more than the 599 allowed"):
        decode(write_png(pixels), image_size=8, channels=1, max_pixels=599)
