"""What a source holds: counts, sizes, modes, duplicates, damage, and a picture of each class."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64
from PIL import Image

from jaxdnn.data.reader import Inventory, OnDone, Reader, ReadImage, Survey
from jaxdnn.data.source import Source
from jaxdnn.data.splits import missing_classes
from jaxdnn.run_folder import atomic_write

_THUMBNAIL = 96
"""Side in pixels of a picture on a contact sheet."""
_SHEET = (6, 8)
"""Rows and columns of a contact sheet."""
_MOST_SHOWN = 4800
"""Pictures on all sheets together, as far as each class has a row."""
_WHOLE = "all"
"""Name of the split where the source has none."""


Thumbnails = dict[int, np.ndarray]
"""Pixels by item, of those that are shown."""


def inspect_source(source: Source, on_done: OnDone) -> tuple[Survey, Thumbnails]:
    """Decode every item once, each to a thumbnail; keep those of the contact sheets."""
    shown = {int(item) for items in _shown(source) for item in items}
    thumbnails: Thumbnails = {}

    def keep(images: list[ReadImage]) -> Thumbnails:
        return {i.item: i.pixels for i in images if i.pixels is not None and i.item in shown}

    def take(num: int, kept: Thumbnails) -> None:
        thumbnails.update(kept)
        on_done(num)

    reader = Reader(source, _THUMBNAIL, 3)
    return reader.survey(range(len(source.labels)), keep, take), thumbnails


def duplicates(digests: UInt64[np.ndarray, " num"]) -> list[Int[np.ndarray, " _"]]:
    """Return the places of each set of two or more equal hashes, 0 (nothing read) ignored."""
    order = np.argsort(digests, kind="stable")
    starts = 1 + np.flatnonzero(np.diff(digests[order]))
    groups = np.split(order, starts)
    return sorted(
        (group for group in groups if len(group) > 1 and digests[group[0]]),
        key=lambda group: int(group[0]),
    )


def _shown(source: Source) -> Iterator[np.ndarray]:
    """Yield for each class the items of its sheet, evenly over the class, fewer of many classes."""
    num = min(_SHEET[0] * _SHEET[1], max(_SHEET[1], _MOST_SHOWN // len(source.class_names)))
    for label in range(len(source.class_names)):
        items = np.flatnonzero(source.labels == label)
        places = np.linspace(0, len(items) - 1, min(num, len(items)))
        yield items[places.astype(int)]


def report(source: Source, survey: Survey) -> dict[str, Any]:
    """Return what was found as JSON values.

    Returns:
      images, unreadable: numbers by class and split; images are the readable ones.
      unreadable_files: reason by name.
      set_aside: reason by name of what is neither read nor an error.
      modes: number by Pillow's mode.
      sizes: number by 'WIDTHxHEIGHT', the commonest first.
      duplicates: names of the items that are stored the same, split by split.
    """
    splits = [split or _WHOLE for split in source.splits]
    names = {split: 0 for split in dict.fromkeys(splits)}
    readable = {name: dict(names) for name in source.class_names}
    unreadable = {name: dict(names) for name in source.class_names}
    for item, (label, split) in enumerate(zip(source.labels, splits, strict=True)):
        counts = unreadable if item in survey.reasons else readable
        counts[source.class_names[label]][split] += 1
    return {
        "origin": source.name,
        "images": readable,
        "unreadable": unreadable,
        "unreadable_files": {
            source.item_names[item]: reason for item, reason in survey.reasons.items()
        },
        "set_aside": source.left_out(),
        "modes": dict(survey.inventory.modes.most_common()),
        "sizes": dict(survey.inventory.sizes.most_common()),
        "duplicates": [
            [source.item_names[item] for item in group] for group in duplicates(survey.digests)
        ],
    }


def write_sheets(source: Source, thumbnails: Thumbnails, folder: Path) -> list[Path]:
    """Write a PNG for each class that has a readable image, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, items in zip(source.class_names, _shown(source), strict=True):
        pictures = [thumbnails[item] for item in items if item in thumbnails]
        if pictures:
            safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
            path = folder / f"{len(paths):04}_{safe[:80]}.png"
            with atomic_write(path) as draft:
                _sheet(pictures).save(draft, "PNG")
            paths.append(path)
    return paths


def _sheet(pictures: list[np.ndarray]) -> Image.Image:
    columns = min(_SHEET[1], len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * columns, _THUMBNAIL, _THUMBNAIL, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    grid = sheet.reshape(rows, columns, _THUMBNAIL, _THUMBNAIL, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * _THUMBNAIL, columns * _THUMBNAIL, 3))


def text(about: dict[str, Any], *, num_shown: int = 10) -> str:
    """Return a report for people: a table by class, then what stands out."""
    splits = list(next(iter(about["images"].values())))
    lines = [about["origin"], f"{'class':24}" + "".join(f"{split:>12}" for split in splits)]
    for name, counts in about["images"].items():
        bad = sum(about["unreadable"][name].values())
        row = f"{name:24}" + "".join(f"{counts[split]:12,}" for split in splits)
        lines.append(row + (f"   {bad:,} unreadable" if bad else ""))
    counted = {s: [counts[s] for counts in about["images"].values()] for s in splits if s != _WHOLE}
    lines += missing_classes([*about["images"]], counted)
    lines += Inventory(Counter(about["sizes"]), Counter(about["modes"])).summary(num_shown)
    groups = [" = ".join(group) for group in about["duplicates"]]
    lines += _some("the same image", groups, num_shown)
    for key, title in (("unreadable_files", "unreadable"), ("set_aside", "not used")):
        entries = [f"{name}: {reason}" for name, reason in about[key].items()]
        lines += _some(title, entries, num_shown)
    return "\n".join(lines)


def _some(title: str, entries: list[str], num_shown: int) -> list[str]:
    lines = [f"{title}: {entry}" for entry in entries[:num_shown]]
    more = len(entries) - num_shown
    return [*lines, *([f"{title}: … ({more} more)"] if more > 0 else [])]
