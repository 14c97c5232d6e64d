"""What kind of answer targets ask for."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.diagnosis.targets import TargetKind, describe_targets

from .zoo import normal

CLASSES, EYE = np.arange(30) % 3, np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("targets", "kind", "num_classes"),
    [
        (CLASSES, TargetKind.CLASSES, 3),
        (CLASSES[:, None].astype(np.float32), TargetKind.CLASSES, 3),
        # Counted from 1, so that one more output would be needed.
        (CLASSES + 1, TargetKind.CLASSES, 4),
        (CLASSES % 2, TargetKind.BINARY, 2),
        (2.0 * (CLASSES[:, None] % 2) - 1, TargetKind.BINARY, 2),
        (EYE[CLASSES], TargetKind.ONE_HOT, 3),
        (np.eye(3, dtype=int)[CLASSES], TargetKind.ONE_HOT, 3),
        (EYE[CLASSES] + EYE[0], TargetKind.AMOUNTS, 0),
        ((np.asarray(normal(0, 30, 5)) > 0).astype(np.float32), TargetKind.BITS, 5),
        (normal(1, 30), TargetKind.AMOUNTS, 0),
        (normal(2, 30, 2), TargetKind.AMOUNTS, 0),
        # Whole numbers that are far apart are prices, not classes.
        (10.0 * np.arange(30), TargetKind.AMOUNTS, 0),
        (np.full(30, np.nan), TargetKind.UNKNOWN, 0),
        ({"a": CLASSES}, TargetKind.UNKNOWN, 0),
    ],
)  # fmt: skip
def test_kinds_of_targets(targets, kind, num_classes):
    described = describe_targets(targets)
    assert (described.kind, described.num_classes) == (kind, num_classes)


def test_mean_and_spread_are_by_column():
    values = normal(3, 40, 2) * jnp.array([1.0, 100.0]) + jnp.array([0.0, 7.0])
    described = describe_targets(values)
    exact = np.asarray(values, np.float64)
    chex.assert_trees_all_close(described.mean, exact.mean(0), rtol=1e-6)
    chex.assert_trees_all_close(described.std, exact.std(0), rtol=1e-6)
    assert (described.low, described.high) == (exact.min(), exact.max())
    assert described.is_float
    assert not describe_targets(CLASSES).is_float
