"""All activations side by side: moments, gains, and what each initializer does to the gradient."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdnn.initializers import INITIALIZERS, make_initializer
from jaxdnn.propagation.architectures import batch_norm_rate, layer_norm_rate
from jaxdnn.propagation.critical import Gains, gains
from jaxdnn.propagation.finite_depth import predict
from jaxdnn.propagation.mean_field import phi_moments
from jaxdnn.propagation.nonlinearity import Phi

DEPTH = 50
WIDTH = 256


class ActivationRow(NamedTuple):
    """What theory says about one activation.

    Attributes:
      name: of the activation.
      m1: E phi at q = 1.
      m2: E phi².
      d2: E phi'².
      gains: at q = 1.
      batch_norm_rate: factor of the gradient's variance, NaN where outside theory.
      layer_norm_rate: likewise.
      factors: initializer -> RMS factor of delta per layer, median over 50 layers of width 256 fed
        with inputs of unit variance.
    """

    name: str
    m1: float
    m2: float
    d2: float
    gains: Gains
    batch_norm_rate: float
    layer_norm_rate: float
    factors: dict[str, float]


def sigma_w2_of(initializer: str, width: int = WIDTH) -> float:
    """Return fan_in Var(w) of a scheme with its defaults, for a square kernel."""
    return width * make_initializer(initializer).variance((width, width))


def activation_table(activations: Mapping[str, Phi]) -> list[ActivationRow]:
    """Work out the rows for activations by name."""
    return [_row(name, phi) for name, phi in activations.items()]


def _row(name: str, phi: Phi) -> ActivationRow:
    m1, m2, d2 = (float(moment) for moment in phi_moments(phi))
    batch = batch_norm_rate(phi)
    by_variance: dict[float, float] = {}
    factors = {}
    for initializer in INITIALIZERS:
        sigma_w2 = sigma_w2_of(initializer)
        if sigma_w2 not in by_variance:
            found = predict(phi, sigma_w2, depth=DEPTH).factor
            by_variance[sigma_w2] = float(np.median(np.asarray(found)))
        factors[initializer] = by_variance[sigma_w2]
    rate = math.nan if batch.note else batch.rate
    return ActivationRow(name, m1, m2, d2, gains(phi), rate, layer_norm_rate(phi).rate, factors)


def write_table(rows: list[ActivationRow], path: Path) -> None:
    """Write the rows as CSV; what is undefined or outside theory stays empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "activation",
                "m1",
                "m2",
                "d2",
                *(f"gain_{field}" for field in Gains._fields),
                "batch_norm_rate",
                "layer_norm_rate",
                *(f"factor_{initializer}" for initializer in rows[0].factors),
            ]
        )
        for row in rows:
            numbers = [
                row.m1,
                row.m2,
                row.d2,
                *row.gains,
                row.batch_norm_rate,
                row.layer_norm_rate,
                *row.factors.values(),
            ]
            writer.writerow([row.name, *(x if math.isfinite(x) else "" for x in numbers)])
