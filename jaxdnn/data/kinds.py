"""Pictures that are not read: of which kind they are, and what to do about them.

Most kinds are known by the ending of a name, the others by the first bytes of a file.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class OtherKind(NamedTuple):
    """A kind of picture that is not read.

    Attributes:
      name: for people.
      remedy: what to do about files of it.
      suffixes: of its files, in lower case.
      starts: what its files hold, at which byte.
    """

    name: str
    remedy: str
    suffixes: tuple[str, ...]
    starts: tuple[tuple[int, bytes], ...] = ()

    def __str__(self) -> str:
        return f"{self.name} is not read: {self.remedy}"


_CONVERT = "convert to JPEG or PNG"
OTHER_KINDS = (
    OtherKind(
        "HEIC",
        f"{_CONVERT}, in Python with pillow-heif",
        (".heic", ".heif", ".hif"),
        ((4, b"ftyphe"), (4, b"ftypmif1"), (4, b"ftypmsf1")),
    ),
    OtherKind(
        "JPEG 2000",
        _CONVERT,
        (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
        ((0, b"\x00\x00\x00\x0cjP  "), (0, b"\xff\x4f\xff\x51")),
    ),
    OtherKind(
        "JPEG XL",
        f"{_CONVERT}, in Python with pillow-jxl-plugin",
        (".jxl",),
        ((0, b"\x00\x00\x00\x0cJXL "), (0, b"\xff\x0a")),
    ),
    OtherKind(
        "a camera's raw format",
        f"{_CONVERT}, in Python with rawpy",
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"),
        ((0, b"FUJIFILMCCD"), (4, b"ftypcrx")),
    ),
    OtherKind("DICOM", f"{_CONVERT}, in Python with pydicom", (".dcm",), ((128, b"DICM"),)),
    OtherKind("Photoshop's format", _CONVERT, (".psd", ".psb"), ((0, b"8BPS"),)),
    OtherKind("OpenEXR or Radiance", _CONVERT, (".exr", ".hdr"), ((0, b"\x76\x2f\x31\x01"),)),
    OtherKind(
        "a drawing",
        "export as PNG",
        (".svg", ".svgz", ".eps", ".ai", ".pdf", ".wmf", ".emf", ".xcf"),
        ((0, b"<svg"), (0, b"%!PS"), (0, b"%PDF")),
    ),
    OtherKind(
        "an icon or texture",
        _CONVERT,
        (".ico", ".icns", ".cur", ".tga", ".pcx", ".dds", ".sgi", ".xbm", ".xpm"),
        ((0, b"\x00\x00\x01\x00"), (0, b"DDS "), (0, b"icns")),
    ),
    OtherKind("an array", "save as PNG", (".npy", ".npz", ".mat"), ((0, b"\x93NUMPY"),)),
    OtherKind(
        "a video",
        "save its frames as images",
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".mpg", ".mpeg"),
        ((4, b"ftypisom"), (4, b"ftypmp4"), (4, b"ftypqt"), (8, b"AVI ")),
    ),
)

START_BYTES = 256
"""Enough of a file for `other_kind` and `known_format`."""

_STARTS = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF8"),
    ("BMP", 6, b"\x00\x00\x00\x00"),
    ("TIFF", 0, b"II*\x00"),
    ("TIFF", 0, b"MM\x00*"),
    ("WEBP", 8, b"WEBPVP8"),
    ("AVIF", 4, b"ftypavi"),
)


def other_kind(start: bytes) -> OtherKind | None:
    """Return of which kind a picture is that is not read, by its first bytes."""
    return next(
        (
            kind
            for kind in OTHER_KINDS
            if any(start.startswith(found, at) for at, found in kind.starts)
        ),
        None,
    )


def known_format(start: bytes) -> str | None:
    """Return in which format a picture is that is read, by its first bytes."""
    found = (name for name, at, magic in _STARTS if start.startswith(magic, at))
    name = next(found, None)
    return None if name == "BMP" and not start.startswith(b"BM") else name


_OTHER_SUFFIXES = {suffix: kind for kind in OTHER_KINDS for suffix in kind.suffixes}
_SUFFIX_OF = {
    **{"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp"},
    **{"TIFF": ".tif", "WEBP": ".webp", "AVIF": ".avif"},
}
# Endings of which some files are opened, and how many of each.
_MOST_OPENED, _MOST_EXAMPLES = 20, 5


def by_kind(
    names: Iterable[str], start: Callable[[str], bytes]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return an entry for each ending of files that hold pictures, and one for all others."""
    by_suffix: dict[str, list[str]] = {}
    for name in sorted(names):
        by_suffix.setdefault(os.path.splitext(name)[1].lower(), []).append(name)
    commonest = sorted(by_suffix.items(), key=lambda entry: -len(entry[1]))
    pictures, others = [], []
    for place, (suffix, found) in enumerate(commonest):
        kind, example = _OTHER_SUFFIXES.get(suffix), found[0]
        reason = str(kind) if kind else ""
        if not kind and place < _MOST_OPENED:
            reason, example = _opened_kind(found, start)
        if reason:
            shown = f"{len(found):,}, such as {example}: {reason}"
            pictures.append((f"*{suffix}" if suffix else "files without an ending", shown))
        else:
            others.append((suffix, found))
    if not others:
        return pictures, []
    num = sum(len(found) for _, found in others)
    endings = ", ".join(f"{suffix or 'none'} {len(found):,}" for suffix, found in others[:5])
    more = f", … {len(others) - 5:,} more" if len(others) > 5 else ""
    example = others[0][1][0]
    reason = f"{num:,} that are no images, by ending: {endings}{more}; such as {example}"
    return pictures, [("other files", reason)]


def _opened_kind(names: Sequence[str], start: Callable[[str], bytes]) -> tuple[str, str]:
    """Look into some files of one ending: why pictures are not read, and which; '' if none is."""
    for name in names[:: max(1, len(names) // _MOST_EXAMPLES)]:
        data = start(name)
        if found := known_format(data):
            return f"{found} by another name: rename to *{_SUFFIX_OF[found]}", name
        if kind := other_kind(data):
            return str(kind), name
    return "", names[0]
