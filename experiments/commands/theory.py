"""Say what gradients must do at any depth, before anything is run.

    python experiments/grad_flow.py theory --activation tanh --sigma-w2 1.5 --sigma-b2 0.05
    python experiments/grad_flow.py theory --activation tanh --sigma-w2 1.5 --depth 50 --width 256
    python experiments/grad_flow.py theory --activation tanh --critical --sigma-b2 0.05
    python experiments/grad_flow.py theory --activation relu --moments
    python experiments/grad_flow.py theory --activation my_module:my_function --moments --json

sigma_w² is fan_in times the variance of a weight (LeCun and Xavier 1, He 2), sigma_b² the variance
of a bias. The theory itself is explained in jaxdnn/propagation/mean_field.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from jaxdnn import command_line
from jaxdnn.errors import InputError
from jaxdnn.propagation import (
    MAX_SIGMA_W2,
    Phi,
    Theory,
    batch_norm_rate,
    critical_points,
    find_activation,
    gains,
    gradient_band,
    jacobian_spectrum,
    layer_norm_rate,
    phi_moments,
    theory,
)

from .option_checks import check_least, check_not_negative, check_positive

PROG = "grad_flow.py theory"

MEANINGS = {
    "q": "variance of a pre-activation",
    "chi1": "factor of the gradient's variance per layer",
    "slope": "V'(q), below 1 where the fixed point attracts",
    "c": "correlation that two inputs go to",
    "xi_q": "depth scale of q, in layers",
    "xi_c": "depth scale of c: trainable to about 6 of it",
    "xi_gradient": "depth scale of the gradient's variance",
    "spread_normal": "relative variance of the Jacobian's squared singular values, normal weights",
    "spread_orthogonal": "the same with orthogonal weights",
    "log10_total_low": "5 % of random networks change the gradient's RMS by less than 10^this",
    "log10_total_high": "5 % change it by more",
    "m1": "E phi at q = 1",
    "m2": "E phi²",
    "d2": "E phi'²",
    "gain_forward": "gain that keeps the signal's variance",
    "gain_backward": "gain that keeps the gradient's variance",
    "gain_common": "gain in common use",
    "gain_common_forward": "the signal's RMS factor per layer with it",
    "gain_common_backward": "the gradient's RMS factor per layer with it",
    "batch_norm_rate": "factor of the gradient's variance per layer with batch norm",
    "layer_norm_rate": "the same with layer norm",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to work out, and for which activation."""

    activation: str
    """Any that deep_dog.py takes, or my_module:my_function from this folder."""
    sigma_w2: float | None = None
    """fan_in times the variance of a weight; 0 or more."""
    sigma_b2: float = 0.0
    """Variance of a bias; 0 or more."""
    start: float = 1.0
    """Variance of the first pre-activations; decides where there are several fixed points."""
    dropout: float = 0.0
    """Share of the units dropped; 0 or more, below 1."""
    depth: int | None = None
    """Say also how far the Jacobian's singular values spread over so many layers; 2 or more."""
    width: int | None = None
    """With --depth: say also how far single networks of so many units stray; 8 or more."""
    critical: bool = False
    """List all sigma_w² that are critical (chi1 = 1) at --sigma-b2 instead."""
    max_sigma_w2: float = MAX_SIGMA_W2
    """With --critical: the greatest sigma_w² to list."""
    moments: bool = False
    """Print moments, gains and rates instead."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_not_negative({"sigma_w2": self.sigma_w2, "sigma_b2": self.sigma_b2})
        check_positive({"start": self.start, "max_sigma_w2": self.max_sigma_w2})
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout is {self.dropout}; give 0 or more, below 1")
        check_least({"depth": self.depth}, 2)
        check_least({"width": self.width}, 8)
        if self.width is not None and self.depth is None:
            raise InputError("--width says how far networks stray over --depth layers; give both")
        if self.depth is not None and (self.critical or self.moments or self.dropout):
            raise InputError(
                "--depth is asked of one --sigma-w2, without dropout; leave the rest out"
            )
        if self.critical and self.moments:
            raise InputError("--critical and --moments are two questions; ask one at a time")
        if self.critical and (self.sigma_w2 is not None or self.dropout):
            raise InputError(
                "--critical finds sigma_w2, and with dropout nothing is critical; leave --sigma-w2 "
                "and --dropout out"
            )
        if self.sigma_w2 is None and not (self.critical or self.moments):
            raise InputError(
                "--sigma-w2 is missing; give fan_in times the variance of a weight (LeCun 1, He 2) "
                "or ask for --critical or --moments"
            )


def main(argv: Sequence[str]) -> int:
    """Print the theory of one activation; return the exit code."""
    options = command_line.parse(Options, default=None, args=argv, prog=PROG, description=__doc__)
    phi = find_activation(options.activation)
    if options.critical:
        return _print_critical(phi, options)
    if options.moments:
        content = _moments(phi)
    else:
        assert options.sigma_w2 is not None
        found = theory(
            phi,
            options.sigma_w2,
            options.sigma_b2,
            start=options.start,
            dropout=options.dropout,
        )
        content = theory_json(found)
        if options.depth is not None:
            content |= _at_depth(phi, found, options.sigma_w2, options.depth, options)
    if options.json:
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        _print_table(options.activation, content)
    return 0


def theory_json(found: Theory) -> dict[str, Any]:
    """Return the theory as JSON has it: null for what is undefined, with a note."""
    content: dict[str, Any] = {
        name: _or_null(getattr(found, name))
        for name in ("q", "chi1", "slope", "c", "xi_q", "xi_c", "xi_gradient")
    }
    content["fixed_points"] = [
        {"q": float(q), "slope": float(slope)}
        for q, slope in zip(found.fixed_points.q, found.fixed_points.slopes, strict=True)
    ]
    content["note"] = "; ".join(found.notes) or None
    return content


def _at_depth(
    phi: Phi, found: Theory, sigma_w2: float, depth: int, options: Options
) -> dict[str, Any]:
    """Return what `depth` layers add: the Jacobian's spread, and how far single networks stray."""
    q = options.start if found.fixed_points.every else found.q
    notes = list(found.notes)
    spreads = {"spread_normal": math.nan, "spread_orthogonal": math.nan}
    if math.isfinite(q):
        spreads = {
            "spread_normal": jacobian_spectrum(phi, sigma_w2, q, depth=depth).spread,
            "spread_orthogonal": jacobian_spectrum(
                phi, sigma_w2, q, depth=depth, weights="orthogonal"
            ).spread,
        }
    content = {name: _or_null(value) for name, value in spreads.items()}
    if options.width is not None:
        band = math.nan, math.nan
        if sigma_w2 > 0 and options.start > options.sigma_b2:
            moment = (options.start - options.sigma_b2) / sigma_w2
            shape = {"depth": depth, "width": options.width}
            of_logs = gradient_band(phi, sigma_w2, options.sigma_b2, moment, **shape)
            band = of_logs.low / math.log(10), of_logs.high / math.log(10)
        else:
            notes.append(
                "there is no band where --sigma-w2 is 0 or --start is not above --sigma-b2"
            )
        content |= {"log10_total_low": _or_null(band[0]), "log10_total_high": _or_null(band[1])}
    return content | {"note": "; ".join(notes) or None}


def _moments(phi: Phi) -> dict[str, Any]:
    moments, gain = phi_moments(phi), gains(phi)
    batch, layer = batch_norm_rate(phi), layer_norm_rate(phi)
    notes = [f"batch norm: {batch.note}"] if batch.note else []
    if layer.note:
        notes.append(f"layer norm: {layer.note}")
    if math.isnan(gain.common):
        notes.append("no gain is in common use")
    numbers = {
        **{name: float(value) for name, value in moments._asdict().items()},
        "gain_forward": gain.forward,
        "gain_backward": gain.backward,
        "gain_common": gain.common,
        "gain_common_forward": gain.common_forward,
        "gain_common_backward": gain.common_backward,
        "batch_norm_rate": math.nan if batch.note else batch.rate,
        "layer_norm_rate": layer.rate,
    }
    content: dict[str, Any] = {name: _or_null(value) for name, value in numbers.items()}
    return content | {"note": "; ".join(notes) or None}


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _print_critical(phi: Phi, options: Options) -> int:
    found = critical_points(phi, options.sigma_b2, max_sigma_w2=options.max_sigma_w2)
    if options.json:
        points = [
            {name: _or_null(value) for name, value in point._asdict().items()}
            for point in found.points
        ]
        print(json.dumps(points, indent=1, allow_nan=False))
        # A list has no room for it.
        if found.note:
            print(found.note, file=sys.stderr)
        return 0
    print(f"{options.activation}, critical (chi1 = 1) at sigma_b2 = {options.sigma_b2:g}")
    if found.points:
        print(f"{'sigma_w2':>14}{'q':>14}{'slope':>12}")
    for point in found.points:
        q = "any" if math.isnan(point.q) else f"{point.q:.8g}"
        print(f"{point.sigma_w2:14.8g}{q:>14}{point.slope:12.6g}")
    if found.note:
        print(found.note)
    return 0


def _print_table(activation: str, content: dict[str, Any]) -> None:
    print(activation)
    for name, meaning in MEANINGS.items():
        if name in content:
            value = content[name]
            shown = "undefined" if value is None else f"{value:.8g}"
            print(f"  {name:22}{shown:>14}  {meaning}")
    for note in (content["note"] or "").split("; "):
        if note:
            print(f"  note: {note}")
