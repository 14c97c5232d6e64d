"""Work spread over threads: decoding releases the interpreter's lock."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD_PER_WORKER = 4
_CHUNK = 32  # Handing over one item costs about as much as decoding a small image.


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, max_workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield `function(item)` for every item, in order, a bounded number of items ahead.

    Args:
      function: thread-safe.
      items: consumed only as fast as the results are.
      max_workers: number of threads; None for one per usable processor.
    """
    workers = max_workers or num_processors()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="jaxdnn-data")
    remaining = iter(items)
    try:
        ahead = _AHEAD_PER_WORKER * workers
        pending = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def chunks_of(num_items: int) -> list[range]:
    """Cut 0 … num_items - 1 into ranges worth a thread's while."""
    return [range(start, min(start + _CHUNK, num_items)) for start in range(0, num_items, _CHUNK)]


def num_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
