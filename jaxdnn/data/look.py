"""What a source holds: counts, sizes, modes, duplicates, damage, and a picture of each class."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdnn.data.decode import Stored, UnreadableImage, decode_and_look
from jaxdnn.data.inventory import Inventory
from jaxdnn.data.leakage import duplicates
from jaxdnn.data.parallel import chunks_of, map_in_order
from jaxdnn.data.source import Source
from jaxdnn.data.survey import digest_of
from jaxdnn.run_folder import atomic_write

THUMBNAIL = 96
"""Side in pixels of a picture on a contact sheet."""
SHEET = (6, 8)
"""Rows and columns of a contact sheet."""
MOST_SHOWN = 4800
"""Pictures on all sheets together, as far as each class has a row."""
WHOLE = "all"
"""Name of the split where the source has none."""


@dataclass
class Found:
    """What is known of the items of a source; hashes, reasons and thumbnails by index."""

    digests: np.ndarray
    inventory: Inventory = field(default_factory=Inventory)
    reasons: dict[int, str] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)


def look_at(
    source: Source, on_done: Callable[[int], None], max_workers: int | None = None
) -> Found:
    """Decode every item once, each to a thumbnail; keep those of the contact sheets."""
    found, lock = Found(np.zeros(len(source.labels), np.uint64)), threading.Lock()
    shown = {int(item) for items in _shown(source) for item in items}

    def look_one(item: int, read: Callable[[int], Stored]) -> None:
        try:
            stored = read(item)
            pixels, header = decode_and_look(stored, image_size=THUMBNAIL, channels=3)
            found.digests[item] = digest_of(stored)
        except UnreadableImage as error:
            with lock:
                found.reasons[item] = str(error)
            return
        with lock:
            found.inventory.add([header])
            if item in shown:
                found.thumbnails[item] = pixels

    def look_some(items: range) -> int:
        read = source.reading(items)
        for item in items:
            look_one(item, read)
        return len(items)

    for num in map_in_order(look_some, chunks_of(len(source.labels)), max_workers=max_workers):
        on_done(num)
    return found


def _shown(source: Source) -> Iterator[np.ndarray]:
    """Yield for each class the items of its sheet, evenly over the class, fewer of many classes."""
    num = min(SHEET[0] * SHEET[1], max(SHEET[1], MOST_SHOWN // len(source.class_names)))
    for label in range(len(source.class_names)):
        items = np.flatnonzero(source.labels == label)
        places = np.linspace(0, len(items) - 1, min(num, len(items)))
        yield items[places.astype(int)]


def report(source: Source, found: Found) -> dict[str, Any]:
    """Return what was found as JSON values.

    Returns:
      images, unreadable: numbers by class and split; images are the readable ones.
      unreadable_files: reason by name.
      set_aside: reason by name of what is neither read nor an error.
      modes: number by Pillow's mode.
      sizes: number by 'WIDTHxHEIGHT', the commonest first.
      duplicates: names of the items that are stored the same, split by split.
    """
    splits = [split or WHOLE for split in source.splits]
    names = {split: 0 for split in dict.fromkeys(splits)}
    readable = {name: dict(names) for name in source.class_names}
    unreadable = {name: dict(names) for name in source.class_names}
    for item, (label, split) in enumerate(zip(source.labels, splits, strict=True)):
        counts = unreadable if item in found.reasons else readable
        counts[source.class_names[label]][split] += 1
    return {
        "origin": source.name,
        "images": readable,
        "unreadable": unreadable,
        "unreadable_files": {
            source.item_names[item]: reason for item, reason in sorted(found.reasons.items())
        },
        "set_aside": {
            **{name: "outside every class folder" for name in source.outside},
            **dict(source.set_aside),
        },
        "modes": dict(found.inventory.modes.most_common()),
        "sizes": dict(found.inventory.sizes.most_common()),
        "duplicates": [
            [source.item_names[item] for item in group] for group in duplicates(found.digests)
        ],
    }


def write_sheets(source: Source, found: Found, folder: Path) -> list[Path]:
    """Write a PNG for each class that has a readable image, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, items in zip(source.class_names, _shown(source), strict=True):
        pictures = [found.thumbnails[item] for item in items if item in found.thumbnails]
        if pictures:
            safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
            path = folder / f"{len(paths):04}_{safe[:80]}.png"
            with atomic_write(path) as draft:
                _sheet(pictures).save(draft, "PNG")
            paths.append(path)
    return paths


def _sheet(pictures: list[np.ndarray]) -> Image.Image:
    columns = min(SHEET[1], len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * columns, THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    grid = sheet.reshape(rows, columns, THUMBNAIL, THUMBNAIL, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * THUMBNAIL, columns * THUMBNAIL, 3))


def text(about: dict[str, Any], *, num_shown: int = 10) -> str:
    """Return a report for people: a table by class, then what stands out."""
    splits = list(next(iter(about["images"].values())))
    lines = [about["origin"], f"{'class':24}" + "".join(f"{split:>12}" for split in splits)]
    for name, counts in about["images"].items():
        bad = sum(about["unreadable"][name].values())
        row = f"{name:24}" + "".join(f"{counts[split]:12,}" for split in splits)
        lines.append(row + (f"   {bad:,} unreadable" if bad else ""))
    lines += Inventory(Counter(about["sizes"]), Counter(about["modes"])).told(num_shown)
    groups = [" = ".join(group) for group in about["duplicates"]]
    lines += _some("the same image", groups, num_shown)
    for key, title in (("unreadable_files", "unreadable"), ("set_aside", "not used")):
        told = [f"{name}: {reason}" for name, reason in about[key].items()]
        lines += _some(title, told, num_shown)
    return "\n".join(lines)


def _some(title: str, entries: list[str], num_shown: int) -> list[str]:
    lines = [f"{title}: {entry}" for entry in entries[:num_shown]]
    more = len(entries) - num_shown
    return [*lines, *([f"{title}: … ({more} more)"] if more > 0 else [])]
