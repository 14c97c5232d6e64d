"""From any Pillow mode to 8-bit grey or RGB.

Grey is the luma of ITU-R BT.601, L = 0.299 R + 0.587 G + 0.114 B.
"""

import numpy as np
from PIL import Image, ImageChops

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


def is_grey(image: Image.Image) -> bool:
    """Whether the mode, or the palette, holds grey values only."""
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def to_8_bit(image: Image.Image, *, channels: int | None) -> Image.Image:
    """Convert to mode L (1 channel) or RGB (3); None keeps grey grey and colour colour.

    Transparency is composited on white. 16-bit values are divided by 257. 32-bit integers that fit
    16 bits count as such; floats within [0, 1] are multiplied by 255, and within [0, 255] taken as
    they are; any other range is stretched to the image's own least and greatest value.
    """
    grey = channels == 1 or (channels is None and is_grey(image))
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
