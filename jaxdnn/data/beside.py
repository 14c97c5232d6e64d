"""Where what is known about images is kept: beside them, or in the user's cache folder."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxdnn.data.source import Source

DECODING = "1"
"""Changes whenever `decode` gives other values for the same bytes."""


def folder_beside(source: Source) -> Path | None:
    """Return a folder for what is known about a source's images; None where there is none.

    It is `.jaxdnn` in a folder of images, `.NAME.jaxdnn` beside a zip; where that cannot be
    written, or is not on this machine, a folder in $XDG_CACHE_HOME or ~/.cache.
    """
    if source.home is None:
        return None
    own = []
    home = source.home
    if isinstance(home, Path):
        home = home.absolute()
        own = [home / ".jaxdnn" if home.is_dir() else home.with_name(f".{home.name}.jaxdnn")]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    for folder in (*own, caches / "jaxdnn" / name):
        if _can_write(folder):
            return folder
    return None


def _can_write(folder: Path) -> bool:
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """Give a path to write to, then move it: several processes may find out the same at once.

    Raises:
      OSError: as on a full disk; nothing is left of the draft.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def key_of(*parts: object) -> str:
    """Return a short hash of all that something depends on."""
    total = hashlib.sha256()
    for part in parts:
        text = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        total.update(hashlib.sha256(text).digest())
    return total.hexdigest()[:16]


def remove_others(folder: Path, path: Path, max_bytes: float) -> None:
    """Remove the longest unused pixel caches until they and the one to come fit in `max_bytes`."""
    others = [other for other in folder.glob("pixels-*.u8") if other.stem != path.stem]
    others.sort(key=lambda other: other.stat().st_mtime)
    sizes = {other: other.stat().st_blocks * 512 for other in others}
    while others and sum(sizes[other] for other in others) > max_bytes:
        oldest = others.pop(0)
        for file in (oldest.with_suffix(".filled"), oldest):
            file.unlink(missing_ok=True)
