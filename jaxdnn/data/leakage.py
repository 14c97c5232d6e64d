"""The same image to learn from and to be tested with."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

from jaxdnn.data.source import Source

_SHOWN = 3


def duplicates(digests: UInt64[np.ndarray, " num"]) -> list[Int[np.ndarray, " _"]]:
    """Return the places of each set of two or more equal hashes, 0 (nothing read) left aside."""
    order = np.argsort(digests, kind="stable")
    starts = 1 + np.flatnonzero(np.diff(digests[order]))
    groups = np.split(order, starts)
    return sorted(
        (group for group in groups if len(group) > 1 and digests[group[0]]),
        key=lambda group: int(group[0]),
    )


def leakage_of(
    source: Source,
    parts: Sequence[Int[np.ndarray, " _"]],
    digests: Sequence[UInt64[np.ndarray, " _"]],
) -> str:
    """Say which stored images of training or validation are among the test images.

    Args:
      source: whose items they are.
      parts: items of training, validation and test.
      digests: hash of each of these items.

    Returns:
      Their number and the first pairs; '' where there are none.
    """
    seen_digests, seen_items = np.concatenate(digests[:2]), np.concatenate(parts[:2])
    leaks = np.isin(digests[2], seen_digests) & (digests[2] != 0)
    if not leaks.any():
        return ""
    pairs = []
    for item, digest in list(zip(parts[2][leaks], digests[2][leaks], strict=True))[:_SHOWN]:
        twin = seen_items[np.flatnonzero(seen_digests == digest)[0]]
        pairs.append(f"{source.item_names[item]} = {source.item_names[twin]}")
    return (
        f"{int(leaks.sum()):,} of {len(leaks):,} test images in {source.name} are training or "
        f"validation images too ({'; '.join(pairs)})"
    )
