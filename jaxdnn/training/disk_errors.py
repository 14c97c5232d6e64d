"""What goes wrong with checkpoints on a disk, in one line instead of many."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator

from jaxdnn.errors import InputError

_KNOWN = (
    "No space left on device",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Disk quota exceeded",
    "Input/output error",
)


@contextlib.contextmanager
def explained(kind: str, step: int, steps: Callable[[], list[int]]) -> Iterator[None]:
    """Turn what goes wrong in a save into one line.

    Args:
      kind: of the checkpoint that is being written.
      step: likewise.
      steps: gives those of the latest checkpoints, the newest first.

    Raises:
      InputError: instead of any exception.
    """
    try:
        yield
    except Exception as error:
        kept = [other for other in steps() if other != step]
        raise InputError(
            f"the {kind} checkpoint of step {step} cannot be written ({_reason(error)}); "
            f"{f'that of step {kept[0]}' if kept else 'nothing'} is kept: "
            "make room on the disk, or mend its permissions, and go on with --resume"
        ) from error


def _reason(error: Exception) -> str:
    """Return what the system said, from among what TensorStore and Orbax said about it."""
    if isinstance(error, TimeoutError):  # Orbax waits by the wall clock.
        return "it took too long, or the clock jumped"
    said = next((known for known in _KNOWN if known in str(error)), "")
    return said or first_line(error)


def first_line(error: Exception) -> str:
    """Return the type and the beginning of what an exception says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


@contextlib.contextmanager
def abandoned_readers_silent() -> Iterator[None]:
    """Drop what Orbax's readers complain of when they are collected unfinished.

    One damaged file ends the loading; the readers of the others then write tracebacks to stderr.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = hook
