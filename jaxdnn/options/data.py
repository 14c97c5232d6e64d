"""What to learn from."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdnn.options.checks import check, check_choices, check_range


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What to learn from."""

    data: str = "silhouettes"
    """Images: `silhouettes` (embedded), a folder or a .zip of {split}/{class}/... or {class}/...
    (also by an address such as gs://bucket/photos), or a prepared TFDS data set: `tfds:NAME` in
    --data-dir, or its folder."""
    other: str | None = None
    """More images, named like --data, whose classes join those of --data: with --positive they are
    the other side of a data set that holds dogs alone."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared; default ~/tensorflow_datasets."""
    positive: tuple[str, ...] | None = None
    """The positive class or classes, against all others: `--positive dog`. Without it every class
    stands for itself, except that the silhouettes are dog or other; `--positive` with nothing
    behind it makes them ten classes too."""
    image_size: int | None = None
    """Height and width in pixels after cropping to a square; default: the images' own size if they
    agree and are at most 227, otherwise 64."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; default: what the images are."""
    validation_fraction: float = 0.1
    """Share of the training images set aside for validation, where the data has no such split."""
    test_fraction: float = 0.2
    """Share of all images set aside for the test, where the data has no such split."""
    balance: Literal["none", "class_weights", "batches"] = "none"
    """Against imbalance: weigh the loss by class, or fill every batch with all classes equally
    (under --batch-size full, which has no batches to fill, the same as class_weights)."""
    max_unreadable: float = 0.01
    """Share of unreadable images that is skipped; more stop the run."""

    streaming: bool = False
    """Decode images when a batch needs them, instead of all before the first step; by itself where
    they would take more than --max-memory-gib. The batches are the same."""
    max_memory_gib: float | None = None
    """Most memory for decoded images, in GiB; default: a quarter of the machine's."""
    cache_gib: float = 4.0
    """Most disk, in GiB, for decoded images of a stream, kept beside the data (in .jaxdnn) so that
    only the first epoch decodes; 0 for none."""
    allow_duplicates: bool = False
    """Go on although training images are among the test images."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "image_size", 1)
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            check(0 < value < 1, f"{flag} is {value}; give a share above 0 and below 1")
        check_range(self, "max_unreadable", 0, 1)
        for name in ("max_memory_gib", "cache_gib"):
            check_range(self, name, 0)
        check(
            self.data_dir is None
            or any((name or "").startswith("tfds:") for name in (self.data, self.other)),
            f"--data-dir is for --data tfds:NAME, not for --data {self.data}; leave it out",
        )
