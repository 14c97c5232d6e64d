"""Images in memory or streamed, split and labelled for one task, and checked before they are used.

Images that are the same to learn from and to be tested with would make the test say too much: they
are found by the hashes of what is stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt64

from jaxdnn.data.cache import key_of
from jaxdnn.data.decode import DECODING, Header
from jaxdnn.data.images import Images, decode_all, stream_all
from jaxdnn.data.pipeline import PixelStats
from jaxdnn.data.reader import Inventory, Reader, image_bar, read_headers
from jaxdnn.data.source import Source
from jaxdnn.data.sources import combine, open_source
from jaxdnn.data.splits import binarise_labels, missing_classes, train_validation_test
from jaxdnn.errors import InputError
from jaxdnn.memory import allowed_bytes, check_memory
from jaxdnn.options import DataOptions

DEFAULT_IMAGE_SIZE = 64
"""Side in pixels for images that are not all of one size."""

LARGEST_OWN_SIZE = 227
"""Largest side in pixels that is kept when all images are squares of one size."""

_PREFETCHED = 512  # Two batches of evaluation.
_CLASSES_SHOWN, _SIZES_SHOWN, _SKIPPED_SHOWN, _LEAKS_SHOWN = 12, 5, 5, 3
_MOST_WIDE = 40  # Letters of a class's name that the others stand beside.


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Split:
    """Images, their labels and their names, in one order."""

    images: Images
    labels: Int32[np.ndarray, " num"]
    names: tuple[str, ...]

    def pixel_stats(self) -> PixelStats:
        """Return mean and standard deviation: measured, or of a stream those of its survey."""
        return self.images.pixel_stats

    def in_memory(self) -> Any:
        """Return the decoded images as one array. Raises InputError where they are streamed."""
        return self.images.in_memory()


class Storage(NamedTuple):
    """Where the images are, so that what is made of them can be kept with them.

    Attributes:
      home: see `Source`; of images that come with the package their name.
      key: a short hash of all that the pixels of every item depend on.
      num_items: items of the source.
      items: of train, validation and test the index of each image in the source.
    """

    home: Path | str
    key: str
    num_items: int
    items: tuple[Int[np.ndarray, " num"], ...]


@dataclass(frozen=True)
class Dataset:
    """All of a data set, decoded or ready to be.

    Attributes:
      class_names: name of each label, that of label 0 first.
      train, validation, test: the three parts; none has an item of another.
      skipped: images left out, with the reason.
      origin: where the images come from, for people.
      inventory: sizes and modes, as stored.
      leakage: what is among the test images and among the others; '' for nothing.
      storage: where the images are; None of images that were made up.
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[Skipped, ...]
    origin: str
    inventory: Inventory = field(default_factory=Inventory)
    leakage: str = ""
    storage: Storage | None = None

    def summary(self) -> str:
        """Return in a few lines what was found.

        Numbers of images by class and split, classes that a split lacks, sizes and modes as
        stored, what is among the test images and among those to learn from, and the first images
        that were skipped.
        """
        images = self.train.images
        sides = " x ".join(map(str, images.shape[1:]))
        lines = [
            f"{self.origin}: {len(self.train.labels):,} to train, "
            f"{len(self.validation.labels):,} to validate, {len(self.test.labels):,} to test, "
            f"{sides}{', streamed' if images.is_streamed else ''}",
            *self._classes(),
            *missing_classes(self.class_names, self._counts()),
            *self.inventory.summary(_SIZES_SHOWN),
        ]
        if self.leakage:
            lines.append(self.leakage)
        if self.skipped:
            first = [f"{name}: {reason}" for name, reason in self.skipped[:_SKIPPED_SHOWN]]
            more = "; …" if len(self.skipped) > _SKIPPED_SHOWN else ""
            lines.append(f"{len(self.skipped):,} skipped ({'; '.join(first)}{more})")
        return "\n  ".join(lines)

    def _counts(self) -> dict[str, Any]:
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        num = len(self.class_names)
        return {name: np.bincount(part.labels, minlength=num) for name, part in parts.items()}

    def _classes(self) -> list[str]:
        num = len(self.class_names)
        counts = np.stack([*self._counts().values()], axis=1)
        names = self.class_names[:_CLASSES_SHOWN]
        width = min(max(map(len, names)), _MOST_WIDE)
        lines = [
            f"{name:{width}} " + "".join(f"{number:10,}" for number in numbers)
            for name, numbers in zip(names, counts, strict=False)
        ]
        if num > len(lines):
            least, most = counts.sum(axis=1).min(), counts.sum(axis=1).max()
            more = num - len(lines)
            lines.append(f"… ({more:,} more classes; {least:,} to {most:,} images in each)")
        return lines


def load(options: DataOptions, *, seed: int, progress: bool = False) -> Dataset:
    """Open, split and label a data set, and decode it if it fits in memory.

    The source's own validation and test images are kept as such; a part that it lacks is drawn
    from the training images by seed, class by class, over the source's own classes: first test,
    then validation from what is left.

    Args:
      options: what to learn from, and how.
      seed: decides which images are drawn; 0 or more.
      progress: show bars on stderr for what takes more than two seconds.

    Raises:
      InputError: anything in the data or in the options that the user can put right.
    """
    drawn = {
        "validation_fraction": options.validation_fraction,
        "test_fraction": options.test_fraction,
        "seed": seed,
    }
    source = _open(options, drawn, progress)
    chosen = source.default_positive if options.positive is None else options.positive
    labels, class_names = binarise_labels(source.labels, source.class_names, chosen)
    parts = train_validation_test(source, **drawn)
    size, channels = _choose_shape(source, options.image_size, options.channels)
    check_memory(
        f"{_PREFETCHED} images of {size} x {size} x {channels}, decoded ahead,",
        (_PREFETCHED, size, size, channels),
        "choose a smaller --image-size, or --channels 1",
        itemsize=1,
    )
    reader = Reader(source, size, channels, resampling=options.resampling)
    with image_bar(len(source.labels), disable=not progress) as bar:
        if options.streaming or len(source.labels) * size * size * channels > _limit(options):
            cache_bytes = options.cache_gib * 2**30
            images, survey = stream_all(reader, parts, bar.update, cache_bytes=cache_bytes)
        else:
            images, survey = decode_all(reader, parts, bar.update)
    is_readable = survey.is_readable
    unreadable = [
        Skipped(source.item_names[item], survey.reasons[item])
        for part in parts
        for item in part[~is_readable[part]].tolist()
    ]
    _check_unreadable(unreadable, source, options.max_unreadable)
    items = tuple(part[is_readable[part]] for part in parts)
    train, validation, test = (
        Split(found, labels[kept], tuple(source.item_names[item] for item in kept))
        for found, kept in zip(images, items, strict=True)
    )
    _check_classes((train, validation, test), class_names, source.name)
    leakage = _leakage(source, parts, survey.digests)
    if leakage and not options.allow_duplicates:
        raise InputError(
            f"{leakage}; expected none, or the test says too much; remove them, or allow them with "
            "--allow-duplicates"
        )
    skipped = (*(Skipped(*found) for found in source.left_out().items()), *unreadable)
    key = key_of(DECODING, survey.digests, reader.image_shape, reader.resampling)
    return Dataset(
        class_names,
        train,
        validation,
        test,
        skipped,
        source.name,
        survey.inventory,
        leakage,
        Storage(source.home or source.name, key, len(source.labels), items),
    )


def _open(options: DataOptions, drawn: dict[str, Any], progress: bool) -> Source:
    """Open one source, or two as one, each with its own validation and test images."""
    if options.other is None:
        return open_source(options.data, options.data_dir, progress=progress)
    sources = []
    for name in (options.data, options.other):
        data_dir = options.data_dir if name.startswith("tfds:") else None
        sources.append(open_source(name, data_dir, progress=progress))
    homes = [os.path.realpath(each.home) if each.home else None for each in sources]
    if homes[0] is not None and homes[0] == homes[1]:
        raise InputError(
            f"--other {options.other!r} names the images of --data {options.data!r} once more; "
            "expected other images; leave it out, or name others"
        )
    return combine(sources, **drawn)


def _choose_shape(source: Source, image_size: int | None, channels: int | None) -> tuple[int, int]:
    """Choose what was left open, image size or channels, from the images' headers.

    Images that are all squares of one size, of at most LARGEST_OWN_SIZE pixels, keep it; otherwise
    they are made DEFAULT_IMAGE_SIZE. One channel if all are grey, otherwise three. Headers are
    read until both are decided: the first photographs decide.
    """
    height, width, depth = source.item_shape
    if channels is None and depth is not None:
        channels = 1 if depth == 1 else 3
    if image_size is not None and channels is not None:
        return image_size, channels
    if channels is not None and height is not None and width is not None:
        headers = iter([Header(width, height, channels == 1, "L" if channels == 1 else "RGB")])
    else:
        headers = read_headers(source)
    sides: set[int] = set()
    all_grey = True
    for header in headers:
        sides |= {header.width, header.height}
        all_grey = all_grey and header.is_grey
        if not (image_size is None and _own_size(sides)) and not (channels is None and all_grey):
            break
    return (
        image_size or _own_size(sides) or DEFAULT_IMAGE_SIZE,
        channels or (1 if all_grey else 3),
    )


def _own_size(sides: set[int]) -> int | None:
    side = max(sides, default=LARGEST_OWN_SIZE + 1)
    return side if len(sides) == 1 and side <= LARGEST_OWN_SIZE else None


def _limit(options: DataOptions) -> float:
    if options.max_memory_gib is None:
        return allowed_bytes()
    return options.max_memory_gib * 2**30


def _check_unreadable(unreadable: Sequence[Skipped], source: Source, max_fraction: float) -> None:
    num_items = len(source.labels)
    if len(unreadable) <= max_fraction * num_items:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:_SKIPPED_SHOWN])
    share = len(unreadable) / num_items
    raise InputError(
        f"{len(unreadable)} of {num_items} images ({share:.1%}) in {source.name} are unreadable "
        f"({first}); expected at most {max_fraction:.1%}; "
        "mend or remove them, or allow more with --max-unreadable FRACTION"
    )


def _check_classes(parts: Sequence[Split], class_names: Sequence[str], origin: str) -> None:
    """Check that there are images of each part, and some of every class to train."""
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if not len(part.labels):
            raise InputError(f"no {name} images in {origin}; expected at least one; add images")
    counts = np.bincount(parts[0].labels, minlength=len(class_names))
    if (counts == 0).any():
        missing = class_names[int(counts.argmin())]
        raise InputError(
            f"no training images of class {missing!r} in {origin}; expected some of every class; "
            "add images or remove the class"
        )


def _leakage(
    source: Source,
    parts: Sequence[Int[np.ndarray, " _"]],
    digests: UInt64[np.ndarray, " num_items"],
) -> str:
    """Say which stored images of training or validation are among the test images; '' if none."""
    learnt, tested = np.concatenate(parts[:2]), parts[2]
    leaks = tested[np.isin(digests[tested], digests[learnt]) & (digests[tested] != 0)]
    if not len(leaks):
        return ""
    pairs = []
    for item in leaks[:_LEAKS_SHOWN]:
        twin = learnt[np.flatnonzero(digests[learnt] == digests[item])[0]]
        pairs.append(f"{source.item_names[item]} = {source.item_names[twin]}")
    return (
        f"{len(leaks):,} of {len(tested):,} test images in {source.name} are training or "
        f"validation images too ({'; '.join(pairs)})"
    )
