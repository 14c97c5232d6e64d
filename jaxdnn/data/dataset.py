"""Images in memory, split and labelled for one task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxdnn.data.materialise import (
    Decoded,
    Progress,
    Skipped,
    decode_items,
    reporting,
)
from jaxdnn.data.positive import positive_task
from jaxdnn.data.shape import choose_shape
from jaxdnn.data.source import Source
from jaxdnn.data.sources import open_source
from jaxdnn.data.splits import train_validation_test
from jaxdnn.errors import InputError

MEMORY_SHARE = 0.5
"""Share of the physical memory that decoded images may take by default."""

_ASSUMED_MEMORY_BYTES = 8 * 2**30
_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """Images, their labels and their names, in one order."""

    images: UInt8[np.ndarray, "num height width channel"]
    labels: Int32[np.ndarray, " num"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """All of a data set, decoded.

    Attributes:
      class_names: by label.
      train, validation, test: without a common item.
      skipped: images left out, with the reason.
      origin: where the images come from, for people.
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[Skipped, ...]
    origin: str


def load(
    data: str,
    *,
    data_dir: str | None,
    positive: Sequence[str] | None,
    image_size: int | None,
    channels: int | None,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    max_unreadable_fraction: float = 0.01,
    max_workers: int | None = None,
    progress: Progress | bool | None = None,
    max_bytes: int | None = None,
) -> Dataset:
    """Open, split, decode and label a data set.

    The source's own validation and test images are kept as such; a part that it lacks is drawn
    from the training images by seed, class by class, over the source's own classes: first test,
    then validation from what is left.

    Args:
      data: 'silhouettes', 'tfds:NAME', a folder or a .zip file.
      data_dir: the folder of prepared TFDS data sets.
      positive: class names to tell from all others; () keeps the classes; None for the source's
        own habit (dog for the silhouettes, otherwise ()).
      image_size: side in pixels; None for the images' own if all are squares of one size up to
        227 pixels, otherwise 64.
      channels: 1 or 3; None for 1 if all are grey, otherwise 3.
      validation_fraction: share of the training images to draw where there is no validation.
      test_fraction: share of the training images to draw where there is no test.
      seed: of the draws.
      max_unreadable_fraction: more unreadable images than this share of all are an error.
      max_workers: decoding threads; None for one per processor.
      progress: called with (done, total), or True for a bar on stderr.
      max_bytes: most memory for decoded images; None for half of the machine's.

    Raises:
      InputError: anything in the data or in these arguments that the user can put right.
    """
    source = open_source(data, data_dir)
    chosen = source.default_positive if positive is None else positive
    labels, class_names = positive_task(source.labels, source.class_names, chosen)
    parts = train_validation_test(
        source, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed
    )
    size, depth = choose_shape(
        source, image_size=image_size, channels=channels, max_workers=max_workers
    )
    _check_memory(len(source.labels), size, depth, max_bytes)
    with reporting(len(source.labels), progress) as on_done:
        decoded = [
            decode_items(
                source,
                indices,
                image_size=size,
                channels=depth,
                max_workers=max_workers,
                on_done=on_done,
            )
            for indices in parts
        ]
    unreadable = [skipped for part in decoded for skipped in part.skipped]
    _check_unreadable(unreadable, len(source.labels), max_unreadable_fraction, source.name)
    train, validation, test = (
        _split(source, part, indices, labels) for part, indices in zip(decoded, parts, strict=True)
    )
    _check_classes(train, validation, test, class_names, source.name)
    outside = [Skipped(name, "outside every class folder") for name in source.outside]
    return Dataset(class_names, train, validation, test, (*outside, *unreadable), source.name)


def _split(
    source: Source,
    decoded: Decoded,
    indices: Int[np.ndarray, " num_items"],
    labels: Int32[np.ndarray, " num_source"],
) -> Split:
    kept = indices[decoded.is_readable]
    names = tuple(source.item_names[index] for index in kept)
    return Split(decoded.images, labels[kept], names)


def _check_memory(num_images: int, image_size: int, channels: int, max_bytes: int | None) -> None:
    limit = int(MEMORY_SHARE * _memory_bytes()) if max_bytes is None else max_bytes
    needed = num_images * image_size * image_size * channels
    if needed > limit:
        raise InputError(
            f"{num_images:,} images of {image_size} x {image_size} x {channels} take "
            f"{needed / 2**30:.2f} GiB of memory; expected at most {limit / 2**30:.2f} GiB; "
            "choose a smaller --image-size, --channels 1, or fewer images"
        )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Not every system says.
        return _ASSUMED_MEMORY_BYTES


def _check_unreadable(
    unreadable: Sequence[Skipped], num_items: int, max_fraction: float, origin: str
) -> None:
    if len(unreadable) <= max_fraction * num_items:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:_SHOWN])
    share = len(unreadable) / num_items
    raise InputError(
        f"{len(unreadable)} of {num_items} images ({share:.1%}) in {origin} are unreadable "
        f"({first}); expected at most {max_fraction:.1%}; "
        "mend or remove them, or allow more with --max-unreadable FRACTION"
    )


def _check_classes(
    train: Split, validation: Split, test: Split, class_names: Sequence[str], origin: str
) -> None:
    for name, split in (("training", train), ("validation", validation), ("test", test)):
        if not len(split.labels):
            raise InputError(f"no {name} images in {origin}; expected at least one; add images")
    counts = np.bincount(train.labels, minlength=len(class_names))
    if (counts == 0).any():
        missing = class_names[int(counts.argmin())]
        raise InputError(
            f"no training images of class {missing!r} in {origin}; expected some of every class; "
            "add images or remove the class"
        )
