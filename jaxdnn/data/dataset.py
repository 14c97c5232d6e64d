"""Images in memory or streamed, split and labelled for one task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxdnn.data.acceptance import check_classes, check_leakage, check_unreadable
from jaxdnn.data.combined import combine, with_splits
from jaxdnn.data.inventory import Inventory
from jaxdnn.data.leakage import leakage_of
from jaxdnn.data.materialise import (
    Decoded,
    Progress,
    Skipped,
    decode_items,
    reporting,
)
from jaxdnn.data.pixel_stats import PixelStats, measure_pixel_stats
from jaxdnn.data.positive import binarise_labels
from jaxdnn.data.shape import choose_shape
from jaxdnn.data.source import Source
from jaxdnn.data.sources import open_source
from jaxdnn.data.splits import train_validation_test
from jaxdnn.data.stream import Stream, StreamedImages, open_stream
from jaxdnn.data.told import told
from jaxdnn.errors import InputError

MEMORY_SHARE = 0.25
"""Share of the physical memory that decoded images may take before they are streamed."""

_ASSUMED_MEMORY_BYTES = 8 * 2**30
_PREFETCHED = 512  # Two batches of evaluation.


@dataclass(frozen=True)
class Split:
    """Images, their labels and their names, in one order."""

    images: UInt8[np.ndarray, "num height width channel"] | StreamedImages
    labels: Int32[np.ndarray, " num"]
    names: tuple[str, ...]

    def pixel_stats(self) -> PixelStats:
        """Return mean and standard deviation: measured, or of a stream those of its survey."""
        if isinstance(self.images, StreamedImages):
            return self.images.pixel_stats
        return measure_pixel_stats(self.images)

    def in_memory(self) -> UInt8[np.ndarray, "num height width channel"]:
        """Return the decoded images.

        Raises:
          InputError: they are streamed.
        """
        if isinstance(self.images, StreamedImages):
            raise InputError(
                f"{len(self.images):,} images are streamed; expected them in memory here; leave "
                "--streaming out, raise --max-memory-gib, or choose a smaller --image-size"
            )
        return self.images


@dataclass(frozen=True)
class Dataset:
    """All of a data set, decoded or ready to be.

    Attributes:
      class_names: by label.
      train, validation, test: without a common item.
      skipped: images left out, with the reason.
      origin: where the images come from, for people.
      inventory: sizes and modes, as stored.
      leakage: what is among the test images and among the others; '' for nothing.
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[Skipped, ...]
    origin: str
    inventory: Inventory = field(default_factory=Inventory)
    leakage: str = ""

    def told(self) -> str:
        """Return what was found, in a few lines."""
        return told(self)


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
    max_bytes: float | None = None,
    streaming: bool = False,
    cache_bytes: float = 0,
    allow_duplicates: bool = False,
    other: str | None = None,
) -> Dataset:
    """Open, split and label a data set, and decode it if it fits in memory.

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
      max_bytes: most memory for decoded images, beyond which they are streamed; None for
        MEMORY_SHARE of the machine's.
      streaming: stream them anyway.
      cache_bytes: most disk for the decoded images of a stream; 0 for none.
      other: a second source, whose classes join the first one's.
      allow_duplicates: of training or validation images among the test images.

    Raises:
      InputError: anything in the data or in these arguments that the user can put right.
    """
    drawn = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
    }
    source = _open(data, other, data_dir, drawn, progress is True)
    chosen = source.default_positive if positive is None else positive
    labels, class_names = binarise_labels(source.labels, source.class_names, chosen)
    parts = train_validation_test(source, **drawn)
    size, depth = choose_shape(
        source, image_size=image_size, channels=channels, max_workers=max_workers
    )
    _check_memory(size, depth)
    limit = MEMORY_SHARE * _memory_bytes() if max_bytes is None else max_bytes
    if streaming or len(source.labels) * size * size * depth > limit:
        found, inventory = _stream_parts(
            source, parts, (size, size, depth), cache_bytes, max_workers, progress
        )
    else:
        found = _decode_parts(source, parts, size, depth, max_workers, progress)
        inventory = sum((part.inventory for part in found), Inventory())
    unreadable = [skipped for part in found for skipped in part.skipped]
    check_unreadable(unreadable, len(source.labels), max_unreadable_fraction, source.name)
    train, validation, test = (
        _split(source, part, indices, labels) for part, indices in zip(found, parts, strict=True)
    )
    check_classes([part.labels for part in (train, validation, test)], class_names, source.name)
    leakage = leakage_of(source, parts, [part.digests for part in found])
    check_leakage(leakage, allowed=allow_duplicates)
    outside = [Skipped(name, "outside every class folder") for name in source.outside]
    set_aside = [Skipped(*found) for found in source.set_aside]
    skipped = (*set_aside, *outside, *unreadable)
    return Dataset(class_names, train, validation, test, skipped, source.name, inventory, leakage)


def _stream_parts(
    source: Source,
    parts: Sequence[Int[np.ndarray, " _"]],
    shape: tuple[int, int, int],
    cache_bytes: float,
    max_workers: int | None,
    progress: Progress | bool | None,
) -> tuple[list[Decoded], Inventory]:
    with reporting(len(source.labels), progress) as on_done:
        stream = open_stream(
            source,
            shape,
            train=parts[0],
            cache_bytes=cache_bytes,
            max_workers=max_workers,
            on_done=on_done,
        )
    return [_streamed(stream, part) for part in parts], stream.survey.inventory


def _open(
    data: str, other: str | None, data_dir: str | None, drawn: dict[str, Any], progress: bool
) -> Source:
    """Open one source, or two as one, each with its own validation and test images."""
    if other is None:
        return open_source(data, data_dir, progress=progress)
    return combine(
        [
            with_splits(
                open_source(
                    name, data_dir if name.startswith("tfds:") else None, progress=progress
                ),
                **drawn,
            )
            for name in (data, other)
        ]
    )


def _decode_parts(
    source: Source,
    parts: Sequence[Int[np.ndarray, " _"]],
    image_size: int,
    channels: int,
    max_workers: int | None,
    progress: Progress | bool | None,
) -> list[Decoded]:
    """Decode the items of each part, with one report of progress over all."""
    with reporting(len(source.labels), progress) as on_done:
        return [
            decode_items(
                source,
                indices,
                image_size=image_size,
                channels=channels,
                max_workers=max_workers,
                on_done=on_done,
            )
            for indices in parts
        ]


def _streamed(stream: Stream, part: Int[np.ndarray, " num_items"]) -> Decoded:
    survey, source = stream.survey, stream.reader.source
    is_readable = survey.is_readable[part]
    skipped = tuple(
        Skipped(source.item_names[item], survey.reasons[item]) for item in part[~is_readable]
    )
    return Decoded(stream.images(part), is_readable, survey.digests[part], skipped)


def _split(
    source: Source,
    decoded: Decoded,
    indices: Int[np.ndarray, " num_items"],
    labels: Int32[np.ndarray, " num_source"],
) -> Split:
    kept = indices[decoded.is_readable]
    names = tuple(source.item_names[index] for index in kept)
    return Split(decoded.images, labels[kept], names)


def _check_memory(image_size: int, channels: int) -> None:
    limit, needed = MEMORY_SHARE * _memory_bytes(), _PREFETCHED * image_size**2 * channels
    if needed > limit:
        raise InputError(
            f"{_PREFETCHED} images of {image_size} x {image_size} x {channels}, decoded ahead, "
            f"take {needed / 2**30:.2f} GiB of memory; expected at most {limit / 2**30:.2f} GiB; "
            "choose a smaller --image-size, or --channels 1"
        )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Not every system says.
        return _ASSUMED_MEMORY_BYTES
