"""Decoded images one by one, through a cache where there is one, and many of them in order."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from jaxdnn.data.decode import Header, Stored, UnreadableImage, decode_and_look
from jaxdnn.data.parallel import map_in_order
from jaxdnn.data.pixel_cache import PixelCache
from jaxdnn.data.source import Source
from jaxdnn.errors import InputError

# Images that a thread takes at a time: few enough for all threads to be busy with one batch, and of
# small ones enough to be read from records at once.
_LEAST_PORTION, _MOST_PORTION, _PORTION_BYTES = 16, 512, 2**20


@dataclass(frozen=True)
class Reader:
    """Decodes the items of a source at one size; thread-safe.

    Attributes:
      source: where the items are.
      image_shape: height, width and channels of a decoded image.
      cache: of decoded images by item.
      max_workers: decoding threads; None for one per processor.
    """

    source: Source
    image_shape: tuple[int, int, int]
    cache: PixelCache | None = None
    max_workers: int | None = None

    def read_into(
        self,
        row: UInt8[np.ndarray, "height width channel"],
        item: int,
        read: Callable[[int], Stored],
    ) -> Header | None:
        """Put an item into `row`.

        Args:
          row: contiguous, to be filled.
          item: index in the source.
          read: gives what the source holds there.

        Returns:
          What it said of itself, if it was decoded.

        Raises:
          UnreadableImage: with the reason.
        """
        if self.cache is not None and self.cache.read(item, row):
            return None
        size, _, channels = self.image_shape
        row[...], header = decode_and_look(read(item), image_size=size, channels=channels)
        if self.cache is not None:
            self.cache.write(item, row)
        return header

    def batches(
        self, batches: Iterable[Int[np.ndarray, " _"]], *, num_rows: int = 0
    ) -> Generator[UInt8[np.ndarray, "num height width channel"], None, None]:
        """Yield the images of each batch of items, in order, decoded a bounded number ahead.

        Args:
          batches: indices in the source, of images that are known to be readable; taken only as
            fast as the results are.
          num_rows: least length of the arrays; what a batch does not fill is left as it comes.

        Raises:
          InputError: an image cannot be read any more.
        """
        portions = _portions(batches, self.image_shape, num_rows)
        for images in map_in_order(self._fill, portions, max_workers=self.max_workers):
            if images is not None:
                yield images

    def _fill(self, portion: "_Portion") -> np.ndarray | None:
        cache, items = self.cache, portion.items.tolist()
        missing = [item for item in items if cache is None or not cache.holds(item)]
        read = self.source.reading(missing)
        for row, item in zip(portion.rows, items, strict=True):
            try:
                self.read_into(row, item, read)
            except UnreadableImage as error:
                raise InputError(
                    f"{self.source.item_names[item]} in {self.source.name} cannot be read any more "
                    f"({error}); expected the images that the run began with; put it back, or "
                    "train anew"
                ) from error
        return portion.batch


@dataclass(frozen=True)
class _Portion:
    """What one thread fills; the last portion of a batch gives it."""

    rows: np.ndarray
    items: np.ndarray
    batch: np.ndarray | None


def _portions(
    batches: Iterable[np.ndarray], image_shape: tuple[int, ...], num_rows: int
) -> Iterator[_Portion]:
    row_bytes = int(np.prod(image_shape))
    portion = min(max(_LEAST_PORTION, _PORTION_BYTES // row_bytes), _MOST_PORTION)
    for items in batches:
        images = np.empty((max(len(items), num_rows), *image_shape), np.uint8)
        for start in range(0, max(len(items), 1), portion):
            end = min(start + portion, len(items))
            yield _Portion(
                images[start:end], items[start:end], images if end == len(items) else None
            )
