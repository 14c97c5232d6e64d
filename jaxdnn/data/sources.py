"""Where images come from: the embedded silhouettes, a folder, a zip, a prepared TFDS data set."""

from pathlib import Path

import numpy as np

from jaxdnn.data.files import Files
from jaxdnn.data.folders import folder_files
from jaxdnn.data.layout import class_layout, printable
from jaxdnn.data.prepared import prepared_below, tfds, tfds_folder
from jaxdnn.data.remote import is_remote, is_remote_folder, remote_files
from jaxdnn.data.silhouettes import silhouettes
from jaxdnn.data.source import Source
from jaxdnn.data.zips import zip_files
from jaxdnn.errors import InputError

__all__ = ["Source", "image_folder", "image_zip", "open_source", "silhouettes", "tfds"]

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
    return _labelled(files, f"folder {str(path)!r}", path)


def image_zip(path: str | Path) -> Source:
    """Open a zip archive laid out as {split}/{class}/… or {class}/… Raises InputError."""
    return _labelled(zip_files(path), f"zip {str(path)!r}", path)


def _labelled(files: Files, origin: str, home: str | Path) -> Source:
    layout = class_layout(files.names, origin=origin)
    class_names = tuple(sorted({file.class_name for file in layout.files}))
    if len(class_names) < 2:
        raise InputError(
            f"one class only ({class_names[0]!r}) in {origin}; expected a folder of images for "
            "each of two or more classes; add the others"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    indices = [file.index for file in layout.files]
    return Source(
        name=origin,
        class_names=class_names,
        item_names=[printable(files.names[index]) for index in indices],
        labels=np.array([label_of[file.class_name] for file in layout.files], np.int32),
        splits=np.array([file.split for file in layout.files], dtype="U10"),
        read=lambda item: files.read(indices[item]),
        outside=tuple(printable(files.names[index]) for index in layout.outside),
        set_aside=tuple((printable(name), reason) for name, reason in files.set_aside),
        home=str(home) if is_remote(home) else Path(home),
        fingerprint=files.fingerprint,
    )
