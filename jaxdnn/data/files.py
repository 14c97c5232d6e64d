"""Image files below one root, a folder or a bucket: found, and read.

A bucket is any address that etils.epath opens, such as gs:// or s3://. Errors of the machine are
not properties of a file: what failed so is tried again, and told apart.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from jaxdnn.data.decode import ReadFailed, UnreadableImage
from jaxdnn.data.kinds import START_BYTES, by_kind
from jaxdnn.data.reader import map_in_order
from jaxdnn.errors import InputError

Result = TypeVar("Result")

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif")
_IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, *_NETPBM_SUFFIXES, *_OTHER_SUFFIXES})
MOST_FOLDERS = 3
"""Folders that are named one by one."""
MAX_FILE_BYTES = 256 * 2**20
"""Larger files and archive members are not read: no photograph is, a zip bomb may be."""

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "EINTR", "EBUSY", "EIO", "EREMOTEIO"),
        *("ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ENETRESET", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED"),
    )
    if hasattr(errno, name)
)
_WAIT_SECONDS = (0.05, 0.2, 1.0)
_REFUSED = (400, 401, 403, 404, 410)
AGAIN = "see to the machine, and try again"
"""What to do about an error that passes."""
_DEEPEST = 200  # Folders in folders: Python calls itself for each.

_AT_A_TIME = 32  # Answers from afar are waited for, not worked for.


@dataclass(frozen=True)
class Files:
    """Image files below one root.

    Attributes:
      names: paths relative to the root with "/" between the parts, sorted.
      read: the bytes of the file at that place in `names`; thread-safe; raises UnreadableImage.
      fingerprint: returns a hash of names, sizes and times of change, in a zip of checksums.
      ignored: what is or may hold images and is not read, with the reason; of files one entry for
        each kind.
      others: what else is there, likewise.
    """

    names: tuple[str, ...]
    read: Callable[[int], bytes]
    fingerprint: Callable[[], str]
    ignored: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()


def list_files(
    found: Iterable[str],
    *,
    read: Callable[[str], bytes],
    start: Callable[[str], bytes],
    stamp: Callable[[str], str],
    ignored: Sequence[tuple[str, str]] = (),
    map_stamps: Callable[..., Iterable[str]] = map,
) -> Files:
    """Choose the images among what was found, and name what only looks like some.

    Args:
      found: relative paths of files, and of folders with "/" at the end.
      read: the bytes of a file; thread-safe; raises UnreadableImage.
      start: the first START_BYTES bytes of a file, or what can be read of them.
      stamp: another text for every change of a file.
      ignored: what else was found, with the reason.
      map_stamps: stands for `map` where stamps come from afar.
    """
    found = [name for name in found if is_shown(name)]
    names = tuple(sorted(filter(_is_image, found)))
    zips = sorted(filter(_is_zip, found))
    rest = [name for name in found if not (_is_image(name) or _is_zip(name))]
    pictures, others = by_kind([name for name in rest if not name.endswith("/")], start)
    return Files(
        names=names,
        read=lambda index: read(names[index]),
        fingerprint=lambda: digest(
            map(":".join, zip(names, map_stamps(stamp, names), strict=True))
        ),
        ignored=(
            *ignored,
            *pictures,
            *((name, "a zip inside is not opened: unpack it") for name in zips),
        ),
        others=(*_empty([name for name in rest if name.endswith("/")], names), *others),
    )


def _empty(folders: Iterable[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """Name the folders without images; many of them in one entry, not to hide the rest."""
    used = {name[: end + 1] for name in names for end, c in enumerate(name) if c == "/"}
    empty = sorted(folder for folder in folders if folder not in used)
    if len(empty) <= MOST_FOLDERS:
        return [(folder, "a folder without images that are read") for folder in empty]
    reason = f"without images that are read, such as {', '.join(empty[:MOST_FOLDERS])}"
    return [(f"{len(empty):,} folders", reason)]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES and is_shown(name)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip") and not name.rpartition("/")[2].startswith(".")


def is_shown(name: str) -> bool:
    """Whether no part of a relative path is hidden or made by a system for itself."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


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


def _stamp(path: str | Path) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_mode:o}"


def is_passing(error: BaseException) -> bool:
    """Whether an error is the machine's, for now, and says nothing about what was to be read."""
    if isinstance(error, MemoryError | TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def patiently(act: Callable[[], Result], *, passing: Callable[..., bool] = is_passing) -> Result:
    """Return what `act` gives; where the machine fails, after some more attempts.

    Raises:
      Exception: the last of those of `act`.
    """
    for seconds in _WAIT_SECONDS:
        try:
            return act()
        except Exception as error:
            if not passing(error):
                raise
        time.sleep(seconds)
    return act()


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file of bounded size. Raises UnreadableImage with the reason."""
    return _read_stamped(path, max_bytes)[0]


def _read_stamped(path: str | Path, max_bytes: int) -> tuple[bytes, int]:
    """Read a whole file; with a number that changes with its size and its time of change."""

    def read() -> tuple[bytes, int]:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
            status = os.fstat(file.fileno())
        return bounded(data, max_bytes), hash((status.st_size, status.st_mtime_ns)) or 1

    try:
        return patiently(read)
    except (OSError, MemoryError) as error:
        raise unreadable(error) from error


def unreadable(error: Exception, where: str = "cannot be read") -> UnreadableImage:
    """Return the exception for an image that could not be read."""
    kind = ReadFailed if is_passing(error) else UnreadableImage
    said = error.strerror if isinstance(error, OSError) else None
    return kind(f"{where}: {said or str(error) or type(error).__name__}")


def _steady(
    read: Callable[[str], tuple[bytes, int]], names: Sequence[str]
) -> Callable[[int], bytes]:
    """Return what reads the file at a place in `names`, as long as it stays what it was at first.

    What a run trains with must not change while it does.

    Args:
      read: a file's bytes, and a number, not 0, that changes with them.
      names: of all files.
    """
    seen = np.zeros(len(names), np.int64)

    def read_again(index: int) -> bytes:
        data, stamp = read(names[index])
        if seen[index] not in (0, stamp):
            raise ReadFailed("it has changed since it was first read")
        seen[index] = stamp
        return data

    return read_again


def _read_start(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(START_BYTES)
    except OSError:  # It is not read in any case.
        return b""


def folder_files(root: str | Path) -> Files:
    """List the images below a folder; linked folders are followed, each folder once.

    A folder inside that cannot be listed is ignored. A file that is read again and has changed in
    between cannot be read any more.

    Raises:
      InputError: the folder itself cannot be listed.
    """
    closed: list[tuple[str, str]] = []
    files = list_files(
        _walk(str(root), "", set(), closed),
        read=lambda name: read_file(os.path.join(root, name)),
        start=lambda name: _read_start(os.path.join(root, name)),
        stamp=lambda name: _stamp(os.path.join(root, name)),
        ignored=closed,
    )
    return dataclasses.replace(
        files,
        read=_steady(
            lambda name: _read_stamped(os.path.join(root, name), MAX_FILE_BYTES), files.names
        ),
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of the files right in a folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return digest(f"{name}:{_stamp(folder / name)}" for name in names)


def _walk(
    folder: str, prefix: str, visited: set[tuple[int, int]], closed: list[tuple[str, str]]
) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = patiently(lambda: sorted(os.scandir(folder), key=lambda entry: entry.name))
    except OSError as error:
        if prefix and not is_passing(error):
            closed.append((prefix, f"a folder that cannot be listed: {error.strerror}"))
            return
        remedy = "change its permissions or choose another"
        raise InputError(
            f"cannot list folder {folder!r}: {error.strerror}; expected a readable folder; "
            f"{AGAIN if is_passing(error) else remedy}"
        ) from error
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    if prefix.count("/") > _DEEPEST:
        closed.append((prefix, f"a folder more than {_DEEPEST} folders deep: move it up"))
        return
    for entry in entries:
        name = prefix + entry.name
        if not entry.name.startswith(".") and _is_folder(entry):
            yield from _walk(entry.path, name + "/", visited, closed)
        elif not entry.name.startswith(".") and _is_file(entry):
            yield name
    if prefix:
        yield prefix


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that points at itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:  # A broken link is listed, so that it is reported; a pipe or a device is not.
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def is_remote(path: str | Path) -> bool:
    """Whether this is an address, such as gs://bucket/photos."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


def is_remote_folder(address: str) -> bool:
    """Whether there is a folder there; False for a file.

    Raises:
      InputError: nothing is there, or what opens such addresses is missing.
    """
    with _one_line(address):
        path = _open_address(address)
        if path.is_dir():
            return True
        if path.exists():
            return False
    raise InputError(f"--data {address!r} does not exist; check the spelling")


def open_remote(address: str) -> BinaryIO:
    """Open a file to read. Raises InputError."""
    with _one_line(address):
        return _open_address(address).open("rb")


def remote_files(root: str) -> Files:
    """List the images below a folder that is not on this machine. Raises InputError.

    A file that is read again and has changed in between cannot be read any more.
    """
    with _one_line(root):
        top = _open_address(root)
        found = list(_walk_bucket(top, ""))

    def whole(name: str) -> bytes:
        with (top / name).open("rb") as file:
            return bounded(file.read(MAX_FILE_BYTES + 1), MAX_FILE_BYTES)

    def read(name: str) -> bytes:
        try:
            return patiently(lambda: whole(name), passing=_is_passing_afar)
        except UnreadableImage:
            raise
        except Exception as error:
            kind = ReadFailed if _is_passing_afar(error) else UnreadableImage
            raise kind(f"cannot be read: {error}") from error

    def start(name: str) -> bytes:
        try:
            with (top / name).open("rb") as file:
                return file.read(START_BYTES)
        except Exception:  # It is not read in any case.
            return b""

    def stamp(name: str) -> str:
        try:
            status = (top / name).stat()
        except Exception as error:
            return type(error).__name__
        return f"{status.length}:{status.mtime}"

    in_threads = functools.partial(map_in_order, max_workers=_AT_A_TIME)
    files = list_files(found, read=read, start=start, stamp=stamp, map_stamps=in_threads)

    def stamped(name: str) -> tuple[bytes, int]:
        data = read(name)
        return data, zlib.crc32(data) or 1  # To ask for its time would be a call for each.

    return dataclasses.replace(files, read=_steady(stamped, files.names))


def _is_passing_afar(error: BaseException) -> bool:
    # Of a type that depends on who keeps the bucket, but for these; many have HTTP's number.
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, UnreadableImage)
    return not isinstance(error, lasting) and getattr(error, "code", None) not in _REFUSED


def _open_address(address: str) -> Any:
    from etils import epath

    return epath.Path(address)


def _walk_bucket(folder: Any, prefix: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + path.name
        if _is_image(name) or _is_zip(name):  # Asking what it is would be a call for each.
            yield name
        elif is_shown(name):
            yield from _walk_bucket(path, name + "/") if path.is_dir() else (name,)
    if prefix:
        yield prefix


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn whatever goes wrong with an address into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{address!r} cannot be opened: {first_line(error)}; expected an address that "
            "etils.epath opens; install what it names, check your rights and the spelling"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
