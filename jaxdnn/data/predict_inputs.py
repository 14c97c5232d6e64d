"""Images to predict: any mixture of files, folders and zips, without classes."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxdnn.data.decode import UnreadableImage, decode
from jaxdnn.data.folders import folder_files, read_file
from jaxdnn.data.layout import printable
from jaxdnn.data.parallel import map_in_order
from jaxdnn.data.zips import zip_files
from jaxdnn.errors import InputError

_Item = tuple[str, Callable[[], bytes]]


def read_images(
    paths: Iterable[str | Path],
    *,
    image_size: int,
    channels: int,
    max_workers: int | None = None,
) -> Iterator[tuple[str, np.ndarray | UnreadableImage]]:
    """Decode every image in the given files, folders (all levels) and zips, in order.

    Only a bounded number of images is in memory at a time.

    Args:
      paths: files of any name; below folders and in zips the files named like images are read.
      image_size: side of the decoded squares in pixels.
      channels: 1 or 3.
      max_workers: decoding threads; None for one per processor.

    Yields:
      The path ('archive.zip/inner/name.png' in a zip) with uint8 values [height, width, channel],
      or with the reason why there are none: unreadable, missing, or a folder without images.
    """

    def decoded(item: _Item) -> tuple[str, np.ndarray | UnreadableImage]:
        name, read = item
        try:
            return name, decode(read(), image_size=image_size, channels=channels)
        except UnreadableImage as error:
            return name, error

    items = (item for path in paths for item in _items(Path(path)))
    return map_in_order(decoded, items, max_workers=max_workers)


def _items(path: Path) -> Iterator[_Item]:
    shown = printable(str(path))
    is_folder, is_zip = os.path.isdir(path), path.suffix.lower() == ".zip"
    if not is_folder and not (is_zip and os.path.exists(path)):
        yield shown, lambda: read_file(path)
        return
    try:
        files = folder_files(path) if is_folder else zip_files(path)
    except InputError as error:
        yield shown, _failing(str(error))
        return
    for index, name in enumerate(files.names):
        yield f"{shown.rstrip('/')}/{printable(name)}", lambda index=index: files.read(index)
    if not files.names:
        yield shown, _failing("no images in it")


def _failing(reason: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise UnreadableImage(reason)

    return read
