"""Who learns from what: parts drawn by seed, one class against the others, weights of classes.

The 118 dogs among ImageNet's 1,000 classes are known by their WordNet identifiers: the hyponyms of
n02084071 (dog, Canis familiaris) among the synsets of ILSVRC 2012, which are those from n02085620
(Chihuahua) to n02113978 (Mexican hairless); wolves (n02114367) and wild dogs (dhole n02115913,
African hunting dog n02116738) come after them.

References:
  ImageNet Large Scale Visual Recognition Challenge (Russakovsky et al., 2015).
  WordNet: A Lexical Database for English (Miller, 1995), version 3.0.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32

from jaxdnn.data.source import Source
from jaxdnn.errors import InputError

OTHER = "other"

_SYNSET_LENGTH = len("n02084071")
_SHOWN = 20

# fmt: off
DOG_SYNSETS = frozenset((
    "n02085620", "n02085782", "n02085936", "n02086079", "n02086240", "n02086646",
    "n02086910", "n02087046", "n02087394", "n02088094", "n02088238", "n02088364",
    "n02088466", "n02088632", "n02089078", "n02089867", "n02089973", "n02090379",
    "n02090622", "n02090721", "n02091032", "n02091134", "n02091244", "n02091467",
    "n02091635", "n02091831", "n02092002", "n02092339", "n02093256", "n02093428",
    "n02093647", "n02093754", "n02093859", "n02093991", "n02094114", "n02094258",
    "n02094433", "n02095314", "n02095570", "n02095889", "n02096051", "n02096177",
    "n02096294", "n02096437", "n02096585", "n02097047", "n02097130", "n02097209",
    "n02097298", "n02097474", "n02097658", "n02098105", "n02098286", "n02098413",
    "n02099267", "n02099429", "n02099601", "n02099712", "n02099849", "n02100236",
    "n02100583", "n02100735", "n02100877", "n02101006", "n02101388", "n02101556",
    "n02102040", "n02102177", "n02102318", "n02102480", "n02102973", "n02104029",
    "n02104365", "n02105056", "n02105162", "n02105251", "n02105412", "n02105505",
    "n02105641", "n02105855", "n02106030", "n02106166", "n02106382", "n02106550",
    "n02106662", "n02107142", "n02107312", "n02107574", "n02107683", "n02107908",
    "n02108000", "n02108089", "n02108422", "n02108551", "n02108915", "n02109047",
    "n02109525", "n02109961", "n02110063", "n02110185", "n02110341", "n02110627",
    "n02110806", "n02110958", "n02111129", "n02111277", "n02111500", "n02111889",
    "n02112018", "n02112137", "n02112350", "n02112706", "n02113023", "n02113186",
    "n02113624", "n02113712", "n02113799", "n02113978",
))
# fmt: on

GROUPS = {"dog": DOG_SYNSETS}
"""Name of a group -> identifiers that the names of its classes begin with."""


def stratified_split(
    labels: Int[np.ndarray, " num"],
    fraction: float,
    seed: int,
    *,
    class_names: Sequence[str] | None = None,
) -> tuple[Int[np.ndarray, " num_kept"], Int[np.ndarray, " num_drawn"]]:
    """Draw a fraction of every class.

    Of a class with n items, fraction * n are drawn, rounded half up, but at least 1 and at most
    n - 1. What is drawn of one class depends on the seed, its label and n alone.

    Args:
      labels: class of each item, >= 0.
      fraction: share to draw, in (0, 1).
      seed: decides which are drawn; 0 or more.
      class_names: by label, for the error message.

    Returns:
      Indices of the items kept and of those drawn, each sorted.

    Raises:
      InputError: the fraction is not in (0, 1), or a class has a single item.
    """
    if not 0 < fraction < 1:
        raise InputError(f"split fraction {fraction}; expected more than 0 and less than 1")
    is_drawn = np.zeros(len(labels), bool)
    for label, members in by_class(labels):
        if len(members) < 2:
            name = class_names[label] if class_names else f"with label {label}"
            raise InputError(
                f"class {name} has 1 image to split; expected at least 2, one for each side; "
                "add images or remove the class"
            )
        num_drawn = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        # Sorted uniform numbers: NumPy keeps their stream, but may change that of permutation.
        order = np.random.default_rng([seed, int(label)]).random(len(members)).argsort()
        is_drawn[members[order[:num_drawn]]] = True
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def by_class(
    labels: Int[np.ndarray, " num"],
) -> Iterator[tuple[int, Int[np.ndarray, " num_of_class"]]]:
    """Yield each label that occurs, and the places where it does, in order, in one pass."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts)[1:], strict=True)


def class_weights(
    labels: Int[np.ndarray, " num"], num_classes: int
) -> Float32[np.ndarray, " num_classes"]:
    """Return n / (k n_c) for each class c: every class then weighs the same, 1 on average.

    Raises:
      InputError: a class has no items.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise InputError(f"no items of class {int(counts.argmin())}; expected some of every class")
    return (len(labels) / (num_classes * counts)).astype(np.float32)


def missing_classes(class_names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a line for each split that lacks classes: it says nothing about these.

    Args:
      class_names: by label.
      counts: images of each class, by the name of the split.
    """
    lines = []
    for split, found in counts.items():
        missing = [name for name, num in zip(class_names, found, strict=True) if not num]
        if missing:
            lines.append(
                f"no {split} image of {len(missing):,} of {len(class_names):,} classes: "
                f"{_listed(missing)}"
            )
    return lines


def train_validation_test(
    source: Source, *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"], Int[np.ndarray, " test"]]:
    """Return the indices of each part: the source's own, or drawn from its training images.

    A missing test is drawn first, then a missing validation from the training images that are
    left.

    Raises:
      InputError: no training images, or too few of a class to draw from.
    """
    train, validation, test = (
        np.flatnonzero(np.isin(source.splits, names))
        for names in (["", "train"], ["validation"], ["test"])
    )
    if not len(train):
        raise InputError(
            f"no training images in {source.name}, only {len(validation)} to validate and "
            f"{len(test)} to test; expected a split named train; add one"
        )
    if not len(test):
        train, test = _drawn(source, train, test_fraction, seed)
    if not len(validation):
        train, validation = _drawn(source, train, validation_fraction, seed)
    return train, validation, test


def _drawn(
    source: Source, train: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    kept, drawn = stratified_split(
        source.labels[train], fraction, seed, class_names=source.class_names
    )
    return train[kept], train[drawn]


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
