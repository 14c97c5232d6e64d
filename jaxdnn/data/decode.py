"""One encoded image to 8-bit values: upright, on white, resized and cropped to a square.

Grey is the luma of ITU-R BT.601, L = 0.299 R + 0.587 G + 0.114 B.

A PNG of 8-bit grey or RGB that consists of one header, one block of data and an end, whose rows are
stored as they are (filter 0), is one zlib stream and a reshape. Prepared data sets hold their small
images so: a general reader spends most of its time on one before the first pixel, and any reader
reads it.

References:
  Portable Network Graphics (PNG) Specification (W3C, 2003), sections 5, 9 and 11.
"""

import contextlib
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, UnidentifiedImageError

from jaxdnn.data.kinds import other_kind
from jaxdnn.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest width x height that is decoded (400 MB in Pillow's memory)."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_DRAFT_MARGIN = 2  # Nearer to the target, photographs differ visibly from a full decoding.
Resampling = Literal["bilinear", "bicubic"]
"""How pixels are weighed where an image is resized; both antialiased where it becomes smaller."""

_FILTERS: dict[Resampling, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")

_TOO_DARK = (
    "16 bits, but no value above 255: black at that depth; if the values are meant for 8 bits, "
    "save it with 8 bits"
)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = _SIGNATURE + struct.pack(">I", 13) + b"IHDR"
_DATA_AT = len(_START) + 13 + 4
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_CHANNELS = {0: 1, 2: 3}
_COLOUR_TYPES = {1: 0, 3: 2}

_PILLOW = r"PIL\."
_lock = threading.Lock()
_users = 0
_level = logging.NOTSET

Stored = bytes | UInt8[np.ndarray, "stored_height stored_width stored_channel"]
"""One image as it is kept: encoded, or decoded already."""


class UnreadableImage(InputError):
    """One image that cannot be used; the message is the reason, in words."""


class ReadFailed(UnreadableImage):
    """The machine failed, such as for want of memory; that says nothing about the image."""


class Header(NamedTuple):
    """What an image says of itself before its pixels are decoded; size and mode are as stored.

    Attributes:
      note: what is odd about its values, and what to do; only known once it is decoded.
    """

    width: int
    height: int
    is_grey: bool
    mode: str
    note: str = ""


DECODING = "1"
"""To be changed whenever `decode` gives other pixels: what was decoded before is then not used."""


def decode(
    item: Stored,
    *,
    image_size: int | None,
    channels: int | None,
    resampling: Resampling = "bilinear",
) -> tuple[UInt8[np.ndarray, "height width channel"], Header]:
    """Decode the first frame of one image.

    The image is turned upright by its EXIF orientation, its shorter side is resized to
    `image_size` pixels (antialiased) and the square in the middle is kept. A JPEG much larger than
    that is decoded at a reduced scale, of at least twice the size.

    Transparency is composited on white. 16-bit values are divided by 257. 32-bit integers that fit
    16 bits count as such. Where none is above 255 that makes the image black, which is noted.
    Floats within [0, 1] are multiplied by 255, and within [0, 255] taken as they are; any other
    range is stretched to the image's own least and greatest value.

    Args:
      item: an encoded file, or an array that is already decoded (1 or 3 channels), which is
        returned itself if nothing is to be done.
      image_size: side of the square in pixels; None keeps the image's own height and width.
      channels: 1 for grey (BT.601 luma), 3 for RGB; None keeps grey grey and colour colour.
      resampling: how it is resized.

    Returns:
      The pixels, and what `read_header` would say, with a note where there is one.

    Raises:
      UnreadableImage: the bytes are no image, damaged, incomplete or of more than MAX_PIXELS, which
        is known from the header, before any memory is taken.
    """
    array = item if isinstance(item, np.ndarray) else read_png(item)
    if array is not None:
        header = _header_of(array)
        if array.shape == (image_size, image_size, channels):
            return array, header
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        return _square(picture, image_size, channels, resampling), header
    assert isinstance(item, bytes)
    with _opened(item) as image:
        header = Header(*image.size, _is_grey(image), image.mode)
        if image_size is not None:
            reduced = (image_size * _DRAFT_MARGIN, image_size * _DRAFT_MARGIN)
            image.draft("L" if channels == 1 else None, reduced)
        image.load()
        header = header._replace(note=_note(image))
        return _square(image, image_size, channels, resampling), header


def read_header(item: Stored) -> Header:
    """Read the header only. Raises UnreadableImage like `decode`."""
    if isinstance(item, np.ndarray):
        return _header_of(item)
    with _opened(item) as image:
        return Header(*image.size, _is_grey(image), image.mode)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong with it into UnreadableImage."""
    try:
        if not data:
            raise UnreadableImage("the file is empty")
        with _quiet_pillow(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels"
                raise UnreadableImage(f"{size} are more than the {MAX_PIXELS:,} allowed")
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        kind = other_kind(data)
        raise UnreadableImage(
            str(kind)
            if kind
            else f"not an image of a known format ({', '.join(FORMATS)}), or damaged at its start"
        ) from error
    except Image.DecompressionBombError as error:
        numbers = re.findall(r"\d+", str(error))  # The error does not hold them otherwise.
        found = f"{int(numbers[0]):,} pixels" if numbers else "its pixels"
        raise UnreadableImage(f"{found} are more than the {MAX_PIXELS:,} allowed") from error
    except MemoryError as error:
        raise ReadFailed("not enough memory to decode it") from error
    except Exception as error:  # Pillow meets damaged bytes with errors of every type.
        reason = error or type(error).__name__
        raise UnreadableImage(f"damaged or incomplete: {reason}") from error


def _header_of(array: np.ndarray) -> Header:
    mode = "L" if array.shape[2] == 1 else "RGB"
    return Header(array.shape[1], array.shape[0], mode == "L", mode)


def _note(image: Image.Image) -> str:
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return ""
    values = np.asarray(image)
    return _TOO_DARK if values.min() >= 0 and 0 < values.max() <= 255 else ""


def _square(
    image: Image.Image, image_size: int | None, channels: int | None, resampling: Resampling
) -> UInt8[np.ndarray, "height width channel"]:
    turn = _UPRIGHT.get(_orientation(image))
    image = _to_8_bit(image, channels=channels)
    if turn is not None:
        image = image.transpose(turn)
    if image_size is not None and image.size != (image_size, image_size):
        image = _fit(image, image_size, _FILTERS[resampling])
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Damaged EXIF says nothing against the pixels.
        return 1


def _fit(image: Image.Image, image_size: int, weighting: Image.Resampling) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), weighting, box=box)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _to_8_bit(image: Image.Image, *, channels: int | None) -> Image.Image:
    grey = channels == 1 or (channels is None and _is_grey(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_scale_deep(np.asarray(image)))
    if image.mode == "CMYK" and _is_plain_cmyk_jpeg(image):
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        image = _on_white(image)
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _scale_deep(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        return _scale_floats(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        return _stretch(values)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _scale_floats(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 255:
        return _stretch(values)
    return np.rint(values * 255 if values.max() <= 1 else values).astype(np.uint8)


def _stretch(values: np.ndarray) -> np.ndarray:
    least, greatest = float(values.min()), float(values.max())
    unit = (values.astype(np.float64) - least) / max(greatest - least, 1e-300)
    return np.rint(unit * 255).astype(np.uint8)


def _is_plain_cmyk_jpeg(image: Image.Image) -> bool:
    # Pillow inverts every CMYK JPEG, but only those with Adobe's marker are stored inverted.
    return image.format in ("JPEG", "MPO") and "adobe" not in image.info


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


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


def read_png(data: bytes) -> UInt8[np.ndarray, "height width channel"] | None:
    """Decode such a PNG; None for every other, damaged and too large ones among them."""
    if not data.startswith(_START) or not data.endswith(_END) or len(data) < _DATA_AT + 24:
        return None
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    length, kind = struct.unpack_from(">I4s", data, _DATA_AT)
    end = _DATA_AT + 8 + length
    channels = _CHANNELS.get(colour)
    is_plain = depth == 8 and channels and not any(methods) and kind == b"IDAT"
    if not is_plain or end + 4 + len(_END) != len(data) or not 0 < width * height <= MAX_PIXELS:
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


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    # `warnings.catch_warnings` saves and restores the whole list of filters, so that two threads
    # that overlap restore each other's; here one filter is added by the first thread to come and
    # removed by the last to go.
    global _users, _level
    logger = logging.getLogger("PIL")
    with _lock:
        _users += 1
        if _users == 1:
            warnings.filterwarnings("ignore", module=_PILLOW)
            _level = logger.level
            logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                logger.setLevel(_level)
                filters = cast(list[Any], warnings.filters)
                filters[:] = [entry for entry in filters if not _is_ours(entry)]


def _is_ours(entry: Any) -> bool:
    module = entry[3]
    return module is not None and getattr(module, "pattern", module) == _PILLOW
