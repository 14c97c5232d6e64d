"""The lecture's classroom game: how far each weight of the chain walks.

A person stands for each weight. All start side by side, and in each training step a person walks
60 * rate * D floor tiles: 60 tiles are a change of the weight by 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

TILES_PER_UNIT = 60


@dataclasses.dataclass(frozen=True)
class Walk:
    """How one weight moved.

    Attributes:
      layer: its number, 1 nearest the input.
      name: `w3`, or of several inputs' weights in the first layer the one that got farthest.
      start: before the first step.
      updates: (step,), what each step added: -rate * D.
    """

    layer: int
    name: str
    start: float
    updates: np.ndarray

    @property
    def tiles(self) -> np.ndarray:
        """Where it stands, in tiles from its start, before the first and after each step."""
        return TILES_PER_UNIT * np.concatenate([[0.0], np.cumsum(self.updates)])

    @property
    def distance(self) -> float:
        """How far from its start it ends, in tiles."""
        return float(abs(self.tiles[-1]))

    @property
    def end(self) -> float:
        """The weight after the last step."""
        return self.start + float(self.updates.sum())

    def steps_to(self, goal: float) -> float:
        """Return how many steps it needs to get `goal` tiles away, at the pace of these steps."""
        steps = len(self.updates) * goal / self.distance if self.distance else math.inf
        return float(np.ceil(steps))


def walks(table: Mapping[str, np.ndarray], learning_rate: float) -> list[Walk]:
    """Return the walk of each layer's weight, the first layer's first."""
    found: dict[int, Walk] = {}
    for name, weights in table.items():
        if name.startswith("w"):
            layer = int(name[1:].partition("[")[0])
            updates = 0.0 - learning_rate * table["D" + name[1:]]
            walk = Walk(layer, name, float(weights[0]), updates)
            found[layer] = max(found.get(layer, walk), walk, key=lambda walk: walk.distance)
    return list(found.values())
