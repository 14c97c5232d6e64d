"""The race: networks that differ in initializer, activation and seed, trained side by side.

Each is the network that a single training run makes of the same settings, with the same weights at
the start, the same batches and the same steps. `race_network.py` trains one of them,
`race_program.py` compiles many into one program, `race_run.py` keeps what is finished, and
`race_table.py` says who learned.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jax import Array

from jaxdnn.config import Config


@dataclasses.dataclass(frozen=True)
class Race:
    """Who takes part, how long, and when it is recorded.

    Attributes:
      config: of a single run of them; initializer, activation and seed are replaced. It trains a
        multi-layer perceptron on data as it is: not balanced, not augmented, at a constant
        learning rate.
      initializers: by name.
      activations: by name.
      seeds: of the weights, the order of the images and the validation split.
      num_steps: optimizer steps.
      record_every: steps between two records.
    """

    config: Config
    initializers: tuple[str, ...]
    activations: tuple[str, ...]
    seeds: range
    num_steps: int
    record_every: int

    @property
    def recorded_steps(self) -> np.ndarray:
        """The steps after which something is recorded: 0, record_every, ..., num_steps."""
        return np.array([*range(0, self.num_steps, self.record_every), self.num_steps])

    @property
    def num_networks(self) -> int:
        """How many networks are trained."""
        return len(self.initializers) * len(self.activations) * len(self.seeds)

    def config_of(self, initializer: str, activation: str, seed: int) -> Config:
        """Return the settings of one network."""
        model = dataclasses.replace(
            self.config.model, initializer=initializer, activation=activation
        )
        return dataclasses.replace(self.config, model=model, seed=seed)


class Curves(NamedTuple):
    """What happens to a network, over the recorded steps.

    Attributes:
      loss: mean over the steps since the last record, as they were taken; at step 0 that of the
        first batch. NaN from divergence on.
      accuracy: likewise.
      delta_first_rms: root mean square of dL/dz in the first hidden layer, on the next batch.
      delta_last_rms: in the last hidden layer.
    """

    loss: Array
    accuracy: Array
    delta_first_rms: Array
    delta_last_rms: Array


class Start(NamedTuple):
    """What the sweep measures before training, on the first batch: one entry for each layer."""

    delta_rms: Array
    dead_fraction: Array
