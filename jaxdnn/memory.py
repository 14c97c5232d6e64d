"""How much memory one thing may take: asked before it is made, everywhere by the same rule."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from jaxdnn.errors import InputError

MEMORY_SHARE = 0.25
"""Share of the machine's memory that one thing (images, parameters) may take: what is computed with
it takes as much again, more than once."""

_ASSUMED_BYTES = 8 * 2**30


def allowed_bytes() -> float:
    """Return how much memory one thing may take on this machine."""
    return MEMORY_SHARE * memory_bytes()


def memory_bytes() -> int:
    """Return the memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Not every system says.
        return _ASSUMED_BYTES


def check_memory(what: str, shape: Sequence[int], remedy: str, *, itemsize: int = 4) -> None:
    """Check that an array would not take too much memory, without making it.

    Args:
      what: names it at the beginning of a sentence, in the plural: `the parameters`.
      shape: its lengths, however large.
      remedy: what to do about it, such as `choose smaller --widths`.
      itemsize: bytes of each number.

    Raises:
      InputError: it would.
    """
    needed, limit = itemsize * math.prod(shape), allowed_bytes()
    if needed > limit:
        raise InputError(
            f"{what} take {_gib(needed)} of memory; expected at most {_gib(limit)}, "
            f"{MEMORY_SHARE:.0%} of this machine's; {remedy}"
        )


def _gib(num_bytes: float) -> str:
    gib = min(num_bytes, 10**300) / 2**30
    return f"{gib:.2f} GiB" if gib < 1e6 else f"{gib:.1e} GiB"
