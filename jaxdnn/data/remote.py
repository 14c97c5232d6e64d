"""Image files in a bucket: any address that etils.epath opens, such as gs:// or s3://."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.files import (
    MAX_FILE_BYTES,
    Files,
    bounded,
    digest,
    is_image_name,
    is_shown,
    is_zip_name,
    not_used,
)
from jaxdnn.data.parallel import map_in_order
from jaxdnn.errors import InputError

_AT_A_TIME = 32  # Answers from afar are waited for, not worked for.


def is_remote(path: str | Path) -> bool:
    """Whether this is an address, such as gs://bucket/photos."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def is_remote_folder(address: str) -> bool:
    """Whether there is a folder there; False for a file.

    Raises:
      InputError: nothing is there, or what opens such addresses is missing.
    """
    with _told(address):
        path = _path(address)
        if path.is_dir():
            return True
        if path.exists():
            return False
    raise InputError(f"--data {address!r} does not exist; check the spelling")


def open_remote(address: str) -> BinaryIO:
    """Open a file to read. Raises InputError."""
    with _told(address):
        return _path(address).open("rb")


def remote_files(root: str, *, max_bytes: int = MAX_FILE_BYTES) -> Files:
    """List the images below a folder that is not on this machine. Raises InputError."""
    with _told(root):
        top = _path(root)
        found = list(_walk(top, ""))
    names = sorted(name for name in found if is_image_name(name))

    def read(index: int) -> bytes:
        try:
            with (top / names[index]).open("rb") as file:
                return bounded(file.read(max_bytes + 1), max_bytes)
        except UnreadableImage:
            raise
        except Exception as error:  # Of a type that depends on who keeps the bucket.
            raise UnreadableImage(f"cannot be read: {error}") from error

    def stamp(name: str) -> str:
        try:
            status = (top / name).stat()
        except Exception as error:
            return f"{name}:{type(error).__name__}"
        return f"{name}:{status.length}:{status.mtime}"

    return Files(
        names=tuple(names),
        set_aside=not_used(found),
        read=read,
        fingerprint=lambda: digest(map_in_order(stamp, names, max_workers=_AT_A_TIME)),
    )


def _path(address: str) -> Any:
    from etils import epath

    return epath.Path(address)


def _walk(folder: Any, prefix: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + path.name
        if is_image_name(name) or is_zip_name(name):  # Asking what it is would be a call for each.
            yield name
        elif is_shown(name) and path.is_dir():
            yield from _walk(path, name + "/")
    if prefix:
        yield prefix


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn whatever goes wrong with an address into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{address!r} cannot be opened: {reason}; expected an address that etils.epath opens; "
            "install what it names, check your rights and the spelling"
        ) from error
