"""A finding, and the thresholds by which findings of all kinds are ranked."""

from __future__ import annotations

from typing import Literal, NamedTuple

# What a fault is of, as public collections of faults sort them.
Category = Literal[
    "output activation",
    "hidden activation",
    "loss",
    "learning rate",
    "optimizer",
    "initialisation",
    "input scale",
    "target scale",
    "target shape",
    "labels",
    "architecture",
    "regularisation",
    "numerics",
]

# A deviation of so many spreads is named.
NAMED = 3.0
# Spreads of healthy networks, in logs.
WEIGHT_SPREAD = 0.15
ACTIVATION_SPREAD = 0.12
DROPOUT_SPREAD = 0.3
PADDING_SPREAD = 0.3
FACTOR_SPREAD = 2.3
# What no spread explains.
CERTAIN = 100.0
# What stops all learning whatever the weights are.
BLOCKING = 1000.0
STRUCTURAL = 20.0


class Finding(NamedTuple):
    """What a finder of one kind of cause found.

    Attributes:
      layer: index; None for what is not about a layer.
      evidence: the numbers that say so, in words.
      strength: deviation over the spread of healthy networks; below `NAMED` it is not reported,
        from `BLOCKING` on it stops all learning.
      category: where it is not that of its kind.
      line: of the user's program, as `file:line`, where known.
    """

    layer: int | None
    evidence: str
    strength: float
    category: Category | None = None
    line: str | None = None
