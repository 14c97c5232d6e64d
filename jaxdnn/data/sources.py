"""Where images come from: the embedded silhouettes, a folder, a zip, a prepared TFDS data set."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxdnn.data.decode import Resampling, UnreadableImage, decode
from jaxdnn.data.files import (
    digest,
    folder_files,
    is_remote,
    is_remote_folder,
    read_file,
    remote_files,
)
from jaxdnn.data.layout import labelled_source
from jaxdnn.data.reader import map_in_order
from jaxdnn.data.silhouettes import silhouettes
from jaxdnn.data.source import Source
from jaxdnn.data.splits import train_validation_test
from jaxdnn.data.tfds_sets import prepared_below, tfds, tfds_folder
from jaxdnn.data.zips import zip_files
from jaxdnn.errors import InputError
from jaxdnn.names import printable

_TFDS = "tfds:"


def open_source(data: str, data_dir: str | None = None, *, progress: bool = False) -> Source:
    """Open images by what names them.

    Args:
      data: 'silhouettes', 'tfds:NAME[/CONFIG][:VERSION]', a folder of images or of a prepared data
        set, or a .zip file; folder and zip also by an address that etils.epath opens.
      data_dir: the folder of prepared TFDS data sets; None for TFDS's own default.
      progress: show a bar on stderr if it takes more than two seconds.

    Raises:
      InputError: nothing of that name, or it cannot be used.
    """
    if data.startswith(_TFDS):
        return tfds(data.removeprefix(_TFDS), data_dir, progress=progress)
    if data_dir is not None:
        raise InputError(
            f"--data-dir {data_dir!r} came with --data {data!r}; expected it with tfds:NAME only; "
            "leave it out"
        )
    if data == "silhouettes":
        return silhouettes()
    if is_remote(data):
        return image_folder(data) if is_remote_folder(data) else image_zip(data)
    path = Path(data).expanduser()
    if path.is_dir():
        prepared = prepared_below(path)
        return tfds_folder(prepared, progress=progress) if prepared else image_folder(path)
    if path.is_file():
        return image_zip(path)
    raise InputError(
        f"--data {data!r} does not exist; expected silhouettes, tfds:NAME, a folder of images or a "
        ".zip file; check the spelling"
    )


def image_folder(path: str | Path) -> Source:
    """Open a folder laid out as {split}/{class}/… or {class}/… Raises InputError."""
    files = remote_files(str(path)) if is_remote(path) else folder_files(path)
    return labelled_source(files, name=f"folder {str(path)!r}", home=path)


def image_zip(path: str | Path) -> Source:
    """Open a zip archive laid out as {split}/{class}/… or {class}/… Raises InputError."""
    return labelled_source(zip_files(path), name=f"zip {str(path)!r}", home=path)


def combine(
    sources: Sequence[Source], *, validation_fraction: float, test_fraction: float, seed: int
) -> Source:
    """Put the items of sources one after the other; classes of one name are one class.

    Every source has the parts that are drawn for it alone: what has no test in one of them would
    never be tested.

    Raises:
      InputError: a source has no training images, or too few of a class to draw from.
    """
    splits = []
    for source in sources:
        parts = train_validation_test(
            source, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed
        )
        splits.append(np.array(source.splits, dtype="U10"))
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            splits[-1][part] = name
    class_names = tuple(dict.fromkeys(name for each in sources for name in each.class_names))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [
        np.array([label_of[name] for name in each.class_names], np.int32)[each.labels]
        for each in sources
    ]
    ends = np.cumsum([len(each.labels) for each in sources])

    def read(item: int) -> bytes | np.ndarray:
        number = int(np.searchsorted(ends, item, side="right"))
        source = sources[number]
        return source.read(item - int(ends[number]) + len(source.labels))

    return Source(
        name=" and ".join(each.name for each in sources),
        class_names=class_names,
        item_names=[f"{each.name}: {name}" for each in sources for name in each.item_names],
        labels=np.concatenate(labels),
        splits=np.concatenate(splits),
        read=read,
        item_shape=tuple(
            sides[0] if len(set(sides)) == 1 else None
            for sides in zip(*(each.item_shape for each in sources), strict=True)
        ),
        unlabelled=tuple(f"{each.name}: {name}" for each in sources for name in each.unlabelled),
        ignored=tuple(
            (f"{each.name}: {name}", reason) for each in sources for name, reason in each.ignored
        ),
        default_positive=sources[0].default_positive,
        home=sources[0].home,
        fingerprint=lambda: digest(each.fingerprint() + each.name for each in sources),
    )


# A name, and what reads its file, or why nothing can.
_Found = tuple[str, Callable[[], bytes] | UnreadableImage]


def read_images(
    paths: Iterable[str | Path],
    *,
    image_size: int,
    channels: int,
    resampling: Resampling = "bilinear",
) -> Iterator[tuple[str, np.ndarray | UnreadableImage]]:
    """Decode every image in the given files, folders (all levels) and zips, in order.

    Only a bounded number of images is in memory at a time.

    Args:
      paths: files of any name; below folders and in zips the files named like images are read.
      image_size: side of the decoded squares in pixels.
      channels: 1 or 3.
      resampling: how images are resized.

    Yields:
      The path ('archive.zip/inner/name.png' in a zip) with uint8 values [height, width, channel],
      or with the reason why there are none: unreadable, missing, a folder without images, or, for
      each kind, images that are not read.
    """

    def decoded(item: _Found) -> tuple[str, np.ndarray | UnreadableImage]:
        name, read = item
        if isinstance(read, UnreadableImage):
            return name, read
        try:
            pixels, _ = decode(
                read(), image_size=image_size, channels=channels, resampling=resampling
            )
            return name, pixels
        except UnreadableImage as error:
            return name, error

    items = (item for path in paths for item in _files_of(Path(path)))
    return map_in_order(decoded, items)


def _files_of(path: Path) -> Iterator[_Found]:
    shown = printable(str(path))
    is_folder, is_zip = os.path.isdir(path), path.suffix.lower() == ".zip"
    if not is_folder and not (is_zip and os.path.exists(path)):
        yield shown, lambda: read_file(path)
        return
    try:
        files = folder_files(path) if is_folder else zip_files(path)
    except InputError as error:
        yield shown, UnreadableImage(str(error))
        return
    for index, name in enumerate(files.names):
        yield f"{shown.rstrip('/')}/{printable(name)}", lambda index=index: files.read(index)
    for name, reason in files.ignored:
        yield f"{shown.rstrip('/')}/{printable(name)}", UnreadableImage(printable(reason))
    if not files.names and not files.ignored:
        yield shown, UnreadableImage("no images in it")
