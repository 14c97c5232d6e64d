"""The contract of every place that holds images: labelled items by index, nothing decoded yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxdnn.data.decode import Stored, UnreadableImage


@dataclass(frozen=True)
class Source:
    """Random access to labelled images.

    Attributes:
      name: where they come from, for people.
      class_names: name of each label, that of label 0 first.
      item_names: path inside the folder or archive, or the record's index in its split.
      labels: index of the class of each item.
      splits: 'train', 'validation' or 'test' for each item; '' where the source has no splits.
      read: encoded bytes, or uint8 values [height, width, channel], of the item at an index;
        thread-safe; raises UnreadableImage.
      read_many: what `read` gives, for several items in one call; None where that is not much
        faster than one by one. Thread-safe; raises UnreadableImage if any of them is.
      item_shape: height, width and channels, as far as all items are known to share them.
      unlabelled: names of images that belong to no class.
      ignored: what else was found and is not used, with the reason.
      default_positive: class names that are one class against the others where the options name
        none.
      home: the folder or file that holds the images, or its address; None where they come with
        the package.
      fingerprint: returns a hash of names, sizes and times of change, or of checksums where they
        are kept, without reading an image. Another one means that an image may have changed.
    """

    name: str
    class_names: tuple[str, ...]
    item_names: Sequence[str]
    labels: Int32[np.ndarray, " num_items"]
    splits: np.ndarray
    read: Callable[[int], Stored]
    item_shape: tuple[int | None, ...] = (None, None, None)
    unlabelled: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    default_positive: tuple[str, ...] = ()
    home: Path | str | None = None
    fingerprint: Callable[[], str] = lambda: ""
    read_many: Callable[[Sequence[int]], Sequence[Stored]] | None = None

    def read_together(self, items: Sequence[int]) -> Callable[[int], Stored]:
        """Return `read`; of these items, what is faster read together is read now. Thread-safe."""
        if self.read_many is None or not len(items):
            return self.read
        try:
            found = dict(zip(items, self.read_many(items), strict=True))
        except UnreadableImage:  # Which one it is, is found one by one.
            return self.read
        return lambda item: found[item] if item in found else self.read(item)

    def left_out(self) -> dict[str, str]:
        """Return the reason for each name that was found and has no item."""
        return dict(self.ignored) | dict.fromkeys(self.unlabelled, "outside every class folder")
