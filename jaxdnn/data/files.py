"""Image files below one root, by name, wherever the root is."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdnn.data.decode import UnreadableImage

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif")
IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_OTHER_SUFFIXES})
MAX_FILE_BYTES = 256 * 2**20
"""Larger files and archive members are not read: no photograph is, a zip bomb may be."""


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
    return is_shown(name) and suffix.lower() in IMAGE_SUFFIXES


def is_zip_name(name: str) -> bool:
    """Whether a relative path ends like a zip archive and is not hidden."""
    return name.lower().endswith(".zip") and not name.rpartition("/")[2].startswith(".")


def is_shown(name: str) -> bool:
    """Whether no part of a relative path is hidden or made by a system for itself."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def not_used(found: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Name the zips, and the folders (ending in "/") that hold no image on any level."""
    images = [name for name in found if is_image_name(name)]
    used = {name[: end + 1] for name in images for end, c in enumerate(name) if c == "/"}
    empty = (name for name in found if name.endswith("/") and name not in used)
    zips = (name for name in found if is_zip_name(name))
    return (
        *((name, "a folder without images") for name in sorted(empty)),
        *((name, "a zip inside is not opened: unpack it") for name in sorted(zips)),
    )


def bounded(data: bytes, max_bytes: int) -> bytes:
    """Return the data. Raises UnreadableImage where it is longer than that."""
    if len(data) > max_bytes:
        raise UnreadableImage(f"more than the {max_bytes:,} bytes allowed")
    return data


def digest(parts: Iterable[str]) -> str:
    """Return a hash of texts in their order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(os.fsencode(part) + b"\0")
    return total.hexdigest()


def stamp(path: str | Path) -> str:
    """Return size, time of change and mode of a local file, or why there are none."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_mode:o}"
