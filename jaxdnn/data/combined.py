"""Several sources as one."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdnn.data.files import digest
from jaxdnn.data.source import Source
from jaxdnn.data.splits import train_validation_test


def with_splits(
    source: Source, *, validation_fraction: float, test_fraction: float, seed: int
) -> Source:
    """Write into every item the part that it is drawn for. Raises InputError."""
    parts = train_validation_test(
        source, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed
    )
    splits = np.array(source.splits, dtype="U10")
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        splits[part] = name
    return dataclasses.replace(source, splits=splits)


def combine(sources: Sequence[Source]) -> Source:
    """Put the items of sources one after the other; classes of one name are one class.

    Sources that have splits should all have them (`with_splits`): what has no test in one of them
    would never be tested.
    """
    class_names = tuple(dict.fromkeys(name for each in sources for name in each.class_names))
    label_of = {name: label for label, name in enumerate(class_names)}
    relabelled = [np.array([label_of[n] for n in each.class_names], np.int32) for each in sources]
    ends = np.cumsum([len(each.labels) for each in sources])

    def read(item: int) -> bytes | np.ndarray:
        number = int(np.searchsorted(ends, item, side="right"))
        source = sources[number]
        return source.read(item - int(ends[number]) + len(source.labels))

    return Source(
        name=" and ".join(each.name for each in sources),
        class_names=class_names,
        item_names=[f"{each.name}: {name}" for each in sources for name in each.item_names],
        labels=np.concatenate(
            [labels[each.labels] for labels, each in zip(relabelled, sources, strict=True)]
        ),
        splits=np.concatenate([each.splits for each in sources]),
        read=read,
        item_shape=tuple(
            sides[0] if len(set(sides)) == 1 else None
            for sides in zip(*(each.item_shape for each in sources), strict=True)
        ),
        outside=tuple(name for each in sources for name in each.outside),
        set_aside=tuple(found for each in sources for found in each.set_aside),
        default_positive=sources[0].default_positive,
        home=sources[0].home,
        fingerprint=lambda: digest(each.fingerprint() + each.name for each in sources),
    )
