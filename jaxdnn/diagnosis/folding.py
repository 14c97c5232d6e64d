"""Blocks that are alike as one row of a table: `blocks/0..11/attn/query` for twelve of them."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

Content = Mapping[str, Any]
# So many are folded.
_FEWEST = 3
# Layers of which a factor differs from the median by more, or the share of dead units, are unlike.
_UNLIKE, _UNLIKE_SHARE = 2.0, 0.2
# A number in a path, but not that of the use of a kernel.
_NUMBER = re.compile(r"(?<![#\d.])\d+")


class Row(NamedTuple):
    """A row of a table of layers.

    Attributes:
      name: the path, with a range where several layers are one row.
      layers: those that it stands for; other things with a path likewise.
    """

    name: str
    layers: tuple[Content, ...]

    @property
    def title(self) -> str:
        """The name, and in parentheses what all units of a recurrent cell's layer do."""
        names = self.part_names
        return f"{self.name} ({names[0]})" if len(names) == 1 else self.name

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the units of each of its layers do in a recurrent cell."""
        return _part_names(self.layers[0])

    def parts(self) -> list[tuple[str, list[Content]]]:
        """The parts of its layers by name, one of each layer; none where all units do the same."""
        columns = zip(*(layer["parts"] for layer in self.layers), strict=True)
        found = [(own[0]["name"], list(own)) for own in columns]
        return found if len(found) > 1 else []


def _part_names(item: Content) -> tuple[str, ...]:
    return tuple(part["name"] for part in item.get("parts", ()))


def folded(layers: Sequence[Content], named: Collection[str] = ()) -> list[Row]:
    """Return the rows of a table, each where its first layer is.

    Args:
      layers: as in `Diagnosis.to_dict`.
      named: paths of layers that have a row of their own.
    """

    def alike(group: Sequence[int]) -> list[int]:
        usual = (each for each in group if _is_usual(layers, group, each))
        return [each for each in usual if layers[each]["path"] not in named]

    return _rows(layers, "kind", alike)


def folded_by_name(items: Sequence[Content], kind: str) -> list[Row]:
    """Return rows of what differs in one number of its path only.

    Args:
      items: each with a `path`.
      kind: key of what must be the same.
    """
    return _rows(items, kind, list)


def _rows(
    items: Sequence[Content], kind: str, alike: Callable[[Sequence[int]], list[int]]
) -> list[Row]:
    groups = _groups(items, kind)
    rows: list[Row] = []
    done: set[int] = set()
    for index, item in enumerate(items):
        if index in done:
            continue
        members = [each for each in alike(groups[index]) if each not in done]
        if index in members and len(members) >= _FEWEST:
            done.update(members)
            own = tuple(items[each] for each in members)
            rows.append(Row(_range([each["path"] for each in own]), own))
        else:
            rows.append(Row(item["path"], (item,)))
    return rows


def _groups(layers: Sequence[Content], kind: str) -> list[list[int]]:
    """For each layer those that differ from it in one number of the path: the most there are."""
    by_pattern: dict[tuple[str, ...], list[int]] = defaultdict(list)
    patterns = []
    for index, layer in enumerate(layers):
        path = layer["path"]
        own = [
            (path[: found.start()], path[found.end() :], layer[kind], *_part_names(layer))
            for found in _NUMBER.finditer(path)
        ]
        patterns.append(own)
        for pattern in own:
            by_pattern[pattern].append(index)
    return [
        max((by_pattern[pattern] for pattern in own), key=len, default=[index])
        for index, own in enumerate(patterns)
    ]


def _is_usual(layers: Sequence[Content], group: Sequence[int], index: int) -> bool:
    """Tell whether a layer is like the median of its group."""

    def median(name: str) -> float:
        values = sorted(layers[each][name] or 0.0 for each in group)
        return values[len(values) // 2]

    layer = layers[index]
    for name in ("factor", "pre_activation_rms"):
        usual, own = median(name), layer[name]
        if own is None or own <= 0 or usual <= 0:
            return own == usual
        if abs(math.log(own / usual)) > math.log(_UNLIKE):
            return False
    return abs((layer["dead"] or 0.0) - median("dead")) <= _UNLIKE_SHARE


def _range(paths: Sequence[str]) -> str:
    """The common path, with a range in place of the number that differs."""
    numbers = [list(_NUMBER.finditer(path)) for path in paths]
    for place in range(len(numbers[0])):
        values = [int(found[place].group()) for found in numbers]
        if len(set(values)) > 1:
            first = numbers[0][place]
            start, end = paths[0][: first.start()], paths[0][first.end() :]
            return f"{start}{_runs(sorted(set(values)))}{end}"
    return paths[0]


def _runs(values: Sequence[int]) -> str:
    """Numbers as ranges: `0..3,5`; of those that are not next to each other the step is kept."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1)
    parts: list[list[int]] = []
    for value in values:
        if parts and value - parts[-1][-1] == step:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}..{p[-1]}" for p in parts)
