"""What a data set must have, or must not, before anything is trained on it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from jaxdnn.data.materialise import Skipped
from jaxdnn.errors import InputError

_SHOWN = 5


def check_unreadable(
    unreadable: Sequence[Skipped], num_items: int, max_fraction: float, origin: str
) -> None:
    """Raise InputError where more than that share of the images is unreadable."""
    if len(unreadable) <= max_fraction * num_items:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:_SHOWN])
    share = len(unreadable) / num_items
    raise InputError(
        f"{len(unreadable)} of {num_items} images ({share:.1%}) in {origin} are unreadable "
        f"({first}); expected at most {max_fraction:.1%}; "
        "mend or remove them, or allow more with --max-unreadable FRACTION"
    )


def check_classes(
    labels: Sequence[Int32[np.ndarray, " _"]], class_names: Sequence[str], origin: str
) -> None:
    """Check that there are images of each part, and some of every class to train.

    Raises:
      InputError: naming what is missing.
    """
    for name, of_part in zip(("training", "validation", "test"), labels, strict=True):
        if not len(of_part):
            raise InputError(f"no {name} images in {origin}; expected at least one; add images")
    counts = np.bincount(labels[0], minlength=len(class_names))
    if (counts == 0).any():
        missing = class_names[int(counts.argmin())]
        raise InputError(
            f"no training images of class {missing!r} in {origin}; expected some of every class; "
            "add images or remove the class"
        )


def check_leakage(leakage: str, *, allowed: bool) -> None:
    """Raise InputError where images to learn from are among the test images, unless allowed."""
    if leakage and not allowed:
        raise InputError(
            f"{leakage}; expected none, or the test says too much; remove them, or allow them with "
            "--allow-duplicates"
        )
