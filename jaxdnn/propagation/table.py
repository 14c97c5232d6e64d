"""The results of many networks: a row for each network and layer or step, and a verdict.

From the moments of many seeds to a factor per layer and a plain word everything is done on
logarithms: a product of many random factors is far from its mean, so that means of raw norms
mislead.

References:
  Hanin, "Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?", 2018.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from jaxdnn import run_folder
from jaxdnn.propagation.moments import DEAD_FRACTION, HEALTHY_LOG10

Verdict = Literal["vanishes", "healthy", "explodes", "dead"]
_SMALLEST = float(np.finfo(np.float32).tiny)
_GREATEST = float(np.finfo(np.float32).max)
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
      combination: what the networks have in common; the first columns.
      seeds: one for each network.
      places: layers or steps, by number.
      values: name -> (seed, place).
      names: which of the values become columns.
    """
    columns = np.stack([values[name] for name in names], axis=-1).tolist()
    for seed, network in zip(seeds, columns, strict=True):
        for place, numbers in zip(places, network, strict=True):
            yield (*combination, seed, place, *numbers)


def read_csv(path: Path) -> Table:
    """Read what `write_csv` wrote."""
    return {**read_networks(path, STATISTICS, combination_of)}


def combination_of(line: Mapping[str, str]) -> Combination:
    """Return what a row of a table is about, by its columns' names."""
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


class Flow(NamedTuple):
    """What happens to delta on its way from the last hidden layer to the first.

    Attributes:
      factor_median: delta's RMS in one layer over that in the layer above, median over layers and
        seeds; NaN where no two neighbouring layers have a finite delta above zero.
      factor_low: its 5th percentile.
      factor_high: its 95th percentile.
      log10_total: log10 of delta's RMS in the first layer over that in the last hidden layer,
        median over seeds. Values outside float32 count as its limits, so that beyond them it is a
        bound. NaN where dead, and where delta is not finite even in the last hidden layer.
      verdict: `dead` where nothing gets through (delta is zero in the last hidden layer, or a layer
        has no live unit), otherwise `vanishes` or `explodes` where the total changes by more than
        100 times, otherwise `healthy`. `explodes`, too, where delta is not finite in the last
        hidden layer: the signal left the number format on its way forward.
    """

    factor_median: float
    factor_low: float
    factor_high: float
    log10_total: float
    verdict: Verdict


def summarise(
    delta_rms: Float[np.ndarray, "seed layer"], dead_fraction: Float[np.ndarray, "seed layer"]
) -> Flow:
    """Summarise one combination of initializer, activation, norm and depth over its seeds.

    Args:
      delta_rms: root mean square of dL/dz in all layers, the output last.
      dead_fraction: share of units without slope, in [0, 1]; the output has no activation.
    """
    hidden, dead = np.asarray(delta_rms[:, :-1], np.float64), dead_fraction[:, :-1]
    if hidden.shape[1] == 0:
        return Flow(math.nan, math.nan, math.nan, 0.0, "healthy")
    low, median, high = _factors(hidden)
    clipped = np.clip(np.nan_to_num(hidden, nan=_GREATEST), _SMALLEST, _GREATEST)
    total = float(np.median(np.log10(clipped[:, 0] / clipped[:, -1])))
    is_dead = (hidden[:, -1] == 0) | (dead >= DEAD_FRACTION).any(axis=1)
    if np.mean(is_dead) > 0.5:
        return Flow(median, low, high, math.nan, "dead")
    if np.mean(~np.isfinite(hidden[:, -1])) > 0.5:
        return Flow(median, low, high, math.nan, "explodes")
    return Flow(median, low, high, total, _word(total))


def _factors(hidden: Float[np.ndarray, "seed layer"]) -> tuple[float, float, float]:
    """Percentiles 5, 50 and 95 of the ratio of neighbouring layers, where both are known."""
    known = np.isfinite(hidden) & (hidden > 0)
    usable = known[:, :-1] & known[:, 1:]
    if not usable.any():
        return math.nan, math.nan, math.nan
    logs = np.log(np.where(known, hidden, 1.0))
    steps = (logs[:, :-1] - logs[:, 1:])[usable]
    low, median, high = np.exp(np.percentile(steps, [5, 50, 95]))
    return float(low), float(median), float(high)


def _word(log10_total: float) -> Verdict:
    if abs(log10_total) <= HEALTHY_LOG10:
        return "healthy"
    return "vanishes" if log10_total < 0 else "explodes"
