"""Silence for Pillow's warnings about metadata, safe to use from many threads."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

_PILLOW = r"PIL\."
_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow until the last thread has left.

    `warnings.catch_warnings` saves and restores the whole list of filters, so that two threads
    that overlap restore each other's; here one filter is added by the first thread to come and
    removed by the last to go.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            warnings.filterwarnings("ignore", module=_PILLOW)


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            filters = cast(list[Any], warnings.filters)
            filters[:] = [entry for entry in filters if not _is_ours(entry)]


def _is_ours(entry: Any) -> bool:
    module = entry[3]
    return module is not None and getattr(module, "pattern", module) == _PILLOW
