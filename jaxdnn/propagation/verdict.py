"""From the moments of many seeds to a factor per layer and a plain word.

Everything is done on logarithms: a product of many random factors is far from its mean, so that
means of raw norms mislead. Hanin, "Which Neural Net Architectures Give Rise to Exploding and
Vanishing Gradients?", 2018.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Verdict = Literal["vanishes", "healthy", "explodes", "dead"]

# A gradient that changes by more than this over the whole depth leaves the first layers behind.
HEALTHY_LOG10 = 2.0
# A layer with more dead units than this passes next to nothing.
DEAD_FRACTION = 0.999
_SMALLEST = float(np.finfo(np.float32).tiny)
_GREATEST = float(np.finfo(np.float32).max)


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
      delta_rms: of all layers, the output (which has no activation) last.
      dead_fraction: likewise.
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
    """Percentiles 5, 50 and 95 of the ratio of neighbouring layers, where both can be told."""
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
