"""The results of many networks as a table: one row for each network and layer, or step."""

from __future__ import annotations

import csv
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxdnn import run_folder
from jaxdnn.propagation.verdict import Flow, summarise

STATISTICS = (
    "pre_activation_mean",
    "pre_activation_rms",
    "delta_rms",
    "kernel_grad_rms",
    "dead_fraction",
    "saturated_fraction",
    "correlation",
)


class Combination(NamedTuple):
    """What the networks of one line of the summary have in common."""

    initializer: str
    activation: str
    norm: str
    depth: int
    width: int


# Statistic -> (seed, layer).
Layers = Mapping[str, np.ndarray]
Table = dict[Combination, Layers]


def write_csv(table: Table, seeds: range, path: Path) -> None:
    """Write grad_flow.csv: a row for each network and layer, layer 1 nearest the input."""
    rows = (
        row
        for combination, layers in table.items()
        for row in network_rows(
            combination, seeds, range(1, combination.depth + 1), layers, STATISTICS
        )
    )
    run_folder.write_csv(path, header("layer", STATISTICS), rows)


def header(place: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a table with a row for each network and place in it."""
    return (*Combination._fields, "seed", place, *names)


def network_rows(
    combination: Combination,
    seeds: Sequence[int],
    places: Sequence[int],
    values: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of one combination.

    Args:
      combination: of the networks.
      seeds: of each network.
      places: layers or steps, by number.
      values: name -> (seed, place).
      names: of the columns.
    """
    columns = np.stack([values[name] for name in names], axis=-1).tolist()
    for seed, network in zip(seeds, columns, strict=True):
        for place, numbers in zip(places, network, strict=True):
            yield (*combination, seed, place, *numbers)


def read_csv(path: Path) -> Table:
    """Read what `write_csv` wrote."""
    return {**read_networks(path, STATISTICS, _combination)}


def _combination(line: Mapping[str, str]) -> Combination:
    kind = (line["initializer"], line["activation"], line["norm"])
    return Combination(*kind, int(line["depth"]), int(line["width"]))


Key = TypeVar("Key", bound=Hashable)


def read_networks(
    path: Path, names: Sequence[str], key_of: Callable[[dict[str, str]], Key]
) -> dict[Key, dict[str, np.ndarray]]:
    """Read a table of networks: key -> name of a column -> (seed, place)."""
    gathered: dict[Key, dict[str, dict[int, list[float]]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            networks = gathered.setdefault(key_of(line), {name: {} for name in names})
            for name in names:
                networks[name].setdefault(int(line["seed"]), []).append(float(line[name]))
    return {
        key: {name: np.array(list(seeds.values())) for name, seeds in networks.items()}
        for key, networks in gathered.items()
    }


def summary(table: Table) -> dict[Combination, Flow]:
    """Return the factor, total and verdict of every combination."""
    return {
        combination: summarise(layers["delta_rms"], layers["dead_fraction"])
        for combination, layers in table.items()
    }
