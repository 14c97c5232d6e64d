"""One encoded image to 8-bit values: upright, on white, resized and cropped to a square."""

import io
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from jaxdnn.data.pixels import is_grey, to_8_bit
from jaxdnn.data.plain_png import read_png
from jaxdnn.data.quiet import quiet_pillow
from jaxdnn.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest width x height that is decoded by default (400 MB in Pillow's memory)."""

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


Stored = bytes | UInt8[np.ndarray, "stored_height stored_width stored_channel"]
"""One image as it is kept: encoded, or decoded already."""


class UnreadableImage(InputError):
    """One image that cannot be used; the message is the reason, in words."""


class Header(NamedTuple):
    """What an image says of itself before its pixels are decoded; size and mode are as stored."""

    width: int
    height: int
    is_grey: bool
    mode: str


def decode(
    item: Stored,
    *,
    image_size: int | None,
    channels: int | None,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "height width channel"]:
    """Decode the first frame of one image.

    The image is turned upright by its EXIF orientation, its shorter side is resized to
    `image_size` pixels (antialiased) and the square in the middle is kept. A JPEG much larger than
    that is decoded at a reduced scale, of at least twice the size.

    Args:
      item: an encoded file, or an array that is already decoded (1 or 3 channels), which is
        returned itself if nothing is to be done.
      image_size: side of the square in pixels; None keeps the image's own height and width.
      channels: 1 for grey (BT.601 luma), 3 for RGB; None keeps grey grey and colour colour.
      max_pixels: larger images are refused from their header, before any memory is taken.

    Raises:
      UnreadableImage: the bytes are no image, damaged, incomplete or too large.
    """
    options = {"image_size": image_size, "channels": channels, "max_pixels": max_pixels}
    return decode_and_look(item, **options)[0]


def decode_and_look(
    item: Stored, *, image_size: int | None, channels: int | None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "height width channel"], Header]:
    """Decode like `decode`, and say what `look` would."""
    array = item if isinstance(item, np.ndarray) else read_png(item, max_pixels=max_pixels)
    if array is not None:
        header = _header_of(array)
        if array.shape == (image_size, image_size, channels):
            return array, header
        return _finish(_from_array(array), image_size, channels), header
    assert isinstance(item, bytes)
    try:
        with quiet_pillow(), _open(item, max_pixels) as image:
            header = Header(*image.size, is_grey(image), image.mode)
            if image_size is not None:
                reduced = (image_size * _DRAFT_MARGIN, image_size * _DRAFT_MARGIN)
                image.draft("L" if channels == 1 else None, reduced)
            image.load()
            return _finish(image, image_size, channels), header
    except Exception as error:
        raise _unreadable(error) from error


def look(item: Stored, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header only. Raises UnreadableImage like `decode`."""
    if isinstance(item, np.ndarray):
        return _header_of(item)
    try:
        with quiet_pillow(), _open(item, max_pixels) as image:
            return Header(*image.size, is_grey(image), image.mode)
    except Exception as error:
        raise _unreadable(error) from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise UnreadableImage("the file is empty")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise UnreadableImage(f"{size} are more than the {max_pixels:,} allowed")
    return image


def _header_of(array: np.ndarray) -> Header:
    mode = "L" if array.shape[2] == 1 else "RGB"
    return Header(array.shape[1], array.shape[0], mode == "L", mode)


def _from_array(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _finish(
    image: Image.Image, image_size: int | None, channels: int | None
) -> UInt8[np.ndarray, "height width channel"]:
    turn = _UPRIGHT.get(_orientation(image))
    image = to_8_bit(image, channels=channels)
    if turn is not None:
        image = image.transpose(turn)
    if image_size is not None and image.size != (image_size, image_size):
        image = _fit(image, image_size)
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Damaged EXIF says nothing against the pixels.
        return 1


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)


def _too_large(pillow_says: str) -> str:
    numbers = re.findall(r"\d+", pillow_says)  # Its error does not hold them otherwise.
    found = f"{int(numbers[0]):,} pixels" if numbers else "its pixels"
    return f"{found} are more than the {MAX_PIXELS:,} allowed"


def _unreadable(error: Exception) -> UnreadableImage:
    # Pillow meets damaged bytes with errors of every type, so that all of them are taken here.
    if isinstance(error, UnreadableImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImage(
            f"not an image of a known format ({', '.join(FORMATS)}), or damaged at its start"
        )
    if isinstance(error, Image.DecompressionBombError):
        return UnreadableImage(_too_large(str(error)))
    return UnreadableImage(f"damaged or incomplete: {error or type(error).__name__}")
