"""What a source holds: counts, sizes, modes, duplicates, damage, and a picture of each class."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxdnn.data.reader import Inventory, OnDone, Reader, ReadImage, Survey
from jaxdnn.data.source import Source
from jaxdnn.data.splits import by_class, missing_classes
from jaxdnn.errors import InputError
from jaxdnn.run_folder import atomic_write

_THUMBNAIL = 96
"""Side in pixels of a picture on a contact sheet."""
_SHEET = (6, 8)
"""Rows and columns of a contact sheet."""
_MOST_SHOWN = 4800
"""Pictures on all sheets together, as far as each class has a row."""
CLASSES_PER_PAGE = 200
"""Contact sheets that are made at a time, one for each class."""
_MOST_ROWS = 200
"""Classes that the report for people lists."""
_SOFTWARE = "python -m jaxdnn.data look"
_WHOLE = "all"
"""Name of the split where the source has none."""


Thumbnails = dict[int, np.ndarray]
"""Pixels by item, of those that are shown."""


def plan_sheets(source: Source, folder: Path, page: int = 1) -> dict[int, Path]:
    """Return where the contact sheets of a page of classes go, by label, and make the folder.

    Raises:
      InputError: there is no such page, or something else stands where a sheet would.
    """
    num_pages = max(1, -(-len(source.class_names) // CLASSES_PER_PAGE))
    if not 1 <= page <= num_pages:
        raise InputError(f"--page {page}; expected 1 to {num_pages}; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    planned = {}
    for label in range(len(source.class_names))[(page - 1) * CLASSES_PER_PAGE :][:CLASSES_PER_PAGE]:
        name = source.class_names[label]
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        planned[label] = folder / f"{label:04}_{safe[:80]}.png"
        if os.path.lexists(planned[label]) and not _is_sheet(planned[label]):
            raise InputError(
                f"{planned[label]} is there, and no contact sheet; expected nothing of that name; "
                "choose another --out"
            )
    return planned


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == _SOFTWARE
    except Exception:  # Whatever else it may be.
        return False


def inspect_source(
    source: Source, labels: Iterable[int], on_done: OnDone
) -> tuple[Survey, Thumbnails]:
    """Decode every item once, each to a thumbnail; keep those of the sheets of some classes."""
    shown = {int(item) for items in _shown(source, labels).values() for item in items}
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


def _shown(source: Source, labels: Iterable[int]) -> dict[int, np.ndarray]:
    """Return the items of the sheet of each class, evenly over the class, fewer of many classes."""
    wanted = set(labels)
    most = _SHEET[0] * _SHEET[1]
    num = min(most, max(_SHEET[1], _MOST_SHOWN // max(1, len(wanted))))
    shown = {}
    for label, items in by_class(source.labels):
        if label in wanted:
            places = np.linspace(0, len(items) - 1, min(num, len(items)))
            shown[label] = items[places.astype(int)]
    return shown


def report(source: Source, survey: Survey) -> dict[str, Any]:
    """Return what was found as JSON values.

    Returns:
      images, unreadable: numbers by class and split; images are the readable ones.
      unreadable_files: reason by name.
      set_aside: reason by name of what is neither read nor an error.
      modes: number by Pillow's mode.
      sizes: number by 'WIDTHxHEIGHT', the commonest first.
      notes: number of images by what is odd about them.
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
        "notes": dict(survey.inventory.notes),
        "duplicates": [
            [source.item_names[item] for item in group] for group in duplicates(survey.digests)
        ],
    }


def write_sheets(
    source: Source, thumbnails: Thumbnails, planned: Mapping[int, Path], on_done: OnDone
) -> list[Path]:
    """Write a PNG for each planned class that has a readable image, and return their paths."""
    about = PngInfo()
    about.add_text("Software", _SOFTWARE)
    paths = []
    for label, items in _shown(source, planned).items():
        pictures = [thumbnails[item] for item in items if item in thumbnails]
        if pictures:
            with atomic_write(planned[label]) as draft:
                _sheet(pictures).save(draft, "PNG", pnginfo=about)
            paths.append(planned[label])
        on_done(1)
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
    for name, counts in list(about["images"].items())[:_MOST_ROWS]:
        bad = sum(about["unreadable"][name].values())
        row = f"{name:24}" + "".join(f"{counts[split]:12,}" for split in splits)
        lines.append(row + (f"   {bad:,} unreadable" if bad else ""))
    sums = [sum(counts.values()) for counts in about["images"].values()]
    if (more := len(sums) - _MOST_ROWS) > 0:
        lines.append(f"… ({more:,} more classes; {min(sums):,} to {max(sums):,} images in each)")
    own = [split for split in splits if split != _WHOLE]
    counted = {split: [counts[split] for counts in about["images"].values()] for split in own}
    lines += missing_classes([*about["images"]], counted)
    lines += Inventory(*(Counter(about[key]) for key in ("sizes", "modes", "notes"))).summary(
        num_shown
    )
    groups = [_equal(group, num_shown) for group in about["duplicates"]]
    lines += _some("the same image", groups, num_shown)
    for key, title in (("unreadable_files", "unreadable"), ("set_aside", "not used")):
        entries = [f"{name}: {reason}" for name, reason in about[key].items()]
        lines += _some(title, entries, num_shown)
    return "\n".join(lines)


def _equal(names: list[str], num_shown: int) -> str:
    more = len(names) - num_shown
    return " = ".join(names[:num_shown]) + (f" = … ({more:,} more)" if more > 0 else "")


def _some(title: str, entries: list[str], num_shown: int) -> list[str]:
    lines = [f"{title}: {entry}" for entry in entries[:num_shown]]
    more = len(entries) - num_shown
    return [*lines, *([f"{title}: … ({more:,} more)"] if more > 0 else [])]
