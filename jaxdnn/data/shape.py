"""What size and how many channels images are given when nobody says."""

from collections.abc import Iterable, Iterator

from jaxdnn.data.decode import Header, UnreadableImage, look
from jaxdnn.data.parallel import chunks_of, map_in_order
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError

DEFAULT_IMAGE_SIZE = 64
"""Side in pixels for images that are not all of one size."""

LARGEST_OWN_SIZE = 227
"""Largest side in pixels that is kept when all images are squares of one size."""


def choose_shape(
    source: Source, *, image_size: int | None, channels: int | None, max_workers: int | None
) -> tuple[int, int]:
    """Choose what was left open, image size or channels, from the images' headers.

    Images that are all squares of one size, of at most LARGEST_OWN_SIZE pixels, keep it; otherwise
    they are made DEFAULT_IMAGE_SIZE. One channel if all are grey, otherwise three. Headers are
    read until both are decided: the first photographs decide.

    Returns:
      Image size in pixels, and channels.

    Raises:
      InputError: an image size below 1, or channels other than 1 and 3.
    """
    if image_size is not None and image_size < 1:
        raise InputError(
            f"--image-size {image_size}; expected 1 pixel or more; choose a larger one"
        )
    if channels not in (None, 1, 3):
        raise InputError(f"--channels {channels}; expected 1 (grey) or 3 (colour); choose one")
    height, width, depth = source.item_shape
    if channels is None and depth is not None:
        channels = 1 if depth == 1 else 3
    if image_size is not None and channels is not None:
        return image_size, channels
    if channels is not None and height is not None and width is not None:
        headers = iter([Header(width, height, channels == 1, "L" if channels == 1 else "RGB")])
    else:
        headers = _headers(source, max_workers)
    own_size, all_grey = _common(headers, image_size is None, channels is None)
    return image_size or own_size or DEFAULT_IMAGE_SIZE, channels or (1 if all_grey else 3)


def _common(
    headers: Iterable[Header], wants_size: bool, wants_grey: bool
) -> tuple[int | None, bool]:
    sides: set[int] = set()
    all_grey = True
    for header in headers:
        sides |= {header.width, header.height}
        all_grey = all_grey and header.is_grey
        if not (wants_size and _own_size(sides)) and not (wants_grey and all_grey):
            break
    return _own_size(sides), all_grey


def _own_size(sides: set[int]) -> int | None:
    side = max(sides, default=LARGEST_OWN_SIZE + 1)
    return side if len(sides) == 1 and side <= LARGEST_OWN_SIZE else None


def _headers(source: Source, max_workers: int | None) -> Iterator[Header]:
    def headers(places: range) -> list[Header]:
        return [header for place in places if (header := header_of(place))]

    def header_of(index: int) -> Header | None:
        try:
            return look(source.read(index))
        except UnreadableImage:
            return None

    chunks = chunks_of(len(source.labels))
    for found in map_in_order(headers, chunks, max_workers=max_workers):
        yield from found
