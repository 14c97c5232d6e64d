"""Decoding: any kind of file becomes the picture that a viewer would show."""

import contextlib
import io
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import chex
import numpy as np
import pytest
from PIL import Image

from jaxdnn.data import decode as module
from jaxdnn.data.decode import Header, UnreadableImage, read_header, read_png, write_png

from .helpers import decode

RNG_SEED = 7

# What a viewer does with stored rows and columns, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).integers(0, 256, shape, np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 200 // height + 20, columns * 200 // width + 20, (rows + columns) % 100 + 60]
    return np.stack(planes, -1).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def as_is(data: bytes, channels: int | None = None) -> np.ndarray:
    return decode(data, image_size=None, channels=channels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_lossless_files_keep_every_value(kind, shape):
    pixels = noise(*shape)
    chex.assert_trees_all_equal(
        as_is(encoded(Image.fromarray(pixels), kind)), pixels.reshape(5, 7, -1)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_upright(kind, orientation):
    pixels = noise(4, 6, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, exif=exif(orientation), **options)
    chex.assert_trees_all_equal(as_is(data), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("image_size", [None, 16])
def test_a_turned_jpeg_is_upright_at_full_and_at_reduced_scale(image_size):
    stored = Image.fromarray(smooth(96, 128))
    shown = Image.fromarray(np.ascontiguousarray(UPRIGHT[6](smooth(96, 128))))
    turned = decode(encoded(stored, "JPEG", exif=exif(6)), image_size=image_size, channels=3)
    upright = decode(encoded(shown, "JPEG"), image_size=image_size, channels=3)
    chex.assert_equal_shape([turned, upright])
    assert np.abs(turned.astype(int) - upright).mean() < 4


def test_16_bit_grey_is_divided_by_257():
    values = np.array([[0, 128, 129, 257, 4112, 32768, 65406, 65407, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)[..., np.newaxis]
    image = Image.fromarray(values)
    for data in (encoded(image, "PNG"), encoded(image, "TIFF"), encoded(image, "PPM")):
        chex.assert_trees_all_equal(as_is(data), expected)
    assert expected.max() == 255


def test_32_bit_integers_and_floats_keep_their_meaning():
    def shown(values: np.ndarray) -> list[int]:
        return as_is(encoded(Image.fromarray(values), "TIFF")).ravel().tolist()

    assert shown(np.array([[0, 257, 65535]], np.int32)) == [0, 1, 255]
    assert shown(np.array([[-100, 0, 100]], np.int32)) == [0, 128, 255]
    assert shown(np.array([[0, 50_000, 100_000]], np.int32)) == [0, 128, 255]
    assert shown(np.array([[0.0, 0.2, 1.0]], np.float32)) == [0, 51, 255]
    assert shown(np.array([[0.0, 51.0, 255.0]], np.float32)) == [0, 51, 255]
    assert shown(np.array([[-1.0, 0.0, 1.0]], np.float32)) == [0, 128, 255]
    assert shown(np.array([[np.nan, 51.0, 255.0]], np.float32)) == [0, 51, 255]


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    (length,) = struct.unpack(">H", jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 255, 0), (0, 0, 0, 200)])
def test_cmyk_shows_its_colours_whether_stored_inverted_or_not(inks):
    cyan, magenta, yellow, black = inks
    expected = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    adobe = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
    inverted = tuple(255 - ink for ink in inks)
    plain = without_adobe_marker(
        encoded(Image.new("CMYK", (16, 16), inverted), "JPEG", quality=100)
    )
    for data in (adobe, plain, encoded(Image.new("CMYK", (16, 16), inks), "TIFF")):
        chex.assert_trees_all_close(as_is(data)[8, 8], np.array(expected), atol=3)


def test_palette_gives_the_colours_of_its_entries():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 200, 100, 0])
    expected = [[[10, 20, 30], [40, 50, 60]], [[200, 100, 0], [40, 50, 60]]]
    for kind in ("PNG", "GIF", "BMP"):
        chex.assert_trees_all_equal(as_is(encoded(image, kind)), np.array(expected))


def test_a_grey_palette_and_one_bit_are_grey():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([7, 7, 7, 90, 90, 90])
    chex.assert_trees_all_equal(as_is(encoded(image, "PNG")), np.array([[[7], [90]]]))
    one_bit = Image.fromarray(np.array([[True, False]]))
    chex.assert_trees_all_equal(as_is(encoded(one_bit, "PNG")), np.array([[[255], [0]]]))


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_transparency_is_composited_on_white(alpha):
    share = alpha / 255
    colour = np.array([200, 0, 100])
    rgba = Image.new("RGBA", (2, 2), (*colour.tolist(), alpha))
    chex.assert_trees_all_close(
        as_is(encoded(rgba, "PNG"))[0, 0], share * colour + (1 - share) * 255, atol=1
    )
    grey = as_is(encoded(Image.new("LA", (2, 2), (40, alpha)), "PNG"))
    chex.assert_shape(grey, (2, 2, 1))
    chex.assert_trees_all_close(grey[0, 0], share * 40 + (1 - share) * 255, atol=1)


@pytest.mark.parametrize(("kind", "transparency"), [("GIF", 0), ("PNG", 0), ("PNG", b"\x00\xff")])
def test_a_transparent_palette_entry_is_white(kind, transparency):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    data = encoded(image, kind, transparency=transparency)
    chex.assert_trees_all_equal(as_is(data), np.array([[[255] * 3, [40, 50, 60]]]))


def test_a_transparent_colour_is_white():
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))
    chex.assert_trees_all_equal(as_is(data), np.array([[[255] * 3, [4, 5, 6]]]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_is_the_bt_601_luma(kind):
    pixels = smooth(32, 48)
    data = encoded(Image.fromarray(pixels), kind, **({"quality": 100} if kind == "JPEG" else {}))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    chex.assert_trees_all_close(as_is(data, channels=1)[..., 0], luma, atol=2)


def test_grey_becomes_three_equal_channels_when_colour_is_asked_for():
    pixels = noise(5, 7)
    colour = as_is(encoded(Image.fromarray(pixels), "PNG"), channels=3)
    chex.assert_trees_all_equal(colour, np.repeat(pixels[..., np.newaxis], 3, axis=2))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white", "red")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert as_is(data, channels=3).max() == 0


@pytest.mark.parametrize("image_size", [1, 3, 16, 50])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (17, 9), (64, 64)])
def test_one_colour_stays_that_colour_at_every_size(shape, image_size):
    data = encoded(Image.new("RGB", shape, (10, 120, 250)), "PNG")
    pixels = decode(data, image_size=image_size, channels=3)
    chex.assert_shape(pixels, (image_size, image_size, 3))
    assert (pixels == [10, 120, 250]).all()


def test_the_middle_square_is_kept():
    middle = noise(20, 20)
    wide = np.full((20, 61), 255, np.uint8)
    wide[:, 20:40] = middle
    for pixels in (wide, wide.T):
        data = encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG")
        expected = middle if pixels is wide else middle.T
        chex.assert_trees_all_equal(decode(data, image_size=20, channels=1)[..., 0], expected)


def test_shrinking_averages_instead_of_picking():
    checkerboard = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode(encoded(Image.fromarray(checkerboard), "PNG"), image_size=12, channels=1)
    assert np.abs(small.astype(int) - 128).max() <= 2


def test_enlarging_stays_within_the_values_and_grows_with_a_ramp():
    ramp = np.tile(np.linspace(40, 200, 8).astype(np.uint8), (8, 1))
    large = decode(encoded(Image.fromarray(ramp), "PNG"), image_size=40, channels=1)[..., 0]
    assert large.min() >= 40
    assert large.max() <= 200
    assert (np.diff(large.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("side", [11, 64])
def test_bicubic_is_pillows(side):
    image = Image.fromarray(noise(30, 30, 3))
    expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    data = encoded(image, "PNG")
    given, _ = module.decode(data, image_size=side, channels=3, resampling="bicubic")
    chex.assert_trees_all_equal(given, expected)
    assert (given != decode(data, image_size=side, channels=3)).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [20, 32, 50])
def test_a_jpeg_at_reduced_scale_looks_like_the_full_one_reduced(image_size, channels):
    detailed = np.kron(noise(38, 51), np.ones((8, 8))).astype(np.uint8) // 2 + 64
    pixels = np.stack([detailed, detailed[::-1], detailed], -1)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    full = encoded(Image.fromarray(as_is(data)), "PNG")
    reduced = decode(data, image_size=image_size, channels=channels).astype(int)
    exact = decode(full, image_size=image_size, channels=channels)
    assert np.abs(reduced - exact).mean() < 4


def test_arrays_are_resized_like_files():
    pixels = noise(30, 40, 3)
    data = encoded(Image.fromarray(pixels), "PNG")
    for image_size, channels in ((None, 3), (8, 3), (8, 1), (64, None)):
        options = {"image_size": image_size, "channels": channels}
        chex.assert_trees_all_equal(decode(pixels, **options), decode(data, **options))
    grey = noise(28, 28, 1)
    chex.assert_trees_all_equal(decode(grey, image_size=28, channels=1), grey)
    assert decode(grey, image_size=28, channels=3).shape == (28, 28, 3)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT"


@pytest.mark.parametrize("side", [12_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(UnreadableImage, match=r"pixels"):
        decode(png_header(side, side), image_size=8, channels=1)
    with pytest.raises(UnreadableImage, match=r"pixels"):
        read_header(png_header(side, side))


def test_an_image_has_a_largest_number_of_pixels(monkeypatch):
    files = encoded(Image.new("L", (10, 11)), "PNG"), write_png(np.zeros((11, 10, 1), np.uint8))
    monkeypatch.setattr(module, "MAX_PIXELS", 110)
    for data in files:
        chex.assert_shape(decode(data, image_size=None, channels=1), (11, 10, 1))
    monkeypatch.setattr(module, "MAX_PIXELS", 109)
    for data in files:
        with pytest.raises(UnreadableImage, match=r"10 x 11 pixels are more than the 109 allowed"):
            decode(data, image_size=None, channels=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_file_cut_short_is_unreadable(kind, share):
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(UnreadableImage, match=r"damaged or incomplete|not an image"):
        as_is(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"just some text, named .jpg", "not an image"), (b"\xff\xd8\xff", "image")],
)
def test_what_is_no_image_is_unreadable(data, reason):
    for read in (as_is, read_header):
        with pytest.raises(UnreadableImage, match=reason):
            read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(kind):
    rng = np.random.default_rng(RNG_SEED)
    good = np.frombuffer(encoded(Image.fromarray(smooth(24, 24)), kind), np.uint8)
    for _ in range(60):
        bad = good.copy()
        bad[rng.integers(0, min(len(bad), 300), 4)] = rng.integers(0, 256, 4)
        with contextlib.suppress(UnreadableImage):
            pixels = decode(bad.tobytes(), image_size=8, channels=3)
            chex.assert_shape(pixels, (8, 8, 3))


def with_corrupt_exif() -> bytes:
    tags = struct.pack("<2sHIH", b"II", 42, 8, 1) + struct.pack("<HHII", 0x0112, 5, 900, 4000)
    segment = b"Exif\x00\x00" + tags
    jpeg = encoded(Image.fromarray(smooth(16, 16)), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def test_corrupt_exif_neither_warns_nor_stops():
    with pytest.warns(UserWarning, match=r"EXIF|Tag data|Truncated"):
        Image.open(io.BytesIO(with_corrupt_exif())).getexif()
    chex.assert_shape(as_is(with_corrupt_exif()), (16, 16, 3))


def test_decoding_in_threads_gives_the_same_and_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    files = [with_corrupt_exif(), encoded(Image.fromarray(noise(50, 40, 3)), "JPEG")] * 40
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(as_is, files))
    for data, pixels in zip(files[:2], found[-2:], strict=True):
        chex.assert_trees_all_equal(pixels, as_is(data))
    assert list(warnings.filters) == before
    assert logging.getLogger("PIL").level == logging.NOTSET


def test_what_pillow_says_of_damage_is_not_printed(caplog):
    data = bytearray(encoded(Image.new("RGB", (20, 15)), "TIFF"))
    at = data.index(b"\x15\x01\x03\x00")  # Samples per pixel.
    data[at + 8] = 99
    with pytest.raises(UnreadableImage):
        decode(bytes(data), image_size=8, channels=1)
    assert not caplog.records


def test_a_header_tells_size_and_greyness():
    for stored, expected in (
        (encoded(Image.new("L", (7, 5)), "PNG"), (7, 5, True, "L")),
        (encoded(Image.new("RGB", (7, 5)), "JPEG"), (7, 5, False, "RGB")),
        (encoded(Image.new("L", (7, 5)), "GIF"), (7, 5, True, "P")),
        (noise(5, 7, 1), (7, 5, True, "L")),
    ):
        assert read_header(stored) == Header(*expected)


SHAPES = [(1, 1, 1), (5, 7, 1), (28, 28, 1), (32, 31, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read_here_and_by_pillow(shape):
    pixels = noise(*shape)
    data = write_png(pixels)
    found = read_png(data)
    assert found is not None
    chex.assert_trees_all_equal(found, pixels)
    chex.assert_trees_all_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(shape), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_pillow_s_png_is_read_alike_or_left_to_pillow(mode):
    smooth = np.add.outer(np.arange(30), np.arange(30)).astype(np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(smooth).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(smooth.astype(np.uint16))
    image.save(stream, "PNG")
    found = read_png(stream.getvalue())
    if found is not None:
        expected = np.asarray(Image.open(io.BytesIO(stream.getvalue()))).reshape(found.shape)
        chex.assert_trees_all_equal(found, expected)
    assert found is None or mode in ("L", "RGB")


def test_every_damaged_byte_is_noticed():
    data = write_png(noise(5, 4, 1))
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        assert read_png(bytes(broken)) is None
        assert read_png(data[:place]) is None


def with_data(raw: bytes, width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("raw", [b"\0" * 3, b"\0" * 10_000_000, b"\1\5\5\5"], ids=len)
def test_too_little_too_much_and_filtered_data_are_left_to_pillow(raw):
    assert read_png(with_data(b"\0\7\7\7", 3, 1)) is not None
    assert read_png(with_data(raw, 3, 1)) is None


def test_what_it_reads_is_resized_like_any_other():
    pixels = noise(20, 30, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=None)
    for size, channels in ((None, None), (8, 1), (8, 3), (40, 3)):
        plain = decode(write_png(pixels), image_size=size, channels=channels)
        usual = decode(pixels, image_size=size, channels=channels)
        chex.assert_trees_all_equal(plain, usual)
