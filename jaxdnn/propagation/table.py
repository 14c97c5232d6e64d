"""The results of a sweep as a table: one row for each network and layer."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

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


class Row(NamedTuple):
    """One layer of one network: a line of grad_flow.csv."""

    initializer: str
    activation: str
    norm: str
    depth: int
    width: int
    seed: int
    layer: int
    pre_activation_mean: float
    pre_activation_rms: float
    delta_rms: float
    kernel_grad_rms: float
    dead_fraction: float
    saturated_fraction: float
    correlation: float


# Statistic -> (seed, layer).
Layers = Mapping[str, np.ndarray]
Table = dict[Combination, Layers]


def rows(table: Table, seeds: range) -> Iterator[Row]:
    """Yield every row, layer 1 nearest the input."""
    for combination, layers in table.items():
        columns = np.stack([layers[name] for name in STATISTICS], axis=-1).tolist()
        for seed, network in zip(seeds, columns, strict=True):
            for layer, values in enumerate(network, start=1):
                yield Row(*combination, seed, layer, *values)


def write_csv(table: Table, seeds: range, path: Path) -> None:
    """Write grad_flow.csv in one piece."""
    draft = path.with_name(path.name + ".part")
    with draft.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows(table, seeds))
    draft.replace(path)


def read_csv(path: Path) -> Table:
    """Read what `write_csv` wrote."""
    gathered: dict[Combination, dict[str, dict[int, list[float]]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            key = (line["initializer"], line["activation"], line["norm"])
            combination = Combination(*key, int(line["depth"]), int(line["width"]))
            networks = gathered.setdefault(combination, {name: {} for name in STATISTICS})
            for name in STATISTICS:
                networks[name].setdefault(int(line["seed"]), []).append(float(line[name]))
    return {
        combination: {name: np.array(list(seeds.values())) for name, seeds in networks.items()}
        for combination, networks in gathered.items()
    }


def summary(table: Table) -> dict[Combination, Flow]:
    """Return the factor, total and verdict of every combination."""
    return {
        combination: summarise(layers["delta_rms"], layers["dead_fraction"])
        for combination, layers in table.items()
    }
