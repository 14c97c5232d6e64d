"""A race run portion by portion and kept on disk, so that it can be interrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdnn.config import Config
from jaxdnn.data import Dataset
from jaxdnn.propagation import is_due, load_cell, save_cell
from jaxdnn.race.race import Race
from jaxdnn.race.race_network import make_lane
from jaxdnn.race.race_program import initial_states, make_race
from jaxdnn.training import Setup

# Statistic -> (initializer, activation, seed, recorded step, or layer for those of `Start`).
Results = dict[str, np.ndarray]


def run_race(
    race: Race,
    setup: Setup,
    folder: Path,
    *,
    load: Callable[[Config], Dataset],
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> Results:
    """Train everybody; what is found in `folder` is not trained again.

    Args:
      race: who takes part.
      setup: of any of the runs.
      folder: keeps an .npz for each activation and seed; it belongs to this race alone.
      load: the images that settings name; of each seed equally many.
      on_done: called with the number of networks of each finished portion.
      interrupted: asked before each portion.

    Raises:
      Interrupted: with everything finished kept.
    """
    program = make_race(race, setup, side_by_side=jax.default_backend() != "cpu")
    states, found = None, []
    for row, seed in enumerate(race.seeds):
        lane = None
        for which, activation in enumerate(race.activations):
            path = folder / f"{activation}-{seed}.npz"
            if is_due(path, interrupted):
                states = initial_states(race, setup) if states is None else states
                lane = lane or make_lane(load(dataclasses.replace(race.config, seed=seed)), seed)
                own = jax.tree.map(lambda leaf, row=row: leaf[row], states)
                curves, start = program(which, own, lane)
                before = {f"start_{name}": x for name, x in start._asdict().items()}
                save_cell(path, curves._asdict() | before)
            found.append(load_cell(path))
            on_done(len(race.initializers))
    shape = (len(race.seeds), len(race.activations), len(race.initializers), -1)
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    return {name: values.reshape(shape).swapaxes(0, 2) for name, values in stacked.items()}
