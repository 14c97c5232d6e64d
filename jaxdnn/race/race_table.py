"""The results of a race as a table, and who has learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdnn import run_folder
from jaxdnn.propagation import Combination, Flow, header, network_rows, summarise
from jaxdnn.race.race import Curves, Race
from jaxdnn.race.race_run import Results

# A network has learned where its loss is below this share of that of guessing.
LEARNED = 0.9


def write_race_csv(race: Race, results: Results, path: Path) -> None:
    """Write race.csv: a row for each network and recorded step."""
    rows = (
        row
        for key, own in _by_combination(race, results)
        for row in network_rows(key, race.seeds, race.recorded_steps.tolist(), own, Curves._fields)
    )
    run_folder.write_race_csv(path, header("step", Curves._fields), rows)


def _by_combination(race: Race, results: Results) -> Iterator[tuple[Combination, Results]]:
    """Yield what belongs to each initializer and activation: statistic -> (seed, ...)."""
    widths, norm = race.config.model.widths, race.config.model.norm
    for i, initializer in enumerate(race.initializers):
        for a, activation in enumerate(race.activations):
            key = Combination(initializer, activation, norm, len(widths) + 1, widths[0])
            yield key, {name: values[i, a] for name, values in results.items()}


def guess_loss(labels: Int[np.ndarray, " num"]) -> float:
    """Return the loss of guessing the class frequencies: their entropy, in nats."""
    frequencies = np.bincount(labels) / len(labels)
    return float(-np.sum(frequencies * np.log(np.where(frequencies > 0, frequencies, 1.0))))


class Outcome(NamedTuple):
    """How training went.

    Attributes:
      learned: the last recorded loss, median over seeds, is below `LEARNED` times that of guessing
        the class frequencies. A network whose output no longer depends on the image gets below
        that of guessing by chance only; 3,000 images between two records all but rule that out.
      steps_to_learn: the first recorded step from which on that holds; None if not `learned`.
      final_loss: that median; NaN where most seeds diverged.
    """

    learned: bool
    steps_to_learn: int | None
    final_loss: float


def judge(loss: Float[np.ndarray, "seed step"], steps: np.ndarray, guess: float) -> Outcome:
    """Tell whether the networks of one combination learned, and when."""
    # Diverged counts as infinitely bad: a median over the other seeds would hide it.
    median = np.median(np.where(np.isnan(loss), np.inf, loss), axis=0)
    above = np.flatnonzero(~(median < LEARNED * guess))
    first = 0 if len(above) == 0 else int(above[-1]) + 1
    final = float(median[-1]) if math.isfinite(median[-1]) else math.nan
    if first == len(steps):
        return Outcome(False, None, final)
    return Outcome(True, int(steps[first]), final)


def race_summary(
    race: Race, results: Results, guess: float
) -> list[tuple[Combination, Outcome, Flow]]:
    """Return how every combination did, next to the sweep's verdict before training."""
    return [
        (
            key,
            judge(own["loss"], race.recorded_steps, guess),
            summarise(own["start_delta_rms"], own["start_dead_fraction"]),
        )
        for key, own in _by_combination(race, results)
    ]
