"""Say how deep a network can be with this activation and initializer.

    python experiments/grad_flow.py depth --activation tanh --initializer xavier
    python experiments/grad_flow.py depth --activation relu --initializer he --norm layer --json

Two limits. Differences between inputs are lost after about 6 xi_c layers, and a network much deeper
is not trained by gradient descent: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep
Information Propagation", 2017. And the gradient leaves the number format: its RMS in the first
layer falls below the smallest normal number (what is smaller becomes zero or loses digits), or
overflows.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdnn import command_line, initializers
from jaxdnn.norms import Norm
from jaxdnn.propagation import (
    FORMATS,
    LONGEST,
    Phi,
    batch_norm_rate,
    correlation_fixed_point,
    correlation_slope,
    depth_limits,
    depth_scale,
    find_activation,
    phi_moments,
    predict,
    theory,
)

from .option_checks import check_least, check_not_negative, check_positive

PROG = "grad_flow.py depth"
SOURCE = (
    'about 6 xi_c: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", '
    "2017"
)
TRAINABLE_SCALES = 6


@dataclasses.dataclass(frozen=True)
class Options:
    """The network and its inputs."""

    activation: str
    """Any that deep_dog.py takes, or my_module:my_function from this folder."""
    initializer: str
    """Any that deep_dog.py takes; all hidden layers have as many units as the one before."""
    norm: Norm = "none"
    """Normalisation of the pre-activations: none, batch, layer."""
    width: int = 256
    """Units of a layer; matters for initializers that ignore the fan (normal, uniform)."""
    scale: float | None = None
    """Of the initializers normal, truncated_normal and uniform; default 0.01."""
    gain: float | None = None
    """Factor on the standard deviation; default 1."""
    sigma_b2: float = 0.0
    """Variance of a bias; 0 or more."""
    input_moment: float = 1.0
    """Mean square of the network's inputs; above 0."""
    gradient_rms: float = 1.0
    """RMS of the gradient (delta) in the last hidden layer; above 0."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_least({"width": self.width}, 1)
        check_not_negative({"sigma_b2": self.sigma_b2})
        names = ("input_moment", "gradient_rms")
        check_positive({name: getattr(self, name) for name in names})


def main(argv: Sequence[str]) -> int:
    """Print how deep the network can be; return the exit code."""
    options = command_line.parse(Options, default=None, args=argv, prog=PROG, description=__doc__)
    scheme = initializers.make_initializer(
        options.initializer, scale=options.scale, gain=options.gain
    )
    phi = find_activation(options.activation)
    content = _limits(phi, scheme, options)
    if options.json:
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        _print(content)
    return 0


def _limits(phi: Phi, scheme: initializers.Initializer, options: Options) -> dict[str, Any]:
    sigma_w2 = options.width * scheme.variance((options.width, options.width))
    found = predict(
        phi,
        sigma_w2,
        options.sigma_b2,
        options.input_moment,
        depth=LONGEST,
        norm=options.norm,
    )
    limits = depth_limits(np.asarray(found.factor), options.gradient_rms)
    xi_c, notes = _correlation_scale(phi, sigma_w2, options)
    trainable: float = math.nan
    if limits.factor == 0:
        trainable = 1
        notes.append("no gradient passes a hidden layer: only the output layer is trained")
    elif math.isfinite(xi_c):
        trainable = max(1, math.floor(TRAINABLE_SCALES * xi_c))
    if options.norm == "batch" and (outside := batch_norm_rate(phi).note):
        notes.append(outside)
    return {
        "activation": options.activation,
        "initializer": scheme.name,
        "norm": options.norm,
        "sigma_w2": sigma_w2,
        "sigma_b2": options.sigma_b2,
        "factor": limits.factor,
        "xi_c": _or_null(xi_c),
        "max_depth": _or_null(trainable),
        "rule": SOURCE,
        **{f"depth_{name}": _or_null(limits.depths[name]) for name in FORMATS},
        "note": "; ".join(notes) or None,
    }


def _correlation_scale(phi: Phi, sigma_w2: float, options: Options) -> tuple[float, list[str]]:
    """Return xi_c, NaN where there is none, and what there is to say about it."""
    if sigma_w2 == 0:
        return math.nan, []
    if options.norm == "batch":
        return math.nan, ["xi_c has no meaning under batch norm, where inputs depend on each other"]
    if options.norm == "layer":
        variance = sigma_w2 * float(phi_moments(phi).m2) + options.sigma_b2
        c = float(correlation_fixed_point(phi, sigma_w2 / variance, 1.0))
        xi_c = depth_scale(float(correlation_slope(phi, sigma_w2 / variance, 1.0, c)))
        return xi_c, [] if math.isfinite(xi_c) else ["critical: xi_c is infinite"]
    start = sigma_w2 * options.input_moment + options.sigma_b2
    found = theory(phi, sigma_w2, options.sigma_b2, start=start)
    return found.xi_c, list(found.notes)


def _or_null(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == math.floor(value) else float(value)


def _print(content: dict[str, Any]) -> None:
    print(
        f"{content['activation']}, {content['initializer']}, norm {content['norm']}: "
        f"sigma_w2 = {content['sigma_w2']:.6g}, sigma_b2 = {content['sigma_b2']:.6g}"
    )
    print(f"  gradient's RMS factor per layer, deep down     {content['factor']:.6g}")
    xi_c = content["xi_c"]
    print(f"  xi_c                                           {_shown(xi_c, 'none')}")
    depth = _shown(content["max_depth"], "no limit found")
    print(f"  trainable to a depth of                        {depth}")
    print(f"    ({content['rule']})")
    for name in FORMATS:
        shown = _shown(content[f"depth_{name}"], "never")
        print(f"  gradient leaves {name:9} at depth             {shown}")
    for note in (content["note"] or "").split("; "):
        if note:
            print(f"  note: {note}")


def _shown(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:,.6g}" if value < 1e6 else f"{value:.3g}"
