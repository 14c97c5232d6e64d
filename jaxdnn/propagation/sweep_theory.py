"""What theory expects of a sweep's networks, and whether what was measured agrees.

Theory is that of infinite width, layer by layer from the batch's own second moment on
(`finite_depth`). A network of finite width has, on average over its weights, a lower log factor:
delta's mean square is multiplied by a random S_l with E S_l = 1, and where ln S_l is about normal,
E ln S_l = -Var(ln S_l) / 2. For the RMS, m = ln(S) / 2, that is E m = -Var m, which the seeds tell.

One thing theory leaves out: the part of delta along the signal, a share of about 1/width at the
output, which may grow where all others fade (see `finite_depth`). Layers that it reaches are said
to be outside theory, and only those above are compared.

References:
  Hanin, "Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?", 2018.
  Student, "The Probable Error of a Mean", 1908.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxdnn import run_folder
from jaxdnn.activations import Activation
from jaxdnn.initializers import Initializer
from jaxdnn.propagation.finite_depth import OUTSIDE, batch_norm_rate, predict
from jaxdnn.propagation.gradient_flow import Architecture
from jaxdnn.propagation.sweep import Grid
from jaxdnn.propagation.table import Combination, Table, combination_of

# Chance that a network that obeys theory is flagged.
_FALSE_ALARM = 1e-4
# Below this RMS some entries are too small for float32.
_LEAST = 1e-32
# Greatest share of delta's mean square along the signal that goes unnoticed.
_ALONG = 0.01


class Expected(NamedTuple):
    """What infinite width expects of the hidden layers, the one nearest the input first.

    Attributes:
      pre_activation_rms: root mean square of the pre-activation, (hidden,).
      factor: RMS of delta in a layer over that in the next hidden one, (hidden,); NaN in the last.
      along: factor of the RMS of that part of delta alone that points along the signal, (hidden,).
    """

    pre_activation_rms: Float[np.ndarray, " hidden"]
    factor: Float[np.ndarray, " hidden"]
    along: Float[np.ndarray, " hidden"]


class Comparison(NamedTuple):
    """Measured against expected.

    Attributes:
      factor_theory: expected factor of delta's RMS per layer, median over the layers; NaN where
        there are fewer than two hidden layers.
      log10_total_theory: expected log10 of delta's RMS in the first hidden layer over the last's.
      agrees: whether the seeds' mean log factor is as expected, up to what the seeds and the
        finite width allow; None where that is unknown.
      note: why it is unknown, by how much it differs, which layers are outside theory; else
        empty.
    """

    factor_theory: float
    log10_total_theory: float
    agrees: bool | None
    note: str


def expect(grid: Grid) -> dict[Combination, Expected]:
    """Return what theory expects of every combination of a sweep."""
    found = {}
    for architecture in grid.architectures:
        for activation in grid.activations:
            both = zip(grid.initializers, _expect(grid, architecture, activation), strict=True)
            for initializer, expected in both:
                kind = (initializer.name, activation.name, architecture.norm)
                found[Combination(*kind, architecture.depth, architecture.width)] = expected
    return found


def _expect(grid: Grid, architecture: Architecture, activation: Activation) -> Iterator[Expected]:
    """Yield what is expected with each initializer, in order."""
    hidden = architecture.depth - 1
    num_inputs, moment = architecture.width, 1.0
    if grid.batch is not None:
        num_inputs = grid.batch.inputs.shape[1]
        moment = float(np.mean(np.asarray(grid.batch.inputs, np.float64) ** 2))
    variances = [_variances(each, num_inputs, architecture.width) for each in grid.initializers]
    first, later = np.array(variances).T
    # One sigma_w² for all layers: what the first kernel has more or less goes to the input.
    inputs = moment * np.divide(first, later, out=np.ones_like(first), where=later > 0)
    predicted = jax.vmap(
        lambda sigma_w2, moment: predict(
            activation,
            sigma_w2,
            0.0,
            moment,
            depth=hidden,
            norm=architecture.norm,
            residual=architecture.residual,
        )
    )(later, inputs)
    factors, alongs = np.array(predicted.factor), np.array(predicted.along)
    # The last one is that of a further hidden layer; what follows here is the output.
    factors[:, -1] = alongs[:, -1] = np.nan
    for q, factor, along in zip(np.asarray(predicted.q), factors, alongs, strict=True):
        yield Expected(np.sqrt(q), factor, along)


def _variances(initializer: Initializer, num_inputs: int, width: int) -> tuple[float, float]:
    """Return sigma_w² = fan_in Var(w) of the first kernel and of the others."""
    shapes = (num_inputs, width), (width, width)
    first, later = (shape[0] * initializer.variance(shape) for shape in shapes)
    return first, later


def compare_all(
    grid: Grid, table: Table, expected: Mapping[Combination, Expected]
) -> dict[Combination, Comparison]:
    """Compare every combination of a sweep with what theory expects of it."""
    phis = {activation.name: activation for activation in grid.activations}
    return {
        key: compare(
            expected[key],
            layers["delta_rms"],
            layers["pre_activation_rms"],
            activation=phis[key.activation],
            norm=key.norm,
            width=key.width,
            batch_size=grid.num_examples,
        )
        for key, layers in table.items()
    }


def compare(
    expected: Expected,
    delta_rms: Float[np.ndarray, "seed layer"],
    pre_activation_rms: Float[np.ndarray, "seed layer"],
    *,
    activation: Activation,
    norm: str,
    width: int,
    batch_size: int,
) -> Comparison:
    """Compare one combination with what theory expects of it.

    Args:
      expected: what infinite width says of the hidden layers.
      delta_rms: measured root mean square of dL/dz in all layers, the output last.
      pre_activation_rms: measured root mean square of z in all layers, the output last.
      activation: function between the layers; decides whether batch norm is outside theory.
      norm: `none`, `batch` or `layer`.
      width: units of each hidden layer.
      batch_size: examples that were passed through; batch norm's theory is of many.
    """
    factors = expected.factor[:-1]
    if len(factors) == 0:
        return Comparison(math.nan, 0.0, None, "one hidden layer has no factor")
    with np.errstate(divide="ignore"):
        logs = np.log(factors)
    theory = math.exp(float(np.median(logs))), float(logs.sum() / math.log(10))
    outside = batch_norm_rate(activation).note if norm == "batch" else ""
    if outside:
        return Comparison(*theory, None, outside)
    # Batch norm's theory is of a large batch: to first order it is off by as much as 2/B.
    least = 2 / batch_size if norm == "batch" else 0.0
    inside = _share_along(expected) / width <= _ALONG
    known = inside & _held(delta_rms[:, :-1]) & _held(pre_activation_rms[:, :-1])
    agrees, note = _agreement(logs, delta_rms[:, :-1], known, least)
    if not inside.all() and agrees is not False:
        note = (
            f"{OUTSIDE} up to layer {np.flatnonzero(~inside)[-1] + 1}: there the part of delta "
            "along the signal, 1/width of it at the output, is no longer small"
        )
    return Comparison(*theory, agrees, note)


def _share_along(expected: Expected) -> Float[np.ndarray, " hidden"]:
    """Return by what the share of delta's mean square along the signal has grown in each layer."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(expected.along[:-1]) - np.log(expected.factor[:-1])
    steps = np.append(np.nan_to_num(steps, nan=0.0, posinf=0.0, neginf=-1e3), 0.0)
    return np.exp(np.minimum(2 * np.cumsum(steps[::-1])[::-1], 700.0))


def _held(rms: Float[np.ndarray, "seed layer"]) -> Bool[np.ndarray, " layer"]:
    """Tell the layers in which float32 holds all but a few entries, of all seeds."""
    return np.all(np.isfinite(rms) & (rms > _LEAST), axis=0)


def _agreement(
    expected: Float[np.ndarray, " pair"],
    hidden: Float[np.ndarray, "seed layer"],
    known: Bool[np.ndarray, " layer"],
    allowed: float,
) -> tuple[bool | None, str]:
    """Return whether the logs of neighbouring layers' ratios agree, and why not."""
    # Here, because it takes longer to import than all the rest.
    from scipy import stats

    usable = known[:-1] & known[1:] & np.isfinite(expected)
    if not usable.any():
        return None, "no two neighbouring layers have a signal and a delta that float32 holds"
    if len(hidden) < 2:
        return None, "one seed does not tell its spread"
    logs = np.log(np.where(known, hidden, 1.0))
    excess = ((logs[:, :-1] - logs[:, 1:]) - expected)[:, usable]
    difference = float(excess.mean())
    spread = float(excess.mean(axis=1).std(ddof=1)) / math.sqrt(len(excess))
    quantile = float(stats.t.ppf(1 - _FALSE_ALARM / 2, len(excess) - 1))
    # Twice what finite width costs, since the forward signal has a part as well; rounding.
    allowed += 2 * float(excess.var(axis=0, ddof=1).mean()) + 1e-5
    if abs(difference) <= quantile * spread + allowed:
        return True, ""
    return False, f"measured factor is {math.exp(difference):.4f} of the expected one"


def write_csv(expected: Mapping[Combination, Expected], path: Path) -> None:
    """Write theory.csv: a row for each combination and hidden layer, layer 1 nearest the input."""
    rows = (
        (*combination, layer, *values)
        for combination, both in expected.items()
        for layer, values in enumerate(np.stack(both, axis=-1).tolist(), start=1)
    )
    run_folder.write_csv(path, (*Combination._fields, "layer", *Expected._fields), rows)


def read_csv(path: Path) -> dict[Combination, Expected]:
    """Read what `write_csv` wrote."""
    gathered: dict[Combination, list[tuple[float, ...]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            values = tuple(float(line[name]) for name in Expected._fields)
            gathered.setdefault(combination_of(line), []).append(values)
    return {key: Expected(*np.array(values).T) for key, values in gathered.items()}
