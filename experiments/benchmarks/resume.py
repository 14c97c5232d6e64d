"""Work of hours: a line of JSON for every item, and the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxdnn.errors import Interrupted
from jaxdnn.progress import progress_bar

Item = TypeVar("Item", bound=Any)
Row = dict[str, Any]


def work_through(
    groups: Sequence[Sequence[Item]],
    work: Callable[[Sequence[Item]], Iterable[Row]],
    path: Path,
    stopped: Callable[[], bool],
    *,
    progress: bool,
) -> list[Row]:
    """Append a row for each item that has none yet; return all, in the order of the items.

    Args:
      groups: items, frozen dataclasses of one kind; those of a group are worked on at once.
      work: gives what is found of each item of a group.
      path: file for the rows, one JSON object a line; need not exist.
      stopped: asked before each group.
      progress: show a bar.

    Raises:
      Interrupted: `stopped` said so.
    """
    items = [item for group in groups for item in group]
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {item_of(type(items[0]), row): row for row in kept} if items else {}
    num_done = sum(item in done for item in items)
    bar = progress_bar(total=len(items), initial=num_done, desc=path.stem, disable=not progress)
    with path.open("a") as file, bar:
        for group in groups:
            missing = [item for item in group if item not in done]
            if missing and stopped():
                raise Interrupted
            for item, found in zip(missing, work(missing) if missing else (), strict=True):
                done[item] = dataclasses.asdict(item) | found
                file.write(json.dumps(done[item]) + "\n")
                file.flush()
                bar.update()
    return [done[item] for item in items]


def item_of(kind: type[Item], row: Row) -> Item:
    """Return the item that a row is about."""
    return kind(**{field.name: row[field.name] for field in dataclasses.fields(kind)})
