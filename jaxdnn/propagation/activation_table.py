"""All activations side by side: moments, gains, and what each initializer does to the gradient.

A gain is the factor on the standard deviation 1/√fan_in. At q = 1, 1/√(E phi²) keeps the variance
of the signal, and 1/√(E phi'²) that of the gradient. They agree for ReLU and its kin alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdnn.activations import Activation
from jaxdnn.initializers import INITIALIZERS, make_initializer
from jaxdnn.propagation.finite_depth import batch_norm_rate, layer_norm_rate, predict
from jaxdnn.propagation.mean_field import phi_moments
from jaxdnn.propagation.nonlinearity import Phi

DEPTH = 50
WIDTH = 256


class Gains(NamedTuple):
    """Gains of an activation at q = 1.

    Attributes:
      forward: keeps the variance of the signal.
      backward: keeps the variance of the gradient.
      common: the one in common use, or NaN where there is none.
      common_forward: factor of the signal's RMS per layer with the common gain.
      common_backward: factor of the gradient's RMS per layer with the common gain.
    """

    forward: float
    backward: float
    common: float
    common_forward: float
    common_backward: float


def gains(phi: Phi) -> Gains:
    """Return the exact gains, and by how much the common one is off.

    References:
      Kumar, "On Weight Initialization in Deep Neural Networks", 2017.
    """
    m2, d2 = (float(moment) for moment in phi_moments(phi)[1:])
    common = phi.common_gain if isinstance(phi, Activation) else None
    common = math.nan if common is None else common
    return Gains(
        _inverse_root(m2),
        _inverse_root(d2),
        common,
        common * math.sqrt(m2),
        common * math.sqrt(d2),
    )


def _inverse_root(value: float) -> float:
    return 1 / math.sqrt(value) if value > 0 else math.inf


class ActivationRow(NamedTuple):
    """What theory says about one activation.

    Attributes:
      name: a key of `ACTIVATIONS`, or what the user calls a function of their own.
      m1: E phi at q = 1.
      m2: E phi² at q = 1.
      d2: E phi'² at q = 1.
      gains: exact ones and the common one.
      batch_norm_rate: factor of the gradient's variance per layer, NaN where outside theory.
      layer_norm_rate: factor of the gradient's variance per layer.
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
    gain_names = [f"gain_{field}" for field in Gains._fields]
    factor_names = [f"factor_{initializer}" for initializer in rows[0].factors]
    rates = ["batch_norm_rate", "layer_norm_rate"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["activation", "m1", "m2", "d2", *gain_names, *rates, *factor_names])
        for name, m1, m2, d2, gain, *of_norms, factors in rows:
            numbers = [m1, m2, d2, *gain, *of_norms, *factors.values()]
            writer.writerow([name, *(x if math.isfinite(x) else "" for x in numbers)])
