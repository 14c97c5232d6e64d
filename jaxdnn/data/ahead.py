"""One item ahead of whoever takes them."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Yield the items, the next one being made in a thread while the last is used."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="jaxdnn-ahead") as pool:
        try:
            pending = pool.submit(next, items, end)
            while (item := pending.result()) is not end:
                pending = pool.submit(next, items, end)
                yield item  # pyrefly: ignore[invalid-yield]
        finally:
            pool.submit(items.close)  # Behind what is being made: a generator runs in one thread.
