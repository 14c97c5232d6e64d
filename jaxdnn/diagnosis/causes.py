"""What is wrong with which layer.

A fault is a property of the layer itself, not of the signal that reaches it: its weights' scale
against that of its neighbours, a bias that outweighs the signal, an activation unlike the others, a
norm that the others have, what dropout leaves, padding, a softmax on the logits. Each deviation is
a log over the spread that healthy networks show, so that they can be ranked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from jaxdnn.diagnosis.formats import find_format_causes
from jaxdnn.diagnosis.gains import Gain
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import named_stations
from jaxdnn.diagnosis.reduce import Measurement
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.strengths import (
    ACTIVATION_SPREAD,
    CERTAIN,
    DROPOUT_SPREAD,
    FACTOR_SPREAD,
    NAMED,
    PADDING_SPREAD,
    STRUCTURAL,
    WEIGHT_SPREAD,
)
from jaxdnn.diagnosis.terms import log, log_factor


def find_causes(graph: Graph, measured: Measurement, gains: dict[str, Gain]) -> tuple[Cause, ...]:
    """Rank what is wrong, worst first.

    Args:
      graph: of the network.
      measured: of one pass.
      gains: what each activation does at standard normal values, by station.
    """
    found = [
        *_weights(graph, measured),
        *_biases(graph, measured),
        *_activations(graph, measured, gains),
        *_missing_norms(graph),
        *_dropouts(graph, measured),
        *_padding(graph),
        *_softmax(graph),
        *_everywhere(graph, measured),
        *find_format_causes(graph, measured),
    ]
    return ranked(cause for cause in found if cause.strength >= NAMED)


def ranked(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Return causes, the worst first."""
    return tuple(sorted(causes, key=lambda cause: -cause.strength))


def _weights(graph: Graph, measured: Measurement) -> list[Cause]:
    sites = [(i, site) for i, site in enumerate(graph.layers) if site.kind != "embedding"]
    causes = [
        Cause(site.path, "zero weights", "every weight is zero: nothing gets through", CERTAIN)
        for i, site in sites
        if measured.kernel_rms[i] == 0
    ]
    alive = [(i, site) for i, site in sites if measured.kernel_rms[i] > 0]
    if len(alive) < 3:
        return causes
    rms = np.log([measured.kernel_rms[i] for i, _ in alive])
    fans = np.log([[s.fan_in, (s.fan_in + s.fan_out) / 2, s.fan_out] for _, s in alive])
    scales = rms[:, None] + fans / 2
    deviations = scales - np.median(scales, axis=0)
    mode = _fan_mode(deviations)
    for (_, site), row, scale in zip(alive, deviations, scales, strict=True):
        strength = abs(row[mode]) / WEIGHT_SPREAD
        if mode == 0 and abs(row[2]) < 0.25 * abs(row[0]):
            name = "fan-out for fan-in"
            text = f"weights scaled by fan_out {site.fan_out:.0f}, not fan_in {site.fan_in:.0f}"
        else:
            name = "weights too large" if row[mode] > 0 else "weights too small"
            text = f"weights {math.exp(row[mode]):.3g} x those of the other layers"
        sigma = math.exp(scale[0])
        causes.append(Cause(site.path, name, f"{text} (sigma_w = {sigma:.3g})", strength))
    return causes


def _fan_mode(deviations: np.ndarray) -> int:
    """Column of the fan (in, average, out) that the layers' scales follow; fan_in in doubt.

    One layer that deviates makes its neighbour deviate under another rule, so that the other rule
    has to explain more than that one.
    """
    outliers = (np.abs(deviations) > NAMED * WEIGHT_SPREAD).sum(axis=0)
    best = int(np.argmin(outliers))
    return best if outliers[best] + 1 < outliers[0] else 0


def _biases(graph: Graph, measured: Measurement) -> list[Cause]:
    causes = []
    for index, site in enumerate(graph.layers):
        bias, total = measured.bias_rms[index], measured.forward[index].rms
        signal = math.sqrt(max(total**2 - bias**2, (1e-3 * bias) ** 2))
        dead = _dead(graph, measured, index)
        if bias > signal > 0:
            text = f"the bias is {bias / signal:.3g} x the signal"
            name = "dead units" if dead > 0.5 else "bias too large"
            text += f"; {dead:.0%} of the units are dead" if dead else ""
            causes.append(Cause(site.path, name, text, STRUCTURAL * (1 + log(bias / signal))))
    return causes


def _dead(graph: Graph, measured: Measurement, index: int) -> float:
    for upper, link in enumerate(graph.links):
        if link.below == index:
            for position, station in enumerate(link.stations):
                if station.kind == "activation":
                    return measured.slopes[f"{upper}.{position}"].dead
    return 0.0


def _activations(graph: Graph, measured: Measurement, gains: dict[str, Gain]) -> list[Cause]:
    final = len(graph.layers)
    hidden = {name: gain.slope for name, gain in gains.items() if not name.startswith(f"{final}.")}
    if len(hidden) < 3:
        return []
    usual = float(np.median([log(gain) for gain in hidden.values()]))
    causes = []
    for name, gain in hidden.items():
        below = graph.links[int(name.split(".")[0])].below
        if below is None:
            continue
        slope = measured.slopes[name]
        text = (
            f"the activation's slope (RMS at standard normal values) is {gain:.3g}, the others'"
            f" {math.exp(usual):.3g}; {slope.saturated:.0%} saturated"
        )
        strength = abs(log(gain) - usual) / ACTIVATION_SPREAD
        causes.append(Cause(graph.layers[below].path, "saturating activation", text, strength))
    return causes


def _missing_norms(graph: Graph) -> list[Cause]:
    """Compare ways between layers that are alike but for a norm.

    Norms that open residual blocks do not count: the way out of the last block has none.
    """
    alike: dict[tuple[str, ...], list[tuple[int, bool]]] = defaultdict(list)
    for upper, link in enumerate(graph.links[:-1]):
        kinds = [station.kind for station in link.stations]
        opens = "norm" in kinds and "residual" in kinds[: kinds.index("norm")]
        if link.below is not None:
            alike[_without_norm(kinds)].append((upper, "norm" in kinds and not opens))
    causes = []
    for ways in alike.values():
        having = sum(has for _, has in ways)
        if len(ways) >= 3 and having > len(ways) / 2:
            text = f"{having} of {len(ways)} layers like it are followed by a norm; it is not"
            causes += [
                Cause(graph.layers[below].path, "missing norm", text, STRUCTURAL)
                for upper, has in ways
                if not has and (below := graph.links[upper].below) is not None
            ]
    return causes


def _without_norm(kinds: Sequence[str]) -> tuple[str, ...]:
    return tuple(k for k in kinds if k not in ("norm", "shape", "pooling", "gain", "scale"))


def _dropouts(graph: Graph, measured: Measurement) -> list[Cause]:
    causes = []
    for name in named_stations(graph, "dropout"):
        below = graph.links[int(name.split(".")[0])].below
        kept = measured.kept[name]
        if below is not None:
            text = f"dropout leaves {kept:.0%} of the units"
            path = graph.layers[below].path
            causes.append(Cause(path, "dropout", text, -log(kept) / DROPOUT_SPREAD))
    return causes


def _padding(graph: Graph) -> list[Cause]:
    """Border taps see zeros; layer after layer that is a factor below 1."""
    padded = [site for site in graph.layers if site.inside < 1]
    if not padded:
        return []
    total = sum(0.5 * math.log(site.inside) for site in padded)
    worst = min(padded, key=lambda site: site.inside)
    text = (
        f"{1 - worst.inside:.0%} of the window's taps fall on padding; over {len(padded)}"
        f" convolutions that is a factor of {math.exp(total):.2g}"
    )
    return [Cause(worst.path, "padding", text, -total / PADDING_SPREAD)]


def _softmax(graph: Graph) -> list[Cause]:
    link = graph.links[-1]
    if link.below is None or not any(station.kind == "softmax" for station in link.stations):
        return []
    text = "the network ends in a softmax, and the loss takes another: give the loss logits"
    return [Cause(graph.layers[link.below].path, "softmax twice", text, CERTAIN / 2)]


def _everywhere(graph: Graph, measured: Measurement) -> list[Cause]:
    """A factor that most layers share, and that adds up from the last layer to the first."""
    factors = [
        log_factor(graph, measured, i)
        for i in range(len(graph.layers))
        if graph.above(i) is not None
    ]
    if len(factors) < 3 or not np.isfinite(factors).all():
        return []
    typical = float(np.median(factors))
    first, last = (log(measured.delta[graph.layers[i].z]) for i in (0, -1))
    total = math.copysign(first - last, (first - last) * typical)
    name = "gain too small everywhere" if typical < 0 else "gain too large everywhere"
    text = f"the gradient changes by {math.exp(typical):.3g} in a typical layer"
    strength = min(abs(typical) * len(factors), max(total, 0.0)) / FACTOR_SPREAD
    return [Cause(graph.layers[0].path, name, text, strength)]
