"""One class, or some, against the others."""

import difflib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from jaxdnn.data.dog_synsets import DOG_SYNSETS
from jaxdnn.errors import InputError

OTHER = "other"
GROUPS = {"dog": DOG_SYNSETS}
"""Name of a group -> identifiers that the names of its classes begin with."""

_SYNSET_LENGTH = len("n02084071")
_SHOWN = 20


def binarise_labels(
    labels: Int32[np.ndarray, " num"], class_names: Sequence[str], positive: Sequence[str]
) -> tuple[Int32[np.ndarray, " num"], tuple[str, ...]]:
    """Relabel the classes in `positive` as 1 and the others as 0; without any, change nothing.

    A name stands for the class of that name, in any case, and for the classes of its group: `dog`
    for ImageNet's dogs, known by the identifiers that their names begin with.

    Returns:
      The labels and the class names, ('other', 'a+b') for positive classes a and b.

    Raises:
      InputError: an unknown class, or every class is positive.
    """
    positive = tuple(dict.fromkeys(positive))
    if not positive:
        return labels, tuple(class_names)
    meant = {name: _classes_of(name, class_names) for name in positive}
    unknown = [name for name in positive if not meant[name]]
    if unknown:
        raise InputError(
            f"--positive {unknown[0]!r} is not a class{_did_you_mean(unknown[0], class_names)}; "
            f"expected some of {_listed(class_names)}"
        )
    is_positive = np.isin(class_names, [label for found in meant.values() for label in found])
    if is_positive.all():
        raise InputError(
            f"--positive names all {len(class_names)} classes; expected at least one left as "
            f"{OTHER!r}; name fewer, or add images of others with --other"
        )
    return is_positive[labels].astype(np.int32), (OTHER, "+".join(positive))


def _classes_of(name: str, class_names: Sequence[str]) -> list[str]:
    synsets = GROUPS.get(name.casefold(), frozenset())
    alike = [found for found in class_names if found.casefold() == name.casefold()]
    same = [name] if name in class_names else alike
    return [*same, *(found for found in class_names if found[:_SYNSET_LENGTH] in synsets)]


def _did_you_mean(name: str, class_names: Sequence[str]) -> str:
    folded = {class_name.casefold(): class_name for class_name in class_names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _listed(class_names: Sequence[str]) -> str:
    rest = len(class_names) - _SHOWN
    more = f", … ({rest} more)" if rest > 0 else ""
    return ", ".join(class_names[:_SHOWN]) + more
